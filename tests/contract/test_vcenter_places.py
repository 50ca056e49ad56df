"""Goal: discovery tells where a VM stands, its custom attributes and its tags, and asks no more than rules need.

Tags come over REST: another session beside the SOAP one, with the same trust and the same single try at a password.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from lab.esx.spec import ClusterSpec, DatacenterSpec
from lab.site import BACKUP_PRIVILEGES, DatastoreSpec, DiskSpec, Settings, Site, UserSpec, VmSpec
from lab.vcenter.rest import MAX_OBJECTS
from safehaul.config.models import VmGroup
from safehaul.errors import (
    ConfigError,
    LoginRefusedError,
    NotFoundError,
    PermissionRefusedError,
    UnsupportedError,
)
from safehaul.groups import details_of, select
from safehaul.messages.inventory import InventoryDetail, UnidentifiedReason, VmRecord, VmTag
from safehaul.vsphere.client import VCenter
from safehaul.vsphere.inventory import Inventory, discover
from safehaul.vsphere.tags import OBJECTS_A_CALL, tags_of
from tests.contract.lab_server import LabServer
from tests.contract.vcenter_server import MIB, PASSWORD, USER

EVERYTHING = tuple(InventoryDetail)
CROWD = OBJECTS_A_CALL + 20
TWIN = "50000000-0000-4000-8000-000000000001"


def _site() -> Site:
    disk = DiskSpec(size_bytes=MIB, content="zero")
    return Site(
        hosts=["esx-1.lab", "esx-2.lab"],
        pools=["Gold/Web", "Silver"],
        more_clusters=[ClusterSpec(name="cluster-b", hosts=["esx-3.lab"])],
        more_datacenters=[
            DatacenterSpec(name="DC-Far", clusters=[ClusterSpec(name="far-a", hosts=["far-1.lab"], pools=["Gold"])])
        ],
        datastores=[
            DatastoreSpec(name="gold", type="NFS", remote_path="/exports/gold"),
            DatastoreSpec(name="far-gold", type="NFS", remote_path="/exports/far", datacenter="DC-Far"),
        ],
        attributes=["Unused"],
        tags=["Backup/never"],
        vms=[
            VmSpec(
                name="web", folder="prod/web", datastore="gold", pool="Gold/Web", host="esx-2.lab", disks=[disk],
                tags=["Backup/gold", "Tier/a/b", "Büro/gold"], attributes={"Owner": "team-web", "Empty": ""},
                annotation="backup: yes",
            ),
            VmSpec(
                name="sql", datastore="gold", cluster="cluster-b", tags=["Backup/silver"],
                guest_id="windows2019srv_64Guest",
            ),
            VmSpec(
                name="web", folder="prod/web", datacenter="DC-Far", datastore="far-gold", pool="Gold",
                attributes={"Owner": "team-far"}, hardware_version="vmx-11",
            ),
            VmSpec(name="golden", datastore="gold", template=True, power_state="poweredOff", tags=["Backup/gold"]),
            VmSpec(name="twin", datastore="gold", instance_uuid=TWIN, tags=["Backup/gold"]),
            VmSpec(name="other twin", datastore="gold", instance_uuid=TWIN),
            VmSpec(name="lost", folder="prod", datastore="gold", connection_state="inaccessible", tags=["Backup/gold"]),
            *(VmSpec(name=f"crowd-{number:03}", folder="crowd", datastore="gold") for number in range(CROWD)),
        ],
        users=[
            UserSpec(name=USER, password=PASSWORD, privileges=BACKUP_PRIVILEGES),
            UserSpec(name="blind", password=PASSWORD, privileges=["System.View", "System.Anonymous"]),
        ],
        settings=Settings(default_duration_s=0.05),
    )  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    server = LabServer(tmp_path_factory.mktemp("places"), _site())
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def inventory(lab: LabServer) -> Inventory:
    return discover(lab.connect(), details=EVERYTHING)


def _vm(inventory: Inventory, name: str, datacenter: str = "DC-Lab") -> VmRecord:
    return next(each for each in inventory.records if (each.name, each.datacenter) == (name, datacenter))


def _rest_calls(lab: LabServer) -> dict[str, int]:
    return {name: count for name, count in lab.admin.call_counts().items() if name.startswith("REST")}


def _called(lab: LabServer, before: dict[str, int]) -> dict[str, int]:
    return {
        name: count - before.get(name, 0)
        for name, count in _rest_calls(lab).items()
        if count != before.get(name)
    }


def test_a_vm_tells_its_datacentre_cluster_host_and_pool(inventory: Inventory) -> None:
    web, sql, far = _vm(inventory, "web"), _vm(inventory, "sql"), _vm(inventory, "web", "DC-Far")
    assert (web.cluster, web.host, web.resource_pool, web.folder) == (
        "cluster-a",
        "esx-2.lab",
        "Gold/Web",
        "prod/web",
    )
    assert (sql.cluster, sql.host, sql.resource_pool) == ("cluster-b", "esx-3.lab", "")
    assert (far.cluster, far.host, far.resource_pool, far.folder) == (
        "far-a",
        "far-1.lab",
        "Gold",
        "prod/web",
    )
    assert (far.datastores, far.hardware_version) == (["far-gold"], "vmx-11")
    assert _vm(inventory, "golden").resource_pool == ""


def test_custom_attributes_come_by_name_without_empty_ones(inventory: Inventory) -> None:
    assert _vm(inventory, "web").attributes == {"Owner": "team-web"}
    assert _vm(inventory, "web", "DC-Far").attributes == {"Owner": "team-far"}
    assert _vm(inventory, "sql").attributes == {}


def test_tags_come_with_their_category(inventory: Inventory) -> None:
    assert _vm(inventory, "web").tags == [
        VmTag(category="Backup", name="gold"),
        VmTag(category="Büro", name="gold"),
        VmTag(category="Tier", name="a/b"),
    ]
    assert _vm(inventory, "sql").tags == [VmTag(category="Backup", name="silver")]
    assert _vm(inventory, "crowd-000").tags == []


def test_vms_that_cannot_be_identified_come_with_what_is_known_of_them(inventory: Inventory) -> None:
    by_name = {each.name: each for each in inventory.unidentified}
    assert set(by_name) == {"lost", "twin", "other twin"}
    lost, twin = by_name["lost"].record, by_name["twin"].record
    assert lost is not None
    assert (lost.vc_guid, lost.folder, lost.cluster) == ("", "prod", "cluster-a")
    assert twin is not None
    assert twin.vc_guid == by_name["twin"].vc_guid != ""
    assert by_name["twin"].kind is UnidentifiedReason.DUPLICATE
    assert [tag.name for tag in lost.tags] == [tag.name for tag in twin.tags] == ["gold"]


@pytest.mark.parametrize(
    ("rules", "names"),
    [
        ([{"tag": "gold", "category": "Backup"}], ["web", "golden", "lost", "twin"]),
        ([{"attribute": "Owner", "value": "team-*"}], ["web", "web"]),
        ([{"datacenter": "DC-Far"}], ["web"]),
        ([{"cluster": "cluster-b"}, {"resource_pool": "Gold"}], ["web", "web", "sql"]),
        ([{"host": "esx-2.lab"}, {"all": [{"tag": "*"}, {"not": {"tag": "gold"}}]}], None),
        ([{"guest_os": "*windows*", "ignore_case": True}], ["sql"]),
        ([{"annotation": "backup: yes"}], ["web"]),
        ([{"hardware_version": "<13"}], ["web"]),
        ([{"template": True}], ["golden"]),
    ],
)
def test_a_group_selects_by_what_vcenter_says(
    lab: LabServer, rules: list[object], names: list[str] | None
) -> None:
    group = VmGroup.model_validate({"name": "x", "vcenter": "lab", "media_agent": "m", "rules": rules})
    found = discover(lab.connect(), details=details_of(group))
    selection = select(found.records, group, found.unidentified)
    selected = [
        *(item.record for item in selection.included),
        *(item.record for item in selection.refused),
    ]
    assert selection.idle_rules == ()
    if names is None:
        assert {record.name for record in selected if record.host != "esx-2.lab"} == {"sql"}
    else:
        assert sorted(record.name for record in selected) == sorted(names)


def test_rest_is_asked_only_for_tags_in_parts_and_each_name_once(lab: LabServer) -> None:
    vcenter = lab.connect()
    before = _rest_calls(lab)
    plain = discover(vcenter, details=(InventoryDetail.ATTRIBUTES,))
    assert _called(lab, before) == {}
    assert all(each.tags == [] for each in plain.records)
    beats: list[None] = []
    discover(vcenter, details=EVERYTHING, heartbeat=lambda: beats.append(None))
    discover(vcenter, details=EVERYTHING)
    assert _called(lab, before) == {
        "REST login": 1,
        # 127 VMs; 4 tags in 3 categories are in use, one more exists.
        "REST tag-association list-attached-tags-on-objects": 4,
        "REST tag get": 8,
        "REST category get": 6,
    }
    assert len(beats) >= 6
    sessions = lab.admin.session_count()
    vcenter.close()
    assert lab.admin.session_count() == sessions - 2
    assert _called(lab, before)["REST logout"] == 1


def test_a_lost_session_is_opened_again_in_the_middle(lab: LabServer, inventory: Inventory) -> None:
    vcenter = lab.connect()
    rest, morefs = vcenter.rest(), [each.moref for each in inventory.records]
    before = _rest_calls(lab)
    whole = tags_of(rest, morefs)
    lab.admin.expire_sessions()
    assert tags_of(rest, morefs) == whole
    assert _called(lab, before)["REST login"] == 2


def test_a_wrong_password_is_tried_once_at_each_door_and_not_at_the_other(lab: LabServer) -> None:
    wrong = lab.connect(password="wrong")
    before, logins = _rest_calls(lab), lab.admin.call_counts().get("Login", 0)
    with pytest.raises(LoginRefusedError):
        discover(wrong, details=EVERYTHING)
    for _ in range(3):
        with pytest.raises(LoginRefusedError):
            wrong.rest()
    assert _called(lab, before) == {}
    assert lab.admin.call_counts()["Login"] == logins + 1
    # Only the REST endpoint refuses: it remembers that for itself.
    only_rest = lab.connect(password="wrong too").rest()
    for _ in range(3):
        with pytest.raises(LoginRefusedError, match="REST endpoint, which tags need") as failure:
            only_rest.get("/api/cis/tagging/tag")
        assert "wrong too" not in str(failure.value)
    assert _called(lab, before) == {"REST login": 1}


def test_who_may_not_read_is_told_what_is_missing(lab: LabServer) -> None:
    with pytest.raises(PermissionRefusedError, match=r"System\.Read") as failure:
        tags_of(lab.connect(user="blind").rest(), ["vm-101"])
    assert "tag-association" in str(failure.value)


def test_the_certificate_is_checked_as_for_soap(lab: LabServer) -> None:
    def ask(**trust: Any) -> object:
        return lab.connect(**trust).rest().get("/api/cis/tagging/tag")

    before = _rest_calls(lab)
    with pytest.raises(ConfigError, match="expected is"):
        ask(thumbprint_sha256="0" * 64)
    untrusting = VCenter("lab", url=lab.url, user=USER, password=SecretStr(PASSWORD))
    with pytest.raises(ConfigError, match="not trusted"):
        untrusting.rest().get("/api/cis/tagging/tag")
    # No password has been sent to a server that was not trusted.
    assert _called(lab, before) == {}
    assert ask(ca_file=lab.ca_file) == ask() != []


def test_what_does_not_exist_and_what_is_too_long_are_clear_errors(lab: LabServer) -> None:
    rest = lab.connect().rest()
    with pytest.raises(NotFoundError, match="was not found"):
        rest.get("/api/cis/tagging/tag/urn:vmomi:InventoryServiceTag:none:GLOBAL")
    objects = [{"id": f"vm-{number}", "type": "VirtualMachine"} for number in range(MAX_OBJECTS + 1)]
    with pytest.raises(UnsupportedError, match=f"More than {MAX_OBJECTS} objects"):
        rest.call(
            "POST",
            "/api/cis/tagging/tag-association?action=list-attached-tags-on-objects",
            {"object_ids": objects},
        )


def test_a_restarted_vcenter_is_logged_in_to_again(lab: LabServer, inventory: Inventory) -> None:
    rest = lab.connect().rest()
    moref = _vm(inventory, "sql").moref
    before = tags_of(rest, [moref])
    lab.kill()
    lab.start()
    assert tags_of(rest, [moref]) == before == {moref: [VmTag(category="Backup", name="silver")]}
