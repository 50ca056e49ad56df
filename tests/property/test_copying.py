"""Whatever a series of backups holds, whatever the target loses meanwhile: copies are equal, or are told as damaged."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safehaul.errors import IntegrityError
from safehaul.media.copying import BackupCopier, CopyBeat
from safehaul.media.manifest import BackupRef, list_backups
from safehaul.media.repository import Repository
from safehaul.media.verify import verify
from tests.property.test_media_repository import chunk_content
from tests.unit.media_backup import CHUNK, KEY_FILE, back_up, new_repository, pack_paths, reopen, restore

COPIES = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
DISKS = st.lists(st.integers(0, 12), min_size=1, max_size=16)


class _KilledError(Exception):
    pass


@pytest.mark.slow
@COPIES
@given(
    series=st.lists(st.tuples(DISKS, st.integers(0, CHUNK - 1)), min_size=1, max_size=4),
    chunks=st.sampled_from([(CHUNK, CHUNK), (2 * CHUNK, CHUNK), (CHUNK, 2 * CHUNK)]),
    encrypted=st.booleans(),
    data=st.data(),
)
def test_every_copy_of_a_series_is_equal_or_says_so(
    series: list[tuple[list[int], int]], chunks: tuple[int, int], encrypted: bool, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        here, there = Path(folder, "here"), Path(folder, "there")
        source = new_repository(here, chunk_size_bytes=chunks[0])
        new_repository(there, chunk_size_bytes=chunks[1], secret=KEY_FILE if encrypted else None).close()
        images = []
        for day, (kinds, cut) in enumerate(series, start=1):
            content = b"".join(map(chunk_content, kinds))
            images.append(content[: len(content) - cut])
            ref = back_up(source, f"run-{day}", images[-1], f"202601{day:02d}T000000Z")
            _copy(source, there, ref, data.draw(st.lists(st.integers(0, 12), max_size=2)))
            # The newest copy is whole, whatever was lost of those before it: that is written again.
            assert restore(reopen(there), ref) == images[-1]
            lost = data.draw(st.booleans()) and pack_paths(source) and pack_paths(reopen(there))
            if lost:
                data.draw(st.sampled_from(lost)).unlink(missing_ok=True)
        report = verify(reopen(there), full=True)
        damaged = {item.backup_id for item in report.damaged_backups}
        for day, image in enumerate(images, start=1):
            for ref in [item for item in _refs(there) if item.backup_id.startswith(f"202601{day:02d}")]:
                try:
                    assert restore(reopen(there), ref) == image
                    assert ref.backup_id not in damaged
                except IntegrityError:
                    assert ref.backup_id in damaged


def _copy(source: Repository, there: Path, ref: BackupRef, kills: list[int]) -> None:
    """Copy a backup by processes of which all but the last are killed after some beats."""
    for beats in [*kills, 1_000_000]:
        left = iter(range(beats))

        def beat(_: CopyBeat, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise _KilledError

        target = reopen(there)
        try:
            BackupCopier(source, target, progress=beat).copy(ref)
        except _KilledError:
            continue
        finally:
            target.close()


def _refs(folder: Path) -> list[BackupRef]:
    return list(list_backups(reopen(folder)))
