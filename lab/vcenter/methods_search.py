"""SearchIndex, EventManager and the datastore browser."""

from __future__ import annotations

import fnmatch
from typing import Any

from pyVmomi import vim

from lab.esx.api import Datastore, DirectoryEntry, Vm
from lab.esx.client import HostFault
from lab.vcenter.datastore_names import datacenter_of
from lab.vcenter.dispatch import Invocation, Registry
from lab.vcenter.events import query_events
from lab.vcenter.faults import fault_named, invalid_argument
from lab.vcenter.names import unescaped
from lab.vcenter.reflect import moid_of
from lab.vcenter.views import children_of

_MAX_DIRECTORIES = 2000
_MAX_FILES = 100_000
_BROWSER = vim.host.DatastoreBrowser
_FILE_KINDS = {
    ".vmdk": _BROWSER.VmDiskInfo,
    ".vmx": _BROWSER.VmConfigInfo,
    ".vmtx": _BROWSER.TemplateVmConfigInfo,
    ".vmsn": _BROWSER.VmSnapshotInfo,
    ".nvram": _BROWSER.VmNvramInfo,
    ".log": _BROWSER.VmLogInfo,
}


def register(registry: Registry) -> None:
    """Add these methods."""
    registry.method("FindByUuid")(_find_by_uuid)
    registry.method("FindAllByUuid")(_find_all_by_uuid)
    registry.method("FindByInventoryPath")(_find_by_inventory_path)
    registry.method("FindByDatastorePath")(_find_by_datastore_path)
    registry.method("FindChild")(_find_child)
    registry.method("QueryEvents")(_query_events)
    registry.method("SearchDatastore_Task", "Datastore.Browse")(_search_directory)
    registry.method("SearchDatastoreSubFolders_Task", "Datastore.Browse")(_search_below)


def _matching_uuid(invocation: Invocation) -> list[Any]:
    if not invocation.arg("vmSearch", default=True):
        return []  # hosts are not found by their UUID here
    wanted = invocation.arg("uuid", "").lower()
    instance: bool = invocation.arg("instanceUuid", default=False)

    def matches(vm: Vm) -> bool:
        own = vm.instance_uuid if instance else vm.bios_uuid
        return own.lower() == str(wanted)

    return [vim.VirtualMachine(vm.moref) for vm in invocation.scope.inventory.vms.values() if matches(vm)]


def _find_by_uuid(invocation: Invocation) -> Any:
    return next(iter(_matching_uuid(invocation)), None)


def _find_all_by_uuid(invocation: Invocation) -> list[Any]:
    return _matching_uuid(invocation)


def _find_by_datastore_path(invocation: Invocation) -> Any:
    wanted, datacenter = invocation.arg("path", ""), moid_of(invocation.arg("datacenter"))
    inventory = invocation.scope.inventory
    for vm in inventory.vms.values():
        if vm.vmx_path == wanted and datacenter_of(inventory.state, vm.parent).moref == datacenter:
            return vim.VirtualMachine(vm.moref)
    return None


def _find_by_inventory_path(invocation: Invocation) -> Any:
    current = invocation.scope.inventory.root
    for name in [each for each in invocation.arg("inventoryPath", "").split("/") if each]:
        found = _child_named(invocation, current, name)
        if found is None:
            return None
        current = found
    return current


def _find_child(invocation: Invocation) -> Any:
    entity = invocation.scope.need(invocation.arg("entity")).reference
    return _child_named(invocation, entity, invocation.arg("name", ""))


def _child_named(invocation: Invocation, parent: Any, name: str) -> Any:
    """The child with this name, given escaped or not."""
    node = invocation.scope.find(parent)
    for child in children_of(node) if node else ():
        child_node = invocation.scope.find(child)
        if child_node is not None and unescaped(child_node.value("name")) == unescaped(name):
            return child
    return None


def _query_events(invocation: Invocation) -> list[Any]:
    wanted = invocation.arg("filter")
    if wanted.entity is not None:
        invocation.scope.need(wanted.entity.entity)
    return query_events(invocation.vcenter.hosts, invocation.scope.inventory, wanted)


def _search_directory(invocation: Invocation) -> Any:
    return _search(invocation, "SearchDatastore_Task", recursive=False)


def _search_below(invocation: Invocation) -> Any:
    return _search(invocation, "SearchDatastoreSubFolders_Task", recursive=True)


def _search(invocation: Invocation, method: str, *, recursive: bool) -> Any:
    """Search at once; what goes wrong is the task's error, as in vCenter."""
    path = invocation.arg("datastorePath", "")
    datastore = _datastore_of(invocation, path)
    result: Any = None
    error: Any = None
    try:
        found = _walk(invocation, path, datastore, recursive=recursive)
        result = _BROWSER.SearchResults.Array(found) if recursive else found[0]
    except HostFault as refusal:
        fault = refusal.fault
        error = fault_named(fault.type, fault.message, fault.fields)
    description = "DatastoreBrowser.searchSubFolders" if recursive else "DatastoreBrowser.search"
    return invocation.vcenter.local_tasks.finished(
        method,
        description,
        vim.Datastore(datastore.moref),
        user=invocation.user,
        result=result,
        error=error,
    )


def _datastore_of(invocation: Invocation, path: str) -> Datastore:
    """The datastore that a path names; it must be one that this browser shows."""
    if not path.startswith("[") or "]" not in path:
        raise vim.fault.InvalidDatastorePath(msg=f"Invalid datastore path {path!r}", datastorePath=path)
    name = path[1 : path.index("]")]
    shown = {moid_of(each) for each in invocation.scope.need(invocation.target).value("datastore")}
    stores = invocation.scope.inventory.state.datastores
    found = next((each for each in stores if each.shown == name and each.moref in shown), None)
    if found is None:
        raise vim.fault.InvalidDatastorePath(msg=f"No such datastore: {name!r}", datastorePath=path)
    return found


def _walk(invocation: Invocation, path: str, datastore: Datastore, *, recursive: bool) -> list[Any]:
    reference = vim.Datastore(datastore.moref)
    spec = invocation.arg("searchSpec") or _BROWSER.SearchSpec()
    results: list[Any] = []
    pending, files = [path], 0
    while pending:
        folder = pending.pop(0)
        if len(results) >= _MAX_DIRECTORIES or files >= _MAX_FILES:
            raise invalid_argument("datastorePath", "the search finds too much; search below a directory")
        inside = folder[folder.index("]") :]
        listed = invocation.vcenter.hosts.list_directory(f"[{datastore.name}{inside}")
        entries = sorted(listed, key=lambda each: each.path)
        if recursive:
            pending += [_joined(folder, each.path) + "/" for each in entries if each.directory]
        chosen = [_file_info(each, spec) for each in entries if _is_wanted(each, spec)]
        files += len(chosen)
        results.append(_BROWSER.SearchResults(datastore=reference, folderPath=folder, file=chosen))
    return results


def _joined(folder: str, name: str) -> str:
    separator = "" if folder.endswith(("/", " ")) else "/"
    if folder.endswith("]"):
        separator = " "
    return f"{folder}{separator}{name}"


def _is_wanted(entry: DirectoryEntry, spec: Any) -> bool:
    name = entry.path.rsplit("/", 1)[-1]
    patterns = spec.matchPattern or ["*"]
    fold = bool(spec.searchCaseInsensitive)
    if not any(
        fnmatch.fnmatchcase(name.lower() if fold else name, each.lower() if fold else each)
        for each in patterns
    ):
        return False
    return not spec.query or any(_is_covered(entry, query) for query in spec.query)


def _is_covered(entry: DirectoryEntry, query: Any) -> bool:
    """Whether a typed query (`VmDiskQuery`, ...) means this file."""
    kind = type(_bare_info(entry, typed=True)).__name__.rsplit(".", 1)[-1]
    wanted = type(query).__name__.rsplit(".", 1)[-1]
    return wanted == "Query" or wanted == kind.replace("Info", "Query")


def _bare_info(entry: DirectoryEntry, *, typed: bool) -> Any:
    if entry.directory:
        return _BROWSER.FolderInfo(path=entry.path)
    suffix = entry.path[entry.path.rfind(".") :].lower() if "." in entry.path else ""
    kind = _FILE_KINDS.get(suffix, _BROWSER.FileInfo) if typed else _BROWSER.FileInfo
    return kind(path=entry.path)


def _file_info(entry: DirectoryEntry, spec: Any) -> Any:
    """Only the details that were asked for are told (`FileInfo.Details`)."""
    details = spec.details
    info = _bare_info(entry, typed=bool(details is not None and details.fileType) or bool(spec.query))
    if details is not None and details.fileSize:
        info.fileSize = entry.size_bytes
    if details is not None and details.modification:
        info.modification = entry.modified
    if details is not None and details.fileOwner:
        info.owner = "root"
    return info
