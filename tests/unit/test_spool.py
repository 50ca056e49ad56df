"""An access node's spool: one limit for all VMs at once, room given back when files are stored, nothing left behind."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from temporalio.testing import ActivityEnvironment

from activities import spool as spooling
from activities.spool import Spool, write_new
from safehaul.errors import BusyError, ConfigError
from safehaul.messages.steps import StoredFile, StoredFiles, VmRef

STORED = StoredFiles(files=[StoredFile(name="[ds] vm/vm.vmx", size_bytes=60)])


def vm(number: int) -> VmRef:
    return VmRef(
        job_id="j",
        vcenter="vc",
        vc_guid=f"vc.{number}",
        name=f"vm {number}",
        moref=f"vm-{number}",
        node="n1",
        media_agent="ma",
    )


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    opened = Spool(tmp_path / "spool" / "n1", 100_000)
    opened.prepare()
    return opened


def download(spool: Spool, number: int, size_bytes: int, hold_s: float = 0.0) -> None:
    """What step 9 does."""

    def work() -> None:
        with spool.fill(vm(number), size_bytes) as directory:
            time.sleep(hold_s)
            write_new(directory / "0000", bytes(size_bytes))

    environment: Any = ActivityEnvironment()
    environment.run(work)


def test_a_vm_waits_until_another_ones_files_are_stored(spool: Spool) -> None:
    download(spool, 1, 60_000)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(download, spool, 2, 60_000)
        time.sleep(0.7)
        assert not second.done(), "two VMs of 60,000 bytes do not fit into 100,000"
        spool.keep_record(vm(1), STORED)
        second.result(10)
    assert (spool.directory(vm(2)) / "0000").stat().st_size == 60_000


def test_a_spool_that_stays_full_is_an_error_that_names_the_key(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spooling, "WAIT_S", 0.1)
    download(spool, 1, 60_000)
    with pytest.raises(BusyError, match=r"holds 60,000 bytes.*'vm 2'.*spool_limit_bytes \(100,000\)"):
        download(spool, 2, 60_000)
    download(spool, 3, 40_000)


def test_downloads_at_the_same_time_share_the_limit(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spooling, "WAIT_S", 0.1)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(download, spool, 1, 60_000, 1.5)
        time.sleep(0.3)
        with pytest.raises(BusyError):
            download(spool, 2, 60_000)
        first.result(10)


def test_what_an_earlier_process_left_counts(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spooling, "WAIT_S", 0.1)
    download(spool, 1, 60_000)
    again = Spool(spool.directory(vm(1)).parent, 100_000)
    with pytest.raises(BusyError):
        download(again, 2, 60_000)
    download(again, 1, 90_000)


def test_the_record_answers_a_second_run_and_takes_the_files_place(spool: Spool) -> None:
    download(spool, 1, 60_000)
    assert spool.stored(vm(1)) is None
    spool.keep_record(vm(1), STORED)
    spool.keep_record(vm(1), STORED)
    assert spool.stored(vm(1)) == STORED
    assert [path.name for path in spool.directory(vm(1)).iterdir()] == ["stored.json"]
    spool.drop_unstored(vm(1))
    assert spool.stored(vm(1)) == STORED, "step 14 looks for it after step 13"
    assert spool.empty(vm(1))
    assert not spool.directory(vm(1)).exists()


def test_the_files_of_a_vm_that_was_not_stored_go_with_its_snapshot(spool: Spool) -> None:
    download(spool, 1, 60_000)
    spool.drop_unstored(vm(1))
    assert not spool.directory(vm(1)).exists()


def test_what_a_killed_process_left_long_ago_goes_when_the_node_prepares_itself(spool: Spool) -> None:
    download(spool, 1, 60_000)
    download(spool, 2, 10_000)
    old = time.time() - spooling.STALE_S - 60
    os.utime(spool.directory(vm(1)), (old, old))
    spool.prepare()
    assert not spool.directory(vm(1)).exists()
    assert spool.directory(vm(2)).exists()


def test_a_spool_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(
        ConfigError, match=r"taken/n1 cannot be written by uid \d+: .*: let .* set another spool_dir"
    ):
        Spool(tmp_path / "taken" / "n1", 100_000).prepare()
