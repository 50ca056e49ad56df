"""A job whose repository is a bucket of a real S3 server: encrypted, in packs of several parts, restored equal."""

from __future__ import annotations

import json
from collections.abc import Iterator

import obstore
import pytest

from lab.datacentre import DataCentre
from lab.object_store import OWNER, SeaweedServer
from lab.processes import LabError
from lab.site import DiskSpec
from tests.e2e.replaced import NODE, tiny_site
from tests.e2e.site import data_centre, differences, run_job, vm_of

pytestmark = pytest.mark.slow

PART = 5 * 2**20
"""As the lab configures it: what is larger is a multipart upload."""


@pytest.fixture(scope="module")
def lab() -> Iterator[DataCentre]:
    site = tiny_site()
    disks = [DiskSpec(size_bytes=8 * 2**20), DiskSpec(size_bytes=16 * 2**20, content="random")]
    site = site.model_copy(update={"vms": [site.vms[0].model_copy(update={"disks": disks})]})
    with data_centre(
        site, nodes=(NODE,), streams=1, bucket=True, encrypted=True, pack_size="16 MiB"
    ) as started:
        started.start_workers()
        yield started


def _sizes(lab: DataCentre, folder: str) -> list[int]:
    assert isinstance(lab.bucket, SeaweedServer)
    owner = lab.bucket.client(OWNER)
    return [item["size"] for page in obstore.list(owner, f"site-a/{folder}") for item in page]


def test_a_backup_in_a_bucket_is_restored_equal(lab: DataCentre) -> None:
    vm = vm_of(run_job(lab, "nightly"), "one")
    assert vm["status"] == "Completed"
    assert max(_sizes(lab, "packs")) > PART, "one pack was a multipart upload"
    assert len(_sizes(lab, "manifests")) == 1
    assert not lab.repository.exists()
    assert "no damage found" in lab.safehaul("repo", "verify", "--full")
    images = {disk["key"]: lab.home / f"{disk['key']}.raw" for disk in vm["disks"]}
    for key, image in images.items():
        lab.safehaul("restore", "disk", f"{vm['vc_guid']}/{vm['backup_id']}", str(key), "--to", str(image))
    assert len(images) == 2
    assert list(differences(lab, vm, images)) == []


def test_a_key_slot_is_removed_with_the_keepers_keys_and_not_with_the_workers(lab: DataCentre) -> None:
    second = lab.home / "second.key"
    second.write_bytes(bytes(range(32)))
    lab.safehaul("repo", "key", "add", "--key-file", str(second), "--label", "second")
    slot = _slots(lab)["second"]
    whole = lab.config.read_text()
    lab.config.write_text("".join(line for line in whole.splitlines(keepends=True) if "prune" not in line))
    try:
        with pytest.raises(
            LabError, match=r"AccessDenied.*configure s3_prune_access_key and s3_prune_secret_key"
        ):
            lab.safehaul("repo", "key", "remove", slot)
    finally:
        lab.config.write_text(whole)
    assert "second" in _slots(lab)
    lab.safehaul("repo", "key", "remove", slot)
    assert list(_slots(lab)) == ["made with the repository"]


def test_the_media_agent_prunes_the_bucket_and_the_backup_stays_whole(lab: DataCentre) -> None:
    """After the backup above: nothing of it is forgotten or freed."""
    report = json.loads(lab.safehaul("repo", "prune", "--json"))["report"]
    assert (report["forgetting"]["backups"], report["forgetting"]["forgotten"]) == (1, 0)
    assert report["collection"]["numbers"]["backups"] == 1
    assert "no damage found" in lab.safehaul("repo", "verify", "--full")
    log = [item["entry"] for item in json.loads(lab.safehaul("repo", "audit", "--json"))]
    assert [entry["action"] for entry in log if entry["action"] in {"prune", "key remove"}] == [
        "key remove",
        "prune",
    ]


def _slots(lab: DataCentre) -> dict[str, str]:
    """Label → id."""
    return {
        slot["label"]: slot["slot_id"] for slot in json.loads(lab.safehaul("repo", "key", "list", "--json"))
    }
