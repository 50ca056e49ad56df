"""A job over an encrypted repository: what is restored is equal, with safehaul and without."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.datacentre import MEDIA_AGENT, DataCentre
from lab.processes import LabError
from tests.e2e.replaced import NODE, tiny_site
from tests.e2e.site import data_centre, differences, run_job, vm_of

PAGE = Path(__file__).parents[2] / "docs" / "restore_standalone.py"


@pytest.fixture(scope="module")
def lab() -> Iterator[DataCentre]:
    with data_centre(tiny_site(), nodes=(NODE,), streams=1, encrypted=True) as started:
        started.start_workers()
        yield started


def test_a_backup_in_an_encrypted_repository_is_restored_equal_with_safehaul_and_without(
    lab: DataCentre, tmp_path: Path
) -> None:
    vm = vm_of(run_job(lab, "nightly"), "one")
    assert vm["status"] == "Completed"
    backup, key = f"{vm['vc_guid']}/{vm['backup_id']}", str(vm["disks"][0]["key"])
    ours, theirs = lab.home / "ours.raw", tmp_path / "theirs.raw"
    lab.safehaul("restore", "disk", backup, key, "--to", str(ours))
    page = [str(PAGE), str(lab.repository), backup, key, str(theirs), "--key-file", str(lab.key_file)]
    subprocess.run([sys.executable, *page], check=True, capture_output=True)
    for image in (ours, theirs):
        assert list(differences(lab, vm, {vm["disks"][0]["key"]: image})) == []
    packs = [path.read_bytes() for path in (lab.repository / "packs").rglob("*") if path.is_file()]
    assert packs
    assert all(data[14:16] == b"\x01\x00" for data in packs), "suite 1"


def test_a_worker_with_another_key_says_so_and_does_not_start(lab: DataCentre) -> None:
    kept = lab.key_file.read_bytes()
    lab.key_file.write_bytes(bytes(reversed(kept)))
    name = f"media-agent.{MEDIA_AGENT}"
    lab.workers[name].stop()
    try:
        with pytest.raises(LabError, match=r"ended with 2:\n.*the key file opens none of the 1 key slots"):
            lab.start_worker("media-agent", MEDIA_AGENT)
    finally:
        lab.key_file.write_bytes(kept)
        lab.start_worker("media-agent", MEDIA_AGENT)
