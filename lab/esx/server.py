"""The hosts' calls over HTTP on loopback: `POST /call/NAME` with a JSON object, see lab.esx.api."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lab.esx.api import Fault, FaultRule, ReconfigSpec, Settings
from lab.esx.hosts import Hosts
from lab.esx.paths import HostError

MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_WAIT_S = 60.0


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _None(_Arguments):
    pass


class _Since(_Arguments):
    since: int = 0


class _Wait(_Arguments):
    version: int
    timeout_s: float = Field(default=30.0, ge=0, le=MAX_WAIT_S)


class _VmName(_Arguments):
    vm: str


class _VmUser(_VmName):
    user: str = "root"


class _OptionalVm(_Arguments):
    vm: str | None = None


class _TaskId(_Arguments):
    task: str


class _WaitTask(_TaskId):
    timeout_s: float = Field(default=20.0, ge=0, le=MAX_WAIT_S)


class _Events(_Arguments):
    after: int = 0
    limit: int = Field(default=1000, ge=1, le=10_000)


class _Path(_Arguments):
    path: str


class _CreateSnapshot(_VmUser):
    name: str
    description: str = ""
    memory: bool = False
    quiesce: bool = False


class _RemoveSnapshot(_Arguments):
    snapshot: str
    remove_children: bool = False
    consolidate: bool = True
    user: str = "root"


class _Reconfigure(_VmUser):
    spec: ReconfigSpec


class _Relocate(_VmUser):
    datastore: str


class _Register(_Path):
    name: str | None = None
    folder: str | None = None
    resource_pool: str | None = None
    host: str | None = None
    as_template: bool = False
    user: str = "root"


class _Login(_Arguments):
    user: str
    password: str = Field(repr=False)


class _SetUser(_Arguments):
    name: str
    privileges: list[str]
    password: str | None = Field(default=None, repr=False)


class _Rule(_Arguments):
    rule: FaultRule


class _Settings(_Arguments):
    settings: Settings


class _GuestRate(_VmName):
    rate: int = Field(ge=0, le=2000)


class _Frozen(_Arguments):
    snapshot: str
    disk_key: int


class _ReadFrozen(_Frozen):
    path: str


Call = tuple[type[BaseModel], Callable[..., object]]


def calls(hosts: Hosts) -> dict[str, Call]:
    """Name → arguments' model and what does it."""
    world = hosts.world

    def read_frozen(snapshot: str, disk_key: int, path: str) -> object:
        return hosts.frozen_digest(snapshot, disk_key, Path(path))

    return {
        "state": (_Since, world.state),
        "wait": (_Wait, world.wait),
        "vm": (_VmName, world.vm),
        "task": (_TaskId, world.task),
        "wait_task": (_WaitTask, hosts.wait_task),
        "events": (_Events, hosts.events),
        "layout": (_VmName, hosts.layout),
        "list_directory": (_Path, hosts.list_directory),
        "create_snapshot": (_CreateSnapshot, hosts.create_snapshot),
        "remove_snapshot": (_RemoveSnapshot, hosts.remove_snapshot),
        "consolidate": (_VmUser, hosts.consolidate),
        "reconfigure": (_Reconfigure, hosts.reconfigure),
        "power_on": (_VmUser, hosts.power_on),
        "power_off": (_VmUser, hosts.power_off),
        "register": (_Register, hosts.register),
        "relocate": (_Relocate, hosts.relocate),
        "destroy": (_VmUser, hosts.destroy),
        "unregister": (_VmUser, hosts.unregister),
        "cancel_task": (_TaskId, hosts.runner.cancel),
        "login": (_Login, hosts.login),
        "set_user": (_SetUser, hosts.set_user),
        "add_fault": (_Rule, hosts.add_fault),
        "clear_faults": (_None, hosts.clear_faults),
        "settings": (_None, lambda: world.site.settings),
        "set_settings": (_Settings, hosts.set_settings),
        "set_guest_rate": (_GuestRate, hosts.set_guest_rate),
        "check_frozen": (_None, hosts.check_frozen),
        "frozen_digest": (_Frozen, hosts.frozen_digest),
        "frozen_records": (_OptionalVm, hosts.frozen_records),
        "read_frozen": (_ReadFrozen, read_frozen),
    }


class HostServer(ThreadingHTTPServer):
    """Serves one `Hosts` on 127.0.0.1. Port 0 takes a free one: see `url`."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hosts: Hosts, port: int) -> None:
        self.calls = calls(hosts)
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Header and body leave in one packet only if small writes are not held back.
    disable_nagle_algorithm = True
    server: HostServer

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or "0")
        if not 0 <= length <= MAX_BODY_BYTES:
            self.close_connection = True
            self._answer(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _fault("InvalidRequest", "the body is too large")
            )
            return
        body = self.rfile.read(length)
        try:
            status, payload = HTTPStatus.OK, {"result": self._call(body)}
        except HostError as error:
            status, payload = HTTPStatus.CONFLICT, {"fault": error.fault.model_dump(mode="json")}
        except ValidationError as error:
            # Without the values: a password may be among them.
            problems = error.errors(include_input=False, include_url=False, include_context=False)
            status, payload = HTTPStatus.BAD_REQUEST, _fault("InvalidRequest", json.dumps(problems))
        except Exception as error:  # noqa: BLE001 - every call gets an answer
            traceback.print_exc(file=sys.stderr)
            status, payload = HTTPStatus.INTERNAL_SERVER_ERROR, _fault("SystemError", repr(error))
        self._answer(status, payload)

    def _call(self, body: bytes) -> object:
        name = self.path.removeprefix("/call/")
        known = self.server.calls.get(name)
        if known is None:
            raise HostError("InvalidRequest", f"no call {name[:80]!r}")
        model, code = known
        arguments = model.model_validate_json(body or b"{}")
        given = {field: getattr(arguments, field) for field in type(arguments).model_fields}
        result = code(**given)
        return TypeAdapter(object).dump_python(result, mode="json", serialize_as_any=True)

    def _answer(self, status: HTTPStatus, payload: object) -> None:
        body = json.dumps(payload).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing: calls are polled, and what matters is in the event log."""


def _fault(type_name: str, message: str) -> dict[str, object]:
    return {"fault": Fault(type=type_name, message=message).model_dump(mode="json")}
