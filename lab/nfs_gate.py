"""A gate before the lab's filer that plays what rclone cannot: NFS refusals on the wire, and lost connections.

It passes NFSv3 over TCP through and answers the calls that a rule refuses by itself. Sources: RFC 5531 (record
marking, section 11; calls and replies, section 9; AUTH_SYS, appendix A) and RFC 1813 (procedures, section 3.3).
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Self

NFS_PROGRAM = 100003
MAX_RECORD_BYTES = 8 * 1024 * 1024
"""rclone and the client move at most 4 MiB of data in one record."""

NFS3ERR_IO = 5
NFS3ERR_ACCES = 13
NFS3ERR_STALE = 70
NFS3ERR_JUKEBOX = 10008

GETATTR = 1
LOOKUP = 3
ACCESS = 4
READ = 6
# A failed GETATTR has no body; the others have one post_op_attr, which may say "none" (RFC 1813, 3.3).
_NO_ATTRIBUTES = {GETATTR: b"", LOOKUP: bytes(4), ACCESS: bytes(4), READ: bytes(4)}


@dataclass(frozen=True)
class Rule:
    """Which calls are refused: on files whose name fits `names`, by `uid` (None: anybody), in `procedures`."""

    names: str
    status: int
    uid: int | None = None
    procedures: frozenset[int] = frozenset({READ})


@dataclass(frozen=True)
class _Hold:
    """READs of files whose name fits `names`, at `from_offset_bytes` or beyond."""

    names: str
    from_offset_bytes: int


@dataclass(frozen=True)
class Passing:
    """A LOOKUP, ACCESS or READ of a file on its way through the gate, or the answer to it.

    `length_bytes` of a READ is what was asked for; of its answer, what came (0 when it failed).
    """

    procedure: int
    name: str
    client_port: int
    offset_bytes: int = 0
    length_bytes: int = 0
    answered: bool = False


Watcher = Callable[[Passing], None]
"""Is told of each call and each answer on the connection's own thread: the gate waits until it returns."""


@dataclass(frozen=True)
class _Call:
    """The parts of an NFS call that rules look at."""

    xid: int
    procedure: int
    uid: int
    arguments: bytes


class NfsGate:
    """Listens on `port` and forwards to `upstream_port`, both on 127.0.0.1. A context manager."""

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.port = 0
        self._rules: tuple[Rule, ...] = ()
        self.watcher: Watcher | None = None
        self._hold: _Hold | None = None
        self._held: list[str] = []
        self._holding = threading.Condition()
        self._names: dict[bytes, str] = {}
        """File name by handle, learnt from LOOKUPs."""
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []

    def refuse(self, rule: Rule) -> None:
        """Refuse, from now on, what the rule says."""
        self._rules = (*self._rules, rule)

    def clear(self) -> None:
        """Forget all rules."""
        self._rules = ()

    def hold(self, names: str, from_offset_bytes: int) -> None:
        """From now on READs of files whose name fits `names` wait, from that offset on, until `release`; no others."""
        with self._holding:
            self._hold = _Hold(names, from_offset_bytes)
            self._holding.notify_all()

    def release(self) -> None:
        """Let the READs that wait go on."""
        with self._holding:
            self._hold = None
            self._holding.notify_all()

    @property
    def held(self) -> set[str]:
        """Names of the files whose READs wait for `release` now."""
        with self._holding:
            return set(self._held)

    def cut(self) -> None:
        """Drop every connection; clients may come again."""
        with self._lock:
            connections, self._connections = self._connections, set()
        for connection in connections:
            # Shut down first: it wakes the thread that waits in recv, which a mere close does not.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def start(self) -> None:
        """Take a free port and listen."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = int(self._listener.getsockname()[1])
        self._run(self._accept, self._listener)

    def stop(self) -> None:
        """Drop every connection, stop listening, end every thread."""
        self.release()
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self, target: object, *arguments: object) -> None:
        assert callable(target)
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, address = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.upstream_port), timeout=10)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            with self._lock:
                self._connections |= {client, server}
            pair = _Pair(self, client, server, int(address[1]))
            self._run(pair.calls)
            self._run(pair.replies)

    def refusal(self, call: _Call) -> int | None:
        """The status by which a rule refuses the call; None lets it through."""
        if call.procedure not in _NO_ATTRIBUTES:
            return None
        handle, rest = _opaque(call.arguments)
        name = (
            _opaque(rest)[0].decode(errors="replace")
            if call.procedure == LOOKUP
            else self._names.get(handle, "")
        )
        for rule in self._rules:
            if (
                call.procedure in rule.procedures
                and rule.uid in {None, call.uid}
                and fnmatchcase(name, rule.names)
            ):
                return rule.status
        return None

    def passing(self, call: _Call, client_port: int) -> Passing | None:
        """What a watcher is told of a call; None when there is nobody to tell, or nothing."""
        if self.watcher is None or call.procedure not in (LOOKUP, ACCESS, READ):
            return None
        handle, rest = _opaque(call.arguments)
        if call.procedure == LOOKUP:
            return Passing(LOOKUP, _opaque(rest)[0].decode(errors="replace"), client_port)
        name = self._names.get(handle, "")
        if call.procedure == ACCESS:
            return Passing(ACCESS, name, client_port)
        offset_bytes, length_bytes = struct.unpack_from(">QI", rest)
        return Passing(READ, name, client_port, offset_bytes, length_bytes)

    def show(self, passing: Passing) -> None:
        """Tell the watcher, if there is one."""
        watcher = self.watcher
        if watcher is not None:
            watcher(passing)

    def wait_while_held(self, call: _Call) -> None:
        """Return when no hold concerns the call."""
        if call.procedure != READ or self._hold is None:
            return
        handle, rest = _opaque(call.arguments)
        (offset_bytes,) = struct.unpack_from(">Q", rest)
        name = self._names.get(handle, "")
        if not self._concerns(name, offset_bytes):
            return
        with self._holding:
            self._held.append(name)
            self._holding.wait_for(lambda: not self._concerns(name, offset_bytes))
            self._held.remove(name)

    def _concerns(self, name: str, offset_bytes: int) -> bool:
        hold = self._hold
        return hold is not None and offset_bytes >= hold.from_offset_bytes and fnmatchcase(name, hold.names)

    def learn(self, handle: bytes, name: str) -> None:
        """Remember which file a handle stands for."""
        self._names[handle] = name


class _Pair:
    """One client's connection and ours to the filer for it."""

    def __init__(self, gate: NfsGate, client: socket.socket, server: socket.socket, client_port: int) -> None:
        self._gate = gate
        self._client = client
        self._server = server
        self._client_port = client_port
        self._looked_up: dict[int, str] = {}
        self._passing: dict[int, Passing] = {}
        self._sending = threading.Lock()

    def calls(self) -> None:
        """Forward calls, or answer them."""
        try:
            while record := _receive(self._client):
                call = _parse_call(record)
                if call:
                    self._gate.wait_while_held(call)
                status = self._gate.refusal(call) if call else None
                if call and status is not None:
                    self._answer(_reply(call, status))
                    continue
                if call and call.procedure == LOOKUP:
                    name = _opaque(_opaque(call.arguments)[1])[0]
                    self._looked_up[call.xid] = name.decode(errors="replace")
                passing = self._gate.passing(call, self._client_port) if call else None
                if call and passing:
                    self._passing[call.xid] = passing
                    self._gate.show(passing)
                self._server.sendall(_framed(record))
        except (OSError, struct.error):
            pass  # Either side hung up, which is passed on below.
        finally:
            self._hang_up()

    def replies(self) -> None:
        """Forward replies, and learn handles from those to LOOKUPs."""
        try:
            while record := _receive(self._server):
                name = self._looked_up.pop(struct.unpack_from(">I", record)[0], None)
                # xid, REPLY, accepted, verifier (flavor, empty), SUCCESS, NFS3_OK, then the handle.
                if (
                    name is not None
                    and len(record) > 32
                    and record[4:28] == struct.pack(">6I", 1, 0, 0, 0, 0, 0)
                ):
                    self._gate.learn(_opaque(record[28:])[0], name)
                passing = self._passing.pop(struct.unpack_from(">I", record)[0], None)
                if passing:
                    self._gate.show(replace(passing, answered=True, length_bytes=_read_bytes(record)))
                self._answer(record)
        except (OSError, struct.error):
            pass  # Either side hung up, which is passed on below.
        finally:
            self._hang_up()

    def _answer(self, record: bytes) -> None:
        with self._sending:
            self._client.sendall(_framed(record))

    def _hang_up(self) -> None:
        for connection in (self._client, self._server):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _receive(connection: socket.socket) -> bytes:
    """One record: fragments up to the one that is marked as last. Empty at the end of the stream."""
    record = bytearray()
    while True:
        header = _exactly(connection, 4)
        if not header:
            return b""
        (marker,) = struct.unpack(">I", header)
        length = marker & 0x7FFFFFFF
        if len(record) + length > MAX_RECORD_BYTES:
            raise OSError("a record is too long")
        record += _exactly(connection, length)
        if marker >> 31:
            return bytes(record)


def _exactly(connection: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = connection.recv(min(length - len(data), 1 << 20))
        if not part:
            return b""
        data += part
    return bytes(data)


def _framed(record: bytes) -> bytes:
    return struct.pack(">I", 0x80000000 | len(record)) + record


def _opaque(data: bytes) -> tuple[bytes, bytes]:
    """Split off a variable-length opaque (RFC 4506, 4.10): content, and what follows its padding."""
    (length,) = struct.unpack_from(">I", data)
    end = 4 + length
    return data[4:end], data[end + -length % 4 :]


def _parse_call(record: bytes) -> _Call | None:
    xid, kind, _version, program, _program_version, procedure, flavor = struct.unpack_from(">7I", record)
    if kind != 0 or program != NFS_PROGRAM:
        return None
    credential, rest = _opaque(record[28:])
    uid = 0xFFFFFFFF
    if flavor == 1:
        (uid,) = struct.unpack_from(">I", _opaque(credential[4:])[1])
    return _Call(xid, procedure, uid, _opaque(rest[4:])[1])


def _read_bytes(record: bytes) -> int:
    """The count of a READ's answer (RFC 1813, 3.3.6); 0 when it failed. Of another answer it means nothing."""
    # xid, REPLY, accepted, verifier (flavor, empty), SUCCESS, status, then whether attributes (84 bytes) follow.
    if len(record) < 36 or record[20:28] != bytes(8):
        return 0
    (has_attributes,) = struct.unpack_from(">I", record, 28)
    at = 32 + 84 * has_attributes
    return int(struct.unpack_from(">I", record, at)[0]) if has_attributes < 2 and len(record) >= at + 4 else 0


def _reply(call: _Call, status: int) -> bytes:
    return struct.pack(">7I", call.xid, 1, 0, 0, 0, 0, status) + _NO_ATTRIBUTES[call.procedure]
