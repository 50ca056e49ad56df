"""Goal: the lab's ganesha is as real filers are: coherent, exact, with ids that last and handles that go stale."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.ganesha import Ganesha, GaneshaExport, Version
from lab.processes import LabError
from safehaul.errors import ConnectionLostError, NotFoundError, PermissionRefusedError, VmMovedError
from safehaul.messages.exports import ExportDefinition
from safehaul.nas.datastores import DatastoreFiles
from safehaul.nas.nfs_client import NfsClientExport
from safehaul.vmdk.chain import DiskChain
from tests.ganesha import GANESHA
from tests.vmdk_images import delta_disk, flat_disk

pytestmark = [*GANESHA]
MIB = 2**20
VERSIONS: tuple[Version, ...] = ("3", "4.1")


def definition(
    ganesha: Ganesha, version: Version, path: str = "/exports/ds1", **changes: object
) -> ExportDefinition:
    facts: dict[str, object] = {
        "name": path.rsplit("/", 1)[1],
        "remote_hosts": ("127.0.0.1",),
        "remote_path": path,
        "version": version,
        "nfs_port": ganesha.port,
        "mount_port": ganesha.mount_port or None,
        "reserved_port": False,
        "operation_timeout_s": 20,
    }
    return ExportDefinition.model_validate(facts | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("datastores")
    (directory / "ds1").mkdir()
    (directory / "ds2").mkdir()
    return directory


@pytest.fixture(scope="module")
def ganesha(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ganesha]:
    exports = [GaneshaExport(data / name, f"/exports/{name}") for name in ("ds1", "ds2")]
    with Ganesha(exports, state=tmp_path_factory.mktemp("ganesha")) as running:
        yield running


def test_it_shows_at_once_what_others_write(ganesha: Ganesha, data: Path) -> None:
    """Goal: new, grown, overwritten, replaced, deleted, also through an open file; as for the lab's other filer."""
    for _ in range(3):
        ganesha.assert_coherent()
    assert list((data / "ds1").iterdir()) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_it_is_served_in_the_version_that_was_asked_for(ganesha: Ganesha, version: Version) -> None:
    with NfsClientExport(definition(ganesha, version)) as export:
        assert export.version == version


@pytest.mark.parametrize("version", VERSIONS)
def test_served_bytes_are_counted(ganesha: Ganesha, data: Path, version: Version) -> None:
    content = random.Random(7).randbytes(8 * MIB)
    (data / "ds1" / "busy-flat.vmdk").write_bytes(content)
    with NfsClientExport(definition(ganesha, version)) as export:
        file = export.open_read("busy-flat.vmdk")
        before = ganesha.served_bytes()
        found = bytearray(len(content))
        file.read_into(0, found)
        assert found == content
        assert 0 <= ganesha.served_bytes() - before - len(content) < 4096, "the users' database, now and then"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_frozen_chain_keeps_its_identity_and_a_replaced_file_does_not(
    ganesha: Ganesha, data: Path, version: Version
) -> None:
    """Goal: file ids are the inodes, so that a file of the same name, size and time is still seen as another."""
    rng = random.Random(3)
    base = bytearray(rng.randbytes(3 * MIB))
    flat_disk(data / "ds1", "c", bytes(base), cid=1)
    grains = [(number, rng.randbytes(512)) for number in rng.sample(range(3 * MIB // 512), 900)]
    delta_disk(data / "ds2", "c-000001", len(base) // 512, grains, parent="c", cid=2, parent_cid=1)
    for number, grain in grains:
        base[number * 512 : number * 512 + 512] = grain
    with (
        NfsClientExport(definition(ganesha, version, "/exports/ds1")) as one,
        NfsClientExport(definition(ganesha, version, "/exports/ds2")) as two,
    ):
        files = DatastoreFiles({"one": one, "two": two})
        with DiskChain(files, "[two] c-000001.vmdk", ["[one] c.vmdk"], capacity_bytes=len(base)) as chain:
            found = bytearray(len(base))
            chain.read_into(0, found)
            assert found == base
            before = {facts.path: facts for facts in chain.identity()}
            assert before["[one] c-flat.vmdk"].file_id == (data / "ds1" / "c-flat.vmdk").stat().st_ino
            _replace_by_a_copy(data / "ds1" / "c-flat.vmdk")
            after = {facts.path: facts for facts in chain.identity()}
    changed = {path for path in before if before[path] != after[path]}
    assert changed == {"[one] c-flat.vmdk"}
    assert before["[one] c-flat.vmdk"].mtime_ns == after["[one] c-flat.vmdk"].mtime_ns


def _replace_by_a_copy(path: Path) -> None:
    times = path.stat()
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
    copy.replace(path)


@pytest.mark.slow
def test_over_v3_a_file_that_is_gone_is_stale_and_another_is_read_on(tmp_path: Path) -> None:
    """Goal: step 11's case (vmware-facts 6) by a real NFS3ERR_STALE: the file is gone from under an open handle.

    Ganesha keeps what it has open, so it restarts here; for a client of v3 that is no event.
    """
    directory = tmp_path / "ds"
    directory.mkdir()
    (directory / "moved-flat.vmdk").write_bytes(b"old bytes")
    (directory / "held-flat.vmdk").write_bytes(b"still here")
    exports = [GaneshaExport(directory, "/exports/ds")]
    with (
        Ganesha(exports, state=tmp_path / "state") as filer,
        NfsClientExport(definition(filer, "3", "/exports/ds", operation_timeout_s=60)) as export,
    ):
        moved, held = export.open_read("moved-flat.vmdk"), export.open_read("held-flat.vmdk")
        buffer = bytearray(9)
        moved.read_into(0, buffer)
        (directory / "moved-flat.vmdk").unlink()
        with pytest.raises(NotFoundError):
            export.stat("moved-flat.vmdk")
        filer.change_exports(exports)
        for _ in range(2):
            with pytest.raises(
                VmMovedError, match=r"moved-flat.vmdk.*'ds'.*stale file handle.*open it again"
            ):
                moved.read_into(0, buffer)
        buffer = bytearray(10)
        held.read_into(0, buffer)
        assert buffer == b"still here"


@pytest.mark.slow
def test_over_v41_an_open_file_is_kept_and_a_restart_costs_one_new_connection(tmp_path: Path) -> None:
    """Goal: what the client makes of the state of v4.1: a deleted file stays readable for who has it open, and
    after a restart of the filer a step's next try, which connects anew, reads on.
    """
    directory = tmp_path / "ds"
    directory.mkdir()
    (directory / "x-flat.vmdk").write_bytes(b"old bytes")
    exports = [GaneshaExport(directory, "/exports/ds", ("4.1",))]
    with Ganesha(exports, state=tmp_path / "state", versions=("4.1",)) as filer:
        found = definition(filer, "4.1", "/exports/ds")
        buffer = bytearray(9)
        with NfsClientExport(found) as export:
            file = export.open_read("x-flat.vmdk")
            (directory / "x-flat.vmdk").unlink()
            file.read_into(0, buffer)
            assert buffer == b"old bytes"
            with pytest.raises(NotFoundError):
                export.stat("x-flat.vmdk")
            (directory / "x-flat.vmdk").write_bytes(b"new bytes")
            filer.change_exports(exports)
            with pytest.raises((ConnectionLostError, VmMovedError), match="'ds'"):
                file.read_into(0, buffer)
        with NfsClientExport(found) as export:
            export.open_read("x-flat.vmdk").read_into(0, buffer)
        assert buffer == b"new bytes"


def test_a_read_only_export_refuses_to_write_whatever_the_definition_says(
    ganesha: Ganesha, data: Path
) -> None:
    for version in VERSIONS:
        wrong = definition(ganesha, version, writable=True)
        with NfsClientExport(wrong) as export, pytest.raises(PermissionRefusedError, match="read-only"):
            export.make_directory_exclusive("new")
    assert not (data / "ds1" / "new").exists()


def test_instances_stand_beside_each_other_and_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "ds").mkdir()
    exports = [GaneshaExport(tmp_path / "ds", "/exports/ds")]
    with Ganesha(exports, state=tmp_path / "a") as one, Ganesha(exports, state=tmp_path / "b") as two:
        processes = {pid for filer in (one, two) for pid in _world(filer.pid)}
        assert len({one.port, one.mount_port, two.port, two.mount_port}) == 4
        assert len(processes) == 4, "each has its portmapper"
    _wait_gone(processes)


def _wait_gone(processes: set[int]) -> None:
    deadline = time.monotonic() + 10
    while left := {pid for pid in processes if Path(f"/proc/{pid}").exists()}:
        assert time.monotonic() < deadline, f"processes {left} are left behind"
        time.sleep(0.05)


_START_AND_WAIT = """
import sys, time
from pathlib import Path
from lab.ganesha import Ganesha, GaneshaExport
place = Path(sys.argv[1])
filer = Ganesha([GaneshaExport(place / "ds", "/exports/ds")], state=place / "state")
filer.start()
print(filer.pid, flush=True)
time.sleep(60)
"""


def test_a_killed_test_run_leaves_nothing(tmp_path: Path) -> None:
    """Goal: also whoever is not asked to stop it: SIGKILL to the process that started the filer ends the filer."""
    (tmp_path / "ds").mkdir()
    command = [sys.executable, "-c", _START_AND_WAIT, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as starter:
        assert starter.stdout is not None
        processes = _world(int(starter.stdout.readline()))
        assert len(processes) == 2
        starter.kill()
    _wait_gone(processes)


def _world(pid: int) -> set[int]:
    """The processes of a ganesha's own process namespace."""
    space = Path(f"/proc/{pid}/ns/pid").readlink()
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "ns" / "pid").readlink() == space:
                    found.add(int(entry.name))
            except OSError:
                continue  # it ended meanwhile
    return found


def test_a_port_in_use_is_told(ganesha: Ganesha, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="already in use"):
        Ganesha(ganesha.exports, state=tmp_path, port=ganesha.port).start()
