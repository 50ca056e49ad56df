"""Whether a VM's snapshot may still be held: for how long, and while how much room is left (vmware-facts 15)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from activities.disks import Volumes
from safehaul.errors import PolicyError
from safehaul.messages.inventory import NasVolume, VmDisk
from safehaul.messages.steps import VmRef
from safehaul.messages.vm import VmOptions
from safehaul.vsphere.names import parse_datastore_path


def check_hold(
    vm: VmRef, options: VmOptions, created_at: datetime, disks: Sequence[VmDisk], volumes: Volumes
) -> None:
    """Raise PolicyError when the snapshot has been held too long or a datastore of the VM is too full.

    Args:
        vm: for the message.
        options: `max_hold_s` and `min_free_bytes`.
        created_at: when vCenter made the snapshot.
        disks: all of the VM's. A guest's writes go to a redo log beside the disk that it had, wherever in the chain
            that lies; those of each disk count, whichever is being read.
        volumes: the datastores that the disks' paths mean.
    """
    held_s = (datetime.now(UTC) - created_at).total_seconds()
    if held_s > options.max_hold_s:
        raise PolicyError(
            f"the snapshot of VM {vm.name!r} is held for {held_s:.0f} s and max_hold_s is "
            f"{options.max_hold_s:.0f}: it is removed; what was stored serves the next try"
        )
    full = too_full(options, disks, volumes)
    if full is not None:
        raise PolicyError(
            f"datastore {full.datastore!r} has {full.free_bytes:,} bytes free and min_free_bytes is "
            f"{options.min_free_bytes:,}: the snapshot of VM {vm.name!r} is removed"
        )


def too_full(options: VmOptions, disks: Sequence[VmDisk], volumes: Volumes) -> NasVolume | None:
    """The first datastore of the disks' chains with less room than `min_free_bytes`; None when there is none."""
    paths = [path for disk in disks for path in (disk.path, *disk.parent_paths) if path]
    for name in sorted({parse_datastore_path(path).datastore for path in paths}):
        volume = volumes.get(name)
        if volume is not None and volume.free_bytes < options.min_free_bytes:
            return volume
    return None
