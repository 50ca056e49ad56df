"""Goal: every fault and connection error becomes the error that makes the caller do the right thing."""

from __future__ import annotations

import http.client
import ssl
from xml.parsers.expat import ExpatError

import pytest
from pyVmomi import vim, vmodl

from safehaul.errors import (
    AlreadyExistsError,
    BusyError,
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
from safehaul.vsphere.faults import HungUpError, UnreadableAnswerError, translate

WHAT = "CreateSnapshot_Task on VirtualMachine vm-1 (vCenter lab)"

CASES = [
    (vim.fault.InvalidLogin(), LoginRefusedError),
    (vim.fault.NotAuthenticated(privilegeId="System.View"), SessionLostError),
    (vim.fault.NoPermission(privilegeId="VirtualMachine.State.CreateSnapshot"), PermissionRefusedError),
    (vmodl.fault.ManagedObjectNotFound(obj=vim.VirtualMachine("vm-1")), NotFoundError),
    (vim.fault.FileNotFound(file="[x] y"), NotFoundError),
    (vim.fault.FileLocked(file="[x] y"), BusyError),
    (vim.fault.TaskInProgress(), BusyError),
    (vim.fault.ConcurrentAccess(), BusyError),
    (vim.fault.ResourceInUse(), BusyError),
    (vim.fault.InvalidPowerState(), BusyError),
    (vim.fault.NoDiskSpace(datastore="nfs"), DatastoreFullError),
    (vim.fault.ApplicationQuiesceFault(), QuiesceRefusedError),
    (vim.fault.TooManySnapshotLevels(), PolicyError),
    (vmodl.fault.NotSupported(), UnsupportedError),
    (vim.fault.DuplicateName(name="x"), AlreadyExistsError),
    (vmodl.fault.InvalidArgument(invalidProperty="path"), InvalidInputError),
    (vim.fault.InaccessibleDatastore(), TransientError),
    (vim.fault.InvalidDatastore(), InvalidInputError),
    (vim.fault.GenericVmConfigFault(), TransientError),
    (vmodl.fault.SystemError(), TransientError),
    (ConnectionRefusedError(111, "refused"), ConnectionLostError),
    (TimeoutError(), ConnectionLostError),
    (http.client.RemoteDisconnected("gone"), HungUpError),
    (BrokenPipeError(), HungUpError),
    (ssl.SSLEOFError(), HungUpError),
    (http.client.HTTPException("503 Service Unavailable"), ConnectionLostError),
    (ExpatError("no element found"), ConnectionLostError),
    (AttributeError("somethingNew"), UnreadableAnswerError),
]


@pytest.mark.parametrize(("fault", "expected"), CASES, ids=[type(fault).__name__ for fault, _ in CASES])
def test_each_has_its_class_and_names_the_operation(
    fault: BaseException, expected: type[SafehaulError]
) -> None:
    translated = translate(fault, WHAT)
    assert type(translated) is expected
    assert WHAT in str(translated)


def test_a_missing_privilege_names_privilege_and_object() -> None:
    fault = vim.fault.NoPermission(
        privilegeId="VirtualMachine.State.RemoveSnapshot", object=vim.VirtualMachine("vm-9")
    )
    text = str(translate(fault, WHAT))
    assert "VirtualMachine.State.RemoveSnapshot on VirtualMachine vm-9" in text


def test_an_expired_session_is_not_a_missing_privilege() -> None:
    assert isinstance(vim.fault.NotAuthenticated(), vim.fault.NoPermission)
    assert not isinstance(translate(vim.fault.NotAuthenticated(), WHAT), PermissionRefusedError)


def test_what_vcenter_says_is_one_bounded_printable_line() -> None:
    fault = vim.fault.GenericVmConfigFault(msg="locked\n\x1b[31mred" + "x" * 5000)
    text = str(translate(fault, WHAT))
    assert "\n" not in text
    assert "\x1b" not in text
    assert len(text) < 1000


def test_our_own_errors_pass_unchanged() -> None:
    error = BusyError("later")
    assert translate(error, WHAT) is error
