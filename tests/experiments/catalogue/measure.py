"""How long lists, searches and sums over 1,000,000 backups take: `python -m tests.experiments.catalogue.measure`.

Prints a table for docs/catalogue.md. `--vms` and `--nights` make it smaller; `--database sqlite` or `postgresql` takes
one alone (PostgreSQL needs Debian's package).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from safehaul.catalog.catalog import Catalog
from tests.contract import postgresql
from tests.experiments.catalogue.million import Size, fill, questions

ROUNDS = 5


def measure(url: str, size: Size) -> dict[str, tuple[float, float, int]]:
    """Question → seconds of the first time, median seconds of the later ones, rows."""
    catalog = Catalog(url)
    begun = time.perf_counter()
    fill(catalog._database.engine, size)
    sys.stderr.write(f"filled in {time.perf_counter() - begun:.0f} s\n")
    catalog.close()
    found = {}
    for name in questions(Catalog(url)):
        # As a command does it: a process that has just opened the catalogue.
        catalog = Catalog(url)
        ask = questions(catalog)[name]
        times = []
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            rows = len(ask())
            times.append(time.perf_counter() - begun)
        catalog.close()
        found[name] = (times[0], statistics.median(times[1:]), rows)
        sys.stderr.write(f"{name}: {times[0]:.3f} s, then {found[name][1]:.3f} s, {rows} rows\n")
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vms", type=int, default=Size.vms)
    parser.add_argument("--nights", type=int, default=Size.nights)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], action="append")
    chosen = parser.parse_args()
    size = Size(chosen.vms, chosen.nights)
    found = {}
    with ExitStack() as stack:
        for name in chosen.database or ["sqlite", "postgresql"]:
            if name == "sqlite":
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                found[name] = measure(f"sqlite:///{folder}/catalog.db", size)
                path = Path(folder) / "catalog.db"
                sys.stderr.write(f"{path.stat().st_size / 2**20:.0f} MiB\n")
            else:
                server = stack.enter_context(postgresql.running())
                found[name] = measure(server.database(), size)
    print(f"| {size.backups:,} backups | rows | " + " | ".join(found) + " |")
    print("|---|---:|" + "---:|" * len(found))
    for name in next(iter(found.values())):
        rows = next(iter(found.values()))[name][2]
        cells = [f"{item[name][0]:.3f} / {item[name][1]:.3f}" for item in found.values()]
        print(f"| {name} | {rows} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
