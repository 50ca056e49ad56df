"""JSON objects of the repository: the one form in which they are written, and how they are read."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import ValidationError

from safehaul.errors import IntegrityError, UnsupportedError
from safehaul.messages.base import Message

M = TypeVar("M", bound=Message)


def canonical_json(value: dict[str, Any]) -> bytes:
    """Return the one form of a JSON object: UTF-8, keys sorted, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "surrogatepass")


def parse_object(model: type[M], body: bytes, name: str) -> M:
    """Read a JSON body. Raises IntegrityError for what cannot be one, UnsupportedError for a newer version."""
    try:
        parsed = model.model_validate_json(body)
    except ValidationError as error:
        raise IntegrityError(f"object {name} is damaged: {error.error_count()} bad fields") from error
    version = getattr(parsed, "version", 1)
    if version != 1:
        raise UnsupportedError(f"object {name} has version {version}: use a newer safehaul")
    return parsed


def utc_now() -> str:
    """Return the time as ISO 8601 basic format in UTC, to the second: it sorts as text."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
