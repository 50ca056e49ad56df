#!/usr/bin/env python3
"""Restores a disk from a safehaul repository without safehaul: docs/repository-format.md as a program.

Needs Python 3.11 and the packages blake3, zstandard and cryptography. The repository is a directory: that of a `file://`
repository, or a copy of a bucket. Reads only; every byte that it writes was checked.

    restore_standalone.py DIRECTORY                               list the backups and their disks
    restore_standalone.py DIRECTORY VCGUID/TIME-ID KEY out.raw    write the disk KEY as a raw image
"""

import argparse
import json
import os
import struct
import sys
from pathlib import Path

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

ENTRY = struct.Struct("<32sQIIII")  # chunk id, offset, stored length, raw length, flags, zero
PAGE_CHUNKS = 65536


def canonical(value):
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def sound_json(path):
    """A JSON object with its plain digest: `config` and the key slots."""
    value = json.loads(path.read_bytes())
    if value.pop("digest") != blake3(canonical(value)).hexdigest():
        raise SystemExit(f"{path} is damaged")
    return value


def inflate(data, length):
    body = zstandard.ZstdDecompressor().decompress(data, max_output_size=length)
    if len(body) != length:
        raise ValueError(f"{len(body)} bytes instead of {length}")
    return body


class Repository:
    def __init__(self, root, passphrase=None, key_file=None):
        self.root = root
        config = sound_json(root / "config")
        known = config["format"] == "safehaul repository" and config["version"] == 1 and config["suite"] < 2
        if not known or set(config["features_required"]) - {"encryption"}:
            raise SystemExit("this repository is of a newer format than this program knows")
        self.suite, self.chunk_size = config["suite"], config["chunk_size_bytes"]
        root_key = bytes.fromhex(config.get("root_key", ""))
        if self.suite:
            root_key = self.unlock(config, passphrase, key_file)
        self.chunk_key, self.object_key, self.pack_key, self.seal_key = (
            blake3(root_key, derive_key_context=f"safehaul v1 {use}").digest()
            for use in ("chunk id", "object digest", "pack encryption", "object encryption")
        )
        sealed = config.pop("sealed", "")
        if self.suite and sealed != blake3(canonical(config), key=self.object_key).hexdigest():
            raise SystemExit("config was changed by somebody without the key")
        self.places, self.all_loaded = {}, False

    def unlock(self, config, passphrase, key_file):
        for path in sorted((self.root / "keys").iterdir()):
            slot = sound_json(path)
            salt, wrapped = bytes.fromhex(slot["salt"]), bytes.fromhex(slot.pop("wrapped"))
            if slot["method"] == "key-file" and key_file is not None:
                key = blake3(salt + key_file, derive_key_context="safehaul v1 key file").digest()
            elif slot["method"] == "passphrase" and passphrase is not None:
                cost = (slot["iterations"], slot["lanes"], slot["memory_kib"])
                names = ("iterations", "lanes", "memory_cost")
                key = Argon2id(salt=salt, length=32, **dict(zip(names, cost, strict=True))).derive(passphrase)
            else:
                continue
            try:
                return AESGCM(key).decrypt(wrapped[:12], wrapped[12:], canonical(slot))
            except InvalidTag:
                continue  # another secret's slot
        raise SystemExit(f"no key slot of repository {config['repository_id']} opens with what was given")

    def small(self, name, kind):
        """The body of a small object, checked."""
        data = (self.root / name).read_bytes()
        bound = len(name.encode()).to_bytes(2, "little") + name.encode()
        if data[:16] != struct.pack("<8s4sHH", b"SAFEHAUL", kind, 1, self.suite):
            raise ValueError(f"{name} is damaged")
        if self.suite:
            key = blake3(data[16:48], key=self.seal_key).digest()
            rest = AESGCM(key).decrypt(bytes(12), data[48:], bound + data[:16])
        elif blake3(bound + data[:-32], key=self.object_key).digest() != data[-32:]:
            raise ValueError(f"{name} is damaged")
        else:
            rest = data[16:-32]
        flags, _, length = struct.unpack_from("<IIQ", rest)
        return inflate(rest[16:], length) if flags & 1 else rest[16:]

    def load_places(self, names):
        """Chunk id → (pack id, trailer record), from lists in `idx/`; a damaged list is left out."""
        for name in names:
            try:
                body = self.small(name, b"IDX1")
            except (OSError, ValueError, InvalidTag, zstandard.ZstdError) as error:
                print(f"{name} cannot be read ({error}): the packs tell it themselves", file=sys.stderr)
                continue
            (count,), at = struct.unpack_from("<I", body), 8
            for _ in range(count):
                pack, _, chunks, _ = struct.unpack_from("<32sQII", body, at)
                self.note(pack, body[at + 48 : at + 48 + chunks * ENTRY.size])
                at += 48 + chunks * ENTRY.size

    def load_trailers(self):
        for path in sorted((self.root / "packs").glob("*/*")):
            data = path.read_bytes()
            (at,) = struct.unpack_from("<Q", data, len(data) - 96)
            self.note(bytes.fromhex(path.name), data[at:-96])
        self.all_loaded = True

    def note(self, pack, records):
        for record in ENTRY.iter_unpack(records):
            self.places.setdefault(record[0], []).append((pack, record))

    def chunk(self, identity):
        """A chunk's bytes, from the first place where they are what its id says."""
        for pack, (_, offset, stored, raw, flags, _) in self.places.get(identity, []):
            try:
                with (self.root / "packs" / pack.hex()[:2] / pack.hex()).open("rb") as file:
                    file.seek(offset)
                    header, payload = file.read(48), file.read(stored)
                if self.suite:
                    key = blake3(pack, key=self.pack_key).digest()
                    payload = AESGCM(key).decrypt(offset.to_bytes(12, "little"), payload, header + pack)
                data = inflate(payload, raw) if flags & 1 else payload
            except (OSError, ValueError, InvalidTag, zstandard.ZstdError):
                continue
            if blake3(data, key=self.chunk_key).digest() == identity:
                return data
        if self.all_loaded:
            raise SystemExit(f"chunk {identity.hex()} is lost: no pack holds it sound")
        self.load_trailers()
        return self.chunk(identity)

    def manifest(self, backup):
        return json.loads(self.small(f"manifests/{backup}", b"MANI"))

    def restore(self, disk, out):
        """Write a disk of a manifest; holes are left out of the file."""
        left = disk["capacity_bytes"]
        out.truncate(left)
        for page_root in disk["page_roots"]:
            count = min(PAGE_CHUNKS, -(-left // self.chunk_size))
            page = bytes(32 * count)
            if page_root != "0" * 64:
                page = self.small(f"pages/{page_root[:2]}/{page_root}", b"PAGE")
            for at in range(0, 32 * count, 32):
                length = min(self.chunk_size, left)
                if any(page[at : at + 32]):
                    data = self.chunk(page[at : at + 32])
                    if len(data) != length:
                        raise SystemExit(f"chunk {page[at : at + 32].hex()} has another length")
                    out.write(data)
                else:
                    out.seek(length, os.SEEK_CUR)  # a hole: zeros
                left -= length


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("backup", nargs="?", help="VCGUID/TIME-ID")
    parser.add_argument("disk", nargs="?", type=int, help="key of the disk")
    parser.add_argument("output", nargs="?", type=Path, help="new file for the raw image")
    parser.add_argument("--passphrase-file", type=Path, help="of an encrypted repository")
    parser.add_argument("--key-file", type=Path)
    given = parser.parse_args()
    passphrase = given.passphrase_file and given.passphrase_file.read_text().removesuffix("\n").encode()
    repository = Repository(given.directory, passphrase, given.key_file and given.key_file.read_bytes())
    if given.output is None:
        for path in sorted((given.directory / "manifests").glob("*/*")):
            backup = f"{path.parent.name}/{path.name}"
            manifest = repository.manifest(backup)
            print(backup, manifest["vm_name"], manifest["committed"])
            for disk in manifest["disks"]:
                print(f"    {disk['key']}  {disk['label']}  {disk['capacity_bytes']:,} bytes")
        return
    manifest = repository.manifest(given.backup)
    disk = next(item for item in manifest["disks"] if item["key"] == given.disk)
    repository.load_places(manifest["idx"])
    with given.output.open("xb") as out:
        repository.restore(disk, out)
    print(f"{disk['label']}: {disk['capacity_bytes']:,} bytes, every chunk checked")


if __name__ == "__main__":
    main()
