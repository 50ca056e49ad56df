"""A VM group as a person gives it to a command: by its name, or whole as JSON, in the command line or in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from safehaul.config.inline import inline_group
from safehaul.config.models import VmGroup
from safehaul.config.settings import Settings
from safehaul.errors import InvalidInputError
from safehaul.messages.requests import MAX_GROUP_BYTES, BackupJobRequest
from workflows.inputs import describe

# A group's JSON in a file may be written with much white space.
_MAX_FILE_BYTES = 4 * MAX_GROUP_BYTES


def looks_whole(given: str) -> bool:
    """Whether it is a group as JSON, or `@FILE`, and no group's name: names begin with a letter or digit."""
    return given.lstrip().startswith(("{", "@"))


def whole_group(settings: Settings, given: str) -> tuple[BackupJobRequest, VmGroup]:
    """The job's input for a group given as JSON or `@FILE`, and the group that it means.

    Checked as the workflow checks its input and then opens the job, so that a mistake is told at once, in its words.

    Raises:
        InvalidInputError: the file cannot be read, it is no JSON, or names every key that is wrong.
    """
    raw = _parsed(_text(given))
    try:
        request = BackupJobRequest.model_validate({"vm_group": raw})
    except ValidationError as error:
        raise InvalidInputError(describe(error)) from None
    if request.inline_group is None:
        raise InvalidInputError(
            f"the inline VM group is a text: give a group's name without --group-json: {raw!a}"
        )
    return request, inline_group(settings, request.inline_group)


def _text(given: str) -> str:
    if not given.startswith("@"):
        return given
    path = Path(given[1:])
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise InvalidInputError(
                f"{path} is larger than {_MAX_FILE_BYTES} bytes: it cannot be one VM group"
            )
        return data.decode("utf-8-sig")
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidInputError(f"{path} is not UTF-8 text") from None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidInputError(f"the inline VM group is not JSON: {error}") from None
    except RecursionError:
        raise InvalidInputError("vm_group: is nested too deep: no VM group is") from None
