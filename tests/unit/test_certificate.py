"""Goal: no removal certificate can be made, kept or read back of which any part is false."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from safehaul.errors import PolicyError
from safehaul.messages import certificate
from safehaul.messages.certificate import RemovalCertificate
from safehaul.messages.inventory import SnapshotNode
from safehaul.messages.snapshots import RemovalRecord

NOW = datetime(2026, 11, 26, 18, 0, tzinfo=UTC)
OURS = SnapshotNode(moref="snapshot-7", name="safehaul run-1", description="marker")
THEIRS = SnapshotNode(moref="snapshot-3", name="before the upgrade", description="taken by Ada")
LATER = SnapshotNode(moref="snapshot-9", name="by hand", description="taken by Bob")
GIVEN: dict[str, str] = {
    "vc_guid": "vc.vm",
    "vm_name": "web-1",
    "moref": OURS.moref,
    "created_at": (NOW - timedelta(hours=1)).isoformat(),
    "asked_at": (NOW - timedelta(hours=1, seconds=2)).isoformat(),
}


def record(**changes: Any) -> RemovalRecord:
    """A removal as it should be, between two snapshots of other people."""
    fields: dict[str, Any] = {
        "vm_moref": "vm-1",
        "name": OURS.name,
        "description": OURS.description,
        "morefs": [OURS.moref],
        "started_at": NOW.isoformat(),
        "finished_at": (NOW + timedelta(seconds=3)).isoformat(),
        "tree_before": [THEIRS, OURS, LATER],
        "tree_after": [THEIRS, LATER],
        "consolidation_needed_before": False,
        "consolidation_needed_after": False,
        "files_checked": True,
        "snapshot_files": ["[ds] web-1/web-1-000002-delta.vmdk"],
        "appeared": ["[ds] web-1/web-1-000003-delta.vmdk"],
        "left": ["[ds] web-1/vmware-2.log"],
    }
    return RemovalRecord.model_validate(fields | changes)


def issue(**changes: Any) -> RemovalCertificate:
    given = {name: changes.pop(name) for name in GIVEN if name in changes}
    return certificate.issue(record(**changes), **(GIVEN | given))


def test_a_true_removal_is_certified_and_its_certificate_reads_back() -> None:
    made = issue()
    assert made.morefs == [OURS.moref]
    assert made.tree_after == [THEIRS, LATER]
    assert made.files_of_others == ["[ds] web-1/web-1-000003-delta.vmdk"]
    assert RemovalCertificate.model_validate(made.model_dump(mode="json")) == made


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"morefs": [], "tree_before": [THEIRS, LATER]}, id="an earlier try had removed it"),
        pytest.param({"morefs": [OURS.moref, "snapshot-8"]}, id="a copy after a lost answer"),
        pytest.param(
            {"consolidation_needed_before": True, "consolidation_needed_after": True}, id="old debt"
        ),
        pytest.param({"asked_at": ""}, id="nobody knows when it was asked for"),
        pytest.param({"created_at": (NOW + timedelta(hours=5)).isoformat()}, id="vCenter's clock is ahead"),
        pytest.param({"tree_before": [], "tree_after": []}, id="nobody else has snapshots"),
    ],
)
def test_what_is_no_fault_of_ours_is_certified_too(changes: dict[str, Any]) -> None:
    assert issue(**changes).morefs[0] == OURS.moref


FALSE: dict[str, tuple[dict[str, Any], str]] = {
    "the snapshot is in the tree": ({"tree_after": [THEIRS, OURS, LATER]}, "still in the VM's tree"),
    "another one with our marker is": (
        {"tree_after": [THEIRS, LATER, OURS.model_copy(update={"moref": "snapshot-12"})]},
        "snapshot-12 is still in the VM's tree",
    ),
    "a user's snapshot is missing": ({"tree_after": [LATER]}, "snapshot-3 .*which is not ours, went"),
    "all of them are": ({"tree_after": []}, "snapshot-9 .*which is not ours, went"),
    "consolidation is needed": ({"consolidation_needed_after": True}, "need consolidation"),
    "files are left": ({"files_left": ["[ds] web-1/web-1-000002.vmdk"]}, r"files of it are left: \[ds\] web"),
    "nobody has looked for files": ({"files_checked": False}, "nobody has looked for its files"),
    "the VM is gone": ({"vm_gone": True}, "left vCenter's inventory"),
    "it ended before it began": (
        {"finished_at": (NOW - timedelta(seconds=1)).isoformat()},
        "out of order: its removal began",
    ),
    "it was removed days before it was made": (
        {"created_at": (NOW + timedelta(days=2)).isoformat()},
        "out of order: it was made",
    ),
    "it was made days before it was asked for": (
        {"asked_at": (NOW + timedelta(days=2)).isoformat()},
        "out of order: it was asked for",
    ),
    "a time is missing": ({"finished_at": ""}, "when it was found gone is not recorded"),
    "the time of its making is missing": ({"created_at": ""}, "when it was made is not recorded"),
    "a time has no zone": ({"started_at": "2026-11-26T18:00:00"}, "when its removal began is not recorded"),
    "no snapshot is named": ({"moref": "", "morefs": []}, "which snapshot it was is not recorded"),
    "it has no marker": ({"description": ""}, "it has no marker"),
    "it has no name": ({"name": ""}, "it has no name"),
    "whose VM it is is unknown": ({"vc_guid": ""}, "it has no VC.GUID"),
}


@pytest.mark.parametrize(("changes", "told"), FALSE.values(), ids=FALSE.keys())
def test_no_certificate_is_made_when_a_part_is_false(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(PolicyError, match=told) as refused:
        issue(**changes)
    assert "'web-1' is not certified" in str(refused.value)


def test_every_part_that_is_false_is_named() -> None:
    with pytest.raises(PolicyError) as refused:
        issue(files_checked=False, tree_after=[OURS], consolidation_needed_after=True)
    for told in (
        "still in the VM's tree",
        "snapshot-3",
        "snapshot-9",
        "consolidation",
        "looked for its files",
    ):
        assert told in str(refused.value)


# How a part of a true certificate is made false, whatever else it says.
_FALSIFIED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "tree_after": lambda made: [*made["tree_after"], {"moref": made["morefs"][-1], "name": "x"}],
    "consolidation_needed_after": lambda _: True,
    "files_left": lambda _: ["[ds] a/a-000001.vmdk"],
    "files_checked": lambda _: False,
    "finished_at": lambda made: (
        datetime.fromisoformat(made["started_at"]) - timedelta(milliseconds=1)
    ).isoformat(),
    "started_at": lambda _: "",
    "created_at": lambda _: "yesterday",
    "morefs": lambda _: [],
    "marker": lambda _: "",
    "vc_guid": lambda _: "",
}
_NODES = st.lists(
    st.builds(
        SnapshotNode,
        moref=st.integers(100, 999).map(lambda number: f"snapshot-{number}"),
        name=st.text(max_size=10),
        description=st.text(max_size=10).map(lambda text: f"theirs {text}"),
    ),
    max_size=4,
    unique_by=lambda node: node.moref,
)


@given(
    theirs=_NODES,
    later=_NODES,
    seconds=st.integers(0, 86_400),
    consolidations=st.integers(0, 9),
    false=st.sets(st.sampled_from(sorted(_FALSIFIED))),
    lost=st.integers(0, 3),
)
def test_a_certificate_is_valid_exactly_when_no_part_of_it_is_false(
    theirs: list[SnapshotNode],
    later: list[SnapshotNode],
    seconds: int,
    consolidations: int,
    false: set[str],
    lost: int,
) -> None:
    """Whoever writes an index, or changes one, cannot make a reader believe in a false certificate."""
    after = list({node.moref: node for node in [*later, *theirs]}.values())
    made = issue(
        tree_before=[*theirs, OURS],
        tree_after=after,
        finished_at=(NOW + timedelta(seconds=seconds)).isoformat(),
        consolidations=consolidations,
    ).model_dump(mode="json")
    changed = {**made, **{part: _FALSIFIED[part](made) for part in false}}
    missing = theirs[:lost]
    changed["tree_after"] = [
        node for node in changed["tree_after"] if node["moref"] not in {each.moref for each in missing}
    ]
    if false or missing:
        with pytest.raises(ValidationError):
            RemovalCertificate.model_validate(changed)
    else:
        assert RemovalCertificate.model_validate(changed).model_dump(mode="json") == made
