"""Steps 10, 12 and 14 at the MediaAgent, and step 14 at the access node: open, seal, mark, index."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import ValidationError

from activities.beat import beat, keep_alive
from activities.disks import check_same
from activities.errors import step
from activities.peers import Peers
from activities.records import catalog_backup, tolerated
from safehaul.errors import (
    AlreadyExistsError,
    IntegrityError,
    PolicyError,
    SnapshotLostError,
    VmMovedError,
)
from safehaul.media import manifest, seal, sessions, unfinished
from safehaul.media.repository import Repository
from safehaul.messages import certificate
from safehaul.messages.certificate import RemovalCertificate
from safehaul.messages.snapshots import RemovalRecord
from safehaul.messages.steps import (
    BackupSession,
    CompletionMark,
    DiskTransport,
    IndexInput,
    IndexWritten,
    LeaveInput,
    LeftUnfinished,
    MarkInput,
    OpenBackupInput,
    SealedBackup,
    SealInput,
)
from safehaul.vsphere import whereabouts


class MediaAgentIndexing:
    """Activities of the MediaAgent's queue."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    @step("open_backup")
    def open_backup(self, arg: OpenBackupInput) -> BackupSession:
        """Step 10: opens the backup of the VM: a session of the repository, named by workflow run and snapshot.

        Keyed by the session id: a second run returns the same session, and another snapshot under the same id is
        refused. Errors: the session is sealed, or the repository is damaged.
        """
        repository = self._peers.repository(arg.vm.media_agent)
        session = sessions.open_session(
            repository,
            arg.session_id,
            vc_guid=arg.vm.vc_guid,
            vm_name=arg.vm.name,
            vm_group=arg.vm_group,
            job_id=arg.vm.job_id,
            point_in_time=f"{arg.snapshot.moref} {arg.snapshot.name}",
        )
        previous = manifest.latest_manifest(repository, arg.vm.vc_guid)
        return BackupSession(
            session_id=arg.session_id,
            previous_backup_id=previous.backup_id if previous else "",
            resumed=bool(session.disk_keys()),
        )

    @step("seal_backup")
    def seal_backup(self, arg: SealInput) -> SealedBackup:
        """Step 12: reads back every pack that the backup wrote, then commits the manifest, put-if-absent.

        Keyed by the session: a second run verifies what the first one had not, and returns the same backup.
        From its end the backup is restorable. A cancel stops the reading back between two packs, since the snapshot is
        held meanwhile, and never the commit. Heartbeats with the packs read back. Errors: a disk that was not read to
        its end, or changed while it was read; stored bytes that are damaged.
        """
        session = sessions.find_session(self._peers.repository(arg.vm.media_agent), arg.session.session_id)
        _check_complete(arg, {file.name for record in session.read_files() for file in record.files})
        verified = seal.verify_session(session, heartbeat=beat)
        beat("committing")
        contents = manifest.BackupContents(
            disks=[_description(disk) for disk in arg.transport.readable],
            skipped=[
                manifest.Skipped(kind="disk", key=item.disk.key, label=item.disk.label, reason=item.reason)
                for item in arg.transport.skipped
            ]
            + [
                manifest.Skipped(
                    kind="disk",
                    key=item.disk.key,
                    label=item.disk.label,
                    reason=item.reason,
                    deselected=True,
                )
                for item in arg.transport.deselected
            ]
            + [
                manifest.Skipped(kind="file", label=item.path, reason=item.reason)
                for item in arg.skipped_files
            ],
            snapshot=manifest.SnapshotRecord(
                name=arg.snapshot.name,
                moref=arg.snapshot.moref,
                created=arg.snapshot.created,
                quiesced=arg.snapshot.quiesced,
                details={
                    "vcenter": arg.vm.vcenter,
                    "job": arg.job_workflow_id,
                    "access_node": arg.vm.node,
                    "vm_moref": arg.vm.moref,
                },
            ),
            hardware=arg.transport.hardware,
            warnings=arg.warnings or arg.snapshot.warnings,
        )
        ref = seal.commit(session, contents, heartbeat=keep_alive)
        return SealedBackup(
            backup_id=ref.backup_id, packs_verified=verified.packs, bytes_verified=verified.stored_bytes
        )

    @step("leave_unfinished")
    def leave_unfinished(self, arg: LeaveInput) -> LeftUnfinished:
        """After a backup that will not be finished: reads back what it stored and lists it for later backups, or gives
        it up, as the cancel said.

        Keyed by the session: a second run lists what the first one had not. A cancel stops it between two packs.
        Heartbeats with the packs read back. Errors: there is no such session, the repository is damaged.
        """
        session = sessions.find_session(self._peers.repository(arg.vm.media_agent), arg.session_id)
        if arg.keep:
            left = unfinished.list_unfinished(session, heartbeat=beat)
        else:
            left = unfinished.give_up(
                session, "its backup was cancelled, and what it had stored was not to be kept"
            )
        return LeftUnfinished(packs=left.packs, packs_listed=left.listed)

    @step("write_index")
    def write_index(self, arg: IndexInput) -> IndexWritten:
        """Step 14: writes the VM's index, with the record of the snapshot's removal, and the catalogue's rows.

        Keyed by the backup: a second run with the same index changes nothing. The index in the repository is what
        counts: a catalogue that cannot be written is a warning, and `safehaul catalog rebuild` brings the row.
        Errors: the access node has not marked the VM completed, the snapshot is not gone, or the certificate of its
        removal cannot be made because some part of it would be false.
        """
        if not arg.removal.gone or not arg.mark.snapshot_absent or not arg.mark.node:
            raise PolicyError(
                f"VM {arg.vm.name!r} cannot be indexed as {arg.report.status}: its snapshot is not proved gone"
            )
        repository = self._peers.repository(arg.vm.media_agent)
        ref = manifest.BackupRef(arg.vm.vc_guid, arg.backup_id)
        stored = manifest.read_manifest(repository, ref)
        proof = _certificate(arg, stored.snapshot)
        index = manifest.BackupIndex(
            backup_id=arg.backup_id,
            vc_guid=arg.vm.vc_guid,
            status=arg.report.status,
            reason=arg.report.reason,
            access_node=arg.vm.node,
            steps={number: f"{seconds:g} s" for number, seconds in arg.report.step_seconds.items()},
            removal=arg.removal.record,
            certificate=proof.model_dump(mode="json"),
            warnings=arg.report.warnings,
            details={
                "report": arg.report.model_dump(mode="json"),
                "marked_at": arg.mark.marked_at.isoformat(),
                "spool_removed": arg.mark.spool_removed,
            },
        )
        index = _written(repository, ref, index)
        problem = tolerated(lambda: catalog_backup(self._peers.catalog(), stored, index, arg.vm.media_agent))
        warnings = [f"the catalogue does not list this backup: {problem}"] if problem else []
        return IndexWritten(backup_id=arg.backup_id, name=manifest.index_name(ref), warnings=warnings)


def _written(
    repository: Repository, ref: manifest.BackupRef, index: manifest.BackupIndex
) -> manifest.BackupIndex:
    """Write the index; of a workflow that was reset the one that stands, which differs in its times only."""
    try:
        manifest.write_index(repository, index)
    except AlreadyExistsError:
        stands = manifest.read_index(repository, ref)
        if stands is None or (stands.status, stands.reason) != (index.status, index.reason):
            raise
        return stands
    return index


class AccessNodeIndexing:
    """Activity of an access node's control queue."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    @step("mark_completed")
    def mark_completed(self, arg: MarkInput) -> CompletionMark:
        """Step 14: marks the VM completed: looks in vCenter once more that the snapshot is gone, and empties the
        VM's spool. A second run does the same. Errors: the snapshot is there.
        """
        state = whereabouts.find_holder(
            self._peers.vcenter(arg.vm.vcenter),
            arg.vm.moref,
            whereabouts.instance_uuid_of(arg.vm.vc_guid),
            arg.snapshot.description,
        )
        # A VM that is out of the inventory by now took no snapshot of ours along: step 13 has proved that.
        there = state.snapshots if state is not None else []
        ours = (arg.snapshot.moref, arg.snapshot.description)
        if any(node.moref == ours[0] or node.description == ours[1] for node in there):
            raise PolicyError(
                f"snapshot {arg.snapshot.moref} of VM {arg.vm.name!r} is still in vCenter after its removal"
            )
        return CompletionMark(
            node=arg.vm.node,
            marked_at=datetime.now(UTC),
            snapshot_absent=True,
            spool_removed=self._peers.spool(arg.vm.node).empty(arg.vm),
        )


def _certificate(arg: IndexInput, snapshot: manifest.SnapshotRecord) -> RemovalCertificate:
    """The proof that the snapshot which the backup was read from is gone. Raises PolicyError."""
    try:
        record = RemovalRecord.model_validate(arg.removal.record)
    except ValidationError as error:
        raise PolicyError(
            f"VM {arg.vm.name!r} cannot be indexed as {arg.report.status}: nobody recorded its snapshot's removal"
        ) from error
    if record.name != snapshot.name:
        raise PolicyError(
            f"VM {arg.vm.name!r} cannot be indexed: snapshot {record.name!r} was removed, and the backup was read from "
            f"{snapshot.name!r}"
        )
    return certificate.issue(
        record,
        vc_guid=arg.vm.vc_guid,
        vm_name=arg.vm.name,
        moref=snapshot.moref,
        created_at=snapshot.created,
        asked_at=arg.asked_at.isoformat() if arg.asked_at else "",
    )


def _description(item: DiskTransport) -> manifest.DiskDescription:
    disk = item.disk
    return manifest.DiskDescription(
        key=disk.key,
        label=disk.label,
        capacity_bytes=disk.capacity_bytes,
        path=disk.path,
        uuid=disk.uuid,
        change_id=disk.change_id,
        transport=item.transport,
        details={
            "format": item.format,
            "export": item.export,
            "nfs_version": item.nfs_version,
            "controller_key": disk.controller_key,
        },
    )


def _check_complete(arg: SealInput, stored_files: set[str]) -> None:
    """Every file is stored, every disk was read, and its source was the same at the end as at the start."""
    missing = [file.name for file in arg.files.files if file.name not in stored_files]
    if missing or not arg.files.files:
        raise IntegrityError(
            f"VM {arg.vm.name!r}: its files are not in the backup ({missing[:5]}): not committed"
        )
    read = {item.disk_key for item in arg.transfers}
    for disk in arg.transport.readable:
        if disk.disk.key not in read:
            raise IntegrityError(f"{disk.disk.label} of VM {arg.vm.name!r} was not read: not committed")
        try:
            check_same(disk.disk.label, disk.identity, arg.done.disk_identities.get(str(disk.disk.key), []))
        except VmMovedError as error:
            # Step 12 has its answer: another try of the commit would compare the same two answers again.
            raise SnapshotLostError(f"VM {arg.vm.name!r}: {error}: not committed") from error
    if arg.done.snapshot_moref != arg.snapshot.moref:
        raise IntegrityError(f"VM {arg.vm.name!r}: step 12 looked at another snapshot: not committed")
