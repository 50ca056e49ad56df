"""Goal: refusals as a real filer sends them, on the wire, become the errors that say what to do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab.filer import Filer
from lab.nfs_gate import (
    ACCESS,
    GETATTR,
    LOOKUP,
    NFS3ERR_ACCES,
    NFS3ERR_JUKEBOX,
    NFS3ERR_STALE,
    READ,
    NfsGate,
    Passing,
    Rule,
)
from safehaul.errors import BusyError, PermissionRefusedError, VmMovedError
from safehaul.messages.exports import ExportDefinition
from safehaul.nas.nfs_client import NfsClientExport


@pytest.fixture(scope="module")
def filer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filer]:
    directory = tmp_path_factory.mktemp("ds")
    (directory / "vm").mkdir()
    (directory / "vm" / "vm-flat.vmdk").write_bytes(b"disk" * 1000)
    (directory / "vm" / "vm.vmx").write_bytes(b"text")
    with Filer(directory, state=tmp_path_factory.mktemp("filer")) as running:
        yield running


@pytest.fixture
def gate(filer: Filer) -> Iterator[NfsGate]:
    with NfsGate(filer.port) as running:
        yield running


def _definition(gate: NfsGate, uid: int = 0) -> ExportDefinition:
    return ExportDefinition(
        name="gold",
        remote_hosts=("127.0.0.1",),
        remote_path="/",
        version="3",
        nfs_port=gate.port,
        mount_port=gate.port,
        reserved_port=False,
        uid=uid,
        operation_timeout_s=30,
    )


def _read(export: NfsClientExport, path: str) -> bytes:
    return export.read_small(path, 10_000)


def test_it_passes_everything_else_through(gate: NfsGate) -> None:
    with NfsClientExport(_definition(gate)) as export:
        assert _read(export, "vm/vm-flat.vmdk") == b"disk" * 1000
        assert [entry.name for entry in export.list("vm")] == ["vm-flat.vmdk", "vm.vmx"]


def test_a_squashed_root_is_a_refusal_that_says_what_to_change(gate: NfsGate) -> None:
    gate.refuse(Rule("*-flat.vmdk", NFS3ERR_ACCES, uid=0, procedures=frozenset({READ, ACCESS})))
    with NfsClientExport(_definition(gate)) as export:
        assert _read(export, "vm/vm.vmx") == b"text"
        with pytest.raises(PermissionRefusedError, match="uid 0") as caught:
            _read(export, "vm/vm-flat.vmdk")
        for part in ("'gold'", "vm-flat.vmdk", "unreserved port", "no_root_squash"):
            assert part in str(caught.value)
    with NfsClientExport(_definition(gate, uid=36)) as export:
        assert len(_read(export, "vm/vm-flat.vmdk")) == 4000


@pytest.mark.parametrize("procedure", [READ, LOOKUP, GETATTR])
def test_a_stale_handle_is_a_move(gate: NfsGate, procedure: int) -> None:
    with NfsClientExport(_definition(gate)) as export:
        file = export.open_read("vm/vm-flat.vmdk")
        gate.refuse(Rule("vm-flat.vmdk", NFS3ERR_STALE, procedures=frozenset({procedure})))
        for _ in range(2):
            with pytest.raises(VmMovedError, match="vm-flat"):
                _ = file.read_into(0, bytearray(9)) if procedure == READ else export.stat("vm/vm-flat.vmdk")
        gate.clear()
        assert len(_read(export, "vm/vm-flat.vmdk")) == 4000


def test_a_cut_connection_is_made_again(gate: NfsGate) -> None:
    with NfsClientExport(_definition(gate)) as export:
        file = export.open_read("vm/vm-flat.vmdk")
        gate.cut()
        buffer = bytearray(4)
        file.read_into(0, buffer)
        assert buffer == b"disk"


def test_a_busy_filer_is_busy(gate: NfsGate) -> None:
    with NfsClientExport(_definition(gate)) as export:
        file = export.open_read("vm/vm-flat.vmdk")
        gate.refuse(Rule("vm-flat.vmdk", NFS3ERR_JUKEBOX))
        with pytest.raises(BusyError, match="later"):
            file.read_into(0, bytearray(4))


def test_a_watcher_sees_each_call_and_its_answer_and_both_wait_for_it(gate: NfsGate) -> None:
    seen: list[Passing] = []
    gate.watcher = seen.append
    with NfsClientExport(_definition(gate)) as export:
        _read(export, "vm/vm-flat.vmdk")
    reads = [item for item in seen if item.procedure == READ and item.name == "vm-flat.vmdk"]
    assert [item.answered for item in reads] == [False, True]
    assert reads[0].length_bytes >= reads[1].length_bytes == 4000
    assert {item.client_port for item in reads} == {reads[0].client_port} != {0}
    assert any(item.procedure == LOOKUP and item.name == "vm-flat.vmdk" for item in seen)
    go_on, waits = threading.Event(), threading.Event()

    def hold(passing: Passing) -> None:
        if passing.procedure == READ and not passing.answered:
            waits.set()
            go_on.wait(10)

    gate.watcher = hold
    with NfsClientExport(_definition(gate)) as export, ThreadPoolExecutor(1) as pool:
        reading = pool.submit(_read, export, "vm/vm.vmx")
        assert waits.wait(10)
        assert not reading.done()
        go_on.set()
        assert reading.result(10) == b"text"
