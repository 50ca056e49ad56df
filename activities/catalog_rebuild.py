"""Makes the catalogue's rows again from a repository, VM by VM, beside whoever writes to both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby

from activities.catalog_rows import JobRows, backup_row, job_row, job_vm_rows, parse_report, read_reports
from safehaul.catalog.catalog import Catalog
from safehaul.catalog.rows import BackupRow
from safehaul.errors import NotFoundError, SafehaulError, TransientError
from safehaul.media.jobs import get_report, list_jobs
from safehaul.media.manifest import BackupRef, list_backups, read_index, read_manifest
from safehaul.media.repository import Repository
from safehaul.read_ahead import read_ahead

READERS = 8
"""Objects that are read at once: a bucket answers each after tens of milliseconds, and a backup has two."""
_BACKUPS_AHEAD = 64
_JOBS_AHEAD = 8  # the report of one may hold 10,000 VMs


@dataclass
class Rebuilt:
    """What a rebuild has done for one MediaAgent."""

    backups: int = 0
    """Rows that were written."""
    removed: int = 0
    """Rows of backups that the repository no longer has."""
    jobs: int = 0
    unread: list[str] = field(default_factory=list)
    """What could not be read: the object's name and why. It has no row."""


def rebuild(
    catalog: Catalog, repository: Repository, media_agent: str, progress: Callable[[str], None]
) -> Rebuilt:
    """Make the rows of one MediaAgent what its repository holds; `progress` is told how far it is.

    Each VM's rows are written by themselves, so that others can write in between, and what they have written meanwhile
    stays. A job that the repository does not know keeps its row. Raises TransientError when the repository or the
    catalogue does not answer: nothing is lost by it, and a second run does it all again.
    """
    done = Rebuilt()
    seen: set[str] = set()
    with ThreadPoolExecutor(READERS, thread_name_prefix="rebuild") as pool:
        ahead = read_ahead(
            pool, lambda ref: _read(repository, ref, media_agent), list_backups(repository), _BACKUPS_AHEAD
        )
        for vc_guid, of_vm in groupby(ahead, key=lambda pair: pair[0].vc_guid):
            _rebuild_vm(catalog, repository, media_agent, vc_guid, of_vm, done)
            seen.add(vc_guid)
            progress(f"{media_agent}: {done.backups} backups of {len(seen)} VMs")
        for vc_guid in sorted(catalog.known_vms(media_agent) - seen):
            _rebuild_vm(catalog, repository, media_agent, vc_guid, (), done)
        for folder, job in read_ahead(
            pool, lambda folder: _read_job(repository, folder), list_jobs(repository), _JOBS_AHEAD
        ):
            if isinstance(job, JobRows):
                catalog.record_job(job.job, job.vms)
                done.jobs += 1
                progress(f"{media_agent}: {done.backups} backups, {done.jobs} jobs")
            elif job is not None:
                done.unread.append(f"{media_agent}: job {folder}: {job}")
    return done


def _rebuild_vm(
    catalog: Catalog,
    repository: Repository,
    media_agent: str,
    vc_guid: str,
    found: Iterable[tuple[BackupRef, BackupRow | SafehaulError | None]],
    done: Rebuilt,
) -> None:
    rows: list[BackupRow] = []
    for ref, item in found:
        if isinstance(item, BackupRow):
            rows.append(item)
        elif item is not None:
            done.unread.append(f"{media_agent}: {ref.vc_guid}/{ref.backup_id}: {item}")
    done.backups += catalog.record_backups(rows)
    more = catalog.known_backups(media_agent, vc_guid) - {row.backup_id for row in rows}
    # What was committed after the list was made has a row too.
    gone = [
        backup_id
        for backup_id in sorted(more)
        if not isinstance(_read(repository, BackupRef(vc_guid, backup_id), media_agent), BackupRow)
    ]
    done.removed += catalog.remove_backups(media_agent, vc_guid, gone)


def _read(repository: Repository, ref: BackupRef, media_agent: str) -> BackupRow | SafehaulError | None:
    """A backup's row; None for one that is not there: it was forgotten since the list was made."""
    try:
        return backup_row(read_manifest(repository, ref), read_index(repository, ref), media_agent)
    except NotFoundError:
        return None
    except TransientError:
        raise
    except SafehaulError as error:  # one damaged manifest must not hide the others
        return error


def _read_job(repository: Repository, folder: str) -> JobRows | SafehaulError | None:
    try:
        report = parse_report(get_report(repository, folder), folder)
        vms, _ = read_reports(repository, report.job_id, report.pages)
        return JobRows(job_row(report), job_vm_rows(report, vms))
    except TransientError:
        raise
    except SafehaulError as error:  # one damaged report must not hide the others
        return error
