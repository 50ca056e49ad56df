"""The exit codes, and what each error says: one clear message and never a traceback."""

from __future__ import annotations

from temporalio.client import WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError, CancelledError, TerminatedError
from temporalio.service import RPCError, RPCStatusCode

from safehaul import errors
from safehaul.errors import ConfigError, InvalidInputError, SafehaulError, TransientError
from safehaul.messages.job import JobStatus

OK, FAILED, USAGE, PARTIAL, CANCELLED, NO_ANSWER, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130

OF_JOB = {
    JobStatus.RUNNING: OK,
    JobStatus.COMPLETED: OK,
    JobStatus.FAILED: FAILED,
    JobStatus.PARTIAL: PARTIAL,
    JobStatus.CANCELLED: CANCELLED,
}

UNEXPECTED_LIMIT = 300

_RPC_CODES = {
    RPCStatusCode.NOT_FOUND: USAGE,
    RPCStatusCode.ALREADY_EXISTS: USAGE,
    RPCStatusCode.INVALID_ARGUMENT: USAGE,
    RPCStatusCode.PERMISSION_DENIED: USAGE,
    RPCStatusCode.UNAUTHENTICATED: USAGE,
    RPCStatusCode.UNAVAILABLE: NO_ANSWER,
    RPCStatusCode.DEADLINE_EXCEEDED: NO_ANSWER,
    RPCStatusCode.RESOURCE_EXHAUSTED: NO_ANSWER,
    RPCStatusCode.CANCELLED: NO_ANSWER,
}


def code_of(error: BaseException) -> int:
    """The exit code that an error ends the command with."""
    if isinstance(error, WorkflowFailureError | WorkflowUpdateFailedError):
        return _code_of_failure(error.cause)
    if isinstance(error, RPCError):
        return _RPC_CODES.get(error.status, FAILED)
    return _code_of_class(type(error))


def message_of(error: BaseException) -> str:
    """What a person reads: what failed, on which object, and what to do next."""
    if isinstance(error, WorkflowFailureError | WorkflowUpdateFailedError):
        return _message_of_failure(error.cause)
    if isinstance(error, RPCError):
        if error.status is RPCStatusCode.NOT_FOUND:
            return f"Temporal knows no such workflow that runs: {error.message}; see `temporal workflow list`"
        if no_answer(error):
            return f"Temporal does not answer: {error.message}; see [temporal] in the configuration"
        return f"Temporal refuses: {error.message}"
    if isinstance(error, SafehaulError):
        return str(error)
    first_line = str(error).partition("\n")[0][:UNEXPECTED_LIMIT]
    return (
        f"unexpected {type(error).__name__}: {first_line} (a defect of safehaul: the same command with "
        "`safehaul --debug …` shows where)"
    )


def no_answer(error: BaseException) -> bool:
    """True when it was the peer that did not answer: the same call may succeed later."""
    return code_of(error) == NO_ANSWER


def _code_of_class(kind: type[BaseException]) -> int:
    if issubclass(kind, TransientError):
        return NO_ANSWER
    return USAGE if issubclass(kind, ConfigError | InvalidInputError) else FAILED


def _code_of_failure(cause: BaseException) -> int:
    """A workflow's failure carries the name of the error's class, or `InvalidInput` for a wrong input."""
    if isinstance(cause, CancelledError):
        return CANCELLED
    if not isinstance(cause, ApplicationError):
        return FAILED
    if cause.type == "InvalidInput":
        return USAGE
    kind = getattr(errors, cause.type or "", None)
    return _code_of_class(kind) if isinstance(kind, type) and issubclass(kind, SafehaulError) else FAILED


def _message_of_failure(cause: BaseException) -> str:
    if isinstance(cause, CancelledError):
        return "the workflow was cancelled"
    if isinstance(cause, TerminatedError):
        return "the workflow was terminated, which runs no clean-up: look at what it was making"
    return cause.message if isinstance(cause, ApplicationError) else str(cause)
