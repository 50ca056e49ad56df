"""Goal: a worker process has one session of vCenter for all its steps and ends it; a wrong password is tried once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lab.datacentre import PASSWORD_VARIABLE, DataCentre
from lab.site import BACKUP_USER, MIB, DiskSpec, VmSpec, demo_site
from tests.e2e.site import data_centre, report_of, run_job, start_job, status, wait_end

WRONG = "wr0ng-Secret-of-the-test"


@pytest.fixture(scope="module")
def lab() -> Iterator[DataCentre]:
    small = VmSpec(name="small", datastore="nfs-gold", disks=[DiskSpec(size_bytes=4 * MIB)])
    with data_centre(demo_site(0).model_copy(update={"vms": [small]})) as running:
        yield running


def calls(lab: DataCentre) -> list[dict[str, Any]]:
    """VCenter's own log of its calls."""
    return [json.loads(line) for line in (lab.directory / "vcenter-calls.jsonl").read_text().splitlines()]


def logins(lab: DataCentre) -> Counter[tuple[str, str]]:
    """How often each of login and logout was called, by what came of it."""
    return Counter(
        (each["method"], each["fault"]) for each in calls(lab) if each["method"] in {"Login", "Logout"}
    )


@contextmanager
def workers(lab: DataCentre) -> Iterator[None]:
    """The workers, ended whatever a test finds: the next one starts others of the same names."""
    lab.start_workers()
    try:
        yield
    finally:
        for worker in lab.workers.values():
            worker.terminate()
        for worker in lab.workers.values():
            worker.stop()


def test_a_wrong_password_fails_the_job_at_once_with_one_try_for_each_process(lab: DataCentre) -> None:
    lab.extra_environment = {PASSWORD_VARIABLE: WRONG}
    with workers(lab):
        lab.extra_environment = {}
        for number in range(3):
            start_job(lab, f"refused-{number}")
            assert wait_end(lab, f"refused-{number}", timeout_s=60) == "FAILED"
        shown = lab.temporal.cli("workflow", "show", "--workflow-id", "refused-0", "--output", "json").stdout
        logs = "".join(worker.log_text() for worker in lab.workers.values())
    refused = logins(lab)
    # Three jobs with several steps each, each step with its retries: one try of each process that was asked.
    assert set(refused) == {("Login", "InvalidLogin")}
    assert 1 <= refused.total() <= len(lab.nodes)
    assert "LoginRefusedError" in shown
    assert "correct user or password" in shown
    assert WRONG not in shown + logs


@pytest.mark.slow
def test_a_process_has_one_session_for_all_its_steps_and_ends_it(lab: DataCentre) -> None:
    before = logins(lab)
    with workers(lab):
        report = run_job(lab, "nightly-1")
        assert report["status"] == "Completed"
        run_job(lab, "nightly-2")
        assert status(lab, "nightly-2") == "COMPLETED"
        assert report_of(lab, "nightly-2")["totals"]["vms"] == 1
        during = logins(lab) - before
        assert during == {("Login", ""): len(lab.nodes)}, "both nodes prepare for each job"
        by_user = Counter(each["user"] for each in calls(lab) if each["method"] == "RetrievePropertiesEx")
        assert by_user[BACKUP_USER] > 20
    assert logins(lab) - before == {("Login", ""): len(lab.nodes), ("Logout", ""): len(lab.nodes)}
