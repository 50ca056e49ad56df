"""Goal: reconfigure, power, register, unregister, Storage vMotion and destroy act on true files, and refuse
rightly.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.esx.api import AddDisk, Fault, ReconfigSpec, Settings, Task, TaskStarted
from lab.esx.descriptor import Descriptor
from lab.esx.home import parse_lines, render_lines
from lab.esx.hosts import Hosts
from lab.esx.paths import HostError
from lab.guests.checker import check_point_in_time
from lab.site import DatastoreSpec, DiskSpec, Site, SnapshotSpec, VmSpec, build, demo_site

MIB = 1024 * 1024


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    site = Site(
        folders=["prod/web"],
        datastores=[
            DatastoreSpec(name="gold", type="NFS", remote_path="/exports/gold"),
            DatastoreSpec(name="silver", type="NFS41"),
        ],
        vms=[
            VmSpec(
                name="on",
                datastore="gold",
                disks=[DiskSpec(size_bytes=MIB), DiskSpec(size_bytes=MIB + 512)],
                snapshots=[SnapshotSpec(name="user's", writes_after=20)],
                guest_rate=500,
            ),
            VmSpec(
                name="off",
                datastore="gold",
                power_state="poweredOff",
                annotation="with a note",
                disks=[DiskSpec(size_bytes=MIB, content="random"), DiskSpec(size_bytes=MIB, content="zero")],
            ),
            VmSpec(name="old", datastore="gold", hardware_version="vmx-04", power_state="poweredOff"),
        ],
        settings=Settings(default_duration_s=0.0),
    )
    build(site, tmp_path / "lab")
    running = Hosts(tmp_path / "lab")
    running.start()
    yield running
    running.stop()


def finish(hosts: Hosts, started: TaskStarted) -> Task:
    task = hosts.wait_task(started.task, 20)
    assert task.state == "success", task.error
    return task


def fault(hosts: Hosts, started: TaskStarted) -> Fault:
    task = hosts.wait_task(started.task, 20)
    assert task.error is not None
    return task.error


def register(hosts: Hosts, path: str, name: str | None = None) -> TaskStarted:
    return hosts.register(
        path, name=name, folder=None, resource_pool=None, host=None, as_template=False, user="t"
    )


def copy_vm(hosts: Hosts, source: str, name: str, **changes: str) -> str:
    """A copy of a VM's directory under another name; the datastore path of its .vmx."""
    home = hosts.world.local(f"[gold] {source}")
    target = home.with_name(name)
    shutil.copytree(home, target)
    values = parse_lines(target / f"{source}.vmx") | {"displayName": name} | changes
    (target / f"{source}.vmx").write_bytes(render_lines(values))
    return f"[gold] {name}/{source}.vmx"


def test_a_copied_vm_can_be_registered_and_has_the_copys_disks(hosts: Hosts) -> None:
    old = hosts.world.vm("off")
    moref = finish(hosts, register(hosts, copy_vm(hosts, "off", "copy"))).result
    vm = hosts.world.vm("copy")
    assert vm.moref == moref != old.moref
    assert vm.instance_uuid != old.instance_uuid  # vCenter gives a new one when it is taken
    assert (vm.annotation, vm.power_state, vm.hardware.version) == ("with a note", "poweredOff", "vmx-19")
    assert [disk.chain[0].path for disk in vm.hardware.disks] == [
        "[gold] copy/off.vmdk",
        "[gold] copy/off_1.vmdk",
    ]
    assert [disk.capacity_bytes for disk in vm.hardware.disks] == [MIB, MIB]
    assert vm.hardware.nics[0].network == old.hardware.nics[0].network
    finish(hosts, hosts.create_snapshot("copy", "s", "", memory=False, quiesce=False, user="t"))


def test_a_new_identity_in_the_vmx_is_kept(hosts: Hosts) -> None:
    wanted = "0a 0b 0c 0d 0e 0f 10 11-12 13 14 15 16 17 18 19"
    finish(hosts, register(hosts, copy_vm(hosts, "off", "copy", **{"vc.uuid": wanted})))
    assert hosts.world.vm("copy").instance_uuid == "0a0b0c0d-0e0f-1011-1213-141516171819"


def test_what_is_registered_or_broken_is_refused(hosts: Hosts) -> None:
    home = hosts.world.local("[gold] off")
    assert fault(hosts, register(hosts, "[gold] off/off.vmx")).type == "AlreadyExists"
    assert fault(hosts, register(hosts, "[gold] none/none.vmx")).type == "FileNotFound"
    assert fault(hosts, register(hosts, "[gold] ../../etc/passwd.vmx")).type == "InvalidDatastorePath"
    assert fault(hosts, register(hosts, "[nowhere] a/a.vmx")).type in {
        "FileNotFound",
        "ManagedObjectNotFound",
    }
    assert fault(hosts, register(hosts, copy_vm(hosts, "off", "twin"), "off")).type == "DuplicateName"
    path = copy_vm(hosts, "off", "nodisk")
    (home.with_name("nodisk") / "off_1-flat.vmdk").unlink()
    assert fault(hosts, register(hosts, path)).type == "FileNotFound"
    path = copy_vm(hosts, "off", "short")
    os.truncate(home.with_name("short") / "off-flat.vmdk", 512)
    assert fault(hosts, register(hosts, path)).type == "InvalidDiskFormat"
    path = copy_vm(hosts, "off", "escape", **{"scsi0:0.fileName": "../../off.vmdk"})
    assert fault(hosts, register(hosts, path)).type == "InvalidDatastorePath"
    path = copy_vm(hosts, "off", "borrow", **{"scsi0:0.fileName": "/vmfs/volumes/gold/off/off.vmdk"})
    assert fault(hosts, register(hosts, path)).type == "FileLocked"
    path = copy_vm(hosts, "off", "number", memSize="much")
    assert fault(hosts, register(hosts, path)).type == "InvalidVmConfig"
    assert {vm.name for vm in hosts.world.state().vms} == {"on", "off", "old"}


def test_a_vm_leaves_and_returns_with_its_files(hosts: Hosts) -> None:
    with pytest.raises(HostError, match="InvalidPowerState"):
        hosts.unregister("on", user="t")
    hosts.unregister("off", user="t")
    assert "off" not in {vm.name for vm in hosts.world.state().vms}
    assert hosts.world.local("[gold] off/off-flat.vmdk").exists()
    finish(hosts, register(hosts, "[gold] off/off.vmx"))
    assert hosts.world.vm("off").hardware.disks[0].capacity_bytes == MIB


def test_destroy_deletes_the_files_and_needs_a_vm_that_is_off(hosts: Hosts) -> None:
    with pytest.raises(HostError, match="InvalidPowerState"):
        hosts.destroy("on", user="t")
    finish(hosts, hosts.destroy("off", user="t"))
    assert not hosts.world.local("[gold] off").exists()
    with pytest.raises(HostError, match="ManagedObjectNotFound"):
        hosts.world.vm("off")


def test_power_starts_and_stops_the_guest(hosts: Hosts) -> None:
    finish(hosts, hosts.power_off("on", user="t"))
    rest = hosts.runtime("on").sequence
    time.sleep(0.1)
    assert hosts.runtime("on").sequence == rest == hosts.world.vm("on").guest_sequence
    assert fault(hosts, hosts.power_off("on", user="t")).type == "InvalidPowerState"
    generation = hosts.world.vm("on").guest_generation
    finish(hosts, hosts.power_on("on", user="t"))
    time.sleep(0.2)
    assert hosts.runtime("on").sequence > rest
    assert hosts.world.vm("on").guest_generation == generation + 1


def test_a_moved_vm_keeps_its_content_and_old_files_are_gone(hosts: Hosts, tmp_path: Path) -> None:
    before = hosts.world.vm("on")
    finish(hosts, hosts.relocate("on", "silver", user="t"))
    vm = hosts.world.vm("on")
    assert vm.vmx_path == "[silver] on/on.vmx"
    assert vm.datastore == hosts.world.datastore("silver").moref
    assert not hosts.world.local("[gold] on").exists()
    paths = [link.path for disk in vm.hardware.disks for link in disk.chain]
    assert all(path.startswith("[silver] on/") for path in paths)
    assert vm.snapshots[0].hardware.disks[0].chain[0].path == "[silver] on/on.vmdk"
    assert vm.instance_uuid == before.instance_uuid
    time.sleep(0.1)
    images = [tmp_path / f"{disk.key}.raw" for disk in vm.hardware.disks]
    for disk, image in zip(vm.hardware.disks, images, strict=True):
        hosts.frozen_digest(vm.snapshots[0].moref, disk.key, image)
    check_point_in_time(images).require(vm.snapshots[0].frozen_sequence)
    assert hosts.runtime("on").sequence > before.guest_sequence
    assert hosts.check_frozen() == []
    with pytest.raises(HostError, match="InvalidDatastore"):
        hosts.relocate("on", "silver", user="t")


def test_a_disk_is_attached_and_taken_off(hosts: Hosts) -> None:
    home = hosts.world.local("[gold] off")
    (home / "more-flat.vmdk").write_bytes(bytes(512 * 9))
    more = Descriptor(content_id="00000001", create_type="vmfs", sectors=9, extent_name="more-flat.vmdk")
    (home / "more.vmdk").write_text(more.render())
    add = AddDisk(path="[gold] off/more.vmdk", controller_key=1001, mode="independent_persistent")
    finish(hosts, hosts.reconfigure("off", ReconfigSpec(add_disks=[add]), user="t"))
    disk = hosts.world.vm("off").hardware.disks[-1]
    assert (disk.key, disk.controller_key, disk.unit_number, disk.capacity_bytes) == (2002, 1001, 0, 512 * 9)
    assert parse_lines(home / "off.vmx")["scsi1:0.fileName"] == "more.vmdk"
    (home / "free.vmdk").write_text(more.render().replace("more-flat", "free-flat"))
    (home / "free-flat.vmdk").write_bytes(bytes(512 * 9))
    taken = ReconfigSpec(add_disks=[AddDisk(path="[gold] off/free.vmdk", unit_number=0)])
    assert fault(hosts, hosts.reconfigure("off", taken, user="t")).type == "InvalidDeviceSpec"
    twice = ReconfigSpec(add_disks=[AddDisk(path="[gold] off/more.vmdk")])
    assert fault(hosts, hosts.reconfigure("off", twice, user="t")).type == "FileLocked"
    stolen = ReconfigSpec(add_disks=[AddDisk(path="[gold] off/off.vmdk")])
    assert fault(hosts, hosts.reconfigure("on", stolen, user="t")).type == "FileLocked"
    finish(hosts, hosts.reconfigure("off", ReconfigSpec(remove_disks=[2002], delete_files=True), user="t"))
    assert [disk.key for disk in hosts.world.vm("off").hardware.disks] == [2000, 2001]
    assert not (home / "more.vmdk").exists()
    gone = ReconfigSpec(remove_disks=[2002])
    assert fault(hosts, hosts.reconfigure("off", gone, user="t")).type == "InvalidDeviceSpec"


def test_settings_change_and_show_in_the_vmx(hosts: Hosts) -> None:
    before = hosts.world.vm("off").change_version
    spec = ReconfigSpec(annotation="new", extra_config={"guestinfo.x": "1"}, change_tracking_enabled=True)
    finish(hosts, hosts.reconfigure("off", spec, user="t"))
    values = parse_lines(hosts.world.local("[gold] off/off.vmx"))
    assert (values["annotation"], values["guestinfo.x"], values["ctkEnabled"]) == ("new", "1", "TRUE")
    assert hosts.world.vm("off").change_version != before
    finish(hosts, hosts.reconfigure("off", ReconfigSpec(extra_config={"guestinfo.x": ""}), user="t"))
    assert "guestinfo.x" not in parse_lines(hosts.world.local("[gold] off/off.vmx"))
    old = hosts.reconfigure("old", ReconfigSpec(change_tracking_enabled=True), user="t")
    assert fault(hosts, old).type == "NotSupported"


def test_a_directory_listing_stays_in_its_datastore(hosts: Hosts) -> None:
    assert {"off.vmx", "off-flat.vmdk"} <= {entry.path for entry in hosts.list_directory("[gold] off/")}
    assert [entry.path for entry in hosts.list_directory("[gold]") if entry.directory] == ["off", "old", "on"]
    for path in ("[gold] ..", "[gold] off/../..", "nonsense"):
        with pytest.raises(HostError, match="InvalidDatastorePath"):
            hosts.list_directory(path)


def test_the_demo_site_has_what_the_demo_shows(tmp_path: Path) -> None:
    site = demo_site(8)
    build(site, tmp_path / "lab")
    hosts = Hosts(tmp_path / "lab")
    vms = hosts.world.state().vms
    hosts.stop()
    assert any(len(vm.guest_disks) == 2 and len(vm.hardware.disks) == 2 for vm in vms)
    assert any(vm.power_state == "poweredOff" for vm in vms)
    assert any(vm.snapshots for vm in vms)
    assert any(
        {disk.mode for disk in vm.hardware.disks} == {"persistent", "independent_persistent"} for vm in vms
    )
    assert any(disk.content == "ext4" for vm in vms for disk in vm.hardware.disks)
    assert any(not vm.name.isascii() and " " in vm.name for vm in vms)
    assert any(disk.capacity_bytes % MIB for vm in vms for disk in vm.hardware.disks)
    assert {datastore.type for datastore in site.datastores} == {"NFS", "NFS41", "VMFS"}
    assert len(demo_site(12).vms) == 12


def test_a_lab_is_not_built_over_another(tmp_path: Path) -> None:
    build(demo_site(0), tmp_path / "lab")
    with pytest.raises(FileExistsError):
        build(demo_site(0), tmp_path / "lab")
    with pytest.raises(FileNotFoundError, match="no lab"):
        Hosts(tmp_path / "nothing")
