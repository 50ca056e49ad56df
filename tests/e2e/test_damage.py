"""One flipped byte in a pack: the restore fails and names disk and offset, verify names what it touches."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.datacentre import DataCentre
from tests.e2e.site import data_centre, run_job
from tests.e2e.test_cancel import small_site


@pytest.fixture(scope="module")
def lab() -> Iterator[DataCentre]:
    with data_centre(small_site(), nodes=("node-1",)) as started:
        started.start_workers()
        yield started


def test_a_flipped_byte_is_found_and_named(lab: DataCentre) -> None:
    report = run_job(lab, "damaged")
    assert report["status"] == "Completed", report["reason"]
    packs = [path for path in (lab.repository / "packs").rglob("*") if path.is_file()]
    for pack in packs:
        _flip(pack)

    verified = json.loads(lab.safehaul("repo", "verify", "--full", "--json", check=False))
    assert {item["object_name"].rsplit("/", 1)[-1] for item in verified["damage"]} >= {
        pack.name for pack in packs
    }
    touched = {(item["vm_name"], item["backup_id"]) for item in verified["touched"]}
    assert touched == {(vm["name"], vm["backup_id"]) for vm in report["vms"]}

    for vm in report["vms"]:
        _restore_must_fail(lab, vm)


def _restore_must_fail(lab: DataCentre, vm: dict[str, Any]) -> None:
    target = lab.home / f"damaged-{vm['name']}.raw"
    backup = f"{vm['vc_guid']}/{vm['backup_id']}"
    with pytest.raises(Exception, match=r"(?s)Hard disk 1.*offset"):
        lab.safehaul("restore", "disk", backup, "2000", "--to", str(target))
    assert not target.exists(), "half a disk must not look like a whole one"
    refused = lab.safehaul(
        *("restore", "vm", backup, "--name", f"{vm['name']} again", "--datastore", "nfs-gold"), check=False
    )
    assert "restored" not in refused
    lab.filers.wait_settled()
    assert not (lab.state / "datastores" / "nfs-gold" / f"{vm['name']} again").exists()
    assert f"{vm['name']} again" not in {item.name for item in lab.hosts.state().vms}


def _flip(pack: Path) -> None:
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    subprocess.run(["chmod", "u+w", str(pack)], check=True)
    pack.write_bytes(data)
