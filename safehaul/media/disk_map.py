"""Disk maps: which chunk stands at which place of a disk, in pages of 64 Ki ids.

A page's body is the 32-byte ids of its chunks, the last page of a disk being shorter; the name is the keyed
BLAKE3 of the body, so an increment writes only the pages that differ. A page that consists of holes is not
stored: its root is the all-zero id. With chunks of 1 MiB one page covers 64 GiB.

A body may be followed by a variant, 4 bytes: the same page under another name, where the first one is condemned by a
collection, or damaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from safehaul.errors import IntegrityError
from safehaul.media.codec import HOLE, ID_LENGTH
from safehaul.media.envelope import Kind
from safehaul.media.repository import Repository

PAGE_CHUNKS = 1 << 16
_HOLE_ROOT = HOLE.hex()
_VARIANT_LENGTH = 4
_VARIANTS = 100


def chunk_count(capacity_bytes: int, chunk_size_bytes: int) -> int:
    """Return how many chunks a disk has; the last one may be short."""
    return -(-capacity_bytes // chunk_size_bytes)


def page_name(root: str) -> str:
    """Return the object name of a page: `pages/xx/DIGEST`."""
    return f"pages/{root[:2]}/{root}"


def write_pages(repository: Repository, digests: Iterable[bytes], on_page: Callable[[], None]) -> list[str]:
    """Store the map of a disk whose ids come in pieces of any number of whole ids; returns the roots.

    Holds one page (2 MiB) at a time. `on_page` is called after each.
    """
    roots: list[str] = []
    page = bytearray()
    limit = PAGE_CHUNKS * ID_LENGTH

    def store(body: bytes) -> None:
        if body.count(0) == len(body):
            roots.append(_HOLE_ROOT)
        else:
            roots.append(_put_page(repository, body))
        on_page()

    for piece in digests:
        page += piece
        while len(page) >= limit:
            store(bytes(page[:limit]))
            del page[:limit]
    if page:
        store(bytes(page))
    return roots


def _put_page(repository: Repository, ids: bytes) -> str:
    """Store a page under the first of its names that may be relied on; returns the root."""
    for variant in range(_VARIANTS):
        body = ids + variant.to_bytes(_VARIANT_LENGTH, "little") if variant else ids
        root = repository.content_name(body)
        if repository.is_condemned_page(root):
            continue
        try:
            repository.put_same(Kind.PAGE, page_name(root), body)
        except IntegrityError:
            # A damaged object has the name, and cannot be overwritten: the next one takes its place.
            continue
        return root
    raise IntegrityError(
        f"{_VARIANTS} pages of one content are condemned or damaged: the store loses what it is given"
    )


class DiskMap:
    """The map of one stored disk. Keeps one page in memory; not for use by several threads at once."""

    def __init__(
        self, repository: Repository, capacity_bytes: int, chunk_size_bytes: int, page_roots: list[str]
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self.chunk_size_bytes = chunk_size_bytes
        self.chunk_count = chunk_count(capacity_bytes, chunk_size_bytes)
        self.page_roots = page_roots
        self._repository = repository
        self._cached: tuple[int, bytes] = (-1, b"")
        if len(page_roots) != -(-self.chunk_count // PAGE_CHUNKS):
            raise IntegrityError(
                f"a disk of {capacity_bytes} bytes needs another number of map pages than {len(page_roots)}"
            )

    def page(self, number: int) -> bytes:
        """Return the ids of page `number`. Raises NotFoundError or IntegrityError when it is lost or damaged."""
        if self._cached[0] != number:
            length = min(PAGE_CHUNKS, self.chunk_count - number * PAGE_CHUNKS) * ID_LENGTH
            self._cached = (number, self._read(self.page_roots[number], length))
        return self._cached[1]

    def _read(self, root: str, length: int) -> bytes:
        if root == _HOLE_ROOT:
            return bytes(length)
        name = page_name(root)
        body = self._repository.get(Kind.PAGE, name)
        if len(body) not in {length, length + _VARIANT_LENGTH} or self._repository.content_name(body) != root:
            raise IntegrityError(f"object {name} is damaged: it is not the page that its name says")
        return body[:length]

    def chunk_id(self, number: int) -> bytes:
        """Return the id of chunk `number`, counted from 0; HOLE for zeros."""
        page, place = divmod(number, PAGE_CHUNKS)
        return self.page(page)[place * ID_LENGTH : (place + 1) * ID_LENGTH]

    def chunk_ids(self, first: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the ids of the chunks from `first` to before `end`."""
        for number in range(first, self.chunk_count if end is None else end):
            yield self.chunk_id(number)

    def length_of(self, number: int) -> int:
        """Return the bytes of chunk `number`: the chunk size, or less for the last one."""
        return min(self.chunk_size_bytes, self.capacity_bytes - number * self.chunk_size_bytes)
