"""The proof itself must be able to fail: a changed byte, a lost disk, a disk that nobody froze."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lab.esx.api import FrozenDigest, FrozenRecord
from lab.processes import processes_in
from lab.proof import compare_disks

BYTES = {2000: b"one disk" * 64, 2001: b"and another" * 128}


@pytest.fixture
def images(tmp_path: Path) -> dict[int, Path]:
    for key, data in BYTES.items():
        (tmp_path / str(key)).write_bytes(data)
    return {key: tmp_path / str(key) for key in BYTES}


@pytest.fixture
def record() -> FrozenRecord:
    return FrozenRecord(
        snapshot="snapshot-1",
        vm="vm-1",
        vm_name="web",
        instance_uuid="",
        name="",
        create_time=datetime.now(UTC),
        frozen_sequence=0,
        disks=[
            FrozenDigest(
                disk_key=key,
                label=f"Hard disk {key - 1999}",
                capacity_bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
            )
            for key, data in BYTES.items()
        ],
    )


def test_equal_disks_have_no_difference(record: FrozenRecord, images: dict[int, Path]) -> None:
    assert compare_disks(record, images) == []


def test_a_changed_byte_and_a_changed_size_are_differences(
    record: FrozenRecord, images: dict[int, Path]
) -> None:
    images[2000].write_bytes(b"X" + BYTES[2000][1:])
    images[2001].write_bytes(BYTES[2001] + b"\0")
    first, second = compare_disks(record, images)
    assert "Hard disk 1: the bytes are not those" in first
    assert "Hard disk 2: 1409 of 1408 bytes" in second


@pytest.mark.parametrize("skipped", [{}, {2001: ""}, {2000: "another disk's reason"}])
def test_a_disk_that_the_report_lost_is_a_difference(
    record: FrozenRecord, images: dict[int, Path], skipped: dict[int, str]
) -> None:
    del images[2001]
    (found,) = compare_disks(record, images, skipped)
    assert "Hard disk 2: frozen, neither stored nor skipped with a reason" in found


def test_a_disk_that_is_skipped_with_a_reason_is_none(record: FrozenRecord, images: dict[int, Path]) -> None:
    del images[2001]
    assert compare_disks(record, images, {2001: "it is on a VMFS datastore"}) == []


def test_a_disk_that_nobody_froze_is_a_difference(record: FrozenRecord, images: dict[int, Path]) -> None:
    images[2002] = images[2001]
    assert compare_disks(record, images) == ["web: the snapshot froze no disk 2002"]


@pytest.mark.parametrize("told_by", ["working directory", "command line"])
def test_a_process_that_nobody_registered_is_found_where_it_works(tmp_path: Path, told_by: str) -> None:
    here = tmp_path / "data centre"
    here.mkdir()
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    if told_by == "command line":
        command.append(str(here / "state"))
    assert processes_in(here) == []
    cwd = here if told_by == "working directory" else tmp_path
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=cwd) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert [line.split()[0] for line in processes_in(here)] == [str(process.pid)]
    assert processes_in(here) == []
