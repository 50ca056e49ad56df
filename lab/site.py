"""A data centre of the lab, described; the one of the demo; and how to build it.

    build(demo_site(vm_count=6), Path("/tmp/lab"))      # then: python -m lab.esx --state /tmp/lab --port 8801

The description's models are in lab.esx.spec. Building the demo's site takes about two seconds.
"""

from __future__ import annotations

from pathlib import Path

from lab.esx.api import Settings
from lab.esx.provision import provision
from lab.esx.spec import DatastoreSpec, DiskSpec, Site, SnapshotSpec, UserSpec, VmSpec

__all__ = [
    "ADMINISTRATOR",
    "BACKUP_PRIVILEGES",
    "BACKUP_USER",
    "RESTORE_PRIVILEGES",
    "DatastoreSpec",
    "DiskSpec",
    "Settings",
    "Site",
    "SnapshotSpec",
    "UserSpec",
    "VmSpec",
    "build",
    "demo_site",
]

MIB = 1024 * 1024
ADMINISTRATOR = "administrator@vsphere.local"
BACKUP_USER = "safehaul@vsphere.local"
# Passwords of a laboratory on loopback, known to everybody.
LAB_PASSWORD = "lab-Secret-1"  # noqa: S105

# VMware's privilege ids for backup, and those that a restore needs besides.
BACKUP_PRIVILEGES = [
    "System.Anonymous",
    "System.Read",
    "System.View",
    "Datastore.Browse",
    "VirtualMachine.State.CreateSnapshot",
    "VirtualMachine.State.RemoveSnapshot",
    "VirtualMachine.Provisioning.DiskRandomRead",
    "VirtualMachine.Config.ChangeTracking",
]
RESTORE_PRIVILEGES = [
    "VirtualMachine.Inventory.Register",
    "VirtualMachine.Inventory.Unregister",
    "Resource.AssignVMToPool",
    "Network.Assign",
    "VirtualMachine.Config.EditDevice",
    "VirtualMachine.Config.AddExistingDisk",
    "VirtualMachine.Config.RemoveDisk",
    "VirtualMachine.Interact.PowerOn",
]


def build(site: Site, state_dir: Path) -> None:
    """Make the site in `state_dir`. Errors: FileExistsError when a lab is there, ValueError, OSError."""
    provision(site, state_dir)


def demo_site(vm_count: int = 6, *, guest_rate: int = 200) -> Site:
    """The demo's data centre with `vm_count` VMs: the first eight each show something, more are plain ones."""
    vms = _telling_vms(guest_rate)
    vms += [
        VmSpec(
            name=f"plain-{number:03}",
            folder="farm",
            datastore="nfs-gold" if number % 2 else "nfs41-silver",
            disks=[DiskSpec(size_bytes=16 * MIB)],
            guest_rate=guest_rate // 4,
        )
        for number in range(1, vm_count - len(vms) + 1)
    ]
    return Site(
        name="demo",
        folders=["prod/web", "prod/db", "farm"],
        datastores=[
            DatastoreSpec(name="nfs-gold", type="NFS", remote_path="/exports/gold"),
            DatastoreSpec(name="nfs41-silver", type="NFS41", remote_path="/exports/silver"),
            DatastoreSpec(name="local-vmfs", type="VMFS"),
        ],
        vms=vms[:vm_count],
        users=[
            UserSpec(name=ADMINISTRATOR, password=LAB_PASSWORD, privileges=["*"]),
            UserSpec(
                name=BACKUP_USER,
                password=LAB_PASSWORD,
                privileges=[*BACKUP_PRIVILEGES, *RESTORE_PRIVILEGES],
            ),
        ],
        settings=Settings(record_frozen=True),
    )


def _telling_vms(guest_rate: int) -> list[VmSpec]:
    return [
        VmSpec(
            name="Büro Server 01",
            folder="prod/web",
            datastore="nfs-gold",
            annotation="two disks, one sequence of writes",
            disks=[DiskSpec(size_bytes=64 * MIB), DiskSpec(size_bytes=33 * MIB + 7 * 512)],
            guest_rate=guest_rate,
        ),
        VmSpec(
            name="数据库 main",
            folder="prod/db",
            datastore="nfs41-silver",
            annotation="holds a user's snapshot",
            disks=[DiskSpec(size_bytes=48 * MIB)],
            snapshots=[SnapshotSpec(name="before the upgrade", description="taken by Ada, keep")],
            guest_rate=guest_rate,
        ),
        VmSpec(
            name="files",
            folder="prod/web",
            datastore="nfs-gold",
            annotation="a file system",
            disks=[DiskSpec(size_bytes=64 * MIB, content="ext4")],
            guest_rate=guest_rate,
        ),
        VmSpec(
            name="archive (off)",
            datastore="nfs-gold",
            power_state="poweredOff",
            disks=[DiskSpec(size_bytes=32 * MIB, content="random")],
        ),
        VmSpec(
            name="mixed-disks",
            folder="prod/db",
            datastore="nfs41-silver",
            annotation="one disk takes part in snapshots, one does not",
            disks=[
                DiskSpec(size_bytes=32 * MIB),
                DiskSpec(size_bytes=16 * MIB, mode="independent_persistent"),
            ],
            guest_rate=guest_rate,
        ),
        VmSpec(
            name="web 100% / blue",
            folder="prod/web",
            datastore="nfs-gold",
            annotation="a name that inventory paths must escape",
            disks=[DiskSpec(size_bytes=24 * MIB, content="ext4"), DiskSpec(size_bytes=16 * MIB)],
            guest_rate=guest_rate,
        ),
        VmSpec(
            name="local-only",
            datastore="local-vmfs",
            annotation="no NAS disk",
            disks=[DiskSpec(size_bytes=16 * MIB)],
            guest_rate=guest_rate // 4,
        ),
        VmSpec(
            name="half-local",
            datastore="nfs-gold",
            annotation="one disk on NAS, one not",
            disks=[DiskSpec(size_bytes=16 * MIB), DiskSpec(size_bytes=16 * MIB, datastore="local-vmfs")],
            guest_rate=guest_rate // 4,
        ),
    ]
