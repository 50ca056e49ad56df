"""`python -m tests.bench`, as `make bench` calls it; `--full` is `make bench FULL=1`.

Exit codes: 0, 1 when something failed, 2 when a program that is compared with is not installed.
"""

from __future__ import annotations

import argparse
import datetime as dt
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab.processes import LabError
from tests.bench import table
from tests.bench.contenders import Contender, Product, Step, contenders
from tests.bench.figures import HEADLINE, LIMIT, Figures
from tests.bench.images import Images, make_images
from tests.bench.job import figures as job_figures
from tests.bench.job import run_job
from tests.bench.processes import BenchError
from tests.bench.profile import profile, why_not
from tests.bench.rounds import Rounds
from tests.bench.sources import NfsSource, local_export, nfs_source

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "bench"
DOCUMENT = ROOT / "docs" / "performance.md"
_PACKAGES = {"restic": "restic", "borg": "borgbackup", "zstd": "zstd", "mke2fs": "e2fsprogs"}
_QUICK_STEPS = tuple(step for step in Step if step not in {Step.RANDOM, Step.ZEROS})
_MIN_MIB = 32
_JOBS = 3
"""Data centres that are built for the job's figures."""


def say(text: str) -> None:
    """Tell a person what happens."""
    print(text, flush=True)


def missing_packages() -> list[str]:
    """Debian packages of the programs that are not here."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    return [package for program, package in _PACKAGES.items() if shutil.which(program, path=path) is None]


def image_mib(*, full: bool) -> int:
    """Size of each disk: BENCH_SIZE_MIB, else 5 GiB for the whole table and 1.6 GiB for the quick form."""
    text = os.environ.get("BENCH_SIZE_MIB", "")
    if not text:
        return 5120 if full else 1600
    if not text.isascii() or not text.isdigit() or int(text) < _MIN_MIB:
        raise BenchError(f"BENCH_SIZE_MIB={text!r} is not a number of MiB from {_MIN_MIB}")
    return int(text)


def versions() -> list[str]:
    """What is compared, as the programs name themselves."""
    found = []
    for arguments in (["restic", "version"], ["borg", "--version"], ["zstd", "--version"]):
        said = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True).stdout
        found.append(" ".join(said.split()).strip("* ").removesuffix(", by Yann Collet"))
    return found


def bench(*, full: bool, rounds: int) -> None:
    """Measure, print the table and the JSON object; the whole table also goes into the document."""
    size_mib = image_mib(full=full)
    say(f"Disks of {size_mib} MiB from this machine's files (made once, in build/bench) …")
    images = make_images(BUILD / f"images-{size_mib}", size_mib << 20)
    steps = list(Step) if full else list(_QUICK_STEPS)
    with nfs_source(images.folder, BUILD / "ganesha") as nfs:
        missing = {}
        if isinstance(nfs, str):
            missing = dict.fromkeys((HEADLINE, LIMIT), nfs)
            say(f"Skipped: everything over NFS, because {nfs}")
        export = nfs.export if isinstance(nfs, NfsSource) else None
        who = contenders(images, local_export(images.folder), export, full=full)
        running = Rounds(BUILD / "run", images, who, nfs if isinstance(nfs, NfsSource) else None, say)
        runs = [run for number in range(rounds) for run in running.run(number, steps)]
        profiled = _profile(who) if full else ""
    jobs = _jobs(images, min(rounds, _JOBS)) if full else {}
    rows = table.rows(runs, who, images)
    about = table.machine(images, versions())
    say(f"\n{table.as_text(rows)}\n\n{about}\n")
    result = json.dumps(Figures(runs, images, missing, jobs).as_json())
    if full:
        today = dt.datetime.now(dt.UTC).date()
        text = f"{today}, {rounds} rounds. {about}\n\n{table.as_markdown(rows)}\n\n{profiled}\n\n```json\n{result}\n```"
        table.write_into(DOCUMENT, text)
        say(f"The table is in {DOCUMENT.relative_to(ROOT)}.")
    say(result)


def _jobs(images: Images, count: int) -> dict[str, float | str | None]:
    """The figures of a whole job, or for each why there is none."""
    runs = []
    for number in range(1, count + 1):
        say(f"Job {number} of {count}, in a data centre of its own …")
        try:
            runs.append(run_job(images))
        except (BenchError, LabError) as error:
            # The table of an hour must not be lost with it.
            say(f"The job's figures are left out: {error}")
            return dict.fromkeys(job_figures([], images), str(error).splitlines()[0])
        say(f"  {runs[-1].wall_s:.1f} s, of that {runs[-1].transfer_s:.1f} s the transfer")
    return job_figures(runs, images)


@contextmanager
def _alone() -> Iterator[None]:
    """Hold the build folder. Raises BenchError when another benchmark does: both would be wrong, and share files."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BenchError("another benchmark is running here: wait for its end") from error
        yield


def _profile(who: Sequence[Contender]) -> str:
    """The headline's profile as Markdown, or why there is none."""
    headline = next((item for item in who if item.name == HEADLINE), None)
    reason = "it did not run" if headline is None else why_not()
    if reason or not isinstance(headline, Product):
        return f"No profile of the headline: {reason}."
    say("Profile of the headline …")
    try:
        return table.profile_as_markdown(profile(headline, BUILD / "profile"))
    except BenchError as error:
        # perf is not allowed everywhere; the table of an hour must not be lost with it.
        say(f"No profile: {error}")
        return "No profile of the headline: perf does not work here."


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Measures safehaul beside its peers."
    )
    parser.add_argument(
        "--full", action="store_true", help="the whole table, also written into docs/performance.md"
    )
    parser.add_argument("--rounds", type=int, help="paired runs of everything: 2, with --full 5")
    given = parser.parse_args()
    if packages := missing_packages():
        say(f"The benchmark compares with programs that are not here: apt-get install {' '.join(packages)}")
        return 2
    try:
        with _alone():
            bench(full=given.full, rounds=given.rounds or (5 if given.full else 2))
    except BenchError as error:
        say(f"bench: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
