"""The one place that turns vim faults and connection errors into safehaul's errors."""

from __future__ import annotations

import http.client
import ssl
from typing import Any, Final
from xml.parsers.expat import ExpatError

from pyVmomi import vim, vmodl

from safehaul.errors import (
    AlreadyExistsError,
    BusyError,
    ConfigError,
    ConnectionLostError,
    DatastoreFullError,
    InvalidInputError,
    LoginRefusedError,
    NotFoundError,
    PermissionRefusedError,
    PolicyError,
    QuiesceRefusedError,
    SafehaulError,
    SessionLostError,
    TransientError,
    UnsupportedError,
)

_MAX_FAULT_TEXT_CHARS: Final = 400


class HungUpError(ConnectionLostError):
    """The peer closed the connection without an answer: so die pooled connections, so reads try once more."""


class UnreadableAnswerError(UnsupportedError):
    """VCenter's answer has an enum value, a field or a type that pyVmomi does not know."""


# The first row that matches wins, so a row stands before the rows of its base classes.
_TABLE: Final[list[tuple[tuple[Any, ...], type[SafehaulError], str]]] = [
    (
        (vim.fault.InvalidLogin,),
        LoginRefusedError,
        "correct user or password in the configuration, then restart this worker (it tries only once)",
    ),
    ((vim.fault.NotAuthenticated,), SessionLostError, "the next call logs in again"),
    (
        (vmodl.fault.ManagedObjectNotFound, vim.fault.NotFound, vim.fault.FileNotFound),
        NotFoundError,
        "it was deleted, moved or registered anew; discover again",
    ),
    (
        (vim.fault.AlreadyExists, vim.fault.DuplicateName, vim.fault.FileAlreadyExists),
        AlreadyExistsError,
        "choose another name, or remove what is there",
    ),
    ((vim.fault.NoDiskSpace,), DatastoreFullError, "free space on the datastore"),
    (
        (vim.fault.ApplicationQuiesceFault, vim.fault.FilesystemQuiesceFault),
        QuiesceRefusedError,
        "look at VMware Tools and VSS in the guest, or allow crash-consistent snapshots for the VM group",
    ),
    (
        (vim.fault.TooManySnapshotLevels,),
        PolicyError,
        "the VM has as many snapshots as vSphere permits (32): remove some",
    ),
    (
        (
            vim.fault.MultipleSnapshotsNotSupported,
            vim.fault.SnapshotDisabled,
            vim.fault.SnapshotIncompatibleDeviceInVm,
            vim.fault.MemorySnapshotOnIndependentDisk,
            vim.fault.RestrictedVersion,
            vim.fault.NotSupportedHost,
            vmodl.fault.NotSupported,
            vmodl.fault.NotImplemented,
            vmodl.fault.MethodNotFound,
        ),
        UnsupportedError,
        "vSphere does not do this for this VM or with this licence",
    ),
    (
        (
            vim.fault.FileLocked,
            vim.fault.SnapshotLocked,
            vim.fault.TaskInProgress,
            vim.fault.ConcurrentAccess,
            vim.fault.ResourceInUse,
            vim.fault.Timedout,
            vim.fault.InvalidState,
            vim.fault.HostConnectFault,
        ),
        BusyError,
        "it is in use or in a state that does not permit this now; try again later",
    ),
    (
        (vim.fault.InaccessibleDatastore, vim.fault.CannotAccessFile, vmodl.fault.HostCommunication),
        TransientError,
        "the datastore or host cannot be reached now; look at its state in vCenter",
    ),
    (
        (vmodl.fault.RequestCanceled,),
        TransientError,
        "somebody cancelled it; try again",
    ),
    (
        (
            vmodl.fault.InvalidArgument,
            vmodl.fault.InvalidRequest,
            vim.fault.InvalidName,
            vim.fault.InvalidDatastore,
            vim.fault.InvalidDatastorePath,
        ),
        InvalidInputError,
        "correct the name, path or argument",
    ),
]


def moref(reference: Any) -> str:
    """`vm-12` of a managed object reference; empty for none."""
    return str(getattr(reference, "_moId", "") or "")


def describe(reference: Any) -> str:
    """`VirtualMachine vm-12`."""
    return f"{getattr(type(reference), '_wsdlName', 'object')} {moref(reference) or '?'}"


def fault_text(fault: Any) -> str:
    """What vCenter says of a fault: one line, bounded, without control characters (untrusted)."""
    text = " ".join(str(getattr(fault, "msg", None) or "").split())
    printable = "".join(char for char in text if char.isprintable())
    return printable[:_MAX_FAULT_TEXT_CHARS]


def translate(error: BaseException, what: str) -> SafehaulError:
    """The error of ours that says the same.

    Args:
        error: what pyVmomi, http.client, ssl or the socket raised, or a task's `info.error`.
        what: the operation and its object, such as `RemoveSnapshot_Task on snapshot-3`.
    """
    if isinstance(error, SafehaulError):
        return error
    # NotAuthenticated is a subclass of NoPermission in the vSphere API, and means something else.
    if isinstance(error, vim.fault.NoPermission) and not isinstance(error, vim.fault.NotAuthenticated):
        return PermissionRefusedError(_no_permission(error, what))
    for classes, translated, advice in _TABLE:
        if isinstance(error, classes):
            return translated(f"{what}: {_detail(error)}: {advice}")
    if isinstance(error, vmodl.MethodFault):
        # An unknown fault may pass; retries are bounded by policy.
        return TransientError(
            f"{what}: {_detail(error)}: look at the object's recent tasks and events in vCenter"
        )
    return _translate_transport(error, what)


def _translate_transport(error: BaseException, what: str) -> SafehaulError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConfigError(f"{what}: the certificate is not trusted: {error.verify_message}")
    if isinstance(
        error, http.client.RemoteDisconnected | ConnectionResetError | BrokenPipeError | ssl.SSLEOFError
    ):
        return HungUpError(f"{what}: the connection was closed without an answer ({type(error).__name__})")
    if isinstance(error, TimeoutError):
        return ConnectionLostError(f"{what}: no answer in time: look at the network and at vCenter's load")
    if isinstance(error, OSError | http.client.HTTPException | ExpatError):
        reason = " ".join(str(error).split())[:_MAX_FAULT_TEXT_CHARS]
        return ConnectionLostError(
            f"{what}: {type(error).__name__}: {reason}: check address, port and network"
        )
    return UnreadableAnswerError(
        f"{what}: vCenter answered with something that this client does not know "
        f"({type(error).__name__}: {str(error)[:_MAX_FAULT_TEXT_CHARS]}): update pyVmomi"
    )


def _detail(error: Any) -> str:
    name = getattr(type(error), "_wsdlName", type(error).__name__)
    gone = getattr(error, "obj", None)
    text = fault_text(error)
    named = f"{name} ({describe(gone)})" if gone is not None else str(name)
    return f"{named}: {text}" if text else named


def _no_permission(fault: Any, what: str) -> str:
    """Names every missing privilege with its object, from the old fields and from those of vSphere 7.0.3."""
    missing = [
        f"{privilege} on {describe(entry.entity)}"
        for entry in getattr(fault, "missingPrivileges", None) or []
        for privilege in entry.privilegeIds or []
    ]
    if not missing and fault.privilegeId:
        missing = [f"{fault.privilegeId} on {describe(fault.object)}"]
    return (
        f"{what}: no permission: give the account {', '.join(missing) or 'the privilege for this operation'}"
    )
