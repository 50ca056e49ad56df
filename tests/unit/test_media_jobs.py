"""A job's objects are written once, found by the job's id whatever it holds, and never leave the job's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from safehaul.errors import AlreadyExistsError, NotFoundError
from safehaul.media.jobs import get_job_object, list_job_objects, put_job_object
from tests.unit.media_backup import new_repository


def test_objects_of_a_job_are_written_once_and_listed_in_order(tmp_path: Path) -> None:
    repository = new_repository(tmp_path)
    for name in ("vms/000002", "vms/000001", "lease/000001"):
        put_job_object(repository, "nightly/1 ü", name, name.encode())
    put_job_object(repository, "..", "vms/000001", b"other")
    assert list(list_job_objects(repository, "nightly/1 ü")) == ["lease/000001", "vms/000001", "vms/000002"]
    assert get_job_object(repository, "nightly/1 ü", "vms/000001") == b"vms/000001"
    with pytest.raises(AlreadyExistsError, match="lease/000001"):
        put_job_object(repository, "nightly/1 ü", "lease/000001", b"second holder")
    with pytest.raises(NotFoundError):
        get_job_object(repository, "nightly-2", "vms/000001")
    assert get_job_object(repository, "..", "vms/000001") == b"other"
