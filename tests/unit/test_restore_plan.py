"""Goal: a restore in place replaces each disk by a new file at its place, touches no other, and refuses the rest."""

from __future__ import annotations

from typing import Any

import pytest

from activities.restore_plan import changes, must_be_a_vm, must_be_replaceable, new_name, replacements
from safehaul.errors import PolicyError, UnsupportedError
from safehaul.media.manifest import Manifest
from safehaul.messages.hardware import VmController, VmHardware
from safehaul.messages.inventory import DiskBacking, SnapshotNode, VmDisk, VmRecord, VmState
from safehaul.messages.restore import RestoreKind, RestorePlan, RestoreRef, RestoreSettings
from safehaul.nas.paths import parse_datastore_path
from safehaul.vmdk.descriptor import parse_descriptor
from safehaul.vmdk.new_disk import flat_descriptor

REF = RestoreRef(
    settings=RestoreSettings(
        kind=RestoreKind.IN_PLACE,
        vc_guid="vc.1",
        backup_id="b",
        media_agent="ma",
        vcenter="vc",
        access_nodes=["n"],
        name="web",
    ),
    node="n",
    owner="01a2124b-fefb-78cd-b0dd-c7dd3306aa4d",
)
HARDWARE = VmHardware(name="web", controllers=[VmController(key=1000, type="pvscsi", bus=0)])


def disk(number: int, **changes: Any) -> VmDisk:
    values = {
        "key": 2000 + number,
        "label": f"Hard disk {number + 1}",
        "capacity_bytes": 512,
        "path": f"[ds] web/web_{number}.vmdk",
        "controller_key": 1000,
        "unit_number": number,
        "uuid": f"uuid-{number}",
    }
    return VmDisk.model_validate(values | changes)


def manifest(*disks: VmDisk, hardware: dict[str, Any] | None = None) -> Manifest:
    stored = [item.model_dump() | {"chunk_size_bytes": 1, "page_roots": []} for item in disks]
    return Manifest.model_validate(
        {
            **dict.fromkeys(("repository_id", "backup_id", "vc_guid", "vm_name", "vm_group"), "x"),
            **dict.fromkeys(("job_id", "session_id", "point_in_time", "opened", "committed"), "x"),
            "snapshot": {},
            "hardware": hardware
            if hardware is not None
            else {"name": "web", "disks": [item.model_dump() for item in disks]},
            "disks": stored,
            "files": [],
            "skipped": [],
            "idx": [],
            "packs": 0,
        }
    )


def state(*disks: VmDisk, **changes: Any) -> VmState:
    values = {
        "moref": "vm-1",
        "consolidation_needed": False,
        "disks": list(disks),
        "vmx_path": "[ds] web/web.vmx",
    }
    return VmState.model_validate(values | changes)


def plan_of(stored: Manifest, now: VmState) -> tuple[RestorePlan, list[str]]:
    taken = {(item.controller_key, item.unit_number) for item in now.disks}
    disks, warnings = replacements(REF, stored, HARDWARE, now, taken)
    return RestorePlan(directory="[ds] web", disks=disks), warnings


def test_each_disk_is_replaced_at_its_place_by_a_file_beside_it() -> None:
    stored = manifest(disk(0), disk(1, path="[other] x/x.vmdk"))
    now = state(disk(0), disk(1, path="[other] x/x.vmdk"), disk(2))
    plan, warnings = plan_of(stored, now)
    assert [(item.controller_key, item.unit_number, item.replaces, item.uuid) for item in plan.disks] == [
        (1000, 0, "[ds] web/web_0.vmdk", "uuid-0"),
        (1000, 1, "[other] x/x.vmdk", "uuid-1"),
    ]
    assert [item.path for item in plan.disks] == [
        "[ds] web/web_0-restored-2000-c7dd3306aa4d.vmdk",
        "[other] x/x-restored-2001-c7dd3306aa4d.vmdk",
    ]
    assert [change.old_path for change in changes(plan)] == [item.replaces for item in plan.disks]
    assert warnings == ["Hard disk 3 ([ds] web/web_2.vmdk) is not in the backup: it stays as it is"]


def test_a_disk_that_moved_to_another_place_is_known_by_its_uuid() -> None:
    moved = disk(0, key=2005, unit_number=5)
    plan, _ = plan_of(manifest(disk(0)), state(moved, disk(1, key=2000, unit_number=0)))
    assert (plan.disks[0].unit_number, plan.disks[0].replaces) == (5, moved.path)


def test_a_uuid_that_two_disks_share_says_nothing() -> None:
    plan, _ = plan_of(
        manifest(disk(1, uuid="same")), state(disk(0, uuid="same"), disk(1, uuid="same"), disk(2))
    )
    assert plan.disks[0].replaces == "[ds] web/web_1.vmdk"


def test_a_disk_that_is_gone_comes_back_to_its_place_if_that_is_free() -> None:
    plan, _ = plan_of(manifest(disk(0), disk(1)), state(disk(0)))
    assert (plan.disks[1].unit_number, plan.disks[1].replaces) == (1, "")
    assert plan.disks[1].path == "[ds] web/web-restored-2001-c7dd3306aa4d.vmdk"
    other = disk(7, key=2007, unit_number=1)
    with pytest.raises(PolicyError, match="neither the disk Hard disk 2 of the backup nor its place 1000:1"):
        plan_of(manifest(disk(0), disk(1)), state(disk(0), other))
    with pytest.raises(PolicyError, match="1003:0"):
        plan_of(manifest(disk(1, controller_key=1003, unit_number=0)), state(disk(0)))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"mode": "independent_persistent"}, "independent_persistent"),
        ({"backing": DiskBacking.RDM_PHYSICAL}, "rdm-physical"),
        ({"sharing": "sharingMultiWriter"}, "shared"),
        ({"key_id": "k"}, "encrypted"),
    ],
)
def test_a_disk_that_is_no_ordinary_one_now_is_not_replaced(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        plan_of(manifest(disk(0)), state(disk(0, **changed)))


def test_a_second_restore_does_not_pile_up_names() -> None:
    once = new_name(REF, "web.vmdk", 2000)
    assert new_name(REF, once, 2000) == once


@pytest.mark.parametrize("name", ['evil"\nRW 1 FLAT "x.vmdk', "%2f%2e%2e.vmdk", "ü" * 200 + ".vmdk", ".vmdk"])
def test_a_hostile_or_long_name_of_an_old_disk_makes_a_plain_new_one(name: str) -> None:
    made = new_name(REF, name, 2000)
    assert str(parse_datastore_path(f"[ds] web/{made}")) == f"[ds] web/{made}"
    extent = made.removesuffix(".vmdk") + "-flat.vmdk"
    parsed = parse_descriptor(flat_descriptor(extent, 512), f"[ds] web/{made}")
    assert [item.name for item in parsed.extents] == [extent]


def test_a_restored_disk_keeps_the_uuid_that_the_guest_knows() -> None:
    uuid = "6000C290-1122-3344-5566-778899aabbcc"
    parsed = parse_descriptor(flat_descriptor("x-flat.vmdk", 512, uuid=uuid), "[ds] x/x.vmdk")
    assert parsed.database["ddb.uuid"] == "60 00 c2 90 11 22 33 44-55 66 77 88 99 aa bb cc"
    assert b"ddb.uuid" not in flat_descriptor("x-flat.vmdk", 512, uuid='60"00')


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"power_state": "poweredOn"}, "shut it down"),
        ({"power_state": "suspended"}, "is suspended"),
        ({"snapshots": [SnapshotNode(moref="s", name="s")]}, "1 snapshots"),
        ({"consolidation_needed": True}, "consolidate"),
        ({"running_snapshot_tasks": ["task-1"]}, "consolidate"),
    ],
)
def test_a_vm_that_must_be_left_alone_is_refused(changed: dict[str, Any], says: str) -> None:
    vm = VmRecord(vc_guid="vc.1", vcenter="vc", moref="vm-1", name="web")
    must_be_replaceable(vm, state(disk(0)))
    with pytest.raises(PolicyError, match=says):
        must_be_replaceable(vm, state(disk(0), **changed))


def test_templates_and_vms_under_other_products_are_refused() -> None:
    vm = VmRecord(vc_guid="vc.1", vcenter="vc", moref="vm-1", name="web")
    with pytest.raises(UnsupportedError, match="template"):
        must_be_a_vm(vm.model_copy(update={"template": True}))
    with pytest.raises(PolicyError, match="another product"):
        must_be_a_vm(vm.model_copy(update={"disabled_methods": ["ReconfigVM_Task"]}))


def test_a_backup_without_the_vms_configuration_is_told() -> None:
    with pytest.raises(UnsupportedError, match="does not hold the VM's configuration"):
        plan_of(manifest(disk(0), hardware={}), state(disk(0)))
