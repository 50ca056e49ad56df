"""Reads a whole pack and checks every byte of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from safehaul.errors import IntegrityError, NotFoundError, UnreadableError, UnsupportedError
from safehaul.media.codec import Decompressor
from safehaul.media.pack import (
    FRAME,
    HEADER_LENGTH,
    BodyDigest,
    ChunkEntry,
    SealedPack,
    check_pack_header,
    decode_frame,
    pack_name,
    read_trailer,
)
from safehaul.media.repository import Repository

_WINDOW_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class PackFindings:
    """What reading a pack brought to light."""

    pack: SealedPack
    entries: list[ChunkEntry]
    """The trailer's records; empty when the trailer itself is damaged."""
    damaged_chunks: dict[bytes, str] = field(default_factory=dict)
    """Chunk id → what is wrong with its frame."""
    damaged_pack: str = ""
    """What is wrong with the pack as a whole; empty when nothing is."""

    @property
    def sound(self) -> bool:
        """True when every byte is what it must be."""
        return not self.damaged_chunks and not self.damaged_pack


class PackChecker:
    """Checks packs one after the other, in the same buffers (one window, one chunk). For one thread."""

    def __init__(self, repository: Repository) -> None:
        self._store = repository.store
        self._keys = repository.keys
        self._chunk_size = repository.config.chunk_size_bytes
        self._window = bytearray(max(_WINDOW_BYTES, FRAME.size + 2 * self._chunk_size))
        self._chunk = memoryview(bytearray(self._chunk_size))
        self._decompressor = Decompressor(repository.keys.chunk)

    def check(self, pack: SealedPack) -> PackFindings:
        """Read every byte of a pack. Damage is in the findings, never raised; a lost pack is NotFoundError."""
        name = pack_name(pack.pack_id)
        try:
            contents = read_trailer(self._store, self._keys, pack)
        except IntegrityError as error:
            return PackFindings(pack, [], damaged_pack=str(error))
        findings = PackFindings(pack, contents.entries)
        problem = ""
        try:
            header = self._store.get_range(name, 0, HEADER_LENGTH)
            digest = BodyDigest(self._keys, header)
            check_pack_header(header, pack.pack_id, self._keys.suite)
            _check_order(contents.entries, contents.body_length, name)
            for window, entries in self._windows(name, contents.entries):
                for entry in entries:
                    at = entry.offset - entries[0].offset
                    digest.add(window[at : at + entry.end - entry.offset])
                    self._check_frame(window, at, entry, findings)
            if digest.digest() != contents.body_digest:
                problem = f"pack {name} is damaged: its body digest does not agree"
        except (IntegrityError, UnsupportedError) as error:
            # Another version: a newer safehaul's, or a byte that changed. Not to be relied on, either way.
            problem = str(error)
        return PackFindings(pack, contents.entries, findings.damaged_chunks, problem)

    def check_frames(self, pack: SealedPack, entries: list[ChunkEntry]) -> dict[bytes, str]:
        """Read single frames where another list than the pack's own says that they are; chunk id → problem.

        For a pack whose trailer or size is wrong: what can be read of it is not lost.
        """
        findings = PackFindings(pack, entries)
        name = pack_name(pack.pack_id)
        for entry in entries:
            try:
                window = self._read(name, [entry])
            except (IntegrityError, NotFoundError, UnreadableError) as error:
                findings.damaged_chunks[entry.chunk_id] = str(error)
                continue
            self._check_frame(window, 0, entry, findings)
        return findings.damaged_chunks

    def _windows(self, name: str, entries: list[ChunkEntry]) -> Iterator[tuple[memoryview, list[ChunkEntry]]]:
        """Yield the pack's frames in groups that fit the buffer, each read at once."""
        group: list[ChunkEntry] = []
        for entry in entries:
            if group and entry.end - group[0].offset > len(self._window):
                yield self._read(name, group), group
                group = []
            group.append(entry)
        if group:
            yield self._read(name, group), group

    def _read(self, name: str, group: list[ChunkEntry]) -> memoryview:
        start, end = group[0].offset, group[-1].end
        if end - start > len(self._window):
            raise IntegrityError(
                f"pack {name} has a frame of {end - start} bytes: larger than a chunk can be"
            )
        window = memoryview(self._window)[: end - start]
        self._store.read_into(name, start, window)
        return window

    def _check_frame(self, window: memoryview, at: int, entry: ChunkEntry, findings: PackFindings) -> None:
        try:
            if entry.raw_length > self._chunk_size:
                findings.damaged_chunks[entry.chunk_id] = "the chunk is larger than the chunk size"
                return
            frame = window[at : at + FRAME.size + entry.stored_length]
            cipher = self._keys.frames(findings.pack.pack_id)
            decode_frame(self._decompressor, cipher, frame, entry, self._chunk[: entry.raw_length])
        except IntegrityError as error:
            findings.damaged_chunks[entry.chunk_id] = str(error)


def _check_order(entries: list[ChunkEntry], body_length: int, name: str) -> None:
    """Frames follow each other from the header to the trailer without gaps."""
    position = HEADER_LENGTH
    for entry in entries:
        if entry.offset != position:
            raise IntegrityError(
                f"pack {name} is damaged: chunk {entry.chunk_id.hex()} is not where it must be"
            )
        position = entry.end
    if position != body_length:
        raise IntegrityError(f"pack {name} is damaged: {body_length - position} bytes belong to no chunk")
