"""What the repository asks of a store, on each kind of store: a local directory, and a bucket of a real S3 server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pytest

from lab.object_store import KEEPER, OWNER, Identity, PretendingStore, SeaweedServer
from safehaul.errors import (
    AlreadyExistsError,
    ConfigError,
    ConnectionLostError,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    PermissionRefusedError,
    SafehaulError,
    UnsupportedError,
)
from safehaul.media.object_store import DeletingStore, put_same, store_time
from safehaul.media.repository import Repository
from safehaul.media.store import LocalStore, S3Options, open_deleting_store
from safehaul.media.verify import verify
from tests.contract.certificates import Authority
from tests.contract.object_stores import PART, s3_store
from tests.contract.s3_proxy import FaultyProxy
from tests.unit.media_backup import CHUNK, PACK, back_up, restore


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    with SeaweedServer(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A folder of the bucket for each test."""
    return f"t{abs(hash(request.node.nodeid)):x}"


@pytest.fixture(params=["local", "s3", "s3-without-prefix-of-parts"])
def store(request: pytest.FixtureRequest, tmp_path: Path, prefix: str) -> DeletingStore:
    if request.param == "local":
        return LocalStore(tmp_path / "store")
    server: SeaweedServer = request.getfixturevalue("seaweed")
    # With large parts everything here is one conditional PUT.
    part = PART if request.param == "s3" else 64 << 20
    return s3_store(server.endpoint, prefix, KEEPER, part_size_bytes=part)


def _stream(store: DeletingStore, name: str, data: bytes, *, commit: bool = True) -> None:
    """Write in pieces, out of one buffer that is used again."""
    upload = store.create(name)
    buffer = bytearray(700_001)
    for offset in range(0, len(data), len(buffer)):
        piece = data[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        upload.write(memoryview(buffer)[: len(piece)])
    buffer[:] = bytes(len(buffer))
    if commit:
        upload.commit()
    upload.abort()
    upload.abort()


def _pattern(length: int) -> bytes:
    return bytes(range(251)) * (length // 251 + 1)


def _race(store: DeletingStore, name: str, writers: int) -> list[bytes | type[SafehaulError]]:
    """Put together, each its own bytes: for each writer these, or its error's type."""
    start = threading.Barrier(writers)

    def put(number: int) -> bytes | type[SafehaulError]:
        data = bytes([number]) * 100_000
        start.wait()
        try:
            store.put_if_absent(name, data)
        except SafehaulError as error:
            return type(error)
        return data

    with ThreadPoolExecutor(writers) as pool:
        return list(pool.map(put, range(writers)))


def test_of_many_writers_of_one_name_exactly_one_succeeds(store: DeletingStore) -> None:
    for turn in range(2):
        name = f"manifests/{turn}"
        outcomes = _race(store, name, 8)
        won = [outcome for outcome in outcomes if isinstance(outcome, bytes)]
        assert outcomes.count(AlreadyExistsError) == 7
        assert won == [store.get(name, 1 << 20)]


def test_an_object_is_never_overwritten_whatever_it_holds(store: DeletingStore) -> None:
    store.put_if_absent("a", b"first")
    for data in (b"first", b"second", b""):
        with pytest.raises(AlreadyExistsError, match="/a"):
            store.put_if_absent("a", data)
    put_same(store, "a", b"first")
    with pytest.raises(AlreadyExistsError):
        put_same(store, "a", b"other")
    for data in (b"small", _pattern(PART + 1000)):
        with pytest.raises(AlreadyExistsError):
            _stream(store, "a", data)
    assert store.get("a", 100) == b"first"


@pytest.mark.parametrize("length", [0, 1, PART - 1, PART, PART + 1, 3 * PART + 12_345])
def test_what_is_streamed_is_there_when_committed_and_not_before(store: DeletingStore, length: int) -> None:
    data = _pattern(length)[:length]
    _stream(store, "packs/ab/half", data, commit=False)
    assert list(store.list("")) == []
    _stream(store, "packs/ab/whole", data)
    assert store.get("packs/ab/whole", length) == data
    assert [(found.name, found.size_bytes) for found in store.list("")] == [("packs/ab/whole", length)]
    buffer = memoryview(bytearray(length))
    store.read_into("packs/ab/whole", 0, buffer)
    assert buffer == data


def test_reads_say_what_is_wrong(store: DeletingStore) -> None:
    store.put_if_absent("a", b"0123456789")
    assert store.get_range("a", 2, 3) == b"234"
    assert store.get_range("a", 9, 1) == b"9"
    assert store.get_range("a", 3, 0) == b""
    assert store.size("a") == 10
    assert store.exists("a")
    assert not store.exists("b")
    for offset, length in ((8, 3), (10, 1), (1000, 5)):
        with pytest.raises(IntegrityError, match="truncated"):
            store.get_range("a", offset, length)
        with pytest.raises(IntegrityError, match="truncated"):
            store.read_into("a", offset, memoryview(bytearray(length)))
    with pytest.raises(IntegrityError, match="larger"):
        store.get("a", 9)
    reads = (
        store.size,
        lambda name: store.get(name, 1),
        lambda name: store.get_range(name, 0, 1),
        lambda name: store.get_range(name, 0, 0),
    )
    for read in reads:
        with pytest.raises(NotFoundError, match="/b"):
            read("b")


def test_listing_is_in_the_order_of_the_names_and_of_one_folder(store: DeletingStore) -> None:
    names = ["a/b", "a-b", "a.b", "a0", "b/a/c", "b/a.c", "jobs/a%2Fb~1=_", "jobs/%C3%A4", "bb/x"]
    for name in names:
        store.put_if_absent(name, b"x" * len(name))
    listed = [(found.name, found.size_bytes) for found in store.list("")]
    assert listed == sorted((name, len(name)) for name in names)
    assert [found.name for found in store.list("b/")] == ["b/a.c", "b/a/c"]
    assert [found.name for found in store.list("jobs/")] == ["jobs/%C3%A4", "jobs/a%2Fb~1=_"]
    assert list(store.list("c/")) == []


def test_the_stores_clock_goes_on_and_times_what_is_stored(store: DeletingStore) -> None:
    before = store_time(store)
    store.put_if_absent("packs/a", b"x")
    # Some servers count whole seconds.
    time.sleep(1.1)
    _stream(store, "packs/b", b"y")
    after = store_time(store)
    times = {found.name: found.modified for found in store.list("")}
    assert set(times) == {"packs/a", "packs/b"}, "the question leaves nothing behind"
    assert before <= times["packs/a"] < times["packs/b"] <= after
    assert abs(after - time.time()) < 60, "seconds since 1970, on a server whose clock is this machine's"


def test_a_long_listing_misses_nothing(store: DeletingStore) -> None:
    names = [f"idx/{number:04d}" for number in range(1050)]
    for name in names:
        store.put_if_absent(name, b"")
    assert [found.name for found in store.list("idx/")] == names


def test_what_is_deleted_is_gone_and_may_be_gone_already(store: DeletingStore) -> None:
    store.put_if_absent("keys/a", b"x")
    store.put_if_absent("keys/b", b"x")
    store.delete("keys/a")
    store.delete("keys/a")
    assert [found.name for found in store.list("")] == ["keys/b"]
    store.put_if_absent("keys/a", b"again")


@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "a//b", "../a", "a/../b", ".hidden", "a/.b", "a\0", "a b", "ä"]
)
def test_no_name_leaves_the_store(store: DeletingStore, name: str) -> None:
    uses = (
        lambda: store.put_if_absent(name, b""),
        lambda: store.create(name),
        lambda: store.get(name, 1),
        lambda: store.get_range(name, 0, 1),
        lambda: store.size(name),
        lambda: store.delete(name),
        lambda: list(store.list(name + "/")),
    )
    for use in uses:
        with pytest.raises(InvalidInputError):
            use()


def test_a_repository_lives_in_it(store: DeletingStore) -> None:
    repository = Repository.init(store, chunk_size_bytes=CHUNK, pack_size_bytes=PACK)
    with pytest.raises(AlreadyExistsError, match="there is a repository"):
        Repository.init(store)
    image = _pattern(10 * CHUNK)[: 10 * CHUNK - 512]
    ref = back_up(repository, "one", image)
    again = Repository.open(store)
    assert restore(again, ref) == image
    assert verify(again, full=True).sound
    assert store.url == again.info().url


def test_an_access_nodes_identity_can_not_delete_and_the_keepers_can(
    seaweed: SeaweedServer, prefix: str
) -> None:
    node, keeper = s3_store(seaweed.endpoint, prefix), s3_store(seaweed.endpoint, prefix, KEEPER)
    node.put_if_absent("keys/a", b"x")
    with pytest.raises(PermissionRefusedError, match=r"cannot delete s3://vault/.*/keys/a: .*AccessDenied"):
        node.delete("keys/a")
    assert node.get("keys/a", 1) == b"x"
    keeper.delete("keys/a")
    assert not node.exists("keys/a")


def test_what_stolen_keys_overwrite_is_found_and_named(seaweed: SeaweedServer, prefix: str) -> None:
    """SeaweedFS has no policy against it (see lab.object_store): then a verification must tell."""
    store = s3_store(seaweed.endpoint, prefix)
    repository = Repository.init(store, chunk_size_bytes=CHUNK, pack_size_bytes=PACK)
    ref = back_up(repository, "one", _pattern(8 * CHUNK)[: 8 * CHUNK])
    pack = next(found for found in store.list("packs/"))
    thief = seaweed.client(OWNER)
    obstore.put(thief, f"{prefix}/{pack.name}", bytes(pack.size_bytes), mode="overwrite", use_multipart=False)
    report = verify(Repository.open(store), full=True)
    assert {item.object_name for item in report.damage} == {pack.name}
    assert {item.backup_id for item in report.touched} == {ref.backup_id}


def test_a_store_that_only_pretends_is_refused(tmp_path: Path) -> None:
    with PretendingStore(tmp_path / "rclone") as pretending:
        store = s3_store(pretending.endpoint, "safehaul")
        with pytest.raises(
            ConfigError, match=r"s3://vault/safehaul overwrites objects: it cannot hold a repo"
        ):
            Repository.init(store)
        store.put_if_absent("a", b"0123456789")
        with pytest.raises(UnsupportedError, match="non-partial response when range requested"):
            store.get_range("a", 2, 3)


def test_a_servers_certificate_is_checked(seaweed: SeaweedServer, prefix: str, tmp_path: Path) -> None:
    trusted, other = Authority(tmp_path, "trusted"), Authority(tmp_path, "other")
    with FaultyProxy(seaweed.endpoint, certificate=trusted.issue("bucket")) as proxy:
        store = s3_store(proxy.endpoint, prefix, ca_file=trusted.path)
        store.put_if_absent("a", b"over TLS")
        assert store.get("a", 100) == b"over TLS"
        for ca_file in (None, other.path):
            stranger = s3_store(proxy.endpoint, prefix, ca_file=ca_file, retries=0)
            with pytest.raises(
                ConfigError, match=r"certificate is not trusted; give the CA .* in s3_ca_file"
            ):
                stranger.get("a", 100)
            with pytest.raises(ConfigError, match="certificate is not trusted"):
                stranger.put_if_absent("b", b"")
    with pytest.raises(ConfigError, match=r"s3_ca_file .*/none cannot be read"):
        s3_store(proxy.endpoint, prefix, ca_file=tmp_path / "none")


def test_keys_of_ones_own_leave_nothing_to_the_environment(
    seaweed: SeaweedServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "another's")
    s3_store(seaweed.endpoint, prefix).put_if_absent("a", b"")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEEPER.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEEPER.secret_key)
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    without = open_deleting_store(
        f"s3://vault/{prefix}", S3Options(endpoint=seaweed.endpoint, allow_http=True)
    )
    without.delete("a")
    assert list(without.list("")) == []


def test_refusals_say_what_to_do_and_never_a_secret(seaweed: SeaweedServer, prefix: str) -> None:
    secret = "a-secret-that-nobody-may-see"
    dead = "http://127.0.0.1:9"
    cases: list[tuple[DeletingStore, type[SafehaulError], str]] = [
        (
            s3_store(seaweed.endpoint, prefix, Identity("lab-writer", secret)),
            PermissionRefusedError,
            r"s3://vault/.*/a: HTTP 403 SignatureDoesNotMatch .*check the keys",
        ),
        (
            s3_store(seaweed.endpoint, prefix, Identity("nobody", secret)),
            PermissionRefusedError,
            "HTTP 403 InvalidAccessKeyId .*check the keys",
        ),
        (
            s3_store(seaweed.endpoint, prefix, OWNER, bucket="nosuch"),
            ConfigError,
            "s3://nosuch/.*NoSuchBucket.*make the bucket",
        ),
        (
            s3_store(dead, prefix, Identity("lab-writer", secret), retries=1),
            ConnectionLostError,
            "connection refused; is the store up, and s3_endpoint right",
        ),
    ]
    for store, kind, pattern in cases:
        with pytest.raises(kind, match=pattern) as caught:
            store.get("a", 1)
        assert secret not in "".join(map(str, [caught.value, caught.value.__cause__, store.url]))
