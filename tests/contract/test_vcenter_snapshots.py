"""Goal: asked any number of times there is one snapshot of ours, then none, and others' are untouched."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import pytest

from safehaul.errors import InvalidInputError, NotFoundError, PermanentError
from safehaul.messages.inventory import SnapshotNode
from safehaul.messages.marker import SnapshotMarker
from safehaul.vsphere import snapshots
from safehaul.vsphere.client import VCenter
from safehaul.vsphere.removal import remove
from safehaul.vsphere.snapshots import create, find, find_all, tree
from safehaul.vsphere.vms import snapshot_config, snapshot_disks, vm_state
from tests.contract.snapshot_calls import NAME, OURS, before, remove_all, removed
from tests.contract.vcenter_server import PLAIN_VM, Ability, Server, needs, vm_named


@pytest.fixture(scope="module")
def vcenter(server: Server) -> VCenter:
    return server.connect()


@pytest.fixture
def vm(server: Server, vcenter: VCenter) -> Iterator[str]:
    """A VM without snapshots."""
    found = vm_named(server, PLAIN_VM).moref
    yield found
    remove_all(vcenter, found)


def test_create_twice_gives_one_and_remove_twice_gives_none(vcenter: VCenter, vm: str) -> None:
    state = vm_state(vcenter, vm)
    first = create(vcenter, vm, NAME, OURS)
    again = create(vcenter, vm, NAME, OURS)
    assert again.moref == first.moref
    assert (first.adopted, again.adopted) == (False, True)
    found = find(vcenter, vm, NAME, OURS)
    assert found is not None
    assert found.moref == first.moref
    assert snapshot_disks(vcenter, first.moref)
    record = removed(vcenter, vm, state, first.moref)
    assert record.morefs == [first.moref]
    assert [each.moref for each in record.tree_before] == [first.moref]
    assert find_all(vcenter, vm, NAME, OURS) == record.tree_after == []
    assert removed(vcenter, vm, state, first.moref).already_gone


def test_a_snapshot_is_made_now_and_says_so(vcenter: VCenter, vm: str) -> None:
    taken = create(vcenter, vm, NAME, OURS)
    age = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(taken.created)
    assert dt.timedelta(seconds=-5) < age < dt.timedelta(minutes=1)
    assert not taken.quiesced
    held = vm_state(vcenter, vm)
    assert held.current_snapshot_moref == taken.moref
    assert [(each.name, each.description) for each in held.snapshots] == [(NAME, OURS)]


def test_a_name_that_vcenter_escapes_is_found_as_it_was_given(vcenter: VCenter, vm: str) -> None:
    name = "50% / \\ ünïcode"
    taken = create(vcenter, vm, name, OURS)
    assert [each.name for each in tree(vcenter, vm)] == [name]
    assert create(vcenter, vm, name, OURS).adopted
    assert remove(vcenter, vm, name=name, description=OURS, timeout_s=30).morefs == [taken.moref]


def test_a_removal_without_moref_goes_by_name_and_description(vcenter: VCenter, vm: str) -> None:
    state = before(vcenter, vm)
    taken = create(vcenter, vm, NAME, OURS)
    assert removed(vcenter, vm, state).morefs == [taken.moref]
    assert tree(vcenter, vm) == []


@needs(Ability.REDO_LOGS)
def test_the_frozen_disk_is_the_base_and_nothing_is_left(vcenter: VCenter, vm: str) -> None:
    state = before(vcenter, vm)
    taken = create(vcenter, vm, NAME, OURS)
    held = before(vcenter, vm)
    assert snapshot_disks(vcenter, taken.moref)[0].path == state.disks[0].path
    assert held.disks[0].parent_paths == [state.disks[0].path]
    assert len(held.listed) > len(state.listed)
    record = removed(vcenter, vm, state, taken.moref)
    assert not record.consolidation_needed_after
    assert before(vcenter, vm).disks[0].path == state.disks[0].path


def test_the_files_of_a_removed_snapshot_are_gone(vcenter: VCenter, vm: str) -> None:
    state = before(vcenter, vm)
    taken = create(vcenter, vm, NAME, OURS)
    appeared = {each.path for each in before(vcenter, vm).listed} - {each.path for each in state.listed}
    assert any(path.endswith(".vmsn") for path in appeared)
    record = removed(vcenter, vm, state, taken.moref)
    assert record.files_checked
    assert {each.path for each in before(vcenter, vm).listed} == {each.path for each in state.listed}


def test_foreign_snapshots_above_and_below_stay(server: Server, vcenter: VCenter, vm: str) -> None:
    below = create(vcenter, vm, "by hand", "Ada")
    state = before(vcenter, vm) if Ability.FILE_LAYOUT in server.abilities else None
    ours = create(vcenter, vm, NAME, OURS)
    above = create(vcenter, vm, "by hand", "Bob")
    assert [each.parent_moref for each in tree(vcenter, vm)] == ["", below.moref, ours.moref]
    record = removed(vcenter, vm, state, ours.moref)
    assert [each.moref for each in record.tree_after] == [below.moref, above.moref]
    assert [each.parent_moref for each in tree(vcenter, vm)] == ["", below.moref]
    assert bool(record.appeared) == (state is not None), (
        "the later snapshot's files appeared and belong to it"
    )
    assert snapshot_disks(vcenter, above.moref)
    frozen = snapshot_config(vcenter, above.moref)
    assert vm_named(server, PLAIN_VM).vc_guid.endswith(f".{frozen.instance_uuid}")


def test_a_recorded_moref_that_is_not_ours_is_left_alone(vcenter: VCenter, vm: str) -> None:
    state = before(vcenter, vm)
    foreign = create(vcenter, vm, NAME, "somebody else's description")
    with pytest.raises(PermanentError, match="not ours"):
        removed(vcenter, vm, state, foreign.moref)
    assert [each.moref for each in tree(vcenter, vm)] == [foreign.moref]
    # Without a moref nothing has exactly our name and marker.
    assert removed(vcenter, vm, state).already_gone
    assert [each.moref for each in tree(vcenter, vm)] == [foreign.moref]


@pytest.mark.parametrize(("name", "description"), [("", OURS), (NAME, "")])
def test_an_empty_name_or_marker_removes_nothing(
    vcenter: VCenter, vm: str, name: str, description: str
) -> None:
    with pytest.raises(PermanentError):
        remove(vcenter, vm, name=name, description=description)
    with pytest.raises(InvalidInputError):
        create(vcenter, vm, name, description)


def test_a_snapshot_of_ours_is_adopted_whatever_the_clocks_say(
    vcenter: VCenter, vm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vCenter whose clock is an hour behind Temporal's: the second try of a workflow finds what the first made."""
    first = create(vcenter, vm, NAME, OURS)

    def tree_of_a_slow_clock(session: VCenter, moref: str) -> list[SnapshotNode]:
        behind = (dt.datetime.fromisoformat(first.created) - dt.timedelta(hours=1)).isoformat()
        return [each.model_copy(update={"created": behind}) for each in tree(session, moref)]

    monkeypatch.setattr(snapshots, "tree", tree_of_a_slow_clock)
    assert create(vcenter, vm, NAME, OURS).adopted
    assert [each.moref for each in find_all(vcenter, vm, NAME, OURS)] == [first.moref]


def test_another_runs_snapshot_is_not_adopted(server: Server, vcenter: VCenter, vm: str) -> None:
    """Last night's leaked one: the same workflow id, another first run."""
    state = before(vcenter, vm) if Ability.FILE_LAYOUT in server.abilities else None
    leaked = SnapshotMarker(
        installation="site",
        namespace="namespace",
        workflow_id="backup-vm/1",
        first_run_id="run-0",
        vc_guid="vc.vm",
    )
    old = create(vcenter, vm, "safehaul run-0", leaked.text())
    new = create(vcenter, vm, NAME, OURS)
    assert (new.adopted, new.moref != old.moref) == (False, True)
    assert removed(vcenter, vm, state, new.moref).morefs == [new.moref]
    assert [each.moref for each in tree(vcenter, vm)] == [old.moref]


def test_a_renamed_snapshot_of_ours_is_left_alone_and_never_called_gone(vcenter: VCenter, vm: str) -> None:
    state = before(vcenter, vm)
    renamed = create(vcenter, vm, "do not touch", OURS)
    for recorded in ("", renamed.moref):
        with pytest.raises(PermanentError, match="do not touch"):
            removed(vcenter, vm, state, recorded)
    assert [each.moref for each in tree(vcenter, vm)] == [renamed.moref]


def test_unknown_vms_are_refused(vcenter: VCenter) -> None:
    with pytest.raises(NotFoundError):
        create(vcenter, "vm-999999", NAME, OURS)
    with pytest.raises(NotFoundError):
        remove(vcenter, "vm-999999", name=NAME, description=OURS)


@needs(Ability.TEMPLATE_RULES)
def test_templates_are_refused(server: Server, vcenter: VCenter) -> None:
    with pytest.raises(PermanentError):
        create(vcenter, vm_named(server, "golden").moref, NAME, OURS)
