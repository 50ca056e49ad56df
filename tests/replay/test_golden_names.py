"""Names that recorded histories, people's scripts and other workers hold on to: a change must be deliberate."""

from __future__ import annotations

from temporalio import activity

from activities.commserve import CommServe
from activities.coordination import JobCoordination, NodeCoordination
from activities.discovery import Discoverer
from activities.index import AccessNodeIndexing, MediaAgentIndexing
from activities.restore import Restores
from activities.restore_desk import RestoreDesk
from activities.restore_into import RestoresInto
from activities.snapshot import Snapshots
from activities.transfer import Transfers
from activities.transport import Transport
from activities.upkeep_copy import BackupCopies, CopyDesk
from activities.upkeep_prune import UpkeepPrune
from activities.upkeep_verify import RepositoryVerification, VerificationDesk
from workflows import policies
from workflows.backup_job import BackupJob
from workflows.backup_vm import BackupVm
from workflows.catalogue import type_names
from workflows.prune_repository import PruneRepository
from workflows.remove_snapshot import RemoveSnapshot

ACTIVITIES = {
    CommServe: [
        "choose_coordinator",
        "open_job",
        "reconcile",
        "record_job",
        "report_unled_job",
        "request_cancel",
    ],
    NodeCoordination: ["ask_for_vm", "ping", "prepare_node"],
    JobCoordination: ["admit_nodes", "close_job", "distribute", "load_page", "take_lease", "write_reports"],
    Discoverer: ["discover"],
    Snapshots: ["create_snapshot", "inspect_vm", "remove_snapshot", "watch_snapshot"],
    Transport: ["check_transport", "download_files"],
    Transfers: ["finish_reading", "store_files", "transfer_disk"],
    AccessNodeIndexing: ["mark_completed"],
    MediaAgentIndexing: ["leave_unfinished", "open_backup", "seal_backup", "write_index"],
    UpkeepPrune: ["collect_garbage", "forget_backups", "purge_forgotten"],
    RestoreDesk: ["open_disk_restore", "open_restore"],
    Restores: [
        "discard_restore",
        "finish_vm",
        "power_on_vm",
        "prepare_restore",
        "register_vm",
        "restore_disk",
        "write_vm_files",
    ],
    RestoresInto: [
        "discard_disks",
        "prepare_disk",
        "prepare_in_place",
        "remove_old_disks",
        "switch_disks",
    ],
    CopyDesk: ["open_copy"],
    BackupCopies: ["copy_backup", "plan_copy"],
    VerificationDesk: ["open_verification"],
    RepositoryVerification: ["begin_verification", "finish_verification", "verify_part"],
}


def _names(owner: type) -> list[str]:
    found = [activity._Definition.from_callable(item) for item in owner.__dict__.values() if callable(item)]
    return sorted(str(definition.name) for definition in found if definition is not None)


def test_the_activities_names() -> None:
    assert {owner: _names(owner) for owner in ACTIVITIES} == ACTIVITIES


def test_the_workflows_names() -> None:
    assert type_names() == [
        "BackupJob",
        "BackupVm",
        "CopyBackups",
        "PruneRepository",
        "RemoveSnapshot",
        "RestoreDisk",
        "RestoreVm",
        "VerifyRepository",
    ]


def test_the_jobs_signals_queries_and_updates() -> None:
    definition = BackupJob.__dict__["__temporal_workflow_definition"]
    assert sorted(str(name) for name in definition.signals) == [
        *("None", "cancel", "cancel_vm", "node_lost", "pause", "resume", "vm_finished"),
    ]
    assert sorted(definition.queries) == ["progress"]
    assert sorted(definition.updates) == [
        *("request_cancel", "request_cancel_vm", "request_pause", "request_resume"),
    ]


def test_the_signals_of_a_vm_of_a_removal_and_of_a_prune() -> None:
    owners = (BackupVm, RemoveSnapshot, PruneRepository)
    found = [item.__dict__["__temporal_workflow_definition"].signals for item in owners]
    assert [sorted(str(name) for name in signals) for signals in found] == [
        ["None", "cancel", "go_on_at", "pause", "resume"],
        ["None", "retry_now"],
        ["None", "cancel"],
    ]


def test_the_queues_names() -> None:
    assert policies.COMMSERVE_QUEUE == "commserve"
    assert policies.ACCESS_NODES_QUEUE == "access-nodes"
    assert policies.control_queue("n1") == "access-node.n1"
    assert policies.streams_queue("n1") == "access-node.n1.streams"
    assert policies.media_agent_queue("vault") == "media-agent.vault"
    assert policies.upkeep_queue("vault") == "media-agent.vault.upkeep"


def test_the_ids_of_what_a_schedule_starts() -> None:
    assert policies.prune_id("vault") == "prune-vault"
    assert policies.verify_id("vault") == "verify-vault"
    assert policies.copy_id("vault") == "copy-vault"


def test_the_search_attributes_names() -> None:
    assert [key.name for key in policies.SEARCH_ATTRIBUTES] == [
        "JobId",
        "VmName",
        "VcGuid",
        "VmGroup",
        "AccessNode",
        "BackupStatus",
    ]
