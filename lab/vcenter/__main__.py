"""The lab's vCenter: `python -m lab.vcenter --esx http://127.0.0.1:N --port M --state DIR`.

It prints one line of JSON when it serves: `{"url", "thumbprint", "certificate", "pid"}`, and ends at SIGTERM
or SIGINT. Everything true lives in the hosts' process (`python -m lab.esx`): killing this one loses sessions,
views and filters only, as the restart of a real vCenter does.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import secrets
import signal
import sys
import threading
import time
from pathlib import Path

from lab.esx.client import HostClient, HostUnreachableError
from lab.vcenter.calllog import CallLog
from lab.vcenter.certificate import ensure_certificate, server_context, write_private
from lab.vcenter.scope import VCenter
from lab.vcenter.server import Server
from lab.vcenter.sessions import SessionTable

_HOSTS_WAIT_S = 30.0
_LOG = logging.getLogger("lab.vcenter")


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal comes. Exit code 1: the hosts never answered."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    state_dir: Path = options.state
    state_dir.mkdir(parents=True, exist_ok=True)
    certificate = ensure_certificate(state_dir)
    vcenter = VCenter(
        HostClient(options.esx),
        SessionTable(options.session_idle_s, options.max_sessions, options.lock_after),
        CallLog(options.log),
    )
    if not _wait_for_hosts(vcenter):
        _LOG.error("the hosts at %s do not answer: start `python -m lab.esx` first", options.esx)
        return 1
    server = Server(options.port, server_context(certificate), vcenter, _admin_token(state_dir))
    for number in (signal.SIGTERM, signal.SIGINT):
        # shutdown() waits for the serving loop, which is the thread that runs this handler.
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown, daemon=True).start())
    ready = {
        "url": f"https://127.0.0.1:{server.server_address[1]}/sdk",
        "thumbprint": certificate.thumbprint,
        "certificate": str(certificate.certificate_path),
        "pid": os.getpid(),
    }
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()
    try:
        server.serve_forever(poll_interval=0.1)
    finally:
        server.server_close()
        vcenter.log.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lab.vcenter", description=__doc__)
    parser.add_argument("--esx", required=True, help="address of the simulated hosts, http://127.0.0.1:PORT")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (0: any free one)")
    parser.add_argument("--state", type=Path, required=True, help="directory for certificate and admin token")
    parser.add_argument("--log", type=Path, default=None, help="JSON lines file of all calls by name")
    parser.add_argument("--session-idle-s", type=float, default=1800.0, help="idle time that ends a session")
    parser.add_argument("--max-sessions", type=int, default=100, help="sessions at most; more get HTTP 503")
    parser.add_argument(
        "--lock-after",
        type=int,
        default=5,
        help="wrong passwords in 3 minutes that lock an account (0: never)",
    )
    return parser


def _wait_for_hosts(vcenter: VCenter) -> bool:
    deadline = time.monotonic() + _HOSTS_WAIT_S
    while time.monotonic() < deadline:
        try:
            vcenter.mirror.inventory()
        except HostUnreachableError:
            time.sleep(0.1)
        else:
            return True
    return False


def _admin_token(state_dir: Path) -> str:
    path = state_dir / "admin.token"
    if not path.exists():
        write_private(path, secrets.token_hex(16).encode())
    return path.read_text().strip()


if __name__ == "__main__":
    sys.exit(main())
