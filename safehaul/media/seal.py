"""The end of step 12: read back what the session wrote, then commit.

Order of a commit: packs (durable since long) → `idx/` → pages → the session's outcome → manifest, put-if-absent, last.
Whatever was interrupted before the outcome is invisible; after it, whoever comes by writes the manifest. Two committers
of one session write the same objects up to the outcome; the first one stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict

from blake3 import blake3

from safehaul.errors import (
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    PolicyError,
    StaleLeaseError,
)
from safehaul.media.canonical import utc_now
from safehaul.media.codec import ID_LENGTH
from safehaul.media.disk_map import chunk_count, write_pages
from safehaul.media.manifest import (
    BackupContents,
    BackupRef,
    DiskDescription,
    Manifest,
    ManifestDisk,
    ManifestStats,
    check_contents,
    read_manifest,
)
from safehaul.media.needed_packs import NeededChunk, NeededPacks
from safehaul.media.outcome import complete, decide_commit, read_outcome
from safehaul.media.pack import SealedPack, pack_name
from safehaul.media.pack_check import PackChecker
from safehaul.media.pack_lists import put_lists, trailers
from safehaul.media.progress import DiskStats
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
    StaleLeaseError when it was fenced, or has ended and was cleared away,
    IntegrityError when a chunk that was thought to be stored is not.
    """
    ref = _ended(session)
    if ref is not None:
        return ref
    try:
        return _commit(session, contents, heartbeat)
    except (IntegrityError, NotFoundError, PolicyError):
        # What a session relies on stays until it has ended: then that is the reason.
        ref = _ended(session)
        if ref is None:
            raise
        return ref


def _ended(session: Session) -> BackupRef | None:
    """The backup that the session has become, None while it goes on. Raises StaleLeaseError when there will be none."""
    outcome = read_outcome(session.repository, session.prefix)
    if outcome is not None:
        return complete(session.repository, session.prefix, outcome, session.info.session_id)
    if not session.repository.store.exists(f"{session.prefix}open"):
        raise StaleLeaseError(f"session {session.info.session_id} has ended, and was cleared, meanwhile")
    return None


def _commit(session: Session, contents: BackupContents, heartbeat: Heartbeat) -> BackupRef:
    repository, ref = session.repository, backup_ref(session)
    check_contents(contents)
    seal = session.sealed()
    if seal is None or session.verified() is None:
        raise PolicyError(f"session {session.info.session_id} was not read back: verify it before the commit")
    _check_disks(session, seal, contents)
    heartbeat("writing the index of the packs")
    put_lists(repository, trailers(repository, session_packs(session, seal)))
    files = _latest_files(session, seal)
    needed = NeededPacks(repository, lambda: _chunks(session, seal, contents, files), heartbeat)
    heartbeat("finding every chunk in a pack")
    needed.find()
    disks = [_commit_disk(session, disk, seal, heartbeat) for disk in contents.disks]
    heartbeat("checking that every pack is there")
    needed.find_again()
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
    return decide_commit(session, manifest)


def _check_disks(session: Session, seal: Seal, contents: BackupContents) -> None:
    described = {disk.key for disk in contents.disks}
    skipped = {item.key for item in contents.skipped if item.kind == "disk"}
    recorded = set(seal.disk_records)
    if described & skipped or described - recorded or recorded - described - skipped:
        raise InvalidInputError(
            f"session {session.info.session_id} holds disks {sorted(recorded)}; described are {sorted(described)}, "
            f"skipped {sorted(key for key in skipped if key is not None)}: name each disk once"
        )


def _chunks(
    session: Session, seal: Seal, contents: BackupContents, files: list[StoredFile]
) -> Iterator[NeededChunk]:
    """Yield every chunk of the session's disks and files."""
    size = session.repository.config.chunk_size_bytes
    for disk in contents.disks:
        part = f"disk {disk.label}"
        for record in session.iter_progress(disk.key, seal.disk_records[disk.key]):
            for place in range(record.end_chunk - record.first_chunk):
                offset = (record.first_chunk + place) * size
                identity = record.digests[place * ID_LENGTH : (place + 1) * ID_LENGTH]
                yield NeededChunk(identity, min(size, record.capacity_bytes - offset), part, offset)
    for stored in files:
        for number, text in enumerate(stored.chunks):
            length = min(size, stored.size_bytes - number * size)
            yield NeededChunk(bytes.fromhex(text), length, f"file {stored.name}", number * size)


def _commit_disk(session: Session, disk: DiskDescription, seal: Seal, heartbeat: Heartbeat) -> ManifestDisk:
    """Write the map of a disk. Raises InvalidInputError when the session holds another or an incomplete disk."""
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


def _latest_files(session: Session, seal: Seal) -> list[StoredFile]:
    """Return the VM's files, the latest of each name, in order of the names."""
    files = {
        stored.name: stored for record in session.read_files(seal.file_records) for stored in record.files
    }
    return [files[name] for name in sorted(files)]


def session_backup(session: Session) -> BackupRef | None:
    """Return the backup that the session was committed as, or None."""
    ref = backup_ref(session)
    try:
        read_manifest(session.repository, ref)
    except NotFoundError:
        return None
    return ref
