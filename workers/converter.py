"""How values travel to and from Temporal: as pydantic writes JSON, and without an input that nobody can read.

The SDK decodes a workflow's input before the workflow runs, and retries its task for ever when that fails. JSON that
is nested some two hundred levels deep is enough for that (pydantic's reader refuses it), and so is text that is no
JSON. Here such an input is handed to the workflow as `Unreadable`, which its own check refuses: the workflow fails at
once. A signal like that would be dropped in silence; it is told among the rejected ones instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from pydantic import ValidationError
from temporalio.api.common.v1 import Payload
from temporalio.contrib.pydantic import PydanticPayloadConverter
from temporalio.converter import DataConverter

from safehaul.messages.unreadable import Unreadable

_REASON_CHARS = 300
_UNTYPED = (None, Any, object)
"""Hints of what a person may have typed: our workflows and signals check that themselves. Activities have models."""


class SafePayloadConverter(PydanticPayloadConverter):
    """As the SDK's own for pydantic, but that an untyped value which cannot be decoded is no error."""

    def from_payloads(self, payloads: Sequence[Payload], type_hints: list[type] | None = None) -> list[Any]:
        """The payloads' values. Raises as the SDK's for values of which a type is known."""
        values: list[Any] = []
        for payload, hint in zip_longest(payloads, type_hints or []):
            try:
                values += super().from_payloads([payload], [hint] if hint is not None else None)
            except Exception as error:
                if hint not in _UNTYPED:
                    raise
                values.append(Unreadable(_reason(error)))
        return values


DATA_CONVERTER = DataConverter(payload_converter_class=SafePayloadConverter)
"""For every client: what one process writes, each other one reads."""


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return f"{type(error).__name__}: {error}"[:_REASON_CHARS]
    told = "; ".join(item["msg"] for item in error.errors(include_url=False, include_input=False))
    if "recursion limit" in told:
        return "its lists and objects stand too deep inside each other"
    return told[:_REASON_CHARS]
