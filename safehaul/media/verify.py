"""Verification: is every committed backup still restorable, and what does a damage touch.

Light: every footer and trailer, every map page, and that each chunk of each backup lies in a pack that is there.
Full: also every byte of every pack that any `idx/` object lists. Damage is reported, never raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pydantic import Field

from safehaul.errors import IntegrityError, NotFoundError, UnsupportedError
from safehaul.media.codec import HOLE, ID_LENGTH
from safehaul.media.collection import record_damaged
from safehaul.media.disk_map import PAGE_CHUNKS, DiskMap, page_name
from safehaul.media.envelope import Kind
from safehaul.media.locations import PackListing, decode_locations
from safehaul.media.manifest import (
    BackupRef,
    Manifest,
    index_name,
    list_backups,
    manifest_name,
    read_index,
    read_manifest,
)
from safehaul.media.pack import SealedPack, pack_name, read_trailer
from safehaul.media.pack_check import PackChecker, PackFindings
from safehaul.media.repository import Repository
from safehaul.messages.base import Message

TOUCHED_LIMIT = 1000
"""Places that a report lists; the rest is only counted."""

DAMAGE_LIMIT = 1000

_BROKEN = (IntegrityError, NotFoundError, UnsupportedError)


class Damage(Message):
    """One object, or one chunk in a pack, that is not what it must be."""

    object_name: str
    chunk_id: str = ""
    problem: str


class Touched(Message):
    """A place in a backup that a damage touches."""

    vc_guid: str
    vm_name: str
    backup_id: str
    part: str
    """`disk LABEL (key N)` or `file NAME`."""
    offset_bytes: int
    length_bytes: int
    chunk_id: str
    lost: bool
    """False: the chunk itself can still be read, but something else in its pack is damaged."""


class VerifyReport(Message):
    """What a verification found."""

    full: bool
    backups: int = 0
    packs: int = 0
    chunks: int = 0
    bytes_read: int = 0
    """Of packs, in a full verification."""
    unlisted_packs: int = 0
    """Packs that no `idx/` object lists: of backups under way, or left by interrupted ones."""
    damage: list[Damage] = Field(default_factory=list)
    damage_omitted: int = 0
    damaged_packs: list[str] = Field(default_factory=list)
    touched: list[Touched] = Field(default_factory=list)
    touched_omitted: int = 0

    @property
    def sound(self) -> bool:
        """True when nothing is damaged."""
        return not self.damage and not self.damage_omitted


def verify(
    repository: Repository,
    *,
    full: bool = False,
    note_damage: bool = False,
    heartbeat: Callable[[str], None] = lambda _: None,
) -> VerifyReport:
    """Verify the whole repository.

    With `note_damage` the damaged packs are recorded in `gc/`, so that later backups do not rely on them and store
    their chunks again, which heals older backups too. `heartbeat` is called often; it may raise to stop.
    """
    return _Verification(repository, full, heartbeat).run(note_damage)


class _Verification:
    def __init__(self, repository: Repository, full: bool, heartbeat: Callable[[str], None]) -> None:
        self._repository = repository
        self._full = full
        self._heartbeat = heartbeat
        self._checker = PackChecker(repository)
        self._seen: set[bytes] = set()
        self._bad_packs: dict[bytes, str] = {}
        """Packs that are damaged in any way, with the problem."""
        self._bad_places: set[tuple[bytes, bytes]] = set()
        """(pack id, chunk id) that cannot be read."""
        self._suspects: dict[str, list[tuple[int, bytes, bool]]] = {}
        """Page root → (place in the page, chunk id, lost) of what is damaged; only such pages."""
        self._pages: set[str] = set()
        self._missing: set[bytes] = set()
        self._damage: list[Damage] = []
        self._damage_count = 0
        self._touched: list[Touched] = []
        self._touched_count = 0
        self._chunks = self._bytes_read = self._backups = 0

    def run(self, note_damage: bool) -> VerifyReport:
        repository = self._repository
        repository.refresh_index()
        for listing in self._listings():
            if listing.pack.pack_id not in self._seen:
                self._seen.add(listing.pack.pack_id)
                self._check_pack(listing)
        listed = {pack_name(pack) for pack in self._seen}
        unlisted = sum(found.name not in listed for found in repository.store.list("packs/"))
        for ref in list_backups(repository):
            self._heartbeat(f"checking backup {ref.backup_id} of VM {ref.vc_guid}")
            self._backups += 1
            try:
                read_index(repository, ref)
            except _BROKEN as error:
                self._add_damage(index_name(ref), str(error))
            try:
                manifest = read_manifest(repository, ref)
            except _BROKEN as error:
                self._add_damage(manifest_name(ref), str(error))
                continue
            self._check_backup(manifest)
        if note_damage:
            record_damaged(repository, list(self._bad_packs))
        return VerifyReport(
            full=self._full,
            backups=self._backups,
            packs=len(self._seen),
            chunks=self._chunks,
            bytes_read=self._bytes_read,
            unlisted_packs=unlisted,
            damage=self._damage,
            damage_omitted=self._damage_count - len(self._damage),
            damaged_packs=sorted(pack.hex() for pack in self._bad_packs),
            touched=self._touched,
            touched_omitted=self._touched_count - len(self._touched),
        )

    def _listings(self) -> Iterator[PackListing]:
        """Yield what each `idx/` object lists; damaged ones are noted."""
        for found in self._repository.store.list("idx/"):
            try:
                yield from decode_locations(self._repository.get(Kind.LOCATIONS, found.name), found.name)
            except _BROKEN as error:
                self._add_damage(
                    found.name, f"{error}; `safehaul repo repair-index` makes it again from the packs"
                )

    def _add_damage(self, object_name: str, problem: str, chunk_id: bytes = b"") -> None:
        self._damage_count += 1
        if len(self._damage) < DAMAGE_LIMIT:
            self._damage.append(Damage(object_name=object_name, chunk_id=chunk_id.hex(), problem=problem))

    def _check_pack(self, listing: PackListing) -> None:
        """Check one pack, and that its trailer says what `idx/` says."""
        pack, listed = listing
        name = pack_name(pack.pack_id)
        self._heartbeat(f"checking {name}")
        self._chunks += len(listed)
        try:
            findings = self._read_pack(pack)
        except _BROKEN as error:
            # Gone, or not of its size: nothing in it can be relied on.
            self._bad_packs[pack.pack_id] = str(error)
            self._bad_places.update((pack.pack_id, entry.chunk_id) for entry in listed)
            self._add_damage(name, str(error))
            return
        problem = findings.damaged_pack
        if not problem and findings.entries != listed:
            problem = f"pack {name} holds other chunks than idx/ says"
        if problem:
            self._bad_packs[pack.pack_id] = problem
            self._add_damage(name, problem)
        for chunk_id, chunk_problem in findings.damaged_chunks.items():
            self._bad_packs.setdefault(pack.pack_id, chunk_problem)
            self._bad_places.add((pack.pack_id, chunk_id))
            self._add_damage(name, chunk_problem, chunk_id)

    def _read_pack(self, pack: SealedPack) -> PackFindings:
        repository = self._repository
        if not self._full:
            return PackFindings(pack, read_trailer(repository.store, repository.keys, pack).entries)
        self._bytes_read += pack.size_bytes
        return self._checker.check(pack)

    def _check_backup(self, manifest: Manifest) -> None:
        ref = BackupRef(manifest.vc_guid, manifest.backup_id)
        for disk in manifest.disks:
            part = f"disk {disk.label} (key {disk.key})"
            try:
                disk_map = manifest.disk_map(self._repository, disk.key)
            except _BROKEN as error:
                self._add_damage(manifest_name(ref), f"{part}: {error}")
                continue
            for number, root in enumerate(disk.page_roots):
                if root not in self._pages:
                    self._pages.add(root)
                    self._check_page(disk_map, number, root)
                for place, chunk_id, lost in self._suspects.get(root, ()):
                    chunk = number * PAGE_CHUNKS + place
                    offset, length = chunk * disk.chunk_size_bytes, disk_map.length_of(chunk)
                    self._touch(manifest, part, offset, length=length, chunk_id=chunk_id, lost=lost)
        size = self._repository.config.chunk_size_bytes
        for stored in manifest.files:
            for place, text in enumerate(stored.chunks):
                chunk_id = bytes.fromhex(text)
                lost_or_none = self._state_of(chunk_id)
                if lost_or_none is not None:
                    length = min(size, stored.size_bytes - place * size)
                    self._touch(
                        manifest,
                        f"file {stored.name}",
                        place * size,
                        length=length,
                        chunk_id=chunk_id,
                        lost=lost_or_none,
                    )

    def _check_page(self, disk_map: DiskMap, number: int, root: str) -> None:
        """Read a map page and find every chunk of it; what is damaged is noted under its root."""
        try:
            page = disk_map.page(number)
        except _BROKEN as error:
            self._add_damage(page_name(root), str(error))
            chunks = min(PAGE_CHUNKS, disk_map.chunk_count - number * PAGE_CHUNKS)
            # Without the page nobody can say which chunks stand there: the whole range is lost.
            self._suspects[root] = [(place, HOLE, True) for place in range(chunks)]
            return
        found = []
        for place in range(len(page) // ID_LENGTH):
            chunk_id = page[place * ID_LENGTH : (place + 1) * ID_LENGTH]
            lost = self._state_of(chunk_id)
            if lost is not None:
                found.append((place, chunk_id, lost))
        if found:
            self._suspects[root] = found

    def _state_of(self, chunk_id: bytes) -> bool | None:
        """None: the chunk is sound. False: readable, but in a damaged pack. True: lost."""
        if chunk_id == HOLE:
            return None
        places = [location.pack.pack_id for location in self._repository.index.lookup(chunk_id)]
        if any(pack in self._seen and pack not in self._bad_packs for pack in places):
            return None
        readable = any(pack in self._seen and (pack, chunk_id) not in self._bad_places for pack in places)
        if not places:
            self._note_missing(chunk_id)
        return not readable

    def _note_missing(self, chunk_id: bytes) -> None:
        if chunk_id not in self._missing:
            self._missing.add(chunk_id)
            self._add_damage("idx/", f"no pack holds chunk {chunk_id.hex()}", chunk_id)

    def _touch(
        self, manifest: Manifest, part: str, offset: int, *, length: int, chunk_id: bytes, lost: bool
    ) -> None:
        self._touched_count += 1
        if len(self._touched) < TOUCHED_LIMIT:
            self._touched.append(
                Touched(
                    vc_guid=manifest.vc_guid,
                    vm_name=manifest.vm_name,
                    backup_id=manifest.backup_id,
                    part=part,
                    offset_bytes=offset,
                    length_bytes=length,
                    chunk_id="" if chunk_id == HOLE else chunk_id.hex(),
                    lost=lost,
                )
            )
