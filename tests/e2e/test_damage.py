"""One flipped byte in one pack: both restores fail and name disk and offset, verify names what it touches."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.datacentre import DataCentre
from lab.processes import LabError
from safehaul.media.codec import HOLE
from safehaul.media.manifest import BackupRef, read_manifest
from safehaul.media.pack import pack_name
from safehaul.media.repository import Repository
from safehaul.media.store import open_store
from tests.e2e.site import (
    data_centre,
    differences,
    failure_of,
    restored_images,
    run_job,
    start_restore,
    vm_of,
    wait_end,
)
from tests.e2e.test_cancel import small_site

pytestmark = pytest.mark.slow

DISK = 2000
NEAR_BYTES = 40 * 2**20
"""Far from the disk's ends: restores have written something when they meet the damage."""
NAMES = r"disk Hard disk 1 \(key 2000\), offset {}: chunk [0-9a-f]+ in pack {} is damaged"


@dataclass(frozen=True)
class Damaged:
    """A data centre whose repository has one wrong byte, in a chunk of VM `two`'s disk."""

    lab: DataCentre
    report: dict[str, Any]
    pack: Path
    at: int
    """Of the wrong byte, in the pack."""
    offset: int
    """Of the chunk, on the disk."""

    @property
    def two(self) -> dict[str, Any]:
        return vm_of(self.report, "two")

    @property
    def backup(self) -> str:
        return f"{self.two['vc_guid']}/{self.two['backup_id']}"

    @property
    def says(self) -> str:
        return NAMES.format(self.offset, f"packs/.*{self.pack.name}")


@pytest.fixture(scope="module")
def damaged() -> Iterator[Damaged]:
    with data_centre(small_site(), nodes=("node-1",)) as lab:
        lab.start_workers()
        report = run_job(lab, "nightly")
        assert report["status"] == "Completed", report["reason"]
        pack, at, offset = _place_of(lab, vm_of(report, "two"))
        _flip(pack, at)
        yield Damaged(lab, report, pack, at, offset)


def test_verify_names_the_pack_and_the_one_backup_that_it_touches(damaged: Damaged) -> None:
    verified = json.loads(damaged.lab.safehaul("repo", "verify", "--full", "--json", check=False))
    assert {item["object_name"].rsplit("/", 1)[-1] for item in verified["damage"]} == {damaged.pack.name}
    touched = {(item["vm_name"], item["backup_id"]) for item in verified["touched"]}
    assert touched == {("two", damaged.two["backup_id"])}


def test_restore_disk_fails_with_disk_and_offset_and_leaves_no_image(damaged: Damaged) -> None:
    target = damaged.lab.home / "damaged" / "two.raw"
    target.parent.mkdir()
    owner = damaged.lab.home.stat()  # the command runs as the workers' user
    os.chown(target.parent, owner.st_uid, owner.st_gid)
    with pytest.raises(LabError, match=damaged.says):
        damaged.lab.safehaul("restore", "disk", damaged.backup, str(DISK), "--to", str(target))
    assert list(target.parent.iterdir()) == [], "neither half a disk nor a file on its way to one"


def test_restore_vm_fails_with_disk_and_offset_and_leaves_nothing(damaged: Damaged) -> None:
    lab = damaged.lab
    start_restore(lab, "restore-damaged", damaged.two, "two again")
    assert wait_end(lab, "restore-damaged") == "FAILED"
    assert re.search(damaged.says, failure_of(lab, "restore-damaged"))
    lab.filers.wait_settled()
    assert sorted(path.name for path in (lab.state / "datastores" / "nfs-gold").iterdir()) == ["one", "two"]
    assert {vm.name for vm in lab.hosts.state().vms} == {"one", "two"}


def test_the_other_vm_and_the_byte_put_right_restore(damaged: Damaged) -> None:
    """Last: it was this byte, and this byte alone."""
    one = vm_of(damaged.report, "one")
    assert differences(damaged.lab, one, restored_images(damaged.lab, one)) == []
    _flip(damaged.pack, damaged.at)
    assert differences(damaged.lab, damaged.two, restored_images(damaged.lab, damaged.two)) == []


def _place_of(lab: DataCentre, vm: dict[str, Any]) -> tuple[Path, int, int]:
    """A pack, a byte in the middle of one of its chunks, and where that chunk lies on the VM's disk."""
    with closing(Repository.open(open_store(f"file://{lab.repository}"), for_writing=False)) as repository:
        repository.refresh_index()
        ref = BackupRef(vm["vc_guid"], vm["backup_id"])
        disk_map = read_manifest(repository, ref).disk_map(repository, DISK)
        size = repository.config.chunk_size_bytes
        number = next(
            number
            for number in range(NEAR_BYTES // size, 64 * 2**20 // size)
            if disk_map.chunk_id(number) != HOLE
        )
        (location,) = repository.index.lookup(disk_map.chunk_id(number))
        name = pack_name(location.pack.pack_id)
        return lab.repository / name, (location.entry.offset + location.entry.end) // 2, number * size


def _flip(pack: Path, at: int) -> None:
    mode = stat.S_IMODE(pack.stat().st_mode)
    pack.chmod(0o600)
    with pack.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    pack.chmod(mode)
