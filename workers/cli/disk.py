"""`safehaul disk …`: bytes of a disk in a backup, without a restore."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from activities.audit_notes import note_reading
from safehaul.config.fields import parse_size_bytes
from safehaul.errors import InvalidInputError
from safehaul.media.audit import Action
from safehaul.media.disk_view import DiskView
from safehaul.media.reader import BackupReader
from workers.cli import completion
from workers.cli.disk_image import find_disk
from workers.cli.identifiers import BACKUP_HELP, find_backup
from workers.cli.output import of, warn
from workers.cli.repo import Agent, open_repository

app = typer.Typer(no_args_is_help=True)
_PIECE_BYTES = 8 << 20


@app.callback()
def disk() -> None:
    """A disk is read where it lies: nothing is restored."""


@app.command()
def cat(
    context: typer.Context,
    backup: Annotated[str, typer.Argument(help=BACKUP_HELP, autocompletion=completion.backups)],
    which: Annotated[str, typer.Argument(metavar="DISK", help="The disk's key or label, e.g. 2000.")],
    offset: Annotated[str, typer.Option(help="First byte: a number, or a size such as `1 MiB`.")] = "0",
    length: Annotated[str | None, typer.Option(help="How many bytes; default: to the disk's end.")] = None,
    media_agent: Agent = None,
) -> None:
    """Write a range of a disk to standard output, reading only the chunks that it touches, each checked.

    Example: `safehaul disk cat web-1/latest 2000 --offset "1 MiB" --length 512 | xxd`.
    """
    start, count = _bytes("--offset", offset), None if length is None else _bytes("--length", length)
    vc_guid, backup_id = find_backup(of(context), backup)
    repository = open_repository(of(context).settings(), media_agent)
    try:
        reader = BackupReader(repository, vc_guid, backup_id)
        try:
            found = find_disk(reader.manifest.disks, which)
            view = DiskView(reader, found.key)
            details = {"disk": found.key, "offset": start, "length": "to the end" if count is None else count}
            warn(note_reading(repository, Action.READ, f"{vc_guid}/{backup_id}", details))
            end = view.size_bytes if count is None else min(start + count, view.size_bytes)
            # The first read also refuses an offset beyond the disk.
            place = start
            while place == start or place < end:
                piece = view.read(place, max(0, min(_PIECE_BYTES, end - place)))
                if not piece:
                    break
                sys.stdout.buffer.write(piece)
                place += len(piece)
            sys.stdout.buffer.flush()
        finally:
            reader.close()
    finally:
        repository.close()


def _bytes(option: str, given: str) -> int:
    try:
        found = parse_size_bytes(given)
    except ValueError as error:
        raise InvalidInputError(f"{option}: {error}") from None
    assert isinstance(found, int), "a text is parsed or refused"
    return found
