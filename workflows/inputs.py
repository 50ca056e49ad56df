"""What people type, checked inside the workflow: a clear failure at once, never a task retried for ever.

A workflow whose `run` takes a pydantic model retries its task without end when the input does not fit, and so
does one that is given a second input. Every `run` here therefore takes `raw: Any = None, *more: Any`; an input that
cannot even be read comes as `Unreadable` (see workers/converter.py).
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from temporalio.exceptions import ApplicationError

from safehaul.messages.unreadable import Unreadable

_PROBLEMS_SHOWN = 20
_FIELD_CHARS = 200
_REASON_CHARS = 400

ModelT = TypeVar("ModelT", bound=BaseModel)


def parse_input(model: type[ModelT], raw: Any, more: tuple[Any, ...], example: str) -> ModelT:
    """The workflow's input as `model`, or an ApplicationError of type InvalidInput that names each field."""
    if more:
        raise invalid_input(f"takes one input, got {1 + len(more)}: give --input once, like {example}")
    if raw is None:
        raise invalid_input(f"takes an input: give --input like {example}")
    if isinstance(raw, Unreadable):
        raise invalid_input(f"the input cannot be read: {raw.reason}; an input looks like {example}")
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise invalid_input(f"{describe(error)}; an input looks like {example}") from None


def invalid_input(message: str) -> ApplicationError:
    """The failure of a workflow that was started with a wrong input."""
    return ApplicationError(message, type="InvalidInput", non_retryable=True)


def describe(error: ValidationError) -> str:
    """The wrong fields with their reasons, in one line. Never the value: it may be a misplaced secret.

    Bounded: a failure that is too large for the server would fail the workflow's task for ever.
    """
    found = error.errors(include_url=False, include_input=False, include_context=False)
    problems = []
    for item in found[:_PROBLEMS_SHOWN]:
        field = ".".join(str(part) for part in item["loc"]) or "the input"
        problems.append(
            f"{field[:_FIELD_CHARS]}: {item['msg'].removeprefix('Value error, ')[:_REASON_CHARS]}"
        )
    if len(found) > _PROBLEMS_SHOWN:
        problems.append(f"and {len(found) - _PROBLEMS_SHOWN} more")
    return "; ".join(problems)
