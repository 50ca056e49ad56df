"""Goal: a disk counts as restored only when every byte that the filer gives back is the repository's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from temporalio.testing import ActivityEnvironment

from activities.peers import Peers
from activities.restore_io import RestoreIo
from safehaul.errors import IntegrityError, PolicyError
from safehaul.media.repository import Repository
from safehaul.messages.exports import ExportDefinition
from safehaul.messages.inventory import NasVolume
from safehaul.messages.restore import PlannedDisk, RestoredDisk, RestoreKind, RestoreSettings
from safehaul.nas.export import NasExport
from safehaul.nas.mounted import MountedExport
from tests.unit.media_backup import CHUNK, DISK, back_up, flip, new_repository, pack_paths

IMAGE = b"\x01" * CHUNK + bytes(3 * CHUNK) + b"\x02" * 512
EXTENT = "vm/new-flat.vmdk"
VOLUME = NasVolume(datastore="ds", moref="datastore-1", type="NFS")


class LocalIo(RestoreIo):
    """Restores to a plain directory; `between` is what happens to it after the writing, before the comparison."""

    def __init__(self, repository: Repository, home: Path) -> None:
        super().__init__(cast(Peers, SimpleNamespace(repository=lambda _name: repository)))
        self.between: Callable[[], None] = lambda: None
        self.definition = ExportDefinition(
            name="t", remote_hosts=("filer",), remote_path="/e", mounted_at=str(home), writable=True
        )

    @contextmanager
    def export(self, volume: NasVolume) -> Iterator[NasExport]:
        self.between()
        with MountedExport(self.definition) as export:
            yield export


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "ds" / "vm").mkdir(parents=True)
    return tmp_path / "ds"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return new_repository(tmp_path)


def restore(io: LocalIo, repository: Repository) -> RestoredDisk:
    ref = back_up(repository, "s1", IMAGE)
    settings = RestoreSettings(
        kind=RestoreKind.DISK,
        vc_guid=ref.vc_guid,
        backup_id=ref.backup_id,
        media_agent="ma",
        vcenter="vc",
        access_nodes=[],
        name="vm",
    )
    disk = PlannedDisk(
        key=DISK, label="Hard disk 1", capacity_bytes=len(IMAGE), path="[ds] vm/new.vmdk", uuid="00" * 16
    )

    def run() -> Any:
        with MountedExport(io.definition) as export:
            return io.write_and_compare(settings, disk, VOLUME, export)

    return cast(RestoredDisk, ActivityEnvironment().run(run))


def test_a_disk_is_written_whole_holes_stay_holes_and_the_descriptor_comes_last(
    repository: Repository, home: Path
) -> None:
    io = LocalIo(repository, home)
    seen: list[list[str]] = []
    io.between = lambda: seen.append(sorted(path.name for path in (home / "vm").iterdir()))
    done = restore(io, repository)
    assert (home / EXTENT).read_bytes() == IMAGE
    assert (done.bytes_written, done.bytes_compared) == (CHUNK + 512, len(IMAGE))
    assert seen == [["new-flat.vmdk"]]
    assert 'ddb.uuid = "00 ' in (home / "vm/new.vmdk").read_text()


@pytest.mark.parametrize("offset", [0, CHUNK - 1, 2 * CHUNK, len(IMAGE) - 1])
def test_a_single_bit_that_the_filer_gives_back_differently_is_found(
    repository: Repository, home: Path, offset: int
) -> None:
    io = LocalIo(repository, home)
    io.between = lambda: flip(home / EXTENT, offset)
    with pytest.raises(IntegrityError, match="Hard disk 1: the filer gives back other bytes"):
        restore(io, repository)
    assert not (home / "vm/new.vmdk").exists(), "without a descriptor no VM can use it"


def test_a_file_of_another_size_is_found(repository: Repository, home: Path) -> None:
    io = LocalIo(repository, home)

    def grow() -> None:
        (home / EXTENT).write_bytes(IMAGE + b"x")

    io.between = grow
    with pytest.raises(IntegrityError, match="bytes of"):
        restore(io, repository)


def test_damage_in_the_repository_is_not_restored(repository: Repository, home: Path) -> None:
    io = LocalIo(repository, home)
    ref = back_up(repository, "s0", IMAGE)
    assert ref
    for path in pack_paths(repository):
        flip(path, path.stat().st_size // 3)
    with pytest.raises(IntegrityError):
        restore(io, repository)


def test_too_little_space_is_told_with_both_figures(repository: Repository, home: Path) -> None:
    io = LocalIo(repository, home)
    io.require_space(VOLUME, 1)
    with pytest.raises(PolicyError, match=r"'ds' has [\d,]+ bytes free, the restore needs 1,152,921,504"):
        io.require_space(VOLUME, 1 << 60)
