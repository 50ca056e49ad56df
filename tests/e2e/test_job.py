"""One job over real parts: who did what, in which order, and whether what it claims is true."""

from __future__ import annotations

import itertools
import json
import re
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest

from lab.datacentre import DataCentre
from lab.esx.api import FaultRule
from lab.other_user import UNUSED_UID, as_user, can_change_user
from lab.proof import Witness, file_system_check, frozen_record, is_ext4, one_point_in_time
from lab.site import demo_site
from safehaul.catalog.catalog import Catalog
from tests.e2e.site import (
    data_centre,
    differences,
    mounted_by_hosts_as,
    report_of,
    restored_images,
    run_job,
    start_job,
    status,
    steps_of,
    vm_of,
    wait_end,
)
from tests.ganesha import needs_ganesha

JOB = "nightly-1"
VM_ORDER = [
    "inspect_vm",
    "create_snapshot",
    "check_transport",
    "download_files",
    "open_backup",
    "store_files",
    "transfer_disk",
    "finish_reading",
    "seal_backup",
    "remove_snapshot",
    "mark_completed",
    "write_index",
    "ask_for_vm",
]


@dataclass(frozen=True)
class Ran:
    """A data centre in which the job has run."""

    lab: DataCentre
    report: dict[str, Any]
    witness: Witness
    served_bytes: int


FILERS: list[Any] = [
    "rclone",
    needs_ganesha("ganesha NFS", slow=True),
    needs_ganesha("ganesha NFS41", slow=True),
]
"""The kind of filer, and how the hosts mount it where that is not as the site says: rclone speaks v3 for both."""


@pytest.fixture(scope="module", params=FILERS)
def ran(request: pytest.FixtureRequest) -> Iterator[Ran]:
    kind, _, mounted_as = request.param.partition(" ")
    site = mounted_by_hosts_as(demo_site(6), mounted_as) if mounted_as else demo_site(6)
    with data_centre(site, filer=kind) as lab:
        lab.start_workers()
        witness = Witness(lab.hosts, lab.state / "datastores")
        before = lab.served_bytes()
        report = run_job(lab, JOB)
        yield Ran(lab, report, witness, lab.served_bytes() - before)


def test_the_workers_cannot_read_the_datastores_themselves(ran: Ran) -> None:
    if not can_change_user():
        pytest.skip("only root can run the workers as another user: run the tests as root")
    command = as_user(UNUSED_UID, ["ls", str(ran.lab.state / "datastores")])
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "ermission denied" in refused.stderr


def test_every_vm_ends_as_it_must(ran: Ran) -> None:
    assert ran.report["status"] == "Partial"
    assert ran.report["totals"]["vms"] == 6
    for vm in ran.report["vms"]:
        wanted = "Partial" if vm["name"] == "mixed-disks" else "Completed"
        assert (vm["name"], vm["status"]) == (vm["name"], wanted), vm["reason"]
    mixed = vm_of(ran.report, "mixed-disks")
    assert "independent_persistent" in mixed["reason"]
    assert [disk["transport"] for disk in mixed["disks"]] == ["nas", "none"]


def test_nothing_is_left_behind_and_nothing_foreign_was_touched(ran: Ran) -> None:
    assert ran.witness.problems() == []


def test_the_filer_served_what_the_report_claims(ran: Ran) -> None:
    claimed = ran.report["totals"]["bytes_read"]
    assert abs(ran.served_bytes - claimed) <= 0.05 * claimed


def test_the_coordinators_steps_ran_on_its_own_queue(ran: Ran) -> None:
    queue = f"access-node.{ran.report['coordinator']}"
    steps = steps_of(ran.lab, JOB)
    for name in (
        "discover",
        "take_lease",
        "admit_nodes",
        "distribute",
        "load_page",
        "write_reports",
        "close_job",
    ):
        found = [step for step in steps if step.name == name]
        assert found, name
        assert {step.queue for step in found} == {queue}, name
        assert all(step.worker.startswith(queue + "@") for step in found), name
    prepared = {step.queue for step in steps if step.name == "prepare_node"}
    assert prepared == {f"access-node.{node}" for node in ran.lab.nodes}
    order = [step.name for step in steps]
    firsts = [order.index(name) for name in ("choose_coordinator", "discover", "take_lease", "prepare_node")]
    firsts += [order.index(name) for name in ("admit_nodes", "distribute", "close_job")]
    assert firsts == sorted(firsts)


def test_each_vms_steps_ran_on_its_node_and_in_the_order_of_the_contract(ran: Ran) -> None:
    for vm in ran.report["vms"]:
        steps = steps_of(ran.lab, vm["child_id"])
        names = list(dict.fromkeys(step.name for step in steps))
        assert names == VM_ORDER, vm["name"]
        node = f"access-node.{vm['node']}"
        for step in steps:
            wanted = (
                "media-agent.vault" if step.name in ("open_backup", "seal_backup", "write_index") else node
            )
            if step.name == "transfer_disk":
                wanted = f"{node}.streams"
            assert step.queue == wanted, (vm["name"], step)
            assert step.worker.split("@")[0] == wanted.removesuffix(".streams"), (vm["name"], step)
        for earlier, later in itertools.pairwise(steps):
            assert earlier.completed <= later.scheduled, (vm["name"], earlier, later)


def test_later_vms_were_given_because_a_dry_node_asked(ran: Ran) -> None:
    streams = ran.lab.streams * len(ran.lab.nodes)
    given = [vm["given_by"] for vm in ran.report["vms"]]
    assert given.count("request") == max(0, len(given) - streams)


def test_every_disk_equals_the_frozen_point_in_time(ran: Ran) -> None:
    for vm in ran.report["vms"]:
        images = restored_images(ran.lab, vm)
        assert differences(ran.lab, vm, images) == []
        moref = next(item.moref for item in ran.lab.hosts.state().vms if item.name == vm["name"])
        record = frozen_record(ran.lab.hosts, moref, vm["snapshot_moref"])
        assert one_point_in_time(record, list(images.values())) == ""
        for image in images.values():
            image.unlink()


@pytest.mark.requires_debian("mke2fs", package="e2fsprogs")
def test_the_file_system_of_a_running_guest_is_clean_in_the_backup(ran: Ran) -> None:
    images = restored_images(ran.lab, vm_of(ran.report, "files"))
    assert [is_ext4(image) for image in images.values()] == [True]
    assert [file_system_check(image) for image in images.values()] == [""]
    for image in images.values():
        image.unlink()


def test_the_index_holds_the_record_of_the_snapshots_removal(ran: Ran) -> None:
    vm = vm_of(ran.report, "Büro Server 01")
    shown = json.loads(ran.lab.safehaul("backups", "show", f"{vm['vc_guid']}/{vm['backup_id']}", "--json"))
    removal = shown["index"]["removal"]
    assert shown["index"]["status"] == "Completed"
    assert removal["morefs"] == [vm["snapshot_moref"]]
    assert removal["consolidation_needed_after"] is False
    assert removal["left"] == []
    assert any(file["name"].endswith(".vmx") for file in shown["manifest"]["files"])


def test_a_rebuilt_catalogue_has_the_same_rows(ran: Ran) -> None:
    """Backups and jobs, into an empty database: nothing is known but from the repository."""
    before = ran.lab.safehaul("backups", "list", "--json")
    assert len(json.loads(before)) == 6
    rows = _catalogued(ran.lab)
    assert [len(table) for table in rows] == [6, 1, 6]
    for path in ran.lab.home.glob("catalog.db*"):
        path.rename(path.with_name(f"old-{path.name}"))
    ran.lab.safehaul("catalog", "rebuild")
    assert ran.lab.safehaul("backups", "list", "--json") == before
    assert _catalogued(ran.lab) == rows
    for path in ran.lab.home.glob("catalog.db*"):
        path.unlink()
    for path in ran.lab.home.glob("old-catalog.db*"):  # the workers still hold this one open
        path.rename(path.with_name(path.name.removeprefix("old-")))


def test_the_workers_share_one_kept_index(ran: Ran) -> None:
    """It knows the packs of the job that has just ended, so that the next start reads only what is new."""
    (kept,) = (ran.lab.home / "cache").glob("*.index")
    with closing(sqlite3.connect(f"file:{kept}?mode=ro", uri=True)) as index:
        known = {bytes(row[0]).hex() for row in index.execute("SELECT id FROM pack")}
    stored = {path.name for path in ran.lab.repository.glob("packs/*/*")}
    assert known
    assert known <= stored


def _catalogued(lab: DataCentre) -> tuple[list[Any], list[Any], list[Any]]:
    catalog = Catalog(f"sqlite:///{lab.home / 'catalog.db'}")
    jobs = catalog.list_jobs()
    found = list(catalog.export()), jobs, [vm for job in jobs for vm in catalog.job_vms(job.job_id)]
    catalog.close()
    return found


def test_no_secret_is_in_history_log_or_repository(ran: Ran) -> None:
    secret = "lab-Secret-1"  # the lab's password, known to everybody
    ids = [JOB, *(vm["child_id"] for vm in ran.report["vms"])]
    for workflow_id in ids:
        assert (
            secret
            not in ran.lab.temporal.cli(
                "workflow", "show", "--workflow-id", workflow_id, "--output", "json"
            ).stdout
        )
    for worker in ran.lab.workers.values():
        assert secret not in worker.log_text()
        assert "Traceback" not in worker.log_text()
    assert not [
        path
        for path in ran.lab.repository.rglob("*")
        if path.is_file() and secret.encode() in path.read_bytes()
    ]


def test_a_restored_vm_is_a_vm_of_its_own_and_the_next_job_backs_both_up(ran: Ran) -> None:
    vm = vm_of(ran.report, "Büro Server 01")
    backup = f"{vm['vc_guid']}/{vm['backup_id']}"
    arguments = ["restore", "vm", backup, "--name", "Büro restored", "--datastore", "nfs-gold", "--json"]
    restored = json.loads(ran.lab.safehaul(*arguments))["report"]
    vms = {item.name: item for item in ran.lab.hosts.state().vms}
    copy, original = vms["Büro restored"], vms["Büro Server 01"]
    assert copy.moref == restored["moref"]
    assert copy.power_state == "poweredOff"
    assert copy.instance_uuid != original.instance_uuid
    assert copy.bios_uuid != original.bios_uuid
    assert not any(nic.connected for nic in copy.hardware.nics)
    home = ran.lab.state / "datastores" / "nfs-gold" / "Büro restored"
    flats = sorted(home.glob("*-flat.vmdk"), key=lambda path: (len(path.name), path.name))
    keys = [disk["key"] for disk in vm["disks"]]
    assert differences(ran.lab, vm, dict(zip(keys, flats, strict=True))) == []
    assert not (home / "safehaul-restore.json").exists()

    refused = json.loads(ran.lab.safehaul(*arguments, check=False))["report"]
    assert refused["status"] == "Failed", "a second restore under the same name must be refused"
    assert "choose another name" in refused["reason"]
    assert differences(ran.lab, vm, dict(zip(keys, flats, strict=True))) == [], "and harms nothing"

    second = run_job(ran.lab, "nightly-2")
    both = {item["name"]: item for item in second["vms"]}
    assert both["Büro restored"]["status"] == both["Büro Server 01"]["status"] == "Completed"
    assert both["Büro restored"]["vc_guid"] != both["Büro Server 01"]["vc_guid"]
    assert both["Büro restored"]["bytes_stored"] == 0, "the copy's chunks are all known"
    assert ran.witness.problems() == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--type", "BackupJob", "--input", '{"vm_group": "nobody"}'], r"no VM group 'nobody'; it has: demo"),
        (["--type", "BackupJob", "--input", '{"group": "demo"}'], r"vm_group: Field required"),
        (["--type", "BackupJob", "--input", '{"vm_group": 7}'], r"vm_group: must be the name of a VM group"),
        (["--type", "BackupJob", "--input", '"demo"'], r"the input: Input should be a valid dictionary"),
        (["--type", "BackupJob"], r"takes an input"),
        (["--type", "BackupJob", *["--input", '{"vm_group": "demo"}'] * 2], r"takes one input, got 2"),
        (["--type", "BackupJobs", "--input", "{}"], r"does not exist; there are: BackupJob"),
    ],
)
def test_a_mistake_at_the_command_line_fails_at_once_and_says_why(
    ran: Ran, arguments: list[str], says: str
) -> None:
    workflow_id = f"mistake-{abs(hash(says))}"
    ran.lab.temporal.cli(
        "workflow", "start", "--task-queue", "commserve", "--workflow-id", workflow_id, *arguments
    )
    result = ran.lab.temporal.cli("workflow", "result", "--workflow-id", workflow_id)
    assert status(ran.lab, workflow_id) == "FAILED"
    assert re.search(says, result.stdout + result.stderr), result.stdout + result.stderr


def test_signals_that_cannot_be_understood_are_shown_and_harm_nothing(ran: Ran) -> None:
    """By the plain `temporal` command: each is named in the query `progress`, and the job goes on to its end."""
    lab, job = ran.lab, "signalled"
    lab.hosts.add_fault(FaultRule(operation="CreateSnapshot", effect="stall", seconds=8.0, phase="middle"))
    start_job(lab, job)
    deadline = time.monotonic() + 60
    while not any(task.state == "running" for task in lab.hosts.state().tasks):
        assert time.monotonic() < deadline, "no VM is being backed up"
        time.sleep(0.1)
    mistakes = [
        (["cancel_vm", "--input", '{"vm": 7}'], "signal cancel_vm: vm: Input should be a valid string"),
        (["cancel_vm", "--input", '{"name": "files"}'], "name: Extra inputs are not permitted"),
        (
            ["cancel_vm", "--input", '{"vm": "nobody"}'],
            "signal cancel_vm: no running or waiting VM is named 'nobody'",
        ),
        (["cancel_vm"], 'signal cancel_vm: takes one input like {"vm": "NAME"}, got 0'),
        (["cancel_vm", *["--input", '{"vm": "files"}'] * 2], "got 2"),
        (["halt", "--input", '"now"'], "signal 'halt' does not exist; there are: cancel, cancel_vm"),
    ]
    for arguments, _ in mistakes:
        sent = lab.temporal.cli("workflow", "signal", "--workflow-id", job, "--name", *arguments)
        assert sent.returncode == 0, sent.stderr
    asked = lab.temporal.cli(
        "workflow", "query", "--workflow-id", job, "--type", "progress", "--output", "json"
    )
    (progress,) = json.loads(asked.stdout)["queryResult"]
    assert progress["status"] == "Running"
    assert len(progress["rejected_signals"]) == len(mistakes)
    for (_, says), rejected in zip(mistakes, progress["rejected_signals"], strict=True):
        assert says in rejected
    assert wait_end(lab, job) == "COMPLETED"
    report = report_of(lab, job)
    assert {vm["name"] for vm in report["vms"] if vm["status"] != "Completed"} == {"mixed-disks"}
    assert vm_of(report, "mixed-disks")["status"] == "Partial"
