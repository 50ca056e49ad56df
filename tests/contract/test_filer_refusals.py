"""Goal: whatever keeps a node from a real filer's bytes becomes the error of step 8 that says what to change.

The table in docs/filers.md is made of these cases; the messages name the export, the uid and the port.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab.ganesha import Ganesha, GaneshaExport, Version
from lab.other_user import UNUSED_UID, as_user
from lab.processes import free_port
from safehaul.errors import (
    ConfigError,
    ConnectionLostError,
    NotFoundError,
    PermissionRefusedError,
    SafehaulError,
)
from safehaul.messages.exports import ExportDefinition
from safehaul.messages.inventory import NasVolume
from safehaul.nas.datastores import open_export
from safehaul.nas.definition import match
from tests.ganesha import GANESHA

pytestmark = [*GANESHA]
FLAT = "vm/x-flat.vmdk"
VERSIONS: tuple[Version, ...] = ("3", "4.1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A datastore as ESXi leaves it: directories for everybody, the disk's bytes for root alone."""
    directory = tmp_path_factory.mktemp("datastore")
    (directory / "vm").mkdir()
    (directory / FLAT).write_bytes(b"disk" * 1000)
    (directory / FLAT).chmod(0o600)
    return directory


def _server(data: Path, state: Path, *versions: Version) -> Ganesha:
    exports = [
        GaneshaExport(data, "/exports/good"),
        GaneshaExport(data, "/exports/squashed", root_access=False),
        GaneshaExport(data, "/exports/secure", privileged_port=True),
        GaneshaExport(data, "/exports/others", clients="192.0.2.7"),
        GaneshaExport(data, "/exports/kerberos", security="krb5"),
        GaneshaExport(data, "/exports/only3", ("3",)),
        GaneshaExport(data, "/exports/only41", ("4.1",)),
    ]
    served = [export for export in exports if set(export.versions) & set(versions)]
    return Ganesha(served, state=state, versions=versions)


@pytest.fixture(scope="module")
def both(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ganesha]:
    with _server(data, tmp_path_factory.mktemp("both"), "3", "4.1") as running:
        yield running


def _definition(
    version: Version, path: str, nfs_port: int, mount_port: int, **changes: object
) -> ExportDefinition:
    """The definition that a datastore of the hosts finds: its version and path are the host's."""
    facts: dict[str, object] = {
        "name": "gold",
        "remote_hosts": ["127.0.0.1"],
        "remote_path": path,
        "nfs_port": nfs_port,
        "mount_port": mount_port or None,
        "reserved_port": False,
        "connect_timeout_s": 5,
        "operation_timeout_s": 5,
    }
    volume = NasVolume(
        datastore="nfs-gold",
        moref="datastore-1",
        type="NFS" if version == "3" else "NFS41",
        remote_host="127.0.0.1",
        remote_path=path,
    )
    return match(volume, [ExportDefinition.model_validate(facts | changes)])


def _read(definition: ExportDefinition) -> bytes:
    with open_export(definition) as export:
        return export.read_small(FLAT, 10_000)


def _refused(definition: ExportDefinition, kind: type[SafehaulError], *parts: str) -> str:
    with pytest.raises(SafehaulError) as caught:
        _read(definition)
    message = str(caught.value)
    assert type(caught.value) is kind, message
    for part in ("'gold'", "uid ", *parts):
        assert part in message, message
    return message


@pytest.mark.parametrize("version", VERSIONS)
def test_the_version_and_the_path_are_those_of_the_hosts(both: Ganesha, version: Version) -> None:
    """Goal: nothing but the ports is configured here; what the host mounts as NFS41 is read over 4.1."""
    only = {"3": "/exports/only3", "4.1": "/exports/only41"}[version]
    assert _read(_definition(version, only, both.port, both.mount_port)) == b"disk" * 1000


@dataclass(frozen=True)
class Case:
    """An export of the filer, what is changed in the definition, and the error with its parts."""

    path: str
    error: type[SafehaulError]
    parts: tuple[str, ...]
    changes: dict[str, object] = field(default_factory=dict)


PRIVILEGED = ("an unreserved port", "(insecure)", "reserved_port = true", "root")
CASES = {
    "root squash": Case(
        "/exports/squashed", PermissionRefusedError, (FLAT, "uid 0", "no_root_squash", *PRIVILEGED)
    ),
    "another uid": Case(
        "/exports/good", PermissionRefusedError, (FLAT, "uid 36", "set uid = 0"), {"uid": 36, "gid": 36}
    ),
    "writing": Case(
        "/exports/good", PermissionRefusedError, ("read-only", "restores need one"), {"writable": True}
    ),
    "3: privileged ports": Case("/exports/secure", PermissionRefusedError, ("rejects uid 0", *PRIVILEGED)),
    "4.1: privileged ports": Case("/exports/secure", NotFoundError, ("no such export", "an unreserved port")),
    "3: wrong path": Case(
        "/exports/wrong",
        PermissionRefusedError,
        ("/exports/wrong", "no such export", "offers", "'/exports/good'"),
    ),
    "4.1: wrong path": Case("/exports/wrong", NotFoundError, ("/exports/wrong", "no such export", "check")),
    "3: another client's": Case(
        "/exports/others", PermissionRefusedError, ("this node's address", "the export's rule")
    ),
    "4.1: another client's": Case("/exports/others", NotFoundError, ("this node's address", "hides")),
    "3: not in this version": Case("/exports/only41", PermissionRefusedError, ("not over NFS version 3",)),
    "4.1: not in this version": Case("/exports/only3", NotFoundError, ("allows", "NFS version 4.1")),
    "3: Kerberos": Case("/exports/kerberos", PermissionRefusedError, ("AUTH_SYS", "sec=sys")),
    "4.1: Kerberos": Case("/exports/kerberos", PermissionRefusedError, ("Kerberos", "sec=sys")),
}
RUNS = [
    (version, name)
    for name in CASES
    for version in VERSIONS
    if ":" not in name or name.startswith(f"{version}:")
]


@pytest.mark.parametrize(("version", "name"), RUNS)
def test_a_refusal_says_what_to_change(both: Ganesha, version: Version, name: str) -> None:
    case = CASES[name]
    changes = dict(case.changes)
    writable = bool(changes.pop("writable", False))
    definition = _definition(version, case.path, both.port, both.mount_port, **changes)
    if not writable:
        _refused(definition, case.error, *case.parts)
        return
    allowed = definition.model_copy(update={"writable": True})
    with open_export(allowed) as export, pytest.raises(case.error) as caught:
        export.make_directory_exclusive("new")
    assert all(part in str(caught.value) for part in case.parts)


def test_a_filer_without_the_hosts_version_is_a_matter_of_configuration(data: Path, tmp_path: Path) -> None:
    """Goal: `NFS41` on a filer that serves v3 alone can never succeed; it is not tried again."""
    with _server(data, tmp_path, "3") as filer:
        _refused(
            _definition("4.1", "/exports/good", filer.port, 0),
            ConfigError,
            *(
                "127.0.0.1",
                f"port {filer.port}",
                "does not speak NFS version 4.1",
                "enable",
                "correct version",
            ),
        )


def test_v3_on_a_filer_of_v41_alone_finds_nobody_who_mounts(data: Path, tmp_path: Path) -> None:
    with _server(data, tmp_path, "4.1") as filer:
        silent = free_port()
        _refused(
            _definition("3", "/exports/good", filer.port, silent),
            ConnectionLostError,
            *("nothing listens", f"mount service: {silent}", "serves NFS version 3"),
        )


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_listens(version: Version) -> None:
    port = free_port()
    parts = ("nothing listens", "127.0.0.1", f"port {port}", "nfs_port", f"version {version}")
    _refused(_definition(version, "/exports/good", port, port), ConnectionLostError, *parts)


@pytest.mark.parametrize("version", VERSIONS)
def test_somebody_else_listens_and_never_answers(version: Version) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
        slow = _definition(
            version, "/exports/good", port, port, connect_timeout_s=0.5, operation_timeout_s=0.5
        )
        _refused(slow, ConnectionLostError, "does not answer in time", "connect_timeout_s 0.5", "firewalls")


def test_a_name_that_does_not_resolve() -> None:
    nobody = _definition("3", "/exports/good", 2049, 2049, address="no-such-filer.invalid")
    _refused(nobody, ConnectionLostError, "'no-such-filer.invalid'", "does not resolve", "set address")


_TRY = """
import fcntl, socket, struct, sys
if sys.argv[2] == "loopback":
    # SIOCSIFFLAGS with IFF_UP | IFF_RUNNING, netdevice(7): the loopback of a new network namespace is down.
    fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh14x", b"lo", 0x41))
from safehaul.errors import SafehaulError
from safehaul.messages.exports import ExportDefinition
from safehaul.nas.datastores import open_export
try:
    open_export(ExportDefinition.model_validate_json(sys.argv[1]))
except SafehaulError as error:
    print(f"{type(error).__name__}: {error}")
"""


def _elsewhere(definition: ExportDefinition, network: str = "", uid: int = 0) -> str:
    """What opening the export says in another process: in a network of its own (`none`, `loopback`), as a user."""
    command = [sys.executable, "-W", "ignore", "-c", _TRY, definition.model_dump_json(), network]
    if network:
        command = ["unshare", "--net", *command]
    if uid:
        command = as_user(uid, command)
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=root)
    return done.stdout


@pytest.mark.parametrize("version", VERSIONS)
def test_no_route(version: Version) -> None:
    """Goal: a node whose network does not reach the filer, here a network namespace without any interface up."""
    definition = _definition(version, "/exports/good", 2049, 2049, address="192.0.2.1")
    message = _elsewhere(definition, "none")
    for part in ("ConnectionLostError", "'gold'", "no route", "192.0.2.1", "port 2049", "set address"):
        assert part in message


def test_no_portmapper() -> None:
    """Goal: without `mount_port` version 3 asks port 111, where nobody is in a network of its own."""
    message = _elsewhere(_definition("3", "/exports/good", 2049, 0), "loopback")
    for part in ("ConnectionLostError", "'gold'", "portmapper of 127.0.0.1", "port 111", "set mount_port"):
        assert part in message


@pytest.mark.parametrize("version", VERSIONS)
def test_a_reserved_port_that_this_process_may_not_take(both: Ganesha, version: Version) -> None:
    """Goal: our own kernel's refusal is not taken for the filer's."""
    definition = _definition(version, "/exports/good", both.port, both.mount_port, reserved_port=True)
    assert os.geteuid() == 0
    assert _read(definition) == b"disk" * 1000
    message = _elsewhere(definition, uid=UNUSED_UID)
    for part in ("PermissionRefusedError", "below 1024", "CAP_NET_BIND_SERVICE", "reserved_port = false"):
        assert part in message
    assert "no_root_squash" not in message


def test_a_mount_point_without_its_mount(tmp_path: Path) -> None:
    """Goal: the kernel's mount that was forgotten is named, not the disk that seems to be missing."""
    definition = ExportDefinition(
        name="gold", remote_hosts=("nas1",), remote_path="/v/a", mounted_at=str(tmp_path)
    )
    with open_export(definition) as export, pytest.raises(NotFoundError) as caught:
        export.read_small(FLAT, 10_000)
    for part in ("'vm'", "'gold'", f"nothing is mounted at {tmp_path}", "mount nas1:/v/a there"):
        assert part in str(caught.value)
    missing = definition.model_copy(update={"mounted_at": str(tmp_path / "none")})
    with pytest.raises(NotFoundError, match="has no such directory; mount the export there"):
        open_export(missing)


def test_a_mounted_export_is_read_by_its_path(data: Path) -> None:
    definition = _definition("3", "/exports/good", 2049, 2049).model_copy(
        update={"mounted_at": str(data), "nfs_port": None, "mount_port": None}
    )
    assert _read(definition) == b"disk" * 1000
