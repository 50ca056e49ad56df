"""A job's own objects: lists of VMs, plan, coordinator's lease, reports. Put-if-absent, below `jobs/JOBID/`."""

from __future__ import annotations

from collections.abc import Iterator

from safehaul.errors import AlreadyExistsError
from safehaul.media.envelope import Kind
from safehaul.media.names import encode_segment
from safehaul.media.repository import Repository


def put_job_object(repository: Repository, job_id: str, name: str, data: bytes) -> None:
    """Write an object of a job. Raises AlreadyExistsError when the name is taken, whatever it holds."""
    place = _place(job_id, name)
    try:
        repository.put(Kind.JOB, place, data)
    except AlreadyExistsError as error:
        raise AlreadyExistsError(f"job {job_id} has an object {name!r} already") from error


def get_job_object(repository: Repository, job_id: str, name: str) -> bytes:
    """Read an object of a job. Raises NotFoundError, IntegrityError."""
    return repository.get(Kind.JOB, _place(job_id, name))


def list_job_objects(repository: Repository, job_id: str) -> Iterator[str]:
    """Yield the names of a job's objects, in order."""
    prefix = f"jobs/{encode_segment(job_id, what='job id')}/"
    for found in repository.store.list(prefix):
        yield found.name.removeprefix(prefix)


def list_jobs(repository: Repository) -> Iterator[str]:
    """Yield the folders of the jobs that have left a report (step 17), in order."""
    for found in repository.store.list("jobs/"):
        folder, _, name = found.name.removeprefix("jobs/").partition("/")
        if name == "report":
            yield folder


def get_report(repository: Repository, folder: str) -> bytes:
    """Read the report of a job by its folder, as `list_jobs` gives it. Raises NotFoundError, IntegrityError."""
    return repository.get(Kind.JOB, f"jobs/{folder}/report")


def _place(job_id: str, name: str) -> str:
    parts = [encode_segment(part, what="name of a job's object") for part in name.split("/")]
    return "/".join(["jobs", encode_segment(job_id, what="job id"), *parts])
