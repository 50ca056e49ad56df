"""CopyBackups' steps at the target's MediaAgent: what is missing there, and one backup after the other."""

from __future__ import annotations

from itertools import islice

from activities.beat import beat, keep_alive
from activities.errors import step
from activities.peers import Peers
from activities.records import catalog_backup, tolerated
from safehaul.errors import ConnectionLostError, InvalidInputError, NotFoundError
from safehaul.media.copy_plan import CopySelection, missing_backups
from safehaul.media.copying import BackupCopier, CopyBeat
from safehaul.media.manifest import BackupRef, manifest_name, read_index, read_manifest
from safehaul.messages.copy import (
    CopiedBackup,
    CopyBackupInput,
    CopyBackupsRequest,
    CopyItem,
    CopyPage,
    CopyPageInput,
    CopyStatus,
)

PAGE = 100
"""Backups of one page: 20 KB of the workflow's history."""


class BackupCopies:
    """Activities of the MediaAgent's queue for upkeep."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    @step("plan_copy")
    def plan_copy(self, arg: CopyPageInput) -> CopyPage:
        """Lists the next backups that the target lacks. Changes nothing; a second run looks again.

        Heartbeats with each VM. Errors: one of the repositories cannot be opened or listed.
        """
        request = arg.request
        selection = CopySelection(
            vm_group=request.vm_group,
            vms=frozenset(request.vms),
            since=request.since,
            latest_only=request.latest_only,
            everything=request.all,
        )
        source, target = self._peers.repository(request.source), self._peers.repository(request.target)
        missing = missing_backups(
            source, target, selection, arg.after, lambda doing: beat(CopyStatus(doing=doing))
        )
        found = list(islice(missing, PAGE + 1))
        items = [
            CopyItem(
                vc_guid=item.ref.vc_guid,
                backup_id=item.ref.backup_id,
                vm_name=item.vm_name,
                capacity_bytes=item.capacity_bytes,
            )
            for item in found[:PAGE]
        ]
        last = manifest_name(found[:PAGE][-1].ref) if found else arg.after
        return CopyPage(items=items, next=last, done=len(found) <= PAGE)

    @step("copy_backup")
    def copy_backup(self, arg: CopyBackupInput) -> CopiedBackup:
        """Copies one backup: reads the source, writes a session of the target, reads it back, commits.

        Keyed by source and backup: a second run goes on from what the session holds, in this process or another, and
        does nothing when the target has the backup. Heartbeats with bytes. Errors: what cannot be read of the source,
        by disk, offset, chunk and pack; a repository that is away or full.
        """
        item = arg.item
        ref = BackupRef(item.vc_guid, item.backup_id)
        source, target = self._peers.repository(arg.source), self._peers.repository(arg.target)

        def told(now: CopyBeat) -> None:
            beat(
                CopyStatus(
                    doing=now.doing,
                    done_bytes=now.done_bytes,
                    capacity_bytes=now.total_bytes,
                    read_bytes=now.read_bytes,
                )
            )

        beat(CopyStatus(doing="opening", capacity_bytes=item.capacity_bytes))
        try:
            copied = BackupCopier(source, target, source_name=arg.source, progress=told).copy(ref)
        except NotFoundError:
            if source.store.exists(manifest_name(ref)):
                raise
            if not source.store.exists("config"):
                raise ConnectionLostError(
                    f"the repository of MediaAgent {arg.source!r} at {source.store.url} is not there any more: is its "
                    "directory mounted?"
                ) from None
            # Forgotten since the page was planned: that is no failure.
            return CopiedBackup(gone=True)
        if not target.store.exists(manifest_name(ref)):
            # The target's retention has given it up.
            return CopiedBackup(already=True)
        keep_alive(CopyStatus(doing="catalogue"))
        manifest, index = read_manifest(target, ref), read_index(target, ref)
        problem = tolerated(lambda: catalog_backup(self._peers.catalog(), manifest, index, arg.target))
        warnings = [f"the catalogue does not list this copy: {problem}"] if problem else []
        return CopiedBackup(
            already=copied.already,
            bytes_capacity=copied.bytes_capacity,
            bytes_read=copied.bytes_read,
            bytes_stored=copied.bytes_stored,
            warnings=warnings,
        )


class CopyDesk:
    """Activity of the CommServe's queue."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    @step("open_copy")
    def open_copy(self, request: CopyBackupsRequest) -> CopyBackupsRequest:
        """Resolves the target and checks the names. Changes nothing. Errors: names the field of what does not exist."""
        settings = self._peers.settings
        source = settings.media_agent(request.source)
        target = request.target or source.copy_to
        if not target:
            raise InvalidInputError(
                f"target: MediaAgent {source.name!r} has no copy_to in the configuration: name a target"
            )
        settings.media_agent(target)
        if target == source.name:
            raise InvalidInputError(f"target: {target!r} is the source itself")
        if request.vm_group:
            settings.vm_group(request.vm_group)
        return request.model_copy(update={"target": target})
