"""Checks whole backups by reading them: every chunk of every disk and file, as a restore would read it.

`safehaul.media.verify` looks at the repository's packs; this looks at one backup after the other, goes on after a
damage, and names each damaged range by disk and offset. A damage is reported, never raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pydantic import Field

from safehaul.errors import IntegrityError, NotFoundError, UnreadableError, UnsupportedError
from safehaul.media.codec import HOLE
from safehaul.media.disk_map import PAGE_CHUNKS, DiskMap
from safehaul.media.manifest import BackupRef, ManifestDisk, manifest_name, read_index
from safehaul.media.reader import BackupReader, window_chunks
from safehaul.media.repository import Repository
from safehaul.messages.base import Message

RANGES_LIMIT = 1000
"""Damaged ranges that a check lists; the rest is only counted."""
KNOWN_LIMIT = 1_000_000
"""Chunks that are remembered as sound, so that a VM's backups, which share most, are not each read whole: 1 TiB of
distinct data in about 100 MB. Beyond it chunks are read again."""
RUN_CHUNKS = 1024

_BROKEN = (IntegrityError, NotFoundError, UnsupportedError, UnreadableError)


class DamagedRange(Message):
    """Bytes of a backup that cannot be restored."""

    part: str
    """`disk LABEL (key N)`, `file NAME`, `manifest` or `index`."""
    offset_bytes: int = 0
    length_bytes: int = 0
    problem: str


class BackupCheck(Message):
    """What the check of one backup found."""

    vc_guid: str
    backup_id: str
    vm_name: str = ""
    disks: int = 0
    files: int = 0
    bytes_capacity: int = 0
    bytes_read: int = 0
    """Read, decoded and compared with their digests now."""
    bytes_known: int = 0
    """Of chunks that the same check had read already, in another backup or place."""
    damage: list[DamagedRange] = Field(default_factory=list)
    damage_omitted: int = 0

    @property
    def sound(self) -> bool:
        """True when everything can be restored."""
        return not self.damage and not self.damage_omitted


class BackupChecker:
    """Checks backups of one repository; remembers what it has found sound."""

    def __init__(self, repository: Repository, progress: Callable[[int], None] = lambda _: None) -> None:
        """`progress` is given numbers of bytes that have been dealt with; it may raise to stop."""
        self._repository = repository
        self._progress = progress
        self._sound: set[bytes] = set()

    def check(self, ref: BackupRef) -> BackupCheck:
        """Read a backup whole. Raises NotFoundError when there is no such backup."""
        if not self._repository.store.exists(manifest_name(ref)):
            raise NotFoundError(f"there is no backup {ref.backup_id} of VM {ref.vc_guid}")
        try:
            reader = BackupReader(self._repository, ref.vc_guid, ref.backup_id)
        except _BROKEN as error:
            lost = DamagedRange(part="manifest", problem=str(error))
            return BackupCheck(vc_guid=ref.vc_guid, backup_id=ref.backup_id, damage=[lost])
        try:
            return _Check(self._repository, reader, self._sound, self._progress).run(ref)
        finally:
            reader.close()


class _Check:
    """The check of one backup."""

    def __init__(
        self,
        repository: Repository,
        reader: BackupReader,
        sound: set[bytes],
        progress: Callable[[int], None],
    ) -> None:
        self._repository = repository
        self._reader = reader
        self._sound = sound
        self._progress = progress
        self._damage: list[DamagedRange] = []
        self._omitted = self._read = self._known = 0

    def run(self, ref: BackupRef) -> BackupCheck:
        manifest = self._reader.manifest
        try:
            read_index(self._repository, ref)
        except _BROKEN as error:
            self._add("index", 0, 0, str(error))
        for disk in manifest.disks:
            self._check_disk(disk)
        for stored in self._reader.files:
            try:
                self._reader.read_file(stored.name)
            except _BROKEN as error:
                self._add(f"file {stored.name}", 0, stored.size_bytes, str(error))
            self._read += stored.size_bytes
        return BackupCheck(
            vc_guid=ref.vc_guid,
            backup_id=ref.backup_id,
            vm_name=manifest.vm_name,
            disks=len(manifest.disks),
            files=len(self._reader.files),
            bytes_capacity=sum(disk.capacity_bytes for disk in manifest.disks),
            bytes_read=self._read,
            bytes_known=self._known,
            damage=self._damage,
            damage_omitted=self._omitted,
        )

    def _check_disk(self, disk: ManifestDisk) -> None:
        part = f"disk {disk.label} (key {disk.key})"
        try:
            disk_map = self._reader.manifest.disk_map(self._repository, disk.key)
        except _BROKEN as error:
            self._add(part, 0, disk.capacity_bytes, str(error))
            return
        for first in range(0, disk_map.chunk_count, PAGE_CHUNKS):
            last = min(first + PAGE_CHUNKS, disk_map.chunk_count)
            try:
                disk_map.page(first // PAGE_CHUNKS)
            except _BROKEN as error:
                # Without its page nobody can say which chunks stand there: the whole range is lost.
                start, end = (
                    first * disk.chunk_size_bytes,
                    min(last * disk.chunk_size_bytes, disk.capacity_bytes),
                )
                self._add(part, start, end - start, str(error))
                self._progress(end - start)
                continue
            for run in self._runs(disk_map, first, last):
                self._check_run(disk, disk_map, part, run)

    def _runs(self, disk_map: DiskMap, first: int, last: int) -> Iterator[range]:
        """Yield the chunks that are still to be read, as runs of neighbours."""
        start: int | None = None
        for number in range(first, last):
            chunk_id = disk_map.chunk_id(number)
            known = chunk_id == HOLE or chunk_id in self._sound
            if known:
                length = disk_map.length_of(number)
                self._known += 0 if chunk_id == HOLE else length
                self._progress(length)
            if start is not None and (known or number - start >= RUN_CHUNKS):
                yield range(start, number)
                start = None
            if start is None and not known:
                start = number
        if start is not None:
            yield range(start, last)

    def _check_run(self, disk: ManifestDisk, disk_map: DiskMap, part: str, run: range) -> None:
        """Read neighbouring chunks at once; where that fails, one at a time until the damage lies behind."""
        size = disk.chunk_size_bytes
        end = min(run.stop * size, disk.capacity_bytes)
        position, whole = run.start * size, True
        while position < end:
            try:
                for offset, piece in self._reader.iter_disk(disk.key, position, end):
                    # The chunks of a run are no holes.
                    assert isinstance(piece, memoryview)
                    position = offset + len(piece)
                    self._read += len(piece)
                    self._progress(len(piece))
            except _BROKEN:
                whole = False
                position = self._pick_through(disk, disk_map, part, range(position // size, run.stop))
        if whole and len(self._sound) < KNOWN_LIMIT:
            self._sound.update(disk_map.chunk_id(number) for number in run)

    def _pick_through(self, disk: ManifestDisk, disk_map: DiskMap, part: str, chunks: range) -> int:
        """Read single chunks until a window's length after the first damaged one; the offset to go on from."""
        size = disk.chunk_size_bytes
        stop = chunks.stop
        for number in chunks:
            if number >= stop:
                break
            length = disk_map.length_of(number)
            try:
                self._reader.read_range(disk.key, number * size, length)
                self._read += length
            except _BROKEN as error:
                self._add(part, number * size, length, str(error))
                stop = min(chunks.stop, number + window_chunks(size))
            self._progress(length)
        return min(stop * size, disk.capacity_bytes)

    def _add(self, part: str, offset: int, length: int, problem: str) -> None:
        """Note a damage; neighbouring ranges become one."""
        last = self._damage[-1] if self._damage else None
        if (
            last is not None
            and last.part == part
            and last.offset_bytes + last.length_bytes == offset
            and offset
        ):
            self._damage[-1] = last.model_copy(update={"length_bytes": last.length_bytes + length})
        elif len(self._damage) < RANGES_LIMIT:
            self._damage.append(
                DamagedRange(part=part, offset_bytes=offset, length_bytes=length, problem=problem)
            )
        else:
            self._omitted += 1
