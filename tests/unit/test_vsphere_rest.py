"""Goal: whatever stands at the REST endpoint's place, its answers become our errors, and a password is not repeated.

The server here is a stand-in: it plays answers that the lab's vCenter does not give.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from lab.vcenter.certificate import ensure_certificate, server_context
from safehaul.errors import (
    BusyError,
    ConnectionLostError,
    NotFoundError,
    PermissionRefusedError,
    SafehaulError,
    UnsupportedError,
)
from safehaul.vsphere.faults import UnreadableAnswerError
from safehaul.vsphere.rest import RestSession
from safehaul.vsphere.stub import Endpoint
from safehaul.vsphere.tags import tags_of
from safehaul.vsphere.tls import Trust

Answer = tuple[int, bytes]
Play = Callable[[str, str], Answer | None]
"""Method and path to status and body; None hangs up."""
TOKEN: Answer = (201, b'"token-1"')


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Play], RestSession]]:
    """Starts the stand-in with a function that answers, and gives a client of it."""
    certificate = ensure_certificate(tmp_path)
    servers: list[ThreadingHTTPServer] = []
    clients: list[RestSession] = []

    def start(play: Play) -> RestSession:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                answer = play(self.command, self.path)
                if answer is None:
                    self.close_connection = True
                    return
                self.send_response(answer[0])
                self.send_header("Content-Length", str(len(answer[1])))
                self.end_headers()
                self.wfile.write(answer[1])

            do_GET = do_POST = do_DELETE = handle_one  # noqa: N815 - the base class's names

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        server.socket = server_context(certificate).wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        client = RestSession(
            Endpoint("vc", "127.0.0.1", server.server_address[1]),
            Trust(thumbprint_sha256=certificate.thumbprint),
            "backup",
            SecretStr("S3cret!"),
            timeout_s=10,
        )
        clients.append(client)
        return client

    yield start
    for client in clients:
        client.close()
    for server in servers:
        server.shutdown()
        server.server_close()


def _always(answer: Answer | None) -> Play:
    return lambda method, path: TOKEN if (method, path) == ("POST", "/api/session") else answer


def _error(message: str) -> bytes:
    return json.dumps(
        {"error_type": "X", "messages": [{"default_message": message, "args": [], "id": "i"}]}
    ).encode()


@pytest.mark.parametrize(
    ("answer", "error", "told"),
    [
        ((404, b""), NotFoundError, "7.0 U2"),
        ((403, _error("no read")), PermissionRefusedError, "(X no read): give the account System.Read"),
        ((429, b""), BusyError, "later"),
        ((503, b"<html>"), BusyError, "HTTP 503: vCenter"),
        ((500, _error("a\x1b[31m\nb")), ConnectionLostError, "(X a[31m b)"),
        ((400, b"[]"), UnsupportedError, "does not take this request"),
        ((302, b""), UnsupportedError, "HTTP 302"),
        ((200, b"<html>"), UnreadableAnswerError, "is not JSON"),
        ((200, b"[" * 100_000), UnreadableAnswerError, "is not JSON"),
        (None, ConnectionLostError, "closed without an answer"),
    ],
)
def test_each_answer_has_its_error(
    serve: Callable[[Play], RestSession], answer: Answer | None, error: type[SafehaulError], told: str
) -> None:
    with pytest.raises(error) as failure:
        serve(_always(answer)).get("/api/x?filter=1")
    assert told in str(failure.value)
    assert "GET /api/x at vCenter vc at 127.0.0.1" in str(failure.value)
    assert "S3cret!" not in repr(failure.value)


def test_a_vcenter_without_the_endpoint_is_told_by_its_age(serve: Callable[[Play], RestSession]) -> None:
    with pytest.raises(UnsupportedError, match=r"rules by tag need vCenter 7\.0 U2 or later"):
        serve(lambda _method, _path: (404, b"")).get("/api/x")


@pytest.mark.parametrize("token", [b"{}", b'""', b"null", b'"a\\nInjected: header"', b""])
def test_a_session_id_that_is_none_is_refused(serve: Callable[[Play], RestSession], token: bytes) -> None:
    with pytest.raises(UnreadableAnswerError):
        serve(lambda _method, _path: (201, token)).get("/api/x")


def test_a_session_that_is_never_accepted_is_an_error_and_no_loop(
    serve: Callable[[Play], RestSession],
) -> None:
    asked: list[str] = []

    def play(method: str, path: str) -> Answer:
        asked.append(f"{method} {path}")
        return TOKEN if path == "/api/session" and method == "POST" else (401, b"")

    with pytest.raises(SafehaulError, match="HTTP 401"):
        serve(play).get("/api/x")
    assert asked == ["POST /api/session", "GET /api/x", "POST /api/session", "GET /api/x"]


@pytest.mark.parametrize(
    "attached",
    [{"value": []}, [{"object_id": "vm-1"}], [7], [{"object_id": {"id": "vm-1"}, "tag_ids": 7}], None],
)
def test_lists_of_another_form_are_told_and_do_not_crash(
    serve: Callable[[Play], RestSession], attached: object
) -> None:
    with pytest.raises(UnreadableAnswerError):
        tags_of(serve(_always((200, json.dumps(attached).encode()))), ["vm-1"])


def test_a_tag_that_is_deleted_meanwhile_is_on_no_vm(serve: Callable[[Play], RestSession]) -> None:
    def play(method: str, path: str) -> Answer:
        if method == "GET":
            return 404, b""
        if path == "/api/session":
            return TOKEN
        return 200, json.dumps([{"object_id": {"id": "vm-1", "type": "V"}, "tag_ids": ["urn:a/b"]}]).encode()

    assert tags_of(serve(play), ["vm-1"]) == {"vm-1": []}
