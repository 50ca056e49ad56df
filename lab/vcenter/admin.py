"""Orders to a running front that no real vCenter takes: expire all sessions, tell call counts, hold a call."""

from __future__ import annotations

import http.client
import json
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lab.vcenter.holding import HoldOrder, When


class VCenterAdmin:
    """Talks to the front at `url` (as it printed it) whose state directory is `state_dir`."""

    def __init__(self, url: str, state_dir: Path, timeout_s: float = 10.0) -> None:
        parts = urlsplit(url)
        if parts.hostname is None or parts.port is None:
            message = f"{url!r} is not https://ADDRESS:PORT/sdk"
            raise ValueError(message)
        self._address = (parts.hostname, parts.port)
        self._context = ssl.create_default_context(cafile=str(state_dir / "vcenter.pem"))
        self._token = (state_dir / "admin.token").read_text().strip()
        self._timeout_s = timeout_s

    def expire_sessions(self) -> int:
        """Forget every session now; returns how many there were. Their next call gets NotAuthenticated."""
        return int(self._call("POST", "/lab/expire-sessions")["expired"])

    def call_counts(self) -> dict[str, int]:
        """SOAP calls since the front's start, by method name."""
        counts: dict[str, int] = self._call("GET", "/lab/status")["calls"]
        return counts

    def session_count(self) -> int:
        """Live sessions."""
        return int(self._call("GET", "/lab/status")["sessions"])

    def hold(self, method: str, nth: int, when: When) -> None:
        """Hold the `nth` call of `method` from now on, before its execution or after it, until `release`."""
        self._call("POST", "/lab/hold", HoldOrder(method=method, nth=nth, when=when).model_dump_json())

    def wait_held(self) -> int | None:
        """The TCP port of the client whose call is held; None when none is within a few seconds."""
        answer = self._call("POST", "/lab/wait-held")
        return int(answer["client_port"]) if answer["reached"] else None

    def release(self) -> None:
        """Let the held call go on."""
        self._call("POST", "/lab/release")

    def _call(self, method: str, path: str, body: str = "") -> dict[str, Any]:
        connection = http.client.HTTPSConnection(
            *self._address, context=self._context, timeout=self._timeout_s
        )
        try:
            content = body.encode()
            headers = {"Authorization": f"Bearer {self._token}", "Content-Length": str(len(content))}
            connection.request(method, path, content, headers)
            answer = connection.getresponse()
            received = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            message = f"the front answered {method} {path} with HTTP {answer.status}"
            raise ConnectionError(message)
        parsed: dict[str, Any] = json.loads(received)
        return parsed
