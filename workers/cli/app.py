"""The command `safehaul`: its global options, its errors as one line each, its exit codes."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from safehaul.errors import ConfigError
from workers.cli import (
    backups,
    catalog,
    configuration,
    copies,
    disk,
    exits,
    group,
    job,
    keys,
    prune,
    repair,
    repo,
    restore,
    retention,
    schedules,
    snapshots,
    worker,
)
from workers.cli.output import Json, Output, plain, show_json

HELP = """Back up VMware VMs on NFS datastores straight from the filer.

Jobs are Temporal workflows: start one here or with the plain `temporal` command, watch it here or in the web UI.

Exit codes: 0 done; 1 failed (a job Failed, damage was found, …); 2 wrong usage or configuration; 3 a job ended
Partial; 4 a job was Cancelled; 5 a peer (Temporal, CommServe, vCenter, filer, repository) does not answer; 130
interrupted by Ctrl-C.
"""

app = typer.Typer(
    name="safehaul",
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.add_typer(worker.app, name="worker", help="Run a worker process: commserve, access-node or media-agent.")
app.add_typer(group.app, name="group", help="List VM groups; preview which VMs one selects.")
app.add_typer(job.app, name="job", help="Start, list, watch, show and cancel backup jobs.")
app.add_typer(backups.app, name="backups", help="List and count backups, show what one holds, verify them.")
app.add_typer(snapshots.app, name="snapshots", help="Remove snapshots of ours whose owner is gone.")
app.add_typer(disk.app, name="disk", help="Read bytes of a disk in a backup, without a restore.")
app.add_typer(copies.app, name="copy", help="Copy backups into a second repository; show how that stands.")
app.add_typer(restore.app, name="restore", help="Restore a VM, or one disk to a file.")
repo.app.add_typer(
    keys.app, name="key", help="List, add, remove and rotate what opens an encrypted repository."
)
repo.app.command()(repair.repair)
app.add_typer(
    repo.app, name="repo", help="Make, describe and verify a MediaAgent's repository; manage its keys."
)
repo.app.command()(prune.prune)
repo.app.command("audit")(prune.audit_)
app.add_typer(
    retention.app, name="retention", help="Show what is kept and why; hold, release and recover backups."
)
app.add_typer(catalog.app, name="catalog", help="Upgrade the catalogue; rebuild it from the repositories.")
app.add_typer(
    configuration.app, name="config", help="Check the configuration; print an example or the reference."
)


@app.callback()
def options(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Configuration file; default: SAFEHAUL_CONFIG, ./safehaul.toml, /etc/safehaul/safehaul.toml."
        ),
    ] = None,
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of every command."""
    context.obj = Output(config=config, debug=debug)


@app.command()
def version(*, as_json: Json = False) -> None:
    """Print the version. Example: `safehaul version`."""
    from importlib.metadata import version as of  # noqa: PLC0415 - only this command needs it

    if as_json:
        show_json({"version": of("safehaul")})
    else:
        typer.echo(of("safehaul"))


app.command()(schedules.setup)


@app.command()
def demo(
    vms: Annotated[int, typer.Option(min=3, max=200, help="How many VMs the data centre has.")] = 6,
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running until Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Play a whole data centre on loopback: one job, one restore, and the proof of both.

    Needs the package's lab extra. With `--json` the story goes to stderr, and the result is the one JSON value.
    Example: `safehaul demo --vms 8 --keep`.
    """
    try:
        from workers.cli.demo import run_demo  # noqa: PLC0415 - the lab is not installed in production
    except ImportError as error:
        raise ConfigError(f"the demo needs the lab extra of the package ({error.name} is missing)") from None
    raise typer.Exit(run_demo(vms, keep=keep, as_json=as_json))


def main() -> None:
    """Entry point: run the command, turn what it raises into one line on stderr and an exit code."""
    code = run(sys.argv[1:])
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: the SDK's native threads may still end while the interpreter is taken down, which aborted a
    # command that had done its work. Everything of ours is closed by now.
    os._exit(code)


def run(arguments: list[str]) -> int:
    """Run the command with arguments and return its exit code."""
    try:
        app(arguments, prog_name="safehaul")
    except SystemExit as ended:
        # Typer has told what was wrong with the usage (2), or that it was interrupted (130).
        return ended.code if isinstance(ended.code, int) else exits.OK
    except Exception as error:  # noqa: BLE001 - the last place: whatever it is becomes a message and an exit code
        if "--debug" in arguments:
            traceback.print_exc()
        sys.stderr.write(f"safehaul: {plain(exits.message_of(error))}\n")
        return exits.code_of(error)
    return exits.OK
