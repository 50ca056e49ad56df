"""What a backup's truth is checked against: the hosts' own records and files, never safehaul's word.

before = Witness(hosts, datastores)      # before the job
…
problems = before.problems()             # leftover snapshots and files, touched foreign ones, lab violations
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.esx.api import FrozenRecord, Vm
from lab.esx.client import HostClient
from lab.guests.checker import NotOnePointInTimeError, check_point_in_time

# What a running VM writes beside its disks without any snapshot: never a leftover.
OWN_CHANGES = (".log", ".vswp", ".lck")
RECORD_WITHIN_S = 30.0
# Debian keeps file system tools where a plain user's PATH does not look.
E2FSCK_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"


@dataclass(frozen=True)
class _Seen:
    snapshots: tuple[tuple[str, str, str], ...]
    files: frozenset[str]


class Witness:
    """Remembers every VM's snapshots and files, and tells later what is not as it was."""

    def __init__(self, hosts: HostClient, datastores: Path) -> None:
        self._hosts = hosts
        self._datastores = datastores
        self._before = {vm.moref: self._look(vm) for vm in hosts.state().vms}

    def problems(self) -> list[str]:
        """Every difference that a backup must not leave; empty when all is as it was."""
        found: list[str] = []
        for vm in self._hosts.state().vms:
            before = self._before.get(vm.moref)
            if before is None:
                continue
            now = self._look(vm)
            found += [
                f"{vm.name}: snapshot {moref} ({name!r}) is left behind"
                for moref, name, _ in sorted(set(now.snapshots) - set(before.snapshots))
            ]
            found += [
                f"{vm.name}: foreign snapshot {moref} ({name!r}) was touched"
                for moref, name, _ in sorted(set(before.snapshots) - set(now.snapshots))
            ]
            found += [f"{vm.name}: file {name} is left behind" for name in sorted(now.files - before.files)]
            found += [f"{vm.name}: file {name} is gone" for name in sorted(before.files - now.files)]
            if vm.consolidation_needed:
                found.append(f"{vm.name}: consolidation is needed")
        found += [f"{item.vm}: {item.path}: {item.message}" for item in self._hosts.check_frozen()]
        return found

    def _look(self, vm: Vm) -> _Seen:
        _, _, rest = vm.directory.partition("[")
        store, _, directory = rest.partition("]")
        home = self._datastores / store / directory.strip().strip("/")
        return _Seen(
            snapshots=tuple((item.moref, item.name, item.description) for item in vm.snapshots),
            files=frozenset(path.name for path in home.iterdir() if not path.name.endswith(OWN_CHANGES)),
        )


def frozen_record(hosts: HostClient, vm_moref: str, snapshot_moref: str) -> FrozenRecord:
    """What the hosts froze for that snapshot, digests included. Raises TimeoutError when there is none."""
    deadline = time.monotonic() + RECORD_WITHIN_S
    while time.monotonic() < deadline:
        for record in hosts.frozen_records(vm_moref):
            if record.snapshot == snapshot_moref and record.disks:
                return record
        time.sleep(0.1)
    message = f"the hosts have no record of snapshot {snapshot_moref} of {vm_moref}"
    raise TimeoutError(message)


def sha256_of(path: Path) -> str:
    """Digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compare_disks(
    record: FrozenRecord, disks: Mapping[int, Path], skipped: Mapping[int, str] | None = None
) -> list[str]:
    """How restored images (by disk key) differ from what the snapshot froze; empty when they are equal.

    Every frozen disk must have an image, or stand in `skipped` (disk key to the reason that the report gives): a
    report that loses a disk is no proof of the others.
    """
    strange = sorted(set(disks) - {disk.disk_key for disk in record.disks})
    found = [f"{record.vm_name}: the snapshot froze no disk {key}" for key in strange]
    for disk in record.disks:
        path = disks.get(disk.disk_key)
        if path is None:
            if not (skipped or {}).get(disk.disk_key):
                found.append(
                    f"{record.vm_name}, {disk.label}: frozen, neither stored nor skipped with a reason"
                )
            continue
        if path.stat().st_size != disk.capacity_bytes:
            found.append(
                f"{record.vm_name}, {disk.label}: {path.stat().st_size} of {disk.capacity_bytes} bytes"
            )
        elif sha256_of(path) != disk.sha256:
            found.append(
                f"{record.vm_name}, {disk.label}: the bytes are not those of the frozen point in time"
            )
    return found


def one_point_in_time(record: FrozenRecord, images: list[Path]) -> str:
    """Why the images do not show exactly the snapshot's point in time by the guest's own sequence numbers; or empty."""
    report = check_point_in_time(images)
    if not report.disks:
        return ""
    try:
        report.require(record.frozen_sequence)
    except NotOnePointInTimeError as error:
        return f"{record.vm_name}: {error}"
    return ""


def file_system_check(image: Path) -> str | None:
    """What `e2fsck -fn` finds wrong with an ext4 image; empty when it is clean, None when e2fsck is not there."""
    program = shutil.which("e2fsck", path=E2FSCK_PATH)
    if program is None:
        return None
    done = subprocess.run([program, "-fn", str(image)], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"e2fsck -fn ends with {done.returncode}: {done.stdout[-500:]}"


def is_ext4(image: Path) -> bool:
    """True when the image holds an ext file system (magic 0xEF53 at byte 1080)."""
    with image.open("rb") as file:
        file.seek(1080)
        return file.read(2) == b"\x53\xef"
