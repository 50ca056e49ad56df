"""Make a new VM's disk files: descriptors and extents with their first content."""

from __future__ import annotations

import os
import random
from pathlib import Path

from lab.esx.descriptor import RDM_TYPES, Descriptor
from lab.esx.guest_plan import large_enough, pattern_disk, superblock
from lab.esx.objects import SECTOR_BYTES, Backing, Disk, Vm
from lab.esx.paths import join, name_of, sibling, split
from lab.esx.spec import DiskSpec
from lab.esx.world import World
from lab.guests import ext4
from lab.guests.checker import initial_block
from lab.guests.pattern import BLOCK_BYTES, GuestDisk, tail_bytes

_FIRST_KEY = 2000
_BATCH_BLOCKS = 256
_UNITS = [unit for unit in range(16) if unit != 7]


class DiskMaker:
    """Makes the disks of one VM, in order, and enters them in its hardware."""

    def __init__(self, world: World, vm: Vm, source: random.Random) -> None:
        self._world = world
        self._vm = vm
        self._source = source

    def make(self, specs: list[DiskSpec]) -> None:
        """Make all disks; then write the guest's plan onto those that it writes to. Errors: OSError,
        Ext4Error.
        """
        for number, spec in enumerate(specs):
            self._vm.hardware.disks.append(self._disk(number, spec))
        for disk, spec in zip(self._vm.hardware.disks, specs, strict=True):
            self._fill(disk, spec)
        for disk in self._vm.hardware.disks:
            if disk.guest is not None:
                self._write_superblock(disk, self._vm.guest_disks[disk.guest])

    def _disk(self, number: int, spec: DiskSpec) -> Disk:
        datastore = spec.datastore or split(self._vm.vmx_path)[0]
        stem = name_of(self._vm.vmx_path).removesuffix(".vmx")
        name = stem if number == 0 else f"{stem}_{number}"
        directory = join(datastore, split(self._vm.directory)[1])
        self._world.local(directory).mkdir(exist_ok=True)
        path = join(datastore, split(self._vm.directory)[1], f"{name}.vmdk")
        suffix = {None: "flat", "virtualMode": "rdm", "physicalMode": "rdmp"}[spec.rdm]
        extent = sibling(path, f"{name}-{suffix}.vmdk")
        uuid = f"6000c29{self._source.getrandbits(100):025x}"
        link = Backing(
            path=path,
            extent_path=extent,
            kind="rdm" if spec.rdm else "flat",
            content_id=f"{self._source.getrandbits(32) & 0xFFFFFFFE:08x}",
        )
        descriptor = Descriptor(
            content_id=link.content_id,
            create_type=RDM_TYPES[spec.rdm] if spec.rdm else "vmfs",
            sectors=spec.size_bytes // SECTOR_BYTES,
            extent_name=name_of(extent),
            uuid=uuid,
        )
        _write(self._world.local(path), descriptor.render().encode())
        taken = {d.unit_number for d in self._vm.hardware.disks if d.controller_key == 1000 + spec.controller}
        return Disk(
            key=_FIRST_KEY + number,
            label=spec.label or f"Hard disk {number + 1}",
            controller_key=1000 + spec.controller,
            unit_number=spec.unit if spec.unit is not None else next(u for u in _UNITS if u not in taken),
            capacity_bytes=spec.size_bytes,
            datastore=datastore,
            mode=spec.mode,
            sharing=spec.sharing,
            rdm=spec.rdm,
            key_id=spec.key_id,
            uuid=uuid,
            chain=[link],
            content=spec.content,
        )

    def _fill(self, disk: Disk, spec: DiskSpec) -> None:
        path = self._world.local(disk.chain[0].extent_path)
        if disk.rdm is not None:
            # A mapping's data is on the array: the file on the datastore is only a pointer.
            _write(path, b"")
            return
        _write(path, b"")
        os.truncate(path, disk.capacity_bytes)
        content: str = spec.content
        if content == "ext4" and (reason := ext4.why_not(disk.capacity_bytes)):
            disk.content_fallback = f"pattern instead of ext4: {reason}"
            content = "pattern"
        if content == "random":
            self._fill_random(path, disk.capacity_bytes)
        elif content == "ext4":
            runs = ext4.make_image(path, disk.capacity_bytes, self._vm.guest_seed + disk.key)
            first = runs[0]
            guest = GuestDisk(
                index=len(self._vm.guest_disks),
                capacity_bytes=disk.capacity_bytes,
                superblock=first.start,
                runs=[
                    first.model_copy(update={"start": first.start + 1, "count": first.count - 1}),
                    *runs[1:],
                ],
                content="runs",
            )
            self._enter_guest(disk, guest, path)
        elif content == "pattern" and large_enough(disk.capacity_bytes):
            self._enter_guest(disk, pattern_disk(len(self._vm.guest_disks), disk.capacity_bytes), path)

    def _enter_guest(self, disk: Disk, guest: GuestDisk, path: Path) -> None:
        disk.guest = guest.index
        self._vm.guest_disks.append(guest)
        blocks = (
            [range(guest.blocks)]
            if guest.content == "whole"
            else [range(run.start, run.start + run.count) for run in guest.runs]
        )
        with path.open("r+b") as file:
            for numbers in blocks:
                file.seek(numbers.start * BLOCK_BYTES)
                for first in range(numbers.start, numbers.stop, _BATCH_BLOCKS):
                    last = min(first + _BATCH_BLOCKS, numbers.stop)
                    file.write(
                        b"".join(
                            initial_block(guest, block, self._vm.guest_seed) for block in range(first, last)
                        )
                    )
            if guest.content == "whole":
                file.seek(guest.blocks * BLOCK_BYTES)
                file.write(tail_bytes(guest.capacity_bytes % BLOCK_BYTES))

    def _write_superblock(self, disk: Disk, guest: GuestDisk) -> None:
        with self._world.local(disk.chain[0].extent_path).open("r+b") as file:
            file.seek(guest.superblock * BLOCK_BYTES)
            file.write(superblock(self._vm.guest_seed, guest.index, self._vm.guest_disks))

    def _fill_random(self, path: Path, capacity_bytes: int) -> None:
        """Alternate noise, text and holes, a piece of 64 KiB each."""
        piece = 64 * 1024
        text = (b"some text that repeats itself, " * (piece // 31 + 1))[:piece]
        with path.open("r+b") as file:
            for number, offset in enumerate(range(0, capacity_bytes, piece)):
                if number % 3 == 2:
                    continue
                data = self._source.randbytes(piece) if number % 3 else text
                file.seek(offset)
                file.write(data[: capacity_bytes - offset])


def _write(path: Path, data: bytes) -> None:
    """A new file that only root may read, as ESXi makes disk files."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
