"""What the repository's tests share: a small repository, and one backup of one disk in a few lines."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretBytes

from safehaul.media.key_slots import RepositorySecret
from safehaul.media.manifest import BackupContents, BackupRef, DiskDescription, Skipped
from safehaul.media.reader import BackupReader, Hole
from safehaul.media.repository import Repository
from safehaul.media.repository_config import decode_config
from safehaul.media.seal import commit, verify_session
from safehaul.media.sessions import Session, open_session
from safehaul.media.store_local import LocalStore
from safehaul.media.writer import DiskWriter

VM = "0f1e2d3c.50112233-aabb"
DISK = 2000
CHUNK = 4096
PACK = 16384


KEY_FILE = RepositorySecret("key-file", SecretBytes(b"a key file of the tests, 32 bytes or more"))
SECRETS = [pytest.param(None, id="plain"), pytest.param(KEY_FILE, id="encrypted")]
"""For tests and fixtures of what must hold without encryption and with it."""


def new_repository(
    folder: Path,
    chunk_size_bytes: int = CHUNK,
    pack_size_bytes: int = PACK,
    secret: RepositorySecret | None = None,
) -> Repository:
    store = LocalStore(folder / "repository")
    return Repository.init(
        store, chunk_size_bytes=chunk_size_bytes, pack_size_bytes=pack_size_bytes, secret=secret
    )


def reopen(folder: Path, index_path: Path | None = None) -> Repository:
    """The repository of `new_repository` as another process opens it."""
    store = LocalStore(folder / "repository")
    secret = KEY_FILE if decode_config(store.get("config", 10_000)).encrypted else None
    return Repository.open(store, index_path=index_path, secret=secret)


def new_session(repository: Repository, name: str, opened: str = "20260101T000000Z") -> Session:
    return open_session(
        repository, name, vc_guid=VM, vm_name="web 1", point_in_time="snapshot-7", opened=opened
    )


def write_disk(session: Session, image: bytes, key: int = DISK) -> DiskWriter:
    """Write what is missing of a disk, in pieces that never fit the chunks."""
    with DiskWriter(session, key, len(image)) as writer:
        offset = writer.resume_offset_bytes
        while offset < len(image):
            piece = image[offset : offset + 5000]
            writer.write(piece, offset)
            offset += len(piece)
        writer.finish()
    return writer


def contents(image: bytes, key: int = DISK, skipped: list[Skipped] | None = None) -> BackupContents:
    disk = DiskDescription(key=key, label="Hard disk 1", capacity_bytes=len(image))
    return BackupContents(disks=[disk], skipped=skipped or [])


def back_up(repository: Repository, name: str, image: bytes, opened: str = "20260101T000000Z") -> BackupRef:
    session = new_session(repository, name, opened)
    write_disk(session, image)
    verify_session(session)
    return commit(session, contents(image))


def restore(repository: Repository, ref: BackupRef, key: int = DISK) -> bytes:
    """Read a whole disk and check that the pieces come in order, without gaps."""
    reader = BackupReader(repository, ref.vc_guid, ref.backup_id)
    image = bytearray(reader.manifest.disk(key).capacity_bytes)
    position = 0
    try:
        for offset, piece in reader.iter_disk(key):
            assert offset == position
            length = piece.length_bytes if isinstance(piece, Hole) else len(piece)
            if not isinstance(piece, Hole):
                image[offset : offset + length] = piece
            position += length
    finally:
        reader.close()
    assert position == len(image)
    return bytes(image)


def pack_paths(repository: Repository) -> list[Path]:
    store = repository.store
    assert isinstance(store, LocalStore)
    return [store.root / found.name for found in store.list("packs/")]


def flip(path: Path, offset: int, bits: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= bits
    path.write_bytes(data)
