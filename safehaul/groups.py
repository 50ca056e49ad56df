"""Which VMs of an inventory a VM group selects, by which rule; and which it does not, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from safehaul import disk_filters
from safehaul.disk_filters import DiskChoice
from safehaul.messages.disks import DiskSelection
from safehaul.messages.inventory import InventoryDetail, Unidentified, VmRecord
from safehaul.rule_kinds import GuidRule, RuleBase
from safehaul.rules import Combination, NotRule

Order = Literal["name", "size", "listed"]


class Selector(Protocol):
    """What `select` needs of a VM group."""

    @property
    def rules(self) -> Sequence[RuleBase]:
        """A VM is selected when any of these matches."""

    @property
    def exclude(self) -> Sequence[RuleBase]:
        """A VM that any of these matches is taken out again."""

    @property
    def disk_selection(self) -> DiskSelection:
        """Which disks of a VM are wanted."""


@dataclass(frozen=True)
class Included:
    """A VM that is to be backed up."""

    record: VmRecord
    """As discovered, all its disks included."""
    rule: str
    """The first rule that selected it, in words."""
    position: tuple[int, int]
    """Place of that rule, and of the VM inside it where the rule is a list: the order `listed`."""
    disks: DiskChoice
    notes: tuple[str, ...] = ()
    """What is special about it: a template, a VM that its host cannot reach."""

    @property
    def wanted(self) -> VmRecord:
        """The VM as far as it is to be backed up: without the disks that a filter leaves out."""
        return disk_filters.narrowed(self.record, self.disks)


@dataclass(frozen=True)
class Excluded:
    """A VM that the rules select and that is not to be backed up, or cannot be."""

    record: VmRecord
    rule: str
    """The first rule that selected it, in words."""
    reason: str


@dataclass(frozen=True)
class Selection:
    """What a VM group's rules make of an inventory. Every VM is in exactly one of the first four."""

    included: tuple[Included, ...]
    excluded: tuple[Excluded, ...]
    """Taken out by an `exclude` rule: wanted so, no failure."""
    refused: tuple[Excluded, ...]
    """Selected, and it is known beforehand that it cannot be backed up: to be reported as Failed. It has no VC.GUID
    of its own (another VM has the same, its configuration cannot be read), or the disk filters leave nothing of it."""
    unmatched: tuple[VmRecord, ...]
    """VMs that no rule matches."""
    missing_guids: tuple[str, ...]
    """VC.GUIDs that a rule lists and no VM has: to be reported as Failed."""
    idle_rules: tuple[str, ...] = ()
    """Rules and exclusions, in words with their place, that match no VM at all: perhaps a slip of the pen."""

    @property
    def empty(self) -> bool:
        """True when nothing was selected: an error unless the group allows it."""
        return not (self.included or self.refused or self.missing_guids)

    @property
    def seen_count(self) -> int:
        """How many VMs the inventory has."""
        return len(self.included) + len(self.excluded) + len(self.refused) + len(self.unmatched)


def details_of(group: Selector) -> frozenset[InventoryDetail]:
    """What discovery must read for the group's rules beyond what it always reads."""
    return frozenset().union(*(rule.details for rule in (*group.rules, *group.exclude)))


def select(
    records: Iterable[VmRecord], group: Selector, unidentified: Iterable[Unidentified] = ()
) -> Selection:
    """Apply the group's rules to an inventory (pages of it may be chained; it is read once).

    The VC.GUIDs of `records` are unique, as discovery promises; VMs without one of their own are in
    `unidentified`, and the rules are applied to what is known of them. Included VMs stay in the inventory's order;
    `in_order` puts them in the group's.
    """
    included: list[Included] = []
    excluded: list[Excluded] = []
    refused: list[Excluded] = []
    unmatched: list[VmRecord] = []
    seen: set[str] = set()
    rules, vetoes = _Rules(group.rules, "rules"), _Rules(group.exclude, "exclude")
    for record, trouble in _all_vms(records, unidentified):
        guid = record.vc_guid.lower()
        seen.add(guid)
        choice, veto = rules.first_match(record), vetoes.first_match(record)
        if choice is None:
            unmatched.append(record)
            continue
        index, rule = choice
        disks = disk_filters.choose(record.disks, group.disk_selection)
        if veto is not None:
            excluded.append(Excluded(record, rule.text(), f"excluded by {veto[1].text()}"))
        elif trouble or disks.nothing_left:
            refused.append(Excluded(record, rule.text(), trouble or disks.complaint(record.name)))
        else:
            within = rule.positions[guid] if isinstance(rule, GuidRule) else 0
            included.append(Included(record, rule.text(), (index, within), disks, tuple(_notes(record))))
    return Selection(
        included=tuple(included),
        excluded=tuple(excluded),
        refused=tuple(refused),
        unmatched=tuple(unmatched),
        missing_guids=tuple(dict.fromkeys(guid for guid in _listed_guids(group.rules) if guid not in seen)),
        idle_rules=(*rules.idle(), *vetoes.idle()),
    )


def in_order(included: Iterable[Included], order: Order) -> list[Included]:
    """Sort by name, by size (largest first), or as the rules list them; ties by name, then VC.GUID."""

    def by_name(item: Included) -> tuple[str, str]:
        return item.record.name.casefold(), item.record.vc_guid

    if order == "size":
        return sorted(included, key=lambda item: (-item.wanted.capacity_bytes, *by_name(item)))
    if order == "listed":
        return sorted(included, key=lambda item: (*item.position, *by_name(item)))
    return sorted(included, key=by_name)


class _Rules:
    """A list of rules that also notices which of them match nothing."""

    def __init__(self, rules: Sequence[RuleBase], table: str) -> None:
        self._rules = rules
        self._table = table
        self._idle = dict.fromkeys(range(len(rules)))

    def first_match(self, record: VmRecord) -> tuple[int, RuleBase] | None:
        """The first rule that matches. Others are tried only while they have not matched anything yet."""
        found: tuple[int, RuleBase] | None = None
        for index, rule in enumerate(self._rules):
            if (found is None or index in self._idle) and rule.matches(record):
                self._idle.pop(index, None)
                found = found or (index, rule)
        return found

    def idle(self) -> list[str]:
        """The rules that have matched no VM, each with its place."""
        return [f"{self._table}[{index}]: {self._rules[index].text()}" for index in self._idle]


def _all_vms(
    records: Iterable[VmRecord], unidentified: Iterable[Unidentified]
) -> Iterator[tuple[VmRecord, str]]:
    """Every VM, with the reason why it cannot be told from others, or an empty text."""
    for record in records:
        yield record, ""
    for each in unidentified:
        known = each.record or VmRecord(
            vc_guid=each.vc_guid,
            vcenter=each.vcenter,
            moref=each.moref,
            name=each.name,
            connection_state=each.connection_state,
            datacenter=each.datacenter,
            folder=each.folder,
        )
        yield known, each.reason


def _notes(record: VmRecord) -> Iterator[str]:
    """What the report should say of a VM beforehand; the steps decide what it means."""
    if record.template:
        yield "is a template, which has no snapshots: it is refused; exclude it or convert it to a VM"
    if record.connection_state != "connected":
        yield f"its host reports it as {record.connection_state}"
    if not record.disks:
        yield "has no disk: nothing of it can be backed up"


def _listed_guids(rules: Iterable[RuleBase]) -> Iterator[str]:
    """VC.GUIDs that the rules ask for; what stands below a `not` is not asked for."""
    for rule in rules:
        if isinstance(rule, GuidRule):
            yield from rule.guids
        elif isinstance(rule, Combination) and not isinstance(rule, NotRule):
            yield from _listed_guids(rule.parts)
