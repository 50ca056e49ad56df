"""Step 2: which VMs the VM group selects, from vCenter's inventory."""

from __future__ import annotations

from activities.beat import beat
from activities.errors import step
from activities.peers import Peers
from activities.records import write_vm_pages
from activities.selection import check_not_empty, survey
from safehaul.config.inline import group_of
from safehaul.groups import Included, Selection, in_order
from safehaul.messages.inventory import VmRecord
from safehaul.messages.job import DiscoverInput, Discovery, Excluded

NOTEWORTHY_MAX = 200
FAILED_MAX = 1000
"""A whole inventory that cannot be read must still fit into one message (Temporal's limit: 2 MB)."""
REASON_CHARS = 600


class Discoverer:
    """Activity of the coordinator's queue."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    @step("discover")
    def discover(self, arg: DiscoverInput) -> Discovery:
        """Step 2: logs in to vCenter, reads the inventory and applies the VM group's rules and disk filters.

        Each VM is identified by VC.GUID; one that is selected and has none of its own, or no disk left, is told as
        failed. The VMs go to the job's objects in the repository, a page at a time, with their selected disks only; a
        second run writes new pages and returns those. Heartbeats with each page of the inventory. Errors: no VM
        matches (unless `allow_empty`), vCenter refuses.
        """
        group = group_of(self._peers.settings, arg.settings.vm_group, arg.inline_group)
        selection = survey(self._peers, group, beat)
        check_not_empty(selection, group)
        chosen = in_order(selection.included, group.order)
        wanted = [item.wanted for item in chosen]
        needed = {each.key: each for record in wanted for each in record.datastore_refs}
        return Discovery(
            pages=write_vm_pages(self._peers.repository(arg.settings.media_agent), arg.job_id, wanted),
            vm_count=len(wanted),
            capacity_bytes=sum(record.capacity_bytes for record in wanted),
            seen_count=selection.seen_count,
            noteworthy=_noteworthy(chosen, selection)[:NOTEWORTHY_MAX],
            failed=_failed(selection),
            datastores=sorted({name for record in wanted for name in record.datastores}),
            datastore_refs=sorted(needed.values(), key=lambda each: each.key),
        )


def _noteworthy(chosen: list[Included], selection: Selection) -> list[Excluded]:
    return [
        *(Excluded(name=rule, reason="matches no VM") for rule in selection.idle_rules),
        *(_excluded(item.record, note) for item in chosen for note in item.notes),
        *(_excluded(item.record, item.reason) for item in selection.excluded),
    ]


def _failed(selection: Selection) -> list[Excluded]:
    failed = [
        *(_excluded(item.record, item.reason) for item in selection.refused),
        *(
            Excluded(name=guid, vc_guid=guid, reason="the VM group lists this VC.GUID, and no VM has it")
            for guid in selection.missing_guids
        ),
    ]
    if len(failed) <= FAILED_MAX:
        return failed
    rest = len(failed) - FAILED_MAX
    return [
        *failed[:FAILED_MAX],
        Excluded(name=f"{rest} more VMs", reason="cannot be backed up either: see `safehaul group preview`"),
    ]


def _excluded(record: VmRecord, reason: str) -> Excluded:
    return Excluded(name=record.name, vc_guid=record.vc_guid, reason=reason[:REASON_CHARS])
