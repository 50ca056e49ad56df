"""Where VMs stand: datacentres with their folders, clusters with hosts and resource pools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from lab.esx.objects import Cluster, Datacenter, Folder, Host, Pool
from lab.esx.spec import ClusterSpec, Site, VmSpec
from lab.esx.world import SiteRecord

PlaceT = TypeVar("PlaceT", Datacenter, Cluster, Host, Pool)


@dataclass(frozen=True)
class Place:
    """Morefs of what a VM stands in."""

    folder: str
    host: str
    pool: str


def datacenters(site: Site) -> list[Datacenter]:
    """All datacentres, the first one with the small numbers of a fresh install."""
    names = [site.datacenter, *(each.name for each in site.more_datacenters)]
    return [
        Datacenter(
            moref=f"datacenter-{2 + base}",
            name=name,
            parent="group-d1",
            vm_folder=f"group-v{3 + base}",
            host_folder=f"group-h{4 + base}",
            datastore_folder=f"group-s{5 + base}",
            network_folder=f"group-n{6 + base}",
        )
        for base, name in zip(range(0, 100 * len(names), 100), names, strict=True)
    ]


def root_folders(datacenter: Datacenter) -> list[Folder]:
    """The four folders that every datacentre has."""
    parent = datacenter.moref
    return [
        Folder(moref=datacenter.vm_folder, name="vm", parent=parent, kind="vm"),
        Folder(moref=datacenter.host_folder, name="host", parent=parent, kind="host"),
        Folder(moref=datacenter.datastore_folder, name="datastore", parent=parent, kind="datastore"),
        Folder(moref=datacenter.network_folder, name="network", parent=parent, kind="network"),
    ]


def clusters(site: Site, made: list[Datacenter]) -> tuple[list[Cluster], list[Host]]:
    """All clusters and their hosts, those of the first datacentre first."""
    first = [ClusterSpec(name=site.cluster, hosts=site.hosts, pools=site.pools), *site.more_clusters]
    wanted = [(spec, made[0]) for spec in first]
    for datacenter, other in zip(made[1:], site.more_datacenters, strict=True):
        wanted += [(spec, datacenter) for spec in other.clusters]
    found: list[Cluster] = []
    hosts: list[Host] = []
    for number, (spec, datacenter) in enumerate(wanted):
        moref, root = f"domain-c{7 + 100 * number}", f"resgroup-{8 + 100 * number}"
        mine = [
            Host(moref=f"host-{10 + len(hosts) + index}", name=name, cluster=moref)
            for index, name in enumerate(spec.hosts)
        ]
        hosts += mine
        found.append(
            Cluster(
                moref=moref,
                name=spec.name,
                parent=datacenter.host_folder,
                resource_pool=root,
                hosts=[host.moref for host in mine],
                pools=_pools(root, spec.pools),
            )
        )
    return found, hosts


def add_folders(folders: list[Folder], root: str, path: str) -> str:
    """Add the VM folders of `path` below `root` that are missing; the moref of the last."""
    parent = root
    for name in (part for part in path.split("/") if part):
        found = next((f for f in folders if (f.parent, f.name) == (parent, name)), None)
        if found is None:
            found = Folder(moref=f"group-v{1000 + len(folders)}", name=name, parent=parent, kind="vm")
            folders.append(found)
        parent = found.moref
    return parent


def place_of(site: SiteRecord, spec: VmSpec, number: int) -> Place:
    """Where a VM stands; VMs that name no host go round the cluster's hosts.

    Raises:
        ValueError: it names something that the site does not have.
    """
    datacenter = _named([site.datacenter, *site.other_datacenters], spec.datacenter, spec.name)
    mine = [each for each in site.clusters if each.parent == datacenter.host_folder]
    cluster = _named(mine, spec.cluster, spec.name)
    hosts = [each for each in site.hosts if each.moref in cluster.hosts]
    host = _named(hosts, spec.host, spec.name) if spec.host else hosts[number % len(hosts)]
    pool = cluster.resource_pool
    for part in (part for part in spec.pool.split("/") if part):
        below = [each for each in cluster.pools if each.parent == pool]
        pool = _named(below, part, spec.name).moref
    return Place(add_folders(site.folders, datacenter.vm_folder, spec.folder), host.moref, pool)


def _pools(root: str, paths: list[str]) -> list[Pool]:
    found: list[Pool] = []
    for path in paths:
        parent = root
        for name in path.split("/"):
            known = next((each for each in found if (each.parent, each.name) == (parent, name)), None)
            if known is None:
                known = Pool(moref=f"{root}{len(found) + 1:02}", name=name, parent=parent)
                found.append(known)
            parent = known.moref
    return found


def _named(items: list[PlaceT], name: str, vm: str) -> PlaceT:
    if not name and items:
        return items[0]
    for each in items:
        if each.name == name:
            return each
    message = f"VM {vm!r} stands in {name!r}, which the site does not have there"
    raise ValueError(message)
