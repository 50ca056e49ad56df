"""The CommServe's part of a restore: who takes part, by the configuration and the backup's own record."""

from __future__ import annotations

from temporalio import activity

from activities.audit_notes import note_reading
from activities.errors import step
from activities.peers import Peers
from safehaul.errors import InvalidInputError
from safehaul.media.audit import Action
from safehaul.media.manifest import BackupRef, Manifest, ManifestDisk, read_manifest
from safehaul.messages.restore import (
    OpenDiskRestoreInput,
    OpenRestoreInput,
    RestoreDiskRequest,
    RestoreKind,
    RestoreSettings,
    RestoreVmRequest,
)
from safehaul.nas.paths import check_component


class RestoreDesk:
    """Activities of the CommServe's queue. A second run answers the same; each adds an entry to the audit log."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    @step("open_restore")
    def open_restore(self, arg: OpenRestoreInput) -> RestoreSettings:
        """Resolves backup, MediaAgent, vCenter and access nodes. Errors: names the field of what does not exist."""
        request = arg.request
        settings, _ = self._parties(request, RestoreKind.IN_PLACE if request.in_place else RestoreKind.NEW_VM)
        name = request.confirm if request.in_place else request.name
        assert name, "the request's own check asks for it"
        if not request.in_place:
            _check_name(name)
        self._note(settings, {"kind": settings.kind.value, "as": name})
        return settings.model_copy(
            update={
                "name": name,
                "datastore": request.datastore or "",
                "datacenter": request.datacenter,
                "folder": request.folder,
                "cluster": request.cluster,
                "resource_pool": request.resource_pool,
                "host": request.host,
                "mac": request.mac,
                "networks": dict(request.networks),
                "connect": request.connect,
                "power_on": request.power_on,
                "delete_old_disks": request.delete_old_disks,
            }
        )

    @step("open_disk_restore")
    def open_disk_restore(self, arg: OpenDiskRestoreInput) -> RestoreSettings:
        """Resolves as `open_restore`, and which disk of the backup is meant. Errors: names the field."""
        settings, manifest = self._parties(arg.request, RestoreKind.DISK)
        disk = _disk(manifest, arg.request.disk)
        self._note(settings, {"kind": settings.kind.value, "disk": disk.key, "to_vm": arg.request.to_vm})
        return settings.model_copy(
            update={
                "name": arg.request.to_vm,
                "datastore": arg.request.datastore or "",
                "disk_key": disk.key,
            }
        )

    def _note(self, settings: RestoreSettings, details: dict[str, object]) -> None:
        problem = note_reading(
            self._peers.repository(settings.media_agent),
            Action.RESTORE,
            f"{settings.vc_guid}/{settings.backup_id}",
            {**details, "workflow": activity.info().workflow_id if activity.in_activity() else ""},
        )
        if problem:
            activity.logger.warning("%s", problem)

    def _parties(
        self, request: RestoreVmRequest | RestoreDiskRequest, kind: RestoreKind
    ) -> tuple[RestoreSettings, Manifest]:
        settings = self._peers.settings
        vc_guid, _, backup_id = request.backup.rpartition("/")
        if not vc_guid or not backup_id:
            raise InvalidInputError(
                f"backup: {request.backup!a} is not of the form VC.GUID/TIME-ID; see `safehaul backups list`"
            )
        agents = [agent.name for agent in settings.media_agents]
        if request.media_agent is None:
            agent = settings.default_media_agent().name
        else:
            agent = _known("media_agent", request.media_agent, agents)
        manifest = read_manifest(self._peers.repository(agent), BackupRef(vc_guid, backup_id))
        vcenters = [vcenter.name for vcenter in settings.vcenters]
        recorded = str(manifest.snapshot.details.get("vcenter", ""))
        vcenter = _known("vcenter", request.vcenter or recorded or vcenters[0], vcenters)
        nodes = [node.name for node in settings.access_nodes]
        if request.access_node:
            nodes = [_known("access_node", request.access_node, nodes)]
        resolved = RestoreSettings(
            kind=kind,
            vc_guid=vc_guid,
            backup_id=backup_id,
            media_agent=agent,
            vcenter=vcenter,
            access_nodes=nodes,
            name="",
        )
        return resolved, manifest


def _known(field: str, name: str, names: list[str]) -> str:
    if name not in names:
        raise InvalidInputError(
            f"{field}: the configuration has no {name!r}; it has: {', '.join(names) or 'none'}"
        )
    return name


def _check_name(name: str) -> None:
    """A new VM's name is its directory's too."""
    try:
        check_component(name)
    except InvalidInputError as error:
        raise InvalidInputError(f"name: {error}") from None
    if not name.isprintable() or name != name.strip():
        raise InvalidInputError(f"name: {name!a} must be printable, without spaces at its ends")


def _disk(manifest: Manifest, which: str) -> ManifestDisk:
    found = [disk for disk in manifest.disks if str(disk.key) == which]
    found = found or [disk for disk in manifest.disks if disk.label == which]
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"{disk.key} ({disk.label})" for disk in manifest.disks)
    if found:
        raise InvalidInputError(f"disk: several are called {which!r}: name one by its key: {names}")
    skipped = "".join(f"; not in it: {item.label}: {item.reason}" for item in manifest.skipped)
    raise InvalidInputError(f"disk: the backup holds no disk {which!r}; it holds: {names or 'none'}{skipped}")
