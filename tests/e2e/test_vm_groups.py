"""Goal: a group given whole with the job's input, by tags and with a disk filter, backs up exactly what it selects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from lab.datacentre import MEDIA_AGENT, DataCentre
from lab.esx.api import Settings
from lab.processes import LabError
from lab.proof import Witness
from lab.site import (
    BACKUP_PRIVILEGES,
    BACKUP_USER,
    LAB_PASSWORD,
    RESTORE_PRIVILEGES,
    DatastoreSpec,
    DiskSpec,
    Site,
    UserSpec,
    VmSpec,
)
from tests.e2e.site import (
    data_centre,
    differences,
    failure_of,
    restored_images,
    run_job,
    start_job,
    vm_of,
    wait_end,
)

pytestmark = pytest.mark.slow

MIB = 2**20
TWIN = "50000000-0000-4000-8000-000000000001"
GOLD = ["Backup/gold"]
GROUP: dict[str, Any] = {
    "name": "adhoc",
    "vcenter": "lab",
    "media_agent": MEDIA_AGENT,
    "rules": [{"tag": "gold", "category": "Backup"}],
    "exclude": [{"attribute": "Backup", "value": "never"}],
    "exclude_disks": [{"controller_key": 1001}],
    "min_free_bytes": "1 MiB",
}


def _site() -> Site:
    disk = DiskSpec(size_bytes=4 * MIB)
    swap = DiskSpec(size_bytes=3 * MIB, content="random", controller=1, datastore="scratch-vmfs")
    return Site(
        datastores=[
            DatastoreSpec(name="nfs-gold", type="NFS", remote_path="/exports/gold"),
            # No access node reaches it: only disks that nobody wants may lie there.
            DatastoreSpec(name="scratch-vmfs", type="VMFS"),
        ],
        vms=[
            VmSpec(name="web", datastore="nfs-gold", disks=[disk, swap], guest_rate=50, tags=GOLD),
            VmSpec(name="only swap", datastore="nfs-gold", disks=[swap], tags=GOLD),
            VmSpec(name="twin a", datastore="nfs-gold", disks=[disk], instance_uuid=TWIN, tags=GOLD),
            VmSpec(name="twin b", datastore="nfs-gold", disks=[disk], instance_uuid=TWIN),
            VmSpec(
                name="never", datastore="nfs-gold", disks=[disk], tags=GOLD, attributes={"Backup": "never"}
            ),
            VmSpec(name="silver", datastore="nfs-gold", disks=[disk], tags=["Backup/silver"]),
        ],
        users=[
            UserSpec(
                name=BACKUP_USER, password=LAB_PASSWORD, privileges=[*BACKUP_PRIVILEGES, *RESTORE_PRIVILEGES]
            )
        ],
        settings=Settings(record_frozen=True, default_duration_s=0.05),
    )


@dataclass(frozen=True)
class Ran:
    """A data centre in which the job has run."""

    lab: DataCentre
    report: dict[str, Any]
    problems: list[str]


@pytest.fixture(scope="module")
def ran() -> Iterator[Ran]:
    with data_centre(_site(), nodes=("node-1",), streams=1) as lab:
        lab.start_workers()
        witness = Witness(lab.hosts, lab.state / "datastores")
        report = run_job(lab, "adhoc-1", GROUP)
        yield Ran(lab, report, witness.problems())


def test_what_the_rules_select_is_backed_up_or_failed_with_its_reason(ran: Ran) -> None:
    assert (ran.report["vm_group"], ran.report["status"]) == ("adhoc", "Partial")
    told = {vm["name"]: (vm["status"], vm["reason"]) for vm in ran.report["vms"]}
    assert set(told) == {"web", "only swap", "twin a"}
    assert told["web"] == ("Completed", "")
    assert told["only swap"][0] == told["twin a"][0] == "Failed"
    assert "disk filters leave none of the 1 disks" in told["only swap"][1]
    assert "belongs to several VMs: 'twin a'" in told["twin a"][1]
    notes = {note["name"]: note["reason"] for note in ran.report["noteworthy"]}
    assert notes["never"] == "excluded by attribute 'Backup' with value 'never'"
    assert ran.problems == []


def test_the_deselected_disk_is_named_everywhere_and_not_stored(ran: Ran) -> None:
    web = vm_of(ran.report, "web")
    stored, left_out = web["disks"]
    reason = "not selected: excluded by disk filter controller key 1001"
    assert (stored["transport"], stored["bytes_read"] > 0) == ("nas", True)
    assert (left_out["transport"], left_out["reason"], left_out["bytes_read"]) == ("deselected", reason, 0)
    shown = json.loads(ran.lab.safehaul("backups", "show", f"{web['vc_guid']}/{web['backup_id']}", "--json"))
    (skipped,) = shown["manifest"]["skipped"]
    assert (skipped["label"], skipped["deselected"], skipped["reason"]) == (left_out["label"], True, reason)
    assert shown["index"]["status"] == "Completed"
    images = restored_images(ran.lab, web)
    assert set(images) == {stored["key"]}
    assert differences(ran.lab, web, images) == []


def test_the_preview_had_said_so(ran: Ran) -> None:
    shown = json.loads(ran.lab.safehaul("group", "preview", json.dumps(GROUP), "--json"))
    assert [item["name"] for item in shown["included"]] == ["web"]
    assert {item["name"] for item in shown["failing"]} == {"only swap", "twin a"}
    assert [item["name"] for item in shown["excluded"]] == ["never"]
    assert {item["name"] for item in shown["unmatched"]} == {"twin b", "silver"}


def test_the_catalogue_lists_the_backup_under_the_groups_name(ran: Ran) -> None:
    (row,) = json.loads(ran.lab.safehaul("backups", "list", "--group", "adhoc", "--json"))
    assert (row["vm_name"], row["status"]) == ("web", "Completed")


def test_a_wrong_group_fails_at_once_and_names_the_key(ran: Ran) -> None:
    start_job(ran.lab, "adhoc-wrong", {**GROUP, "rules": [{"name": "(", "regex": True}], "vcenter": "lba"})
    assert wait_end(ran.lab, "adhoc-wrong", 30) == "FAILED"
    done = ran.lab.temporal.cli("workflow", "show", "--workflow-id", "adhoc-wrong", "--output", "json")
    assert "vm_group.rules[0].name: is no regular expression" in done.stdout
    assert "did you mean 'lab'?" in done.stdout
    # Nothing was discovered, and no report claims otherwise: the command tells the failure, as wrong input.
    with pytest.raises(LabError, match=r"ended with 2(.|\n)*the inline VM group is wrong"):
        ran.lab.safehaul("job", "show", "adhoc-wrong")


def test_the_command_starts_a_group_given_whole_and_tells_a_wrong_one_in_the_workflows_words(
    ran: Ran,
) -> None:
    """Goal: a wrong group is refused before anything is started, with the very message of the job that fails by it."""
    wrong = {**GROUP, "rules": [{"name": "(", "regex": True}], "vcenter": "lba"}
    start_job(ran.lab, "adhoc-wrong-2", wrong)
    wait_end(ran.lab, "adhoc-wrong-2", 30)
    with pytest.raises(LabError) as refused:
        ran.lab.safehaul("job", "start", "--group-json", json.dumps(wrong), "--workflow-id", "adhoc-wrong-3")
    failure = failure_of(ran.lab, "adhoc-wrong-2")
    assert failure.startswith("the inline VM group is wrong: ")
    assert failure in str(refused.value)
    assert ran.lab.temporal.cli("workflow", "describe", "--workflow-id", "adhoc-wrong-3").returncode != 0
    one = {**GROUP, "rules": [{"name": "web"}]}
    ended = json.loads(ran.lab.safehaul("job", "start", "--wait", "--group-json", json.dumps(one), "--json"))
    assert ended["workflow_id"].startswith("adhoc-")
    assert [(vm["name"], vm["status"]) for vm in ended["report"]["vms"]] == [("web", "Completed")]
