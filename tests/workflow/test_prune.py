"""PruneRepository on a real server: its pieces, its report, its cancel, and the command that starts it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import (
    Client,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
)
from temporalio.exceptions import ApplicationError, CancelledError

from activities.peers import Peers
from activities.upkeep_prune import UpkeepPrune
from lab.temporal import TemporalServer
from safehaul.media import forgotten
from safehaul.messages.prune import PruneReport
from tests.unit.retained_site import add_backup, committed, listed, make_site, write_config
from tests.workflow.prune_workers import TrivialPrune, upkeep
from workers.cli.app import run
from workflows import policies

REQUEST = {"media_agent": "vault"}


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Peers]:
    _, opened = make_site(tmp_path)
    yield opened
    opened.close()


def _real(peers: Peers) -> list[Any]:
    steps = UpkeepPrune(peers)
    return [steps.forget_backups, steps.purge_forgotten, steps.collect_garbage]


async def _start(client: Client, *args: Any) -> Any:
    return await client.start_workflow(
        "PruneRepository",
        args=list(args),
        id=f"prune-{uuid.uuid4().hex[:8]}",
        task_queue=policies.COMMSERVE_QUEUE,
        result_type=PruneReport,
    )


async def _details(client: Client, workflow_id: str) -> str:
    handle: WorkflowHandle[Any, Any] = client.get_workflow_handle(workflow_id)
    metadata: Any = await handle.query("__temporal_workflow_metadata")
    return str(metadata.current_details)


async def test_a_prune_over_a_real_repository(client: Client, peers: Peers) -> None:
    refs = [add_backup(peers, days, vc_guid=vm) for vm in ("vc.a", "vc.b") for days in range(5)]
    async with upkeep(client, _real(peers)):
        looked = await (await _start(client, {**REQUEST, "dry_run": True})).result()
        assert len(committed(peers.repository("vault"))) == len(refs)
        handle = await _start(client, REQUEST)
        report: PruneReport = await handle.result()
        details = await _details(client, handle.id)
    assert looked.forgetting.told == report.forgetting.told
    assert (report.forgetting.vms, report.forgetting.backups, report.forgetting.forgotten) == (2, 10, 4)
    assert report.purging.waiting == 4
    assert report.collection.numbers["backups"] == 6
    assert report.collection.numbers["forgotten"] == 4
    assert listed(peers) == committed(peers.repository("vault"))
    assert len(listed(peers)) == 6
    assert "name of vc.a" in details
    assert "4 forgotten" in details


async def test_pieces_come_one_after_the_other_into_one_report(client: Client) -> None:
    steps = TrivialPrune()
    async with upkeep(client, steps.all()):
        report = await (await _start(client, REQUEST)).result()
    assert [(name, arg.after) for name, arg in steps.called] == [
        ("forget_backups", ""),
        ("forget_backups", "vc.1"),
        ("purge_forgotten", ""),
        ("collect_garbage", ""),
    ]
    assert (report.forgetting.vms, report.forgetting.backups, report.forgetting.forgotten) == (2, 8, 2)
    assert report.forgetting.problems == ["p1", "p2"]
    assert (report.purging.purged, report.collection.freed_bytes) == (1, 3 << 20)
    assert report.ended_at >= report.started_at


@pytest.mark.parametrize("by_signal", [True, False])
async def test_a_cancel_stops_between_two_backups(
    client: Client, peers: Peers, monkeypatch: pytest.MonkeyPatch, *, by_signal: bool
) -> None:
    for days in range(20):
        add_backup(peers, days)
    begun, real = threading.Event(), forgotten.forget

    def slowly(*args: Any) -> None:
        real(*args)
        begun.set()
        time.sleep(0.3)

    monkeypatch.setattr(forgotten, "forget", slowly)
    async with upkeep(client, _real(peers)):
        handle = await _start(client, REQUEST)
        await asyncio.to_thread(begun.wait, 30)
        await (handle.signal("cancel") if by_signal else handle.cancel())
        with pytest.raises(WorkflowFailureError) as ended:
            await handle.result()
        assert isinstance(ended.value.cause, CancelledError)
        assert (await handle.describe()).status is WorkflowExecutionStatus.CANCELED
        left = len(committed(peers.repository("vault")))
        assert 3 < left < 20
        monkeypatch.setattr(forgotten, "forget", real)
        report = await (await _start(client, REQUEST)).result()
    assert report.forgetting.forgotten == left - 3
    assert listed(peers) == committed(peers.repository("vault"))


async def test_a_media_agent_that_is_started_anew_goes_on(
    client: Client, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    for days in range(20):
        add_backup(peers, days)
    begun, real = threading.Event(), forgotten.forget

    def slowly(*args: Any) -> None:
        real(*args)
        begun.set()
        time.sleep(0.2)

    monkeypatch.setattr(forgotten, "forget", slowly)
    async with upkeep(client, _real(peers)):
        handle = await _start(client, REQUEST)
        await asyncio.to_thread(begun.wait, 30)
    left = len(committed(peers.repository("vault")))
    assert 3 < left < 20
    monkeypatch.setattr(forgotten, "forget", real)
    async with upkeep(client, _real(peers)):
        report: PruneReport = await handle.result()
    assert report.forgetting.ended
    assert report.purging.waiting == 17
    assert len(committed(peers.repository("vault"))) == 3
    assert listed(peers) == committed(peers.repository("vault"))


async def test_a_cancel_that_a_step_did_not_see_is_not_swallowed(client: Client) -> None:
    """Goal: cancelled while the last piece of a step ends by itself, the next step is not begun."""
    begun = threading.Event()

    def hook(name: str) -> None:
        if name == "purge_forgotten":
            begun.set()
            time.sleep(1.0)

    steps = TrivialPrune(hook)
    async with upkeep(client, steps.all()):
        handle = await _start(client, REQUEST)
        await asyncio.to_thread(begun.wait, 30)
        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as ended:
            await handle.result()
    assert isinstance(ended.value.cause, CancelledError)
    assert "collect_garbage" not in [name for name, _ in steps.called]


async def test_a_failure_carries_what_was_done_until_then(client: Client) -> None:
    def hook(name: str) -> None:
        if name == "purge_forgotten":
            raise ApplicationError("403", type="PermissionRefusedError", non_retryable=True)

    async with upkeep(client, TrivialPrune(hook).all()):
        with pytest.raises(WorkflowFailureError) as ended:
            await (await _start(client, REQUEST)).result()
    cause = ended.value.cause
    assert isinstance(cause, ApplicationError)
    assert (cause.type, cause.message) == ("PruneFailed", "403")
    assert PruneReport.model_validate(cause.details[0]).forgetting.forgotten == 2


@pytest.mark.parametrize(
    "args", [(), ({},), ({"media_agent": ""},), ({**REQUEST, "dry": 1},), (REQUEST, REQUEST)]
)
async def test_a_wrong_input_is_refused_at_once(client: Client, args: tuple[Any, ...]) -> None:
    async with upkeep(client, TrivialPrune().all()):
        with pytest.raises(WorkflowFailureError) as ended:
            await (await _start(client, *args)).result()
    cause = ended.value.cause
    assert isinstance(cause, ApplicationError)
    assert cause.type == "InvalidInput"


async def test_an_unknown_signal_is_shown_and_changes_nothing(client: Client) -> None:
    begun = threading.Event()

    def hook(_name: str) -> None:
        begun.set()
        time.sleep(0.5)

    async with upkeep(client, TrivialPrune(hook).all()):
        handle = await _start(client, REQUEST)
        await asyncio.to_thread(begun.wait, 30)
        await handle.signal("stop", {"now": True})
        assert (await handle.result()).forgetting.forgotten == 2
        assert "does not exist; there is: cancel" in await _details(client, handle.id)


def wait(gate: threading.Event) -> None:
    gate.wait(30)


async def _cli(config: Path, *arguments: str) -> int:
    return await asyncio.to_thread(run, ["--config", str(config), *arguments])


async def test_the_command_starts_a_prune_and_shows_its_report(
    client: Client, temporal: TemporalServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace("127.0.0.1:1", temporal.address))
    gate = threading.Event()
    steps = TrivialPrune(lambda _name: wait(gate))
    async with upkeep(client, steps.all()):
        assert await _cli(config, "repo", "prune", "--no-wait", "--json") == 0
        assert json.loads(capsys.readouterr().out) == {"workflow_id": "prune-vault", "report": None}
        assert await _cli(config, "repo", "prune") == 1
        assert "prune-vault runs already" in capsys.readouterr().err
        gate.set()
        await client.get_workflow_handle("prune-vault").result()
        assert await _cli(config, "repo", "prune", "--dry-run") == 0
        shown = capsys.readouterr()
        told = " ".join(shown.out.split())
        assert "nightly keeps: 3 daily, at least 1" in told
        assert shown.err == ""
        assert "8 backups of 2 VMs: 2 would be forgotten, 0 held" in told
        assert "vc.1/b1" in told
        assert "3.0 MiB would be freed (packs deleted 3)" in told
        assert await _cli(config, "repo", "prune", "--json") == 0
        assert json.loads(capsys.readouterr().out)["report"]["purging"]["purged"] == 1
        config.write_text(config.read_text().replace("daily = 3", "daily = 30"))
        assert await _cli(config, "repo", "prune", "--dry-run") == 0
        assert "was started with other rules of retention" in capsys.readouterr().err
    assert [arg.dry_run for _, arg in steps.called] == [False] * 4 + [True] * 4 + [False] * 4 + [True] * 4


async def test_the_command_shows_what_was_done_before_a_failure(
    client: Client, temporal: TemporalServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace("127.0.0.1:1", temporal.address))

    def hook(name: str) -> None:
        if name == "purge_forgotten":
            raise ApplicationError("HTTP 403", type="PermissionRefusedError", non_retryable=True)

    async with upkeep(client, TrivialPrune(hook).all()):
        assert await _cli(config, "repo", "prune") == 1
    told = capsys.readouterr()
    assert "2 forgotten" in told.out
    assert told.err == "safehaul: HTTP 403\n"
