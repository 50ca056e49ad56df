"""Goal: who has the workers' keys can neither forget, purge, collect, release nor recover; who has the keeper's can.

On a real S3 server. And what he puts there himself, with the repository's keys at hand, gains him nothing.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.peers import Peers
from activities.upkeep_prune import UpkeepPrune
from lab.object_store import KEEPER, REGION, WRITER, Identity, SeaweedServer
from safehaul.config.loader import load
from safehaul.errors import PermissionRefusedError
from safehaul.media import audit, forgotten, holds
from safehaul.media.canonical import canonical_json
from safehaul.media.envelope import Kind
from safehaul.media.forgotten import Forgotten
from safehaul.media.manifest import BackupRef, forgotten_name, list_backups, read_manifest
from safehaul.media.repository import Repository
from safehaul.messages.prune import ForgetPage, PruneStep
from tests.contract.object_stores import s3_store
from tests.unit.media_backup import restore
from tests.unit.retained_site import add_backup, write_config
from workers.cli.app import run

STEP = PruneStep(media_agent="vault")


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    with SeaweedServer(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


def _secrets(who: Identity, kind: str = "") -> str:
    return (
        f's3_{kind}access_key = {{ env = "KEY_{who.access_key}" }}\n'
        f's3_{kind}secret_key = {{ env = "SECRET_{who.access_key}" }}\n'
    )


class Site:
    """A repository in a bucket, as the access nodes' configuration has it and as the keeper's."""

    def __init__(self, home: Path, server: SeaweedServer) -> None:
        self.prefix = f"r{uuid.uuid4().hex[:8]}"
        self.server = server
        keys = f's3_endpoint = "{server.endpoint}"\ns3_region = "{REGION}"\n{_secrets(WRITER)}'
        self.workers = self._config(home / "workers", keys)
        self.keeper = self._config(home / "keeper", keys + _secrets(KEEPER, "prune_"))
        assert run(["--config", str(self.workers), "repo", "init"]) == 0
        self.peers = Peers(load(self.workers))

    @property
    def repository(self) -> Repository:
        """As a worker has it."""
        return self.peers.repository("vault")

    def _config(self, home: Path, keys: str) -> Path:
        home.mkdir()
        path = write_config(home, "[vm_groups.retention]\ndaily = 2\n")
        text = path.read_text().replace(f"file://{home}/repository", f"s3://vault/{self.prefix}")
        path.write_text(text.replace("[[vm_groups]]", f"{keys}[[vm_groups]]"))
        return path

    def names(self) -> list[str]:
        """Every object but the log's entries."""
        return [info.name for info in self.repository.store.list("") if not info.name.startswith("audit/")]

    def run(self, config: Path, method: str, arg: PruneStep = STEP) -> Any:
        """A step of the prune as a MediaAgent with that configuration does it."""
        peers = Peers(load(config))
        try:
            return ActivityEnvironment().run(getattr(UpkeepPrune(peers), method), arg)
        finally:
            peers.close()


@pytest.fixture
def site(tmp_path: Path, seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for who in (WRITER, KEEPER):
        monkeypatch.setenv(f"KEY_{who.access_key}", who.access_key)
        monkeypatch.setenv(f"SECRET_{who.access_key}", who.secret_key)
    made = Site(tmp_path, seaweed)
    yield made
    made.peers.close()


@pytest.fixture
def refs(site: Site) -> list[BackupRef]:
    """Backups of six days. The store dates them all of today, as it would a copied repository."""
    return [add_backup(site.peers, days, clock=False) for days in (0, 1, 10, 11, 12, 13)]


def test_the_workers_keys_can_do_nothing_of_it_and_are_told_which_ones_can(
    site: Site, refs: list[BackupRef], capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{refs[5].vc_guid}/{refs[5].backup_id}"
    assert run(["--config", str(site.workers), "retention", "hold", name, "--reason", "case 7"]) == 0
    before = site.names()
    for method in ("forget_backups", "purge_forgotten", "collect_garbage"):
        with pytest.raises(
            ApplicationError, match="configure s3_prune_access_key and s3_prune_secret_key"
        ) as e:
            site.run(site.workers, method)
        assert e.value.type == "PermissionRefusedError"
        assert e.value.non_retryable
    capsys.readouterr()
    assert run(["--config", str(site.workers), "retention", "release", name]) == 1
    assert "configure s3_prune_access_key" in " ".join(capsys.readouterr().err.split())
    assert site.names() == before
    # Not by the functions themselves either, without the look before.
    stolen = s3_store(site.server.endpoint, site.prefix, WRITER)
    with pytest.raises(PermissionRefusedError):
        forgotten.forget(site.repository, stolen, refs[4], "mine")
    with pytest.raises(PermissionRefusedError):
        holds.release_hold(stolen, refs[5])
    assert sorted(list_backups(site.repository)) == sorted(refs)
    assert holds.is_held(site.repository, refs[5])
    assert site.run(site.workers, "forget_backups", STEP.model_copy(update={"dry_run": True})).forgotten


def test_the_keepers_keys_prune_release_and_recover(site: Site, refs: list[BackupRef]) -> None:
    looked: ForgetPage = site.run(site.workers, "forget_backups", STEP.model_copy(update={"dry_run": True}))
    page: ForgetPage = site.run(site.keeper, "forget_backups")
    assert page.told == looked.told
    # By the store's clock all are of today; which one is the newest of today, its whole seconds decide.
    assert page.forgotten in {3, 4}
    gone = BackupRef(refs[0].vc_guid, page.told[0].forgotten[0].backup_id)
    name = f"{gone.vc_guid}/{gone.backup_id}"
    assert site.run(site.keeper, "purge_forgotten").waiting == page.forgotten
    assert run(["--config", str(site.workers), "retention", "recover", name]) == 1
    assert gone not in list_backups(site.repository)
    assert run(["--config", str(site.keeper), "retention", "recover", name]) == 0
    assert restore(site.repository, gone) == b"x" * 5000
    assert site.run(site.keeper, "forget_backups").forgotten == 0, "it is held"
    assert run(["--config", str(site.keeper), "retention", "release", name]) == 0
    assert not holds.is_held(site.repository, gone)
    assert site.run(site.keeper, "collect_garbage").numbers["forgotten"] == page.forgotten - 1


def test_what_a_thief_puts_there_himself_gains_him_nothing(
    site: Site, refs: list[BackupRef], capsys: pytest.CaptureFixture[str]
) -> None:
    """Goal: he has an access node, so the keys of the bucket and of the repository, and writes what he likes."""
    repository, doomed, kept = site.repository, refs[4], refs[0]
    # forgotten/: of a backup that is to be kept, and of one that the rules give up, a week ago as it were.
    for ref in (kept, doomed):
        content = Forgotten(forgotten="20200101T000000Z", reason="x", manifest=read_manifest(repository, ref))
        repository.put(Kind.FORGOTTEN, forgotten_name(ref), canonical_json(content.model_dump()))
    # holds/: whatever he holds stays, which costs space and is seen.
    repository.store.put_if_absent(holds.hold_name(refs[5]), b"nonsense")
    # audit/: entries of his own beside the true ones.
    repository.store.put_if_absent("audit/0", b"nonsense")
    page: ForgetPage = site.run(site.keeper, "forget_backups")
    assert kept in list_backups(repository)
    assert refs[5] in list_backups(repository)
    assert page.held == 1
    assert site.run(site.keeper, "purge_forgotten").purged == 0, "its seven days begin when it is forgotten"
    assert doomed in [item.ref for item in forgotten.list_forgotten(repository)]
    assert restore(repository, kept) == b"x" * 5000
    capsys.readouterr()
    assert run(["--config", str(site.workers), "repo", "audit", "--json"]) == 0
    log = json.loads(capsys.readouterr().out)
    assert [item["problem"] for item in log if item["name"] == "audit/0"] == [
        "it is not named as an entry is"
    ]
    assert "forget" in [item["entry"]["action"] for item in log if item["entry"]]
    assert {item["entry"]["actor"] for item in log if item["entry"]} == {audit.actor()}
