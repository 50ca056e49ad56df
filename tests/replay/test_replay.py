"""Workflows of earlier versions go on under this one: every recorded history replays without a difference."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from workers.bootstrap import sandbox
from workers.converter import DATA_CONVERTER
from workflows.catalogue import WORKFLOWS

HISTORIES = sorted((Path(__file__).parent / "histories").glob("*.json"))


def test_there_are_histories_of_every_ending() -> None:
    names = {path.stem for path in HISTORIES}
    assert names >= {
        "backup-job-completed",
        "backup-job-failed",
        "backup-job-cancelled-transfer-disk",
        "backup-vm-completed",
        "backup-vm-failed",
        "backup-vm-cancelled-remove-snapshot",
        "backup-vm-removal-handed-over",
        "backup-vm-begun-anew",
        "backup-job-continued",
        "backup-job-continues-as-new",
        "backup-job-unequal-nodes",
        "remove-snapshot-blocked",
        "remove-snapshot-completed",
        "restore-vm-completed",
        "restore-vm-failed",
        "restore-in-place-completed",
        "restore-in-place-cancelled",
        "restore-disk-completed",
        "restore-disk-cancelled",
        "prune-repository-completed",
        "prune-repository-failed",
        "prune-repository-cancelled",
        "verify-repository-completed",
        "verify-repository-damaged",
        "verify-repository-cancelled",
        "verify-repository-continued",
        "verify-repository-continues-as-new",
        "copy-backups-completed",
        "copy-backups-incomplete",
        "copy-backups-cancelled",
        "sweep-snapshots-completed",
        "sweep-snapshots-incomplete",
        "sweep-snapshots-cancelled",
    }


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_a_recorded_history_replays(path: Path) -> None:
    text = path.read_text()
    # The ids of a job's children are made of its own id: the replay must have the recorded one.
    started = json.loads(text)["events"][0]["workflowExecutionStartedEventAttributes"]
    history = WorkflowHistory.from_json(started["workflowId"], text)
    replayer = Replayer(workflows=WORKFLOWS, data_converter=DATA_CONVERTER, workflow_runner=sandbox())
    asyncio.run(replayer.replay_workflow(history))
