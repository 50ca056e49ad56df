"""`safehaul demo`: a data centre on loopback, one job started as a user would, a restore, and the proof of both."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from lab.datacentre import VM_GROUP, DataCentre
from lab.processes import LabError, answers, tool
from lab.proof import Witness, compare_disks, file_system_check, frozen_record, is_ext4, one_point_in_time
from lab.site import LAB_PASSWORD, demo_site

WORKFLOW_ID = "demo-1"
JOB_WITHIN_S = 600.0
# The filer's reads may exceed the disks' bytes by descriptors, small files and a chain's base.
SERVED_TOLERANCE = 0.05


class _InterruptedError(Exception):
    """Ctrl-C, or a polite request to end."""


class Demo:
    """One run: `run` returns the exit code and leaves nothing behind."""

    def __init__(self, vms: int, *, keep: bool, say: Callable[[str], None]) -> None:
        self._vms = vms
        self._keep = keep
        self._say = say
        self._failures: list[str] = []
        self._directory = Path(tempfile.mkdtemp(prefix="safehaul-demo-"))
        self._lab = DataCentre(self._directory, demo_site(vms))

    def run(self) -> int:
        """Play the demo. 0 when every check passed, 1 otherwise; the last line says which."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupt)
        interrupted = False
        try:
            self._play()
        except _InterruptedError:
            interrupted = True
            self._failures.append("interrupted")
        except Exception as error:  # noqa: BLE001 - whatever went wrong: clean up, and say FAILED
            self._failures.append(f"{type(error).__name__}: {error}")
            self._show_logs()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            self._clean_up()
        for failure in self._failures:
            self._say(f"  ✗ {failure}")
        self._say("demo: FAILED" if self._failures else "demo: PASSED")
        if interrupted:
            return 130
        return 1 if self._failures else 0

    def _play(self) -> None:
        started = time.monotonic()
        self._say("Starting a data centre on loopback: hosts, vCenter, NFS filers, Temporal …")
        self._lab.start()
        self._say(f"  Temporal web UI: {self._lab.temporal.ui_url}")
        self._lab.start_workers()
        self._say(f"  workers: {', '.join(self._lab.workers)}  ({time.monotonic() - started:.1f} s)")
        witness = Witness(self._lab.hosts, self._lab.state / "datastores")
        served_before = self._lab.served_bytes()
        self._start_job()
        report = self._wait_for_job()
        self._show_report(report)
        self._check_job(report, self._lab.served_bytes() - served_before)
        self._check_disks(report)
        self._restore_one(report)
        problems = witness.problems()
        self._failures += problems
        self._check(not problems, "no snapshot and no file left behind, foreign snapshots untouched")
        self._where_to_look()
        if self._keep:
            self._stay()

    def _start_job(self) -> None:
        command = [
            *("temporal", "workflow", "start", "--type", "BackupJob", "--task-queue", "commserve"),
            *("--workflow-id", WORKFLOW_ID, "--input", json.dumps({"vm_group": VM_GROUP})),
        ]
        self._say(f"\nStarting the job as a user would:\n  $ {shlex.join(command)}")
        done = self._lab.temporal.cli(*command[1:])
        if done.returncode:
            raise LabError(f"the job was not started: {done.stderr or done.stdout}")

    def _wait_for_job(self) -> dict[str, Any]:
        deadline = time.monotonic() + JOB_WITHIN_S
        last = ""
        while time.monotonic() < deadline:
            shown = json.loads(self._lab.safehaul("job", "show", WORKFLOW_ID, "--json", check=False) or "{}")
            progress, report = shown.get("progress"), shown.get("report")
            if report:
                return dict(report)
            if progress:
                totals = progress["totals"]
                line = (
                    f"  {progress['stage']}: {len(progress['running'])} running, {progress['waiting']} waiting, "
                    f"{totals['vms']} done"
                )
                if line != last:
                    self._say(line)
                    last = line
            self._must_all_run()
            time.sleep(0.5)
        raise TimeoutError(f"the job did not end within {JOB_WITHIN_S:g} s")

    def _must_all_run(self) -> None:
        dead = [name for name, worker in self._lab.workers.items() if not worker.running]
        if dead:
            raise LabError(f"worker {dead[0]} ended:\n{self._lab.workers[dead[0]].log_end()}")

    def _show_report(self, report: dict[str, Any]) -> None:
        self._say(f"\nJob {WORKFLOW_ID}: {report['status']} {report['reason']}")
        self._say(
            f"  {'VM':<24} {'status':<10} {'node':<8} {'read':>9} {'stored':>9} {'seconds':>8}  remarks"
        )
        for vm in sorted(report["vms"], key=lambda item: str(item["name"])):
            seconds = sum(vm["step_seconds"].values())
            remarks = "; ".join(filter(None, [vm["reason"], *vm["warnings"]]))[:90]
            self._say(
                f"  {vm['name']:<24} {vm['status']:<10} {vm['node']:<8} {_mib(vm['bytes_read']):>9} "
                f"{_mib(vm['bytes_stored']):>9} {seconds:>8.1f}  {remarks}"
            )
        totals = report["totals"]
        self._say(
            f"  total: {totals['vms']} VMs, {totals['completed']} completed, {totals['partial']} partial, "
            f"{totals['failed']} failed; {_mib(totals['bytes_read'])} read, {_mib(totals['bytes_stored'])} stored\n"
        )

    def _check_job(self, report: dict[str, Any], served: int) -> None:
        expected = {"mixed-disks": "Partial", "half-local": "Partial", "local-only": "Failed"}
        for vm in report["vms"]:
            wanted = expected.get(vm["name"], "Completed")
            if vm["status"] != wanted:
                self._failures.append(f"{vm['name']} is {vm['status']}, expected {wanted}: {vm['reason']}")
        self._check(report["totals"]["vms"] == self._vms, f"all {self._vms} VMs are in the report")
        claimed = report["totals"]["bytes_read"]
        ratio = served / claimed if claimed else 0.0
        self._check(
            abs(ratio - 1) <= SERVED_TOLERANCE,
            f"the filer served {_mib(served)}, the report claims {_mib(claimed)} ({ratio:.3f})",
        )

    def _check_disks(self, report: dict[str, Any]) -> None:
        """Every stored disk, byte for byte, against what the hosts froze while the guests wrote on."""
        count = 0
        for vm in report["vms"]:
            if not vm["backup_id"]:
                continue
            images: dict[int, Path] = {}
            for disk in vm["disks"]:
                if disk["transport"] != "nas":
                    continue
                target = self._lab.home / f"check-{count}-{disk['key']}.raw"
                backup = f"{vm['vc_guid']}/{vm['backup_id']}"
                self._lab.safehaul("restore", "disk", backup, str(disk["key"]), "--to", str(target))
                images[disk["key"]] = target
            self._compare(vm, images)
            count += 1
        self._check(count > 0, f"the disks of {count} backups equal the frozen point in time, byte for byte")

    def _compare(self, vm: dict[str, Any], images: dict[int, Path]) -> None:
        moref = next(item.moref for item in self._lab.hosts.state().vms if item.name == vm["name"])
        record = frozen_record(self._lab.hosts, moref, vm["snapshot_moref"])
        self._failures += compare_disks(record, images)
        problem = one_point_in_time(record, list(images.values()))
        if problem:
            self._failures.append(problem)
        for image in images.values():
            wrong = file_system_check(image) if is_ext4(image) else ""
            if wrong:
                self._failures.append(f"{vm['name']}: {wrong}")
            image.unlink()

    def _restore_one(self, report: dict[str, Any]) -> None:
        vm = next(item for item in report["vms"] if len(item["disks"]) > 1 and item["status"] == "Completed")
        name = f"{vm['name']} restored"
        self._say(f"Restoring {vm['name']!r} as {name!r} …")
        self._lab.safehaul(
            *(
                "restore",
                "vm",
                f"{vm['vc_guid']}/{vm['backup_id']}",
                "--name",
                name,
                "--datastore",
                "nfs-gold",
            )
        )
        self._lab.filers.wait_settled()
        restored = next((item for item in self._lab.hosts.state().vms if item.name == name), None)
        if restored is None:
            self._failures.append(f"{name!r} is not in vCenter")
            return
        moref = next(item.moref for item in self._lab.hosts.state().vms if item.name == vm["name"])
        record = frozen_record(self._lab.hosts, moref, vm["snapshot_moref"])
        home = self._lab.state / "datastores" / "nfs-gold" / name
        flats = sorted(home.glob("*-flat.vmdk"), key=lambda path: (len(path.name), path.name))
        keys = [disk["key"] for disk in vm["disks"] if disk["transport"] == "nas"]
        images = dict(zip(keys, flats, strict=True))
        problems = compare_disks(record, images)
        self._failures += problems
        where = one_point_in_time(record, flats)
        if where:
            self._failures.append(where)
        self._check(
            not problems and not where and restored.power_state == "poweredOff",
            f"{name!r} is registered, powered off, and shows one point in time over its {len(flats)} disks",
        )

    def _where_to_look(self) -> None:
        url = self._lab.temporal.ui_url
        self._say("\nWhere to look in the web UI (--keep leaves it running):")
        self._say(f"  the job:       {url}/namespaces/default/workflows/{WORKFLOW_ID}")
        self._say(f"  its VMs:       {url}/namespaces/default/workflows?query=VmGroup%3D%22{VM_GROUP}%22")

    def _stay(self) -> None:
        self._say(
            "\nEverything runs until Ctrl-C. Try, in another terminal:\n"
            f"  export SAFEHAUL_CONFIG={self._lab.config} LAB_VCENTER_PASSWORD={LAB_PASSWORD}\n"
            f"  {tool('safehaul')} backups list\n"
            f"  {tool('temporal')} workflow list --address {self._lab.temporal.address}"
        )
        while True:
            try:
                time.sleep(1.0)
            except _InterruptedError:
                return

    def _check(self, passed: bool, what: str) -> None:
        if passed:
            self._say(f"  ✓ {what}")
        else:
            self._failures.append(what)

    def _show_logs(self) -> None:
        for name, worker in self._lab.workers.items():
            self._say(f"--- {name}: {worker.log_end(10)}")

    def _clean_up(self) -> None:
        self._lab.stop()
        left = self._lab.left_behind()
        if left or answers(self._lab.temporal.port):
            self._failures.append(f"processes are left behind: {', '.join(left) or 'temporal'}")
        shutil.rmtree(self._directory, ignore_errors=True)


def run_demo(vms: int = 6, *, keep: bool = False) -> int:
    """Run the demo and print what happens; returns the exit code."""

    def say(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    return Demo(vms, keep=keep, say=say).run()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise _InterruptedError


def _mib(size_bytes: float) -> str:
    return f"{size_bytes / 2**20:,.1f} MiB"
