"""An S3 server that fails in every way at every kind of request: a retryable error or success, and never half a thing.

The faults are made by a proxy between the store and a real server, once (they pass) or for ever (they stay).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from lab.object_store import KEEPER, SeaweedServer
from safehaul.errors import AlreadyExistsError, BusyError, ConnectionLostError, TransientError
from safehaul.media.object_store import DeletingStore
from tests.contract.object_stores import PART, s3_store
from tests.contract.s3_proxy import FAULTS, FaultyProxy

SMALL = b"small" * 1000
LARGE = bytes(range(256)) * ((2 * PART + 5000) // 256)
READ = bytes(range(256)) * 800
TIMEOUT_S = 0.6
FOR_EVER = 10_000
QUICK = {"503", "stall_after", "cut_after", "cut_answer"}
"""Each of the four ways in which a request can go wrong; all their kinds are among the slow tests."""


def _sampled(faults: Sequence[str]) -> list[object]:
    return [pytest.param(fault, marks=() if fault in QUICK else pytest.mark.slow) for fault in faults]


TIMES = [pytest.param(1, id="once"), pytest.param(FOR_EVER, id="for-ever", marks=pytest.mark.slow)]
WRITES: dict[str, tuple[bytes, str]] = {
    "put": (SMALL, "^PUT "),
    "begin": (LARGE, "^POST .*uploads"),
    "part": (LARGE, "^PUT .*partNumber"),
    "complete": (LARGE, "^POST .*uploadId"),
    "look": (LARGE, "^HEAD "),
}
READS: dict[str, tuple[str, Callable[[DeletingStore], object], object]] = {
    "get": ("^GET ", lambda store: store.get("a", len(READ)), READ),
    "range": ("^GET ", lambda store: store.get_range("a", 7, 70_000), READ[7:70_007]),
    "size": ("^HEAD ", lambda store: store.size("a"), len(READ)),
    "list": ("^GET .*list-type", lambda store: [x[:2] for x in store.list("")], [("a", len(READ))]),
}
"""Step of a write or read → what is written or expected, and which of its requests the fault meets."""


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    with SeaweedServer(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture(scope="module")
def proxy(seaweed: SeaweedServer) -> Iterator[FaultyProxy]:
    with FaultyProxy(seaweed.endpoint) as running:
        yield running


@pytest.fixture
def prefix(request: pytest.FixtureRequest, proxy: FaultyProxy) -> Iterator[str]:
    """A folder of the bucket for each test; the proxy's rules end with it."""
    yield f"t{abs(hash(request.node.nodeid)):x}"
    proxy.rules.clear()


def _write(store: DeletingStore, name: str, data: bytes) -> None:
    if data is SMALL:
        store.put_if_absent(name, data)
        return
    upload = store.create(name)
    try:
        for offset in range(0, len(data), 1 << 20):
            upload.write(data[offset : offset + (1 << 20)])
        upload.commit()
    finally:
        upload.abort()


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("step", sorted(WRITES))
@pytest.mark.parametrize("fault", _sampled(FAULTS))
def test_a_write_is_whole_or_not_there_and_an_error_can_be_tried_again(
    seaweed: SeaweedServer, proxy: FaultyProxy, prefix: str, fault: str, step: str, times: int
) -> None:
    data, pattern = WRITES[step]
    spoiled = s3_store(proxy.endpoint, prefix, timeout_s=TIMEOUT_S, retries=1)
    straight = s3_store(seaweed.endpoint, prefix)
    rule = proxy.spoil(fault, pattern, times)
    try:
        _write(spoiled, "a", data)
        said = True
    except TransientError:
        said = False
    assert rule.done, "the fault was not met"
    proxy.rules.clear()
    if said:
        assert straight.get("a", len(data)) == data
        return
    # Nobody knows whether it is there; if it is, it is whole, and the name can be written by whom it belongs to.
    if straight.exists("a"):
        assert straight.get("a", len(data)) == data
    else:
        _write(straight, "a", data)
        assert straight.get("a", len(data)) == data
    with pytest.raises(AlreadyExistsError):
        straight.put_if_absent("a", b"another's")


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("step", sorted(READS))
@pytest.mark.parametrize(
    "fault", _sampled([each for each in FAULTS if each not in {"500_after", "cut_upload"}])
)
def test_a_read_is_whole_or_an_error_that_can_be_tried_again(
    seaweed: SeaweedServer, proxy: FaultyProxy, prefix: str, fault: str, step: str, times: int
) -> None:
    pattern, read, expected = READS[step]
    straight = s3_store(seaweed.endpoint, prefix)
    straight.put_if_absent("a", READ)
    spoiled = s3_store(proxy.endpoint, prefix, timeout_s=TIMEOUT_S, retries=1)
    rule = proxy.spoil(fault, pattern, times)
    try:
        found = read(spoiled)
    except TransientError:
        pass
    else:
        assert found == expected
    assert rule.done, "the fault was not met"
    proxy.rules.clear()
    assert read(straight) == expected


def test_the_answer_that_is_lost_does_not_make_the_writer_a_stranger(
    seaweed: SeaweedServer, proxy: FaultyProxy, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store did it, and said 500: the next try finds the name taken, by its own bytes."""
    store = s3_store(proxy.endpoint, prefix, timeout_s=3.0)
    monkeypatch.setattr(proxy, "stall_s", 4.0)
    for fault in ("500_after", "cut_after", "stall_after"):
        proxy.spoil(fault, WRITES["put"][1])
        store.put_if_absent(f"leases/{fault}", b"mine")
        with pytest.raises(AlreadyExistsError):
            store.put_if_absent(f"leases/{fault}", b"mine")
        proxy.spoil(fault, WRITES["complete"][1])
        _write(store, f"packs/{fault}", LARGE)
        assert s3_store(seaweed.endpoint, prefix).get(f"packs/{fault}", len(LARGE)) == LARGE


def test_what_stays_wrong_is_named(proxy: FaultyProxy, prefix: str) -> None:
    store = s3_store(proxy.endpoint, prefix, timeout_s=TIMEOUT_S, retries=1)
    for fault, kind, words in (
        ("503", BusyError, r"HTTP 503 SlowDown \(made by the test\); the store asks for less"),
        ("500", TransientError, r"HTTP 500 InternalError \(made by the test\)"),
        ("stall", ConnectionLostError, "no answer in time|the connection was cut"),
        ("cut", ConnectionLostError, "the connection was cut"),
    ):
        proxy.rules.clear()
        proxy.spoil(fault, times=FOR_EVER)
        for use in (
            lambda: store.put_if_absent("a", b"x"),
            lambda: store.get("a", 1),
            lambda: list(store.list("")),
        ):
            with pytest.raises(kind, match=rf"cannot \w+ s3://vault/{prefix}/.*{words}"):
                use()


def test_only_what_may_be_repeated_is_repeated_and_not_for_ever(proxy: FaultyProxy, prefix: str) -> None:
    store = s3_store(proxy.endpoint, prefix, KEEPER, timeout_s=TIMEOUT_S, retries=2)
    proxy.spoil("500", times=FOR_EVER)
    proxy.requests.clear()
    with pytest.raises(TransientError):
        store.get("a", 1)
    assert len(proxy.requests) == 3
    proxy.requests.clear()
    with pytest.raises(TransientError):
        store.put_if_absent("a", b"x")
    assert len([line for line in proxy.requests if line.startswith("PUT")]) <= 6
