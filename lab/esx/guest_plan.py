"""Which of a VM's disks its guest writes to, and where: the plan of lab.guests.pattern for a VM."""

from __future__ import annotations

from lab.esx.objects import Vm
from lab.guests.pattern import BLOCK_BYTES, GuestDisk, Plan, Run, Superblock

# Every third block of a pattern disk is overwritten again and again, the others never.
_STRIDE = 3
_MIN_BLOCKS = 4


def pattern_disk(index: int, capacity_bytes: int) -> GuestDisk:
    """The guest's view of a disk that is all pattern."""
    blocks = capacity_bytes // BLOCK_BYTES
    runs = [Run(start=1, count=max(0, (blocks - 2) // _STRIDE + 1), stride=_STRIDE)] if blocks > 1 else []
    return GuestDisk(index=index, capacity_bytes=capacity_bytes, superblock=0, runs=runs)


def plan_of(vm: Vm) -> tuple[Plan | None, dict[int, int]]:
    """The VM's plan, None without a guest disk; and which disk key each guest disk index has now.

    The plan covers every disk that the guest was made with, also one that has been taken off since.
    """
    if not vm.guest_disks:
        return None, {}
    keys = {disk.guest: disk.key for disk in vm.hardware.disks if disk.guest is not None}
    return Plan(vm.guest_seed, vm.guest_disks), keys


def superblock(vm_seed: int, index: int, disks: list[GuestDisk]) -> bytes:
    """The block that tells a checker the plan."""
    return Superblock(seed=vm_seed, disk=index, disks=disks).encode()


def large_enough(capacity_bytes: int) -> bool:
    """Whether a disk can hold a superblock and something to write."""
    return capacity_bytes >= _MIN_BLOCKS * BLOCK_BYTES
