"""`python -m tests.crash`, as `make crash-matrix` and `make soak` call it.

Exit codes: 0, 1 with violations or when the harness failed, 2 for a case that is none.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.crash import serve, soak
from tests.crash.points import Case, parse_case
from tests.crash.run import BUILD, PlayerDiedError, play_one, result_of, run, tell_violations


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    matrix = commands.add_parser("matrix", help="play the matrix, or go on with it")
    matrix.add_argument("--quick", action="store_true", help="a sample of a few minutes")
    matrix.add_argument("--fresh", action="store_true", help="forget what was played earlier")
    matrix.add_argument("--jobs", type=int, default=2, help="data centres beside each other")
    one = commands.add_parser("case", help="play one case")
    one.add_argument("case", type=_case)
    playing = commands.add_parser("serve", help="play what standard input says (used by the others)")
    for command in (one, playing):
        command.add_argument("--build", type=Path, default=BUILD / "case")
        command.add_argument("--product", type=Path, help="a directory with another safehaul's packages")
    soaking = commands.add_parser("soak", help="jobs back to back while processes die")
    soaking.add_argument("--minutes", type=float, default=30.0)
    soaking.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    # Everything that was started is ended on the way out.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        return _do(given)
    except PlayerDiedError as error:
        print(f"crash matrix: {error}", file=sys.stderr)
        return 1


def _do(given: argparse.Namespace) -> int:
    if given.command == "serve":
        serve.main(given.build / "evidence", given.product)
        return 0
    if given.command == "soak":
        return soak.soak(given.minutes, given.seed)
    if given.command == "case":
        outcome = play_one(given.build, given.case, given.product)
        print(outcome)
        tell_violations(outcome)
        return result_of([outcome] if outcome.state != "missed" else [])
    return result_of(run(quick=given.quick, fresh=given.fresh, jobs=given.jobs))


def _case(text: str) -> Case:
    try:
        return parse_case(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
