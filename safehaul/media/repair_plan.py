"""What a repair can do about lost data: which backups are not whole, may they heal, what does dropping them cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum

from pydantic import Field

from safehaul.errors import IntegrityError, NotFoundError, UnsupportedError
from safehaul.media.envelope import Kind
from safehaul.media.manifest import BackupRef, list_backups, manifest_name, read_manifest
from safehaul.media.object_store import DeletingStore
from safehaul.media.outcome import OBJECT, Outcome, backup_of_outcome, complete, read_outcome
from safehaul.media.repository import Repository
from safehaul.messages.base import Message
from safehaul.messages.verify import DamagedBackup, LostPart, VerifyReport

_HANDLED = ("packs/", "pages/", "manifests/")
"""What damage of these touches is what the plan's backups are about."""
_NO_PACK = "idx/"
"""Stands for a chunk that no pack holds: the same."""


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
    REBUILT = "rebuilt"
    """Its damaged manifest was made again from its session's outcome."""
    DELETED = "deleted"
    """Its damaged manifest was deleted: there was nothing that could be kept for its recovery."""
    UNREADABLE = "unreadable"
    """Its manifest is of a newer version than this program knows."""


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
    useless: list[str] = Field(default_factory=list)
    """Damaged objects that nothing can be read from any more and nobody needs, such as a list that was made again."""
    cleared: list[str] = Field(default_factory=list)
    """Those of them that were deleted."""

    @property
    def settled(self) -> bool:
        """True when every backup in the list is whole, and of damaged objects only packs are left: a collection's."""
        others = {
            item.object_name
            for item in self.report.damage
            if not item.object_name.startswith(_HANDLED) and item.object_name != _NO_PACK
        }
        return not self.remaining and not others - set(self.cleared)

    @property
    def remaining(self) -> int:
        """Lost backups that are still in the list."""
        return sum(item.fate in {Fate.KEPT, Fate.HELD, Fate.UNREADABLE} for item in self.backups)


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
        useless=[
            item.object_name
            for item in report.damage
            if useless_kind(item.object_name) and item.object_name != _NO_PACK
        ],
    )


def useless_kind(name: str) -> Kind | None:
    """The kind of an object of which a damaged one is of no use to anybody; None for all others."""
    if name.startswith("sessions/") and name.endswith(f"/{OBJECT}"):
        return Kind.SESSION
    kinds = {
        "idx": Kind.LOCATIONS,
        "index": Kind.INDEX,
        "forgotten": Kind.FORGOTTEN,
        "verified": Kind.VERIFIED,
    }
    return kinds.get(name.partition("/")[0])


def clear_useless(repository: Repository, store: DeletingStore, name: str) -> bool:
    """Delete a damaged object of no use, after one more look; True: it is gone. Raises PermissionRefusedError."""
    kind = useless_kind(name)
    if kind is None:
        return False
    try:
        repository.get(kind, name)
    except IntegrityError:
        store.delete(name)
    except NotFoundError:
        # Somebody else was here first.
        return True
    except UnsupportedError:
        return False
    return not store.exists(name)


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
    plan: RepairPlan,
    forget: Callable[[BackupRef, str], None],
    clear: Callable[[BackupRef], Fate],
    is_held: Callable[[BackupRef], bool],
) -> RepairPlan:
    """Take every backup of a plan that is not whole out of the list; those that are held stay.

    `forget` takes a backup and the reason, `clear` one whose manifest cannot be read. What they raise ends the work,
    and a second run goes on.
    """
    done = []
    for item in plan.backups:
        fate = Fate.FORGOTTEN
        if is_held(item.ref):
            fate = Fate.HELD
        elif item.problem:
            fate = clear(item.ref)
        else:
            parts = ", ".join(part.part for part in item.parts)
            forget(item.ref, f"repair: {item.bytes_lost} bytes of {parts} are lost")
        done.append(item.model_copy(update={"fate": fate}))
    return plan.model_copy(update={"backups": done})


def clear_manifest(repository: Repository, store: DeletingStore, ref: BackupRef) -> Fate:
    """Deal with a backup whose manifest cannot be read: make it again from the session that wrote it, else delete it.

    `store` is the repository's own, opened by an identity that may delete. Raises PermissionRefusedError.
    """
    try:
        read_manifest(repository, ref)
    except UnsupportedError:
        return Fate.UNREADABLE
    except IntegrityError:
        found = _outcome_of(repository, ref)
        store.delete(manifest_name(ref))
        if found is None:
            return Fate.DELETED
        prefix, outcome = found
        complete(repository, prefix, outcome, str(outcome.manifest.get("session_id", "")))
        return Fate.REBUILT
    except NotFoundError:
        # Somebody else has done it since the plan was made.
        return Fate.DELETED
    return Fate.REBUILT


def _outcome_of(repository: Repository, ref: BackupRef) -> tuple[str, Outcome] | None:
    """Folder and outcome of the session that became a backup, while a collection has not cleared it."""
    for found in repository.store.list("sessions/"):
        prefix = found.name.removesuffix(OBJECT)
        if not prefix.endswith("/"):
            continue
        try:
            outcome = read_outcome(repository, prefix)
        except (IntegrityError, UnsupportedError):
            # Another damaged one: the verification names it.
            continue
        if outcome is not None and not outcome.fenced and backup_of_outcome(outcome) == ref:
            return prefix, outcome
    return None
