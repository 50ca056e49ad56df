"""Copies backups from one repository into another: a second copy, which has its own keys, chunks and packs.

The bytes are decoded with the source's keys and written through a session of the target, as a backup's are: so a copy
is deduplicated, read back before its commit, and goes on where it was interrupted. It keeps the identity of what it is
a copy of. What an earlier backup that was copied holds at the same place is neither read nor written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from safehaul.errors import (
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    StaleLeaseError,
    UnsupportedError,
)
from safehaul.media.disk_map import DiskMap
from safehaul.media.files import FileWriter
from safehaul.media.manifest import (
    BackupContents,
    BackupRef,
    CopiedFrom,
    DiskDescription,
    Manifest,
    ManifestDisk,
    forgotten_name,
    index_name,
    list_backups,
    manifest_name,
    read_index,
    read_manifest,
    write_index,
)
from safehaul.media.reader import BackupReader, Hole
from safehaul.media.repository import Repository
from safehaul.media.seal import commit, verify_session
from safehaul.media.sessions import Session, open_session
from safehaul.media.writer import DiskWriter

SESSIONS = 100
"""Sessions that one copy may have used up, over all its tries."""
REFUSALS = 3
"""Sessions that may be refused by a read-back or a commit, in one try, before it is an error."""
_SKIP_BYTES = 16 << 30
"""What is unchanged is taken in pieces of this size, so that the copy tells where it is."""
_LOOKED_AT = 10
"""Earlier backups that are looked at for one that tells what is unchanged."""

_ENDED = (StaleLeaseError, IntegrityError, NotFoundError, InvalidInputError)
_BROKEN = (IntegrityError, NotFoundError, UnsupportedError)


class CopyBeat(NamedTuple):
    """Where a copy stands."""

    doing: str
    done_bytes: int = 0
    """Of all disks, with holes and what is unchanged."""
    total_bytes: int = 0
    read_bytes: int = 0
    """Of them, what this process has read from the source."""


class Copied(NamedTuple):
    """What became of one backup."""

    ref: BackupRef
    already: bool
    """The target had it."""
    bytes_capacity: int = 0
    bytes_read: int = 0
    """From the source, by this process."""
    bytes_stored: int = 0
    """In new packs of the target, over all tries."""


class _Previous(NamedTuple):
    """An earlier backup of the VM that both repositories hold."""

    source: Manifest
    target: Manifest


class BackupCopier:
    """Copies backups one after the other. For one thread."""

    def __init__(
        self,
        source: Repository,
        target: Repository,
        *,
        source_name: str = "",
        progress: Callable[[CopyBeat], None] = lambda _: None,
    ) -> None:
        """`source_name`: the MediaAgent that a copy says it comes from. `progress` may raise to stop."""
        self._source = source
        self._target = target
        self._source_name = source_name
        self._progress = progress
        self._done = self._total = self._read = 0

    def copy(self, ref: BackupRef) -> Copied:
        """Copy a backup, or what is missing of it; a second time changes nothing.

        Raises NotFoundError when the source has no such backup, IntegrityError, naming disk, offset, chunk and pack,
        when it cannot be read whole or its copy cannot be read back.
        """
        if self._target.store.exists(forgotten_name(ref)):
            # The target's retention has given it up; whoever wants it back recovers it.
            return Copied(ref, already=True)
        if self._is_there(ref):
            self._copy_index(ref)
            return Copied(ref, already=True)
        reader = BackupReader(self._source, *ref)
        try:
            self._done = self._read = 0
            self._total = sum(disk.capacity_bytes for disk in reader.manifest.disks)
            self._copy(ref, reader)
        finally:
            reader.close()
        self._copy_index(ref)
        stored = sum(disk.stats.bytes_stored for disk in read_manifest(self._target, ref).disks)
        return Copied(ref, False, self._total, self._read, stored)

    def _is_there(self, ref: BackupRef) -> bool:
        return self._target.store.exists(manifest_name(ref))

    def _copy(self, ref: BackupRef, reader: BackupReader) -> None:
        refused = 0
        for number in range(1, SESSIONS + 1):
            session = self._open(reader.manifest, number)
            try:
                self._write(session, reader)
            except StaleLeaseError:
                # Sealed: by another process that copies this backup, and has written all of it; or fenced.
                self._tell("committing what another process has written")
            try:
                verify_session(session, self._tell)
                commit(session, self._contents(reader.manifest), self._tell)
            except _ENDED as error:
                if self._is_there(ref):
                    return
                # What cannot be committed any more is written again, into another session.
                refused += not isinstance(error, StaleLeaseError)
                if refused >= REFUSALS or number == SESSIONS:
                    raise
            else:
                return

    def _open(self, manifest: Manifest, number: int) -> Session:
        source = self._source.config.repository_id
        return open_session(
            self._target,
            f"copy-{source}-{manifest.backup_id}-{manifest.vc_guid}-{number}",
            vc_guid=manifest.vc_guid,
            vm_name=manifest.vm_name,
            vm_group=manifest.vm_group,
            job_id=manifest.job_id,
            point_in_time=manifest.point_in_time,
            opened=manifest.opened,
            backup_id=manifest.backup_id,
        )

    def _contents(self, manifest: Manifest) -> BackupContents:
        fields = set(DiskDescription.model_fields)
        return BackupContents(
            disks=[
                DiskDescription.model_validate(disk.model_dump(include=fields)) for disk in manifest.disks
            ],
            skipped=manifest.skipped,
            snapshot=manifest.snapshot,
            hardware=manifest.hardware,
            warnings=manifest.warnings,
            copied_from=CopiedFrom(
                repository_id=self._source.config.repository_id,
                media_agent=self._source_name,
                session_id=manifest.session_id,
                committed=manifest.committed,
            ),
        )

    def _tell(self, doing: str) -> None:
        self._progress(CopyBeat(doing, self._done, self._total, self._read))

    def _write(self, session: Session, reader: BackupReader) -> None:
        """Write the files and disks that the session does not hold yet. Raises StaleLeaseError when it is sealed."""
        session.refuse_if_sealed()
        known = {stored.name for record in session.read_files() for stored in record.files}
        missing = [stored for stored in reader.files if stored.name not in known]
        if missing:
            with FileWriter(session) as files:
                for stored in missing:
                    self._tell(f"file {stored.name}")
                    files.add(stored.name, stored.type, reader.read_file(stored.name))
                files.finish()
        previous = self._previous(reader.manifest)
        before = 0
        for disk in reader.manifest.disks:
            self._write_disk(session, reader, disk, previous, before)
            before += disk.capacity_bytes

    def _previous(self, manifest: Manifest) -> _Previous | None:
        """The newest backup before this one that the source holds, and the target as a copy of it."""
        refs = {ref for ref in list_backups(self._target, manifest.vc_guid) if ref[1] < manifest.backup_id}
        both = [ref for ref in list_backups(self._source, manifest.vc_guid) if ref in refs]
        for ref in reversed(both[-_LOOKED_AT:]):
            try:
                target = read_manifest(self._target, ref)
                origin = target.copied_from
                if origin is not None and origin.repository_id == self._source.config.repository_id:
                    return _Previous(read_manifest(self._source, ref), target)
            except _BROKEN:
                # One that cannot be read tells nothing; an earlier one may.
                continue
        return None

    def _write_disk(
        self,
        session: Session,
        reader: BackupReader,
        disk: ManifestDisk,
        previous: _Previous | None,
        before: int,
    ) -> None:
        maps = self._maps(previous, disk.key)
        with DiskWriter(
            session, disk.key, disk.capacity_bytes, previous=maps[1] if maps is not None else None
        ) as writer:
            position = writer.resume_offset_bytes
            now = reader.manifest.disk_map(self._source, disk.key)
            for start, end, unchanged in _ranges(now, maps[0] if maps is not None else None, position):
                position = start
                while position < end:
                    self._done = before + position
                    self._tell(f"disk {disk.label}")
                    stop = end
                    if unchanged:
                        wanted = min(end - position, _SKIP_BYTES)
                        taken = writer.skip_unchanged(wanted)
                        position += taken
                        if taken == wanted:
                            continue
                        # A chunk that the target has lost, or a part of one; then it may have the rest.
                        stop = min(end, _next_chunk(position, self._target))
                    self._write_range(writer, reader, disk, position, stop, before)
                    position = stop
            writer.finish()
        self._done = before + disk.capacity_bytes

    def _maps(self, previous: _Previous | None, key: int) -> tuple[DiskMap, DiskMap] | None:
        """The same disk's maps in the earlier backup, of the source and of the target."""
        if previous is None:
            return None
        try:
            maps = previous.source.disk_map(self._source, key), previous.target.disk_map(self._target, key)
        except NotFoundError:
            # The disk is new.
            return None
        return maps if maps[1].chunk_size_bytes == self._target.config.chunk_size_bytes else None

    def _write_range(
        self, writer: DiskWriter, reader: BackupReader, disk: ManifestDisk, start: int, end: int, before: int
    ) -> None:
        for offset, piece in reader.iter_disk(disk.key, start, end):
            if isinstance(piece, Hole):
                writer.write_hole(offset, piece.length_bytes)
                continue
            writer.write(piece, offset)
            self._read += len(piece)
            self._done = before + offset + len(piece)
            self._tell(f"disk {disk.label}")

    def _copy_index(self, ref: BackupRef) -> None:
        """Bring the index of step 14 along; a backup that has none yet is restorable all the same."""
        if self._target.store.exists(index_name(ref)):
            return
        index = read_index(self._source, ref)
        if index is not None:
            write_index(self._target, index)


def _ranges(now: DiskMap, before: DiskMap | None, start_bytes: int) -> Iterator[tuple[int, int, bool]]:
    """Yield (start, end, unchanged) of the disk from `start_bytes` on, without gaps, neighbours put together."""
    size = now.chunk_size_bytes
    start, same = start_bytes, False
    for number in range(start_bytes // size, now.chunk_count):
        here = (
            before is not None
            and before.chunk_size_bytes == size
            and number < before.chunk_count
            and before.chunk_id(number) == now.chunk_id(number)
            and before.length_of(number) == now.length_of(number)
        )
        if here != same and number * size > start:
            yield start, number * size, same
            start = number * size
        same = here
    if start < now.capacity_bytes:
        yield start, now.capacity_bytes, same


def _next_chunk(position: int, repository: Repository) -> int:
    size = repository.config.chunk_size_bytes
    return (position // size + 1) * size
