"""Goal: only what a person may have typed is handed on unread; a message of ours that is damaged stays an error."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from temporalio.api.common.v1 import Payload
from temporalio.common import RawValue
from temporalio.contrib.pydantic import pydantic_data_converter

from safehaul.messages.requests import BackupJobRequest
from safehaul.messages.steps import StoredFile
from safehaul.messages.unreadable import Unreadable
from workers.converter import DATA_CONVERTER

CONVERTER = DATA_CONVERTER.payload_converter
DEEP = Payload(metadata={"encoding": b"json/plain"}, data=b"[" * 10_000 + b"]" * 10_000)


def test_values_travel_as_with_the_sdks_own_converter() -> None:
    values = [StoredFile(name="[ds] a/b.vmx", size_bytes=1), {"vm_group": "nightly"}, None, b"\x00", [1, "x"]]
    written = CONVERTER.to_payloads(values)
    assert written == pydantic_data_converter.payload_converter.to_payloads(values)
    hints: list[Any] = [StoredFile, BackupJobRequest, None, Any, None]
    read = CONVERTER.from_payloads(written, hints)
    assert read == [values[0], BackupJobRequest(vm_group="nightly"), None, b"\x00", [1, "x"]]
    assert CONVERTER.from_payloads(written)[1] == values[1]


@pytest.mark.parametrize("hint", [None, Any, object])
def test_an_untyped_value_that_cannot_be_read_stands_beside_those_that_can(hint: Any) -> None:
    good = CONVERTER.to_payloads(["x"])[0]
    read = CONVERTER.from_payloads([good, DEEP, good], [hint] * 3 if hint else None)
    assert read[::2] == ["x", "x"]
    assert read[1] == Unreadable("its lists and objects stand too deep inside each other")


def test_a_message_of_ours_that_cannot_be_read_is_an_error() -> None:
    for hint in (StoredFile, dict, str, int):
        with pytest.raises(ValidationError):
            CONVERTER.from_payloads([DEEP], [hint])
    unknown = Payload(metadata={"encoding": b"binary/encrypted"}, data=b"?")
    with pytest.raises(KeyError):
        CONVERTER.from_payloads([unknown], [StoredFile])


def test_a_raw_value_is_never_looked_into() -> None:
    assert CONVERTER.from_payloads([DEEP], [RawValue]) == [RawValue(DEEP)]


def test_the_reason_tells_nothing_of_the_input() -> None:
    damaged = Payload(metadata={"encoding": b"json/plain"}, data=b'{"password": "S3cret!"')
    (read,) = CONVERTER.from_payloads([damaged])
    assert isinstance(read, Unreadable)
    assert "Invalid JSON" in read.reason
    assert "S3cret" not in read.reason
