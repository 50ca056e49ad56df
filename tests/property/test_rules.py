"""Goal: all, any and not are the and, or and not of logic, whatever stands inside them and whatever the VM is like."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from safehaul.disk_filters import choose
from safehaul.groups import select
from safehaul.messages.disks import DiskCriteria, DiskSelection
from safehaul.messages.inventory import VmDisk, VmRecord, VmTag
from safehaul.patterns import matcher
from safehaul.rule_kinds import RuleBase
from safehaul.rules import Rule
from tests.unit.test_groups import Group

_RULE: TypeAdapter[RuleBase] = TypeAdapter(Rule)
_TEXT_KINDS = ["name", "cluster", "host", "annotation", "tag"]
_words = st.sampled_from(["", "a", "b", "ab", "web-1"])
_patterns = st.sampled_from(["a", "*", "?", "web-[0-9]", "b*"])
_leaves = st.one_of(
    st.builds(lambda key, value: {key: value}, st.sampled_from(_TEXT_KINDS), _patterns),
    st.builds(lambda value, sub: {"folder": value, "subfolders": sub}, _words, st.booleans()),
    st.builds(lambda value: {"template": value}, st.booleans()),
    st.builds(lambda value: {"power_state": value}, st.sampled_from(["poweredOn", "poweredOff"])),
)
_records = st.builds(
    VmRecord,
    vc_guid=st.uuids().map(lambda each: f"{each}.{each}"),
    vcenter=st.just("main"),
    moref=st.just("vm-1"),
    name=_words,
    cluster=_words,
    host=_words,
    folder=_words,
    annotation=_words,
    template=st.booleans(),
    power_state=st.sampled_from(["poweredOn", "poweredOff"]),
    tags=st.lists(st.builds(VmTag, category=_words, name=_words), max_size=2),
)


def _combined(children: Any) -> Any:
    return st.one_of(
        st.builds(lambda parts: {"all": parts}, st.lists(children, min_size=1, max_size=3)),
        st.builds(lambda parts: {"any": parts}, st.lists(children, min_size=1, max_size=3)),
        st.builds(lambda part: {"not": part}, children),
    )


_rules = st.recursive(_leaves, _combined, max_leaves=8).filter(lambda rule: _depth(rule) <= 6)


def _depth(rule: dict[str, Any]) -> int:
    below = [*rule.get("all", []), *rule.get("any", []), *([rule["not"]] if "not" in rule else [])]
    return 1 + max(map(_depth, below), default=0)


def _by_logic(rule: dict[str, Any], record: VmRecord) -> bool:
    """The meaning of a combination, by Python's own logic over the leaves."""
    if "all" in rule:
        return all(_by_logic(part, record) for part in rule["all"])
    if "any" in rule:
        return any(_by_logic(part, record) for part in rule["any"])
    if "not" in rule:
        return not _by_logic(rule["not"], record)
    return _RULE.validate_python(rule).matches(record)


@given(_rules, _records)
def test_a_combination_is_the_logic_of_its_leaves(rule: dict[str, Any], record: VmRecord) -> None:
    made = _RULE.validate_python(rule)
    assert made.matches(record) is _by_logic(rule, record)
    assert made.text()


@given(_leaves, _leaves, _records)
def test_de_morgan(one: dict[str, Any], other: dict[str, Any], record: VmRecord) -> None:
    left = _RULE.validate_python({"not": {"all": [one, other]}})
    right = _RULE.validate_python({"any": [{"not": one}, {"not": other}]})
    assert left.matches(record) is right.matches(record)


@given(
    st.lists(_rules, min_size=1, max_size=3),
    st.lists(_rules, max_size=2),
    st.lists(_records, max_size=5, unique_by=lambda record: record.vc_guid),
)
def test_every_vm_is_in_exactly_one_place_and_that_is_what_the_rules_say(
    rules: list[dict[str, Any]], exclude: list[dict[str, Any]], records: list[VmRecord]
) -> None:
    group = Group(tuple(map(_RULE.validate_python, rules)), tuple(map(_RULE.validate_python, exclude)))
    selection = select(records, group)
    wanted = [any(_by_logic(rule, record) for rule in rules) for record in records]
    vetoed = [any(_by_logic(rule, record) for rule in exclude) for record in records]
    assert [item.record for item in selection.included] == [
        record for record, yes, no in zip(records, wanted, vetoed, strict=True) if yes and not no
    ]
    assert [item.record for item in selection.excluded] == [
        record for record, yes, no in zip(records, wanted, vetoed, strict=True) if yes and no
    ]
    assert list(selection.unmatched) == [
        record for record, yes in zip(records, wanted, strict=True) if not yes
    ]
    assert selection.seen_count == len(records)


@given(st.text(max_size=40), st.booleans())
def test_a_text_with_its_glob_characters_quoted_fits_itself_only(text: str, ignore_case: bool) -> None:
    quoted = "".join(f"[{char}]" if char in "*?[" else char for char in text)
    fits = matcher(quoted, ignore_case=ignore_case)
    assert fits(text)
    assert not fits(text + "x")


@given(
    st.lists(st.builds(DiskCriteria, label=_patterns, controller_key=st.none() | st.just(1000)), max_size=3),
    st.lists(st.builds(DiskCriteria, label=_patterns), max_size=3),
    st.lists(
        st.builds(
            VmDisk,
            key=st.integers(2000, 2010),
            label=_words,
            capacity_bytes=st.integers(0, 100),
            path=st.just("[a] b"),
            controller_key=st.sampled_from([1000, 1001]),
        ),
        max_size=4,
    ),
)
def test_no_disk_is_lost_between_selected_and_deselected(
    include: list[DiskCriteria], exclude: list[DiskCriteria], disks: list[VmDisk]
) -> None:
    choice = choose(disks, DiskSelection(include=include, exclude=exclude))
    both = [*choice.selected, *(disk for disk, _ in choice.deselected)]
    assert sorted(disk.model_dump_json() for disk in both) == sorted(disk.model_dump_json() for disk in disks)
    assert all(reason for _, reason in choice.deselected)
