"""What a VM group selects now: the same answer for step 2 and for the preview on the command line."""

from __future__ import annotations

from collections.abc import Callable

from activities.peers import Peers
from safehaul.config.models import VmGroup
from safehaul.errors import PolicyError
from safehaul.groups import Selection, details_of, select
from safehaul.vsphere import inventory


def survey(peers: Peers, group: VmGroup, heartbeat: Callable[[], None] | None = None) -> Selection:
    """Read the vCenter's inventory and apply the group's rules.

    Raises:
        SafehaulError: vCenter could not be asked, or refuses.
    """
    found = inventory.discover(peers.vcenter(group.vcenter), details=details_of(group), heartbeat=heartbeat)
    return select(found.records, group, found.unidentified)


def check_not_empty(selection: Selection, group: VmGroup) -> None:
    """Raise PolicyError when the group selects nothing and must not (vmware-facts 20)."""
    if selection.empty and not group.allow_empty:
        raise PolicyError(
            f"the rules of VM group {group.name!r} select none of the {selection.seen_count} VMs of vCenter "
            f"{group.vcenter!r}: see `safehaul group preview {group.name}`; change the rules, or set allow_empty = true"
        )
