"""Checks backups by their maps: is every chunk in a sound pack; if not, what of which disk or file is lost."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from safehaul.errors import IntegrityError
from safehaul.media.codec import HOLE, ID_LENGTH
from safehaul.media.disk_map import PAGE_CHUNKS, DiskMap, page_name
from safehaul.media.manifest import (
    BackupRef,
    Manifest,
    ManifestDisk,
    index_name,
    manifest_name,
    read_index,
    read_manifest,
)
from safehaul.media.repository import Repository
from safehaul.media.verified import BadPack, FindingsBuilder
from safehaul.media.verify_packs import BROKEN
from safehaul.messages.verify import PARTS_LIMIT, DamagedBackup, LostPart, Touched

PAGES_KNOWN = 500_000
"""Sound map pages that are remembered, so that what backups share is looked at once: about 60 MB."""
_SUSPECTS_KNOWN = 32
"""Damaged pages whose places are remembered; one may take 10 MB."""

_MANIFEST_ADVICE = (
    "nothing of this backup can be restored; the VM's other backups do not need it: `safehaul repo repair "
    "--drop-lost` takes it off the list"
)
_INDEX_ADVICE = (
    "the backup itself can be restored; only how its run ended is not known any more: `safehaul repo repair "
    "--drop-lost` deletes the object"
)
_PAGE_ADVICE = "what stands there cannot be found any more: back the VM up again, which writes the map anew"
_MISSING_ADVICE = (
    "`safehaul repo repair` lists packs that no index names; else a later backup stores it again"
)


class _Suspect(NamedTuple):
    """A place of a page that is damaged."""

    place: int
    chunk_id: bytes
    lost: bool
    packs: tuple[bytes, ...]
    """Damaged packs that hold it."""


class BadPlaces:
    """Which packs, and which chunks in them, cannot be relied on."""

    def __init__(self) -> None:
        self._bad: dict[bytes, frozenset[bytes] | None] = {}

    def add(self, pack: BadPack) -> None:
        """Note a damaged pack."""
        chunks = None if pack.gone else frozenset(map(bytes.fromhex, pack.chunks))
        self._bad[bytes.fromhex(pack.pack)] = chunks

    def __contains__(self, pack_id: bytes) -> bool:
        return pack_id in self._bad

    def readable(self, pack_id: bytes, chunk_id: bytes) -> bool:
        """Tell whether a chunk can be read from a pack, sound or not."""
        chunks = self._bad.get(pack_id, frozenset())
        return chunks is not None and chunk_id not in chunks


class BackupVerifier:
    """Checks backups one after the other; remembers the pages that it has found sound. For one thread."""

    def __init__(self, repository: Repository, bad: BadPlaces, beat: Callable[[str], None]) -> None:
        self._repository = repository
        self._bad = bad
        self._beat = beat
        self._pages: set[str] = set()
        self._suspects: OrderedDict[str, list[_Suspect]] = OrderedDict()
        self._missing: set[bytes] = set()
        self._fresh = False

    def check(self, ref: BackupRef, findings: FindingsBuilder, *, newest: bool) -> None:
        """Check one backup, and tell `findings` what is wrong with it."""
        repository = self._repository
        try:
            read_index(repository, ref)
        except BROKEN as error:
            if repository.store.exists(index_name(ref)):
                findings.damage(index_name(ref), str(error), _INDEX_ADVICE)
        try:
            manifest = read_manifest(repository, ref)
        except BROKEN as error:
            if not _is_backup(repository, ref):
                return
            findings.damage(manifest_name(ref), str(error), _MANIFEST_ADVICE)
            findings.backup(
                DamagedBackup(
                    vc_guid=ref.vc_guid,
                    backup_id=ref.backup_id,
                    problem=str(error),
                    by_chunks=False,
                    newest=newest,
                )
            )
            return
        findings.count(backups=1)
        self._fresh = False
        _Check(self, manifest, findings, newest=newest).run()

    def suspects(self, disk_map: DiskMap, number: int, findings: FindingsBuilder) -> list[_Suspect]:
        """What is damaged in a map page."""
        root = disk_map.page_roots[number]
        if root in self._pages:
            return []
        known = self._suspects.get(root)
        if known is None:
            known = self._look(disk_map, number, root, findings)
            if known:
                self._suspects[root] = known
                if len(self._suspects) > _SUSPECTS_KNOWN:
                    self._suspects.popitem(last=False)
            else:
                if len(self._pages) >= PAGES_KNOWN:
                    self._pages.clear()
                self._pages.add(root)
        return known

    def _look(self, disk_map: DiskMap, number: int, root: str, findings: FindingsBuilder) -> list[_Suspect]:
        self._beat(f"reading {page_name(root)}")
        try:
            page = disk_map.page(number)
        except BROKEN as error:
            findings.damage(page_name(root), str(error), _PAGE_ADVICE)
            chunks = min(PAGE_CHUNKS, disk_map.chunk_count - number * PAGE_CHUNKS)
            # Without the page nobody can say which chunks stand there: the whole range is lost.
            return [_Suspect(place, HOLE, True, ()) for place in range(chunks)]
        found = []
        for place in range(len(page) // ID_LENGTH):
            chunk_id = page[place * ID_LENGTH : (place + 1) * ID_LENGTH]
            state = self.state_of(chunk_id, findings)
            if state is not None:
                found.append(_Suspect(place, chunk_id, *state))
        return found

    def state_of(self, chunk_id: bytes, findings: FindingsBuilder) -> tuple[bool, tuple[bytes, ...]] | None:
        """None: the chunk is sound. Else whether it is lost, and which damaged packs hold it."""
        if chunk_id == HOLE:
            return None
        packs = self._places(chunk_id)
        if not self._fresh and all(pack in self._bad for pack in packs):
            # The backup may be younger than what was loaded of `idx/`, or a collection has copied the chunk since.
            self._refresh()
            packs = self._places(chunk_id)
        if any(pack not in self._bad for pack in packs):
            return None
        if not packs and chunk_id not in self._missing:
            self._missing.add(chunk_id)
            problem = f"no pack holds chunk {chunk_id.hex()}"
            findings.damage("idx/", problem, _MISSING_ADVICE, chunk_id)
        return not any(self._bad.readable(pack, chunk_id) for pack in packs), packs

    def _places(self, chunk_id: bytes) -> tuple[bytes, ...]:
        return tuple(place.pack.pack_id for place in self._repository.index.lookup(chunk_id))

    def _refresh(self) -> None:
        """Load what is new of `idx/`, once for each backup."""
        self._fresh = True
        # A damaged object of `gc/` has been named already; the lists are loaded before it is met.
        with contextlib.suppress(IntegrityError):
            self._repository.refresh_index()


class _Check:
    """The check of one backup's disks and files."""

    def __init__(
        self, verifier: BackupVerifier, manifest: Manifest, findings: FindingsBuilder, *, newest: bool
    ) -> None:
        self._verifier = verifier
        self._manifest = manifest
        self._findings = findings
        self._newest = newest
        self._parts: dict[str, list[int]] = {}
        self._by_chunks = True

    def run(self) -> None:
        manifest = self._manifest
        for disk in manifest.disks:
            self._check_disk(disk)
        size = self._verifier._repository.config.chunk_size_bytes  # noqa: SLF001 - one of its parts
        for stored in manifest.files:
            for place, text in enumerate(stored.chunks):
                chunk_id = bytes.fromhex(text)
                state = self._verifier.state_of(chunk_id, self._findings)
                if state is not None:
                    length = min(size, stored.size_bytes - place * size)
                    self._touch(
                        f"file {stored.name}", place * size, length, _Suspect(place, chunk_id, *state)
                    )
        if self._parts:
            self._findings.backup(
                DamagedBackup(
                    vc_guid=manifest.vc_guid,
                    backup_id=manifest.backup_id,
                    vm_name=manifest.vm_name,
                    vm_group=manifest.vm_group,
                    bytes_lost=sum(lost for lost, _ in self._parts.values()),
                    parts=[
                        LostPart(part=part, bytes_lost=lost, bytes_kept=kept)
                        for part, (lost, kept) in list(self._parts.items())[:PARTS_LIMIT]
                    ],
                    by_chunks=self._by_chunks,
                    newest=self._newest,
                )
            )

    def _check_disk(self, disk: ManifestDisk) -> None:
        part = f"disk {disk.label} (key {disk.key})"
        ref = BackupRef(self._manifest.vc_guid, self._manifest.backup_id)
        try:
            disk_map = self._manifest.disk_map(self._verifier._repository, disk.key)  # noqa: SLF001 - one of its parts
        except BROKEN as error:
            self._findings.damage(manifest_name(ref), f"{part}: {error}", _MANIFEST_ADVICE)
            self._parts[part] = [disk.capacity_bytes, 0]
            self._by_chunks = False
            return
        for number in range(len(disk.page_roots)):
            for suspect in self._verifier.suspects(disk_map, number, self._findings):
                chunk = number * PAGE_CHUNKS + suspect.place
                self._touch(part, chunk * disk.chunk_size_bytes, disk_map.length_of(chunk), suspect)

    def _touch(self, part: str, offset: int, length: int, suspect: _Suspect) -> None:
        sums = self._parts.setdefault(part, [0, 0])
        sums[0 if suspect.lost else 1] += length
        if suspect.chunk_id == HOLE:
            self._by_chunks = False
        for pack in suspect.packs:
            self._findings.needs(pack)
        self._findings.touch(
            Touched(
                vc_guid=self._manifest.vc_guid,
                vm_name=self._manifest.vm_name,
                backup_id=self._manifest.backup_id,
                part=part,
                offset_bytes=offset,
                length_bytes=length,
                chunk_id="" if suspect.chunk_id == HOLE else suspect.chunk_id.hex(),
                lost=suspect.lost,
            )
        )


def _is_backup(repository: Repository, ref: BackupRef) -> bool:
    """Whether the backup is still there: it may have been forgotten since it was listed."""
    return repository.store.exists(manifest_name(ref))
