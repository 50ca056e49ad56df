"""What the reference of the configuration says besides the models: how to use the file, examples, the environment."""

from __future__ import annotations

HEAD = """\
# Configuration

<!-- Made by `safehaul config reference` from the models in safehaul/config: change them, not this page. -->

safehaul is configured by one file in [TOML](https://toml.io). Begin with a short one, or without `--short` with one
that shows every key, and let every mistake in it be told at once, with file, key and reason:

```console
$ safehaul config example --short > safehaul.toml
$ safehaul --config safehaul.toml config check
```

The file is the one named by `--config`, else by the variable `SAFEHAUL_CONFIG`, else `safehaul.toml` in the working
directory, else `/etc/safehaul/safehaul.toml`. All workers and commands use the same content, on whichever machine
they run; a worker reads it when it starts, and must be started again after a change. An unknown key is an error.

| in the tables below | means |
|---|---|
| text | in quotes: `"backup@vsphere.local"` |
| name | a text of 1 to 63 of `a-z`, `0-9`, `-` and `_`, beginning with a letter or digit |
| absolute path | a text that begins with `/` and has no `..` |
| size | a number of bytes, or a text with one of the units B, KiB, MiB, GiB, TiB, PiB: `"512 MiB"` |
| seconds | a number, which may have a fraction |
| list | in square brackets: `["node-1", "node-2"]` |
| required | has no default and must be there |
| – | not set by default; the meaning says what that does |

## Tables
"""

EXAMPLES = {
    "installation_id": """\
installation_id = "6f2d9a0e-5b1c-4c1e-9c55-0d7a5c3f1b42"
""",
    "cache_dir": """\
cache_dir = "/var/lib/safehaul/cache"
""",
    "sweep_every": """\
sweep_every = "15m"
""",
    "temporal": """\
[temporal]
address = "temporal.example.net:7233"
namespace = "backup"
""",
    "temporal.tls": """\
[temporal.tls]
server_ca_file = "/etc/safehaul/temporal-ca.pem"
client_cert_file = "/etc/safehaul/client.pem"
client_key_file = "/etc/safehaul/client.key"
""",
    "catalog": """\
[catalog]
url = "sqlite:////var/lib/safehaul/catalog.db"
""",
    "vcenters": """\
[[vcenters]]
name = "main"
url = "https://vcenter.example.net/sdk"
user = "backup@vsphere.local"
password = { file = "/etc/safehaul/vcenter-password" }
ca_file = "/etc/safehaul/vcenter-ca.pem"
""",
    "exports": """\
[[exports]]
name = "gold"
remote_hosts = ["10.20.0.5", "nas-1.example.net"] # as the hosts see the filer
remote_path = "/vol/gold"
address = "10.30.0.5"                             # as the access nodes see it
""",
    "restore_exports": """\
[[restore_exports]]
name = "gold"
remote_hosts = ["10.20.0.5", "nas-1.example.net"]
remote_path = "/vol/gold"
address = "10.30.0.5"
""",
    "access_nodes": """\
[[access_nodes]]
name = "node-1"
streams = 4
""",
    "media_agents": """\
[[media_agents]]
name = "vault"
repository = "file:///srv/safehaul/repository"
passphrase = { file = "/etc/safehaul/vault-passphrase" }
""",
    "vm_groups": """\
[[vm_groups]]
name = "nightly"
vcenter = "main"
media_agent = "vault"
rules = [{ folder = "Production" }, { tag = "gold", category = "Backup" }]
exclude = [{ template = true }, { name = "*-scratch" }]
quiesce = true
quiesce_fallback = true
""",
    "vm_groups.retention": """\
[vm_groups.retention] # of the group above it
daily = 14
weekly = 8
monthly = 12
""",
}
"""Table → its keys as one writes them. All of them, one after the other, are a valid configuration."""

RULES_HEAD = """\
## Rules

A rule is a table with exactly one key that says of which kind it is, and perhaps options. Rules stand in `rules`
and `exclude` of a VM group; `all`, `any` and `not` combine them, up to {depth} deep. `safehaul group preview NAME`
shows which VMs a group selects now, which not, and by which rule.

A *pattern* is a glob over the whole text: `*` is any text, `?` one character, `[abc]` one of these, `[!abc]` none
of these. With `regex = true` it is a regular expression in [RE2's
syntax](https://github.com/google/re2/wiki/Syntax), which must fit the whole text. Upper and lower case differ
unless `ignore_case = true`.
"""

RULE_EXAMPLES = {
    "name": '{ name = "web-*", ignore_case = true }',
    "datacenter": '{ datacenter = "Berlin" }',
    "cluster": '{ cluster = "prod-*" }',
    "host": '{ host = "esx-1.example.net" }',
    "folder": '{ folder = "Production/Databases" }',
    "datastore": '{ datastore = "nfs-gold" }',
    "resource_pool": '{ resource_pool = "Gold/Web", subpools = false }',
    "tag": '{ tag = "gold", category = "Backup" }',
    "attribute": '{ attribute = "Owner", value = "team-*" }',
    "power_state": '{ power_state = "poweredOn" }',
    "guest_os": '{ guest_os = "windows*" }',
    "template": "{ template = true }",
    "annotation": '{ annotation = "*backup: yes*" }',
    "hardware_version": '{ hardware_version = ">=13" }',
    "guids": '{ guids = ["1b4e28ba-2fa1-41d2-883f-0016d3cca427.5027e5a8-9a3b-4f6e-8b6d-3c2f1a0e9d8c"] }',
    "all": '{ all = [{ datastore = "nfs-*" }, { power_state = "poweredOn" }] }',
    "any": '{ any = [{ folder = "Templates" }, { name = "test-*" }] }',
    "not": '{ not = { name = "*-scratch" } }',
}
"""Kind of rule → one of that kind."""

DISK_FILTERS_HEAD = """\
## Disk filters

A disk filter is a table in `disks` or `exclude_disks` of a VM group. All keys that it has must fit. `label`,
`datastore` and `file` are globs, as in [rules](#rules).
"""

DISK_FILTER_EXAMPLE = """\
exclude_disks = [
  { file = "*pagefile*" },
  { controller_key = 1000, unit_number = 3 }, # SCSI (0:3)
  { min_size_bytes = "2 TiB" },
]
"""

SECRETS_HEAD = """\
## Secrets

The file never holds a secret: it says where one is, in a table with exactly one of these keys. It is read by the
process that uses it and at the moment of its use: an access node needs vCenter's password, a MediaAgent does not.
"""

REFERENCE_EXAMPLE = """\
password = { file = "/etc/safehaul/vcenter-password" }
"""

FOOT = """\
## From the environment

A variable `SAFEHAUL_…` goes over the file, with `__` between table and key. An item of a list of tables is
addressed by its name, in capitals and with `_` for `-`; a list is replaced as a whole, by JSON. `config check`
names the variable when its value is wrong.

```console
$ export SAFEHAUL_TEMPORAL__NAMESPACE=default
$ export SAFEHAUL_ACCESS_NODES__NODE_1__STREAMS=4
$ safehaul config check
```

| other variables | what they do |
|---|---|
| `SAFEHAUL_CONFIG` | names the file |
| `SAFEHAUL_BUILD_ID` | the workers' build, for [upgrades](upgrades.md) without a stop |
| `SAFEHAUL_METRICS_ADDRESS` | `127.0.0.1:9464`: each worker serves Prometheus metrics of Temporal's SDK there |
| `SAFEHAUL_TRACES` | `console`: OpenTelemetry traces of workflows and steps go to the worker's stdout |
"""
