"""Run the hosts: `python -m lab.esx --state DIR --port N [--site FILE]`.

Serves the lab in DIR (made by `lab.site.build`); when DIR holds none, the site of FILE (JSON, see
lab.esx.spec), or the demo's site, is built there first. Port 0 takes a free one. The first line on stdout is
one JSON object, `{"url": …, "pid": …}`, written when it serves. SIGTERM and SIGINT stop it: unfinished tasks
and guests go on when it is started again, as they do after `kill -9`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from pathlib import Path
from queue import SimpleQueue

from lab.esx.hosts import Hosts
from lab.esx.server import HostServer
from lab.esx.spec import Site
from lab.site import build, demo_site


def main() -> int:
    """Parse arguments, serve until a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m lab.esx", description="The lab's simulated ESXi hosts.")
    parser.add_argument("--state", type=Path, required=True, help="directory of the lab's state")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (0: any free one)")
    parser.add_argument("--site", type=Path, help="site to build when there is none yet (JSON)")
    options = parser.parse_args()
    if not (options.state / "hosts.sqlite").exists():
        site = Site.model_validate_json(options.site.read_bytes()) if options.site else demo_site()
        build(site, options.state)
    # Not an Event: see lab.filer.
    stop: SimpleQueue[int] = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: stop.put(number))
    hosts = Hosts(options.state)
    server = HostServer(hosts, options.port)
    hosts.start()
    serving = threading.Thread(target=server.serve_forever, name="http", daemon=True)
    serving.start()
    sys.stdout.write(json.dumps({"url": server.url, "pid": os.getpid()}) + "\n")
    sys.stdout.flush()
    stop.get()
    server.shutdown()
    server.server_close()
    hosts.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
