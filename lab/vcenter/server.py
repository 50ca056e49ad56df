"""HTTPS in front of the dispatcher: one thread per connection, keep-alive, bounded requests.

Beside `/sdk` it answers `POST /lab/expire-sessions`, `GET /lab/status`, and `POST /lab/hold`, `/lab/wait-held` and
`/lab/release` (see lab.vcenter.holding) for tests that hold the token of the state directory (`admin.token`); a real
vCenter has no such addresses.
"""

from __future__ import annotations

import hmac
import json
import logging
import re
import select
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pyVmomi import VmomiSupport, vmodl

from lab.esx.client import HostUnreachableError
from lab.vcenter import methods_collector, methods_search, methods_session, methods_vm, rest, soap
from lab.vcenter.body import BodyRefusedError, request_body
from lab.vcenter.dispatch import DropConnection, Invocation, Registry, invoke
from lab.vcenter.holding import CallHold, HoldOrder
from lab.vcenter.reflect import moid_of, property_info
from lab.vcenter.scope import VCenter
from lab.vcenter.sessions import Session, TooManySessionsError
from lab.vcenter.updates import ClientGone

_LOG = logging.getLogger(__name__)
_MAX_CONNECTIONS = 256
_IDLE_TIMEOUT_S = 300.0
_HANDSHAKE_TIMEOUT_S = 10.0
_LONG_POLL_S = 5.0
_COOKIE = re.compile(r'vmware_soap_session="?([0-9a-f]{8,64})"?')


def registry() -> Registry:
    """All methods that the front answers."""
    made = Registry()
    for module in (methods_session, methods_collector, methods_vm, methods_search):
        module.register(made)
    return made


class Server(ThreadingHTTPServer):
    """The listening socket. `admin_token` opens the `/lab` addresses."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, port: int, context: ssl.SSLContext, vcenter: VCenter, admin_token: str) -> None:
        self.vcenter = vcenter
        self.registry = registry()
        self.admin_token = admin_token
        self.hold = CallHold()
        self._context = context
        self._slots = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__(("127.0.0.1", port), Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a connection's thread, unless too many run already."""
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The handshake is done here, so that a silent client holds up nobody but itself."""
        try:
            request.settimeout(_HANDSHAKE_TIMEOUT_S)
            try:
                secured = self._context.wrap_socket(request, server_side=True)
            except (OSError, ValueError) as error:
                _LOG.debug("no TLS with %s: %s", client_address, error)
                self.shutdown_request(request)
                return
            super().process_request_thread(secured, client_address)
        finally:
            self.vcenter.hosts.close()
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's signature
        """A connection that broke is the client's affair; anything else belongs in the process's log."""
        _LOG.debug("connection of %s ended", client_address, exc_info=True)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "lab-vcenter"
    sys_version = ""
    timeout = _IDLE_TIMEOUT_S
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Server

    def do_GET(self) -> None:
        """Version probe, WSDL and status."""
        if self.path == "/sdk/vimServiceVersions.xml":
            self._answer(200, soap.SERVICE_VERSIONS.encode())
        elif self.path in ("/sdk/vimService.wsdl", "/sdk/vimService?wsdl"):
            self._answer(200, soap.SERVICE_WSDL.encode())
        elif self.path == "/lab/status" and self._is_admin():
            status = {
                "sessions": len(self.server.vcenter.sessions.listed()),
                "calls": self.server.vcenter.log.counts(),
            }
            self._answer(200, json.dumps(status).encode(), content_type="application/json")
        elif self.path.startswith("/api/"):
            self._serve_rest(b"")
        else:
            self._answer(404, b"", content_type="text/plain")

    def do_POST(self) -> None:
        """One SOAP call, or an order of a test."""
        body = self._body()
        if body is None:
            return
        if self.path in ("/sdk", "/sdk/", "/sdk/vimService"):
            self._serve_call(body)
        elif self.path.startswith("/lab/") and self._is_admin():
            self._serve_order(self.path.removeprefix("/lab/"), body)
        elif self.path.startswith("/api/"):
            self._serve_rest(body)
        else:
            self._answer(404, b"", content_type="text/plain")

    def do_DELETE(self) -> None:
        """The end of a REST session."""
        self._serve_rest(b"")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Calls are logged by name in the call log instead."""

    def _serve_rest(self, body: bytes) -> None:
        """One call of the REST endpoint."""
        started = time.monotonic()
        request = rest.RestRequest(self.command, self.path, self.headers, body, str(self.client_address[0]))
        answer = rest.serve(self.server.vcenter, request)
        failed = f"HTTP {answer.status}" if answer.status >= 400 else ""
        self.server.vcenter.log.record(answer.name, "", user=answer.user, fault=failed, started=started)
        content = b"" if answer.value is None else json.dumps(answer.value).encode()
        self._answer(answer.status, content, content_type="application/json")

    def _serve_order(self, order: str, body: bytes) -> None:
        """What a test wants done that no client of a vCenter can ask for."""
        hold = self.server.hold
        answer: dict[str, Any] = {}
        if order == "expire-sessions":
            answer = {"expired": self.server.vcenter.sessions.expire_all()}
        elif order == "hold":
            hold.arm(HoldOrder.model_validate_json(body))
        elif order == "wait-held":
            answer = hold.wait_reached(_LONG_POLL_S)
        elif order == "release":
            hold.release()
        else:
            self._answer(404, b"", content_type="text/plain")
            return
        self._answer(200, json.dumps(answer).encode(), content_type="application/json")

    def _serve_call(self, body: bytes) -> None:
        started = time.monotonic()
        version = soap.negotiated_version(self.headers.get("SOAPAction"))
        try:
            call = soap.parse_call(body)
        except soap.BadRequest as error:
            self.server.vcenter.log.record(
                "(bad request)", "", user="", fault="InvalidRequest", started=started, detail=str(error)
            )
            self._answer(500, soap.bad_request_document(str(error)))
            return
        sessions = self.server.vcenter.sessions
        session = sessions.find(self._cookie())
        if session is not None:
            sessions.begin_call(session)
        try:
            self._run(call, session, version, started)
        finally:
            if session is not None:
                sessions.end_call(session)

    def _run(self, call: soap.Call, session: Session | None, version: str, started: float) -> None:
        outcome, answer, status, cookie = "", b"", 200, None
        visit = self.server.hold.arrive(call.method, int(self.client_address[1]))
        self.server.hold.stop_here(visit, "before")
        try:
            invocation = self._invocation(call, session)
            value = invoke(self.server.registry, invocation)
            answer = soap.result_document(call.method, value, _declared(call), version)
            if invocation.new_session is not None:
                cookie = f'vmware_soap_session="{invocation.new_session.secret}"; Path=/; HttpOnly; Secure'
            elif invocation.closed_session:
                cookie = 'vmware_soap_session=""; Path=/; Max-Age=0'
        except (DropConnection, ClientGone) as reason:
            outcome = type(reason).__name__
            self.close_connection = True
        except TooManySessionsError:
            outcome, status = "TooManySessions", 503
        except vmodl.MethodFault as fault:
            outcome, status = VmomiSupport.GetWsdlName(type(fault)), 500
            answer = soap.fault_document(fault, version)
        except HostUnreachableError as error:
            _LOG.warning("%s", error)
            outcome, status = "HostNotReachable", 500
            answer = soap.fault_document(
                vmodl.fault.HostNotReachable(msg="The host could not be reached."), version
            )
        except Exception:  # noqa: BLE001 - the last line of defence of a connection
            # A defect of the lab: the client gets a fault as from a sick vCenter, the trace stays here.
            _LOG.exception("%s failed", call.method)
            outcome, status = "SystemError", 500
            answer = soap.fault_document(
                vmodl.fault.SystemError(msg="A general system error occurred", reason="internal error"),
                version,
            )
        self.server.hold.stop_here(visit, "after")
        detail = str(call.arguments.get("prop", "")) if call.method == "Fetch" else ""
        user = session.user if session else ""
        self.server.vcenter.log.record(
            call.method, moid_of(call.target), user=user, fault=outcome, started=started, detail=detail
        )
        if not self.close_connection or outcome not in ("DropConnection", "ClientGone"):
            self._answer(status, answer, cookie=cookie)

    def _invocation(self, call: soap.Call, session: Session | None) -> Invocation:
        vcenter = self.server.vcenter
        return Invocation(
            vcenter=vcenter,
            call=call,
            session=session,
            scope=vcenter.scope(session),
            address=str(self.client_address[0]),
            agent=self.headers.get("User-Agent", "")[:200],
            is_client_gone=self._is_client_gone,
        )

    def _body(self) -> bytes | None:
        """The request's body; None after a refusal was sent."""
        try:
            return request_body(self.headers, self.rfile)
        except BodyRefusedError as refusal:
            self.close_connection = True
            self._answer(refusal.status, b"", content_type="text/plain")
            return None

    def _cookie(self) -> str | None:
        match = _COOKIE.search(self.headers.get("Cookie", ""))
        return match[1] if match else None

    def _is_admin(self) -> bool:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return hmac.compare_digest(given.encode(), self.server.admin_token.encode())

    def _is_client_gone(self) -> bool:
        """A client that waits for an answer sends nothing: what can be read is the end of its connection."""
        try:
            readable, _, _ = select.select([self.connection], [], [], 0)
        except (OSError, ValueError):
            return True
        if not readable:
            return False
        try:
            # Below TLS on purpose: only whether bytes (an alert) or the end have arrived matters.
            socket.socket.recv(self.connection, 1, socket.MSG_PEEK)
        except OSError:
            return True
        return True

    def _answer(
        self,
        status: int,
        body: bytes,
        *,
        content_type: str = "text/xml; charset=utf-8",
        cookie: str | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-cache")
        if cookie is not None:
            self.send_header("Set-Cookie", cookie)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


def _declared(call: soap.Call) -> Any:
    """The static type of a call's result; for a property, that of the property."""
    if call.info is not None:
        return call.info.methodResult
    return property_info(type(call.target), call.arguments["prop"]).type
