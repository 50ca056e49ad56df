"""Makes a verification's report of its findings."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from safehaul.media.pack import pack_name
from safehaul.media.verified import BadPack, Findings
from safehaul.messages.verify import (
    BACKUPS_LIMIT,
    DAMAGE_LIMIT,
    PACKS_LIMIT,
    TOUCHED_LIMIT,
    Damage,
    DamagedBackup,
    Touched,
    VerifyMode,
    VerifyReport,
)

_PACK_ADVICE = (
    "look at the disk below the repository; back the VMs up again: what they still hold is stored again, if the "
    "damage is noted (--note-damage)"
)


def summarise(
    mode: VerifyMode,
    findings: Iterable[Findings],
    *,
    run: str = "",
    totals: tuple[int, int] = (0, 0),
    oldest_left: int = 0,
) -> VerifyReport:
    """Add up what the parts of a verification found. Of each list the report keeps what its limit allows."""
    counts = dict.fromkeys(
        ("packs", "chunks", "bytes_read", "backups", "unlisted_packs", "collected_packs"), 0
    )
    bad: dict[str, BadPack] = {}
    needed: set[str] = set()
    damage: dict[tuple[str, str], Damage] = {}
    touched: list[Touched] = []
    backups: dict[tuple[str, str], DamagedBackup] = {}
    omitted = dict.fromkeys(("damage", "touched", "damaged_backups"), 0)
    for part in findings:
        for name in counts:
            counts[name] += getattr(part, name)
        for name in omitted:
            omitted[name] += getattr(part, f"{name}_omitted")
        bad.update((pack.pack, pack) for pack in part.bad_packs)
        needed.update(part.needed)
        damage.update(((item.object_name, item.chunk_id), item) for item in part.damage)
        touched += part.touched
        backups.update(((item.vc_guid, item.backup_id), item) for item in part.damaged_backups)
    leftovers = sorted(pack.pack for pack in bad.values() if pack.noted and pack.pack not in needed)
    of_packs = [item for pack in bad.values() if pack.pack not in leftovers for item in _of_pack(pack)]
    everything = [*damage.values(), *of_packs]
    return VerifyReport(
        mode=mode,
        run=run,
        **counts,
        packs_total=totals[0],
        bytes_total=totals[1],
        oldest_verified=_shown(oldest_left),
        damage=everything[:DAMAGE_LIMIT],
        damage_omitted=omitted["damage"] + max(0, len(everything) - DAMAGE_LIMIT),
        damaged_packs=sorted(bad)[:PACKS_LIMIT],
        leftovers=leftovers[:PACKS_LIMIT],
        touched=touched[:TOUCHED_LIMIT],
        touched_omitted=omitted["touched"] + max(0, len(touched) - TOUCHED_LIMIT),
        damaged_backups=list(backups.values())[:BACKUPS_LIMIT],
        damaged_backups_omitted=omitted["damaged_backups"] + max(0, len(backups) - BACKUPS_LIMIT),
    )


def _of_pack(pack: BadPack) -> list[Damage]:
    name = pack_name(bytes.fromhex(pack.pack))
    whole = [Damage(object_name=name, problem=pack.problem, advice=_PACK_ADVICE)] if pack.problem else []
    return whole + [
        Damage(object_name=name, chunk_id=chunk, problem=problem, advice=_PACK_ADVICE)
        for chunk, problem in pack.chunks.items()
    ]


def _shown(time: int) -> str:
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="seconds") if time else ""
