"""Datastores by name, and what is in their directories (through the DatastoreBrowser).

A name is unique in a datacentre, not in a vCenter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from pyVmomi import vim

from safehaul.errors import InvalidInputError, NotFoundError, UnsupportedError
from safehaul.messages.inventory import DatastoreRef, NasVolume, VmFile
from safehaul.vsphere.client import VCenter
from safehaul.vsphere.faults import moref
from safehaul.vsphere.names import format_datastore_path, parse_datastore_path, unescape
from safehaul.vsphere.properties import Properties, read_objects, walk
from safehaul.vsphere.tasks import Heartbeat, no_heartbeat, wait

_LISTING_TIMEOUT_S: Final = 300.0
# A VM's directory holds some hundred files; a directory beyond this is not a VM's.
_MAX_FILES: Final = 100_000


def find_datastore(vcenter: VCenter, name: str, *, among: Sequence[Any] | None = None) -> Properties:
    """The datastore with this (unescaped) name, with `name`, `browser` and `summary`.

    Args:
        vcenter: the session.
        name: unique in a datacentre.
        among: managed objects to choose from, such as a VM's own datastores; the whole inventory by default.

    Raises:
        NotFoundError: there is none.
        InvalidInputError: several datacentres have one of this name.
    """
    paths = {vim.Datastore: ["name", "browser", "summary"]}
    candidates = vcenter.read(
        lambda session: list(walk(session, paths)) if among is None else read_objects(session, among, paths)
    )
    found = [each for each in candidates if unescape(str(each.get("name", ""))) == name]
    if not found:
        raise NotFoundError(f"vCenter {vcenter.name} has no datastore {name!r} there: look at its spelling")
    if len(found) > 1:
        morefs = ", ".join(each.moref for each in found)
        raise InvalidInputError(
            f"vCenter {vcenter.name} has several datastores {name!r} ({morefs}): rename all but one"
        )
    return found[0]


def choose_volume(volumes: Iterable[NasVolume], name: str, datacenter: str = "") -> NasVolume:
    """The one datastore of a vCenter that a person means.

    Args:
        volumes: from `inventory.all_nas_volumes`.
        name: unescaped.
        datacenter: name or moref of the datacentre; needed when several have a datastore of this name.

    Raises:
        NotFoundError: there is none.
        InvalidInputError: several datacentres have one of this name.
    """
    named = [each for each in volumes if each.datastore == name]
    found = [each for each in named if datacenter in {"", each.datacenter, each.datacenter_moref}]
    if not found:
        where = f" in datacentre {datacenter!r}" if datacenter else ""
        others = f"; there is one in {datacenters_of(named)}" if named else ""
        raise NotFoundError(f"vCenter's hosts know no datastore {name!r}{where}{others}")
    if len(found) > 1:
        raise InvalidInputError(
            f"datastore: {len(found)} datacentres have a datastore {name!r}: {datacenters_of(found)}: name one of them "
            "as `datacenter`"
        )
    return found[0]


def find_volume(volumes: Iterable[NasVolume], wanted: DatastoreRef) -> NasVolume:
    """The datastore that discovery or a plan recorded: by its moref, or by its name where only that is known.

    Raises as `choose_volume`.
    """
    if not wanted.moref:
        return choose_volume(volumes, wanted.name, wanted.datacenter)
    for each in volumes:
        if each.moref == wanted.moref:
            return each
    raise NotFoundError(f"vCenter's hosts know no datastore {wanted.name!r} ({wanted.moref}) any more")


def datacenters_of(volumes: Iterable[NasVolume]) -> str:
    """The datacentres of some datastores, for a message: names with morefs, for names need not be unique."""
    told = {each.moref: f"{each.datacenter!r} ({each.datacenter_moref})" for each in volumes}
    return ", ".join(sorted(told.values()))


def list_directory(
    vcenter: VCenter,
    datastore_path: str,
    *,
    among: Sequence[Any] | None = None,
    heartbeat: Heartbeat = no_heartbeat,
) -> list[VmFile]:
    """The files of one directory, sorted by path: sizes and times, whatever their format.

    Needs the privilege Datastore.Browse.

    Args:
        vcenter: the session.
        datastore_path: `[datastore] directory`.
        among: where to look for the datastore, as `find_datastore` has it.
        heartbeat: while the search task runs.

    Raises:
        NotFoundError: no such datastore or directory.
        InvalidInputError: not a datastore path.
    """
    directory = parse_datastore_path(datastore_path)
    datastore = find_datastore(vcenter, directory.datastore, among=among)
    browser = datastore.get("browser")
    if browser is None:
        raise NotFoundError(
            f"datastore {directory.datastore!r} has no browser: the account may not browse it"
        )
    # No query: with one for disks vCenter hides the extents behind their descriptors.
    spec = vim.host.DatastoreBrowser.SearchSpec(
        matchPattern=["*"],
        details=vim.host.DatastoreBrowser.FileInfo.Details(
            fileSize=True, modification=True, fileType=False, fileOwner=False
        ),
    )
    task = vcenter.read(
        lambda session: session.managed(type(browser), moref(browser)).SearchDatastore_Task(
            str(directory), spec
        )
    )
    result = wait(vcenter, moref(task), heartbeat, timeout_s=_LISTING_TIMEOUT_S)
    files = (result.file if result is not None else None) or []
    if len(files) > _MAX_FILES:
        raise UnsupportedError(
            f"{directory} holds more than {_MAX_FILES} files: it cannot be a VM's directory"
        )
    prefix = f"{directory.path}/" if directory.path else ""
    listed = [_file(directory.datastore, prefix, each) for each in files]
    return sorted(listed, key=lambda file: file.path)


def _file(datastore: str, prefix: str, info: Any) -> VmFile:
    return VmFile(
        path=format_datastore_path(datastore, prefix + str(info.path)),
        size_bytes=int(info.fileSize or 0),
        modified=info.modification.isoformat() if info.modification else "",
    )
