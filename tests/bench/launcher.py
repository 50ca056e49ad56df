"""Runs one command and writes what it cost, as JSON, to a file: `launcher.py REPORT FLUSH COMMAND…`.

A process of its own and small on purpose: Linux gives a new program the peak memory of whoever spawned it as its
first peak, so that a child of the benchmark itself would never show less than the benchmark. What is measured here
can be trusted down to this launcher's own 10 MiB. FLUSH is a file that is synced after the command, or empty.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main(report: str, flush: str, command: list[str]) -> int:
    """Run the command; returns its exit code, 128 + the signal's number when one ended it."""
    begun = time.perf_counter()
    child = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(child, 0)
    wall_s = time.perf_counter() - begun
    begun = time.perf_counter()
    if flush and os.path.exists(flush):  # noqa: PTH110 - pathlib would double this process
        descriptor = os.open(flush, os.O_RDWR)
        os.fsync(descriptor)
        os.close(descriptor)
    with open(report, "w", encoding="utf-8") as file:  # noqa: PTH123 - as above
        json.dump(
            {
                "wall_s": wall_s,
                "cpu_s": usage.ru_utime + usage.ru_stime,
                "peak_mib": usage.ru_maxrss / 1024,
                "flush_s": time.perf_counter() - begun if flush else 0.0,
            },
            file,
        )
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
