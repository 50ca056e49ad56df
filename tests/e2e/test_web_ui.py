"""Temporal's web UI in a real browser: an administrator finds a job, its VMs, their steps and tables, and filters.

What is looked at is a job of real workers whose reads the filer holds, so that the moment stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import unquote

import pytest

from lab.datacentre import DataCentre
from lab.esx.api import Settings
from lab.site import (
    ADMINISTRATOR,
    BACKUP_PRIVILEGES,
    BACKUP_USER,
    LAB_PASSWORD,
    DatastoreSpec,
    DiskSpec,
    Site,
    UserSpec,
    VmSpec,
)
from tests.e2e.browser import CHROMEDRIVER, CHROMIUM, WebUi
from tests.e2e.site import data_centre, start_job, wait_end

pytestmark = [
    pytest.mark.requires_debian(CHROMIUM, package="chromium"),
    pytest.mark.requires_debian(CHROMEDRIVER, package="chromium-driver"),
]

MIB = 2**20
JOB = "seen-1"


def _site() -> Site:
    disks = [DiskSpec(size_bytes=48 * MIB)]
    return Site(
        datastores=[DatastoreSpec(name="nfs-gold", type="NFS", remote_path="/exports/gold")],
        vms=[
            VmSpec(name="web [1]", datastore="nfs-gold", disks=disks),
            VmSpec(name="Büro", datastore="nfs-gold", disks=disks),
        ],
        users=[
            UserSpec(name=ADMINISTRATOR, password=LAB_PASSWORD, privileges=["*"]),
            UserSpec(name=BACKUP_USER, password=LAB_PASSWORD, privileges=BACKUP_PRIVILEGES),
        ],
        settings=Settings(),
    )


@pytest.fixture(scope="module")
def lab() -> Iterator[DataCentre]:
    with data_centre(_site(), nodes=("node-1",), gate=True, ui=True) as started:
        started.gate.hold("*-flat.vmdk", 16 * MIB)
        started.start_workers()
        start_job(started, JOB)
        yield started
        started.gate.release()
        assert wait_end(started, JOB) == "COMPLETED"


@pytest.fixture(scope="module")
def ui(lab: DataCentre) -> Iterator[WebUi]:
    with WebUi(lab.temporal.ui_url) as browser:
        yield browser


def _workflow_of(lab: DataCentre, vm: str) -> str:
    done = lab.temporal.cli("workflow", "list", "--query", f'VmName = "{vm}"', "--output", "json")
    (found,) = json.loads(done.stdout)
    return str(found["execution"]["workflowId"])


def test_the_jobs_page_tells_its_steps_and_leads_to_its_vms(lab: DataCentre, ui: WebUi) -> None:
    ui.open_workflow(JOB)
    ui.shows(
        "Step 1 · ",
        "Step 2 · discover the VMs",
        "Step 3 · node-1 takes the job's lease",
        "Step 4 · admit the access nodes",
        "Step 5 · distribute 2 VMs",
        "web [1] on node-1",
        "Büro on node-1",
    )
    ui.open_tab("user-metadata")
    shown = ui.details("2 running")
    for text in ("demo", "backing up", "node-1", "web [1]", "Büro"):
        assert text in shown
    address = ui.follow("web [1]")
    assert unquote(unquote(address)).rpartition("/workflows/")[2].startswith(_workflow_of(lab, "web [1]"))


def test_a_vms_page_tells_its_steps_disks_and_how_far_it_is(lab: DataCentre, ui: WebUi) -> None:
    ui.open_workflow(_workflow_of(lab, "Büro"))
    ui.shows(
        "Before step 6 · record the VM's snapshots, files and debt",
        "Steps 6–7 · snapshot",
        "Step 8 · verify the NAS transport, disk by disk",
        "Step 9 · download the VM's files",
        "Step 10 · open the backup",
        "Step 11 · Hard disk 1 (1 of 1)",
    )
    ui.open_tab("user-metadata")
    shown = ui.details("step 11: reading Hard disk 1")
    for text in ("Snapshot snapshot-", ": held", "48.0 MiB", "reading", "Seconds: step 6"):
        assert text in shown
    ui.open_tab("pending-activities")
    ui.shows("transfer_disk", '"disk": "Hard disk 1"', f'"done_bytes": {16 * MIB}', '"waits_for": "filer"')
    ui.open_tab("search-attributes")
    ui.shows('"VmName": "Büro"', '"AccessNode": "node-1"', '"VmGroup": "demo"', '"BackupStatus": "Running"')


def test_search_attributes_filter_the_list(lab: DataCentre, ui: WebUi) -> None:
    ui.open_list('VmName="Büro"')
    (row,) = ui.list_rows(1)
    assert row["Workflow ID"] == _workflow_of(lab, "Büro")
    assert row["Type"] == "BackupVm"
    ui.choose_columns(
        add=["VmName", "AccessNode", "BackupStatus"], remove=["Run ID", "Type"], last="Workflow ID"
    )
    ui.open_list('WorkflowType="BackupVm" AND VmGroup="demo" AND AccessNode="node-1"')
    found = {row["VmName"]: row["BackupStatus"] for row in ui.list_rows(2)}
    assert found == {"web [1]": "Running", "Büro": "Running"}
    ui.open_list('VmGroup="demo"')
    assert JOB in {row["Workflow ID"] for row in ui.list_rows(3)}
    ui.open_list('VmName="nobody"')
    assert ui.list_rows(0) == []


def test_the_end_of_a_vm_and_of_the_job_is_told_where_one_looks(lab: DataCentre, ui: WebUi) -> None:
    lab.gate.release()
    assert wait_end(lab, JOB) == "COMPLETED"
    ui.open_workflow(_workflow_of(lab, "web [1]"))
    ui.shows(
        "Step 12 · read back and commit the manifest",
        "Step 13 · remove the snapshot",
        "Step 14 · write the VM's index",
        "Step 15 · ",
    )
    ui.open_tab("user-metadata")
    shown = ui.details("Completed", ": removed")
    assert "Backup " in shown
    ui.open_workflow(JOB)
    ui.shows("Step 17 · report the job's result")
    ui.open_tab("user-metadata")
    shown = ui.details("2 completed")
    assert "96.0 MiB read" in shown
