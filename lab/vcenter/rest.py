"""vCenter's REST endpoint as far as tags go: sessions, tags, categories, and which tags an object carries.

As documented for the vSphere Automation API from 7.0 U2 on: `POST /api/session` with Basic authentication answers 201
and the session id, which later calls give in the header `vmware-api-session-id`. Sessions share table, limit, idle time
and account lock with the SOAP ones, as in vCenter, where both are sessions of the same service.
"""

from __future__ import annotations

import base64
import binascii
import email.message
import json
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lab.esx.client import HostFault, HostUnreachableError
from lab.vcenter.scope import Scope, VCenter
from lab.vcenter.sessions import Session, TooManySessionsError

SESSION_HEADER = "vmware-api-session-id"
MAX_OBJECTS = 128
"""In one question for attached tags. The documentation names no bound, and real services refuse long lists: the lab is
strict, so that a client must ask in parts."""
_TAGGING = "/api/cis/tagging/"


@dataclass(frozen=True)
class RestRequest:
    """One HTTP request below `/api`."""

    method: str
    target: str
    """Path and query."""
    headers: email.message.Message
    body: bytes
    address: str


@dataclass(frozen=True)
class RestAnswer:
    """What is sent back: `value` as JSON, nothing for None. `name` stands in the call log."""

    status: int
    value: Any = None
    name: str = "REST"
    user: str = ""


class RestError(Exception):
    """An answer of the API's own error form (`Vapi.Std.Errors.Error`)."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


def serve(vcenter: VCenter, request: RestRequest) -> RestAnswer:
    """Answer a request; every refusal is an answer too."""
    name, user = "REST", ""
    try:
        path, _, query = request.target.partition("?")
        if (request.method, path) == ("POST", "/api/session"):
            name = "REST login"
            session = _log_in(vcenter, request)
            return RestAnswer(201, session.secret, name, session.user)
        session = _session(vcenter, request)
        user = session.user
        if path == "/api/session":
            return _own_session(vcenter, request.method, session)
        name, handler = _route(request.method, path, query)
        return RestAnswer(200, handler(_reader(vcenter, session), path, request.body), name, user)
    except RestError as error:
        message = {"args": [], "default_message": str(error), "id": "lab.vcenter.rest"}
        return RestAnswer(error.status, {"error_type": error.kind, "messages": [message]}, name, user)
    except (TooManySessionsError, HostUnreachableError):
        return RestAnswer(503, {"error_type": "SERVICE_UNAVAILABLE", "messages": []}, name, user)


def _log_in(vcenter: VCenter, request: RestRequest) -> Session:
    refused = RestError(401, "UNAUTHENTICATED", "Authentication required.")
    kind, _, encoded = request.headers.get("Authorization", "").partition(" ")
    try:
        user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise refused from None
    if kind.lower() != "basic" or vcenter.sessions.is_locked(user):
        raise refused
    try:
        known = vcenter.hosts.login(user, password)
    except HostFault as error:
        if error.fault.type != "InvalidLogin":
            raise
        vcenter.sessions.note_failure(user)
        raise refused from None
    return vcenter.sessions.open(known.name, request.address, request.headers.get("User-Agent", "")[:200])


def _session(vcenter: VCenter, request: RestRequest) -> Session:
    session = vcenter.sessions.find(request.headers.get(SESSION_HEADER))
    if session is None:
        raise RestError(401, "UNAUTHENTICATED", "This method requires authentication.")
    vcenter.sessions.begin_call(session)
    vcenter.sessions.end_call(session)
    return session


def _reader(vcenter: VCenter, session: Session) -> Scope:
    scope = vcenter.scope(session)
    if "System.Read" not in scope.privileges():
        raise RestError(403, "UNAUTHORIZED", "The user lacks the privilege System.Read.")
    return scope


def _own_session(vcenter: VCenter, method: str, session: Session) -> RestAnswer:
    if method == "DELETE":
        vcenter.sessions.close(session)
        return RestAnswer(204, None, "REST logout", session.user)
    if method != "GET":
        raise RestError(404, "NOT_FOUND", "There is no such operation.")
    told = {"user": session.user, "created_time": session.login_time.isoformat()}
    return RestAnswer(200, told, "REST session", session.user)


def _route(method: str, path: str, query: str) -> tuple[str, Callable[[Scope, str, bytes], Any]]:
    if not path.startswith(_TAGGING):
        raise RestError(404, "NOT_FOUND", "There is no such operation.")
    kind, _, wanted = path.removeprefix(_TAGGING).partition("/")
    asked = (method, kind, bool(wanted), urllib.parse.parse_qs(query).get("action", [""])[0])
    routes: dict[tuple[str, str, bool, str], Callable[[Scope, str, bytes], Any]] = {
        ("GET", "tag", False, ""): lambda scope, _path, _body: [each.id for each in scope.labels.tags],
        ("GET", "tag", True, ""): _tag,
        ("GET", "category", False, ""): lambda scope, _path, _body: [
            each.id for each in scope.labels.categories
        ],
        ("GET", "category", True, ""): _category,
        ("POST", "tag-association", False, "list-attached-tags-on-objects"): _attached,
    }
    if asked not in routes:
        raise RestError(404, "NOT_FOUND", "There is no such operation.")
    return f"REST {kind} {asked[3] or ('get' if wanted else 'list')}", routes[asked]


def _tag(scope: Scope, path: str, _body: bytes) -> Any:
    found = next((each for each in scope.labels.tags if each.id == _id(path)), None)
    if found is None:
        raise RestError(404, "NOT_FOUND", f"Tag {_id(path)} was not found.")
    return {
        "id": found.id,
        "name": found.name,
        "category_id": found.category_id,
        "description": "",
        "used_by": [],
    }


def _category(scope: Scope, path: str, _body: bytes) -> Any:
    found = next((each for each in scope.labels.categories if each.id == _id(path)), None)
    if found is None:
        raise RestError(404, "NOT_FOUND", f"Category {_id(path)} was not found.")
    return {
        "id": found.id,
        "name": found.name,
        "cardinality": "MULTIPLE",
        "associable_types": ["VirtualMachine"],
        "description": "",
        "used_by": [],
    }


def _attached(scope: Scope, _path: str, body: bytes) -> Any:
    """Only objects that carry a tag are in the answer, as the documentation permits."""
    try:
        wanted = [(str(each["type"]), str(each["id"])) for each in json.loads(body)["object_ids"]]
    except (ValueError, KeyError, TypeError):
        raise RestError(400, "INVALID_ARGUMENT", "object_ids is missing or malformed.") from None
    if len(wanted) > MAX_OBJECTS:
        raise RestError(400, "INVALID_ARGUMENT", f"More than {MAX_OBJECTS} objects were given.")
    vms = scope.inventory.vms
    return [
        {"object_id": {"type": kind, "id": moref}, "tag_ids": list(vms[moref].tags)}
        for kind, moref in wanted
        if kind == "VirtualMachine" and moref in vms and vms[moref].tags
    ]


def _id(path: str) -> str:
    return urllib.parse.unquote(path.rpartition("/")[2])
