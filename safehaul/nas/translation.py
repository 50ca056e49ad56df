"""The one place where failures of NFS servers, of the NFS client and of kernel mounts become our errors."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence

import nfs_rs

from safehaul.errors import (
    AlreadyExistsError,
    BusyError,
    ConnectionLostError,
    InvalidInputError,
    NotFoundError,
    PermissionRefusedError,
    PolicyError,
    SafehaulError,
    UnsupportedError,
    VmMovedError,
)
from safehaul.messages.exports import ExportDefinition
from safehaul.nas.paths import safe
from safehaul.nas.reaching import mount_refused, no_export, other_version, unreached, wrong_security

# Status names of RFC 1813, 2.6 (NFS3ERR_…) and RFC 8881, 15.1 (NFS4ERR_…), without their prefix.
_REFUSED = frozenset({"PERM", "ACCES", "ACCESS"})
_STALE = frozenset({"STALE", "BADHANDLE", "FHEXPIRED", "NOFILEHANDLE", "MOVED"})
_BUSY = frozenset(
    {"JUKEBOX", "DELAY", "GRACE", "LOCKED", "DENIED", "SHARE_DENIED", "FILE_OPEN", "LAYOUTTRYLATER"}
)
_OTHER_VERSION = frozenset({"MINOR_VERS_MISMATCH"})
_OTHER_SECURITY = frozenset({"WRONGSEC"})
_FULL = frozenset({"NOSPC", "DQUOT"})
_LINK = frozenset({"SYMLINK", "LOOP"})
_TOO_LONG = frozenset({"NAMETOOLONG", "INVAL", "BADCHAR", "BADNAME"})


def translate(
    error: Exception, definition: ExportDefinition, operation: str, path: str = ""
) -> SafehaulError:
    """Make our error of a failed operation on an export, to be raised from its cause.

    NotFoundError for a missing name: during a transfer that means a move, which only the caller can know.
    """
    if isinstance(error, SafehaulError):
        return error
    place = f"{operation} {safe(path)} on {definition}" if path else f"{operation} {definition}"
    if explained := unreached(error, place, definition):
        return explained
    status = _status(error)
    for statuses, make in _BY_STATUS:
        if status in statuses:
            return make(place, definition)
    if isinstance(error, nfs_rs.NfsStateLostError):
        # After one stale answer the client refuses every further call on that file by this error.
        return _stale(place, definition)
    return _by_kind(error, place, status)


def mount_translate(
    error: Exception, definition: ExportDefinition, offered: Sequence[str] | None = None
) -> SafehaulError:
    """Make our error of a failed mount: as `translate`, but a missing name is the export itself.

    `offered`: the exports that a v3 filer lists for this node, where it was asked.
    """
    if _status(error) == "NOENT":
        return no_export(definition)
    if isinstance(error, nfs_rs.NfsMountError):
        # MOUNT statuses (RFC 1813 section 5.1.5) reach us as text only.
        text = _text(error).casefold()
        if "no such" in text or "not a directory" in text:
            return no_export(definition)
        if "denied" in text or "not permitted" in text:
            return mount_refused(definition, offered)
    return translate(error, definition, "mount")


def _by_kind(error: Exception, place: str, status: str) -> SafehaulError:
    if isinstance(error, nfs_rs.NfsUnsupportedError | nfs_rs.NfsModeError):
        return UnsupportedError(f"{place}: the filer does not support it ({_text(error)})")
    if isinstance(error, nfs_rs.NfsInvalidInputError):
        return InvalidInputError(f"{place}: {_text(error)}")
    if status in {"IO", "SERVERFAULT"}:
        # The filer's own disk or cache failed; it may succeed later, perhaps from another head of the filer.
        return ConnectionLostError(
            f"{place}: the filer reports an input/output error; look at the filer's log"
        )
    return ConnectionLostError(f"{place}: {_text(error)}; check that the filer answers from this node")


def _refused(place: str, definition: ExportDefinition) -> SafehaulError:
    if definition.mounted_at is not None:
        who = "mount it with root access, and let this process run as a user that may read root's files"
    else:
        who = f"export it to this node with root access (no_root_squash) for uid {definition.uid}"
        if definition.uid:
            who = "set uid = 0, and export it to this node with root access (no_root_squash)"
        if not definition.reserved_port:
            who += (
                ", and either allow unreserved ports (insecure) or set reserved_port = true and run as root"
            )
    return PermissionRefusedError(
        f"{place}: permission denied; flat files belong to root with mode 0600: {who}"
    )


def _stale(place: str, _definition: ExportDefinition) -> SafehaulError:
    return VmMovedError(
        f"{place}: stale file handle: the file was moved or replaced, or the filer restarted; open it again"
    )


def _not_found(place: str, definition: ExportDefinition) -> SafehaulError:
    message = f"{place}: no such file or directory"
    if definition.mounted_at is not None and not os.path.ismount(definition.mounted_at):
        source = f"{definition.effective_address}:{definition.effective_path}"
        message += f"; nothing is mounted at {definition.mounted_at} on this node: mount {source} there"
    return NotFoundError(message)


def _exists(place: str, _definition: ExportDefinition) -> SafehaulError:
    return AlreadyExistsError(f"{place}: it exists already, and nothing is ever overwritten")


def _busy(place: str, _definition: ExportDefinition) -> SafehaulError:
    return BusyError(f"{place}: the filer asks to try again later, or another client holds the file")


def _full(place: str, _definition: ExportDefinition) -> SafehaulError:
    return PolicyError(f"{place}: no space left, or the quota is exhausted; free space on the datastore")


def _read_only(place: str, _definition: ExportDefinition) -> SafehaulError:
    return PermissionRefusedError(f"{place}: the export is read-only; restores need one that may be written")


def _link(place: str, _definition: ExportDefinition) -> SafehaulError:
    return UnsupportedError(
        f"{place}: a symbolic link, which could lead out of the export, is never followed"
    )


def _not_a_directory(place: str, _definition: ExportDefinition) -> SafehaulError:
    return NotFoundError(f"{place}: a component of the path is no directory")


def _is_a_directory(place: str, _definition: ExportDefinition) -> SafehaulError:
    return UnsupportedError(f"{place}: it is a directory where a regular file is expected")


def _bad_name(place: str, _definition: ExportDefinition) -> SafehaulError:
    return InvalidInputError(f"{place}: the filer does not accept the name or the argument")


def _not_empty(place: str, _definition: ExportDefinition) -> SafehaulError:
    return PolicyError(f"{place}: the directory is not empty; somebody else put files there")


_BY_STATUS: tuple[tuple[frozenset[str], Callable[[str, ExportDefinition], SafehaulError]], ...] = (
    (_REFUSED, _refused),
    (_OTHER_SECURITY, wrong_security),
    (_OTHER_VERSION, other_version),
    (_STALE, _stale),
    (frozenset({"NOENT"}), _not_found),
    (frozenset({"EXIST"}), _exists),
    (_BUSY, _busy),
    (_FULL, _full),
    (frozenset({"ROFS"}), _read_only),
    (_LINK, _link),
    (frozenset({"NOTDIR"}), _not_a_directory),
    (frozenset({"ISDIR"}), _is_a_directory),
    (frozenset({"NOTEMPTY"}), _not_empty),
    (_TOO_LONG, _bad_name),
)


def _status(error: Exception) -> str:
    """The bare status: `NOENT` for NFS3ERR_NOENT, NFS4ERR_NOENT and ENOENT; empty if there is none."""
    name: object = getattr(error, "code_name", None)
    if isinstance(name, str):
        return name.removeprefix("NFS3ERR_").removeprefix("NFS4ERR_")
    if isinstance(error, OSError) and isinstance(error.errno, int):
        code = errno.errorcode.get(error.errno, "")
        return {"EAGAIN": "DELAY", "EBUSY": "LOCKED"}.get(code, code.removeprefix("E"))
    return ""


def _text(error: BaseException) -> str:
    """What the filer or the kernel said: nfs-rs wraps it in its own words on whether to try again."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__
