"""`backups show` prints the proof that a snapshot is gone, and says when there is none."""

from __future__ import annotations

import pytest

from safehaul.media.manifest import BackupIndex
from tests.unit.test_certificate import issue
from workers.cli.certificate_view import show_removal


def _shown(capsys: pytest.CaptureFixture[str], **fields: object) -> str:
    show_removal(
        BackupIndex.model_validate({"backup_id": "b", "vc_guid": "vc.vm", "status": "Completed"} | fields)
    )
    return capsys.readouterr().out


def test_the_certificate_is_told_whole(capsys: pytest.CaptureFixture[str]) -> None:
    told = _shown(capsys, certificate=issue().model_dump(mode="json"))
    for part in (
        "snapshot snapshot-7 (safehaul run-1) is gone",
        "asked for 2026-11-26T16:59:58+00:00, made 2026-11-26T17:00:00+00:00",
        "snapshots before: snapshot-3 (before the upgrade), snapshot-7 (safehaul run-1), snapshot-9 (by hand);",
        "after: snapshot-3 (before the upgrade), snapshot-9 (by hand)",
        "consolidation needed: no;",
        "files that went with it: web-1-000002-delta.vmdk; files left: none",
    ):
        assert part in told


def test_old_debt_is_told_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    made = issue(consolidation_needed_before=True, consolidation_needed_after=True)
    assert "consolidation needed: yes (as before the backup)" in _shown(
        capsys, certificate=made.model_dump(mode="json")
    )


def test_foreign_names_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    made = issue().model_dump(mode="json")
    made["tree_after"][0]["name"] = made["tree_before"][0]["name"] = "\x1b[31m[red]evil"
    told = _shown(capsys, certificate=made)
    assert "\x1b" not in told
    assert "[red]evil" in told


def test_an_index_of_an_earlier_version_is_shown_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    old = {"started_at": "then", "finished_at": "later", "consolidation_needed_after": False}
    told = _shown(capsys, removal=old)
    assert "snapshot removed: from then to later" in told
    assert "no certificate" in told


def test_a_certificate_that_is_not_true_is_never_shown_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    made = issue().model_dump(mode="json") | {"files_checked": False}
    told = _shown(capsys, certificate=made)
    assert "NOT VALID: nobody has looked for its files" in told
    assert "is gone" not in told
