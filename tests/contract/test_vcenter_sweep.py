"""Goal: a sweep sees every snapshot of every VM, page by page, on any vCenter."""

from __future__ import annotations

import pytest

from safehaul.vsphere.all_snapshots import all_snapshots
from safehaul.vsphere.client import VCenter
from safehaul.vsphere.snapshots import create
from tests.contract.snapshot_calls import NAME, OURS, remove_all
from tests.contract.vcenter_server import PLAIN_VM, Ability, Server, vm_named


@pytest.fixture(scope="module")
def vcenter(server: Server) -> VCenter:
    return server.connect()


def test_every_snapshot_of_every_vm_is_seen_in_pages(server: Server, vcenter: VCenter) -> None:
    plain = vm_named(server, PLAIN_VM)
    below = create(vcenter, plain.moref, "by hand", "Ada")
    ours = create(vcenter, plain.moref, NAME, OURS)
    beats: list[int] = []
    try:
        found = all_snapshots(vcenter, page_size=2, heartbeat=lambda: beats.append(1))
    finally:
        remove_all(vcenter, plain.moref)
    assert [vm.moref for vm in found] == sorted({vm.moref for vm in found})
    (mine,) = [vm for vm in found if vm.moref == plain.moref]
    assert (mine.vc_guid, mine.name, mine.unreadable) == (plain.vc_guid, plain.name, "")
    assert [(each.moref, each.name, each.description) for each in mine.snapshots] == [
        (below.moref, "by hand", "Ada"),
        (ours.moref, NAME, OURS),
    ]
    if Ability.PAGING in server.abilities:
        assert len(beats) > len(found) // 2
