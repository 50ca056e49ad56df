"""The end of step 12: read back what the session wrote, then commit.

Order of a commit: packs (durable since long) → `idx/` → pages → manifest, put-if-absent, last. Whatever was
interrupted before the manifest is invisible. Two committers of one session write the same objects up to the
manifest; the first manifest stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict

from blake3 import blake3

from safehaul.errors import (
    AlreadyExistsError,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    PolicyError,
)
from safehaul.media.canonical import canonical_json, utc_now
from safehaul.media.codec import HOLE, ID_LENGTH
from safehaul.media.disk_map import chunk_count, write_pages
from safehaul.media.envelope import Kind
from safehaul.media.locations import PackListing, batches, encode_locations
from safehaul.media.manifest import (
    BackupContents,
    BackupRef,
    DiskDescription,
    Manifest,
    ManifestDisk,
    ManifestStats,
    check_contents,
    manifest_name,
    read_manifest,
)
from safehaul.media.pack import SealedPack, pack_name, read_trailer
from safehaul.media.pack_check import PackChecker
from safehaul.media.progress import DiskStats
from safehaul.media.repository import Repository
from safehaul.media.sessions import Seal, Session, StoredFile, Verified

Heartbeat = Callable[[str], None]
"""Called often with what is being done, so that an activity can heartbeat; it may raise to stop the work."""


def _silent(_: str) -> None:
    return


def session_packs(session: Session, seal: Seal) -> list[SealedPack]:
    """Return the packs that the sealed session wrote, in a fixed order."""
    packs: dict[bytes, SealedPack] = {}
    for key, count in sorted(seal.disk_records.items()):
        for record in session.iter_progress(key, count):
            packs.update((pack.pack_id, pack) for pack in record.packs)
    for files in session.read_files(seal.file_records):
        for text, size in files.packs:
            packs[bytes.fromhex(text)] = SealedPack(bytes.fromhex(text), size)
    return list(packs.values())


def verify_session(session: Session, heartbeat: Heartbeat = _silent) -> Verified:
    """Seal the session and read back every byte of every pack that it wrote; a second call is free.

    Raises IntegrityError, naming the packs and chunks, when anything is not what it must be.
    """
    seal = session.seal()
    done = session.verified()
    if done is not None:
        return done
    packs = session_packs(session, seal)
    checker = PackChecker(session.repository)
    chunks = stored = 0
    for number, pack in enumerate(packs, start=1):
        heartbeat(f"reading back pack {number} of {len(packs)}")
        findings = checker.check(pack)
        if not findings.sound:
            problems = [findings.damaged_pack, *findings.damaged_chunks.values()]
            raise IntegrityError(
                f"pack {pack_name(pack.pack_id)} was written but does not read back: "
                f"{'; '.join(filter(None, problems[:5]))}; check the repository's disk, then start a new session"
            )
        chunks += len(findings.entries)
        stored += pack.size_bytes
    verified = Verified(packs=len(packs), chunks=chunks, stored_bytes=stored)
    session.put_verified(verified)
    return verified


def backup_ref(session: Session) -> BackupRef:
    """Return the name that the session's backup has or will have: its time and a digest of its id, or as given."""
    repository, info = session.repository, session.info
    if info.backup_id:
        return BackupRef(info.vc_guid, info.backup_id)
    mark = blake3(info.session_id.encode("utf-8", "surrogatepass"), key=repository.keys.name).hexdigest()[:16]
    return BackupRef(info.vc_guid, f"{info.opened}-{mark}")


def commit(session: Session, contents: BackupContents, heartbeat: Heartbeat = _silent) -> BackupRef:
    """Commit a verified session as one backup; a second commit returns the same one and changes nothing.

    `contents.disks` must name every disk of the session, except those that `contents.skipped` names by key.
    Raises PolicyError when the session was not read back, InvalidInputError when disks and session do not agree,
    IntegrityError when a chunk that was thought to be stored is not.
    """
    repository, ref = session.repository, backup_ref(session)
    if repository.store.exists(manifest_name(ref)):
        return _committed(session, ref)
    check_contents(contents)
    seal = session.sealed()
    if seal is None or session.verified() is None:
        raise PolicyError(f"session {session.info.session_id} was not read back: verify it before the commit")
    _check_disks(session, seal, contents)
    heartbeat("writing the index of the packs")
    _write_locations(repository, session_packs(session, seal))
    repository.refresh_index()
    needed = _Needed(repository)
    disks = []
    for disk in contents.disks:
        heartbeat(f"writing the map of disk {disk.label}")
        disks.append(_commit_disk(session, disk, seal, needed, heartbeat))
    files = _collect_files(session, seal, needed)
    heartbeat("checking that every pack is there")
    needed.check_packs()
    info = session.info
    manifest = Manifest(
        repository_id=repository.config.repository_id,
        backup_id=ref.backup_id,
        **info.model_dump(include={"vc_guid", "vm_name", "vm_group", "job_id", "session_id"}),
        point_in_time=info.point_in_time,
        opened=info.opened,
        committed=utc_now(),
        snapshot=contents.snapshot,
        hardware=contents.hardware,
        disks=disks,
        files=files,
        skipped=contents.skipped,
        warnings=contents.warnings,
        copied_from=contents.copied_from,
        idx=sorted(needed.listed_in),
        packs=len(needed.packs),
    )
    try:
        repository.put(Kind.MANIFEST, manifest_name(ref), canonical_json(manifest.model_dump()))
    except AlreadyExistsError:
        # Another committer of the same session was first.
        return _committed(session, ref)
    return ref


def _committed(session: Session, ref: BackupRef) -> BackupRef:
    manifest = read_manifest(session.repository, ref)
    if manifest.session_id != session.info.session_id:
        raise IntegrityError(f"backup {ref.backup_id} of VM {ref.vc_guid} belongs to another session")
    return ref


def _check_disks(session: Session, seal: Seal, contents: BackupContents) -> None:
    described = {disk.key for disk in contents.disks}
    skipped = {item.key for item in contents.skipped if item.kind == "disk"}
    recorded = set(seal.disk_records)
    if described & skipped or described - recorded or recorded - described - skipped:
        raise InvalidInputError(
            f"session {session.info.session_id} holds disks {sorted(recorded)}; described are {sorted(described)}, "
            f"skipped {sorted(key for key in skipped if key is not None)}: name each disk once"
        )


def _write_locations(repository: Repository, packs: list[SealedPack]) -> None:
    """Write the `idx/` objects of the session's packs; they are named by content, so a second time is fine."""

    def listings() -> Iterator[PackListing]:
        for pack in packs:
            yield PackListing(pack, read_trailer(repository.store, repository.keys, pack).entries)

    for batch in batches(listings()):
        body = encode_locations(batch)
        repository.put_same(Kind.LOCATIONS, f"idx/{repository.content_name(body)}", body)


class _Needed:
    """The packs that a backup needs, found chunk by chunk."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self.packs: dict[bytes, SealedPack] = {}
        self.listed_in: set[str] = set()

    def add(self, chunk_id: bytes, raw_length: int, where: str) -> None:
        """Find a chunk. Raises IntegrityError, naming `where`, when no usable pack holds it."""
        if chunk_id == HOLE:
            return
        location = self._repository.usable(chunk_id)
        if location is None or location.entry.raw_length != raw_length:
            raise IntegrityError(
                f"{where}: chunk {chunk_id.hex()} was stored by an earlier backup and is not there any more; "
                "run `safehaul repo verify`, then start a new session, which stores it again"
            )
        self.packs[location.pack.pack_id] = location.pack
        self.listed_in.add(location.listed_in)

    def check_packs(self) -> None:
        """Look at each pack once more, now: what was asked before may be old."""
        self._repository.refresh_index()
        for pack in self.packs.values():
            if not self._repository.is_usable(pack):
                raise IntegrityError(
                    f"pack {pack_name(pack.pack_id)} vanished, changed or was condemned before the commit: "
                    "start a new session, which stores its chunks again"
                )


def _commit_disk(
    session: Session, disk: DiskDescription, seal: Seal, needed: _Needed, heartbeat: Heartbeat
) -> ManifestDisk:
    repository = session.repository
    size = repository.config.chunk_size_bytes
    total = chunk_count(disk.capacity_bytes, size)
    stats = DiskStats()
    end_chunk = 0

    def digests() -> Iterator[bytes]:
        nonlocal stats, end_chunk
        for record in session.iter_progress(disk.key, seal.disk_records[disk.key]):
            if record.capacity_bytes != disk.capacity_bytes or record.end_chunk > total:
                raise InvalidInputError(
                    f"disk {disk.label}: {record.capacity_bytes} bytes in the session, {disk.capacity_bytes} described"
                )
            for number in range(record.first_chunk, record.end_chunk):
                at = (number - record.first_chunk) * ID_LENGTH
                length = min(size, disk.capacity_bytes - number * size)
                needed.add(
                    record.digests[at : at + ID_LENGTH],
                    length,
                    f"disk {disk.label} at offset {number * size}",
                )
            stats, end_chunk = record.stats, record.end_chunk
            yield record.digests

    roots = write_pages(repository, digests(), lambda: heartbeat(f"writing the map of disk {disk.label}"))
    if end_chunk != total:
        raise InvalidInputError(
            f"disk {disk.label} is not complete: {end_chunk} of {total} chunks are in the session"
        )
    return ManifestDisk(
        **disk.model_dump(),
        chunk_size_bytes=size,
        page_roots=roots,
        stats=ManifestStats(**asdict(stats)),
    )


def _collect_files(session: Session, seal: Seal, needed: _Needed) -> list[StoredFile]:
    """Return the VM's files, the latest of each name, in order of the names."""
    size = session.repository.config.chunk_size_bytes
    files = {
        stored.name: stored for record in session.read_files(seal.file_records) for stored in record.files
    }
    for stored in files.values():
        for number, text in enumerate(stored.chunks):
            length = min(size, stored.size_bytes - number * size)
            needed.add(bytes.fromhex(text), length, f"file {stored.name} at offset {number * size}")
    return [files[name] for name in sorted(files)]


def session_backup(session: Session) -> BackupRef | None:
    """Return the backup that the session was committed as, or None."""
    ref = backup_ref(session)
    try:
        read_manifest(session.repository, ref)
    except NotFoundError:
        return None
    return ref
