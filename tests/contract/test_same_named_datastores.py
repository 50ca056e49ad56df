"""Goal: in a vCenter with two datacentres whose datastores have one name, each VM is read from and restored to its own.

Everything that a careless look-up could go by is the same: the datastores' name, the filer's address and path as the
hosts know them, the VMs' names and directories. Only the bytes and the datacentres differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from temporalio.testing import ActivityEnvironment

from activities.coordination import JobCoordination, NodeCoordination
from activities.discovery import Discoverer
from activities.disks import open_disk, volumes_of
from activities.peers import Peers
from activities.transport import Transport
from lab.esx.spec import ClusterSpec, DatacenterSpec
from lab.site import BACKUP_PRIVILEGES, DatastoreSpec, DiskSpec, Settings, Site, UserSpec, VmSpec
from safehaul.config.loader import load
from safehaul.errors import AlreadyExistsError, ConfigError, InvalidInputError, NotFoundError
from safehaul.media.repository import Repository
from safehaul.media.store_local import LocalStore
from safehaul.messages.inventory import NasVolume, VmRecord
from safehaul.messages.job import (
    DiscoverInput,
    DistributeInput,
    JobSettings,
    Lease,
    LeaseInput,
    NodeAnswer,
    PrepareInput,
)
from safehaul.messages.plan import Plan
from safehaul.messages.steps import CheckTransportInput, DownloadInput, SnapshotRef, VmRef
from safehaul.nas.definition import match
from safehaul.vsphere import registration, snapshots, vm_disks, vms
from safehaul.vsphere.client import VCenter
from safehaul.vsphere.datastores import choose_volume
from safehaul.vsphere.inventory import all_nas_volumes, discover, volumes_of_vm
from tests.contract.lab_server import LabServer, lab_server
from tests.contract.snapshot_calls import remove_all
from tests.contract.vcenter_server import ADMINISTRATOR, MIB, PASSWORD, USER

NEAR, FAR = "DC-Lab", "DC-Far"
HOME = {NEAR: "gold", FAR: "gold-far"}
"""The directory in which the lab keeps each datacentre's datastore `gold`."""
CONFIG = """
installation_id = "11111111-2222-4333-8444-555555555555"
cache_dir = "{home}/cache"
[catalog]
url = "sqlite:///{home}/catalog.db"
[[vcenters]]
name = "vc"
url = "{url}"
user = "{user}"
password = {{ env = "SAME_NAMES_PASSWORD" }}
thumbprint_sha256 = "{thumbprint}"
{exports}
[[access_nodes]]
name = "n1"
spool_dir = "{home}/spool"
[[media_agents]]
name = "vault"
repository = "file://{home}/repository"
[[vm_groups]]
name = "all"
vcenter = "vc"
media_agent = "vault"
rules = [{{ name = "*" }}]
"""


def _site() -> Site:
    disk = DiskSpec(size_bytes=MIB, content="random")
    return Site(
        more_datacenters=[
            DatacenterSpec(name=FAR, clusters=[ClusterSpec(name="far-a", hosts=["far-1.lab"])])
        ],
        datastores=[
            DatastoreSpec(name="gold", type="NFS", remote_path="/exports/gold"),
            DatastoreSpec(
                name="gold-far", shown_as="gold", datacenter=FAR, type="NFS", remote_path="/exports/gold"
            ),
            DatastoreSpec(name="lead", datacenter=FAR, type="NFS", remote_path="/exports/lead"),
        ],
        vms=[
            VmSpec(name="web", datastore="gold", power_state="poweredOff", disks=[disk]),
            VmSpec(name="web", datastore="gold-far", datacenter=FAR, power_state="poweredOff", disks=[disk]),
        ],
        users=[
            UserSpec(name=USER, password=PASSWORD, privileges=BACKUP_PRIVILEGES),
            UserSpec(name=ADMINISTRATOR, password=PASSWORD, privileges=["*"]),
        ],
        settings=Settings(default_duration_s=0.05, record_frozen=True),
    )


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    with lab_server(tmp_path_factory.mktemp("same names"), _site()) as running:
        yield running


@pytest.fixture(scope="module")
def datastores(lab: LabServer) -> Path:
    """The directory of the hosts' datastores, each by the hosts' own name."""
    return lab.call_log.parent / "esx" / "datastores"


@pytest.fixture
def peers(
    lab: LabServer, datastores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Peers]:
    """An access node that has both exports mounted, as told apart by their datacentres."""
    with _peers(lab, tmp_path, monkeypatch, {name: datastores / HOME[name] for name in (NEAR, FAR)}) as made:
        yield made


@contextmanager
def _peers(
    lab: LabServer, home: Path, monkeypatch: pytest.MonkeyPatch, mounts: dict[str, Path]
) -> Iterator[Peers]:
    monkeypatch.setenv("SAME_NAMES_PASSWORD", PASSWORD)
    exports = "".join(
        f'[[exports]]\nname = "gold-{number}"\nremote_hosts = ["127.0.0.1"]\nremote_path = "/exports/gold"\n'
        f'datacenter = "{name}"\nmounted_at = "{path}"\n'
        for number, (name, path) in enumerate(mounts.items())
    )
    config = home / "safehaul.toml"
    config.write_text(
        CONFIG.format(home=home, url=lab.url, user=USER, thumbprint=lab.thumbprint, exports=exports)
    )
    Repository.init(LocalStore(home / "repository"))
    made = Peers(load(config))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def vcenter(lab: LabServer) -> VCenter:
    return lab.administrator()


def _web(vcenter: VCenter, datacenter: str) -> VmRecord:
    return next(each for each in discover(vcenter).records if each.datacenter == datacenter)


def _gold(vcenter: VCenter, datacenter: str) -> NasVolume:
    return choose_volume(all_nas_volumes(vcenter), "gold", datacenter)


def _ref(record: VmRecord) -> VmRef:
    return VmRef(
        job_id="job",
        vcenter="vc",
        vc_guid=record.vc_guid,
        name=record.name,
        moref=record.moref,
        node="n1",
        media_agent="vault",
    )


def test_the_two_are_the_same_by_every_name(vcenter: VCenter) -> None:
    near, far = _web(vcenter, NEAR), _web(vcenter, FAR)
    assert (near.name, near.vmx_path, near.disks[0].path) == (far.name, far.vmx_path, far.disks[0].path)
    assert near.datastores == far.datastores == ["gold"]
    assert near.datastore_morefs != far.datastore_morefs
    assert near.datastore_refs[0].key != far.datastore_refs[0].key
    places = [
        (each.remote_host, each.remote_path) for each in all_nas_volumes(vcenter) if each.datastore == "gold"
    ]
    assert len(places) == 2
    assert len(set(places)) == 1


@pytest.mark.parametrize("datacenter", [NEAR, FAR])
def test_a_vms_paths_mean_the_datastores_of_its_datacentre(vcenter: VCenter, datacenter: str) -> None:
    record = _web(vcenter, datacenter)
    around = volumes_of_vm(vcenter, record.moref)
    assert {each.datacenter for each in around} == {datacenter}
    assert sorted(each.datastore for each in around) == {NEAR: ["gold"], FAR: ["gold", "lead"]}[datacenter]
    assert next(each for each in around if each.datastore == "gold").moref == record.datastore_morefs["gold"]


@pytest.mark.parametrize("datacenter", [NEAR, FAR])
def test_each_vm_is_read_from_its_own_datastore(
    lab: LabServer, vcenter: VCenter, peers: Peers, datastores: Path, datacenter: str
) -> None:
    """Goal: steps 8, 9 and 11 give the bytes that the hosts froze of this VM, not those of its namesake."""
    record = _web(vcenter, datacenter)
    vm = _ref(record)
    taken = snapshots.create(vcenter, record.moref, "safehaul same", "x", quiesce=False)
    snapshot = SnapshotRef(moref=taken.moref, name=taken.name, description="", created=taken.created)
    environment, transport = ActivityEnvironment(), Transport(peers)
    report = environment.run(transport.check_transport, CheckTransportInput(vm=vm, snapshot=snapshot))
    assert [disk.transport for disk in report.disks] == ["nas"], report
    disk = report.readable[0].disk
    digest = hashlib.sha256()
    with open_disk(peers, volumes_of(peers, vm), disk) as source:
        buffer = bytearray(disk.capacity_bytes)
        source.chain.read_into(0, buffer)
        digest.update(buffer)
    own = lab.hosts.frozen_digest(taken.moref, disk.key).sha256
    assert digest.hexdigest() == own
    home = datastores / HOME[datacenter] / "web"
    files = environment.run(transport.download_files, DownloadInput(vm=vm, snapshot=snapshot))
    spooled = peers.spool("n1").directory(vm)
    vmx = next(file for file in files.files if file.name == "web.vmx")
    assert (spooled / vmx.spool_name).read_bytes() == (home / "web.vmx").read_bytes()
    listed = vms.vm_state(vcenter, record.moref, list_directories=True).listed
    assert {each.path.rpartition("/")[2] for each in listed} == {path.name for path in home.iterdir()}
    remove_all(vcenter, record.moref)


def _settings() -> JobSettings:
    return JobSettings(
        vm_group="all",
        vcenter="vc",
        access_nodes=["n1"],
        media_agent="vault",
        installation_id="i",
        namespace_id="n",
    )


def _planned(peers: Peers, *, recorded_by_an_earlier_version: bool = False) -> tuple[NodeAnswer, Plan]:
    """Steps 2 to 5 on one node, which is the coordinator too."""
    run, settings = ActivityEnvironment().run, _settings()
    coordination, node = JobCoordination(peers, "n1"), NodeCoordination(peers, "n1", streams=1)
    discovery = run(Discoverer(peers).discover, DiscoverInput(job_id="job", settings=settings))
    if recorded_by_an_earlier_version:
        discovery = discovery.model_copy(update={"datastore_refs": []})
    lease: Lease = run(
        coordination.take_lease, LeaseInput(job_id="job", coordinator="n1", holder="h", settings=settings)
    )
    answer = run(
        node.prepare_node,
        PrepareInput(
            job_id="job",
            node="n1",
            settings=settings,
            datastores=discovery.datastores,
            datastore_refs=discovery.datastore_refs,
            lease=lease,
        ),
    )
    plan = run(
        coordination.distribute,
        DistributeInput(job_id="job", lease=lease, settings=settings, discovery=discovery, nodes=[answer]),
    )
    return answer, plan


def test_a_node_that_reaches_one_of_the_two_gets_the_vm_of_that_one(
    lab: LabServer,
    vcenter: VCenter,
    datastores: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    near, far = _web(vcenter, NEAR), _web(vcenter, FAR)
    with _peers(lab, tmp_path, monkeypatch, {NEAR: datastores / "gold"}) as peers:
        answer, plan = _planned(peers)
    assert answer.reachable_datastores == [near.datastore_refs[0].key]
    assert list(answer.unreachable) == [far.datastore_refs[0].key]
    assert answer.may_return == []  # nobody has defined that export: waiting does not help
    assert [queue.vm_count for queue in plan.queues] == [1]
    assert [vm.vc_guid for vm in plan.unplaceable] == [far.vc_guid]
    reason = plan.unplaceable[0].reason
    assert f"no access node reaches {far.datastore_refs[0].key}" in reason
    assert "no export is defined" in reason


def test_a_node_that_reaches_both_gets_both(peers: Peers) -> None:
    answer, plan = _planned(peers)
    assert len(answer.reachable_datastores) == 2
    assert [queue.vm_count for queue in plan.queues] == [2]
    assert plan.unplaceable == []


def test_a_name_without_its_datacentre_is_refused_with_both_and_the_key(
    vcenter: VCenter, peers: Peers
) -> None:
    """Goal: what earlier versions recorded, or a person types, is not resolved by chance."""
    both = r"'DC-Far' \(datacenter-\d+\), 'DC-Lab' \(datacenter-\d+\).*`datacenter`"
    with pytest.raises(InvalidInputError, match=both):
        choose_volume(all_nas_volumes(vcenter), "gold")
    with pytest.raises(InvalidInputError, match=both):
        registration.find_place(vcenter, "gold")
    answer, _ = _planned(peers, recorded_by_an_earlier_version=True)
    assert list(answer.unreachable) == ["gold"]
    assert "2 datacentres have a datastore 'gold'" in answer.unreachable["gold"]
    with pytest.raises(
        NotFoundError, match="no datastore 'lead' in datacentre 'DC-Lab'; there is one in 'DC-Far'"
    ):
        choose_volume(all_nas_volumes(vcenter), "lead", NEAR)
    far = _gold(vcenter, FAR)
    assert _gold(vcenter, far.datacenter_moref) == far


def test_the_same_filer_address_in_two_datacentres_is_two_exports(peers: Peers, vcenter: VCenter) -> None:
    definitions = peers.settings.exports
    assert [match(_gold(vcenter, name), definitions).name for name in (NEAR, FAR)] == ["gold-0", "gold-1"]
    either = [each.model_copy(update={"datacenter": ""}) for each in definitions]
    with pytest.raises(
        ConfigError, match=r"fits several exports: 'gold-0', 'gold-1'.*give each its `datacenter`"
    ):
        match(_gold(vcenter, FAR), either)
    with pytest.raises(ConfigError, match="no export is defined"):
        match(_gold(vcenter, FAR), [each for each in definitions if each.datacenter == NEAR])


def test_a_vm_is_registered_in_the_datacentre_of_its_files_and_found_only_there(
    lab: LabServer, vcenter: VCenter, datastores: Path
) -> None:
    """Goal: a restore never takes the namesake in the other datacentre for its own VM."""
    near, far = registration.find_place(vcenter, "gold", datacenter=NEAR), _web(vcenter, FAR)
    place = registration.find_place(vcenter, "gold", datacenter=FAR)
    assert (place.datacenter, near.datacenter) == (FAR, NEAR)
    path = far.vmx_path
    assert registration.find_registered(vcenter, path, place.datacenter_moref) == (far.moref, "web")
    assert registration.find_registered(vcenter, path, near.datacenter_moref) == (
        _web(vcenter, NEAR).moref,
        "web",
    )
    registration.unregister(vcenter, far.moref)
    assert registration.find_registered(vcenter, path, place.datacenter_moref) is None
    with pytest.raises(AlreadyExistsError):
        registration.refuse_existing(vcenter, near, path, "another name")
    moref = registration.register(vcenter, place, path, "web")
    state = lab.hosts.state()
    assert next(vm for vm in state.vms if vm.moref == moref).vmx_path == "[gold-far] web/web.vmx"
    assert _web(vcenter, FAR).moref == moref
    assert _web(vcenter, FAR).vc_guid == far.vc_guid


def test_a_file_is_in_use_only_by_vms_of_its_own_datastore(vcenter: VCenter) -> None:
    path = _web(vcenter, NEAR).disks[0].path
    for datacenter in (NEAR, FAR):
        user = vm_disks.named_by_vms(vcenter, _gold(vcenter, datacenter).moref, [path])
        assert _web(vcenter, datacenter).moref in user
    assert vm_disks.named_by_vms(vcenter, choose_volume(all_nas_volumes(vcenter), "lead").moref, [path]) == ""
