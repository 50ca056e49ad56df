"""The collection: takes away what no backup needs, while backups, restores and other collections run.

One run does both halves of the work, for different objects: what an earlier run condemned, and no session of that time
can count on any more, is judged once more and deleted; what nobody needs now is condemned for a later run. It may be
stopped anywhere. docs/adr/0008-collection-without-locks.md says why nothing is lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from pydantic import Field

from safehaul.errors import IntegrityError, NotFoundError, UnreadableError
from safehaul.media.census import Census, CountedPack, PackState
from safehaul.media.chunk_copier import ChunkCopier
from safehaul.media.collection import (
    NAMES_LIMIT,
    Condemnations,
    Generation,
    NumberedGeneration,
    put_generation,
    read_generations,
    record_damaged,
    sum_up,
)
from safehaul.media.disk_map import page_name
from safehaul.media.locations import PackListing
from safehaul.media.object_store import DeletingStore, store_time
from safehaul.media.pack import SealedPack, pack_name
from safehaul.media.pack_check import PackChecker
from safehaul.media.pack_lists import PREFIX as LISTS
from safehaul.media.pack_lists import put_lists, read_list, trailers
from safehaul.media.reachable import Reachable, find_reachable
from safehaul.media.repository import Repository
from safehaul.media.session_survey import Survey, end_dead_sessions, open_sessions
from safehaul.media.tidy import merge_lists, spent_generations
from safehaul.messages.base import Message

Heartbeat = Callable[[str], None]


class CollectOptions(Message):
    """How a collection works."""

    grace_s: float = Field(default=86400.0, ge=0)
    """What is condemned stays at least this long, and what is younger is not condemned."""
    session_lease_s: float = Field(default=2 * 86400.0, ge=0)
    """A session of which nothing was written for this long is ended."""
    repack_below: float = Field(default=0.5, ge=0, le=1)
    """Packs of which a smaller share is needed are copied into new ones."""
    repack_limit_bytes: int = Field(default=64 << 30, ge=0)
    """Bytes that one run copies at most."""
    dry_run: bool = False
    """Only say what would be done."""


class CollectReport(Message):
    """What a collection did, or would do."""

    dry_run: bool = False
    backups: int = 0
    forgotten: int = 0
    """Backups that can be recovered; they keep all of their chunks."""
    sessions_open: int = 0
    sessions_fenced: int = 0
    packs: int = 0
    bytes_stored: int = 0
    """In packs, at the beginning."""
    packs_deleted: int = 0
    pages_deleted: int = 0
    bytes_deleted: int = 0
    """Of packs."""
    packs_released: int = 0
    """Condemned, and needed after all."""
    packs_condemned: int = 0
    pages_condemned: int = 0
    bytes_condemned: int = 0
    """Of packs; they are deleted by a later run."""
    packs_waiting: int = 0
    """Condemned by earlier runs; a session of that time has not ended, or their time has not come."""
    packs_repacked: int = 0
    bytes_copied: int = 0
    chunks_lost: int = 0
    """Needed, and in no pack: `safehaul repo verify` says what they touch."""
    packs_listed: int = 0
    """Needed, and in no list any more: listed anew."""
    lists_merged: int = 0


def collect(
    repository: Repository,
    store: DeletingStore,
    options: CollectOptions | None = None,
    heartbeat: Heartbeat = lambda _: None,
) -> CollectReport:
    """Collect once. `store` is the repository's own, opened by an identity that may delete.

    `heartbeat` is called often with what is being done; it may raise to stop. Raises IntegrityError when a backup, an
    outcome or a generation cannot be read (nothing is collected then), PermissionRefusedError, TransientError.
    """
    census = Census()
    try:
        return _Collection(repository, store, options or CollectOptions(), census, heartbeat).run()
    finally:
        census.close()


class _Collection:
    def __init__(
        self,
        repository: Repository,
        store: DeletingStore,
        options: CollectOptions,
        census: Census,
        heartbeat: Heartbeat,
    ) -> None:
        self._repository = repository
        self._store = store
        self._options = options
        self._census = census
        self._heartbeat = heartbeat
        self._report = CollectReport(dry_run=options.dry_run)

    def run(self) -> CollectReport:
        options = self._options
        now = time.time() if options.dry_run else store_time(self._store)
        # What is read later must show the end of whatever was condemned before: sessions, then backups, then packs.
        generations = read_generations(self._repository)
        condemned = sum_up(generations)
        sessions = end_dead_sessions(
            self._repository,
            self._store,
            now=now,
            lease_s=options.session_lease_s,
            dry_run=options.dry_run,
            heartbeat=self._heartbeat,
        )
        reachable = find_reachable(self._repository, self._census, sessions.live, self._heartbeat)
        self._count_packs(condemned)
        self._census.serve()
        count, stored = self._census.count()
        self._add(
            backups=reachable.backups,
            forgotten=reachable.forgotten,
            sessions_open=len(sessions.live_prefixes),
            sessions_fenced=sessions.fenced,
            packs=count,
            bytes_stored=stored,
            chunks_lost=self._census.lost(),
        )
        for generation in generations:
            if generation.content.condemned or generation.content.pages:
                self._judge(generation, generations, reachable, sessions, now)
        horizon = min(
            now - options.grace_s, now if sessions.oldest_opened is None else sessions.oldest_opened
        )
        self._list_needed(reachable, horizon)
        self._condemn(condemned, reachable, horizon)
        if not options.dry_run:
            spent = spent_generations(self._repository)
            merged = merge_lists(self._repository, self._store, self._heartbeat)
            self._add(lists_merged=merged)
            for name in spent:
                self._store.delete(name)
            self._store.remove_abandoned(options.session_lease_s)
        return self._report

    def _add(self, **sums: int) -> None:
        self._report = self._report.model_copy(
            update={name: getattr(self._report, name) + value for name, value in sums.items()}
        )

    def _count_packs(self, condemned: Condemnations) -> None:
        """Fill the census: the packs that are there, then what lies in them, by the lists, else by their trailers."""
        for info in self._repository.store.list("packs/"):
            pack_id = bytes.fromhex(info.name.rpartition("/")[2])
            state = PackState.GOOD
            if pack_id in condemned.packs:
                state = PackState.DAMAGED if pack_id in condemned.damaged else PackState.CONDEMNED
            self._census.add_pack(SealedPack(pack_id, info.size_bytes), info.modified, state)
        for info in self._repository.store.list(LISTS):
            self._heartbeat(f"reading {info.name}")
            for listing in read_list(self._repository, info.name) or ():
                self._census.add_listing(listing)
        self._count_unlisted(condemned)

    def _count_unlisted(self, condemned: Condemnations) -> None:
        for pack in self._census.unlisted():
            self._heartbeat(f"reading the list of {pack_name(pack.pack_id)}")
            state = PackState.UNLISTED
            try:
                for listing in trailers(self._repository, [pack]):
                    self._census.add_listing(listing)
            except NotFoundError:
                continue
            except IntegrityError:
                state = PackState.DAMAGED
            if pack.pack_id not in condemned.packs:
                self._census.set_state(pack.pack_id, state)

    def _list_needed(self, reachable: Reachable, horizon: float) -> None:
        """List packs that hold what no listed pack does, once every byte of them was read."""
        checker = PackChecker(self._repository)
        for counted in self._census.packs(PackState.UNLISTED):
            young = counted.modified >= horizon or counted.pack.pack_id in reachable.session_packs
            if young or self._options.dry_run or not self._census.unserved(counted.pack.pack_id):
                continue
            self._heartbeat(f"reading {pack_name(counted.pack.pack_id)}")
            findings = checker.check(counted.pack)
            if findings.sound:
                put_lists(self._repository, [PackListing(counted.pack, findings.entries)])
                self._add(packs_listed=1)

    # ── second half: what an earlier run condemned ──

    def _judge(
        self,
        generation: NumberedGeneration,
        generations: list[NumberedGeneration],
        reachable: Reachable,
        sessions: Survey,
        now: float,
    ) -> None:
        """Delete or release what a generation condemned, once it can be known that nobody counts on it."""
        content = generation.content
        later = [other.content for other in generations if other.number > generation.number]
        # What was released since may be counted on, even if it was condemned again: then that generation judges it.
        released = {name for other in later for name in (*other.released, *other.released_pages)}
        packs = [bytes.fromhex(pack) for pack in content.condemned if pack not in released]
        pages = [root for root in content.pages if root not in released]
        observed = [other.sessions for other in later if other.observes == generation.number]
        if not observed:
            if not self._options.dry_run:
                self._observe(generation.number)
        elif now - generation.modified >= self._options.grace_s and any(
            sessions.live_prefixes.isdisjoint(names) for names in observed
        ):
            self._delete(packs, pages, reachable)
            return
        self._add(packs_waiting=len(packs))

    def _observe(self, number: int) -> None:
        """Record which sessions are open now that generation `number` can be seen by everyone who opens one."""
        prefixes = [folder.prefix for folder in open_sessions(self._repository)]
        put_generation(self._repository, Generation(observes=number, sessions=prefixes))

    def _delete(self, packs: list[bytes], pages: list[str], reachable: Reachable) -> None:
        there = {counted.pack.pack_id: counted.pack for counted in self._condemned_packs()}
        released = [pack for pack in packs if pack in there and not self._is_dispensable(pack, reachable)]
        released_pages = [root for root in pages if root in reachable.pages]
        dry_run = self._options.dry_run
        if (released or released_pages) and not dry_run:
            put_generation(
                self._repository,
                Generation(released=[pack.hex() for pack in released], released_pages=released_pages),
            )
        kept = {*released, *released_pages}
        for pack_id in packs:
            if pack_id in there and pack_id not in kept:
                name = pack_name(pack_id)
                self._heartbeat(f"deleting {name}")
                if not dry_run:
                    self._store.delete(name)
                self._add(packs_deleted=1, bytes_deleted=there[pack_id].size_bytes)
        for root in pages:
            if root not in kept:
                self._heartbeat(f"deleting {page_name(root)}")
                if not dry_run:
                    self._store.delete(page_name(root))
                self._add(pages_deleted=1)
        self._add(packs_released=len(released))

    def _condemned_packs(self) -> Iterator[CountedPack]:
        yield from self._census.packs(PackState.CONDEMNED)
        yield from self._census.packs(PackState.DAMAGED)

    def _is_dispensable(self, pack_id: bytes, reachable: Reachable) -> bool:
        """True when every needed chunk of the pack was just read from another one that stays."""
        if pack_id in reachable.session_packs or self._census.unserved(pack_id):
            return False
        copier = ChunkCopier(self._repository, self._heartbeat)
        for other in self._census.others_of(pack_id):
            self._heartbeat(f"reading what pack {pack_name(other.pack.pack_id)} serves")
            try:
                copier.read(other)
            except (NotFoundError, UnreadableError):
                return False
            except IntegrityError:
                if not self._options.dry_run:
                    record_damaged(self._repository, [other.pack.pack_id])
                return False
        return True

    # ── first half: what nobody needs now ──

    def _condemn(self, condemned: Condemnations, reachable: Reachable, horizon: float) -> None:
        garbage = [pack.pack_id for pack in self._garbage(reachable, horizon)]
        garbage += self._repack(reachable, horizon)
        pages = [
            root
            for root, modified in self._listed_pages()
            if root not in reachable.pages and root not in condemned.pages and modified < horizon
        ]
        self._add(packs_condemned=len(garbage), pages_condemned=len(pages))
        if self._options.dry_run:
            return
        for start in range(0, max(len(garbage), len(pages)), NAMES_LIMIT):
            self._heartbeat("condemning what nobody needs")
            number = put_generation(
                self._repository,
                Generation(
                    condemned=[pack.hex() for pack in garbage[start : start + NAMES_LIMIT]],
                    pages=pages[start : start + NAMES_LIMIT],
                ),
            )
            self._observe(number)

    def _garbage(self, reachable: Reachable, horizon: float) -> Iterator[SealedPack]:
        """Yield the packs that serve nothing, and were there before the oldest backup under way."""
        nothing_lost = not self._report.chunks_lost
        for state in (PackState.GOOD, PackState.UNLISTED, PackState.DAMAGED):
            for counted in self._census.packs(state):
                pack_id = counted.pack.pack_id
                if counted.serving_bytes or counted.modified >= horizon or pack_id in reachable.session_packs:
                    continue
                # A damaged pack may be the only one with some chunks; one without a readable list, with any chunk.
                if self._census.unserved(pack_id) or (state is PackState.DAMAGED and not nothing_lost):
                    continue
                self._add(bytes_condemned=counted.pack.size_bytes)
                yield counted.pack

    def _listed_pages(self) -> Iterator[tuple[str, float]]:
        for info in self._repository.store.list("pages/"):
            yield info.name.rpartition("/")[2], info.modified

    def _repack(self, reachable: Reachable, horizon: float) -> list[bytes]:
        """Copy what is needed of packs that are mostly garbage; returns those packs, which serve nothing any more."""
        chosen: list[CountedPack] = []
        left = self._options.repack_limit_bytes
        for counted in sorted(self._census.packs(PackState.GOOD), key=lambda item: item.serving_bytes):
            mostly_needed = counted.serving_bytes >= self._options.repack_below * counted.pack.size_bytes
            if not counted.serving_bytes or mostly_needed or counted.modified >= horizon:
                continue
            if counted.pack.pack_id in reachable.session_packs or counted.serving_bytes > left:
                continue
            left -= counted.serving_bytes
            chosen.append(counted)
        if not self._options.dry_run:
            chosen = self._copy(chosen)
        self._add(
            packs_repacked=len(chosen),
            bytes_copied=sum(counted.serving_bytes for counted in chosen),
            bytes_condemned=sum(counted.pack.size_bytes for counted in chosen),
        )
        return [counted.pack.pack_id for counted in chosen]

    def _copy(self, chosen: list[CountedPack]) -> list[CountedPack]:
        """Copy the needed chunks of packs; returns those of which all could be read."""
        copier = ChunkCopier(self._repository, self._heartbeat)
        copied = []
        try:
            for counted in chosen:
                name = pack_name(counted.pack.pack_id)
                self._heartbeat(f"copying what is needed of {name}")
                try:
                    for location in self._census.served_by(counted.pack.pack_id):
                        copier.copy(location)
                except (NotFoundError, UnreadableError):
                    continue
                except IntegrityError:
                    record_damaged(self._repository, [counted.pack.pack_id])
                    continue
                copied.append(counted)
            copier.finish()
        finally:
            copier.abort()
        return copied
