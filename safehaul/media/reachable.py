"""Everything that is needed: by backups, by forgotten ones that can be recovered, and by backups under way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from safehaul.errors import IntegrityError, NotFoundError, UnsupportedError
from safehaul.media.census import Census
from safehaul.media.forgotten import list_forgotten, read_forgotten
from safehaul.media.manifest import (
    BackupRef,
    Manifest,
    forgotten_name,
    list_backups,
    manifest_name,
    read_manifest,
)
from safehaul.media.repository import Repository
from safehaul.media.sessions import Session

_LISTINGS = 5


@dataclass
class Reachable:
    """What `find_reachable` has found; the chunks are in the census."""

    backups: int = 0
    forgotten: int = 0
    pages: set[str] = field(default_factory=set)
    """Roots of map pages."""
    session_packs: set[bytes] = field(default_factory=set)
    """Packs that backups under way have written."""


def find_reachable(
    repository: Repository, census: Census, sessions: list[Session], heartbeat: Callable[[str], None]
) -> Reachable:
    """Add to the census every chunk that is needed. `sessions` were listed before, and are not ended.

    Sessions come first: one that is committed meanwhile is found as a backup. Raises IntegrityError or
    UnsupportedError when a backup's manifest or map cannot be read: nobody can say then what it needs.
    """
    walk = _Walk(repository, census, heartbeat)
    for session in sessions:
        walk.add_session(session)
    # Forgetting and recovering move a backup between two lists, one of which may have been read before.
    seen: set[tuple[bool, BackupRef]] = set()
    for _ in range(_LISTINGS):
        kept = {(False, ref) for ref in list_backups(repository)}
        forgotten = {(True, found.ref) for found in list_forgotten(repository)}
        fresh = sorted((kept | forgotten) - seen)
        if not fresh:
            break
        for is_forgotten, ref in fresh:
            walk.add_backup(ref, is_forgotten=is_forgotten)
        seen.update(fresh)
    return walk.found


class _Walk:
    def __init__(self, repository: Repository, census: Census, heartbeat: Callable[[str], None]) -> None:
        self._repository = repository
        self._census = census
        self._heartbeat = heartbeat
        self.found = Reachable()

    def add_session(self, session: Session) -> None:
        self._heartbeat(f"looking at the unfinished backup of VM {session.info.vm_name}")
        try:
            for key in session.disk_keys():
                for number in range(1, session.disk_record_count(key) + 1):
                    record = session.read_progress(key, number)
                    self._census.add_live(record.digests)
                    self.found.session_packs.update(pack.pack_id for pack in record.packs)
            for files in session.read_files():
                self._census.add_live(bytes.fromhex(text) for stored in files.files for text in stored.chunks)
                self.found.session_packs.update(bytes.fromhex(pack) for pack, _ in files.packs)
        except (IntegrityError, NotFoundError):
            # It cannot be committed any more. What it was to need is what a later backup stores again.
            return

    def add_backup(self, ref: BackupRef, *, is_forgotten: bool) -> None:
        try:
            if is_forgotten:
                manifest = read_forgotten(self._repository, ref).manifest
                self.found.forgotten += 1
            else:
                manifest = read_manifest(self._repository, ref)
                self.found.backups += 1
        except NotFoundError:
            # Moved to the other list since it was listed, or purged.
            return
        except (IntegrityError, UnsupportedError) as error:
            if is_forgotten:
                # Nobody can bring it back.
                return
            raise type(error)(_stopped(error)) from error
        self._heartbeat(f"looking at backup {ref.backup_id} of VM {manifest.vm_name}")
        self._add_manifest(manifest, is_forgotten=is_forgotten)

    def _add_manifest(self, manifest: Manifest, *, is_forgotten: bool) -> None:
        for disk in manifest.disks:
            disk_map = manifest.disk_map(self._repository, disk.key)
            for number, root in enumerate(disk.page_roots):
                if root in self.found.pages:
                    continue
                try:
                    self._census.add_live(disk_map.page(number))
                except (IntegrityError, NotFoundError) as error:
                    if is_forgotten:
                        # Nobody could restore that part of it any more; the rest of it stays recoverable.
                        continue
                    if not self._is_listed(manifest):
                        # Forgotten, purged and collected since it was listed.
                        return
                    raise IntegrityError(_stopped(error)) from error
                self.found.pages.add(root)
        for stored in manifest.files:
            self._census.add_live(bytes.fromhex(text) for text in stored.chunks)

    def _is_listed(self, manifest: Manifest) -> bool:
        ref = BackupRef(manifest.vc_guid, manifest.backup_id)
        # Twice: between the first looks it may be recovered.
        names = (manifest_name(ref), forgotten_name(ref), manifest_name(ref))
        return any(self._repository.store.exists(name) for name in names)


def _stopped(error: Exception) -> str:
    return (
        f"nothing was collected, because it cannot be known what is needed: {error}; `safehaul repo verify` names what "
        "is touched, `safehaul repo repair` gives up what is lost"
    )
