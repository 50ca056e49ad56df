"""Goal: a VM group's rules select exactly the VMs that they say, and every other VM has its reason."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from safehaul.groups import Selection, details_of, in_order, select
from safehaul.messages.disks import DiskCriteria, DiskSelection
from safehaul.messages.inventory import (
    InventoryDetail,
    Unidentified,
    UnidentifiedReason,
    VmDisk,
    VmRecord,
    VmTag,
)
from safehaul.rule_kinds import RuleBase
from safehaul.rules import RULE_KINDS, Rule

_RULES: TypeAdapter[tuple[RuleBase, ...]] = TypeAdapter(tuple[Rule, ...])


@dataclass(frozen=True)
class Group:
    rules: tuple[RuleBase, ...]
    exclude: tuple[RuleBase, ...] = ()
    disk_selection: DiskSelection = field(default_factory=DiskSelection)


def _guid(number: int) -> str:
    return f"11111111-0000-0000-0000-000000000000.22222222-0000-0000-0000-{number:012}"


def _vm(number: int, name: str = "", **fields: Any) -> VmRecord:
    return VmRecord(
        vc_guid=_guid(number), vcenter="main", moref=f"vm-{number}", name=name or f"vm{number}", **fields
    )


_INVENTORY = [
    _vm(1, "web-1", folder="Prod/Web", datastores=["nas-1"], power_state="poweredOn",
        datacenter="Berlin", cluster="prod-a", host="esx-1.lab", resource_pool="Prod/Gold",
        guest_id="rhel9_64Guest", guest_name="Red Hat Enterprise Linux 9 (64-bit)", hardware_version="vmx-19",
        annotation="Owner: Ada\nbackup: yes", tags=[VmTag(category="Backup", name="gold")],
        attributes={"Owner": "team-web"}),
    _vm(2, "Web-2", folder="Prod/Web/Old", datastores=["nas-1", "nas-2"],
        datacenter="Berlin", cluster="prod-b", host="esx-2.lab", resource_pool="Prod",
        guest_id="windows2019srv_64Guest", guest_name="Microsoft Windows Server 2019 (64-bit)",
        hardware_version="vmx-7", tags=[VmTag(category="Tier", name="gold"), VmTag(category="Backup", name="Silver")],
        attributes={"Owner": "team-db", "Büro": "7"}),
    _vm(3, "db [main]", folder="Prod/DB", datastores=["nas-2"], power_state="poweredOn",
        datacenter="Hamburg", cluster="prod-a", host="esx-3.lab", resource_pool="Production",
        hardware_version="vmx-13"),
    _vm(4, "bücher", folder="", datastores=["local"], power_state="suspended", host="esx-4.lab"),
    _vm(5, "Production", folder="Production", template=True, connection_state="inaccessible"),
]  # fmt: skip


def _select(rules: list[Any], exclude: list[Any] | None = None) -> Selection:
    return select(
        iter(_INVENTORY), Group(_RULES.validate_python(rules), _RULES.validate_python(exclude or []))
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
        ({"datastore": "nas-*"}, [1, 2, 3]),
        ({"name": r"(?:web|db)[- ].*", "regex": True}, [1, 3]),
        ({"name": r"WEB-\d", "regex": True, "ignore_case": True}, [1, 2]),
        ({"name": "web", "regex": True}, []),
        ({"datacenter": "Berlin"}, [1, 2]),
        ({"datacenter": "?amburg"}, [3]),
        ({"cluster": "prod-a"}, [1, 3]),
        ({"cluster": "*"}, [1, 2, 3]),
        ({"host": "esx-[12].lab"}, [1, 2]),
        ({"resource_pool": "Prod"}, [1, 2]),
        ({"resource_pool": "Prod", "subpools": False}, [2]),
        ({"resource_pool": "", "subpools": False}, [4]),
        ({"tag": "gold"}, [1, 2]),
        ({"tag": "gold", "category": "Backup"}, [1]),
        ({"tag": "*", "category": "backup", "ignore_case": True}, [1, 2]),
        ({"tag": "silver", "category": "Backup"}, []),
        ({"attribute": "Owner"}, [1, 2]),
        ({"attribute": "Owner", "value": "team-d?"}, [2]),
        ({"attribute": "owner"}, []),
        ({"attribute": "Bu\u0308ro", "value": r"\d", "regex": True}, [2]),
        ({"guest_os": "windows*"}, [2]),
        ({"guest_os": "Red Hat *"}, [1]),
        ({"guest_os": "*"}, [1, 2]),
        ({"template": True}, [5]),
        ({"template": False}, [1, 2, 3, 4]),
        ({"annotation": "*backup: yes*"}, [1]),
        ({"annotation": ".*Ada.*yes", "regex": True}, [1]),
        ({"hardware_version": "vmx-13"}, [3]),
        ({"hardware_version": "7"}, [2]),
        ({"hardware_version": ">=13"}, [1, 3]),
        ({"hardware_version": "<= 13"}, [2, 3]),
        ({"hardware_version": "<13"}, [2]),
        ({"hardware_version": ">vmx-13"}, [1]),
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
    assert len(selection.unmatched) == len(_INVENTORY) - len(numbers)
    assert selection.seen_count == len(_INVENTORY)
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
        "has no disk: nothing of it can be backed up",
    )


def test_every_kind_of_rule_is_tried_above() -> None:
    marks = [mark for mark in test_a_rule_selects_what_it_says.pytestmark if mark.name == "parametrize"]
    assert {kind for rule, _ in marks[0].args[1] for kind in RULE_KINDS if kind in rule} == set(RULE_KINDS)


def _nameless(name: str, **fields: Any) -> Unidentified:
    return Unidentified(
        moref="vm-77", name=name, kind=UnidentifiedReason.NOT_CONNECTED, reason="the VM is orphaned", **fields
    )


def test_vms_without_a_vc_guid_of_their_own_are_refused_when_the_rules_select_them() -> None:
    """Who selects a VM must hear that it is not backed up; who does not select it need not."""
    group = Group(_RULES.validate_python([{"name": "a*"}]), _RULES.validate_python([{"folder": "Scratch"}]))
    twin = _vm(9, "a-clone", folder="Prod")
    selection = select(
        [_vm(2, "a"), _vm(3, "b")],
        group,
        [
            _nameless("a-lost"),
            _nameless("other"),
            _nameless("a-scratch", folder="Scratch"),
            _nameless(twin.name, vc_guid=twin.vc_guid, record=twin),
        ],
    )
    assert [item.record.name for item in selection.included] == ["a"]
    assert [(item.record.name, item.reason) for item in selection.refused] == [
        ("a-lost", "the VM is orphaned"),
        ("a-clone", "the VM is orphaned"),
    ]
    assert [item.record.name for item in selection.excluded] == ["a-scratch"]
    assert [item.name for item in selection.unmatched] == ["b", "other"]


def test_a_listed_guid_that_several_vms_have_is_refused_and_not_called_missing() -> None:
    twins = [_nameless(name, vc_guid=_guid(5), record=_vm(5, name)) for name in ("one", "two")]
    selection = select([], Group(_RULES.validate_python([{"guids": [_guid(5)]}])), twins)
    assert [item.record.name for item in selection.refused] == ["one", "two"]
    assert selection.missing_guids == ()
    assert not selection.empty


def test_rules_that_match_nothing_are_named_with_their_place() -> None:
    selection = _select(
        [{"name": "web-*"}, {"folder": "Porduction"}, {"folder": "Prod"}],
        [{"tag": "no-bakcup"}, {"name": "db*"}],
    )
    # `db*` only takes out what `folder` had selected, and a rule behind the first match is used all the same.
    assert selection.idle_rules == ("rules[1]: folder 'Porduction'", "exclude[0]: tag 'no-bakcup'")


def test_only_rules_by_tag_or_attribute_ask_for_more_of_vcenter() -> None:
    def details(*rules: Any) -> frozenset[InventoryDetail]:
        return details_of(Group(_RULES.validate_python(rules[:1]), _RULES.validate_python(rules[1:])))

    assert details({"name": "*"}) == set()
    assert details({"name": "*"}, {"any": [{"not": {"tag": "x"}}, {"name": "y"}]}) == {InventoryDetail.TAGS}
    assert details({"all": [{"tag": "x"}, {"attribute": "y"}]}) == set(InventoryDetail)


def test_a_pattern_that_backtracks_elsewhere_takes_no_time() -> None:
    group = Group(_RULES.validate_python([{"name": "(a+)+$", "regex": True}, {"name": "*a" * 100 + "b"}]))
    started = time.monotonic()
    assert select([_vm(1, "a" * 5000 + "!")], group).empty
    assert time.monotonic() - started < 2


def _disk(key: int, size: int = 5, path: str = "[nas-1] web/web.vmdk", **fields: Any) -> VmDisk:
    return VmDisk(
        key=key,
        label=f"Hard disk {key - 1999}",
        capacity_bytes=size,
        path=path,
        controller_key=1000,
        **fields,
    )


def test_disk_filters_narrow_the_vm_and_a_vm_without_disks_left_is_refused() -> None:
    both = [_disk(2000), _disk(2001, 9, "[scratch] web/swap.vmdk")]
    inventory = [
        _vm(1, "both", disks=both, datastores=["nas-1", "scratch", "iso"], vmx_path="[nas-1] web/web.vmx"),
        _vm(2, "only", disks=both[1:], datastores=["scratch"], vmx_path="[scratch] x/x.vmx"),
        _vm(3, "none", vmx_path="[nas-1] y/y.vmx"),
    ]
    filters = DiskSelection(exclude=[DiskCriteria(file="*swap*")])
    selection = select(inventory, Group(_RULES.validate_python([{"name": "*"}]), disk_selection=filters))
    first, third = selection.included
    assert [disk.key for disk in first.wanted.disks] == [2000]
    assert first.wanted.datastores == ["nas-1", "iso"]
    assert [reason for _, reason in first.disks.deselected] == [
        "not selected: excluded by disk filter file '*swap*'"
    ]
    assert third.notes == ("has no disk: nothing of it can be backed up",)
    (refused,) = selection.refused
    assert "leave none of the 1 disks of VM 'only' (Hard disk 2: not selected" in refused.reason


def test_the_order_is_by_name_by_size_or_as_listed() -> None:
    inventory = [
        _vm(number, name, disks=[VmDisk(key=2000, label="", capacity_bytes=size, path="[d] x")])
        for number, name, size in ((1, "b", 5), (2, "A", 9), (3, "c", 9))
    ]
    rules = _RULES.validate_python([{"guids": [_guid(3), _guid(1)]}, {"name": "*"}])
    included = select(inventory, Group(rules)).included
    assert [item.record.name for item in in_order(included, "name")] == ["A", "b", "c"]
    assert [item.record.name for item in in_order(included, "size")] == ["A", "c", "b"]
    assert [item.record.name for item in in_order(included, "listed")] == ["c", "b", "A"]


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"name": "a", "folder": "b"},
        {"name": ""},
        {"name": "a", "regexp": True},
        {"name": "(", "regex": True},
        {"name": "x", "regex": True, "subfolders": True},
        {"tag": "x", "category": "(?=x)", "regex": True},
        {"attribute": "x", "value": "", "regex": False},
        {"category": "Backup"},
        {"template": "maybe"},
        {"hardware_version": "new"},
        {"hardware_version": "=>13"},
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
