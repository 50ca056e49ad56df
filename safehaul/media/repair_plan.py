"""What a repair can do about lost data: which backups are not whole, may they heal, what does dropping them cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum

from pydantic import Field

from safehaul.media.manifest import BackupRef, list_backups
from safehaul.media.repository import Repository
from safehaul.messages.base import Message
from safehaul.messages.verify import DamagedBackup, LostPart, VerifyReport


class Healing(StrEnum):
    """Whether a later backup may make a backup whole again."""

    LIKELY = "likely"
    """The VM's newest backup needs the same content: the next one stores it again, unless the guest has overwritten
    it since."""
    POSSIBLE = "possible"
    """Only if this content comes by once more, of whatever VM: the VM's disks have changed there since."""
    NO = "no"
    """A map page or the manifest is lost, not only content."""


class Fate(StrEnum):
    """What became of a backup that is not whole."""

    KEPT = "kept"
    FORGOTTEN = "forgotten"
    HELD = "held"
    """A hold forbids it."""
    UNREADABLE = "unreadable"
    """Its manifest is damaged: there is nothing that could be kept for its recovery."""


class LostBackup(Message):
    """A backup that cannot be restored whole."""

    vc_guid: str
    backup_id: str
    vm_name: str = ""
    vm_group: str = ""
    bytes_lost: int = 0
    parts: list[LostPart] = Field(default_factory=list)
    problem: str = ""
    healing: Healing
    fate: Fate = Fate.KEPT

    @property
    def ref(self) -> BackupRef:
        """Its name."""
        return BackupRef(self.vc_guid, self.backup_id)


class VmCost(Message):
    """What is left of a VM without its lost backups."""

    vc_guid: str
    vm_name: str = ""
    lost: int
    left: int
    newest_left: str = ""
    """Id of the newest backup that is whole; empty: there is none."""


class RepairPlan(Message):
    """What was repaired, what is lost, and what dropping costs."""

    packs_listed: int = 0
    """Packs that were listed again in `idx/`."""
    report: VerifyReport
    """What was found after that."""
    backups: list[LostBackup] = Field(default_factory=list)
    vms: list[VmCost] = Field(default_factory=list)

    @property
    def remaining(self) -> int:
        """Lost backups that are still in the list."""
        return sum(item.fate is not Fate.FORGOTTEN for item in self.backups)


def plan_repair(repository: Repository, report: VerifyReport, packs_listed: int = 0) -> RepairPlan:
    """Make the plan of a verification's report. Reads the list of each touched VM's backups."""
    lost = [item for item in report.damaged_backups if not item.whole]
    chunks = _lost_chunks(report)
    backups = [
        LostBackup(
            vc_guid=item.vc_guid,
            backup_id=item.backup_id,
            vm_name=item.vm_name,
            vm_group=item.vm_group,
            bytes_lost=item.bytes_lost,
            parts=item.parts,
            problem=item.problem,
            healing=_healing(item, lost, chunks, complete=not report.touched_omitted),
        )
        for item in lost
    ]
    return RepairPlan(
        packs_listed=packs_listed,
        report=report,
        backups=backups,
        vms=[_cost(repository, vc_guid, lost) for vc_guid in sorted({item.vc_guid for item in lost})],
    )


def _lost_chunks(report: VerifyReport) -> dict[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = {}
    for place in report.touched:
        if place.lost:
            found.setdefault((place.vc_guid, place.backup_id), set()).add(place.chunk_id)
    return found


def _healing(
    item: DamagedBackup,
    lost: Iterable[DamagedBackup],
    chunks: dict[tuple[str, str], set[str]],
    *,
    complete: bool,
) -> Healing:
    if not item.by_chunks:
        return Healing.NO
    if item.newest:
        return Healing.LIKELY
    newest = next((other for other in lost if other.vc_guid == item.vc_guid and other.newest), None)
    if newest is None or not complete:
        return Healing.POSSIBLE
    own = chunks.get((item.vc_guid, item.backup_id), set())
    same = own <= chunks.get((newest.vc_guid, newest.backup_id), set())
    return Healing.LIKELY if own and same else Healing.POSSIBLE


def _cost(repository: Repository, vc_guid: str, lost: list[DamagedBackup]) -> VmCost:
    own = [item for item in lost if item.vc_guid == vc_guid]
    gone = {item.backup_id for item in own}
    left = [ref.backup_id for ref in list_backups(repository, vc_guid) if ref.backup_id not in gone]
    return VmCost(
        vc_guid=vc_guid,
        vm_name=next((item.vm_name for item in own if item.vm_name), ""),
        lost=len(own),
        left=len(left),
        newest_left=max(left, default=""),
    )


def drop_lost(
    plan: RepairPlan, forget: Callable[[BackupRef, str], None], is_held: Callable[[BackupRef], bool]
) -> RepairPlan:
    """Forget every backup of a plan that is not whole; those that are held, or cannot be read at all, stay.

    `forget` takes a backup and the reason; what it raises ends the work, and a second run goes on.
    """
    done = []
    for item in plan.backups:
        fate = Fate.FORGOTTEN
        if is_held(item.ref):
            fate = Fate.HELD
        elif item.problem:
            fate = Fate.UNREADABLE
        else:
            parts = ", ".join(part.part for part in item.parts)
            forget(item.ref, f"repair: {item.bytes_lost} bytes of {parts} are lost")
        done.append(item.model_copy(update={"fate": fate}))
    return plan.model_copy(update={"backups": done})
