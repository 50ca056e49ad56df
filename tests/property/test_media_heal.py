"""Whatever is lost of any backup: it is named, a later backup with the content heals it, and the rest is told apart."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safehaul.errors import IntegrityError
from safehaul.media.manifest import BackupRef, read_manifest
from safehaul.media.repository import Repository
from safehaul.media.verify import verify
from tests.property.test_media_repository import chunk_content, reopened, scratch_repository
from tests.unit.media_backup import CHUNK, DISK, KEY_FILE, back_up, flip, pack_paths, restore

HEALS = settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.too_slow])
DISKS = st.lists(st.integers(0, 12), min_size=1, max_size=10)


def content(kinds: list[int]) -> bytes:
    return b"".join(map(chunk_content, kinds))


def lost_kinds(repository: Repository, ref: BackupRef, kinds: list[int]) -> dict[str, int]:
    """The ids of a backup's chunks, each with its kind: the model's way to name a content."""
    disk_map = read_manifest(repository, ref).disk_map(repository, DISK)
    return {disk_map.chunk_id(number).hex(): kind for number, kind in enumerate(kinds) if kind}


@HEALS
@given(
    secret=st.sampled_from([None, KEY_FILE]),
    series=st.lists(DISKS, min_size=1, max_size=4),
    later=DISKS,
    data=st.data(),
)
def test_a_later_backup_heals_what_it_meets_again(
    secret: object, series: list[list[int]], later: list[int], data: st.DataObject
) -> None:
    """The model: a content is there while a sound pack holds it; a backup is whole while all its contents are."""
    with scratch_repository(secret) as repository:  # type: ignore[arg-type] # None or the key file
        refs = [
            back_up(repository, f"run-{number}", content(kinds), f"202601{number + 1:02d}T000000Z")
            for number, kinds in enumerate(series)
        ]
        kinds_of: dict[str, int] = {}
        for ref, kinds in zip(refs, series, strict=True):
            kinds_of |= lost_kinds(repository, ref, kinds)
        paths = pack_paths(repository)
        if not paths:
            return
        damaged = data.draw(st.lists(st.sampled_from(paths), min_size=1, max_size=3, unique=True))
        for path in damaged:
            how = data.draw(st.sampled_from(["flip", "cut", "gone"]))
            if how == "gone":
                path.unlink()
            elif how == "cut":
                path.write_bytes(path.read_bytes()[: data.draw(st.integers(0, path.stat().st_size - 1))])
            else:
                flip(path, data.draw(st.integers(0, path.stat().st_size - 1)))
        found = verify(reopened(repository), full=True, note_damage=True)
        assert found.damaged_packs == sorted(path.name for path in damaged)
        lost = {kinds_of[item.chunk_id] for item in found.touched if item.lost}
        _agree(repository, refs, series, lost)
        assert {item.backup_id for item in found.damaged_backups if item.bytes_lost} == {
            ref.backup_id for ref, kinds in zip(refs, series, strict=True) if lost & set(kinds)
        }

        ref = back_up(reopened(repository), "later", content(later), "20260201T000000Z")
        refs, series = [*refs, ref], [*series, later]
        lost -= set(later)
        _agree(repository, refs, series, lost)
        again = verify(reopened(repository), full=True)
        assert {kinds_of[item.chunk_id] for item in again.touched if item.lost} == lost
        assert again.damaged_packs == found.damaged_packs, (
            "what is left of a pack is named until it is collected"
        )
        if not again.touched:
            assert again.sound
            assert again.leftovers == again.damaged_packs


def _agree(repository: Repository, refs: list[BackupRef], series: list[list[int]], lost: set[int]) -> None:
    """Every backup restores as the model says: equal when nothing of it is lost, else an error that says so."""
    for ref, kinds in zip(refs, series, strict=True):
        if lost & set(kinds):
            with pytest.raises(IntegrityError):
                restore(reopened(repository), ref)
        else:
            assert restore(reopened(repository), ref) == content(kinds)
            assert len(content(kinds)) == CHUNK * len(kinds)
