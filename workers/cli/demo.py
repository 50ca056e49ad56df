"""`safehaul demo`: a data centre on loopback, one job started as a user would, a restore, and the proof of both."""

from __future__ import annotations

import contextlib
import json
import os
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
from lab.processes import LabError
from lab.proof import Witness
from lab.site import demo_site
from workers.cli.demo_checks import Checks, mib
from workers.cli.output import show_json

WORKFLOW_ID = "demo-1"
JOB_WITHIN_S = 600.0
ENVIRONMENT = Path(sys.prefix) / "demo-environment"
"""Of the demo that was kept last: a link to its file of variables, at a place that a person can type."""


class _InterruptedError(Exception):
    """Ctrl-C, or a polite request to end."""


class Demo:
    """One run: `run` returns the exit code and leaves nothing behind."""

    def __init__(self, vms: int, *, keep: bool, say: Callable[[str], None]) -> None:
        self._vms = vms
        self._keep = keep
        self._say = say
        self._report: dict[str, Any] = {}
        self._directory = Path(tempfile.mkdtemp(prefix="safehaul-demo-"))
        self._lab = DataCentre(self._directory, demo_site(vms))
        self._checks = Checks(self._lab, say)

    def run(self) -> int:
        """Play the demo. 0 when every check passed, 1 otherwise (Ctrl-C too); the last line says which."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupt)
        failures = self._checks.failures
        try:
            self._play()
        except _InterruptedError:
            failures.append("interrupted before everything was checked")
        except Exception as error:  # noqa: BLE001 - whatever went wrong: clean up, and say FAILED
            failures.append(f"{type(error).__name__}: {error}")
            self._show_logs()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            self._clean_up()
        for failure in failures:
            self._say(f"  ✗ {failure}")
        self._say("demo: FAILED" if failures else "demo: PASSED")
        return 1 if failures else 0

    def result(self) -> dict[str, Any]:
        """What `run` has found, for scripts."""
        return {
            "passed": not self._checks.failures,
            "failures": self._checks.failures,
            "report": self._report or None,
        }

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
        report = self._report = self._wait_for_job()
        self._show_report(report)
        self._checks.job(report, self._vms, self._lab.served_bytes() - served_before)
        self._checks.disks(report)
        self._restore_one(report)
        self._checks.nothing_left(witness)
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
                f"  {vm['name']:<24} {vm['status']:<10} {vm['node']:<8} {mib(vm['bytes_read']):>9} "
                f"{mib(vm['bytes_stored']):>9} {seconds:>8.1f}  {remarks}"
            )
        totals = report["totals"]
        self._say(
            f"  total: {totals['vms']} VMs, {totals['completed']} completed, {totals['partial']} partial, "
            f"{totals['failed']} failed; {mib(totals['bytes_read'])} read, {mib(totals['bytes_stored'])} stored\n"
        )

    def _restore_one(self, report: dict[str, Any]) -> None:
        vm = next(item for item in report["vms"] if len(item["disks"]) > 1 and item["status"] == "Completed")
        name = f"{vm['name']} restored"
        self._say(f"Restoring {vm['name']!r} as {name!r} …")
        backup = f"{vm['vc_guid']}/{vm['backup_id']}"
        self._lab.safehaul("restore", "vm", backup, "--name", name, "--datastore", "nfs-gold")
        self._lab.filers.wait_settled()
        self._checks.restored(vm, name)

    def _where_to_look(self) -> None:
        url = self._lab.temporal.ui_url
        self._say("\nWhere to look in the web UI (--keep leaves it running):")
        self._say(f"  the job:       {url}/namespaces/default/workflows/{WORKFLOW_ID}")
        self._say(f"  its VMs:       {url}/namespaces/default/workflows?query=VmGroup%3D%22{VM_GROUP}%22")

    def _stay(self) -> None:
        file = self._directory / "environment"
        file.write_text(self._lab.shell_environment())
        try:
            _link(ENVIRONMENT, file)
            file = ENVIRONMENT
        except OSError as error:  # a virtual environment of somebody else's: the long path serves as well
            self._say(f"({ENVIRONMENT} cannot be made: {error.strerror})")
        self._say(
            "\nEverything runs until Ctrl-C. docs/tutorial.md goes on here, in another terminal in this directory:\n"
            f"  . {shlex.quote(_shown(file))}\n"
            "  safehaul backups list\n"
            "  temporal workflow list"
        )
        while True:
            try:
                time.sleep(1.0)
            except _InterruptedError:
                return

    def _show_logs(self) -> None:
        for name, worker in self._lab.workers.items():
            self._say(f"--- {name}: {worker.log_end(10)}")

    def _clean_up(self) -> None:
        with contextlib.suppress(OSError):  # there is none, or it is another demo's
            if ENVIRONMENT.readlink().parent == self._directory:
                ENVIRONMENT.unlink()
        self._lab.stop()
        self._checks.all_ended()
        shutil.rmtree(self._directory, ignore_errors=True)


def run_demo(vms: int = 6, *, keep: bool = False, as_json: bool = False) -> int:
    """Run the demo and print what happens; returns the exit code. With `as_json` stdout holds the result only."""
    told = sys.stderr if as_json else sys.stdout

    def say(text: str) -> None:
        told.write(text + "\n")
        told.flush()

    demo = Demo(vms, keep=keep, say=say)
    code = demo.run()
    if as_json:
        show_json(demo.result())
    return code


def _link(link: Path, target: Path) -> None:
    """Make a symbolic link, in place of one that a demo left behind that was killed."""
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
    link.symlink_to(target)


def _shown(path: Path) -> str:
    """The path as one types it here: from the working directory when it is below."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise _InterruptedError
