"""docs/repository-format.md is enough: a reader that knows only that text, blake3 and zstandard restores a disk."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import zstandard
from blake3 import blake3

from safehaul.media.manifest import BackupRef
from tests.unit.media_backup import CHUNK, back_up, new_repository


class StrangersReader:
    """Reads a repository by its description. Imports nothing of safehaul."""

    def __init__(self, root: Path) -> None:
        self.root = root
        config = json.loads((root / "config").read_text())
        digest = config.pop("digest")
        text = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert blake3(text.encode()).hexdigest() == digest
        assert (config["format"], config["version"], config["suite"]) == ("safehaul repository", 1, 0)
        key = bytes.fromhex(config["root_key"])
        self.chunk_key = blake3(key, derive_key_context="safehaul v1 chunk id").digest()
        self.object_key = blake3(key, derive_key_context="safehaul v1 object digest").digest()
        self.name_key = blake3(key, derive_key_context="safehaul v1 content name").digest()
        self.chunk_size = config["chunk_size_bytes"]

    def small(self, name: str, kind: bytes) -> bytes:
        data = (self.root / name).read_bytes()
        magic, found, version, suite, flags, zero, length = struct.unpack_from("<8s4sHHIIQ", data)
        assert (magic, found, version, suite, zero) == (b"SAFEHAUL", kind, 1, 0, 0)
        signed = len(name).to_bytes(2, "little") + name.encode() + data[:-32]
        assert blake3(signed, key=self.object_key).digest() == data[-32:]
        body = data[32:-32]
        if flags & 1:
            body = zstandard.ZstdDecompressor().decompress(body, max_output_size=length)
        assert len(body) == length
        return body

    def places(self, names: list[str]) -> dict[bytes, tuple[str, int, int, int, int]]:
        found = {}
        for name in names:
            body = self.small(name, b"IDX1")
            assert blake3(body, key=self.name_key).hexdigest() == name.removeprefix("idx/")
            position = 8
            for _ in range(struct.unpack_from("<I", body)[0]):
                pack, _size, count, _zero = struct.unpack_from("<32sQII", body, position)
                position += 48
                for _ in range(count):
                    chunk, *place, _zero = struct.unpack_from("<32sQIIII", body, position)
                    position += 56
                    found[chunk] = (f"packs/{pack.hex()[:2]}/{pack.hex()}", *place)
        return found

    def chunk(self, identity: bytes, place: tuple[str, int, int, int, int]) -> bytes:
        name, offset, stored, raw, flags = place
        with (self.root / name).open("rb") as file:
            file.seek(offset)
            header, payload = file.read(48), file.read(stored)
        assert header == struct.pack("<4sIII32s", b"CHNK", flags, stored, raw, identity)
        data = zstandard.ZstdDecompressor().decompress(payload, max_output_size=raw) if flags & 1 else payload
        assert blake3(data, key=self.chunk_key).digest() == identity
        return data

    def disk(self, manifest: dict[str, Any], number: int) -> bytes:
        disk = manifest["disks"][number]
        places = self.places(manifest["idx"])
        image = bytearray()
        left = disk["capacity_bytes"]
        for root in disk["page_roots"]:
            count = min(65536, -(-left // self.chunk_size))
            page = bytes(32 * count) if root == "0" * 64 else self.small(f"pages/{root[:2]}/{root}", b"PAGE")
            for at in range(0, 32 * count, 32):
                identity = page[at : at + 32]
                length = min(self.chunk_size, left)
                image += self.chunk(identity, places[identity]) if any(identity) else bytes(length)
                left -= length
        return bytes(image)


def test_a_stranger_restores_a_disk(tmp_path: Path) -> None:
    image = random.Random(1).randbytes(9 * CHUNK) + bytes(7 * CHUNK) + b"text " * CHUNK + b"end"
    repository = new_repository(tmp_path)
    ref: BackupRef = back_up(repository, "run-1", image)
    changed = b"changed" + image[7:]
    later = back_up(repository, "run-2", changed, "20260102T000000Z")
    reader = StrangersReader(tmp_path / "repository")
    for expected, (vc_guid, backup_id) in ((image, ref), (changed, later)):
        manifest = json.loads(reader.small(f"manifests/{vc_guid}/{backup_id}", b"MANI"))
        assert reader.disk(manifest, 0) == expected


def test_a_pack_is_as_described(tmp_path: Path) -> None:
    repository = new_repository(tmp_path)
    back_up(repository, "run-1", random.Random(2).randbytes(3 * CHUNK))
    reader = StrangersReader(tmp_path / "repository")
    for path in (tmp_path / "repository" / "packs").rglob("*/*"):
        data = path.read_bytes()
        assert data[:16] == struct.pack("<8s4sHH", b"SAFEHAUL", b"PACK", 1, 0)
        assert data[16:64] == bytes.fromhex(path.name) + bytes(16)
        at, count, zero, body, trailer, pad, magic = struct.unpack("<QII32s32s8s8s", data[-96:])
        assert (zero, pad, magic, len(data) - 96 - at) == (0, bytes(8), b"SAFEPACK", 56 * count)
        assert blake3(data[:at], key=reader.object_key).digest() == body
        signed = bytes.fromhex(path.name) + data[at:-96] + data[-96:-48]
        assert blake3(signed, key=reader.object_key).digest() == trailer
