"""Goal: every failure of a filer becomes the error whose class says what to do, with a message that helps."""

from __future__ import annotations

import errno

import nfs_rs
import pytest

from safehaul.errors import (
    AlreadyExistsError,
    BusyError,
    ConfigError,
    ConnectionLostError,
    NotFoundError,
    PermissionRefusedError,
    PolicyError,
    SafehaulError,
    UnsupportedError,
    VmMovedError,
)
from safehaul.messages.exports import ExportDefinition
from safehaul.nas.translation import mount_translate, translate

EXPORT = ExportDefinition(
    name="gold", remote_hosts=("nas1",), remote_path="/v/a", version="3", uid=0, reserved_port=False
)


@pytest.mark.parametrize(
    ("code_name", "expected"),
    [
        ("NFS3ERR_ACCES", PermissionRefusedError),
        ("NFS4ERR_ACCESS", PermissionRefusedError),
        ("NFS3ERR_PERM", PermissionRefusedError),
        ("NFS3ERR_STALE", VmMovedError),
        ("NFS4ERR_FHEXPIRED", VmMovedError),
        ("NFS3ERR_NOENT", NotFoundError),
        ("NFS3ERR_NOTDIR", NotFoundError),
        ("NFS4ERR_SYMLINK", UnsupportedError),
        ("NFS3ERR_JUKEBOX", BusyError),
        ("NFS4ERR_GRACE", BusyError),
        ("NFS3ERR_NOSPC", PolicyError),
        ("NFS3ERR_DQUOT", PolicyError),
        ("NFS3ERR_ROFS", PermissionRefusedError),
        ("NFS3ERR_EXIST", AlreadyExistsError),
        ("NFS3ERR_IO", ConnectionLostError),
    ],
)
def test_nfs_statuses(code_name: str, expected: type[SafehaulError]) -> None:
    error = nfs_rs.NfsProtocolError(message="server said no", code_name=code_name)
    found = translate(error, EXPORT, "read", "vm/x-flat.vmdk")
    assert type(found) is expected
    assert "'gold'" in str(found)
    assert "x-flat.vmdk" in str(found)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EACCES, PermissionRefusedError),
        (errno.ESTALE, VmMovedError),
        (errno.ENOENT, NotFoundError),
        (errno.ELOOP, UnsupportedError),
        (errno.EAGAIN, BusyError),
        (errno.ENOSPC, PolicyError),
        (errno.EIO, ConnectionLostError),
        (errno.ETIMEDOUT, ConnectionLostError),
        (errno.ECONNREFUSED, ConnectionLostError),
    ],
)
def test_kernel_errors(number: int, expected: type[SafehaulError]) -> None:
    assert type(translate(OSError(number, "no"), EXPORT, "read", "x")) is expected


def test_a_refusal_names_export_uid_and_port_and_what_to_change() -> None:
    refused = nfs_rs.NfsPermissionError(message="access denied", code_name="NFS3ERR_ACCES", errno=13)
    message = str(translate(refused, EXPORT, "read", "x"))
    for part in (
        "nas1:/v/a",
        "version 3",
        "uid 0",
        "unreserved port",
        "no_root_squash",
        "reserved_port = true",
    ):
        assert part in message


def test_time_outs_and_refused_connections_are_transient() -> None:
    for error in (
        nfs_rs.NfsTimeoutError(message="read_at deadline exceeded"),
        nfs_rs.NfsConnectionError(message="Connection refused", errno=111),
        nfs_rs.NfsRpcError(message="RPC attempt timeout"),
    ):
        assert type(translate(error, EXPORT, "read", "x")) is ConnectionLostError
        assert type(mount_translate(error, EXPORT)) is ConnectionLostError


def test_a_refused_mount_names_export_and_version() -> None:
    missing = mount_translate(nfs_rs.NfsMountError(message="Mount error: no such file or directory"), EXPORT)
    assert type(missing) is NotFoundError
    denied = mount_translate(nfs_rs.NfsMountError(message="Mount error: access denied"), EXPORT)
    assert type(denied) is PermissionRefusedError
    for error in (missing, denied):
        assert "nas1:/v/a" in str(error)
        assert "version 3" in str(error)


def test_our_own_errors_pass_unchanged() -> None:
    error = PolicyError("limit")
    assert translate(error, EXPORT, "read") is error


def _wrapped(message: str, cause: str) -> nfs_rs.NfsError:
    """As nfs-rs raises it: its own judgement outside, what happened inside."""
    error = nfs_rs.NfsRetryableError(message=message)
    error.__cause__ = nfs_rs.NfsRpcError(message=cause)
    return error


_JUDGED = "SafeToRetry NFS operation ReadOnly; recovery=Retry"


@pytest.mark.parametrize(
    ("error", "expected", "parts"),
    [
        (
            _wrapped(_JUDGED, "RPC error: could not parse response due to bad status"),
            PermissionRefusedError,
            ["rejects uid 0", "an unreserved port", "reserved_port = true", "sec=sys"],
        ),
        (
            nfs_rs.NfsRpcError(message="RPC error: request rejected"),
            ConfigError,
            ["does not speak NFS version 3", "nas1", "port 2049"],
        ),
        (
            nfs_rs.NfsProtocolError(message="minor version", code_name="NFS4ERR_MINOR_VERS_MISMATCH"),
            ConfigError,
            ["does not speak NFS version 3"],
        ),
        (
            nfs_rs.NfsProtocolError(message="wrong sec", code_name="NFS4ERR_WRONGSEC"),
            PermissionRefusedError,
            ["Kerberos", "sec=sys", "uid 0"],
        ),
        (
            nfs_rs.NfsConnectionError(message="refused", errno=111),
            ConnectionLostError,
            ["nothing listens at nas1"],
        ),
        (nfs_rs.NfsOSError(message="unreachable", errno=101), ConnectionLostError, ["no route", "nas1"]),
        (nfs_rs.NfsOSError(message="host down", errno=113), ConnectionLostError, ["no route", "nas1"]),
        (
            nfs_rs.NfsOSError(message="failed to lookup address information: unknown"),
            ConnectionLostError,
            ["'nas1'", "does not resolve"],
        ),
        (
            nfs_rs.NfsRpcError(message="RPC error: portmapper lookup failed for prog=100005"),
            ConnectionLostError,
            ["port 111", "mount_port"],
        ),
        (
            nfs_rs.NfsTimeoutError(message="connection deadline"),
            ConnectionLostError,
            ["in time", "firewalls"],
        ),
        (
            nfs_rs.NfsPermissionError(message="Permission denied (os error 13)", errno=13),
            PermissionRefusedError,
            ["below 1024", "CAP_NET_BIND_SERVICE"],
        ),
        (
            _wrapped(_JUDGED, "NFS4 error: retry uncached reply"),
            ConnectionLostError,
            ["retry uncached reply"],
        ),
    ],
)
def test_what_never_got_to_nfs_says_why(
    error: nfs_rs.NfsError, expected: type[SafehaulError], parts: list[str]
) -> None:
    for found in (mount_translate(error, EXPORT), translate(error, EXPORT, "read", "x")):
        assert type(found) is expected
        for part in ["'gold'", *parts]:
            assert part in str(found), found


@pytest.mark.parametrize(
    ("offered", "says"),
    [
        (None, "from an unreserved port; correct path"),
        ([], "offers this node nothing;"),
        (["/v/b", "/v/\x1b[31m"], "offers this node '/v/b', '/v/\\x1b[31m';"),
        ([f"/v/{number}" for number in range(100)], "'/v/7', …;"),
    ],
)
def test_a_refused_mount_says_what_the_filer_offers_instead(offered: list[str] | None, says: str) -> None:
    denied = mount_translate(nfs_rs.NfsMountError(message="Mount error: access denied"), EXPORT, offered)
    assert says in str(denied)
