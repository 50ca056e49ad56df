"""Steps 10, 11 and 12 on the access node: the VM's files and disks, from the filer to the repository."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from activities.beat import beat
from activities.disks import Volumes, check_same, identity_of, open_disk, volumes_of
from activities.errors import step
from activities.hold import check_hold
from activities.peers import Peers
from activities.read_ahead import ReadAhead
from safehaul.errors import IntegrityError, NotFoundError, SnapshotLostError, VmMovedError
from safehaul.media import manifest, sessions
from safehaul.media.disk_map import DiskMap
from safehaul.media.files import FileWriter
from safehaul.media.writer import DiskWriter
from safehaul.messages.inventory import VmDisk, VmState
from safehaul.messages.progress import TransferBeat
from safehaul.messages.steps import (
    FinishInput,
    ReadingDone,
    StoredFile,
    StoredFiles,
    StoreFilesInput,
    TransferInput,
    TransferResult,
    VmRef,
)
from safehaul.vmdk.chain import DiskChain
from safehaul.vsphere import vms

WATCH_EVERY_S = 30.0


class Transfers:
    """`transfer_disk` runs on the node's streams; the others on its control queue."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    @step("store_files")
    def store_files(self, arg: StoreFilesInput) -> StoredFiles:
        """Step 10: puts the VM's files from the spool into the opened backup.

        A second run stores them again, which replaces the first run's, or answers from the record that the first one
        left in the spool in the files' place. Heartbeats with each file. Errors: the spool is empty (step 9 ran
        elsewhere), the session is sealed.
        """
        spool = self._peers.spool(arg.vm.node)
        done = spool.stored(arg.vm)
        if done is not None:
            return done
        directory = spool.directory(arg.vm)
        if not directory.is_dir():
            raise NotFoundError(
                f"the spool of access node {arg.vm.node!r} holds no files of VM {arg.vm.name!r}, which step 9 put "
                "there: somebody emptied it, or the node has another spool_dir now; start the job again"
            )
        session = sessions.find_session(self._peers.repository(arg.vm.media_agent), arg.session.session_id)
        stored: list[StoredFile] = []
        with FileWriter(session) as writer:
            for file in arg.files.files:
                beat(file.name)
                kept = writer.add(file.path, file.type, directory / file.spool_name)
                if kept.size_bytes != file.size_bytes:
                    raise IntegrityError(
                        f"file {file.name!a} has {kept.size_bytes} bytes in the spool, {file.size_bytes} came"
                    )
                stored.append(StoredFile(name=kept.name, size_bytes=kept.size_bytes))
            writer.finish()
        result = StoredFiles(files=stored)
        spool.keep_record(arg.vm, result)
        return result

    @step("transfer_disk")
    def transfer_disk(self, arg: TransferInput) -> TransferResult:
        """Step 11: reads one of the snapshot's disks over NFS and writes it to the MediaAgent's repository.

        Keyed by session and disk: a second run, here or on another node, goes on from what the repository has
        recorded as durable, under the same snapshot. Heartbeats with the bytes done. Errors: the VM moved (a stale
        handle is tried again, a disk that vCenter now has elsewhere is not), the snapshot is held too long or the
        datastore gets too full (both remove the snapshot), an unreadable file.
        """
        disk = arg.transport.disk
        repository = self._peers.repository(arg.vm.media_agent)
        session = sessions.find_session(repository, arg.session.session_id)
        started = time.monotonic()
        volumes = volumes_of(self._peers, arg.vm)
        now = self._must_stand(arg.vm, arg.snapshot.moref, [disk])
        watch = _Watch(self._peers, arg, now.disks)
        # The VM may have waited for this stream for hours, or its disks may each take less than a look's time.
        watch.judge(volumes)
        with (
            _vanished_is_moved(arg.vm, disk),
            open_disk(self._peers, volumes, disk) as source,
            DiskWriter(session, disk.key, disk.capacity_bytes, previous=self._previous(arg, disk)) as writer,
        ):
            check_same(disk.label, arg.transport.identity, identity_of(source.chain))
            _copy(source.chain, writer, watch)
            summary = writer.finish()
            check_same(disk.label, arg.transport.identity, identity_of(source.chain))
            read_now = source.bytes_read
        stats = summary.stats
        return TransferResult(
            disk_key=disk.key,
            label=disk.label,
            bytes_capacity=disk.capacity_bytes,
            bytes_read=read_now + summary.resumed_at_bytes,
            bytes_resumed=summary.resumed_at_bytes,
            bytes_zero=stats.bytes_zero,
            bytes_deduplicated=stats.bytes_deduplicated + stats.bytes_unchanged,
            bytes_stored=stats.bytes_stored,
            packs=stats.packs,
            seconds=round(time.monotonic() - started, 3),
        )

    @step("finish_reading")
    def finish_reading(self, arg: FinishInput) -> ReadingDone:
        """Step 12: the access node's part of the backup ends: every handle is closed, and the source is the same.

        Compares each frozen file's identity with step 8's, and the snapshot's moref. Changes nothing; a second
        run looks again. Heartbeats with each disk. Errors: a file changed, or the snapshot is gone: the VM was
        moved or reverted while it was read.
        """
        self._must_stand(arg.vm, arg.snapshot.moref, [item.disk for item in arg.disks])
        volumes = volumes_of(self._peers, arg.vm)
        identities = {}
        for item in arg.disks:
            beat(item.disk.label)
            with _vanished_is_moved(arg.vm, item.disk), open_disk(self._peers, volumes, item.disk) as source:
                now = identity_of(source.chain)
            check_same(item.disk.label, item.identity, now)
            identities[str(item.disk.key)] = now
        return ReadingDone(disk_identities=identities, snapshot_moref=arg.snapshot.moref)

    def _must_stand(self, vm: VmRef, snapshot_moref: str, disks: list[VmDisk]) -> VmState:
        """The snapshot is there, and its disks are where step 8 found them; both never come back by waiting."""
        state = vms.vm_state(self._peers.vcenter(vm.vcenter), vm.moref)
        if all(node.moref != snapshot_moref for node in state.snapshots):
            raise SnapshotLostError(
                f"snapshot {snapshot_moref} of VM {vm.name!r} is gone although we had not removed it: somebody else "
                "removed or reverted it; see vCenter's events for who did"
            )
        frozen = {
            item.key: item for item in vms.snapshot_disks(self._peers.vcenter(vm.vcenter), snapshot_moref)
        }
        for disk in disks:
            found = frozen.get(disk.key)
            where = [found.path, *found.parent_paths] if found else ["nowhere"]
            if where != [disk.path, *disk.parent_paths]:
                raise SnapshotLostError(
                    f"{disk.label} of VM {vm.name!r} was moved from {disk.path!a} to {where[0]!a} while it was "
                    "backed up (Storage vMotion): keep the VM in place during its backup"
                )
        return state

    def _previous(self, arg: TransferInput, disk: VmDisk) -> DiskMap | None:
        """The same disk's map in the VM's last backup: tells what has not changed."""
        if not arg.session.previous_backup_id:
            return None
        repository = self._peers.repository(arg.vm.media_agent)
        ref = manifest.BackupRef(arg.vm.vc_guid, arg.session.previous_backup_id)
        try:
            return manifest.read_manifest(repository, ref).disk_map(repository, disk.key)
        except NotFoundError:
            # The disk is new, or that backup has been forgotten: everything is compared with the index alone.
            return None


class _Watch:
    """Heartbeats, and looks now and then whether the snapshot may still be held."""

    def __init__(self, peers: Peers, arg: TransferInput, disks: list[VmDisk]) -> None:
        """`disks`: all of the VM's."""
        self._peers = peers
        self._arg = arg
        self._disks = disks
        self._due = time.monotonic() + WATCH_EVERY_S

    def waits(self, done_bytes: int, waits_for: str) -> None:
        """Heartbeat with what the disk waits for: a heartbeat that is repeated while a call blocks says so."""
        disk = self._arg.transport.disk
        beat(
            TransferBeat(
                disk=disk.label,
                done_bytes=done_bytes,
                capacity_bytes=disk.capacity_bytes,
                vm_done_bytes=self._arg.done_before_bytes + done_bytes,
                waits_for=waits_for,
            )
        )

    def look(self) -> None:
        """PolicyError when the snapshot has been held too long or a datastore is too full."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + WATCH_EVERY_S
        self.judge(volumes_of(self._peers, self._arg.vm))

    def judge(self, volumes: Volumes) -> None:
        """As `look`, at once and by what is known of the datastores."""
        arg = self._arg
        check_hold(arg.vm, arg.options, arg.snapshot_created_at, self._disks, volumes)


@contextmanager
def _vanished_is_moved(vm: VmRef, disk: VmDisk) -> Iterator[None]:
    """A file that was there at step 8: the next try asks vCenter where it is now, and says so."""
    try:
        yield
    except NotFoundError as error:
        raise VmMovedError(f"{disk.label} of VM {vm.name!r} is no longer where it was: {error}") from error


def _copy(chain: DiskChain, writer: DiskWriter, watch: _Watch) -> None:
    """Read the disk from where the writer needs it to its end."""
    _copy_spans(chain, writer, watch, [(writer.resume_offset_bytes, chain.capacity_bytes)])


def _copy_spans(
    chain: DiskChain, writer: DiskWriter, watch: _Watch, spans: Iterable[tuple[int, int]]
) -> None:
    """Read parts of the disk, (start, end), ahead of the writer. What lies between them the caller answers for."""
    with ReadAhead(chain.read_into, spans, writer.held_buffers) as ahead:
        offset = writer.resume_offset_bytes
        while True:
            watch.waits(offset, "filer")
            watch.look()
            piece = ahead.take()
            if piece is None:
                return
            watch.waits(piece.offset_bytes, "repository")
            writer.write(piece.data, piece.offset_bytes, give_back=piece.give_back)
            offset = piece.offset_bytes + len(piece.data)
