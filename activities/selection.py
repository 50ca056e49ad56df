"""What a VM group selects now: the same answer for step 2 and for the preview on the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from activities.disks import Volumes, by_name, why_not_nas
from activities.peers import Peers
from safehaul.config.models import VmGroup
from safehaul.disk_filters import DESELECTED
from safehaul.errors import PolicyError, SafehaulError
from safehaul.groups import Included, Selection, details_of, select
from safehaul.messages.inventory import NasVolume, VmDisk
from safehaul.vsphere import inventory


def survey(peers: Peers, group: VmGroup, heartbeat: Callable[[], None] | None = None) -> Selection:
    """Read the vCenter's inventory and apply the group's rules.

    Raises:
        SafehaulError: vCenter could not be asked, or refuses.
    """
    found = inventory.discover(peers.vcenter(group.vcenter), details=details_of(group), heartbeat=heartbeat)
    return select(found.records, group, found.unidentified)


@dataclass(frozen=True)
class DiskForecast:
    """What is to be expected of one disk, by what vCenter tells of it; step 8 looks at the filer too."""

    key: int
    label: str
    capacity_bytes: int
    transport: str
    """In the words of a report: `nas`, `none` or `deselected`."""
    reason: str = ""


@dataclass(frozen=True)
class Forecast:
    """What is to be expected of one VM that a group selects."""

    disks: list[DiskForecast]
    trouble: str
    """Why its backup would fail; empty when nothing is known against it."""

    @property
    def capacity_bytes(self) -> int:
        """Of the disks that would be read."""
        return sum(disk.capacity_bytes for disk in self.disks if disk.transport == "nas")


def forecast(item: Included, group: VmGroup, all_volumes: Sequence[NasVolume]) -> Forecast:
    """What a job would make of an included VM, before anything is done to it. Asks nobody.

    `all_volumes`: the whole vCenter's datastores, of which the VM's names mean those of its own datacentre.
    """
    own = item.record.datastore_morefs.values()
    volumes = by_name(inventory.volumes_around(all_volumes, own))
    disks = [_disk_forecast(disk, volumes) for disk in item.disks.selected]
    disks += [
        DiskForecast(disk.key, disk.label, disk.capacity_bytes, DESELECTED, reason)
        for disk, reason in item.disks.deselected
    ]
    trouble = ""
    if not any(disk.transport == "nas" for disk in disks):
        reasons = "; ".join(f"{disk.label}: {disk.reason}" for disk in disks)
        trouble = f"no disk can go through the NAS transport: {reasons or 'no disks'}"
    elif item.record.consolidation_needed and group.snapshot_debt == "refuse":
        trouble = "its disks need consolidation, and snapshot_debt is refuse: consolidate them in vCenter"
    return Forecast(sorted(disks, key=lambda disk: disk.key), trouble)


def _disk_forecast(disk: VmDisk, volumes: Volumes) -> DiskForecast:
    try:
        reason = why_not_nas(disk, volumes)
    except (
        SafehaulError
    ) as error:  # a datastore that no host knows, a path that is none: told as the disk's reason
        reason = str(error)
    return DiskForecast(disk.key, disk.label, disk.capacity_bytes, "none" if reason else "nas", reason)


def check_not_empty(selection: Selection, group: VmGroup) -> None:
    """Raise PolicyError when the group selects nothing and must not (vmware-facts 20)."""
    if selection.empty and not group.allow_empty:
        blind = "" if selection.seen_count else " (an account sees only those on which it holds System.Read)"
        raise PolicyError(
            f"the rules of VM group {group.name!r} select none of the {selection.seen_count} VMs of vCenter "
            f"{group.vcenter!r}{blind}: see `safehaul group preview {group.name}`; change the rules, or set "
            "allow_empty = true"
        )
