"""What the demo holds against the hosts' own records and files: a ✓ for each check that holds, else a failure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.datacentre import DataCentre
from lab.processes import answers
from lab.proof import Witness, compare_disks, file_system_check, frozen_record, is_ext4, one_point_in_time

# The filer's reads may exceed the disks' bytes by descriptors, small files and a chain's base.
SERVED_TOLERANCE = 0.05
# VMs of lab.site.demo_site that must not end Completed.
EXPECTED = {"mixed-disks": "Partial", "half-local": "Partial", "local-only": "Failed"}


class Checks:
    """The checks of one run; `failures` is empty while all of them hold."""

    def __init__(self, lab: DataCentre, say: Callable[[str], None]) -> None:
        self._lab = lab
        self._say = say
        self.failures: list[str] = []

    def job(self, report: dict[str, Any], vms: int, served_bytes: int) -> None:
        """Every VM ended as it must, and the filer served what the report claims."""
        for vm in report["vms"]:
            wanted = EXPECTED.get(vm["name"], "Completed")
            if vm["status"] != wanted:
                self.failures.append(f"{vm['name']} is {vm['status']}, expected {wanted}: {vm['reason']}")
        told = report["totals"]["vms"]
        self._settle(
            [] if told == vms else [f"the report tells of {told} VMs of {vms}"],
            f"all {vms} VMs are in the report",
        )
        claimed_bytes = report["totals"]["bytes_read"]
        ratio = served_bytes / claimed_bytes if claimed_bytes else 0.0
        what = f"the filer served {mib(served_bytes)}, the report claims {mib(claimed_bytes)} ({ratio:.3f})"
        self._settle([] if abs(ratio - 1) <= SERVED_TOLERANCE else [what], what)

    def disks(self, report: dict[str, Any]) -> None:
        """Every disk of every backup, byte for byte, against what the hosts froze while the guests wrote on."""
        backups = [vm for vm in report["vms"] if vm["backup_id"]]
        problems: list[str] = [] if backups else ["there is no backup to compare"]
        file_systems: list[str] = []
        checked = unchecked = 0
        for vm in backups:
            images = self._images(vm)
            problems += self._differences(vm, images)
            for image in images.values():
                if is_ext4(image):
                    wrong = file_system_check(image)
                    checked, unchecked = checked + (wrong is not None), unchecked + (wrong is None)
                    file_systems += [f"{vm['name']}: {wrong}"] if wrong else []
                image.unlink()
        self._settle(
            problems, f"the disks of {len(backups)} backups equal the frozen point in time, byte for byte"
        )
        if checked:
            self._settle(file_systems, f"e2fsck finds the file systems of {checked} disks clean")
        if unchecked:
            self._say(
                f"  – the file systems of {unchecked} disks: not checked: e2fsck is not installed (Debian, Ubuntu: "
                "apt-get install e2fsprogs)"
            )

    def restored(self, vm: dict[str, Any], name: str) -> None:
        """The VM that was restored under `name` is there, powered off, and holds what was frozen."""
        found = next((item for item in self._lab.hosts.state().vms if item.name == name), None)
        if found is None:
            self.failures.append(f"{name!r} is not in vCenter")
            return
        home = self._lab.state / "datastores" / "nfs-gold" / name
        flats = sorted(home.glob("*-flat.vmdk"), key=lambda path: (len(path.name), path.name))
        keys = [disk["key"] for disk in vm["disks"] if disk["transport"] == "nas"]
        problems = self._differences(vm, dict(zip(keys, flats, strict=False)))
        if len(keys) != len(flats):
            problems.append(f"{name!r} has {len(flats)} disks of {len(keys)}")
        if found.power_state != "poweredOff":
            problems.append(f"{name!r} is {found.power_state}")
        self._settle(
            problems,
            f"{name!r} is registered, powered off, and shows one point in time over its {len(flats)} disks",
        )

    def nothing_left(self, witness: Witness) -> None:
        """No snapshot or file is left behind, and none of anybody else's was touched."""
        self._settle(witness.problems(), "no snapshot and no file left behind, foreign snapshots untouched")

    def all_ended(self) -> None:
        """After `DataCentre.stop`: no process of this run goes on."""
        left = self._lab.left_behind()
        if not left and answers(self._lab.temporal.port):
            left = ["temporal"]
        if left:
            self.failures.append(f"processes are left behind: {', '.join(left)}")

    def _images(self, vm: dict[str, Any]) -> dict[int, Path]:
        """Each stored disk of the VM's backup as a raw image, by key."""
        images: dict[int, Path] = {}
        for key in [disk["key"] for disk in vm["disks"] if disk["transport"] == "nas"]:
            target = self._lab.home / f"check-{vm['vc_guid'][-12:]}-{key}.raw"
            backup = f"{vm['vc_guid']}/{vm['backup_id']}"
            self._lab.safehaul("restore", "disk", backup, str(key), "--to", str(target))
            images[key] = target
        return images

    def _differences(self, vm: dict[str, Any], images: dict[int, Path]) -> list[str]:
        moref = next(item.moref for item in self._lab.hosts.state().vms if item.name == vm["name"])
        record = frozen_record(self._lab.hosts, moref, vm["snapshot_moref"])
        skipped = {disk["key"]: disk["reason"] for disk in vm["disks"] if disk["transport"] != "nas"}
        where = one_point_in_time(record, list(images.values()))
        return [*compare_disks(record, images, skipped), *([where] if where else [])]

    def _settle(self, problems: list[str], what: str) -> None:
        if problems:
            self.failures += problems
        else:
            self._say(f"  ✓ {what}")


def mib(size_bytes: float) -> str:
    """Bytes as a person reads them in the demo's tables."""
    return f"{size_bytes / 2**20:,.1f} MiB"
