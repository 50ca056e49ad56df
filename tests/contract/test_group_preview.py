"""Goal: `safehaul group preview` says of every VM whether it is in, and why, by the same code as a job."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.site import BACKUP_PRIVILEGES, DatastoreSpec, DiskSpec, Settings, Site, UserSpec, VmSpec
from tests.contract.lab_server import LabServer
from tests.contract.vcenter_server import MIB, PASSWORD, USER
from workers.cli.app import run

TWIN = "50000000-0000-4000-8000-000000000001"
MISSING = "11111111-0000-4000-8000-000000000001.22222222-0000-4000-8000-000000000002"
CONFIG = """
installation_id = "{installation}"
[catalog]
url = "sqlite:///{home}/catalog.db"
[[vcenters]]
name = "vc"
url = "{url}"
user = "{user}"
password = {{ env = "PREVIEW_PASSWORD" }}
thumbprint_sha256 = "{thumbprint}"
[[access_nodes]]
name = "n1"
[[media_agents]]
name = "vault"
repository = "file://{home}/repository"
[[vm_groups]]
name = "nightly"
vcenter = "vc"
media_agent = "vault"
order = "name"
rules = [{{ tag = "gold" }}, {{ name = "scr*" }}, {{ guids = ["{missing}"] }}, {{ cluster = "typo" }}]
exclude = [{{ folder = "scratch" }}]
exclude_disks = [{{ label = "Hard disk 2" }}, {{ controller_key = 1001 }}]
[[vm_groups]]
name = "nobody"
vcenter = "vc"
media_agent = "vault"
rules = [{{ name = "nothing-is-called-so" }}]
[[vm_groups]]
name = "perhaps"
vcenter = "vc"
media_agent = "vault"
allow_empty = true
rules = [{{ name = "nothing-is-called-so" }}]
"""


def _site() -> Site:
    disk = DiskSpec(size_bytes=MIB, content="zero")
    other = disk.model_copy(update={"controller": 1})
    independent = disk.model_copy(update={"mode": "independent_persistent"})
    local = disk.model_copy(update={"datastore": "vmfs"})
    return Site(
        datastores=[
            DatastoreSpec(name="gold", type="NFS", remote_path="/exports/gold"),
            DatastoreSpec(name="vmfs", type="VMFS"),
        ],
        vms=[
            VmSpec(
                name="web [red]", folder="prod", datastore="gold", disks=[disk, disk], tags=["Backup/gold"]
            ),
            VmSpec(name="app", datastore="gold", disks=[disk], tags=["Backup/gold"]),
            VmSpec(name="all filtered", datastore="gold", disks=[other], tags=["Backup/gold"]),
            VmSpec(name="scr-1", folder="scratch", datastore="gold", disks=[disk]),
            VmSpec(name="plain", datastore="gold", disks=[disk], tags=["Backup/silver"]),
            VmSpec(name="mixed", datastore="gold", disks=[disk, independent, local], tags=["Odd/yes"]),
            VmSpec(name="local only", datastore="vmfs", disks=[disk], tags=["Odd/yes"]),
            VmSpec(name="diskless", datastore="gold", tags=["Odd/yes"]),
            VmSpec(name="twin", datastore="gold", instance_uuid=TWIN, tags=["Backup/gold"]),
            VmSpec(name="other twin", datastore="gold", instance_uuid=TWIN),
        ],
        users=[UserSpec(name=USER, password=PASSWORD, privileges=BACKUP_PRIVILEGES)],
        settings=Settings(default_duration_s=0.05),
    )


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    server = LabServer(tmp_path_factory.mktemp("preview"), _site())
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def config(lab: LabServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = tmp_path / "safehaul.toml"
    path.write_text(
        CONFIG.format(
            installation=uuid.uuid4(),
            home=tmp_path,
            url=lab.url,
            user=USER,
            thumbprint=lab.thumbprint,
            missing=MISSING,
        )
    )
    monkeypatch.setenv("PREVIEW_PASSWORD", PASSWORD)
    return str(path)


def _json(config: str, capsys: pytest.CaptureFixture[str], group: str, code: int = 0) -> dict[str, Any]:
    assert run(["--config", config, "group", "preview", group, "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_every_vm_is_in_one_place_with_its_reason(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(config, capsys, "nightly")
    assert [(item["name"], item["rule"]) for item in found["included"]] == [
        ("app", "tag 'gold'"),
        ("web [red]", "tag 'gold'"),
    ]
    web = found["included"][1]
    assert [(disk["label"], disk["transport"]) for disk in web["disks"]] == [
        ("Hard disk 1", "nas"),
        ("Hard disk 2", "deselected"),
    ]
    assert web["disks"][1]["reason"] == "not selected: excluded by disk filter label 'Hard disk 2'"
    assert web["capacity_bytes"] == MIB
    failing = {item.get("name", item["vc_guid"]): item["reason"] for item in found["failing"]}
    assert set(failing) == {"twin", "all filtered", MISSING}
    assert "belongs to several VMs: 'twin'" in failing["twin"]
    assert "leave none of the 1 disks" in failing["all filtered"]
    assert [(item["name"], item["reason"]) for item in found["excluded"]] == [
        ("scr-1", "excluded by folder 'scratch'")
    ]
    assert {item["name"] for item in found["unmatched"]} >= {"plain", "other twin"}
    assert found["idle_rules"] == [f"rules[2]: VC.GUID {MISSING}", "rules[3]: cluster 'typo'"]


def test_what_a_transport_cannot_do_is_told_beforehand(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    group = {"vcenter": "vc", "media_agent": "vault", "rules": [{"tag": "yes", "category": "Odd"}]}
    found = _json(config, capsys, json.dumps(group))
    (mixed,) = found["included"]
    assert mixed["name"] == "mixed"
    assert [disk["transport"] for disk in mixed["disks"]] == ["nas", "none", "none"]
    assert "independent_persistent" in mixed["disks"][1]["reason"]
    assert mixed["disks"][2]["reason"] == "datastore 'vmfs' is VMFS, not NFS"
    failing = {item["name"]: item["reason"] for item in found["failing"]}
    assert failing == {
        "local only": "no disk can go through the NAS transport: Hard disk 1: datastore 'vmfs' is VMFS, not NFS",
        "diskless": "no disk can go through the NAS transport: no disks",
    }
    assert run(["--config", config, "group", "preview", json.dumps(group)]) == 0
    shown = capsys.readouterr().out
    assert "Hard disk 2 would be skipped: it is independent_persistent" in shown
    assert "1 of 10 VMs of vCenter vc are in, with 1.0 MiB; 2 would fail" in shown


def test_a_datastore_without_an_export_is_told_with_what_to_add(
    config: str, lab: LabServer, capsys: pytest.CaptureFixture[str]
) -> None:
    (problem,) = _json(config, capsys, "nightly")["export_problems"]
    assert "no export is defined for datastore 'gold'" in problem
    assert run(["--config", config, "group", "preview", "nightly"]) == 0
    shown = capsys.readouterr().out.splitlines()
    begin = next(number for number, line in enumerate(shown) if line.startswith("note: no export is defined"))
    toml = "\n".join(line.strip() for line in shown[begin + 1 : begin + 5])
    assert toml.startswith("[[exports]]")
    with Path(config).open("a") as file:
        file.write(toml)
    assert _json(config, capsys, "nightly")["export_problems"] == []


def test_a_person_reads_it_as_a_table(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--config", config, "group", "preview", "nightly"]) == 0
    shown = capsys.readouterr().out
    lines = {line.split("│")[2].strip(): line for line in shown.splitlines() if line.count("│") > 5}
    assert "in" in lines["web [red]"].split("│")[1]
    assert "1 of 2" in lines["web [red]"]
    assert "Hard disk 2: not selected" in lines["web [red]"]
    assert "fails" in lines["twin"].split("│")[1]
    assert "out" in lines["scr-1"].split("│")[1]
    assert "excluded by folder 'scratch' (selected by name 'scr*')" in lines["scr-1"]
    assert "no rule matches" in lines["plain"]
    assert "note: rules[3]: cluster 'typo' matches no VM" in shown
    assert (
        "2 of 10 VMs of vCenter vc are in, with 2.0 MiB; 3 would fail, 1 are excluded, 5 match no rule"
        in shown
    )


def test_an_empty_group_is_shown_and_ends_with_1_unless_it_may_be_empty(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _json(config, capsys, "nobody", code=1)["included"] == []
    assert run(["--config", config, "group", "preview", "nobody"]) == 1
    told = capsys.readouterr()
    assert "no rule matches" in told.out
    assert "select none of the 10 VMs" in told.err
    assert _json(config, capsys, "perhaps")["included"] == []


def test_a_group_can_be_tried_before_it_is_configured(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inline = {"vcenter": "vc", "media_agent": "vault", "rules": [{"name": "[sp].*", "regex": True}]}
    found = _json(config, capsys, json.dumps(inline))
    assert [item["name"] for item in found["included"]] == ["plain", "scr-1"]
    assert found["vm_group"] == "inline"
    for wrong, told in (
        (json.dumps({**inline, "rules": [{"name": "(", "regex": True}]}), "vm_group.rules[0].name"),
        ('{"vcenter": ', "is not JSON"),
        ("no-such-group", "it has: nightly, nobody, perhaps"),
    ):
        assert run(["--config", config, "group", "preview", wrong]) == 2
        assert told in capsys.readouterr().err


def test_a_preview_changes_nothing_and_leaves_no_session(lab: LabServer, config: str) -> None:
    sessions, version = lab.admin.session_count(), lab.hosts.state().version
    assert run(["--config", config, "group", "preview", "nightly"]) == 0
    assert lab.admin.session_count() == sessions
    assert lab.hosts.state().version == version


def test_groups_are_listed_with_their_rules(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--config", config, "group", "list", "--json"]) == 0
    nightly, nobody, _ = json.loads(capsys.readouterr().out)
    assert nightly["rules"] == ["tag 'gold'", "name 'scr*'", f"VC.GUID {MISSING}", "cluster 'typo'"]
    assert (nightly["exclude"], nightly["disk_filters"]) == (["folder 'scratch'"], True)
    assert (nobody["access_nodes"], nobody["disk_filters"]) == (["n1"], False)
    assert run(["--config", config, "group", "list"]) == 0
    assert "tag 'gold' or name 'scr*'" in capsys.readouterr().out
