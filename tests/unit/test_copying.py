"""A copy is the same backup in another repository: whole, named as the original, and made of what is missing alone."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from safehaul.errors import IntegrityError, NotFoundError
from safehaul.media.copy_plan import CopySelection, missing_backups
from safehaul.media.copying import BackupCopier, CopyBeat
from safehaul.media.files import FileWriter
from safehaul.media.key_slots import RepositorySecret
from safehaul.media.manifest import (
    BackupContents,
    BackupIndex,
    BackupRef,
    DiskDescription,
    Skipped,
    SnapshotRecord,
    manifest_name,
    read_index,
    read_manifest,
    write_index,
)
from safehaul.media.reader import BackupReader
from safehaul.media.repository import Repository
from safehaul.media.seal import commit, verify_session
from safehaul.media.sessions import open_session
from safehaul.media.verify import verify
from tests.unit.media_backup import (
    CHUNK,
    DISK,
    KEY_FILE,
    VM,
    flip,
    new_repository,
    pack_paths,
    restore,
    write_disk,
)

IMAGE = (
    random.Random(1).randbytes(30 * CHUNK) + bytes(10 * CHUNK) + random.Random(2).randbytes(7 * CHUNK + 512)
)
FILES = {"[ds] web 1/web 1.vmx": b'displayName = "web 1"\n', "[ds] web 1/vmware.log": b"line\n" * 3000}


class Kinds:
    """How source and target differ."""

    def __init__(
        self, secrets: tuple[RepositorySecret | None, RepositorySecret | None], chunks: tuple[int, int]
    ):
        self.secrets, self.chunks = secrets, chunks


@pytest.fixture(
    params=[
        pytest.param(Kinds((None, None), (CHUNK, CHUNK)), id="plain"),
        pytest.param(Kinds((KEY_FILE, KEY_FILE), (CHUNK, CHUNK)), id="encrypted"),
        pytest.param(Kinds((None, KEY_FILE), (CHUNK, 4 * CHUNK)), id="larger-chunks"),
        pytest.param(Kinds((KEY_FILE, None), (4 * CHUNK, CHUNK)), id="smaller-chunks"),
    ]
)
def pair(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Repository, Repository]]:
    kinds: Kinds = request.param
    made = [
        new_repository(tmp_path / name, chunk_size_bytes=chunk, secret=secret)
        for name, chunk, secret in zip(("source", "target"), kinds.chunks, kinds.secrets, strict=True)
    ]
    yield made[0], made[1]
    for repository in made:
        repository.close()


@pytest.fixture
def plain(tmp_path: Path) -> tuple[Repository, Repository]:
    return new_repository(tmp_path / "source"), new_repository(tmp_path / "target")


def back_up(
    repository: Repository,
    name: str,
    image: bytes = IMAGE,
    day: int = 1,
    *,
    vc_guid: str = VM,
    vm_name: str = "web 1",
    vm_group: str = "nightly",
    indexed: bool = True,
) -> BackupRef:
    session = open_session(
        repository,
        name,
        vc_guid=vc_guid,
        vm_name=vm_name,
        vm_group=vm_group,
        job_id="job-1",
        point_in_time="snapshot-7",
        opened=f"202601{day:02d}T000000Z",
    )
    with FileWriter(session) as files:
        for file, data in FILES.items():
            files.add(file, "config", data)
        files.finish()
    write_disk(session, image)
    verify_session(session)
    ref = commit(
        session,
        BackupContents(
            disks=[
                DiskDescription(key=DISK, label="Hard disk 1", capacity_bytes=len(image), change_id="52 1/7")
            ],
            skipped=[Skipped(kind="disk", key=2001, label="Hard disk 2", reason="not on NAS")],
            snapshot=SnapshotRecord(
                name="s", moref="snapshot-7", created="2026-01-01T00:00:00Z", quiesced=True
            ),
            hardware={"num_cpu": 2, "devices": [{"key": 4000}]},
            warnings=["a warning"],
        ),
    )
    if indexed:
        write_index(
            repository,
            BackupIndex(backup_id=ref.backup_id, vc_guid=vc_guid, status="Partial", removal={"gone": True}),
        )
    return ref


def check_copy(source: Repository, target: Repository, ref: BackupRef, image: bytes) -> None:
    """The copy is the same backup, but for what says where it is."""
    assert restore(target, ref) == image
    reader = BackupReader(target, *ref)
    for name, data in FILES.items():
        assert reader.read_file(name) == data
    reader.close()
    original, copy = read_manifest(source, ref), read_manifest(target, ref)
    own = {"repository_id", "session_id", "committed", "disks", "files", "idx", "packs", "copied_from"}
    assert copy.model_dump(exclude=own) == original.model_dump(exclude=own)
    for mine, theirs in zip(copy.disks, original.disks, strict=True):
        own_of_disk = {"chunk_size_bytes", "page_roots", "stats"}
        assert mine.model_dump(exclude=own_of_disk) == theirs.model_dump(exclude=own_of_disk)
    assert copy.copied_from is not None
    assert copy.copied_from.repository_id == source.config.repository_id
    assert copy.copied_from.session_id == original.session_id
    assert read_index(target, ref) == read_index(source, ref)


def test_a_copy_is_the_same_backup(pair: tuple[Repository, Repository]) -> None:
    source, target = pair
    ref = back_up(source, "run-1")
    copied = BackupCopier(source, target, source_name="vault").copy(ref)
    assert copied.ref == ref
    assert not copied.already
    assert copied.bytes_capacity == len(IMAGE)
    # Of the zeros, what shares a chunk of the source with data is read.
    assert len(IMAGE) - 10 * CHUNK <= copied.bytes_read <= len(IMAGE) - 8 * CHUNK
    check_copy(source, target, ref, IMAGE)
    assert verify(target, full=True).sound
    before = sorted(found.name for found in target.store.list(""))
    assert BackupCopier(source, target).copy(ref).already
    assert sorted(found.name for found in target.store.list("")) == before


def test_a_series_reads_only_what_changed(pair: tuple[Repository, Repository]) -> None:
    source, target = pair
    copier = BackupCopier(source, target)
    size = source.config.chunk_size_bytes
    image = bytearray(IMAGE)
    for day in range(1, 5):
        ref = back_up(source, f"run-{day}", bytes(image), day)
        copied = copier.copy(ref)
        check_copy(source, target, ref, bytes(image))
        if day > 1:
            # One chunk changed; where the target's chunks are larger, what stands with it in one is read too.
            assert 0 < copied.bytes_read <= 2 * max(size, target.config.chunk_size_bytes)
        image[(day * 5 % 30) * CHUNK + 9] ^= 1
    assert verify(target, full=True).sound


def test_a_disk_that_has_grown_is_copied(pair: tuple[Repository, Repository]) -> None:
    source, target = pair
    copier = BackupCopier(source, target)
    copier.copy(back_up(source, "run-1"))
    grown = IMAGE + random.Random(3).randbytes(5 * CHUNK)
    ref = back_up(source, "run-2", grown, 2)
    copier.copy(ref)
    check_copy(source, target, ref, grown)
    shrunk = IMAGE[: 20 * CHUNK + 100]
    ref = back_up(source, "run-3", shrunk, 3)
    copier.copy(ref)
    check_copy(source, target, ref, shrunk)


def test_what_the_target_has_lost_of_an_earlier_copy_is_read_again(
    plain: tuple[Repository, Repository],
) -> None:
    source, target = plain
    first = back_up(source, "run-1")
    BackupCopier(source, target).copy(first)
    # A full one: the smallest may hold files alone.
    max(pack_paths(target), key=lambda path: path.stat().st_size).unlink()
    again = Repository.open(target.store)
    ref = back_up(source, "run-2", IMAGE, 2)
    copied = BackupCopier(source, again).copy(ref)
    assert 0 < copied.bytes_read <= 4 * CHUNK
    check_copy(source, again, ref, IMAGE)
    # … which heals the first copy as well.
    assert restore(again, first) == IMAGE


class _KilledError(Exception):
    pass


def test_a_copy_that_is_killed_anywhere_goes_on(plain: tuple[Repository, Repository]) -> None:
    """Each process is killed after some beats; together they read hardly more than one that was not."""
    source, target = plain
    ref = back_up(source, "run-1")
    read = tries = 0
    while True:
        tries += 1
        last = CopyBeat("")
        beats = 0

        def beat(told: CopyBeat, tries: int = tries) -> None:
            nonlocal last, beats
            last, beats = told, beats + 1
            if beats > 12 + tries:
                raise _KilledError

        copier = BackupCopier(source, Repository.open(target.store), progress=beat)
        try:
            copier.copy(ref)
        except _KilledError:
            read += last.read_bytes
            assert tries < 50
            continue
        break
    assert tries > 2
    check_copy(source, target, ref, IMAGE)
    sessions = {found.name.split("/")[1] for found in target.store.list("sessions/")}
    assert len(sessions) == 1, "all tries wrote into one session"
    # A pack of 16 KiB at most is read again for each kill.
    assert read <= len(IMAGE) + tries * 6 * CHUNK


def test_two_copies_at_once_harm_nothing(plain: tuple[Repository, Repository]) -> None:
    source, target = plain
    ref = back_up(source, "run-1")
    errors: list[BaseException] = []

    def work() -> None:
        try:
            BackupCopier(Repository.open(source.store), Repository.open(target.store)).copy(ref)
        except BaseException as error:  # noqa: BLE001 - the test tells it
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    check_copy(source, target, ref, IMAGE)
    assert verify(target, full=True).sound


def test_a_session_that_cannot_be_committed_is_followed_by_another(
    plain: tuple[Repository, Repository],
) -> None:
    """Its packs rot before they are read back: what is committed is another session's."""
    source, target = plain
    ref = back_up(source, "run-1")
    rotted = False

    def rot(told: CopyBeat) -> None:
        nonlocal rotted
        if not rotted and told.doing.startswith("reading back pack 3 "):
            rotted = True
            flip(pack_paths(target)[0], 200)
            flip(pack_paths(target)[-1], 200)

    BackupCopier(source, target, progress=rot).copy(ref)
    assert rotted
    check_copy(source, target, ref, IMAGE)
    assert read_manifest(target, ref).session_id.endswith("-2")
    assert verify(target, full=True).sound


def test_a_damaged_source_is_told_with_its_place_and_nothing_is_committed(
    plain: tuple[Repository, Repository],
) -> None:
    source, target = plain
    ref = back_up(source, "run-1")
    flip(pack_paths(source)[0], 200)
    with pytest.raises(IntegrityError, match=r"offset \d+: chunk"):
        BackupCopier(source, target).copy(ref)
    assert not target.store.exists(manifest_name(ref))
    with pytest.raises(NotFoundError):
        BackupCopier(source, target).copy(BackupRef(VM, "20260101T000000Z-0000"))


def planned(source: Repository, target: Repository, after: str = "", **selection: object) -> list[BackupRef]:
    wanted = CopySelection(**selection)  # type: ignore[arg-type] # a test's own words
    return [item.ref for item in missing_backups(source, target, wanted, after)]


def test_the_plan_names_what_is_missing_in_the_order_of_time(plain: tuple[Repository, Repository]) -> None:
    source, target = plain
    tiny = IMAGE[:CHUNK]
    web = [back_up(source, f"web-{day}", tiny, day) for day in (1, 2, 3)]
    db = [
        back_up(source, f"db-{day}", tiny, day, vc_guid="vc.db", vm_name="db 1", vm_group="weekly")
        for day in (1, 2)
    ]
    both = sorted(web + db)
    assert planned(source, target) == both
    assert planned(source, target, after=manifest_name(both[1])) == both[2:]
    assert planned(source, target, vm_group="weekly") == db
    assert planned(source, target, vms=frozenset({"db 1"})) == db
    assert planned(source, target, vms=frozenset({VM})) == web
    assert planned(source, target, latest_only=True) == sorted([web[-1], db[-1]])
    assert planned(source, target, since=datetime(2026, 1, 2, tzinfo=UTC)) == sorted([*web[1:], db[1]])
    copier = BackupCopier(source, target)
    copier.copy(web[1])
    # What is older than the newest copy was given up by the target, or never wanted.
    assert planned(source, target, vms=frozenset({VM})) == [web[2]]
    assert planned(source, target, vms=frozenset({VM}), everything=True) == [web[0], web[2]]
    copier.copy(web[2])
    assert planned(source, target, vms=frozenset({VM}), latest_only=True) == []


def test_a_backup_whose_run_has_not_ended_waits_for_its_index(plain: tuple[Repository, Repository]) -> None:
    source, target = plain
    ref = back_up(source, "run-1", IMAGE[:CHUNK], indexed=False)
    assert planned(source, target) == []
    # Copied without it by whoever asks for it; the index follows with the next copy.
    copier = BackupCopier(source, target)
    copier.copy(ref)
    assert read_index(target, ref) is None
    write_index(source, BackupIndex(backup_id=ref.backup_id, vc_guid=VM, status="Completed"))
    copier.copy(ref)
    assert read_index(target, ref) == read_index(source, ref)


def test_what_the_targets_retention_gave_up_is_not_copied_again(plain: tuple[Repository, Repository]) -> None:
    source, target = plain
    ref = back_up(source, "run-1", IMAGE[:CHUNK])
    target.store.put_if_absent(f"forgotten/{manifest_name(ref).partition('/')[2]}", b"x")
    assert planned(source, target) == planned(source, target, everything=True) == []


def test_a_manifest_that_cannot_be_read_is_planned_so_that_it_is_told(
    plain: tuple[Repository, Repository],
) -> None:
    source, target = plain
    ref = back_up(source, "run-1", IMAGE[:CHUNK])
    flip(Path(source.store.url.removeprefix("file://")) / manifest_name(ref), 60)
    assert planned(source, target, vm_group="nightly") == [ref]
