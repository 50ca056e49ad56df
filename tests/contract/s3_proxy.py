"""A proxy before an S3 server that answers wrongly, late, in part or not at all, when told to."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from lab.vcenter.certificate import Certificate

# What can go wrong with one request. "…_after" has been carried out by the server before.
FAULTS = (
    "500",
    "500_after",
    "503",
    "stall",
    "stall_after",
    "cut",
    "cut_after",
    "cut_upload",
    "cut_answer",
)
_ERROR = b'<?xml version="1.0"?><Error><Code>%s</Code><Message>made by the test</Message></Error>'


@dataclass
class Rule:
    """Spoils the next `times` requests whose `METHOD path?query` has the pattern in it."""

    fault: str
    pattern: str
    times: int
    done: int = 0


@dataclass
class FaultyProxy:
    """A context manager that listens on `endpoint`. Requests pass as they are: the signature is of our port."""

    server: str
    rules: list[Rule] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    """`METHOD path?query` of each, in order."""
    stall_s: float = 1.5
    certificate: Certificate | None = None
    """Speak TLS with it."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self.released = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its name there)
                pass

            def _do(self) -> None:
                proxy.handle(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _do  # noqa: N815 (http.server's names)

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that goes away is what is tested."""

        self._server = Server(("127.0.0.1", 0), Handler)
        if self.certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate.certificate_path, self.certificate.key_path)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def endpoint(self) -> str:
        scheme = "http" if self.certificate is None else "https"
        return f"{scheme}://127.0.0.1:{self._server.server_address[1]}"

    def spoil(self, fault: str, pattern: str = "", times: int = 1) -> Rule:
        rule = Rule(fault, pattern, times)
        self.rules.append(rule)
        return rule

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        fault = self._fault(request.command, request.path)
        length = int(request.headers.get("Content-Length") or 0)
        if fault == "cut_upload":
            half = request.rfile.read(length // 2)
            self._send_half(request, half, length)
            return _cut(request)
        body = request.rfile.read(length)
        if fault == "stall":
            self.released.wait(self.stall_s)
        if fault in {"stall", "cut"}:
            return _cut(request)
        if fault in {"500", "503"}:
            code = b"InternalError" if fault == "500" else b"SlowDown"
            return _answer(request, int(fault), [], _ERROR % code)
        status, headers, answer = self._forward(request, body)
        if fault == "500_after":
            return _answer(request, 500, [], _ERROR % b"InternalError")
        if fault == "stall_after":
            self.released.wait(self.stall_s)
        if fault in {"stall_after", "cut_after"}:
            return _cut(request)
        return _answer(request, status, headers, answer, half=fault == "cut_answer")

    def _fault(self, method: str, path: str) -> str:
        with self._lock:
            line = f"{method} {path}"
            self.requests.append(line)
            for rule in self.rules:
                if rule.done < rule.times and re.search(rule.pattern, line):
                    rule.done += 1
                    return rule.fault
        return ""

    def _forward(
        self, request: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = urlsplit(self.server)
        connection = http.client.HTTPConnection(str(upstream.hostname), upstream.port or 80, timeout=30)
        try:
            connection.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _send_half(self, request: BaseHTTPRequestHandler, half: bytes, length: int) -> None:
        """The server gets the head and half of the body, and then a cut connection: what it makes of it is its own."""
        upstream = urlsplit(self.server)
        head = f"{request.command} {request.path} HTTP/1.1\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        with socket.create_connection(
            (str(upstream.hostname), upstream.port or 80), timeout=10
        ) as connection:
            connection.sendall(f"{head}\r\n".encode() + half)
        assert len(half) < length or not length

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _cut(request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True
    request.connection.shutdown(socket.SHUT_RDWR)


def _answer(
    request: BaseHTTPRequestHandler,
    status: int,
    headers: list[tuple[str, str]],
    body: bytes,
    *,
    half: bool = False,
) -> None:
    request.send_response_only(status)
    length = len(body)
    for name, value in headers:
        if name.lower() == "content-length":
            # HEAD tells the length of what it does not send.
            length = int(value) if request.command == "HEAD" else length
        elif name.lower() not in {"connection", "transfer-encoding", "keep-alive"}:
            request.send_header(name, value)
    request.send_header("Content-Length", str(length))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body[: len(body) // 2] if half else body)
    request.wfile.flush()
    if half:
        _cut(request)
