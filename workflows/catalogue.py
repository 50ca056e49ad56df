"""Every workflow type of safehaul, and the answer to types that do not exist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from temporalio import workflow
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from workflows.backup_job import BackupJob
    from workflows.backup_vm import BackupVm
    from workflows.copy_backups import CopyBackups
    from workflows.prune_repository import PruneRepository
    from workflows.remove_snapshot import RemoveSnapshot
    from workflows.restore_disk import RestoreDisk
    from workflows.restore_vm import RestoreVm
    from workflows.sweep_snapshots import SweepSnapshots
    from workflows.verify_repository import VerifyRepository

KNOWN = (
    BackupJob,
    BackupVm,
    CopyBackups,
    PruneRepository,
    RemoveSnapshot,
    RestoreDisk,
    RestoreVm,
    SweepSnapshots,
    VerifyRepository,
)


def type_names() -> list[str]:
    """The names under which the workflow types are started."""
    return [str(item.__dict__["__temporal_workflow_definition"].name) for item in KNOWN]


@workflow.defn(dynamic=True)
class UnknownWorkflow:
    """Fails at once and says which types exist; without it a mistyped type would be retried for ever.

    With worker versioning it never meets a newer build's types: the server gives a new workflow to the current build
    only, and a pinned one to its own.
    """

    @workflow.run
    async def run(self, _args: Sequence[RawValue]) -> Any:
        """Fail."""
        raise ApplicationError(
            f"workflow type {workflow.info().workflow_type!r} does not exist; there are: "
            f"{', '.join(type_names())}",
            type="UnknownWorkflowType",
            non_retryable=True,
        )


WORKFLOWS: list[type] = [*KNOWN, UnknownWorkflow]
