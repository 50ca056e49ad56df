"""A virtual machine and its snapshots as the API tells them, projected from the hosts' state."""

from __future__ import annotations

import datetime as dt
from typing import Any, Protocol

from pyVmomi import VmomiSupport, vim

from lab.esx.api import Hardware, Snapshot, Vm
from lab.vcenter.cards import network_reference
from lab.vcenter.devices import FindDatastore, hardware_info
from lab.vcenter.names import escaped
from lab.vcenter.nodes import Node, Properties
from lab.vcenter.reflect import moid_of, properties_of

_GUESTS = {
    "otherLinux64Guest": "Other Linux (64-bit)",
    "windows2019srv_64Guest": "Microsoft Windows Server 2019 (64-bit)",
}
_UNREADABLE = {"inaccessible", "invalid"}
"""Connection states in which vCenter has lost the .vmx: `config` is unset then."""


class Surroundings(Protocol):
    """What a VM's properties need to know of the inventory of the same moment."""

    @property
    def custom_fields(self) -> list[Any]:
        """The definitions of custom attributes."""

    def recent_tasks(self, entity: str) -> list[Any]:
        """References of the entity's newest tasks."""


class VmProjection:
    """The properties of one VM at one moment; kept as long as the VM does not change."""

    def __init__(self, vm: Vm, find_datastore: FindDatastore) -> None:
        self.vm = vm
        self.reference = vim.VirtualMachine(vm.moref)
        self._find_datastore = find_datastore
        # One time for all that this state of the VM tells, so that a waiting client sees real changes only.
        self._projected = dt.datetime.now(dt.UTC)
        self._config: Any = None

    def node(self, around: Surroundings) -> Node:
        """The VM as a managed object; `around` is the inventory of this moment."""
        vm = self.vm
        builders: dict[str, Any] = {
            **entity_properties(vm.name, vim.Folder(vm.parent)),
            "customValue": self._custom_values,
            "value": self._custom_values,
            "availableField": lambda: around.custom_fields,
            "disabledMethod": lambda: _methods(vm.disabled_methods),
            "recentTask": lambda: around.recent_tasks(vm.moref),
            "capability": _capability,
            "config": self.config,
            "runtime": self.runtime,
            "summary": self.summary,
            "guest": self._guest,
            "guestHeartbeatStatus": lambda: "gray",
            "layoutEx": self._layout,
            "datastore": self._datastores,
            "network": lambda: [network_reference(each) for each in dict.fromkeys(self._networks())],
            "resourcePool": lambda: None if vm.template else vim.ResourcePool(vm.resource_pool),
            "environmentBrowser": lambda: vim.EnvironmentBrowser(f"envbrowser-{vm.moref}"),
            "snapshot": self._snapshot_info,
            "rootSnapshot": lambda: [vim.vm.Snapshot(each.moref) for each in self._children(None)],
        }
        return Node(self.reference, builders)

    def snapshot_node(self, snapshot: Snapshot) -> Node:
        """One snapshot as a managed object, with its own hardware."""
        builders: Properties = {
            "vm": lambda: self.reference,
            "config": lambda: self._config_info(
                snapshot.hardware,
                annotation=snapshot.annotation,
                change_version=snapshot.change_version,
                change_tracking=snapshot.change_tracking_enabled,
                extra_config=snapshot.extra_config,
            ),
            "childSnapshot": lambda: [vim.vm.Snapshot(each.moref) for each in self._children(snapshot.moref)],
            "value": list,
            "availableField": list,
        }
        return Node(vim.vm.Snapshot(snapshot.moref), builders)

    def config(self) -> Any:
        """`VirtualMachineConfigInfo`, or None when the .vmx cannot be read."""
        vm = self.vm
        if vm.connection_state in _UNREADABLE:
            return None
        if self._config is None:
            self._config = self._config_info(
                vm.hardware,
                annotation=vm.annotation,
                change_version=vm.change_version,
                change_tracking=vm.change_tracking_enabled,
                extra_config=vm.extra_config,
            )
        return self._config

    def _config_info(
        self,
        hardware: Hardware,
        *,
        annotation: str,
        change_version: str,
        change_tracking: bool,
        extra_config: dict[str, str],
    ) -> Any:
        vm = self.vm
        return vim.vm.ConfigInfo(
            changeVersion=change_version,
            modified=vm.create_time,
            name=escaped(vm.name),
            guestFullName=_guest_name(hardware.guest_id),
            version=hardware.version,
            uuid=vm.bios_uuid,
            createDate=vm.create_time,
            instanceUuid=vm.instance_uuid,
            template=vm.template,
            guestId=hardware.guest_id,
            alternateGuestName="",
            annotation=annotation,
            files=vim.vm.FileInfo(
                vmPathName=vm.vmx_path,
                snapshotDirectory=vm.directory,
                suspendDirectory=vm.directory,
                logDirectory=vm.directory,
            ),
            flags=vim.vm.FlagInfo(enableLogging=True, snapshotDisabled=False, diskUuidEnabled=True),
            defaultPowerOps=vim.vm.DefaultPowerOpInfo(powerOffType="soft", standbyAction="checkpoint"),
            hardware=hardware_info(hardware, self._find_datastore),
            extraConfig=[vim.option.OptionValue(key=key, value=value) for key, value in extra_config.items()],
            changeTrackingEnabled=change_tracking,
            firmware=hardware.firmware,
            migrateEncryption="opportunistic",
        )

    def runtime(self) -> Any:
        """`VirtualMachineRuntimeInfo`."""
        vm = self.vm
        return vim.vm.RuntimeInfo(
            host=vim.HostSystem(vm.host),
            connectionState=vm.connection_state,
            powerState=vm.power_state,
            faultToleranceState="notConfigured",
            toolsInstallerMounted=False,
            numMksConnections=0,
            recordReplayState="inactive",
            onlineStandby=False,
            consolidationNeeded=vm.consolidation_needed,
            paused=False,
            snapshotInBackground=False,
        )

    def summary(self) -> Any:
        """`VirtualMachineSummary`."""
        vm = self.vm
        readable = vm.connection_state not in _UNREADABLE
        config = vim.vm.Summary.ConfigSummary(
            name=escaped(vm.name), template=vm.template, vmPathName=vm.vmx_path
        )
        if readable:
            config.memorySizeMB = vm.hardware.memory_mb
            config.numCpu = vm.hardware.num_cpu
            config.numEthernetCards = len(vm.hardware.nics)
            config.numVirtualDisks = len(vm.hardware.disks)
            config.uuid = vm.bios_uuid
            config.instanceUuid = vm.instance_uuid
            config.guestId = vm.hardware.guest_id
            config.guestFullName = _guest_name(vm.hardware.guest_id)
            config.annotation = vm.annotation
            config.hwVersion = vm.hardware.version
        used_bytes = sum(each.size_bytes for each in vm.layout.files)
        return vim.vm.Summary(
            vm=self.reference,
            runtime=self.runtime(),
            guest=vim.vm.Summary.GuestSummary(
                toolsStatus="toolsNotInstalled", toolsRunningStatus="guestToolsNotRunning"
            ),
            config=config,
            storage=vim.vm.Summary.StorageSummary(
                committed=used_bytes, uncommitted=0, unshared=used_bytes, timestamp=self._projected
            ),
            quickStats=vim.vm.Summary.QuickStats(guestHeartbeatStatus="gray"),
            overallStatus="green",
        )

    def _guest(self) -> Any:
        running = self.vm.power_state == "poweredOn"
        return vim.vm.GuestInfo(
            toolsStatus="toolsNotInstalled",
            toolsRunningStatus="guestToolsNotRunning",
            guestState="running" if running else "notRunning",
        )

    def _layout(self) -> Any:
        layout, kinds = self.vm.layout, vim.vm.FileLayoutEx
        if self.vm.connection_state in _UNREADABLE:
            return None
        return kinds(
            file=[
                kinds.FileInfo(
                    key=each.key,
                    name=each.path,
                    type=each.type,
                    size=each.size_bytes,
                    uniqueSize=each.size_bytes,
                    accessible=True,
                )
                for each in layout.files
            ],
            disk=[_disk_layout(each.disk_key, each.chain) for each in layout.disks],
            snapshot=[
                kinds.SnapshotLayout(
                    key=vim.vm.Snapshot(each.snapshot),
                    dataKey=each.data_key,
                    memoryKey=-1,  # no memory was saved
                    disk=[_disk_layout(disk.disk_key, disk.chain) for disk in each.disks],
                )
                for each in layout.snapshots
            ],
            timestamp=self._projected,
        )

    def _custom_values(self) -> list[Any]:
        kind = vim.CustomFieldsManager.StringValue
        return [kind(key=key, value=value) for key, value in sorted(self.vm.attributes.items())]

    def _datastores(self) -> list[Any]:
        keys = [self.vm.datastore, *(each.datastore for each in self.vm.hardware.disks)]
        found = {moid_of(each): each for each in map(self._find_datastore, keys) if each is not None}
        return list(found.values())

    def _networks(self) -> list[str]:
        return [each.network for each in self.vm.hardware.nics if each.network]

    def _children(self, parent: str | None) -> list[Snapshot]:
        return [each for each in self.vm.snapshots if each.parent == parent]

    def _snapshot_info(self) -> Any:
        """The tree; unset, as in vCenter, when there is no snapshot."""
        if not self.vm.snapshots:
            return None
        below: dict[str | None, list[Any]] = {}
        # Children first, so that each tree node gets its finished children without recursion: a parent's
        # number is always below its children's.
        for each in sorted(self.vm.snapshots, key=lambda snapshot: snapshot.number, reverse=True):
            tree = vim.vm.SnapshotTree(
                snapshot=vim.vm.Snapshot(each.moref),
                vm=self.reference,
                name=escaped(each.name),
                description=each.description,
                id=each.number,
                createTime=each.create_time,
                state=each.power_state,
                quiesced=each.quiesced,
                childSnapshotList=below.pop(each.moref, []),
                replaySupported=False,
            )
            below.setdefault(each.parent, []).insert(0, tree)
        current = self.vm.current_snapshot
        return vim.vm.SnapshotInfo(
            currentSnapshot=vim.vm.Snapshot(current) if current else None, rootSnapshotList=below[None]
        )


def entity_properties(name: str, parent: Any) -> dict[str, Any]:
    """The properties that every `ManagedEntity` has."""
    return {
        "name": lambda: escaped(name),
        "parent": lambda: parent,
        "overallStatus": lambda: "green",
        "configStatus": lambda: "green",
        "alarmActionsEnabled": lambda: True,
        "customValue": list,
        "value": list,
        "availableField": list,
        "tag": list,
        "triggeredAlarmState": list,
        "declaredAlarmState": list,
        "configIssue": list,
        "effectiveRole": lambda: [-1],
        "permission": list,
        "disabledMethod": list,
        "recentTask": list,
    }


def _capability() -> Any:
    flags = {
        each.name: False
        for each in properties_of(vim.vm.Capability)
        if each.type is bool and not each.flags & VmomiSupport.F_OPTIONAL
    }
    return vim.vm.Capability(
        **{
            **flags,
            "snapshotOperationsSupported": True,
            "multipleSnapshotsSupported": True,
            "changeTrackingSupported": True,
        }
    )


def _methods(names: list[str]) -> list[Any]:
    """Method references; a name that the API does not have cannot be told in it."""
    found = []
    for name in names:
        try:
            found.append(VmomiSupport.GuessWsdlMethod(name))
        except KeyError:
            continue
    return found


def _guest_name(guest_id: str) -> str:
    return _GUESTS.get(guest_id, guest_id)


def _disk_layout(key: int, chain: list[list[int]]) -> Any:
    kinds = vim.vm.FileLayoutEx
    return kinds.DiskLayout(key=key, chain=[kinds.DiskUnit(fileKey=files) for files in chain])
