"""The end-to-end check: everything that a job's report claims, held against what can be observed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lab.datacentre import DataCentre
from lab.proof import Witness
from tests.e2e.site import differences, restored_images, results_of

SERVED_TOLERANCE = 0.05


@dataclass(frozen=True)
class Before:
    """What was true before the job."""

    witness: Witness
    served_bytes: int


def before(lab: DataCentre) -> Before:
    """Look at the data centre before a job."""
    return Before(Witness(lab.hosts, lab.state / "datastores"), lab.served_bytes())


def violations(
    lab: DataCentre, report: dict[str, Any], at_first: Before, names: set[str], streams: int
) -> Iterator[str]:
    """What does not hold of a job over exactly the VMs `names`; nothing when all is true.

    What is quickly found comes first, so that whoever waits for one violation need not restore every disk.
    """
    served_bytes = lab.served_bytes() - at_first.served_bytes
    yield from at_first.witness.problems()
    claimed_bytes = report["totals"]["bytes_read"]
    if not claimed_bytes or abs(served_bytes / claimed_bytes - 1) > SERVED_TOLERANCE:
        yield f"the filer served {served_bytes} bytes, the report claims {claimed_bytes}"
    if report["status"] != "Completed":
        yield f"the job is {report['status']}: {report['reason']}"
    if {vm["name"] for vm in report["vms"]} != names or report["totals"]["completed"] != len(names):
        yield f"the report tells of {[(vm['name'], vm['status']) for vm in report['vms']]}"
    yield from _job_objects(lab, report)
    yield from _answers(lab, report)
    yield from _catalogue(lab, report)
    if sum(vm["given_by"] == "request" for vm in report["vms"]) != max(0, len(names) - streams):
        yield "a VM was given although no dry node had asked for it"
    spool = lab.home / "spool"
    for path in spool.rglob("*"):
        if path.is_file():
            yield f"{path} is left in the spool"
    for vm in report["vms"]:
        yield from _snapshot(lab, vm)
        if vm["status"] != "Completed":
            yield f"{vm['name']} is {vm['status']}: {vm['reason']}"
        else:
            yield from _vm(lab, vm)


def _job_objects(lab: DataCentre, report: dict[str, Any]) -> list[str]:
    home = lab.repository / "jobs" / str(report["job_id"])
    kinds = {
        "lease": "step 3",
        "nodes": "step 4",
        "plan": "step 5",
        "vms": "step 2",
        "reports": "the reports",
    }
    found = [
        f"{what} has left no object jobs/JOB/{name}"
        for name, what in kinds.items()
        if not (home / name).is_dir() or not any(path.is_file() for path in (home / name).rglob("*"))
    ]
    if not (home / "report").exists():
        found.append("step 17 has left no report in the repository")
    return found


def _answers(lab: DataCentre, report: dict[str, Any]) -> list[str]:
    """The nodes' recorded answers of steps 1 and 4: who lives, with what power, and what he can reach."""
    found: list[str] = []
    for name in ("ping", "prepare_node"):
        for answer in results_of(lab, report["workflow_id"], name):
            if not (answer["version"] and answer["cores"] > 0 and answer["streams"] > 0):
                found.append(f"a node's sign of life says nothing: {answer}")
            if name == "prepare_node" and not answer["memory_bytes"]:
                found.append(f"a node has not looked at itself: {answer}")
    return found


def _catalogue(lab: DataCentre, report: dict[str, Any]) -> list[str]:
    with sqlite3.connect(f"file:{lab.home / 'catalog.db'}?mode=ro", uri=True) as database:
        jobs = database.execute("select vms from jobs where job_id = ?", (report["job_id"],)).fetchall()
        backups = database.execute(
            "select status from backups where job_id = ?", (report["job_id"],)
        ).fetchall()
    database.close()
    found = []
    if jobs != [(len(report["vms"]),)]:
        found.append(f"the catalogue says of the job: {jobs}")
    if backups != [("Completed",)] * len(report["vms"]):
        found.append(f"the catalogue says of its backups: {backups}")
    return found


def _snapshot(lab: DataCentre, vm: dict[str, Any]) -> list[str]:
    """The hosts' own record: this snapshot was made during the VM's backup, and removed before its end."""
    for record in lab.hosts.frozen_records():
        if record.snapshot == vm["snapshot_moref"] and record.vm_name == vm["name"]:
            begun, ended = (datetime.fromisoformat(vm[key]) for key in ("started_at", "ended_at"))
            if record.removed_time and begun <= record.create_time <= record.removed_time <= ended:
                return []
            return [f"{vm['name']}: made {record.create_time}, removed {record.removed_time}, not in between"]
    return [f"{vm['name']}: the hosts never made its snapshot {vm['snapshot_moref']!r}"]


def _certificate(lab: DataCentre, vm: dict[str, Any], index: dict[str, Any]) -> Iterator[str]:
    """Where the removal's certificate and the hosts disagree: tree, times, files, consolidation."""
    made = index["certificate"]
    held = next(item for item in lab.hosts.frozen_records() if item.snapshot == vm["snapshot_moref"])
    now = lab.hosts.vm(held.vm)
    if (made["morefs"], made["name"], made["vc_guid"]) != ([held.snapshot], held.name, vm["vc_guid"]):
        yield f"that it is of {made['morefs']} ({made['name']}) of {made['vc_guid']}"
    if {node["moref"] for node in made["tree_after"]} != {item.moref for item in now.snapshots}:
        yield f"that these snapshots are there: {made['tree_after']}"
    if {node["moref"] for node in made["tree_before"]} != {
        held.snapshot,
        *(item.moref for item in now.snapshots),
    }:
        yield f"that these snapshots were there: {made['tree_before']}"
    if made["consolidation_needed_after"] or now.consolidation_needed:
        yield f"consolidation needed: {made['consolidation_needed_after']}; the hosts: {now.consolidation_needed}"
    times = [made[name] for name in ("asked_at", "created_at", "started_at", "finished_at")]
    moments = [datetime.fromisoformat(time) for time in times]
    if moments != sorted(moments) or abs((moments[1] - held.create_time).total_seconds()) > 1:
        yield f"that it was asked for, made and removed at {times}"
    if held.removed_time is None or not moments[2] <= held.removed_time <= moments[3]:
        yield f"that it went between {times[2]} and {times[3]}; the hosts: {held.removed_time}"
    files = [path.partition("] ")[2] for path in made["snapshot_files"]]
    stores = lab.state / "datastores"
    if not any(name.endswith("-delta.vmdk") for name in files):
        yield f"that these files went with it: {files}"
    if there := [name for name in files if any((store / name).exists() for store in stores.iterdir())]:
        yield f"that files went with it which are there: {there}"
    if made["files_left"]:
        yield f"that files are left: {made['files_left']}"


def _vm(lab: DataCentre, vm: dict[str, Any]) -> list[str]:
    text = lab.safehaul("backups", "show", f"{vm['vc_guid']}/{vm['backup_id']}", "--json", check=False)
    if not text:
        return [f"{vm['name']}: its backup {vm['backup_id']} cannot be shown"]
    shown = json.loads(text)
    found = []
    if not any(file["name"].endswith(".vmx") for file in shown["manifest"]["files"]):
        found.append(f"{vm['name']}: its .vmx is not in the backup")
    index = shown["index"]
    if index is None or index["status"] != "Completed":
        found.append(f"{vm['name']}: step 14 has left no index")
    elif not (index["removal"].get("morefs") == [vm["snapshot_moref"]] and index["removal"]["files_checked"]):
        found.append(f"{vm['name']}: the index does not prove the snapshot's removal")
    else:
        found += [f"{vm['name']}: its certificate says {what}" for what in _certificate(lab, vm, index)]
    images: dict[int, Path] = {}
    try:
        images = restored_images(lab, vm)
        found += differences(lab, vm, images)
        if sum(disk["bytes_read"] for disk in vm["disks"]) < sum(
            path.stat().st_size for path in images.values()
        ):
            found.append(f"{vm['name']}: less was read than the disks hold")
    finally:
        for image in images.values():
            image.unlink()
    return found
