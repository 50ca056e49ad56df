"""docs/restore_standalone.py: a stranger with that one page restores a disk, without safehaul."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from safehaul.media.key_slots import RepositorySecret
from tests.unit.media_backup import CHUNK, DISK, KEY_FILE, SECRETS, back_up, flip, new_repository, pack_paths

PAGE = Path(__file__).parents[2] / "docs" / "restore_standalone.py"
NEEDED = ("blake3", "zstandard", "cryptography", "cffi", "pycparser", "_cffi_backend")
START = """import importlib.util, runpy, sys
assert importlib.util.find_spec("safehaul") is None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the packages that the page names (and what they need), and no other."""
    folder = tmp_path_factory.mktemp("packages")
    for name in NEEDED:
        found = importlib.util.find_spec(name)
        if found is not None and found.origin is not None:
            origin = Path(found.origin)
            package = origin.parent if origin.name.startswith("__init__") else origin
            (folder / package.name).symlink_to(package)
    return folder


def run(packages: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The page in a Python that has neither this project nor its environment."""
    return subprocess.run(
        [sys.executable, "-S", "-P", "-c", START, str(PAGE), *map(str, arguments)],
        env={"PYTHONPATH": str(packages), "PATH": os.environ["PATH"]},
        cwd=packages,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("secret", SECRETS)
def test_a_stranger_restores_a_disk(tmp_path: Path, packages: Path, secret: RepositorySecret | None) -> None:
    image = random.Random(1).randbytes(9 * CHUNK) + bytes(7 * CHUNK) + b"text " * CHUNK + b"end"
    repository = new_repository(tmp_path, secret=secret)
    images = {back_up(repository, "run-1", image): image}
    changed = b"changed" + image[7:]
    images[back_up(repository, "run-2", changed, "20260102T000000Z")] = changed
    key_file = tmp_path / "key"
    key_file.write_bytes(KEY_FILE.value.get_secret_value())
    options = ["--key-file", key_file] if secret else []
    listed = run(packages, tmp_path / "repository", *options)
    assert listed.returncode == 0, listed.stderr
    for number, ((vc_guid, backup_id), expected) in enumerate(images.items()):
        assert f"{vc_guid}/{backup_id} web 1" in listed.stdout
        out = tmp_path / f"{number}.raw"
        done = run(packages, tmp_path / "repository", f"{vc_guid}/{backup_id}", DISK, out, *options)
        assert done.returncode == 0, done.stderr
        assert out.read_bytes() == expected
    if secret:
        refused = run(packages, tmp_path / "repository")
        assert refused.returncode != 0
        assert "no key slot" in refused.stderr


def test_it_finds_chunks_without_the_lists_and_tells_a_lost_one(tmp_path: Path, packages: Path) -> None:
    image = random.Random(2).randbytes(3 * CHUNK)
    repository = new_repository(tmp_path)
    vc_guid, backup_id = back_up(repository, "run-1", image)
    for path in (tmp_path / "repository" / "idx").iterdir():
        flip(path, 50)
    arguments = [tmp_path / "repository", f"{vc_guid}/{backup_id}", DISK]
    done = run(packages, *arguments, tmp_path / "a.raw")
    assert (tmp_path / "a.raw").read_bytes() == image, done.stderr
    flip(pack_paths(repository)[0], 200)
    assert "is lost" in run(packages, *arguments, tmp_path / "b.raw").stderr
