"""Step 2: which VMs the VM group selects, from vCenter's inventory."""

from __future__ import annotations

from activities.beat import beat
from activities.errors import step
from activities.peers import Peers
from activities.records import write_vm_pages
from safehaul.errors import PolicyError
from safehaul.groups import Included, Selection, in_order, select
from safehaul.messages.inventory import VmRecord
from safehaul.messages.job import DiscoverInput, Discovery, Excluded
from safehaul.vsphere import inventory

NOTEWORTHY_MAX = 200


class Discoverer:
    """Activity of the coordinator's queue."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    @step("discover")
    def discover(self, arg: DiscoverInput) -> Discovery:
        """Step 2: logs in to vCenter, reads the inventory and applies the VM group's rules.

        Each VM is identified by VC.GUID. The VMs go to the job's objects in the repository, a page at a time;
        a second run writes new pages and returns those. Heartbeats with each page of the inventory. Errors: no
        VM matches (unless `allow_empty`), vCenter refuses.
        """
        group = self._peers.settings.vm_group(arg.settings.vm_group)
        found = inventory.discover(self._peers.vcenter(arg.settings.vcenter), heartbeat=beat)
        records = found.records
        selection = select(records, group)
        if selection.empty and not group.allow_empty:
            raise PolicyError(
                f"the rules of VM group {group.name!r} select none of the {len(records)} VMs of vCenter "
                f"{arg.settings.vcenter!r}{_unseen(found)}: change the rules, or set allow_empty = true"
            )
        chosen = in_order(selection.included, group.order)
        pages = write_vm_pages(
            self._peers.repository(arg.settings.media_agent), arg.job_id, [item.record for item in chosen]
        )
        return Discovery(
            pages=pages,
            vm_count=len(chosen),
            capacity_bytes=sum(item.record.capacity_bytes for item in chosen),
            seen_count=len(records),
            noteworthy=_noteworthy(chosen, selection, found.unidentified)[:NOTEWORTHY_MAX],
            failed=_failed(selection),
            datastores=sorted({disk_store for item in chosen for disk_store in item.record.datastores}),
        )


def _unseen(found: inventory.Inventory) -> str:
    """What a group without VMs may be missing: those that cannot be read, or an account that may see none."""
    if found.unidentified:
        first = found.unidentified[0]
        return f" (not counted: {len(found.unidentified)} that cannot be identified, {first.name!r}: {first.reason})"
    return "" if found.records else " (an account sees only those on which it holds System.Read)"


def _noteworthy(
    chosen: list[Included], selection: Selection, unidentified: list[inventory.Unidentified]
) -> list[Excluded]:
    return [
        *(_excluded(item.record, note) for item in chosen for note in item.notes),
        *(Excluded(name=item.name, reason=item.reason) for item in unidentified),
        *(_excluded(item.record, item.reason) for item in selection.excluded),
    ]


def _failed(selection: Selection) -> list[Excluded]:
    return [
        *(_excluded(item.record, item.reason) for item in selection.refused),
        *(
            Excluded(name=guid, vc_guid=guid, reason="the VM group lists this VC.GUID, and no VM has it")
            for guid in selection.missing_guids
        ),
    ]


def _excluded(record: VmRecord, reason: str) -> Excluded:
    return Excluded(name=record.name, vc_guid=record.vc_guid, reason=reason)
