"""What an object store's refusals become. Those that a real server could be brought to make are in tests/contract."""

from __future__ import annotations

import pytest
from obstore import exceptions

from safehaul.errors import (
    BusyError,
    ConfigError,
    ConnectionLostError,
    NotFoundError,
    PermissionRefusedError,
    RepositoryFullError,
    SafehaulError,
    TransientError,
    UnsupportedError,
)
from safehaul.media.s3_errors import translated

HEAD = "Generic S3 error: Error performing PUT https://s3.x/vault/a in 2ms, after 4 retries - "


def _answer(status: int, code: str = "", message: str = "") -> str:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>" if code else ""
    return (
        f"{HEAD}Server returned non-2xx status code: {status} Words: {body}\n\nDebug source:\nGeneric {{ … }}"
    )


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "InvalidRequest", ConfigError),
        (400, "RequestTimeout", TransientError),
        (400, "QuotaExceeded", RepositoryFullError),
        (401, "", PermissionRefusedError),
        (403, "RequestTimeTooSkewed", PermissionRefusedError),
        (404, "NoSuchUpload", NotFoundError),
        (404, "NoSuchBucket", ConfigError),
        (409, "ConditionalRequestConflict", TransientError),
        (429, "", BusyError),
        (500, "InternalError", TransientError),
        (501, "NotImplemented", UnsupportedError),
        (502, "", TransientError),
        (503, "SlowDown", BusyError),
        (507, "XMinioStorageFull", RepositoryFullError),
    ],
)
def test_each_answer_of_a_store_has_its_kind_and_is_told_in_a_line(
    status: int, code: str, kind: type[SafehaulError]
) -> None:
    error = translated(exceptions.GenericError(_answer(status, code, "Why\n so. ")), "write", "s3://vault/a")
    assert type(error) is kind
    words = f"HTTP {status} {code} (Why so.)" if code else f"HTTP {status}"
    assert str(error).startswith(f"cannot write s3://vault/a: {words}")
    assert "Debug" not in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("HTTP error: error sending request\n\nkind: TimedOut", ConnectionLostError, "no answer in time"),
        ("HTTP error: something new", ConnectionLostError, "HTTP error: something new"),
        ("", ConnectionLostError, "no reason was given"),
        ("HTTP error: builder error", ConfigError, "check repository, s3_endpoint and s3_region"),
        ("Received redirect without LOCATION, this normally indicates an incorrectly configured region",
         ConfigError, "check repository, s3_endpoint and s3_region"),
    ],
)  # fmt: skip
def test_what_is_no_answer_has_its_kind(text: str, kind: type[SafehaulError], words: str) -> None:
    error = translated(exceptions.GenericError(f"{HEAD}{text}"), "read", "s3://vault/a")
    assert type(error) is kind
    assert words in str(error)
