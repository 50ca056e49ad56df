"""Goal: a snapshot is let go when it costs too much room on any datastore of its VM, or was held too long."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from activities.hold import check_hold
from safehaul.errors import PolicyError
from safehaul.messages.inventory import NasVolume, VmDisk
from safehaul.messages.steps import VmRef
from safehaul.messages.vm import VmOptions

VM = VmRef(job_id="j", vcenter="vc", vc_guid="vc.1", name="web", moref="vm-1", node="n1", media_agent="ma")
GIB = 2**30
OPTIONS = VmOptions(min_free_bytes=10 * GIB, max_hold_s=3600)


def _disk(key: int, path: str, *parents: str) -> VmDisk:
    return VmDisk(key=key, label=f"disk {key}", capacity_bytes=1, path=path, parent_paths=list(parents))


DISKS = [
    _disk(2000, "[gold] web/web-000001.vmdk", "[silver] web/web.vmdk"),
    _disk(2001, "[bronze] web/web_1.vmdk"),
    _disk(2002, ""),
]


def _check(free_gib: dict[str, int] | None = None, held: timedelta = timedelta(minutes=1)) -> None:
    free = {"gold": 20, "silver": 20, "bronze": 20, "other": 0} | (free_gib or {})
    volumes = {
        name: NasVolume(datastore=name, moref=name, type="NFS", free_bytes=size * GIB)
        for name, size in free.items()
    }
    check_hold(VM, OPTIONS, datetime.now(UTC) - held, DISKS, volumes)


def test_room_on_every_datastore_of_the_vm_and_time_left_is_fine() -> None:
    _check()
    _check({"gold": 10})
    check_hold(VM, OPTIONS, datetime.now(UTC), DISKS, {})


@pytest.mark.parametrize("name", ["gold", "silver", "bronze"])
def test_any_datastore_of_any_disk_counts_whichever_is_read(name: str) -> None:
    with pytest.raises(
        PolicyError,
        match=rf"'{name}' has 9,663,676,416 bytes free and min_free_bytes is 10,737,418,240: the snapshot",
    ):
        _check({name: 9})


def test_a_snapshot_that_was_held_too_long_is_let_go() -> None:
    with pytest.raises(PolicyError, match=r"held for 36\d\d s and max_hold_s is 3600: it is removed"):
        _check(held=timedelta(seconds=3601))
