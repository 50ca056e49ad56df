"""The crash matrix's own parts: a case's line says all, the choice covers everything, and bytes are counted right."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from lab.nfs_gate import READ, NfsGate, Passing
from lab.vcenter.holding import CallHold, HoldOrder
from tests.crash import plan, table
from tests.crash.expectations import must_complete
from tests.crash.filer_tap import FilerTap, covered_bytes, same_name
from tests.crash.folder_watch import FolderWatch
from tests.crash.play import Outcome
from tests.crash.points import AFTERMATHS, PROCESSES, Case, Point, cells, parse_case, parse_point
from tests.crash.product_copy import NOT_TAKEN_OVER, ORPHANS_STAY, broken_copy
from tests.crash.repository_tap import object_kind
from tests.crash.sightings import Sighting, Sightings


def _points() -> list[Point]:
    kinds = {
        "vcenter": "CreateSnapshot_Task",
        "nfs": "READ one-flat.vmdk",
        "repository": "packs",
        "history": "ping",
    }
    found = [
        Point(kind, name, nth, when)
        for kind, name in kinds.items()
        for nth in range(1, 20)
        for when in ("before", "after")
    ]
    return [*found, *(Point("clock", f"0.{number:03}") for number in range(20)), Point("zombie", "held-call")]


@pytest.mark.parametrize(
    "text",
    [
        "access-node/never/vcenter:CreateSnapshot_Task:1:after",
        "filer/late/nfs:READ one-flat.vmdk:3:before",
        "commserve/at-once/clock:1.250",
        "vcenter/at-once/zombie:held-call",
        "temporal/late/history:BackupVm task:12:after",
    ],
)
def test_a_case_is_its_line(text: str) -> None:
    case = parse_case(text)
    assert case.id == text
    assert 20.0 <= case.late_s <= 45.0
    assert parse_case(text).late_s == case.late_s


@pytest.mark.parametrize(
    "text",
    [
        "filer/never/clock:1",
        "hosts/late/clock:1",
        "vcenter/late/clock:soon",
        "vcenter/late/zombie:x",
        "vcenter",
    ],
)
def test_what_is_no_case_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no point|does not begin with"):
        parse_case(text)


def test_the_whole_plan_covers_each_pair_and_kind_and_is_the_same_again() -> None:
    whole = plan.made(_points(), 1, quick=False)
    assert set(whole.candidates) == set(cells())
    assert sum(whole.wanted.values()) >= 200
    assert min(whole.wanted.values()) >= 8
    for cell, cases in whole.candidates.items():
        first = cases[: whole.wanted[cell]]
        assert {case.cell for case in first} == {cell}
        assert {case.point.kind for case in first} >= {"vcenter", "nfs", "repository", "history", "clock"}
        assert len(set(cases)) == len(cases)
    assert plan.made(_points(), 1, quick=False).candidates == whole.candidates
    assert plan.made(_points(), 2, quick=False).candidates != whole.candidates


def test_the_sample_kills_each_process_twice() -> None:
    sample = plan.made(_points(), 1, quick=True)
    killed = {
        process: sum(n for cell, n in sample.wanted.items() if cell[0] == process) for process in PROCESSES
    }
    assert killed == dict.fromkeys(PROCESSES, 2)
    assert len({sample.candidates[cell][0].point.kind for cell in sample.wanted}) > 2


def test_a_case_that_missed_its_point_is_replaced_and_what_was_played_is_not_played_again() -> None:
    cell = ("filer", "late")
    cases = [Case(*cell, parse_point(f"clock:{number}")) for number in range(4)]
    going_on = plan.Plan({cell: cases}, {cell: 2}, {cases[0].id: Outcome(cases[0].id)})
    assert going_on.left == 1
    assert going_on.next_case() == cases[1]
    assert going_on.next_case() is None  # one is under way, and no more is wanted
    going_on.ended(Outcome(cases[1].id, "missed"))
    assert going_on.next_case() == cases[2]
    going_on.ended(Outcome(cases[2].id))
    assert going_on.next_case() is None
    assert [item.case for item in going_on.played] == [cases[0].id, cases[2].id]


def test_the_table_tells_of_each_pair_and_its_last_line_counts(tmp_path: Path) -> None:
    outcomes = [
        Outcome(
            "filer/late/clock:1", reread_packs=0.5, recovery_s=30, statuses={"one": "Completed"}, commit="abc"
        ),
        Outcome(
            "filer/late/clock:2",
            reread_packs=0.25,
            violations=["x is left behind"],
            recovery_s=20,
            commit="def",
        ),
    ]
    line = {"points": 2, "processes": 1, "violations": 1, "reread_packs_max": 0.5}
    assert json.loads(table.last_line(outcomes)) == line
    text = table.table(outcomes, date="2026-01-01", points=99)
    assert text.startswith(
        "Ended on 2026-01-01: 2 cases, chosen among 99 points of a job; 1 at commit abc, 1 at commit def."
    )
    assert text.count("\n| ") >= len(cells())
    assert "| filer | late | 0 | 0 | 0 | 0 | 2 | 0 | 2 | 1 | 0.5 | 25 s | 1 of 1 |" in text
    assert "`filer/late/clock:2`: x is left behind" in text
    document = tmp_path / "doc.md"
    document.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.write(document, text)
    assert document.read_text().startswith(f"before\n{table.BEGIN}")
    assert "old" not in document.read_text()
    assert document.read_text().endswith("after\n")


def test_a_vm_must_be_completed_unless_its_node_stays_away() -> None:
    aways = {
        case.cell
        for process in PROCESSES
        for aftermath in AFTERMATHS
        if not must_complete(case := Case(process, aftermath, parse_point("clock:1")))
    }
    assert aways <= {("access-node", "late"), ("access-node", "never")}
    assert not must_complete(parse_case("vcenter/at-once/zombie:terminated"))


@pytest.mark.parametrize(
    ("spans", "covered"),
    [([], 0), ([(0, 4)], 4), ([(0, 4), (0, 4)], 4), ([(8, 4), (0, 4), (2, 4)], 10), ([(0, 10), (2, 2)], 10)],
)
def test_bytes_that_were_served_twice_count_once(spans: list[tuple[int, int]], covered: int) -> None:
    assert covered_bytes(spans) == covered


def test_what_was_recorded_and_is_read_again_is_found() -> None:
    gate = NfsGate(0)
    tap = FilerTap(gate, Sightings())

    def read(offset: int, length: int) -> None:
        assert gate.watcher is not None
        gate.watcher(Passing(READ, "one-flat.vmdk", 7, offset, length, answered=True))

    read(0, 10)
    read(10, 10)
    tap.mark()
    read(15, 10)
    assert tap.read_again_bytes() == {"one": 5}
    assert tap.recorded_again_bytes({"one": 15}) == {"one": 0}
    assert tap.recorded_again_bytes({"one": 18}) == {"one": 3}
    assert tap.recorded_again_bytes({"one": 32}) == {"one": 5}
    assert tap.recorded_again_bytes({}) == {"one": 0}
    tap.begin()
    assert tap.read_again_bytes() == {}


def test_names_that_differ_from_job_to_job_are_one() -> None:
    assert same_name("one-000012-delta.vmdk") == same_name("one-000003-delta.vmdk") == "one-N-delta.vmdk"
    kinds = {
        "packs/0a/0abc": "packs",
        "sessions/run.snapshot-1/open": "sessions",
        "sessions/run.snapshot-1/disk-2000/00000001": "sessions.disk",
        "jobs/JOB/plan/1": "jobs.plan",
        "manifests/GUID/1": "manifests",
    }
    assert {name: object_kind(Path(name)) for name in kinds} == kinds


def test_the_sighting_that_is_waited_for_waits_for_its_release() -> None:
    sightings = Sightings()
    sighting = Sighting("nfs", "READ x", "before", client_port=7)
    sightings.begin(Point("nfs", "READ x", 2, "before"))
    passed: list[int] = []

    def pass_by() -> None:
        for number in (1, 2, 3):
            sightings.see(sighting, may_wait=True)
            passed.append(number)

    thread = threading.Thread(target=pass_by)
    thread.start()
    assert sightings.wait(5.0) == sighting
    assert passed == [1]
    sightings.release()
    thread.join(5.0)
    assert passed == [1, 2, 3]
    assert sightings.counted() == {("nfs", "READ x", "before"): 3}


def test_a_file_is_told_of_in_a_folder_that_is_new_too(tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "known").touch()
    with FolderWatch(tmp_path, lambda path: told.append(str(path.relative_to(tmp_path)))):
        (tmp_path / "old" / "a").touch()
        (tmp_path / "new" / "deep").mkdir(parents=True)
        (tmp_path / "new" / "deep" / "b").touch()
        (tmp_path / "old" / "c").hardlink_to(tmp_path / "old" / "a")
        deadline = time.monotonic() + 5.0
        while len(told) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert sorted(told) == ["new/deep/b", "old/a", "old/c"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_front_holds_the_call_that_was_ordered(when: str) -> None:
    hold = CallHold()
    hold.arm(HoldOrder.model_validate({"method": "RemoveSnapshot_Task", "nth": 2, "when": when}))
    assert hold.arrive("Login", 1) is None
    done: list[str] = []

    def call(port: int) -> None:
        visit = hold.arrive("RemoveSnapshot_Task", port)
        hold.stop_here(visit, "before")
        done.append(f"executed {port}")
        hold.stop_here(visit, "after")
        done.append(f"answered {port}")

    call(1)
    assert hold.wait_reached(0.0) == {"reached": False}
    thread = threading.Thread(target=call, args=(2,))
    thread.start()
    assert hold.wait_reached(5.0) == {"reached": True, "client_port": 2}
    assert done[2:] == ([] if when == "before" else ["executed 2"])
    hold.release()
    thread.join(5.0)
    assert done[2:] == ["executed 2", "answered 2"]


@pytest.mark.parametrize("defects", [NOT_TAKEN_OVER, ORPHANS_STAY])
def test_the_defects_that_the_matrix_must_find_can_still_be_put_into_a_copy(
    defects: dict[str, tuple[str, str]],
) -> None:
    with broken_copy(defects) as copy:
        assert copy.stat().st_mode & 0o005 == 0o005
        for name, (sound, broken) in defects.items():
            text = (copy / name).read_text()
            assert broken in text
            assert sound not in text
            compile(text, name, "exec")
        assert (copy / "workers" / "access_node.py").exists()
    assert not copy.exists()


def test_a_defect_for_another_product_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="adapt the defect"),
        broken_copy({"workflows/steps.py": ("no such", "")}),
    ):
        pass
