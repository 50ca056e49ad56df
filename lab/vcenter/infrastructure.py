"""What VMs stand on: hosts, cluster, resource pool, datastores, networks; projected from the hosts' state."""

from __future__ import annotations

import uuid
from typing import Any

from pyVmomi import vim

from lab.esx.api import Cluster, Datastore, Host, State
from lab.esx.objects import Pool
from lab.vcenter.cards import network_reference
from lab.vcenter.nodes import Node
from lab.vcenter.vms import entity_properties

_MAX_FILE_BYTES = 64 << 40
_HOST_MEMORY_BYTES = 64 << 30
ESX_ABOUT = {
    "name": "VMware ESXi",
    "fullName": "VMware ESXi 8.0.3 (safehaul lab)",
    "vendor": "VMware, Inc.",
    "version": "8.0.3",
    "build": "24022510",
    "osType": "vmnix-x86",
    "productLineId": "embeddedEsx",
    "apiType": "HostAgent",
    "apiVersion": "8.0.3.0",
}


def host_node(host: Host, state: State, vms: list[Any]) -> Node:
    """A `HostSystem` that mounts every datastore of its datacentre."""
    reference = vim.HostSystem(host.moref)
    datastores = state.datastores_in(state.datacenter_of(host.cluster))
    builders = {
        **entity_properties(host.name, vim.ClusterComputeResource(host.cluster)),
        "summary": lambda: _host_summary(host),
        "runtime": lambda: _host_runtime(host),
        "config": lambda: vim.host.ConfigInfo(
            host=reference,
            product=vim.AboutInfo(**ESX_ABOUT),
            fileSystemVolume=vim.host.FileSystemVolumeInfo(
                volumeTypeList=["VMFS", "NFS", "NFS41"], mountInfo=[_mount(each) for each in datastores]
            ),
        ),
        "vm": lambda: vms,
        "datastore": lambda: [vim.Datastore(each.moref) for each in datastores],
        "network": lambda: [network_reference(each.moref) for each in state.networks],
        "datastoreBrowser": lambda: vim.host.DatastoreBrowser(f"hostDatastoreBrowser-{host.moref}"),
    }
    return Node(reference, builders)


def cluster_node(cluster: Cluster, state: State) -> Node:
    """A `ClusterComputeResource`."""
    hosts = [each for each in state.hosts if each.cluster == cluster.moref]
    datastores = state.datastores_in(state.datacenter_of(cluster.moref))
    live = [each for each in hosts if each.connection_state == "connected" and not each.maintenance]
    builders = {
        **entity_properties(cluster.name, vim.Folder(cluster.parent)),
        "host": lambda: [vim.HostSystem(each.moref) for each in hosts],
        "resourcePool": lambda: vim.ResourcePool(cluster.resource_pool),
        "datastore": lambda: [vim.Datastore(each.moref) for each in datastores],
        "network": lambda: [network_reference(each.moref) for each in state.networks],
        "summary": lambda: vim.ClusterComputeResource.Summary(
            totalCpu=16000 * len(hosts),
            totalMemory=_HOST_MEMORY_BYTES * len(hosts),
            numCpuCores=8 * len(hosts),
            numCpuThreads=16 * len(hosts),
            effectiveCpu=16000 * len(live),
            effectiveMemory=(_HOST_MEMORY_BYTES >> 20) * len(live),
            numHosts=len(hosts),
            numEffectiveHosts=len(live),
            overallStatus="green",
            currentFailoverLevel=0,
            numVmotions=0,
        ),
    }
    return Node(vim.ClusterComputeResource(cluster.moref), builders)


def pool_node(cluster: Cluster, pool: Pool | None, vms: list[Any]) -> Node:
    """A resource pool of the cluster; None is its root pool."""
    owner = vim.ClusterComputeResource(cluster.moref)
    moref = pool.moref if pool else cluster.resource_pool
    below = [vim.ResourcePool(each.moref) for each in cluster.pools if each.parent == moref]
    name, parent = (pool.name, vim.ResourcePool(pool.parent)) if pool else ("Resources", owner)
    builders = {
        **entity_properties(name, parent),
        "owner": lambda: owner,
        "resourcePool": lambda: below,
        "vm": lambda: vms,
    }
    return Node(vim.ResourcePool(moref), builders)


def datastore_node(datastore: Datastore, state: State, vms: list[Any]) -> Node:
    """A `Datastore`, NAS or VMFS."""
    reference = vim.Datastore(datastore.moref)
    builders = {
        **entity_properties(
            datastore.shown, vim.Folder(datastore.folder or state.datacenter.datastore_folder)
        ),
        "info": lambda: _datastore_info(datastore),
        "summary": lambda: vim.Datastore.Summary(
            datastore=reference,
            name=datastore.shown,
            url=_url(datastore),
            capacity=datastore.capacity_bytes,
            freeSpace=max(0, datastore.free_bytes),
            uncommitted=0,
            accessible=datastore.accessible,
            multipleHostAccess=datastore.type != "VMFS",
            type=datastore.type,
            maintenanceMode="inMaintenance" if datastore.maintenance else "normal",
        ),
        "host": lambda: [
            vim.Datastore.HostMount(key=vim.HostSystem(each.moref), mountInfo=_mount_info(datastore))
            for each in state.hosts
            if datastore in state.datastores_in(state.datacenter_of(each.cluster))
        ],
        "vm": lambda: vms,
        "browser": lambda: vim.host.DatastoreBrowser(f"datastoreBrowser-{datastore.moref}"),
        "capability": lambda: vim.Datastore.Capability(
            directoryHierarchySupported=True,
            rawDiskMappingsSupported=datastore.type == "VMFS",
            perFileThinProvisioningSupported=True,
            storageIORMSupported=False,
            nativeSnapshotSupported=False,
            topLevelDirectoryCreateSupported=True,
            vmfsSparseSupported=True,
        ),
    }
    return Node(reference, builders)


def nas_volume(datastore: Datastore) -> Any:
    """`HostNasVolume`: what the host mounted. NFS 4.1 may name several addresses of one server."""
    names = datastore.remote_hosts or ([datastore.remote_host] if datastore.type == "NFS41" else [])
    return vim.host.NasVolume(
        type=datastore.type,
        name=datastore.shown,
        capacity=datastore.capacity_bytes,
        remoteHost=datastore.remote_host,
        remotePath=datastore.remote_path,
        remoteHostNames=names,
        securityType=datastore.security_type if datastore.type == "NFS41" else None,
        protocolEndpoint=False,
    )


def _vmfs_volume(datastore: Datastore) -> Any:
    return vim.host.VmfsVolume(
        type="VMFS",
        name=datastore.shown,
        capacity=datastore.capacity_bytes,
        blockSizeMb=1,
        blockSize=1024,
        maxBlocks=datastore.capacity_bytes >> 20,
        majorVersion=6,
        version="6.82",
        uuid=datastore.uuid,
        extent=[vim.host.ScsiDisk.Partition(diskName=f"naa.{datastore.moref}", partition=1)],
        vmfsUpgradable=False,
        local=True,
        ssd=True,
    )


def _mount(datastore: Datastore) -> Any:
    volume = _vmfs_volume(datastore) if datastore.type == "VMFS" else nas_volume(datastore)
    return vim.host.FileSystemMountInfo(mountInfo=_mount_info(datastore), volume=volume)


def _mount_info(datastore: Datastore) -> Any:
    return vim.host.MountInfo(
        path=f"/vmfs/volumes/{datastore.uuid}",
        accessMode="readWrite",
        mounted=True,
        accessible=datastore.accessible,
        inaccessibleReason=None if datastore.accessible else "AllPathsDown_Start",
    )


def _url(datastore: Datastore) -> str:
    return f"ds:///vmfs/volumes/{datastore.uuid}/"


def _datastore_info(datastore: Datastore) -> Any:
    common: dict[str, Any] = {
        "name": datastore.shown,
        "url": _url(datastore),
        "freeSpace": max(0, datastore.free_bytes),
        "maxFileSize": _MAX_FILE_BYTES,
        "maxVirtualDiskCapacity": _MAX_FILE_BYTES,
        "maxMemoryFileSize": _MAX_FILE_BYTES,
    }
    if datastore.type == "VMFS":
        return vim.host.VmfsDatastoreInfo(
            **common,
            vmfs=_vmfs_volume(datastore),
            maxPhysicalRDMFileSize=_MAX_FILE_BYTES,
            maxVirtualRDMFileSize=_MAX_FILE_BYTES,
        )
    return vim.host.NasDatastoreInfo(**common, nas=nas_volume(datastore))


def _host_runtime(host: Host) -> Any:
    return vim.host.RuntimeInfo(
        connectionState=host.connection_state,
        powerState="poweredOn" if host.connection_state == "connected" else "unknown",
        inMaintenanceMode=host.maintenance,
    )


def _host_summary(host: Host) -> Any:
    return vim.host.Summary(
        host=vim.HostSystem(host.moref),
        hardware=vim.host.Summary.HardwareSummary(
            vendor="safehaul",
            model="lab",
            uuid=str(uuid.uuid5(uuid.NAMESPACE_DNS, host.name)),
            memorySize=_HOST_MEMORY_BYTES,
            cpuModel="simulated",
            cpuMhz=2000,
            numCpuPkgs=1,
            numCpuCores=8,
            numCpuThreads=16,
            numNics=2,
            numHBAs=1,
        ),
        runtime=_host_runtime(host),
        config=vim.host.Summary.ConfigSummary(
            name=host.name,
            port=443,
            product=vim.AboutInfo(**ESX_ABOUT),
            vmotionEnabled=True,
            faultToleranceEnabled=False,
        ),
        quickStats=vim.host.Summary.QuickStats(),
        overallStatus="green" if host.connection_state == "connected" else "red",
        rebootRequired=False,
    )
