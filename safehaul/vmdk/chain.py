"""A virtual disk as its chain shows it: redo logs over a flat base, nearest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from safehaul.errors import IntegrityError, UnsupportedError
from safehaul.vmdk.extents import Interval, Piece, fill_zeros
from safehaul.vmdk.files import DiskFiles, FileIdentity
from safehaul.vmdk.layer import ExtentFacts, Layer

MAX_LAYERS = 32
"""vSphere allows 32 disks in a chain (KB 1025279)."""


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """One layer of a verified chain."""

    path: str
    format: str
    """`flat` or `vmfsSparse`."""
    create_type: str
    cid: int
    extents: tuple[ExtentFacts, ...]


@dataclass(frozen=True, slots=True)
class DiskVerification:
    """What step 8 records of a disk that the NAS transport can read."""

    path: str
    capacity_bytes: int
    format: str
    """Of the top layer."""
    layers: tuple[LayerFacts, ...]
    warnings: tuple[str, ...]

    @property
    def chain_depth(self) -> int:
        """Number of layers; 1 for a disk without redo logs."""
        return len(self.layers)

    @property
    def extents(self) -> tuple[ExtentFacts, ...]:
        """Every extent of every layer, nearest first."""
        return tuple(extent for layer in self.layers for extent in layer.extents)


class DiskChain:
    """An open chain, all files at once, read-only. Threads may share it. A context manager."""

    def __init__(
        self,
        files: DiskFiles,
        path: str,
        parent_paths: Sequence[str] = (),
        *,
        capacity_bytes: int | None = None,
    ) -> None:
        """Open the descriptor at `path` and its parents, and check the chain.

        `parent_paths` is vCenter's chain below `path`, nearest first; only if it is empty are the descriptors'
        own hints followed. `capacity_bytes` is vCenter's word. Raises UnsupportedError for a format or depth
        that cannot be read, IntegrityError for a chain that contradicts itself or vCenter, and what opening
        files raises.
        """
        self.path = path
        self._files = files
        self._layers: list[Layer] = []
        try:
            self._open(parent_paths)
            self._check(capacity_bytes)
        except BaseException:
            self.close()
            raise
        self.capacity_bytes = self._layers[0].length_bytes

    def _open(self, parent_paths: Sequence[str]) -> None:
        if len(parent_paths) >= MAX_LAYERS:
            raise self._too_deep()
        path: str | None = self.path
        named = list(parent_paths)
        seen: set[str] = set()
        while path is not None:
            if path in seen:
                raise IntegrityError(f"the chain of disk {self.path!r} comes back to {path!r}")
            if len(self._layers) >= MAX_LAYERS:
                raise self._too_deep()
            seen.add(path)
            layer = Layer(self._files, path)
            self._layers.append(layer)
            path = self._parent_of(layer, named, told=bool(parent_paths))

    def _parent_of(self, layer: Layer, named: list[str], *, told: bool) -> str | None:
        descriptor = layer.descriptor
        if not descriptor.has_parent:
            if named:
                raise IntegrityError(
                    f"vCenter names {named[0]!r} as parent of {layer.path!r}, whose descriptor has no parent"
                )
            return None
        if named:
            return named.pop(0)
        if told:
            raise IntegrityError(f"{layer.path!r} has a parent, but vCenter's chain ends there")
        if not descriptor.parent_hint:
            raise IntegrityError(f"{layer.path!r} has a parent that neither vCenter nor the descriptor names")
        return self._files.parent(layer.path, descriptor.parent_hint)

    def _check(self, capacity_bytes: int | None) -> None:
        top = self._layers[0]
        for child, parent in zip(self._layers, self._layers[1:], strict=False):
            if child.descriptor.parent_cid != parent.descriptor.cid:
                raise IntegrityError(
                    f"{child.path!r} was made on a parent with CID {child.descriptor.parent_cid:08x}, but "
                    f"{parent.path!r} has {parent.descriptor.cid:08x}: the parent was changed afterwards, or is "
                    "another disk; repair the chain on the host before it is backed up"
                )
            if child.length_bytes != parent.length_bytes:
                raise IntegrityError(
                    f"{child.path!r} has {child.length_bytes} bytes, its parent {parent.path!r} "
                    f"{parent.length_bytes}"
                )
        if capacity_bytes is not None and top.length_bytes != capacity_bytes:
            raise IntegrityError(
                f"disk {self.path!r} has {top.length_bytes} bytes on the filer, {capacity_bytes} in vCenter"
            )

    def read_into(self, offset_bytes: int, buffer: bytearray | memoryview) -> int:
        """Fill the whole buffer with the disk's content from the offset; returns its length.

        Raises ValueError for bytes outside the disk, else what the files raise; the buffer's content is then
        undefined.
        """
        view = memoryview(buffer)
        end = offset_bytes + len(view)
        if offset_bytes < 0 or end > self.capacity_bytes:
            raise ValueError(
                f"bytes {offset_bytes} to {end} are not within the disk ({self.capacity_bytes} bytes)"
            )
        wanted: list[Interval] = [(offset_bytes, end)] if end > offset_bytes else []
        plan: list[tuple[Layer, list[Piece]]] = []
        for layer in self._layers:
            if not wanted:
                break
            owned, wanted = layer.claim(wanted)
            if owned:
                plan.append((layer, owned))
        for start, stop in wanted:
            fill_zeros(view[start - offset_bytes : stop - offset_bytes])
        # From the base upwards: a flat base reads over small gaps, which the layers above then fill.
        for layer, pieces in reversed(plan):
            layer.read(pieces, view, offset_bytes)
        return len(view)

    def delta_ranges(self, layer: int = 0) -> list[Interval] | None:
        """What the redo log at that depth (0: top) stores: merged (start, end) in bytes; None if flat."""
        return self._layers[layer].allocated_ranges()

    def identity(self) -> list[FileIdentity]:
        """Every file of the chain as it is on the filer now, to compare at start, resume and end."""
        found = []
        for layer in self._layers:
            for path in layer.paths:
                facts = self._files.stat(path)
                found.append(FileIdentity(path, facts.size_bytes, facts.mtime_ns, facts.file_id))
        return found

    def verify(self) -> DiskVerification:
        """Read a sector of every file, and tell what was found: an open chain has passed every other check.

        Raises what reading raises, e.g. PermissionRefusedError when the filer gives names but no bytes.
        """
        for layer in self._layers:
            layer.probe()
        warnings = [
            f"redo log {layer.path!r} is marked as not cleanly closed"
            for layer in self._layers
            if layer.unclean
        ]
        return DiskVerification(
            path=self.path,
            capacity_bytes=self.capacity_bytes,
            format=self._layers[0].descriptor.format.value,
            layers=tuple(
                LayerFacts(
                    path=layer.path,
                    format=layer.descriptor.format.value,
                    create_type=layer.descriptor.create_type,
                    cid=layer.descriptor.cid,
                    extents=tuple(layer.facts),
                )
                for layer in self._layers
            ),
            warnings=tuple(warnings),
        )

    def close(self) -> None:
        """Close every file, also when one fails to close; a second call does nothing."""
        errors: list[Exception] = []
        for layer in self._layers:
            try:
                layer.close()
            except Exception as error:  # noqa: BLE001 - the other layers must be released too; raised below
                errors.append(error)
        if errors:
            raise errors[0]

    def __enter__(self) -> Self:
        """Return the chain itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _too_deep(self) -> UnsupportedError:
        return UnsupportedError(f"the chain of disk {self.path!r} has more than {MAX_LAYERS} layers")
