"""What the tests of retention share: a configuration with rules, and backups that are as old as one likes."""

from __future__ import annotations

import os
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

from activities.catalog_rows import backup_row
from activities.peers import Peers
from safehaul.config.loader import load
from safehaul.media.manifest import (
    BackupIndex,
    BackupRef,
    manifest_name,
    read_index,
    read_manifest,
    write_index,
)
from safehaul.media.repository import Repository
from safehaul.media.seal import commit, verify_session
from safehaul.media.sessions import open_session
from safehaul.media.store_local import LocalStore
from tests.unit.media_backup import contents, write_disk
from tests.unit.test_cli import CONFIG
from workers.cli.app import run

RULES = """
[vm_groups.retention]
daily = 3
"""


def write_config(home: Path, rules: str = RULES) -> Path:
    """A configuration with one VM group that has rules."""
    path = home / "safehaul.toml"
    path.write_text(CONFIG.format(home=home, installation=uuid.uuid4()) + rules)
    return path


def make_site(home: Path, rules: str = RULES) -> tuple[Path, Peers]:
    """A configuration, its repository, and what a worker is connected to."""
    config = write_config(home, rules)
    assert run(["--config", str(config), "repo", "init"]) == 0
    return config, Peers(load(config))


def add_backup(
    peers: Peers,
    days_ago: float,
    *,
    vc_guid: str = "vc.vm",
    status: str | None = "Completed",
    group: str = "nightly",
    image: bytes = b"x" * 5000,
    clock: bool = True,
) -> BackupRef:
    """A backup of the group that was begun and stored so long ago, with its index and its row in the catalogue.

    Without `clock` the store says that it was stored now.
    """
    repository, at = peers.repository("vault"), datetime.now(UTC) - timedelta(days=days_ago)
    session = open_session(
        repository,
        f"{vc_guid}-{at:%Y%m%dT%H%M%S%f}",
        vc_guid=vc_guid,
        vm_name=f"name of {vc_guid}",
        vm_group=group,
        point_in_time="snapshot-7",
        opened=f"{at:%Y%m%dT%H%M%SZ}",
    )
    write_disk(session, image)
    verify_session(session)
    ref = commit(session, contents(image))
    if status is not None:
        write_index(repository, BackupIndex(vc_guid=vc_guid, backup_id=ref.backup_id, status=status))
    if clock:
        set_age(repository, manifest_name(ref), timedelta(days=days_ago))
    row = backup_row(read_manifest(repository, ref), read_index(repository, ref), "vault")
    peers.catalog().record_backup(row)
    return ref


def set_age(repository: Repository, name: str, age: timedelta) -> None:
    """Let the store's clock have stored an object so long ago."""
    assert isinstance(repository.store, LocalStore)
    at = datetime.now(UTC) - age
    os.utime(repository.store.root / name, (at.timestamp(), at.timestamp()))


def listed(peers: Peers) -> list[str]:
    """The backups that the catalogue lists."""
    return sorted(row.backup_id for row in peers.catalog().list_backups())


def committed(repository: Repository) -> list[str]:
    """The backups that the repository lists."""
    return sorted(info.name.rpartition("/")[2] for info in repository.store.list("manifests/"))
