"""A restored VM's .vmx: an identity of its own, nothing of the old place, disks where they were."""

from __future__ import annotations

from uuid import UUID

import pytest

from safehaul.errors import UnsupportedError
from safehaul.messages.hardware import VmController, VmHardware, VmNic
from safehaul.messages.inventory import VmDisk
from safehaul.vmx import build_vmx, parse_vmx

BIOS, INSTANCE = UUID(int=0x11), UUID(int=0x22)


def _hardware(**changes: object) -> VmHardware:
    values: dict[str, object] = {
        "name": "web",
        "guest_id": "otherLinux64Guest",
        "hardware_version": "vmx-19",
        "cpus": 2,
        "memory_mb": 512,
        "uuid_bios": "old",
        "instance_uuid": "old",
        "controllers": [
            VmController(key=1000, type="pvscsi", bus=0, sharing="virtualSharing"),
            VmController(key=31000, type="nvme", bus=1),
        ],
        "disks": [
            VmDisk(
                key=2000,
                label="Hard disk 1",
                capacity_bytes=512,
                path="[a] x/x-000001.vmdk",
                controller_key=1000,
            ),
            VmDisk(
                key=2001,
                label="Hard disk 2",
                capacity_bytes=512,
                path="[a] x/y.vmdk",
                controller_key=31000,
                unit_number=3,
            ),
        ],
        "nics": [VmNic(key=4000, mac="00:50:56:00:00:01", network="VM Network")],
        "extra_config": {
            "uuid.bios": "old",
            "guestinfo.secret": "x",
            "tools.syncTime": "FALSE",
            "bad key": "x",
        },
    }
    return VmHardware.model_validate(values | changes)


def _build(hardware: VmHardware | None = None, **options: object) -> dict[str, str]:
    arguments: dict[str, object] = {
        "name": "web restored",
        "uuid_bios": BIOS,
        "instance_uuid": INSTANCE,
        "disk_files": {2000: "vm.vmdk", 2001: "vm_1.vmdk"},
    }
    return parse_vmx(build_vmx(hardware or _hardware(), **(arguments | options)))  # type: ignore[arg-type]  # a test's keywords


def test_the_identity_is_new() -> None:
    made = _build()
    assert made["vc.uuid"] == "00 00 00 00 00 00 00 00-00 00 00 00 00 00 00 22"
    assert made["uuid.bios"].endswith("11")
    assert made["uuid.action"] == "keep"
    assert made["displayname"] == "web restored"


def test_disks_stand_where_they_were_and_name_the_flat_descriptors() -> None:
    made = _build()
    assert made["scsi0:0.filename"] == "vm.vmdk"
    assert made["nvme1:3.filename"] == "vm_1.vmdk"
    assert made["scsi0.sharedbus"] == "none"
    assert "000001" not in str(made)


def test_a_disk_that_the_backup_lacks_is_left_out() -> None:
    made = _build(disk_files={2000: "vm.vmdk"})
    assert "nvme1:3.filename" not in made


def test_network_cards_are_not_connected_and_get_new_addresses() -> None:
    made = _build()
    assert made["ethernet0.startconnected"] == "FALSE"
    assert made["ethernet0.addresstype"] == "vpx"
    assert "ethernet0.address" not in made
    assert "ethernet0.generatedaddress" not in made


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("manual", {"addresstype": "static", "address": "MAC"}),
        ("Assigned", {"addresstype": "vpx", "generatedaddress": "MAC"}),
        ("generated", {"addresstype": "static", "address": "MAC", "checkmacaddress": "FALSE"}),
    ],
)
def test_kept_addresses_are_written_so_that_esxi_accepts_them(kind: str, wanted: dict[str, str]) -> None:
    mac = "00:50:56:00:00:01"
    nic = VmNic(key=4000, mac=mac, network="VM Network", address_type=kind)
    made = _build(_hardware(nics=[nic]), keep_mac=True)
    fields = ("addresstype", "address", "generatedaddress", "checkmacaddress")
    found = {field: made[f"ethernet0.{field}"] for field in fields if f"ethernet0.{field}" in made}
    assert found == {field: mac if value == "MAC" else value for field, value in wanted.items()}


def test_a_card_stands_on_the_network_that_it_is_mapped_to() -> None:
    nics = [VmNic(key=4000, network="VM Network"), VmNic(key=4001, network="Backup")]
    made = _build(_hardware(nics=nics), networks={"VM Network": "Isolated"})
    assert (made["ethernet0.networkname"], made["ethernet1.networkname"]) == ("Isolated", "Backup")


def test_what_belongs_to_the_old_place_is_dropped() -> None:
    made = _build()
    assert made["tools.synctime"] == "FALSE"
    assert "guestinfo.secret" not in made
    assert "bad key" not in made
    assert "old" not in made.values()


def test_untrusted_text_cannot_write_a_line_of_its_own() -> None:
    evil = 'x"\nscsi0:0.fileName = "/etc/passwd'
    data = build_vmx(
        _hardware(annotation=evil),
        name=evil,
        uuid_bios=BIOS,
        instance_uuid=INSTANCE,
        disk_files={2000: "vm.vmdk"},
    )
    made = parse_vmx(data)
    assert made["scsi0:0.filename"] == "vm.vmdk"
    assert made["annotation"] == made["displayname"] == evil
    assert data.count(b"fileName") == data.count(b"scsi0:0.fileName = |22".replace(b"|22", b'"vm.vmdk"')) + 2


def test_a_disk_on_an_unknown_controller_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="controller 1000"):
        _build(_hardware(controllers=[]))
