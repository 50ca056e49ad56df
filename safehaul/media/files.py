"""Stores the small files of a VM (.vmx, .nvram, descriptors, …) in a session."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from safehaul.errors import InvalidInputError, NotFoundError
from safehaul.media.codec import HOLE, Encoded
from safehaul.media.encoder import ChunkEncoder
from safehaul.media.known_chunks import KnownChunks
from safehaul.media.pack import PackBuilder
from safehaul.media.sessions import FilesRecord, Session, StoredFile

MAX_FILES = 4096
_READ_BYTES = 1 << 20


class FileWriter:
    """Stores files of one VM; use it as a context manager. `finish` makes them durable together.

    A file that is added again, in this try or a later one, replaces the earlier one of its name.
    """

    def __init__(self, session: Session) -> None:
        session.refuse_if_sealed()
        self._session = session
        self._repository = session.repository
        self._repository.refresh_index(lately=True)
        self._files: dict[str, StoredFile] = {}
        self._packs: list[tuple[str, int]] = []
        self._pack: PackBuilder | None = None
        self._known = KnownChunks(self._repository)
        self._ids: list[str] = []
        self._encoder = ChunkEncoder(
            self._repository.keys.chunk,
            self._repository.config.chunk_size_bytes,
            self._known,
            self._take,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, name: str, type_: str, source: Path | bytes, *, limit_bytes: int = 1 << 30) -> StoredFile:
        """Store one file. `name` is the VM's name for it (a relative path), `type_` as `layoutEx` says.

        Raises InvalidInputError for too many files or more than `limit_bytes`, NotFoundError for no file.
        """
        if not name or len(name) > 1024 or len(self._files) >= MAX_FILES:
            raise InvalidInputError(
                f"file {name[:100]!r}: a name of 1 to 1024 characters, {MAX_FILES} files at most"
            )
        self._ids = []
        size = 0
        if isinstance(source, bytes):
            size = len(source)
            self._encoder.feed(memoryview(source))
        else:
            try:
                with source.open("rb") as file:
                    size = self._feed(file, name, limit_bytes)
            except FileNotFoundError as error:
                raise NotFoundError(f"file {name!r} is not in the spool: {source}") from error
        self._encoder.end_chunk()
        self._encoder.drain()
        stored = StoredFile(name=name, type=type_, size_bytes=size, chunks=self._ids)
        self._files[name] = stored
        return stored

    def _feed(self, file: BinaryIO, name: str, limit_bytes: int) -> int:
        size = 0
        while data := file.read(_READ_BYTES):
            size += len(data)
            if size > limit_bytes:
                raise InvalidInputError(
                    f"file {name!r} is larger than the {limit_bytes} bytes that it may have"
                )
            self._encoder.feed(memoryview(data))
        return size

    def finish(self) -> list[StoredFile]:
        """Make the added files durable and record them; returns them."""
        self._end_pack()
        files = list(self._files.values())
        if files:
            self._session.put_files(FilesRecord(files=files, packs=self._packs))
        self.close()
        return files

    def close(self) -> None:
        """Stop; files that were not finished are forgotten. Harmless after `finish`."""
        self._encoder.close()
        if self._pack is not None:
            self._pack.abort()
            self._pack = None

    def _take(self, chunk: Encoded) -> None:
        self._ids.append(chunk.chunk_id.hex())
        if chunk.chunk_id == HOLE or chunk.payload is None or chunk.chunk_id in self._known:
            return
        if self._pack is None:
            self._pack = PackBuilder(self._repository.store, self._repository.keys)
        self._pack.add(chunk.chunk_id, chunk.raw_length, chunk.flags, chunk.payload)
        self._known.add([chunk.chunk_id])
        if self._pack.size_bytes >= self._repository.config.pack_size_bytes:
            self._end_pack()

    def _end_pack(self) -> None:
        if self._pack is not None:
            pack = self._pack.seal()
            self._pack = None
            self._packs.append((pack.pack_id.hex(), pack.size_bytes))
