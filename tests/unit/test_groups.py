"""Goal: a VM group's rules select exactly the VMs that they say, and every other VM has its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from safehaul.groups import Selection, in_order, select
from safehaul.messages.inventory import VmDisk, VmRecord
from safehaul.rules import Rule, RuleBase

_RULES: TypeAdapter[tuple[RuleBase, ...]] = TypeAdapter(tuple[Rule, ...])


@dataclass(frozen=True)
class _Group:
    rules: tuple[RuleBase, ...]
    exclude: tuple[RuleBase, ...] = ()


def _guid(number: int) -> str:
    return f"11111111-0000-0000-0000-000000000000.22222222-0000-0000-0000-{number:012}"


def _vm(number: int, name: str = "", **fields: Any) -> VmRecord:
    return VmRecord(
        vc_guid=_guid(number), vcenter="main", moref=f"vm-{number}", name=name or f"vm{number}", **fields
    )


_INVENTORY = [
    _vm(1, "web-1", folder="Prod/Web", datastores=["nas-1"], power_state="poweredOn"),
    _vm(2, "Web-2", folder="Prod/Web/Old", datastores=["nas-1", "nas-2"]),
    _vm(3, "db [main]", folder="Prod/DB", datastores=["nas-2"], power_state="poweredOn"),
    _vm(4, "bücher", folder="", datastores=["local"], power_state="suspended"),
    _vm(5, "Production", folder="Production", template=True, connection_state="inaccessible"),
]


def _select(rules: list[Any], exclude: list[Any] | None = None) -> Selection:
    return select(
        iter(_INVENTORY), _Group(_RULES.validate_python(rules), _RULES.validate_python(exclude or []))
    )


@pytest.mark.parametrize(
    ("rule", "numbers"),
    [
        ({"name": "web-*"}, [1]),
        ({"name": "web-*", "ignore_case": True}, [1, 2]),
        ({"name": "WEB-?", "ignore_case": True}, [1, 2]),
        ({"name": "web"}, []),
        ({"name": "db [[]main]"}, [3]),
        ({"name": "*"}, [1, 2, 3, 4, 5]),
        ({"name": "bu\u0308cher"}, [4]),
        ({"folder": "Prod"}, [1, 2, 3]),
        ({"folder": "/Prod/Web/"}, [1, 2]),
        ({"folder": "Prod/Web", "subfolders": False}, [1]),
        ({"folder": ""}, [1, 2, 3, 4, 5]),
        ({"folder": "", "subfolders": False}, [4]),
        ({"datastore": "nas-2"}, [2, 3]),
        ({"datastore": "nas"}, []),
        ({"power_state": "poweredOn"}, [1, 3]),
        ({"guids": [_guid(3).upper(), _guid(1)]}, [1, 3]),
        ({"all": [{"folder": "Prod"}, {"datastore": "nas-1"}]}, [1, 2]),
        ({"any": [{"name": "web-1"}, {"power_state": "suspended"}]}, [1, 4]),
        ({"not": {"folder": "Prod"}}, [4, 5]),
        ({"all": [{"folder": "Prod"}, {"not": {"any": [{"name": "web-1"}, {"name": "db*"}]}}]}, [2]),
    ],
)
def test_a_rule_selects_what_it_says(rule: dict[str, Any], numbers: list[int]) -> None:
    selection = _select([rule])
    assert [item.record.vc_guid for item in selection.included] == [_guid(number) for number in numbers]
    assert selection.unmatched_count == len(_INVENTORY) - len(numbers)
    assert selection.empty == (not numbers)


def test_the_first_matching_rule_is_named_and_an_exclusion_has_its_reason() -> None:
    selection = _select(
        [{"name": "web-1"}, {"folder": "Prod"}], [{"all": [{"datastore": "nas-2"}, {"name": "db*"}]}]
    )
    assert [(item.record.name, item.rule) for item in selection.included] == [
        ("web-1", "name 'web-1'"),
        ("Web-2", "folder 'Prod'"),
    ]
    (excluded,) = selection.excluded
    assert excluded.record.name == "db [main]"
    assert excluded.reason == "excluded by (datastore 'nas-2' and name 'db*')"


def test_a_listed_guid_that_no_vm_has_is_reported_but_not_one_below_not() -> None:
    selection = _select([{"any": [{"guids": [_guid(77), _guid(1)]}, {"not": {"guids": [_guid(88)]}}]}])
    assert selection.missing_guids == (_guid(77),)
    only_missing = _select([{"guids": [_guid(77)]}])
    assert only_missing.included == ()
    assert not only_missing.empty


def test_templates_and_inaccessible_vms_are_noted() -> None:
    (item,) = _select([{"name": "Production"}]).included
    assert item.notes == (
        "is a template, which has no snapshots: it is refused; exclude it or convert it to a VM",
        "its host reports it as inaccessible",
    )


def test_vms_with_one_vc_guid_are_refused_and_the_others_go_on() -> None:
    inventory = [_vm(1, "a"), _vm(2, "b"), _vm(1, "a-clone")]
    selection = select(inventory, _Group(_RULES.validate_python([{"name": "*"}])))
    assert [item.record.name for item in selection.included] == ["b"]
    assert [item.record.name for item in selection.refused] == ["a", "a-clone"]
    assert f"2 VMs have the VC.GUID {_guid(1)}" in selection.refused[0].reason


def test_a_clone_outside_the_selection_makes_a_vc_guid_ambiguous_too() -> None:
    selection = select([_vm(1, "a"), _vm(1, "other")], _Group(_RULES.validate_python([{"name": "a"}])))
    assert (selection.included, len(selection.refused)) == ((), 1)


def test_the_order_is_by_name_by_size_or_as_listed() -> None:
    inventory = [
        _vm(number, name, disks=[VmDisk(key=2000, label="", capacity_bytes=size, path="[d] x")])
        for number, name, size in ((1, "b", 5), (2, "A", 9), (3, "c", 9))
    ]
    rules = _RULES.validate_python([{"guids": [_guid(3), _guid(1)]}, {"name": "*"}])
    included = select(inventory, _Group(rules)).included
    assert [item.record.name for item in in_order(included, "name")] == ["A", "b", "c"]
    assert [item.record.name for item in in_order(included, "size")] == ["A", "c", "b"]
    assert [item.record.name for item in in_order(included, "listed")] == ["c", "b", "A"]


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"name": "a", "folder": "b"},
        {"name": ""},
        {"name": "a", "regex": True},
        {"power_state": "on"},
        {"guids": []},
        {"guids": ["5027e5a8-9a3b-4f6e-8b6d-3c2f1a0e9d8c"]},
        {"all": []},
        {"not": [{"name": "a"}]},
        "web-*",
    ],
)
def test_what_is_no_rule_is_refused(rule: Any) -> None:
    with pytest.raises(ValidationError):
        _RULES.validate_python([rule])
