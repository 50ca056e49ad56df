"""Sessions: what is durable of an unfinished backup, so that another try, on any node, goes on from there.

    sessions/ID/open               who backs up what, from which point in time
    sessions/ID/disk-KEY/NNNNNNNN  progress of one disk, one after the other, without gaps
    sessions/ID/files/NNNNNNNN     the VM's files
    sessions/ID/sealed             how many records count; later ones are ignored
    sessions/ID/verified           every pack that the session wrote was read back

All are put-if-absent. Two tries of one session may write at once (a zombie and its successor): the first
record of a number wins, and both read the same frozen disk.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from safehaul.errors import (
    AlreadyExistsError,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    StaleLeaseError,
)
from safehaul.media.canonical import canonical_json, parse_object, utc_now
from safehaul.media.envelope import Kind
from safehaul.media.names import encode_segment
from safehaul.media.progress import ProgressRecord, decode_progress, encode_progress
from safehaul.media.repository import Repository
from safehaul.messages.base import Message

_MAX_RECORDS = 10**8 - 1


class SessionInfo(Message):
    """The object `sessions/ID/open`."""

    version: int = 1
    session_id: str
    vc_guid: str
    vm_name: str
    vm_group: str = ""
    job_id: str = ""
    point_in_time: str
    """The snapshot's moref, or whatever else names the frozen state. Another one needs another session."""
    opened: str
    """UTC, ISO 8601 basic format; the time of the backup's name."""
    backup_id: str = ""
    """Of the backup that this becomes, when it is given: a copy keeps the id of what it is a copy of."""


class Seal(Message):
    """The object `sessions/ID/sealed`."""

    version: int = 1
    disk_records: dict[int, int] = Field(default_factory=dict)
    """Disk key → how many progress records count."""
    file_records: int = 0


class Verified(Message):
    """The object `sessions/ID/verified`."""

    version: int = 1
    packs: int
    chunks: int
    stored_bytes: int


class StoredFile(Message):
    """One file of a VM as the repository holds it."""

    name: str
    type: str
    size_bytes: int
    chunks: list[str]
    """Chunk ids, in order, in hexadecimal; the all-zero id is a chunk of zeros."""


class FilesRecord(Message):
    """The object `sessions/ID/files/NNNNNNNN`."""

    version: int = 1
    files: list[StoredFile]
    packs: list[tuple[str, int]]
    """Pack id and size in bytes."""


class Session:
    """One backup of one VM that is under way. Get one with `open_session` or `find_session`."""

    def __init__(self, repository: Repository, info: SessionInfo) -> None:
        self.repository = repository
        self.info = info
        self.prefix = session_prefix(info.session_id)

    def disk_keys(self) -> list[int]:
        """Return the keys of the disks that have any progress."""
        keys = set()
        for found in self.repository.store.list(self.prefix):
            folder = found.name.removeprefix(self.prefix).split("/")[0]
            if folder.startswith("disk-") and folder[5:].isdecimal():
                keys.add(int(folder[5:]))
        return sorted(keys)

    def _count(self, folder: str) -> int:
        """Count the records of a folder, from 1 without gaps."""
        prefix = f"{self.prefix}{folder}/"
        count = 0
        for found in self.repository.store.list(prefix):
            count += 1
            if found.name != f"{prefix}{count:08d}":
                raise IntegrityError(f"session {self.info.session_id}: record {count} of {folder} is missing")
        return count

    def disk_record_count(self, disk_key: int) -> int:
        """Count the progress records of a disk."""
        return self._count(_disk_folder(disk_key))

    def read_progress(self, disk_key: int, number: int) -> ProgressRecord:
        """Read one progress record, counted from 1."""
        name = f"{self.prefix}{_disk_folder(disk_key)}/{number:08d}"
        return decode_progress(self.repository.get(Kind.PROGRESS, name), name)

    def put_progress(self, disk_key: int, number: int, record: ProgressRecord) -> None:
        """Record progress. Raises AlreadyExistsError for a taken number, StaleLeaseError after the seal."""
        if not 1 <= number <= _MAX_RECORDS:
            raise InvalidInputError(f"a disk has at most {_MAX_RECORDS} progress records")
        self.refuse_if_sealed()
        name = f"{self.prefix}{_disk_folder(disk_key)}/{number:08d}"
        self.repository.put(Kind.PROGRESS, name, encode_progress(record))

    def iter_progress(self, disk_key: int, count: int) -> Iterator[ProgressRecord]:
        """Yield a disk's first `count` records, checking that they follow each other without gaps."""
        end_chunk, capacity_bytes = 0, None
        for number in range(1, count + 1):
            record = self.read_progress(disk_key, number)
            if record.first_chunk != end_chunk or capacity_bytes not in {None, record.capacity_bytes}:
                raise IntegrityError(
                    f"session {self.info.session_id}: record {number} of disk {disk_key} does not follow "
                    "its predecessor"
                )
            end_chunk, capacity_bytes = record.end_chunk, record.capacity_bytes
            yield record

    def put_files(self, record: FilesRecord) -> None:
        """Record stored files under the next free number. Raises StaleLeaseError after the seal."""
        self.refuse_if_sealed()
        body = canonical_json(record.model_dump())
        number = self._count("files") + 1
        while True:
            try:
                self.repository.put(Kind.FILES, f"{self.prefix}files/{number:08d}", body)
            except AlreadyExistsError:
                # Another try of this session recorded its files meanwhile: ours come after them.
                number += 1
            else:
                return

    def read_files(self, count: int | None = None) -> list[FilesRecord]:
        """Read the first `count` records of files, or all."""
        wanted = self._count("files") if count is None else count
        records = []
        for number in range(1, wanted + 1):
            name = f"{self.prefix}files/{number:08d}"
            records.append(parse_object(FilesRecord, self.repository.get(Kind.FILES, name), name))
        return records

    def seal(self) -> Seal:
        """Fix which records count. A second call returns the first one's answer."""
        name = f"{self.prefix}sealed"
        sealed = self.sealed()
        if sealed is not None:
            return sealed
        seal = self.counted()
        try:
            self.repository.put(Kind.SESSION, name, seal.model_dump_json().encode())
        except AlreadyExistsError:
            # Another committer sealed it first: what it counted is what counts.
            return parse_object(Seal, self.repository.get(Kind.SESSION, name), name)
        return seal

    def counted(self) -> Seal:
        """Count the records that there are now, as a seal would."""
        return Seal(
            disk_records={key: self.disk_record_count(key) for key in self.disk_keys()},
            file_records=self._count("files"),
        )

    def sealed(self) -> Seal | None:
        """Return the seal, or None while the session is open."""
        name = f"{self.prefix}sealed"
        if not self.repository.store.exists(name):
            return None
        return parse_object(Seal, self.repository.get(Kind.SESSION, name), name)

    def refuse_if_sealed(self) -> None:
        """Raise StaleLeaseError when the session accepts no more."""
        if self.repository.store.exists(f"{self.prefix}sealed"):
            raise StaleLeaseError(
                f"session {self.info.session_id} of VM {self.info.vm_name} is sealed: "
                "another try has finished it; stop"
            )

    def put_verified(self, verified: Verified) -> None:
        """Record that every pack was read back; the first record stays."""
        try:
            self.repository.put(Kind.SESSION, f"{self.prefix}verified", verified.model_dump_json().encode())
        except AlreadyExistsError:
            # Two verifications of one sealed session read the same packs: one record is enough.
            return

    def verified(self) -> Verified | None:
        """Return the record of the read-back, or None when there is none."""
        name = f"{self.prefix}verified"
        if not self.repository.store.exists(name):
            return None
        return parse_object(Verified, self.repository.get(Kind.SESSION, name), name)


def _disk_folder(disk_key: int) -> str:
    if not 0 <= disk_key < 1 << 32:
        raise InvalidInputError(f"disk key {disk_key} is not a device key of a VM")
    return f"disk-{disk_key}"


def session_prefix(session_id: str) -> str:
    """Return the folder of a session, with the trailing slash."""
    return f"sessions/{encode_segment(session_id, what='session id')}/"


def find_session(repository: Repository, session_id: str) -> Session:
    """Return a session that was opened before. Raises NotFoundError."""
    name = f"{session_prefix(session_id)}open"
    try:
        info = parse_object(SessionInfo, repository.get(Kind.SESSION, name), name)
    except NotFoundError as error:
        raise NotFoundError(
            f"the repository has no session {session_id!r}; it must be opened first"
        ) from error
    return Session(repository, info)


def open_session(
    repository: Repository,
    session_id: str,
    *,
    vc_guid: str,
    vm_name: str,
    point_in_time: str,
    vm_group: str = "",
    job_id: str = "",
    opened: str = "",
    backup_id: str = "",
) -> Session:
    """Open a session, or the same one again.

    `session_id` follows from the workflow's first run, so that each try finds it. `opened` is the time of
    the backup (UTC, ISO 8601 basic), now by default; the first opening decides. `backup_id` is of a copy.
    Raises InvalidInputError when the id was opened for another VM, group, job or point in time.
    """
    encode_segment(vc_guid, what="VC.GUID", reversible=True)
    info = SessionInfo(
        session_id=session_id,
        vc_guid=vc_guid,
        vm_name=vm_name,
        vm_group=vm_group,
        job_id=job_id,
        point_in_time=point_in_time,
        opened=opened or utc_now(),
        backup_id=backup_id,
    )
    try:
        repository.put(Kind.SESSION, f"{session_prefix(session_id)}open", info.model_dump_json().encode())
    except AlreadyExistsError:
        session = find_session(repository, session_id)
        for field in ("vc_guid", "vm_group", "job_id", "point_in_time", "backup_id"):
            was, now = getattr(session.info, field), getattr(info, field)
            if was != now:
                raise InvalidInputError(
                    f"session {session_id!r} was opened with {field} {was!r}, not {now!r}: use a new session"
                ) from None
        return session
    return Session(repository, info)
