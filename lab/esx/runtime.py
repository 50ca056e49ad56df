"""One VM at run time: its lock, its open disks, its guest, and the guard of its frozen files.

`lock` is held for each guest write, for a freeze, and for a switch of a disk to another chain: so all disks
of the VM freeze between the same two writes. `chain_lock` is held while somebody reads a frozen chain from
end to end or merges links, so that neither sees the other's work half done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from lab.esx.api import Backing, Disk, FrozenFile, Violation, Vm
from lab.esx.chain import ChainReader, Extent, open_extent
from lab.esx.guest_plan import plan_of
from lab.esx.world import World
from lab.guests.pattern import BLOCK_BYTES, Plan, make_block, read_tag
from lab.guests.writer import GuestWriter

_CHECKPOINT_S = 2.0
# How many writes in a row may be unverifiable (their disk is gone) before the search for the last one ends.
_MAX_UNKNOWN = 256


class LabViolationError(Exception):
    """Something that must never happen was about to be done, e.g. a guest's write to a frozen file."""


class VmRuntime:
    """See the module. One for each VM, for as long as the VM exists in this process."""

    def __init__(self, world: World, moref: str) -> None:
        self._world = world
        self.moref = moref
        self.lock = threading.RLock()
        self.chain_lock = threading.Lock()
        self._tops: dict[int, Extent] = {}
        # Disk keys whose top is being merged → offsets that the guest wrote since they were copied.
        self._touched: dict[int, set[int]] = {}
        self._writer: GuestWriter | None = None
        self._plan: Plan | None = None
        self._disk_keys: dict[int, int] = {}
        self.sequence = self.vm.guest_sequence
        self._checkpoint = time.monotonic()

    @property
    def vm(self) -> Vm:
        """The VM as it is now; treat it as immutable."""
        return self._world.vms[self.moref]

    @contextmanager
    def edit(self) -> Iterator[Vm]:
        """Change the VM under its lock; kept only when the block ends without an error."""
        with self.lock:
            vm = self.vm.model_copy(deep=True)
            vm.guest_sequence = self.sequence
            yield vm
            vm.frozen_files = self._frozen_files(vm)
            self._world.put_vm(vm)

    # The guest.

    def start_guest(self) -> None:
        """Start the guest's writer, if the VM has one and is on. A new generation begins. Idempotent."""
        with self.lock:
            vm = self.vm
            plan, keys = plan_of(vm)
            if self._writer is not None or vm.power_state != "poweredOn" or not vm.guest_rate or plan is None:
                return
            self._plan, self._disk_keys = plan, keys
            self.sequence = max(self.sequence, self._find_sequence(vm, plan, keys))
            with self.edit() as changed:
                changed.guest_generation += 1
            self._writer = GuestWriter(vm.name, vm.guest_rate, self.write_next, self._guest_failed)
            self._writer.start()

    def stop_guest(self) -> None:
        """Stop the guest's writer and close the disks. Idempotent."""
        writer = self._writer
        if writer is not None:
            writer.stop()
        with self.lock:
            self._writer = None
            self.close_disks()
            if self.moref in self._world.vms and self.sequence != self.vm.guest_sequence:
                with self.edit():
                    pass  # `edit` stores the guest's sequence

    def write_next(self) -> None:
        """One write of the guest: the next in its sequence, to the place that its plan says."""
        with self.lock:
            if self._plan is None:
                self._plan, self._disk_keys = plan_of(self.vm)
            if self._plan is None:
                return
            number = self.sequence + 1
            index, block = self._plan.target(number)
            key = self._disk_keys.get(index)
            if key is not None:
                data = make_block(
                    disk=index,
                    generation=self.vm.guest_generation & 0xFFFF,
                    block=block,
                    sequence=number,
                    seed=self._plan.seed,
                )
                self.write(key, block * BLOCK_BYTES, data)
            self.sequence = number
            if time.monotonic() - self._checkpoint > _CHECKPOINT_S:
                self._checkpoint = time.monotonic()
                self._world.put_guest_sequence(self.moref, number)

    def write(self, disk_key: int, offset_bytes: int, data: bytes) -> None:
        """A write of the guest to a disk (whole sectors), into the top of its chain."""
        with self.lock:
            top = self._tops.get(disk_key)
            if top is None:
                disk = _disk(self.vm, disk_key)
                top = self.open_for_guest(disk.chain[0])
                self._tops[disk_key] = top
            top.write(offset_bytes, data)
            touched = self._touched.get(disk_key)
            if touched is not None:
                touched.update(range(offset_bytes, offset_bytes + len(data), BLOCK_BYTES))

    def open_for_guest(self, link: Backing) -> Extent:
        """Open a link for the guest to write. Errors: LabViolationError (recorded) when it is frozen."""
        if any(frozen.path == link.extent_path for frozen in self.vm.frozen_files):
            self._world.violation(self.vm, link.extent_path, "the guest was about to write to a frozen file")
            message = f"{self.vm.name}: {link.extent_path} is frozen; the guest must not write to it"
            raise LabViolationError(message)
        return open_extent(self._world.local(link.extent_path), link.kind, writable=True)

    def close_disks(self) -> None:
        """Close the open tops; the next write opens them again. Call it with `lock` held."""
        for extent in self._tops.values():
            extent.close()
        self._tops.clear()
        self._plan = None

    def forget_plan(self) -> None:
        """Make the guest look at the VM's disks again. Call it with `lock` held."""
        self._plan = None

    def flush_top(self, disk_key: int) -> None:
        """Close one top, so that its header is complete on disk. Call it with `lock` held."""
        top = self._tops.pop(disk_key, None)
        if top is not None:
            top.close()

    @contextmanager
    def tracking(self, disk_key: int) -> Iterator[set[int]]:
        """While it lasts, the offsets (4 KiB steps) that the guest writes on a disk are added to the set."""
        with self.lock:
            touched: set[int] = set()
            self._touched[disk_key] = touched
        try:
            yield touched
        finally:
            with self.lock:
                self._touched.pop(disk_key, None)

    def _guest_failed(self, error: Exception) -> None:
        self._world.event("guest-stopped", self.vm, "guest", f"the guest stopped: {error!r}")
        if not isinstance(error, LabViolationError):
            self._world.violation(self.vm, self.vm.vmx_path, f"the guest's write failed: {error!r}")

    def _find_sequence(self, vm: Vm, plan: Plan, keys: dict[int, int]) -> int:
        """The guest's last write, from the disks: after a kill it is later than the stored one.

        Write s + 1 happened if its block holds that write, or a later one; s only grows until one did not.
        """
        found = max(vm.guest_sequence, self._world.guest_sequence(self.moref), self.sequence)
        with ExitStack() as stack:
            readers = {
                index: stack.enter_context(ChainReader(_disk(vm, key), self._world.local))
                for index, key in keys.items()
            }
            number = found + 1
            while number - found <= _MAX_UNKNOWN:
                index, block = plan.target(number)
                reader = readers.get(index)
                if reader is not None:
                    tag = read_tag(reader.read(block * BLOCK_BYTES, BLOCK_BYTES))
                    if tag is None or tag.sequence < number:
                        break
                    found = number
                number += 1
        return found

    # The guard.

    def _frozen_files(self, vm: Vm) -> list[FrozenFile]:
        """Every link below a top is frozen: with what it has now if it is newly so, else with what it had."""
        known = {frozen.path: frozen for frozen in vm.frozen_files}
        found = []
        for disk in vm.hardware.disks:
            for link in disk.chain[1:]:
                frozen = known.get(link.extent_path)
                if frozen is None:
                    status = self._world.local(link.extent_path).stat()
                    frozen = FrozenFile(
                        path=link.extent_path, size_bytes=status.st_size, mtime_ns=status.st_mtime_ns
                    )
                found.append(frozen)
        return found

    def check_frozen(self) -> list[Violation]:
        """Compare the frozen files with what they were; a difference is recorded. Returns the new ones."""
        before = len(self._world.site.violations)
        with self.chain_lock, self.lock:
            for frozen in self.vm.frozen_files:
                if frozen.path in self.vm.merging:
                    continue
                try:
                    status = self._world.local(frozen.path).stat()
                except FileNotFoundError:
                    self._world.violation(self.vm, frozen.path, "a frozen file is gone")
                    continue
                if (status.st_size, status.st_mtime_ns) != (frozen.size_bytes, frozen.mtime_ns):
                    self._world.violation(self.vm, frozen.path, "a frozen file was written to")
        return self._world.site.violations[before:]


def _disk(vm: Vm, key: int) -> Disk:
    for disk in vm.hardware.disks:
        if disk.key == key:
            return disk
    message = f"{vm.name} has no disk with key {key}"
    raise LookupError(message)
