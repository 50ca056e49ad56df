"""Login sessions: who is logged in, until when, and what belongs to a session (views, collectors).

Sessions live in memory only: a restarted vCenter knows none of them, as a real one does.
"""

from __future__ import annotations

import datetime as dt
import secrets
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

_LOCK_WINDOW_S = 180.0
_LOCKED_S = 300.0
"""Defaults of vCenter Single Sign-On's lockout policy: failures within 180 s lock the account for 300 s."""


class TooManySessionsError(Exception):
    """The session limit is reached: the front answers 503 as a loaded vCenter does."""


@dataclass
class Session:
    """One login. `secret` is the cookie's value, `key` is the public id that other users may see."""

    user: str
    address: str
    agent: str
    secret: str = field(default_factory=lambda: secrets.token_hex(20), repr=False)
    key: str = field(default_factory=lambda: str(uuid.uuid4()))
    login_time: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))
    last_active: float = field(default_factory=time.monotonic)
    calls: int = 0
    busy: int = 0
    """Calls that are being served now: a session in a long wait is not idle."""
    objects: dict[str, Any] = field(default_factory=dict)
    """Views, property collectors and filters of this session by moid: they die with it."""

    def new_moid(self) -> str:
        """A moid for an object of this session, in the form that vCenter uses."""
        return f"session[{self.key}]{uuid.uuid4()}"


class SessionTable:
    """All sessions; thread-safe.

    Args:
        idle_s: seconds without a call after which a session is forgotten (vCenter's default is 1800).
        limit: sessions at most.
        lock_after: wrong passwords within three minutes that lock the account (0: never).
    """

    def __init__(self, idle_s: float = 1800.0, limit: int = 100, lock_after: int = 5) -> None:
        self._idle_s = idle_s
        self._limit = limit
        self._lock_after = lock_after
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}
        self._failures: dict[str, list[float]] = {}
        self._locked_until: dict[str, float] = {}

    def open(self, user: str, address: str, agent: str) -> Session:
        """Begin a session.

        Raises:
            TooManySessionsError: the limit is reached.
        """
        with self._lock:
            self._forget_idle()
            if len(self._sessions) >= self._limit:
                raise TooManySessionsError
            session = Session(user, address, agent)
            self._sessions[session.secret] = session
            self._failures.pop(user, None)
            return session

    def find(self, secret: str | None) -> Session | None:
        """The live session of a cookie, or None."""
        if not secret:
            return None
        with self._lock:
            self._forget_idle()
            return self._sessions.get(secret)

    def begin_call(self, session: Session) -> None:
        """Count a call and keep the session from idling while it runs."""
        with self._lock:
            session.calls += 1
            session.busy += 1
            session.last_active = time.monotonic()

    def end_call(self, session: Session) -> None:
        """The call is over; the idle time starts again."""
        with self._lock:
            session.busy -= 1
            session.last_active = time.monotonic()

    def is_live(self, session: Session) -> bool:
        """False once the session was closed, terminated or expired."""
        with self._lock:
            return self._sessions.get(session.secret) is session

    def close(self, session: Session) -> None:
        """Log out."""
        with self._lock:
            self._sessions.pop(session.secret, None)

    def close_by_key(self, key: str) -> Session | None:
        """Terminate the session with this public key; None when there is none."""
        with self._lock:
            for session in self._sessions.values():
                if session.key == key:
                    return self._sessions.pop(session.secret)
        return None

    def expire_all(self) -> int:
        """Forget every session now; returns how many there were."""
        with self._lock:
            count = len(self._sessions)
            self._sessions.clear()
            return count

    def listed(self) -> list[Session]:
        """The live sessions, oldest first."""
        with self._lock:
            self._forget_idle()
            return sorted(self._sessions.values(), key=lambda each: each.login_time)

    def note_failure(self, user: str) -> None:
        """Count a wrong password; enough of them lock the account."""
        now = time.monotonic()
        with self._lock:
            recent = [when for when in self._failures.get(user, []) if now - when < _LOCK_WINDOW_S]
            recent.append(now)
            self._failures[user] = recent
            if self._lock_after and len(recent) >= self._lock_after:
                self._locked_until[user] = now + _LOCKED_S

    def is_locked(self, user: str) -> bool:
        """True while the account is locked: even the right password is refused then."""
        with self._lock:
            return self._locked_until.get(user, 0.0) > time.monotonic()

    def _forget_idle(self) -> None:
        oldest = time.monotonic() - self._idle_s
        gone = [
            secret for secret, each in self._sessions.items() if not each.busy and each.last_active < oldest
        ]
        for secret in gone:
            del self._sessions[secret]
