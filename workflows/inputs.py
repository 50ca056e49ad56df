"""What people type, checked inside the workflow: a clear failure at once, never a task retried for ever.

A workflow whose `run` takes a pydantic model retries its task without end when the input does not fit, and so
does one that is given a second input. Every `run` here therefore takes `raw: Any = None, *more: Any`.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from temporalio.exceptions import ApplicationError

ModelT = TypeVar("ModelT", bound=BaseModel)


def parse_input(model: type[ModelT], raw: Any, more: tuple[Any, ...], example: str) -> ModelT:
    """The workflow's input as `model`, or an ApplicationError of type InvalidInput that names each field."""
    if more:
        raise invalid_input(f"takes one input, got {1 + len(more)}: give --input once, like {example}")
    if raw is None:
        raise invalid_input(f"takes an input: give --input like {example}")
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise invalid_input(f"{describe(error)}; an input looks like {example}") from None


def invalid_input(message: str) -> ApplicationError:
    """The failure of a workflow that was started with a wrong input."""
    return ApplicationError(message, type="InvalidInput", non_retryable=True)


def describe(error: ValidationError) -> str:
    """Every wrong field with its reason, in one line. Never the value: it may be a misplaced secret."""
    problems = []
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        field = ".".join(str(part) for part in item["loc"]) or "the input"
        problems.append(f"{field}: {item['msg'].removeprefix('Value error, ')}")
    return "; ".join(problems)
