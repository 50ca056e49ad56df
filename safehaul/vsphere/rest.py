"""A session with vCenter's REST endpoint (`/api`, vSphere 7.0 U2 and later), for what SOAP does not tell: tags.

It is a session of its own beside the SOAP one: opened when a rule first asks for it, with the same trust, one try with
a wrong password, logged in again when vCenter has forgotten it, and ended at exit.
"""

from __future__ import annotations

import base64
import http.client
import json
import logging
import threading
from typing import Any, Final, NamedTuple

from pydantic import SecretStr

from safehaul.errors import (
    BusyError,
    ConnectionLostError,
    LoginRefusedError,
    NotFoundError,
    PermissionRefusedError,
    SafehaulError,
    SessionLostError,
    UnsupportedError,
)
from safehaul.vsphere.faults import HungUpError, UnreadableAnswerError, translate
from safehaul.vsphere.stub import Endpoint
from safehaul.vsphere.tls import Trust, connection_class

log = logging.getLogger(__name__)

# vSphere Automation API, "Authentication": the token of POST /api/session goes into this header.
SESSION_HEADER: Final = "vmware-api-session-id"
_SESSION_PATH: Final = "/api/session"
_MAX_ANSWER_BYTES: Final = 16 << 20
_MAX_SAID_CHARS: Final = 300


class _Answer(NamedTuple):
    status: int
    body: bytes


class RestSession:
    """One REST session for the whole process; one call at a time."""

    def __init__(
        self, endpoint: Endpoint, trust: Trust, user: str, password: SecretStr, timeout_s: float
    ) -> None:
        """Opens nothing yet."""
        self._endpoint = endpoint
        self._trust = trust
        self._user = user
        self._password = password
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._connection: http.client.HTTPSConnection | None = None
        self._token = ""
        self._refused = ""

    def get(self, path: str) -> Any:
        """The JSON that `GET path` answers.

        Raises:
            SafehaulError: as `call`.
        """
        return self.call("GET", path)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Calls that change nothing: a lost connection or session is answered by one more try.

        Args:
            method: HTTP's.
            path: from `/api` on, with its query.
            body: sent as JSON, unless None.

        Raises:
            LoginRefusedError: user or password; tried once only.
            PermissionRefusedError: the account may not do this.
            NotFoundError: the object does not exist.
            UnsupportedError: this vCenter has no such endpoint.
            BusyError: too many requests, or the service is being started.
            ConnectionLostError: no answer.
        """
        with self._lock:
            if not self._token:
                self._log_in()
            try:
                return self._parsed(self._ask(method, path, body), method, path)
            except SessionLostError:
                log.info("vCenter %s: REST session lost, logging in again", self._endpoint.name)
                self._log_in()
                return self._parsed(self._ask(method, path, body), method, path)

    def close(self) -> None:
        """Ends the session and the connection; a later call logs in again. Never raises."""
        with self._lock:
            if self._token:
                try:
                    self._ask("DELETE", _SESSION_PATH)
                except SafehaulError as error:
                    # The session idles out by itself; a process that ends must end.
                    log.info("vCenter %s: REST logout failed: %s", self._endpoint.name, error)
            self._token = ""
            self._hang_up()

    def _log_in(self) -> None:
        if self._refused:
            raise LoginRefusedError(self._refused)
        self._token = ""
        secret = base64.b64encode(f"{self._user}:{self._password.get_secret_value()}".encode()).decode()
        answer = self._ask("POST", _SESSION_PATH, headers={"Authorization": f"Basic {secret}"})
        if answer.status == 401:
            self._refused = (
                f"vCenter {self._endpoint.name} refused user {self._user!r} at its REST endpoint, which tags need: "
                "correct user or password in the configuration, then restart this worker (it tries only once)"
            )
            raise LoginRefusedError(self._refused)
        if answer.status == 404:
            raise UnsupportedError(
                f"{self._endpoint} has no {_SESSION_PATH}: rules by tag need vCenter 7.0 U2 or later"
            )
        token = self._parsed(answer, "POST", _SESSION_PATH)
        if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
            raise UnreadableAnswerError(f"{self._endpoint}: POST {_SESSION_PATH} answered no session id")
        self._token = token

    def _ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> _Answer:
        """One request; once more on a fresh connection when a kept one turns out to be dead."""
        kept = self._connection is not None
        try:
            return self._send(method, path, body, headers)
        except HungUpError:
            if not kept:
                raise
            return self._send(method, path, body, headers)

    def _send(self, method: str, path: str, body: Any, headers: dict[str, str] | None) -> _Answer:
        content = None if body is None else json.dumps(body).encode()
        sent = {"Accept": "application/json", "Content-Type": "application/json", **(headers or {})}
        if self._token:
            sent[SESSION_HEADER] = self._token
        try:
            if self._connection is None:
                self._connection = connection_class(self._trust, str(self._endpoint))(
                    self._endpoint.host,
                    self._endpoint.port,
                    timeout=self._timeout_s,
                    context=self._trust.context(),
                )
            self._connection.request(method, path, body=content, headers=sent)
            response = self._connection.getresponse()
            answer = response.read(_MAX_ANSWER_BYTES + 1)
        except SafehaulError:
            self._hang_up()
            raise
        except Exception as error:
            self._hang_up()
            raise translate(error, self._what(method, path)) from error
        if response.will_close or len(answer) > _MAX_ANSWER_BYTES:
            self._hang_up()
        if len(answer) > _MAX_ANSWER_BYTES:
            raise UnreadableAnswerError(
                f"{self._what(method, path)}: the answer is longer than {_MAX_ANSWER_BYTES} bytes"
            )
        return _Answer(response.status, answer)

    def _parsed(self, answer: _Answer, method: str, path: str) -> Any:
        what = self._what(method, path)
        status = answer.status
        if 200 <= status < 300:
            try:
                return json.loads(answer.body) if answer.body else None
            except (ValueError, RecursionError) as error:
                raise UnreadableAnswerError(
                    f"{what}: the answer is not JSON ({type(error).__name__})"
                ) from error
        told = f"{what}: HTTP {status}{_said(answer.body)}"
        if status == 401:
            raise SessionLostError(f"{told}: the next call logs in again")
        if status == 403:
            raise PermissionRefusedError(f"{told}: give the account System.Read on the tags and VMs")
        if status == 404:
            raise NotFoundError(f"{told}: it was deleted, or this vCenter is older than 7.0 U2")
        if status in (429, 503):
            raise BusyError(f"{told}: vCenter asks to come later")
        if status >= 500:
            raise ConnectionLostError(f"{told}: look at vCenter's services")
        raise UnsupportedError(f"{told}: vCenter does not take this request")

    def _what(self, method: str, path: str) -> str:
        return f"{method} {path.partition('?')[0]} at {self._endpoint}"

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _said(body: bytes) -> str:
    """What an error's JSON says (vSphere Automation API, `Vapi.Std.Errors.Error`): untrusted, one bounded line."""
    try:
        found = json.loads(body)
        messages = [str(each["default_message"]) for each in found["messages"]]
        text = " ".join(f"{found.get('error_type', '')} {' '.join(messages)}".split())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
    return f" ({''.join(char for char in text if char.isprintable())[:_MAX_SAID_CHARS]})"
