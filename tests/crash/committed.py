"""What the repository has recorded as durable of each disk that is being backed up: nobody may read that again."""

from __future__ import annotations

from activities.repositories import open_repository
from lab.datacentre import MEDIA_AGENT
from safehaul.config.loader import load
from safehaul.media.repository import Repository
from safehaul.media.sessions import find_session
from tests.crash.stage import Stage


def durable_bytes(stage: Stage) -> dict[str, int]:
    """By VM: bytes from its disk's start that are recorded in its running backup's session now."""
    folder = stage.lab.repository / "sessions"
    sessions = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found: dict[str, int] = {}
    repository = open_repository(load(stage.lab.config).media_agent(MEDIA_AGENT), for_writing=False)
    try:
        for history in stage.follower.histories():
            if history.type == "BackupVm" and isinstance(history.first_input, dict):
                own = [name for name in sessions if name.startswith(f"{history.run_id}.")]
                found[str(history.first_input["name"])] = sum(_durable(repository, name) for name in own)
    finally:
        repository.close()
    return found


def _durable(repository: Repository, session_id: str) -> int:
    session = find_session(repository, session_id)
    durable = 0
    for key in session.disk_keys():
        last = session.read_progress(key, session.disk_record_count(key))
        durable += min(last.end_chunk * last.chunk_size_bytes, last.capacity_bytes)
    return durable
