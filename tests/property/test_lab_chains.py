"""Goal: whatever is written, frozen and removed in whatever order, every content stays what a simple model
says.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lab.esx.chain import ChainReader
from lab.esx.chains import discard, merge_link, redundant_links
from lab.esx.objects import SECTOR_BYTES, Snapshot
from lab.esx.runtime import VmRuntime
from lab.esx.snapshots import take_snapshot
from lab.esx.world import World
from lab.site import DatastoreSpec, DiskSpec, Site, VmSpec, build

SECTORS = 4096 + 35  # two grain tables, the second nearly empty
DISKS = (2000, 2001)


class InterruptedMergeError(Exception):
    """A merge stopped in the middle, as by a kill."""


@dataclass
class Model:
    """The current content of each disk, and the frozen contents of each snapshot."""

    now: dict[int, bytearray]
    frozen: dict[str, dict[int, bytes]] = field(default_factory=dict)


writes = st.tuples(
    st.just("write"),
    st.sampled_from(DISKS),
    st.one_of(st.integers(0, SECTORS - 1), st.integers(4090, 4100)),
    st.integers(1, 12),
    st.integers(1, 255),
)
steps = st.lists(
    st.one_of(
        writes,
        writes,
        writes,
        st.tuples(st.just("snapshot")),
        st.tuples(st.just("snapshot")),
        st.tuples(
            st.just("remove"), st.integers(0, 5), st.sampled_from(["done", "interrupted", "not merged"])
        ),
        st.tuples(st.just("consolidate")),
    ),
    min_size=4,
    max_size=30,
)


class Lab:
    """One VM with two disks, driven step by step without threads."""

    def __init__(self, directory: Path) -> None:
        disk = DiskSpec(size_bytes=SECTORS * SECTOR_BYTES, content="random")
        vm = VmSpec(name="vm", datastore="ds", disks=[disk, disk])
        build(Site(datastores=[DatastoreSpec(name="ds", type="NFS")], vms=[vm]), directory)
        self.world = World(directory)
        self.runtime = VmRuntime(self.world, next(iter(self.world.vms)))
        self.model = Model(now={key: bytearray(self.content(None, key)) for key in DISKS})
        self.home = self.world.local("[ds] vm/")

    def close(self) -> None:
        self.runtime.stop_guest()
        self.world.store.close()

    def content(self, snapshot: Snapshot | None, key: int) -> bytes:
        with self.runtime.lock:
            self.runtime.flush_top(key)
        hardware = self.runtime.vm.hardware if snapshot is None else snapshot.hardware
        disk = next(disk for disk in hardware.disks if disk.key == key)
        with ChainReader(disk, self.world.local) as reader:
            return b"".join(reader.windows())

    def write(self, key: int, sector: int, count: int, value: int) -> None:
        count = min(count, SECTORS - sector)
        data = bytes([value]) * (count * SECTOR_BYTES)
        self.runtime.write(key, sector * SECTOR_BYTES, data)
        self.model.now[key][sector * SECTOR_BYTES : (sector + count) * SECTOR_BYTES] = data

    def snapshot(self) -> None:
        moref = self.world.next_moref("snapshot")
        take_snapshot(self.world, self.runtime, moref, moref, "")
        self.model.frozen[moref] = {key: bytes(data) for key, data in self.model.now.items()}

    def remove(self, choice: int, how: str) -> None:
        found = self.runtime.vm.snapshots
        if not found:
            return
        victim = found[choice % len(found)].moref
        with self.runtime.edit() as vm:
            [gone] = [snapshot for snapshot in vm.snapshots if snapshot.moref == victim]
            vm.snapshots.remove(gone)
            for snapshot in vm.snapshots:
                if snapshot.parent == victim:
                    snapshot.parent = gone.parent
            if vm.current_snapshot == victim:
                vm.current_snapshot = gone.parent
        del self.model.frozen[victim]
        if how == "interrupted":
            self.interrupt()
        elif how == "done":
            self.consolidate()

    def interrupt(self) -> None:
        """Begin a merge and stop it after the first piece; the guest then writes on."""

        def stop(_: float) -> None:
            raise InterruptedMergeError

        for key, path in redundant_links(self.runtime.vm)[:1]:
            try:
                merge_link(self.world, self.runtime, key, path, stop)
            except InterruptedMergeError:
                discard(self.world, self.runtime)

    def consolidate(self) -> None:
        """Merge all; between the pieces the guest writes what the model also gets."""
        for key, path in redundant_links(self.runtime.vm):
            written = 0

            def write_on(share: float, key: int = key) -> None:
                nonlocal written
                written += 1
                if written <= 3:
                    self.write(key, int(share * SECTORS) // 8 * 8, 8, 77 + written)

            merge_link(self.world, self.runtime, key, path, write_on)

    def check(self) -> None:
        for key in DISKS:
            assert self.content(None, key) == self.model.now[key]
        vm = self.runtime.vm
        assert {snapshot.moref for snapshot in vm.snapshots} == set(self.model.frozen)
        for snapshot in vm.snapshots:
            for key in DISKS:
                assert self.content(snapshot, key) == self.model.frozen[snapshot.moref][key]
        assert self.runtime.check_frozen() == []
        links = {
            p for disk in vm.hardware.disks for link in disk.chain for p in (link.path, link.extent_path)
        }
        on_disk = {f"[ds] vm/{path.name}" for path in self.home.glob("*.vmdk")}
        assert on_disk == links


@example(
    [
        ("snapshot",),
        ("write", 2000, 0, 8, 1),
        ("snapshot",),
        ("write", 2000, 8, 8, 2),
        ("remove", 0, "interrupted"),
    ]
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
def test_contents_follow_the_model(story: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory(prefix="lab-chains-") as name:
        lab = Lab(Path(name) / "lab")
        try:
            for step in story:
                match step:
                    case ("write", int(key), int(sector), int(count), int(value)):
                        lab.write(key, sector, count, value)
                    case ("snapshot",):
                        if len(lab.runtime.vm.snapshots) < 6:
                            lab.snapshot()
                    case ("remove", int(choice), str(how)):
                        lab.remove(choice, how)
                    case _:
                        lab.consolidate()
            lab.check()
            lab.consolidate()
            lab.check()
            assert all(len(disk.chain) == len(lab.model.frozen) + 1 for disk in lab.runtime.vm.hardware.disks)
        finally:
            lab.close()
