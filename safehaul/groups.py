"""Which VMs of an inventory a VM group selects, by which rule; and which it does not, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from safehaul.messages.inventory import VmRecord
from safehaul.rules import Combination, GuidRule, NotRule, RuleBase

Order = Literal["name", "size", "listed"]


class Selector(Protocol):
    """What `select` needs of a VM group."""

    @property
    def rules(self) -> Sequence[RuleBase]:
        """A VM is selected when any of these matches."""

    @property
    def exclude(self) -> Sequence[RuleBase]:
        """A VM that any of these matches is taken out again."""


@dataclass(frozen=True)
class Included:
    """A VM that is to be backed up."""

    record: VmRecord
    rule: str
    """The first rule that selected it, in words."""
    position: tuple[int, int]
    """Place of that rule, and of the VM inside it where the rule is a list: the order `listed`."""
    notes: tuple[str, ...] = ()
    """What is special about it: a template, a VM that its host cannot reach."""


@dataclass(frozen=True)
class Excluded:
    """A VM that the rules select and that is not to be backed up, or must not be."""

    record: VmRecord
    reason: str


@dataclass(frozen=True)
class Selection:
    """What a VM group's rules make of an inventory. Every VM is in exactly one of the first four."""

    included: tuple[Included, ...]
    excluded: tuple[Excluded, ...]
    """Taken out by an `exclude` rule: wanted so, no failure."""
    refused: tuple[Excluded, ...]
    """Selected, but not identified beyond doubt (its VC.GUID is not unique): to be reported as Failed."""
    unmatched_count: int
    """VMs that no rule matches."""
    missing_guids: tuple[str, ...]
    """VC.GUIDs that a rule lists and no VM has: to be reported as Failed."""

    @property
    def empty(self) -> bool:
        """True when nothing was selected: an error unless the group allows it."""
        return not (self.included or self.refused or self.missing_guids)


def select(records: Iterable[VmRecord], group: Selector) -> Selection:
    """Apply the group's rules to an inventory (pages of it may be chained; it is read once).

    Included VMs stay in the inventory's order; `in_order` puts them in the group's.
    """
    included: list[Included] = []
    excluded: list[Excluded] = []
    unmatched_count = 0
    seen: Counter[str] = Counter()
    for record in records:
        guid = record.vc_guid.lower()
        seen[guid] += 1
        choice = _first_match(record, group.rules)
        if choice is None:
            unmatched_count += 1
            continue
        veto = next((rule for rule in group.exclude if rule.matches(record)), None)
        if veto is not None:
            excluded.append(Excluded(record, f"excluded by {veto.text()}"))
            continue
        index, rule = choice
        within = rule.positions[guid] if isinstance(rule, GuidRule) else 0
        included.append(Included(record, rule.text(), (index, within), tuple(_notes(record))))
    ambiguous = {guid for guid, count in seen.items() if count > 1}
    return Selection(
        included=tuple(item for item in included if item.record.vc_guid.lower() not in ambiguous),
        excluded=tuple(excluded),
        refused=tuple(
            Excluded(item.record, _ambiguity(item.record, seen[item.record.vc_guid.lower()]))
            for item in included
            if item.record.vc_guid.lower() in ambiguous
        ),
        unmatched_count=unmatched_count,
        missing_guids=tuple(dict.fromkeys(guid for guid in _listed_guids(group.rules) if guid not in seen)),
    )


def in_order(included: Iterable[Included], order: Order) -> list[Included]:
    """Sort by name, by size (largest first), or as the rules list them; ties by name, then VC.GUID."""

    def by_name(item: Included) -> tuple[str, str]:
        return item.record.name.casefold(), item.record.vc_guid

    if order == "size":
        return sorted(included, key=lambda item: (-item.record.capacity_bytes, *by_name(item)))
    if order == "listed":
        return sorted(included, key=lambda item: (*item.position, *by_name(item)))
    return sorted(included, key=by_name)


def _first_match(record: VmRecord, rules: Sequence[RuleBase]) -> tuple[int, RuleBase] | None:
    return next(((index, rule) for index, rule in enumerate(rules) if rule.matches(record)), None)


def _notes(record: VmRecord) -> Iterator[str]:
    """What the report should say of a VM beforehand; the steps decide what it means."""
    if record.template:
        yield "is a template, which has no snapshots: it is refused; exclude it or convert it to a VM"
    if record.connection_state != "connected":
        yield f"its host reports it as {record.connection_state}"


def _ambiguity(record: VmRecord, count: int) -> str:
    return (
        f"{count} VMs have the VC.GUID {record.vc_guid}, so their backups could not be told apart: "
        "give all but one of them a new instance UUID (vc.uuid)"
    )


def _listed_guids(rules: Iterable[RuleBase]) -> Iterator[str]:
    """VC.GUIDs that the rules ask for; what stands below a `not` is not asked for."""
    for rule in rules:
        if isinstance(rule, GuidRule):
            yield from rule.guids
        elif isinstance(rule, Combination) and not isinstance(rule, NotRule):
            yield from _listed_guids(rule.parts)
