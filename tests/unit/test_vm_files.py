"""Of a VM's files only what is left out by design may be missing in silence; everything else is told."""

from __future__ import annotations

import pytest

from safehaul.messages.inventory import VmFile
from safehaul.vm_files import MAX_FILE_BYTES, MAX_FILES, MAX_SKIPPED, bounded, choose, skipped

LIMIT = 1 << 30


def file(name: str, type_: str = "", size_bytes: int = 10) -> VmFile:
    return VmFile(path=f"[ds] vm/{name}", type=type_, size_bytes=size_bytes)


def names(files: list[VmFile]) -> list[str]:
    return [item.path.removeprefix("[ds] vm/") for item in files]


@pytest.mark.parametrize(
    "left",
    [
        file("vm-flat.vmdk", "diskExtent"),
        file("vm-000001-delta.vmdk", "diskExtent"),
        file("vm-000001-SESPARSE.vmdk"),
        file("vm-ctk.vmdk", "changeTrackingInfo"),
        file("vm_1-rdmp.vmdk"),
        file("vm-1a2b.vswp", "swap"),
        file("vmx-vm-1.vswp", "uwswap"),
        file("vm-Snapshot1.vmem", "snapshotMemory"),
        file("vm-Snapshot1.vmsn", "snapshotData", MAX_FILE_BYTES + 1),
        file("vm-2.vmss", "suspend"),
        file("vm.vmx.lck"),
        file(".lck-0100000000000000"),
        file("vmware-7.log", "log", MAX_FILE_BYTES + 1),
        file("vm.scoreboard", "stat"),
        file("vmware-vmx-zdump.000", "core"),
    ],
    ids=lambda item: item.path,
)
def test_what_a_restore_does_not_need_is_left_out_by_design(left: VmFile) -> None:
    chosen = choose([left], LIMIT)
    assert (chosen.wanted, chosen.skipped) == ([], [])


def test_every_other_file_is_wanted_whatever_its_name() -> None:
    wanted = ["vm.vmx", "vm.nvram", "vm.vmxf", "vm.vmdk", "vm.vmsd", "vss-manifest1.zip", "vm-1.vmsn"]
    wanted += ["vm.dsv", "something.new", "vmware.log"]
    assert sorted(names(choose([file(name) for name in wanted], LIMIT).wanted)) == sorted(wanted)


def test_a_file_that_is_too_large_is_skipped_with_its_reason() -> None:
    chosen = choose([file("vm.nvram", "nvram", MAX_FILE_BYTES + 1), file("vm.vmx")], LIMIT)
    assert names(chosen.wanted) == ["vm.vmx"]
    assert [(item.path, item.type) for item in chosen.skipped] == [("[ds] vm/vm.nvram", "nvram")]
    assert "67,108,865 bytes" in chosen.skipped[0].reason


def test_a_path_that_leaves_the_datastore_is_told_and_never_opened() -> None:
    chosen = choose([VmFile(path="[ds] ../../etc/passwd", size_bytes=1)], LIMIT)
    assert not chosen.wanted
    assert len(chosen.skipped) == 1


def test_the_number_of_files_is_bounded_and_the_most_important_come_first() -> None:
    many = [file(f"extra-{number}") for number in range(MAX_FILES)]
    chosen = choose([*many, file("vm.nvram"), file("vm.vmx"), file("vmware.log", "log")], LIMIT)
    assert names(chosen.wanted)[:2] == ["vm.vmx", "vm.nvram"]
    assert len(chosen.wanted) == MAX_FILES
    assert len(chosen.skipped) == 2, "the log is left out in silence, the two last others are not"
    assert all(f"{MAX_FILES} files" in item.reason for item in chosen.skipped)


def test_what_does_not_fit_the_spool_is_skipped_and_smaller_files_still_come() -> None:
    chosen = choose([file("vm.vmx", size_bytes=60), file("vm.nvram", size_bytes=60), file("vm.vmsd")], 100)
    assert names(chosen.wanted) == ["vm.vmx", "vm.vmsd"]
    assert "spool_limit_bytes (100)" in chosen.skipped[0].reason


def test_a_list_that_would_not_fit_into_a_message_says_how_many_more() -> None:
    items = [skipped(file(f"{number}"), "gone") for number in range(MAX_SKIPPED + 7)]
    told = bounded(items)
    assert len(told) == MAX_SKIPPED + 1
    assert told[-1].path == "7 more files"
    assert bounded(items[:3]) == items[:3]


def test_descriptors_of_disks_that_are_not_in_the_backup_are_told_with_their_disk() -> None:
    """Also that of the redo log that our own snapshot has put on top; a like-named disk elsewhere is another one."""
    names_ = ["web.vmdk", "web_1.vmdk", "web_1-000001.vmdk", "web_10.vmdk"]
    chosen = choose([file(name) for name in names_], LIMIT, unread=[file("web_1.vmdk").path])
    assert sorted(names(chosen.wanted)) == ["web.vmdk", "web_10.vmdk"]
    assert chosen.skipped == []
