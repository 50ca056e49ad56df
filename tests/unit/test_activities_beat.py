"""A step is alive for the server while a call blocks, stops where it is safe, and a shutdown is no cancel."""

from __future__ import annotations

import dataclasses
import time
from datetime import timedelta
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.testing import ActivityEnvironment

from activities import beat as beating
from activities.beat import beat, keep_alive
from activities.errors import MAX_MESSAGE_CHARS, step
from safehaul.errors import IntegrityError, NotFoundError, SafehaulError, VmMovedError


class Steps:
    """Steps of this test."""

    @step("slow")
    def slow(self, seconds: float) -> str:
        """Heartbeats once, then blocks."""
        beat("at the start")
        time.sleep(seconds)
        return "done"

    @step("stops")
    def stops(self, _arg: None) -> None:
        """Stops where it may."""
        beat()

    @step("goes_on")
    def goes_on(self, _arg: None) -> str:
        """Does not stop."""
        keep_alive()
        return "done"

    @step("fails")
    def fails(self, error: SafehaulError) -> None:
        """Fails as it is told."""
        raise error


@pytest.fixture
def environment() -> ActivityEnvironment:
    found = ActivityEnvironment()
    found.info = dataclasses.replace(found.info, heartbeat_timeout=timedelta(seconds=20))
    return found


def _heartbeats(environment: ActivityEnvironment) -> list[tuple[Any, ...]]:
    heard: list[tuple[Any, ...]] = []
    environment.on_heartbeat = lambda *details: heard.append(details)
    return heard


def test_a_blocking_call_does_not_look_like_a_dead_worker(
    environment: ActivityEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beating, "PULSE_EVERY_S", 0.02)
    heard = _heartbeats(environment)
    assert environment.run(Steps().slow, 0.3) == "done"
    assert len(heard) > 3
    assert set(heard) == {("at the start",)}
    ended = len(heard)
    time.sleep(0.1)
    assert len(heard) == ended, "no heartbeat follows the step's end"


def test_a_step_that_hangs_is_not_kept_alive_for_ever(
    environment: ActivityEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beating, "PULSE_EVERY_S", 0.02)
    monkeypatch.setattr(beating, "PATIENCE_S", 0.1)
    heard = _heartbeats(environment)
    environment.run(Steps().slow, 0.5)
    assert len(heard) < 10


def test_a_cancel_stops_a_step_that_may_be_stopped_and_no_other(environment: ActivityEnvironment) -> None:
    environment.cancel()
    with pytest.raises(CancelledError):
        environment.run(Steps().stops, None)
    assert environment.run(Steps().goes_on, None) == "done"


def test_a_worker_that_shuts_down_leaves_the_step_to_the_next_one(environment: ActivityEnvironment) -> None:
    environment.worker_shutdown()
    with pytest.raises(ApplicationError) as stopped:
        environment.run(Steps().stops, None)
    assert (stopped.value.type, stopped.value.non_retryable) == ("BusyError", False)
    assert environment.run(Steps().goes_on, None) == "done"


@pytest.mark.parametrize(
    ("error", "final"), [(VmMovedError("x"), False), (NotFoundError("x"), True), (IntegrityError("x"), True)]
)
def test_only_what_may_succeed_later_is_tried_again(
    environment: ActivityEnvironment, error: SafehaulError, final: bool
) -> None:
    with pytest.raises(ApplicationError) as failed:
        environment.run(Steps().fails, error)
    assert (failed.value.type, failed.value.non_retryable) == (type(error).__name__, final)


def test_a_failures_message_is_bounded(environment: ActivityEnvironment) -> None:
    with pytest.raises(ApplicationError) as failed:
        environment.run(Steps().fails, NotFoundError("x" * 100_000))
    assert len(failed.value.message) == MAX_MESSAGE_CHARS
