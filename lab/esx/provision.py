"""Build a data centre on disk from its description: inventory, VM directories, disks, users' snapshots."""

from __future__ import annotations

import random
import uuid
import zlib
from pathlib import Path

from lab.esx.api import Datastore, Folder, Network
from lab.esx.disk_files import DiskMaker
from lab.esx.home import make_home
from lab.esx.hosts import hash_password
from lab.esx.labels import attribute_values, labels, tag_ids
from lab.esx.objects import SWITCH_UUID, Controller, Hardware, Nic, Vm
from lab.esx.paths import join
from lab.esx.places import add_folders, clusters, datacenters, place_of, root_folders
from lab.esx.runtime import VmRuntime
from lab.esx.snapshots import refresh_home, take_snapshot
from lab.esx.spec import DatastoreSpec, Site, VmSpec
from lab.esx.world import SiteRecord, UserRecord, World, now

_UNSAFE_IN_DIRECTORY = str.maketrans({"/": "_", "\\": "_", "\0": "_", "[": "(", "]": ")"})


def provision(site: Site, state_dir: Path) -> None:
    """Make the lab in `state_dir`. Errors: FileExistsError when there is one, ValueError for a bad
    description.
    """
    _check(site)
    state_dir.mkdir(parents=True, exist_ok=True)
    for datastore in site.datastores:
        (state_dir / "datastores" / datastore.name).mkdir(parents=True)
    record = _inventory(site, state_dir)
    world = World(state_dir, record)
    with world.store.transaction():
        for spec in site.vms:
            _make_vm(world, site, spec)
    world.store.close()


def _check(site: Site) -> None:
    homes = {"", site.datacenter, *(each.name for each in site.more_datacenters)}
    placed: list[DatastoreSpec | VmSpec] = [*site.datastores, *site.vms]
    for item in placed:
        if item.datacenter not in homes:
            message = f"{item.name!r} is in datacentre {item.datacenter!r}, which the site does not have"
            raise ValueError(message)
    shown = [(each.datacenter or site.datacenter, each.shown_as or each.name) for each in site.datastores]
    if len(set(shown)) != len(shown):
        message = "two datastores of one datacentre have the same name"
        raise ValueError(message)
    names = {datastore.name for datastore in site.datastores}
    for vm in site.vms:
        unknown = {vm.datastore, *(disk.datastore or vm.datastore for disk in vm.disks)} - names
        if unknown:
            message = f"VM {vm.name!r} is on datastores that the site does not have: {sorted(unknown)}"
            raise ValueError(message)
    places = [(vm.datacenter or site.datacenter, vm.folder, vm.name) for vm in site.vms]
    if len(set(places)) != len(places):
        message = "two VMs of one folder have the same name"
        raise ValueError(message)


def _inventory(site: Site, state_dir: Path) -> SiteRecord:
    """Everything but the VMs; morefs are small fixed numbers, as after a fresh install."""
    first, *others = datacenters(site)
    folders = [
        Folder(moref="group-d1", name="Datacenters", parent=None, kind="datacenter"),
        *(folder for each in (first, *others) for folder in root_folders(each)),
    ]
    for path in site.folders:
        add_folders(folders, first.vm_folder, path)
    for spec, made in zip(site.more_datacenters, others, strict=True):
        for path in spec.folders:
            add_folders(folders, made.vm_folder, path)
    homes = {each.name: each for each in (first, *others)}
    for vm in site.vms:
        # Now, since the record is on disk before the VMs are made.
        add_folders(folders, homes[vm.datacenter or first.name].vm_folder, vm.folder)
    made_clusters, hosts = clusters(site, [first, *others])
    return SiteRecord(
        name=site.name,
        datacenter=first,
        other_datacenters=others,
        labels=labels(site),
        clusters=made_clusters,
        hosts=hosts,
        networks=[
            *(Network(moref=f"network-{40 + n}", name=name) for n, name in enumerate(site.networks)),
            *(
                Network(moref=f"dvportgroup-{50 + n}", name=name, switch=SWITCH_UUID)
                for n, name in enumerate(site.distributed_networks)
            ),
        ],
        folders=folders,
        datastores=[
            _datastore(
                spec,
                f"datastore-{60 + number}",
                state_dir,
                homes[spec.datacenter or first.name].datastore_folder,
            )
            for number, spec in enumerate(site.datastores)
        ],
        users=[
            UserRecord(
                name=user.name,
                privileges=user.privileges,
                password_hash=hash_password(user.name, user.password),
            )
            for user in site.users
        ],
        settings=site.settings,
    )


def _datastore(spec: DatastoreSpec, moref: str, state_dir: Path, folder: str) -> Datastore:
    nas = spec.type != "VMFS"
    return Datastore(
        moref=moref,
        name=spec.name,
        folder=folder,
        shown_as=spec.shown_as,
        type=spec.type,
        remote_host=spec.remote_host if nas else "",
        remote_hosts=[spec.remote_host] if nas else [],
        remote_path=spec.remote_path if nas else "",
        security_type=spec.security_type,
        uuid=str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{spec.name}.datastore.lab")),
        directory=str((state_dir / "datastores" / spec.name).resolve()),
        capacity_bytes=spec.capacity_bytes,
        free_bytes=spec.capacity_bytes,
    )


def _make_vm(world: World, site: Site, spec: VmSpec) -> None:
    seed = zlib.crc32(f"{site.name}/{spec.datacenter}{spec.folder}/{spec.name}".encode())
    source = random.Random(seed)
    moref = world.next_moref("vm")
    directory = _free_directory(world, spec)
    vmx_path = join(spec.datastore, directory, f"{directory}.vmx")
    number = len(world.vms)
    place = place_of(world.site, spec, number)
    vm = Vm(
        moref=moref,
        name=spec.name,
        parent=place.folder,
        host=place.host,
        resource_pool=place.pool,
        datastore=world.datastore(spec.datastore).moref,
        directory=join(spec.datastore, directory) + "/",
        vmx_path=vmx_path,
        bios_uuid=str(uuid.UUID(int=source.getrandbits(128), version=4)),
        instance_uuid=spec.instance_uuid or str(uuid.UUID(int=source.getrandbits(128), version=4)),
        power_state=spec.power_state,
        connection_state=spec.connection_state,
        template=spec.template,
        tags=tag_ids(world.site.labels, spec.tags),
        attributes=attribute_values(world.site.labels, spec.attributes),
        annotation=spec.annotation,
        change_tracking_enabled=spec.change_tracking,
        change_version=now().isoformat(),
        extra_config=dict(spec.extra_config),
        disabled_methods=list(spec.disabled_methods),
        guest_rate=spec.guest_rate,
        guest_seed=seed,
        create_time=now(),
        hardware=Hardware(
            version=spec.hardware_version,
            guest_id=spec.guest_id,
            controllers=[
                Controller(key=1000 + bus, bus_number=bus, bus_sharing=spec.bus_sharing)
                for bus in sorted({0, *(disk.controller for disk in spec.disks)})
            ],
            nics=[
                Nic(
                    key=4000,
                    label="Network adapter 1",
                    network=world.site.networks[0].moref,
                    network_name=world.site.networks[0].name,
                    mac_address=f"00:50:56:{number >> 8 & 0x3F:02x}:{number & 0xFF:02x}:01",
                )
            ],
        ),
    )
    world.local(vm.directory).mkdir()
    DiskMaker(world, vm, source).make(spec.disks)
    make_home(world, vm)
    world.put_vm(vm)
    _play_past(world, VmRuntime(world, moref), spec)


def _free_directory(world: World, spec: VmSpec) -> str:
    """The VM's directory: its name, made safe; with `_1` … when that is taken (as ESXi does)."""
    wanted = (spec.directory or spec.name).translate(_UNSAFE_IN_DIRECTORY).strip() or "vm"
    # Below the 255 bytes of a file name, with room for "-000001-delta.vmdk".
    wanted = wanted.encode()[:200].decode("utf-8", "ignore")
    if wanted.startswith("."):
        wanted = f"_{wanted}"
    name = wanted
    number = 0
    while world.local(join(spec.datastore, name)).exists():
        number += 1
        name = f"{wanted}_{number}"
    return name


def _play_past(world: World, runtime: VmRuntime, spec: VmSpec) -> None:
    """What happened before the story begins: the guest wrote, users took snapshots."""
    refresh_home(world, runtime, "vmx| created")
    if runtime.vm.guest_disks and not spec.template:
        for _ in range(spec.writes_before):
            runtime.write_next()
    for wanted in spec.snapshots:
        moref = world.next_moref("snapshot")
        take_snapshot(world, runtime, moref, wanted.name, wanted.description)
        if runtime.vm.guest_disks:
            for _ in range(wanted.writes_after):
                runtime.write_next()
    runtime.stop_guest()
