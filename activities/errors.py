"""The one place where safehaul's error tree becomes Temporal's failures, and how a step is declared."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.beat import pulse
from safehaul.errors import IntegrityError, PermanentError, SafehaulError

SelfT = TypeVar("SelfT")
InputT = TypeVar("InputT")
ResultT = TypeVar("ResultT")

# A failure's message is kept in every history that it passes through.
MAX_MESSAGE_CHARS = 4000


@contextmanager
def translated() -> Iterator[None]:
    """Raise safehaul's errors as ApplicationError: the type is the class's name; permanent and integrity
    errors are never tried again.
    """
    try:
        yield
    except SafehaulError as error:
        raise ApplicationError(
            str(error)[:MAX_MESSAGE_CHARS],
            type=type(error).__name__,
            non_retryable=isinstance(error, PermanentError | IntegrityError),
        ) from error


def step(
    name: str,
) -> Callable[[Callable[[SelfT, InputT], ResultT]], Callable[[SelfT, InputT], ResultT]]:
    """Declare a synchronous activity of one input under a pinned name, its errors translated.

    The SDK's way to cancel a thread is an exception at any bytecode, which could fall between two writes; it is
    off, and a step sees a cancel where it calls `beat`.
    """

    def declare(method: Callable[[SelfT, InputT], ResultT]) -> Callable[[SelfT, InputT], ResultT]:
        @functools.wraps(method)
        def run(self: SelfT, arg: InputT) -> ResultT:
            with pulse(), translated():
                return method(self, arg)

        return activity.defn(name=name, no_thread_cancel_exception=True)(run)

    return declare
