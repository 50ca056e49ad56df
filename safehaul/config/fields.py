"""The kinds of value that a configuration file holds: names, sizes, absolute paths."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from safehaul.messages.exports import NAME_PATTERN

_SIZE = re.compile(r"\s*(\d{1,18})\s*(B|[KMGTP]iB)?\s*")
SIZE_FACTORS = {unit: 1 << 10 * power for power, unit in enumerate(("B", "KiB", "MiB", "GiB", "TiB", "PiB"))}
"""Unit → bytes, ascending."""


class Section(BaseModel):
    """A table of the configuration. A person types it: unknown keys are an error.

    The texts below its keys are what docs/configuration.md says of them (`config.reference`).
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )


def parse_size_bytes(value: object) -> object:
    """Turn `"2 GiB"` into bytes; an integer is bytes already.

    Only binary units exist here, so that nobody has to guess what a `GB` is. Other types pass on to the
    field's own check.
    """
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value)
    if match is None:
        msg = 'must be a number of bytes or a text such as "512 MiB" (units: B, KiB, MiB, GiB, TiB, PiB)'
        raise ValueError(msg)
    return int(match[1]) * SIZE_FACTORS[match[2] or "B"]


def _check_absolute(value: str) -> str:
    """Workers start in different directories: a relative path would mean another file in each."""
    if not value.startswith("/"):
        msg = "must be an absolute path, such as /etc/safehaul/secret"
        raise ValueError(msg)
    if "\x00" in value or ".." in PurePosixPath(value).parts:
        msg = "must not contain '..' or a NUL character"
        raise ValueError(msg)
    return value


Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
AbsolutePath = Annotated[str, StringConstraints(max_length=4096), AfterValidator(_check_absolute)]
SizeBytes = Annotated[int, BeforeValidator(parse_size_bytes), Field(ge=0, lt=2**60)]
