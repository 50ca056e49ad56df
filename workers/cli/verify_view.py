"""A verification's report as a person sees it: what is damaged, what that touches, and what to do."""

from __future__ import annotations

from safehaul.messages.verify import DamagedBackup, VerifyMode, VerifyReport
from workers.cli.output import safe, say, size, table

_HOW = {
    VerifyMode.LIGHT: "lists and footers",
    VerifyMode.SAMPLE: "a sample",
    VerifyMode.FULL: "every byte",
}


def show_verification(report: VerifyReport) -> None:
    """The sums, then the damaged objects and places, then what to do about each kind."""
    of = f" of {size(report.bytes_total)}" if report.mode is VerifyMode.SAMPLE else ""
    say(
        f"verified {_HOW[report.mode]}: {report.backups} backups, {report.packs} packs, {report.chunks} chunks, "
        f"{size(report.bytes_read)}{of} read"
    )
    if report.oldest_verified:
        say(f"of the packs that were not read now, one was verified last at {safe(report.oldest_verified)}")
    if report.leftovers:
        say(
            f"{len(report.leftovers)} damaged packs, noted before, are needed by no backup any more: a collection "
            "removes them"
        )
    if report.sound:
        say("no damage found")
        return
    table(
        ["damaged object", "chunk", "problem"],
        [(i.object_name, i.chunk_id[:16], i.problem) for i in report.damage],
    )
    if report.damage_omitted:
        say(f"… and {report.damage_omitted} more damages")
    rows = [
        (
            i.vm_name,
            f"{i.vc_guid}/{i.backup_id}",
            i.part,
            i.offset_bytes,
            i.length_bytes,
            "lost" if i.lost else "kept",
        )
        for i in report.touched
    ]
    table(["VM", "backup", "part", "offset>", "bytes>", "state"], rows, title="what it touches")
    if report.touched_omitted:
        say(f"… and {report.touched_omitted} more places")
    show_backups(report.damaged_backups, report.damaged_backups_omitted)
    for advice in dict.fromkeys(i.advice for i in report.damage if i.advice):
        names = [i.object_name for i in report.damage if i.advice == advice]
        kinds = sorted({name.partition("/")[0] + "/" for name in names})
        say(f"{safe(', '.join(kinds))}: {safe(advice)}")


def show_backups(backups: list[DamagedBackup], omitted: int) -> None:
    """The damaged backups, with what they have lost."""
    if not backups:
        return
    rows = [
        (
            item.vm_name,
            f"{item.vc_guid}/{item.backup_id}",
            size(item.bytes_lost),
            item.problem or "; ".join(f"{part.part}: {size(part.bytes_lost)}" for part in item.parts),
        )
        for item in backups
    ]
    table(["VM", "backup", "lost>", "where"], rows, title="damaged backups")
    if omitted:
        say(f"… and {omitted} more damaged backups")
