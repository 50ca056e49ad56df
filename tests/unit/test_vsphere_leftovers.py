"""Goal: files of our snapshot are told from files of everybody else's."""

from __future__ import annotations

from safehaul.messages.inventory import VmFile, VmState
from safehaul.vsphere.leftovers import compare


def _state(listed: list[str], named: list[str]) -> VmState:
    return VmState(
        moref="vm-1",
        consolidation_needed=False,
        listed=[VmFile(path=f"[nfs] vm/{name}") for name in listed],
        files=[VmFile(path=f"[nfs] vm/{name}") for name in named],
    )


BASE = ["vm.vmx", "vm.vmdk", "vm-flat.vmdk"]


def test_every_kind_of_snapshot_file_that_nothing_names_is_ours() -> None:
    ours = [
        "vm-000001.vmdk",
        "vm-000001-delta.vmdk",
        "vm-000002-sesparse.vmdk",
        "vm-000001-ctk.vmdk",
        "vm-Snapshot1.vmsn",
        "vm-Snapshot1.vmem",
        "vss_manifests1.zip",
    ]
    found = compare(_state(BASE, BASE), _state(BASE + ours, BASE))
    assert found.ours == sorted(f"[nfs] vm/{name}" for name in ours)


def test_a_later_snapshot_of_somebody_else_is_not_ours() -> None:
    foreign = ["vm-000002.vmdk", "vm-000002-delta.vmdk", "vm-Snapshot2.vmsn"]
    found = compare(_state(BASE, BASE), _state(BASE + foreign, BASE + foreign))
    assert found.ours == []
    assert len(found.named) == 3


def test_what_was_there_before_is_old_debt() -> None:
    debt = ["vm-000007.vmdk", "vm-000007-delta.vmdk"]
    assert compare(_state(BASE + debt, BASE), _state(BASE + debt, BASE)).ours == []


def test_logs_copies_and_lock_files_do_not_hold_a_removal_up() -> None:
    found = compare(_state(BASE, BASE), _state([*BASE, "vmware-3.log", "copy.vmdk", ".lck-3f00"], BASE))
    assert found.ours == []
    assert found.unexplained == ["[nfs] vm/copy.vmdk", "[nfs] vm/vmware-3.log"]
