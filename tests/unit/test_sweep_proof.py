"""Goal: a snapshot is taken for ours only when all in and around its marker says so; reports stay bounded."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.sweep import MAX_FINDINGS, page_of
from safehaul.messages.inventory import SnapshotNode
from safehaul.messages.marker import SnapshotMarker
from safehaul.messages.sweep import (
    MAX_CERTIFICATE_BYTES,
    MAX_TOLD,
    FindingKind,
    FoundSnapshot,
    SnapshotPageInput,
    SweepIdentity,
    SweepReport,
    SweptSnapshot,
    Verdict,
    VmSnapshots,
)
from safehaul.ownership import found_on
from tests.unit.test_certificate import issue

NOW = datetime(2026, 11, 26, 18, 0, tzinfo=UTC)
OURS = SweepIdentity(installation_id="site", namespace_id="namespace")
MARKER = SnapshotMarker(
    installation="site",
    namespace="namespace",
    workflow_id="nightly/1a2b/vc.vm",
    first_run_id="run-1",
    vc_guid="vc.vm",
)


def node(marker: SnapshotMarker = MARKER, **changes: str) -> SnapshotNode:
    fields = {
        "moref": "snapshot-7",
        "name": marker.snapshot_name,
        "description": marker.text(),
        "created": (NOW - timedelta(hours=1)).isoformat(),
    }
    return SnapshotNode.model_validate(fields | changes)


def found(
    *nodes: SnapshotNode, ours: SweepIdentity = OURS, twins: bool = False, vc_guid: str = "vc.vm"
) -> tuple[list[FoundSnapshot], list[FindingKind]]:
    vm = VmSnapshots(moref="vm-1", name="web", vc_guid=vc_guid, snapshots=list(nodes))
    mine, findings = found_on(vm, ours, twins=twins, now=NOW)
    return mine, [each.kind for each in findings]


def test_our_own_snapshot_is_ours() -> None:
    (mine,), findings = found(node())
    assert (mine.moref, mine.marker, mine.copies, findings) == ("snapshot-7", MARKER, 1, [])


def test_two_copies_after_a_lost_answer_are_one_removal() -> None:
    (mine,), findings = found(node(), node(moref="snapshot-8"))
    assert (mine.moref, mine.copies, findings) == ("snapshot-7", 2, [])


def test_uuids_are_compared_whatever_their_letters() -> None:
    assert found(node(), vc_guid="VC.VM")[0]


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        ("installation", FindingKind.OTHER_INSTALLATION),
        ("namespace", FindingKind.OTHER_NAMESPACE),
        ("vc_guid", FindingKind.UNPROVED),
    ],
)
def test_a_marker_of_which_one_word_differs_is_told_and_left(field: str, kind: FindingKind) -> None:
    other = MARKER.model_copy(update={field: "another"})
    assert found(node(other)) == ([], [kind])


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "safehaul run-2"},
        {"name": "safehaul run-1 "},
        {"name": "Safehaul run-1"},
        {"name": "keep"},
        {"description": MARKER.text() + " "},
        {"description": MARKER.text()[:-1]},
        {"description": MARKER.text().replace('","', '", "')},
        {"description": MARKER.text().replace("}", ',"job":"x"}')},
    ],
)
def test_a_name_or_marker_that_is_not_ours_to_the_letter_is_told_and_left(changes: dict[str, str]) -> None:
    assert found(node().model_copy(update=changes)) == ([], [FindingKind.UNPROVED])


def test_of_twins_nobody_can_tell_whose_a_snapshot_is() -> None:
    assert found(node(), twins=True) == ([], [FindingKind.UNPROVED])


def test_only_the_namespace_that_is_named_is_adopted() -> None:
    lost = node(MARKER.model_copy(update={"namespace": "lost"}))
    other = node(MARKER.model_copy(update={"namespace": "another", "first_run_id": "run-2"}))
    adopting = OURS.model_copy(update={"adopt": "lost"})
    mine, findings = found(lost, other, ours=adopting)
    assert ([each.marker.namespace for each in mine], findings) == (["lost"], [FindingKind.OTHER_NAMESPACE])
    assert found(node(), ours=adopting)[0], "our own are swept as well"


def test_an_empty_namespace_to_adopt_adopts_nobody() -> None:
    ours = SweepIdentity(installation_id="site", namespace_id="namespace", adopt="")
    assert found(node(MARKER.model_copy(update={"namespace": "x"})), ours=ours)[0] == []


@pytest.mark.parametrize(
    ("name", "hours", "kinds"),
    [
        ("VEEAM BACKUP TEMPORARY SNAPSHOT", 25, [FindingKind.OTHER_PRODUCT]),
        ("VEEAM BACKUP TEMPORARY SNAPSHOT", 23, []),
        ("__GX_BACKUP__", 48, [FindingKind.OTHER_PRODUCT]),
        ("Consolidate Helper- 0", 48, [FindingKind.OTHER_PRODUCT]),
        ("before the upgrade", 9999, []),
        ("safehaul", 9999, []),
        ("safehaul run-1", 0, [FindingKind.UNPROVED]),
    ],
)
def test_other_peoples_snapshots_are_told_when_they_look_left_over(
    name: str, hours: int, kinds: list[FindingKind]
) -> None:
    created = (NOW - timedelta(hours=hours)).isoformat()
    assert found(node(name=name, description="", created=created)) == ([], kinds)


@given(
    installation=st.sampled_from(["site", "other"]),
    namespace=st.sampled_from(["namespace", "lost", "other"]),
    guid=st.sampled_from(["vc.vm", "vc.other"]),
    name=st.sampled_from(["safehaul run-1", "safehaul run-2", "x"]),
    adopt=st.sampled_from(["", "lost"]),
    twins=st.booleans(),
    tail=st.sampled_from(["", " "]),
)
def test_ours_is_exactly_what_the_rule_says(
    installation: str, namespace: str, guid: str, name: str, adopt: str, *, twins: bool, tail: str
) -> None:
    marker = MARKER.model_copy(update={"installation": installation, "namespace": namespace, "vc_guid": guid})
    snapshot = node(marker, name=name, description=marker.text() + tail)
    mine, findings = found(snapshot, ours=OURS.model_copy(update={"adopt": adopt}), twins=twins)
    is_ours = (
        installation == "site"
        and namespace in ({"namespace", adopt} - {""})
        and guid == "vc.vm"
        and name == "safehaul run-1"
        and not twins
        and not tail
    )
    assert bool(mine) == is_ours
    assert bool(findings) != is_ours, "what is not ours is told"


def _inventory(count: int) -> list[VmSnapshots]:
    """VMs that all hold a snapshot of ours, some of them two, and many that hold none."""
    vms = []
    for number in range(count):
        marker = MARKER.model_copy(update={"vc_guid": f"vc.{number}", "first_run_id": f"run-{number}"})
        second = marker.model_copy(update={"first_run_id": f"again-{number}"})
        nodes = [node(marker)] + ([node(second, moref="snapshot-8")] if number % 5 == 0 else [])
        vms.append(
            VmSnapshots(
                moref=f"vm-{number}",
                name=f"web-{number}",
                vc_guid=f"vc.{number}",
                snapshots=nodes if number % 3 else [],
                consolidation_needed=number % 7 == 0,
            )
        )
    return vms


@pytest.mark.parametrize("limit", [1, 2, 50, 200, 10_000])
def test_pages_hold_everything_once(limit: int) -> None:
    vms, seen, after, pages = _inventory(150), [], "", 0
    while True:
        arg = SnapshotPageInput(vcenter="vc", ours=OURS, after=after, limit=limit)
        page = page_of(vms, arg, NOW)
        assert len(page.snapshots) <= max(limit, 2), "a VM is never divided"
        assert bool(page.finding_counts) == (not pages), "findings come with the first page alone"
        seen += [(each.vm_moref, each.marker.first_run_id) for each in page.snapshots]
        pages += 1
        if page.ended:
            break
        after = page.after
    wanted = {(vm.moref, name.name.removeprefix("safehaul ")) for vm in vms for name in vm.snapshots}
    assert len(seen) == len(wanted)
    assert set(seen) == wanted


def test_a_page_fits_into_a_message_whatever_the_inventory_is_like() -> None:
    marker = MARKER.model_copy(update={"installation": "x" * 100})
    vms = [
        VmSnapshots(
            moref=f"vm-{number}",
            name="\N{GRINNING FACE}" * 80,
            vc_guid=f"vc.{number}",
            consolidation_needed=True,
            snapshots=[node(marker), node(name="safehaul " + "y" * 70, description="")],
        )
        for number in range(1000)
    ]
    page = page_of(vms, SnapshotPageInput(vcenter="vc", ours=OURS, limit=200), NOW)
    assert len(page.findings) <= MAX_FINDINGS
    assert {each.kind for each in page.findings} == {
        FindingKind.OTHER_INSTALLATION,
        FindingKind.UNPROVED,
        FindingKind.CONSOLIDATION,
    }
    assert page.finding_counts == {"consolidation needed": 1000, "other installation": 1000, "unproved": 1000}
    assert len(page.model_dump_json()) < 500_000


def _swept(number: int, verdict: Verdict, **changes: Any) -> SweptSnapshot:
    fields = {
        "verdict": verdict,
        "vcenter": "vc",
        "vm_name": f"web-{number}",
        "vc_guid": f"vc.{number}",
        "vm_moref": f"vm-{number}",
        "moref": f"snapshot-{number}",
        "name": f"safehaul {number}",
        "owner": "nightly",
    }
    return SweptSnapshot.model_validate(fields | changes)


def test_a_report_keeps_what_matters_and_fits_into_a_message() -> None:
    nodes = [
        node(moref=f"snapshot-{number}", name="y" * 80, description="z" * 400) for number in range(100, 131)
    ]
    made = issue(tree_before=nodes, tree_after=nodes, description="another")
    report = SweepReport(started_at=NOW, ended_at=NOW)
    report = report.with_snapshots(_swept(number, Verdict.HELD) for number in range(1000))
    for number in range(100):
        report = report.with_snapshots([_swept(1000 + number, Verdict.REMOVED, certificate=made)])
    assert report.counts == {"held": 1000, "removed": 100}
    assert len(report.snapshots) == MAX_TOLD
    assert [item.verdict for item in report.snapshots[:100]] == [Verdict.REMOVED] * 100
    whole = [item for item in report.snapshots if item.certificate is not None]
    assert 0 < len(whole) < 100
    assert "remove-snapshot safehaul" in report.snapshots[99].reason
    assert len(json.dumps(report.model_dump(mode="json"))) < 2 * MAX_CERTIFICATE_BYTES
