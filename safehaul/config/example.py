"""Configurations to begin with: a complete one with a comment on every key, and a short one."""

from __future__ import annotations

from uuid import uuid4

from safehaul.config.reference_text import EXAMPLES

_EXAMPLE_ID = "6f2d9a0e-5b1c-4c1e-9c55-0d7a5c3f1b42"
_SHORT_HEAD = """\
# safehaul.toml: replace what follows by your own; `safehaul config reference` has every key.
# Secrets are never here: the file that `password` names holds vCenter's, that of `passphrase` opens the repository.
"""
_EXAMPLE = """\
# safehaul.toml: found by --config, by SAFEHAUL_CONFIG, here, or at /etc/safehaul/safehaul.toml.
# Any key can be set from the environment instead: SAFEHAUL_TEMPORAL__ADDRESS, SAFEHAUL_VCENTERS__MAIN__URL.
# Names are made of a-z, 0-9, '-' and '_'. Sizes are bytes, or a text such as "512 MiB". Paths are absolute.

# Marks this installation's snapshots; only those are ever removed. Make it once (uuidgen), never change it.
installation_id = "6f2d9a0e-5b1c-4c1e-9c55-0d7a5c3f1b42"
# A local directory for what each machine's workers remember of the repositories; may be emptied at any time.
cache_dir = "/var/lib/safehaul/cache"

[temporal]
address = "temporal.example.net:7233"
namespace = "backup"
tls = true # or a table: enabled, server_ca_file, domain, client_cert_file, client_key_file
api_key = { env = "TEMPORAL_API_KEY" } # leave it out where the server asks for none

[catalog]
url = "sqlite:////var/lib/safehaul/catalog.db" # or postgresql://user@host/database with a password below
# password = { file = "/etc/safehaul/catalog-password" }

[[vcenters]]
name = "main"
url = "https://vcenter.example.net/sdk"
user = "backup@vsphere.local"
# Where the password is, never the password: { env = … }, { file = … } or { keyring = "service/user" }.
password = { file = "/etc/safehaul/vcenter-password" }
# The certificate is checked against the system's CAs, or one of these instead:
ca_file = "/etc/safehaul/vcenter-ca.pem"
# thumbprint_sha256 = "AB:CD:…"
# insecure_skip_verify = true
# max_concurrent_calls = 8 # from each worker process; more wait their turn

# What hosts mount as a datastore, and what access nodes open for it. Read only.
[[exports]]
name = "nas-1"
remote_hosts = ["10.20.0.5", "nas-1.example.net"] # as the hosts name the filer
remote_path = "/vol/datastore1"                   # as the hosts name the export
datacenter = ""                                   # only its datastores, where it is another filer elsewhere
address = "10.30.0.5"                             # what access nodes dial; empty: the first remote host
path = ""                                         # what they mount there; empty: remote_path
version = "auto"                                  # "auto" (as the host), "3" or "4.1"
nfs_port = 2049
mount_port = 635                                  # version 3; leave it out to ask the filer's portmapper
reserved_port = true                              # most filers demand a source port below 1024 of root
uid = 0                                           # flat files belong to root and are 0600
gid = 0
connect_timeout_s = 15
operation_timeout_s = 60

[[exports]]
name = "nas-2"
remote_hosts = ["nas-2"]
remote_path = "/vol/datastore2"
mounted_at = "/mnt/datastore2" # the node's kernel has it mounted there: read through that

# Where restores may write. Never used to read a backup's source.
[[restore_exports]]
name = "nas-1"
remote_hosts = ["10.20.0.5", "nas-1.example.net"]
remote_path = "/vol/datastore1"
address = "10.30.0.5"

[[access_nodes]]
name = "node-1"
streams = 4 # disks read at once; leave it out for the number of cores
spool_dir = "/var/lib/safehaul/spool"
spool_limit_bytes = "2 GiB" # the most that the VMs' small files may take there

[[access_nodes]]
name = "node-2"

[[media_agents]]
name = "vault"
repository = "file:///srv/safehaul/repository" # or a bucket: "s3://bucket/prefix", with the s3_… keys that it needs
pack_size_bytes = "64 MiB"
# What opens the encrypted repository; make it once: umask 077; openssl rand -base64 32 > /etc/safehaul/vault-passphrase
passphrase = { file = "/etc/safehaul/vault-passphrase" } # or key_file = "/path": 32 random bytes; neither: unencrypted
prune_at = "11:00" # UTC, daily, by the schedule that `safehaul setup` makes; "": never by itself
verify_at = "sun 12:00" # UTC, weekly, a quarter of it each time; "": never by itself
# copy_to = "offsite" # another media agent that keeps a second copy, made daily at copy_at

[[vm_groups]]
name = "nightly"
vcenter = "main"
media_agent = "vault"
access_nodes = ["node-1", "node-2"] # leave it out for all
# A VM is selected when any rule matches and no exclude rule does: `safehaul group preview nightly` shows which.
# A text is a glob (* ? [abc] [!abc]) over the whole name, or with regex = true a regular expression (RE2 syntax).
rules = [
  { name = "web-*", ignore_case = true },
  { folder = "Production/Databases", subfolders = true }, # path below the datacenter's VM folder
  { name = "(sql|ora)-[0-9]+", regex = true },
  { tag = "gold", category = "Backup" },          # a vCenter tag; read from its REST endpoint, 7.0 U2 or later
  { attribute = "Owner", value = "team-*" },      # a custom attribute; without a value: any that is not empty
  { datacenter = "Berlin" },
  { cluster = "prod-*" },
  { host = "esx-1.example.net" },
  { resource_pool = "Gold/Web", subpools = true }, # path below the cluster's root pool
  { guest_os = "windows*" },                      # guest id or full name
  { annotation = "*backup: yes*" },               # the VM's notes, as a whole
  { hardware_version = ">=13" },                  # or "19", "vmx-19", "<7"
  { all = [{ datastore = "nas-1" }, { power_state = "poweredOn" }, { not = { name = "*-scratch" } }] },
  { guids = ["1b4e28ba-2fa1-41d2-883f-0016d3cca427.5027e5a8-9a3b-4f6e-8b6d-3c2f1a0e9d8c"] },
]
exclude = [{ template = true }, { any = [{ folder = "Templates" }, { name = "test-*" }] }]
# Disks: only those that any of `disks` fits (leave it out for all), without those that any of `exclude_disks` fits.
# A filter's keys must all fit: label, datastore and file are globs; controller_key 1000 is the first SCSI controller.
disks = [{ controller_key = 1000 }, { label = "Hard disk *", datastore = "nas-*", ignore_case = true }]
exclude_disks = [
  { file = "*pagefile*" },                        # of the base's descriptor, in its datastore
  { controller_key = 1000, unit_number = 3 },     # SCSI (0:3)
  { min_size_bytes = "2 TiB", max_size_bytes = "62 TiB" },
]
allow_empty = false         # false: a group that selects no VM fails
streams = 8                 # the most VMs in work at once; leave it out for all that the nodes have
distribution = "dynamic"    # or "static": planned before the first VM starts
order = "size"              # "name", "size" (largest first) or "listed" (as the rules list them)
quiesce = true              # ask VMware Tools to quiesce the guest
quiesce_fallback = true     # a refused quiesce: go on with a crash-consistent snapshot, and say so
snapshot_debt = "refuse"    # a VM that needed consolidation before: "refuse" it, or "warn"
pending_snapshot = "refuse" # a VM whose last snapshot is still being removed: "refuse" or "proceed"
min_free_bytes = "10 GiB"   # a datastore with less: no snapshot, or the snapshot goes
max_hold_s = 43200          # no snapshot is held longer
pause_hold_s = 600          # nor longer than this while the job is paused
removal_handover_after_s = 600 # a removal that takes longer goes on beside the job, without limit
node_dead_after_s = 25      # a silent access node's VMs go on on another one after this long
# How long backups are kept: the newest of each of the newest n periods that have one, in UTC. Leave it out: for ever.
[vm_groups.retention]
keep_last = 3   # the newest three, and …
hourly = 0
daily = 14
weekly = 8
monthly = 12
yearly = 3
min_backups = 2 # never fewer Completed or Partial backups of a VM than this
"""


def example_toml() -> str:
    """The text of a valid configuration that shows every table and key."""
    return _EXAMPLE


def short_toml() -> str:
    """The text of a valid configuration with little more than what must be there."""
    tables = [text for key, text in EXAMPLES.items() if "." not in key]
    return "\n".join([_SHORT_HEAD, *tables])


def with_own_id(text: str) -> str:
    """An example with a new `installation_id`: two of one id would take each other's snapshots for their own."""
    return text.replace(_EXAMPLE_ID, str(uuid4()))
