"""Goal: a disk filter selects exactly the disks that it describes, and each other disk has its reason."""

from __future__ import annotations

from typing import Any

import pytest

from safehaul.disk_filters import choose, why_deselected
from safehaul.messages.disks import DiskCriteria, DiskSelection
from safehaul.messages.inventory import VmDisk

GIB = 2**30
DISKS = [
    VmDisk(key=2000, label="Hard disk 1", capacity_bytes=40 * GIB, path="[nas-1] web/web.vmdk", controller_key=1000),
    VmDisk(
        key=2001,
        label="Hard disk 2",
        capacity_bytes=2048 * GIB,
        # On a redo log of another directory: its base says where the disk is.
        path="[nas-1] snapshots/web_1-000002.vmdk",
        parent_paths=["[nas-1] snapshots/web_1-000001.vmdk", "[scratch] web/web_1.vmdk"],
        controller_key=1000,
        unit_number=1,
    ),
    VmDisk(
        key=2016,
        label="Büro",
        capacity_bytes=GIB,
        path="[nas-2] web/Swap/pagefile.vmdk",
        controller_key=1001,
        unit_number=0,
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("criteria", "keys"),
    [
        ({"label": "Hard disk 2"}, [2001]),
        ({"label": "hard disk *"}, []),
        ({"label": "hard disk *", "ignore_case": True}, [2000, 2001]),
        ({"label": "Bu\u0308ro"}, [2016]),
        ({"controller_key": 1001}, [2016]),
        ({"controller_key": 1000, "unit_number": 1}, [2001]),
        ({"unit_number": 0}, [2000, 2016]),
        ({"datastore": "nas-*"}, [2000, 2016]),
        ({"datastore": "scratch"}, [2001]),
        ({"file": "web/web*.vmdk"}, [2000, 2001]),
        ({"file": "*pagefile*"}, [2016]),
        ({"file": "*-00000?.vmdk"}, []),
        ({"min_size_bytes": 40 * GIB}, [2000, 2001]),
        ({"max_size_bytes": 40 * GIB}, [2000, 2016]),
        ({"min_size_bytes": 2 * GIB, "max_size_bytes": 100 * GIB}, [2000]),
        ({"label": "Hard *", "datastore": "nas-1"}, [2000]),
        ({"label": "Hard *", "datastore": "nas-2"}, []),
    ],
)
def test_a_filter_fits_what_it_says_and_every_key_must_fit(criteria: dict[str, Any], keys: list[int]) -> None:
    one = [DiskCriteria(**criteria)]
    assert [disk.key for disk in choose(DISKS, DiskSelection(include=one)).selected] == keys
    # The same words exclude exactly what they include.
    excluded = choose(DISKS, DiskSelection(exclude=one)).deselected
    assert [disk.key for disk, _ in excluded] == keys


def test_several_filters_are_alternatives_and_an_exclusion_wins() -> None:
    selection = DiskSelection(
        include=[DiskCriteria(label="Hard disk *"), DiskCriteria(controller_key=1001)],
        exclude=[DiskCriteria(min_size_bytes=1024 * GIB)],
    )
    choice = choose(DISKS, selection)
    assert [disk.key for disk in choice.selected] == [2000, 2016]
    ((disk, reason),) = choice.deselected
    assert disk.key == 2001
    assert reason == f"not selected: excluded by disk filter size >= {1024 * GIB} bytes"
    assert not choice.nothing_left


def test_without_filters_every_disk_is_selected() -> None:
    assert DiskSelection().everything
    assert choose(DISKS, DiskSelection()).deselected == []


def test_nothing_left_is_said_with_each_disk_and_what_to_change() -> None:
    choice = choose(DISKS, DiskSelection(include=[DiskCriteria(label="x")]))
    assert choice.nothing_left
    told = choice.complaint("web")
    assert "none of the 3 disks of VM 'web'" in told
    assert "Hard disk 1: not selected: no disk filter fits (label 'x')" in told
    assert "exclude_disks" in told
    # A VM that has no disk at all is another matter.
    assert not choose([], DiskSelection(include=[DiskCriteria(label="x")])).nothing_left


def test_reasons_are_bounded_however_many_filters_there_are() -> None:
    many = DiskSelection(include=[DiskCriteria(label="x" * 250) for _ in range(32)])
    assert len(why_deselected(DISKS[0], many)) < 500
    assert len(choose(DISKS, many).complaint("web")) < 1000


def test_a_hostile_path_is_only_compared() -> None:
    disk = VmDisk(key=1, label="", capacity_bytes=1, path="no datastore path ]] ../..")
    assert choose([disk], DiskSelection(exclude=[DiskCriteria(datastore="nas-1")])).selected == [disk]
