"""Goal: snapshots freeze all disks at one moment, and their removal merges the right bytes into the right
file.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.esx.api import FaultRule, ReconfigSpec, Snapshot, Task, TaskStarted
from lab.esx.chains import redundant_links
from lab.esx.hosts import Hosts
from lab.esx.paths import HostError
from lab.esx.runtime import LabViolationError
from lab.guests.checker import check_point_in_time
from lab.site import DatastoreSpec, DiskSpec, Settings, Site, SnapshotSpec, VmSpec, build

MIB = 1024 * 1024
RATE = 1000


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    site = Site(
        datastores=[DatastoreSpec(name="nfs", type="NFS")],
        vms=[
            VmSpec(
                name="two disks",
                datastore="nfs",
                disks=[DiskSpec(size_bytes=2 * MIB), DiskSpec(size_bytes=MIB + 7 * 512)],
                guest_rate=RATE,
            ),
            VmSpec(
                name="mixed",
                datastore="nfs",
                disks=[
                    DiskSpec(size_bytes=MIB),
                    DiskSpec(size_bytes=MIB, mode="independent_persistent"),
                    DiskSpec(size_bytes=MIB, rdm="physicalMode"),
                ],
                guest_rate=RATE,
            ),
            VmSpec(
                name="kept",
                datastore="nfs",
                disks=[DiskSpec(size_bytes=MIB)],
                snapshots=[SnapshotSpec(name="user's", writes_after=50)],
                guest_rate=RATE,
            ),
            VmSpec(name="windows", datastore="nfs", guest_id="windows2019srv_64Guest"),
            VmSpec(name="template", datastore="nfs", template=True, power_state="poweredOff"),
            VmSpec(name="shared", datastore="nfs", bus_sharing="virtualSharing"),
        ],
        settings=Settings(default_duration_s=0.02, record_frozen=True),
    )
    build(site, tmp_path / "lab")
    running = Hosts(tmp_path / "lab")
    running.start()
    yield running
    running.stop()


def finish(hosts: Hosts, started: TaskStarted, *, fails: str | None = None) -> Task:
    task = hosts.wait_task(started.task, 20)
    assert task.state == ("error" if fails else "success"), task
    assert (task.error.type if task.error else None) == fails
    return task


def create(hosts: Hosts, vm: str, name: str) -> Snapshot:
    started = hosts.create_snapshot(vm, name, f"{name} of a test", memory=False, quiesce=False, user="t")
    moref = finish(hosts, started).result
    return next(found for found in hosts.world.vm(vm).snapshots if found.moref == moref)


def remove(hosts: Hosts, snapshot: Snapshot, *, children: bool = False, fails: str | None = None) -> Task:
    started = hosts.remove_snapshot(snapshot.moref, remove_children=children, consolidate=True, user="t")
    return finish(hosts, started, fails=fails)


def wait_writes(hosts: Hosts, vm: str, count: int) -> None:
    """Let the guest do `count` more writes."""
    runtime = hosts.runtime(vm)
    target = runtime.sequence + count
    deadline = time.monotonic() + 10
    while runtime.sequence < target:
        assert time.monotonic() < deadline, "the guest does not write"
        time.sleep(0.01)


def export(hosts: Hosts, snapshot: Snapshot, directory: Path) -> list[Path]:
    """Raw images of all disks that the snapshot froze."""
    directory.mkdir(exist_ok=True)
    images = []
    for disk in snapshot.hardware.disks:
        if disk.takes_snapshots:
            image = directory / f"{snapshot.moref}-{disk.key}-{time.monotonic_ns()}.raw"
            hosts.frozen_digest(snapshot.moref, disk.key, image)
            images.append(image)
    return images


def files(hosts: Hosts, vm: str) -> set[str]:
    return {entry.path for entry in hosts.list_directory(hosts.world.vm(vm).directory)}


def deltas(hosts: Hosts, vm: str) -> set[str]:
    return {name for name in files(hosts, vm) if "-00000" in name}


def no_violation(hosts: Hosts) -> None:
    assert hosts.check_frozen() == []


def test_all_disks_freeze_between_the_same_two_writes(hosts: Hosts, tmp_path: Path) -> None:
    for number in range(5):
        snapshot = create(hosts, "two disks", f"s{number}")
        wait_writes(hosts, "two disks", 30)
        check_point_in_time(export(hosts, snapshot, tmp_path)).require(snapshot.frozen_sequence)
    assert len(deltas(hosts, "two disks")) == 2 * 2 * 5
    no_violation(hosts)


def test_the_guest_goes_on_into_a_redo_log_while_the_base_rests(hosts: Hosts) -> None:
    base = hosts.world.local("[nfs] two disks/two disks-flat.vmdk")
    snapshot = create(hosts, "two disks", "s")
    before = base.read_bytes(), base.stat().st_mtime_ns
    wait_writes(hosts, "two disks", 200)
    assert (base.read_bytes(), base.stat().st_mtime_ns) == before
    vm = hosts.world.vm("two disks")
    assert [link.kind for link in vm.hardware.disks[0].chain] == ["cowd", "flat"]
    assert [link.kind for link in snapshot.hardware.disks[0].chain] == ["flat"]
    delta = vm.hardware.disks[0].chain[0]
    assert delta.parent_content_id == vm.hardware.disks[0].chain[1].content_id
    assert hosts.world.local(delta.extent_path).read_bytes()[:4] == b"COWD"
    assert hosts.world.local(delta.extent_path).stat().st_mode & 0o777 == 0o600
    assert delta.path.rpartition("/")[2] in hosts.world.local(vm.vmx_path).read_text()
    no_violation(hosts)


def test_a_guest_write_to_a_frozen_file_is_refused_and_recorded(hosts: Hosts) -> None:
    create(hosts, "two disks", "s")
    runtime = hosts.runtime("two disks")
    with pytest.raises(LabViolationError):
        runtime.open_for_guest(runtime.vm.hardware.disks[0].chain[1])
    assert [violation.vm for violation in hosts.check_frozen()] == [runtime.moref]


def test_somebody_elses_write_to_a_frozen_file_is_found(hosts: Hosts) -> None:
    create(hosts, "two disks", "s")
    with hosts.world.local("[nfs] two disks/two disks_1-flat.vmdk").open("r+b") as file:
        file.write(b"x")
    found = hosts.check_frozen()
    assert [violation.path for violation in found] == ["[nfs] two disks/two disks_1-flat.vmdk"]


def test_independent_disks_and_raw_mappings_do_not_freeze(hosts: Hosts, tmp_path: Path) -> None:
    snapshot = create(hosts, "mixed", "s")
    wait_writes(hosts, "mixed", 50)
    vm = hosts.world.vm("mixed")
    assert [len(disk.chain) for disk in vm.hardware.disks] == [2, 1, 1]
    assert [disk.takes_snapshots for disk in snapshot.hardware.disks] == [True, False, False]
    check_point_in_time(export(hosts, snapshot, tmp_path)).require(snapshot.frozen_sequence)
    with pytest.raises(HostError, match="did not freeze"):
        hosts.frozen_digest(snapshot.moref, 2001)
    remove(hosts, snapshot)
    assert deltas(hosts, "mixed") == set()
    no_violation(hosts)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0), (0, 2, 1), (2, 0, 1)])
def test_any_order_of_removal_keeps_every_other_snapshot(
    hosts: Hosts, tmp_path: Path, order: tuple[int, ...]
) -> None:
    taken = []
    for number in range(3):
        taken.append(create(hosts, "two disks", f"s{number}"))
        wait_writes(hosts, "two disks", 60)
    left = list(taken)
    for number in order:
        remove(hosts, taken[number])
        left.remove(taken[number])
        vm = hosts.world.vm("two disks")
        assert [found.name for found in vm.snapshots] == [found.name for found in left]
        parents = [None, *(found.moref for found in vm.snapshots)]
        assert [found.parent for found in vm.snapshots] == parents[:-1]
        assert vm.current_snapshot == (vm.snapshots[-1].moref if vm.snapshots else None)
        assert not vm.consolidation_needed
        assert len(deltas(hosts, "two disks")) == 2 * 2 * len(left)
        for snapshot in vm.snapshots:
            images = export(hosts, snapshot, tmp_path)
            check_point_in_time(images).require(snapshot.frozen_sequence)
    assert deltas(hosts, "two disks") == set()
    hosts.runtime("two disks").stop_guest()
    vm = hosts.world.vm("two disks")
    flats = [hosts.world.local(disk.chain[0].extent_path) for disk in vm.hardware.disks]
    check_point_in_time(flats).require(vm.guest_sequence)
    no_violation(hosts)


@pytest.mark.requires_debian("qemu-img", package="qemu-utils")
def test_qemu_sees_the_frozen_content_in_the_hosts_own_chain(hosts: Hosts, tmp_path: Path) -> None:
    first = create(hosts, "kept", "first")
    wait_writes(hosts, "kept", 60)
    second = create(hosts, "kept", "second")
    remove(hosts, first)
    now = next(s for s in hosts.world.vm("kept").snapshots if s.moref == second.moref)
    top = hosts.world.local(now.hardware.disks[0].chain[0].path)
    raw = tmp_path / "q.raw"
    subprocess.run(["qemu-img", "convert", "-U", "-f", "vmdk", "-O", "raw", str(top), str(raw)], check=True)
    [image] = export(hosts, now, tmp_path)
    assert raw.read_bytes() == image.read_bytes()
    check_point_in_time([raw]).require(second.frozen_sequence)


def test_removing_with_children_takes_the_later_ones_too(hosts: Hosts) -> None:
    taken = [create(hosts, "kept", f"s{number}") for number in range(3)]
    remove(hosts, taken[1], children=True)
    assert [found.name for found in hosts.world.vm("kept").snapshots] == ["user's", "s0"]
    assert len(deltas(hosts, "kept")) == 4
    no_violation(hosts)


def test_the_vmsd_and_vmsn_follow_the_tree(hosts: Hosts) -> None:
    snapshot = create(hosts, "kept", "s")
    home = hosts.world.local("[nfs] kept/")
    text = (home / "kept.vmsd").read_text()
    assert 'snapshot.numSnapshots = "2"' in text
    assert 'snapshot1.displayName = "s"' in text
    assert (home / "kept-Snapshot2.vmsn").exists()
    remove(hosts, snapshot)
    assert 'snapshot.numSnapshots = "1"' in (home / "kept.vmsd").read_text()
    assert not (home / "kept-Snapshot2.vmsn").exists()


@pytest.mark.parametrize(("effect", "fault"), [("locked", "FileLocked"), ("no-space", "NoDiskSpace")])
def test_a_removal_that_fails_in_phase_two_needs_consolidation(
    hosts: Hosts, tmp_path: Path, effect: str, fault: str
) -> None:
    snapshot = create(hosts, "kept", "s")
    wait_writes(hosts, "kept", 50)
    hosts.add_fault(FaultRule.model_validate({"operation": "RemoveSnapshot", "effect": effect}))
    remove(hosts, snapshot, fails=fault)
    vm = hosts.world.vm("kept")
    assert [found.name for found in vm.snapshots] == ["user's"]
    assert vm.consolidation_needed
    assert redundant_links(vm)
    assert len(deltas(hosts, "kept")) == 4
    wait_writes(hosts, "kept", 50)
    finish(hosts, hosts.consolidate("kept", user="t"))
    vm = hosts.world.vm("kept")
    assert not vm.consolidation_needed
    assert len(deltas(hosts, "kept")) == 2
    check_point_in_time(export(hosts, vm.snapshots[0], tmp_path)).require(vm.snapshots[0].frozen_sequence)
    no_violation(hosts)


def test_the_frozen_digests_outlive_the_snapshot(hosts: Hosts) -> None:
    snapshot = create(hosts, "two disks", "s")
    wait_writes(hosts, "two disks", 50)
    live = {key: hosts.frozen_digest(snapshot.moref, key) for key in (2000, 2001)}
    remove(hosts, snapshot)
    assert {key: hosts.frozen_digest(snapshot.moref, key) for key in (2000, 2001)} == live
    record = hosts.frozen_records("two disks")[-1]
    assert record.frozen_sequence == snapshot.frozen_sequence
    assert record.removed_time is not None
    with pytest.raises(HostError, match="no snapshot"):
        hosts.frozen_digest(snapshot.moref, 2000, Path("/nonexistent/x"))


def test_the_layout_names_every_file_and_each_chain(hosts: Hosts) -> None:
    create(hosts, "two disks", "s")
    vm = hosts.world.vm("two disks")
    layout = hosts.layout("two disks")
    names = {file.path.rpartition("/")[2] for file in layout.files}
    assert names == files(hosts, "two disks")
    assert [len(disk.chain) for disk in layout.disks] == [2, 2]
    assert [len(disk.chain) for disk in layout.snapshots[0].disks] == [1, 1]
    assert layout.snapshots[0].snapshot == vm.current_snapshot
    sizes = {file.path: file.size_bytes for file in layout.files}
    assert sizes["[nfs] two disks/two disks-flat.vmdk"] == 2 * MIB


def test_what_cannot_be_snapshotted_is_refused(hosts: Hosts) -> None:
    def start(vm: str, name: str = "s", *, memory: bool = False) -> TaskStarted:
        return hosts.create_snapshot(vm, name, "", memory=memory, quiesce=False, user="t")

    with pytest.raises(HostError, match="NotSupported"):
        start("template")
    with pytest.raises(HostError, match="InvalidName"):
        start("kept", "")
    with pytest.raises(HostError, match="NotSupported"):
        start("kept", memory=True)
    with pytest.raises(HostError, match="ManagedObjectNotFound"):
        start("nobody")
    finish(hosts, start("shared"), fails="SnapshotFault")


def test_the_chain_ends_at_32_snapshots(hosts: Hosts) -> None:
    for number in range(31):
        create(hosts, "kept", f"s{number}")
    started = hosts.create_snapshot("kept", "one more", "", memory=False, quiesce=False, user="t")
    finish(hosts, started, fails="TooManySnapshotLevels")


def test_a_refused_quiesce_fails_only_quiesced_snapshots(hosts: Hosts) -> None:
    hosts.add_fault(FaultRule(operation="Quiesce", effect="fail", nth=None))
    started = hosts.create_snapshot("kept", "q", "", memory=False, quiesce=True, user="t")
    finish(hosts, started, fails="ApplicationQuiesceFault")
    assert create(hosts, "kept", "plain").quiesced is False


def test_a_quiesced_windows_leaves_its_manifest_until_the_snapshot_goes(hosts: Hosts) -> None:
    started = hosts.create_snapshot("windows", "q", "", memory=False, quiesce=True, user="t")
    moref = finish(hosts, started).result
    [snapshot] = [found for found in hosts.world.vm("windows").snapshots if found.moref == moref]
    assert "windows-vss_manifests1.zip" in files(hosts, "windows")
    assert snapshot.manifest_path in {file.path for file in hosts.layout("windows").files}
    remove(hosts, snapshot)
    assert "windows-vss_manifests1.zip" not in files(hosts, "windows")


def test_change_ids_belong_to_the_snapshot(hosts: Hosts) -> None:
    assert create(hosts, "kept", "without").hardware.disks[0].chain[0].change_id is None
    finish(hosts, hosts.reconfigure("kept", ReconfigSpec(change_tracking_enabled=True), user="t"))
    ids = [create(hosts, "kept", f"s{n}").hardware.disks[0].chain[0].change_id or "" for n in range(2)]
    assert [one.rpartition("/")[0] for one in ids] == [ids[0].rpartition("/")[0]] * 2
    assert ids[0] != ids[1]


def test_free_space_shrinks_while_a_snapshot_is_held(hosts: Hosts) -> None:
    def free() -> int:
        time.sleep(0.6)  # the hosts look at most twice a second
        return hosts.world.state().datastores[0].free_bytes

    before = free()
    snapshot = create(hosts, "two disks", "s")
    wait_writes(hosts, "two disks", 200)
    during = free()
    assert during < before
    remove(hosts, snapshot)
    assert free() > during
