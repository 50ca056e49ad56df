"""What an object store's refusal means for the caller: obstore's errors in the words of our tree.

obstore tells most refusals apart only in its text: the HTTP status, and the `<Code>` of the store's answer. Its text
goes on with a dump of the request; of all that a message of ours takes status, code and the store's own sentence.
None of them holds a secret: keys travel as signatures, in a header.
"""

from __future__ import annotations

import re

from obstore import exceptions

from safehaul.errors import (
    AlreadyExistsError,
    BusyError,
    ConfigError,
    ConnectionLostError,
    IntegrityError,
    NotFoundError,
    PermissionRefusedError,
    RepositoryFullError,
    SafehaulError,
    TransientError,
    UnsupportedError,
)

OBSTORE_ERRORS = (exceptions.BaseError, OSError, ValueError)
"""What a call of obstore raises. OSError: a writer's, and FileNotFoundError in place of an error of its own."""

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>|\(code: (\w{1,64})\)")
_SENTENCE = re.compile(r"<Message>([^<]{1,300})</Message>")
_REFUSED_CODES = {
    "AccessDenied",
    "AllAccessDisabled",
    "AccountProblem",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
}
_FULL_CODES = {
    "InsufficientCapacity",
    "InsufficientStorage",
    "QuotaExceeded",
    "QuotaExceededException",
    "ServiceQuotaExceededException",
    "StorageFull",
    "XMinioStorageFull",
}
_BUSY_STATUS = {429, 503}
_PASSING_STATUS = {408, 409, 425}
_PASSING_CODES = {"RequestTimeout", "InternalError", "ServiceUnavailable", "OperationAborted"}
_NOT_TRUSTED = "InvalidCertificate"
_NOT_SENT = ("builder error", "Received redirect")
"""obstore made no request of it, or the store sent it elsewhere."""
_LOST = (
    ("timed out", "no answer in time"),
    ("TimedOut", "no answer in time"),
    ("ConnectionRefused", "connection refused"),
    ("ConnectionReset", "the connection was cut"),
    ("IncompleteMessage", "the connection was cut"),
    ("UnexpectedEof", "the connection was cut"),
    ("dns error", "the host's name is not known"),
    ("InvalidContentType", "it does not speak TLS"),
)
"""What stands in obstore's dump → what a person reads; the first that fits."""


def translated(error: Exception, action: str, where: str) -> SafehaulError:
    """Say what obstore's `error` means. `where` is the URL of the object or folder, `action` a verb."""
    text = str(error)
    status, code = _status(text), _code(text)
    said = f"cannot {action} {where}: {_said(text, status, code)}"
    if isinstance(error, exceptions.AlreadyExistsError):
        return AlreadyExistsError(f"object exists already: {where}")
    if code != "NoSuchBucket" and (isinstance(error, FileNotFoundError) or status == 404):
        return NotFoundError(said)
    if status == 416:
        return IntegrityError(
            f"object {where} is truncated: the store says that the wanted range is not there"
        )
    denied = isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError))
    if denied or status in {401, 403} or code in _REFUSED_CODES:
        return PermissionRefusedError(
            f"{said}; check the keys in [[media_agents]], the bucket's policy and this machine's clock"
        )
    if code in _FULL_CODES or status == 507:
        return RepositoryFullError(f"{said}; make room in the repository, then start the job again")
    return _wrong(error, text, status, code, said) or _passing(status, code, said)


def _wrong(error: Exception, text: str, status: int | None, code: str, said: str) -> SafehaulError | None:
    """What only a person can put right: the configuration, or the choice of the store."""
    if code == "NoSuchBucket":
        return ConfigError(f"{said}; make the bucket, or correct `repository`")
    if isinstance(error, exceptions.NotSupportedError) or status == 501 or "NotPartial" in text:
        return UnsupportedError(
            f"{said}; the store cannot do what a repository needs (docs/object-stores.md)"
        )
    if _NOT_TRUSTED in text:
        return ConfigError(f"{said}; give the CA that signed the store's certificate in s3_ca_file")
    passes = (
        status is None or status >= 500 or status in _PASSING_STATUS | _BUSY_STATUS or code in _PASSING_CODES
    )
    if not passes or any(sign in text for sign in _NOT_SENT):
        return ConfigError(f"{said}; check repository, s3_endpoint and s3_region")
    return None


def _passing(status: int | None, code: str, said: str) -> SafehaulError:
    """What is left: faults that pass."""
    if status in _BUSY_STATUS or code == "SlowDown":
        return BusyError(f"{said}; the store asks for less")
    if status is not None or code:
        return TransientError(said)
    return ConnectionLostError(f"{said}; is the store up, and s3_endpoint right?")


def _status(text: str) -> int | None:
    found = _STATUS.search(text)
    return int(found[1]) if found else None


def _code(text: str) -> str:
    found = _CODE.search(text)
    return (found[1] or found[2]) if found else ""


def _said(text: str, status: int | None, code: str) -> str:
    """The refusal in a few words."""
    if _NOT_TRUSTED in text:
        return "the store's certificate is not trusted"
    if status is not None or code:
        sentence = _SENTENCE.search(text)
        words = [
            f"HTTP {status}" if status else "",
            code,
            f"({' '.join(sentence[1].split())})" if sentence else "",
        ]
        return " ".join(word for word in words if word)
    for sign, meaning in _LOST:
        if sign in text:
            return meaning
    first_line = text.partition("\n")[0]
    return first_line.rpartition(" - ")[2][:300] or "no reason was given"
