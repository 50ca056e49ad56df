"""The rules of a VM group: what a VM must be like to be selected.

A rule is a table with exactly one key that names its kind, and perhaps options of that kind:

    { name = "web-*" }                          the VM's name
    { datacenter = … } { cluster = … } { host = … } { datastore = … }    names of what it stands in or on
    { guest_os = "windows*" }                   guest id or full name
    { annotation = "*backup: yes*" }            its notes
    { tag = "gold", category = "Backup" }       a vCenter tag; the category may be left out
    { attribute = "Owner", value = "team-*" }   a custom attribute; without a value: any but empty
    { folder = "Prod/Web", subfolders = false } path below the datacentre's VM folder
    { resource_pool = "Prod", subpools = false } path below the cluster's root pool
    { power_state = "poweredOn" } { template = true } { hardware_version = ">=13" }
    { guids = ["VCENTER-UUID.VM-UUID"] }        explicit VC.GUIDs
    { all = [ … ] }  { any = [ … ] }  { not = { … } }

The first five lines take `ignore_case = true` and `regex = true`: else their values are globs. A new kind is a new
class in `safehaul.rule_kinds`, a row in `RULE_KINDS` and one in the `Rule` union.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated

from pydantic import Discriminator, Field, Tag, model_validator
from typing_extensions import override

from safehaul.messages.inventory import InventoryDetail, VmRecord
from safehaul.rule_kinds import (
    AnnotationRule,
    AttributeRule,
    ClusterRule,
    DatacenterRule,
    DatastoreRule,
    FolderRule,
    GuestOsRule,
    GuidRule,
    HardwareVersionRule,
    HostRule,
    NameRule,
    PowerStateRule,
    ResourcePoolRule,
    RuleBase,
    TagRule,
    TemplateRule,
)

MAX_RULE_DEPTH = 8
"""all/any/not inside each other; deeper is a mistake, and bounds the recursion."""


class Combination(RuleBase):
    """A rule made of rules."""

    @property
    @abstractmethod
    def parts(self) -> tuple[RuleBase, ...]:
        """The rules that this one combines."""

    @property
    @override
    def depth(self) -> int:
        return 1 + max(part.depth for part in self.parts)

    @property
    @override
    def details(self) -> frozenset[InventoryDetail]:
        return frozenset().union(*(part.details for part in self.parts))

    @model_validator(mode="after")
    def _not_too_deep(self) -> Combination:
        if self.depth > MAX_RULE_DEPTH:
            msg = f"rules stand more than {MAX_RULE_DEPTH} deep inside each other"
            raise ValueError(msg)
        return self


class AllRule(Combination):
    """Every one of the rules matches."""

    rules: tuple[Rule, ...] = Field(alias="all", min_length=1, max_length=1000)

    @property
    @override
    def parts(self) -> tuple[RuleBase, ...]:
        return self.rules

    @override
    def matches(self, record: VmRecord) -> bool:
        return all(part.matches(record) for part in self.rules)

    @override
    def text(self) -> str:
        return "(" + " and ".join(part.text() for part in self.rules) + ")"


class AnyRule(Combination):
    """At least one of the rules matches."""

    rules: tuple[Rule, ...] = Field(alias="any", min_length=1, max_length=1000)

    @property
    @override
    def parts(self) -> tuple[RuleBase, ...]:
        return self.rules

    @override
    def matches(self, record: VmRecord) -> bool:
        return any(part.matches(record) for part in self.rules)

    @override
    def text(self) -> str:
        return "(" + " or ".join(part.text() for part in self.rules) + ")"


class NotRule(Combination):
    """The rule does not match."""

    rule: Rule = Field(alias="not")

    @property
    @override
    def parts(self) -> tuple[RuleBase, ...]:
        return (self.rule,)

    @override
    def matches(self, record: VmRecord) -> bool:
        return not self.rule.matches(record)

    @override
    def text(self) -> str:
        return f"not {self.rule.text()}"


RULE_KINDS: dict[str, type[RuleBase]] = {
    "name": NameRule,
    "datacenter": DatacenterRule,
    "cluster": ClusterRule,
    "host": HostRule,
    "folder": FolderRule,
    "datastore": DatastoreRule,
    "resource_pool": ResourcePoolRule,
    "tag": TagRule,
    "attribute": AttributeRule,
    "power_state": PowerStateRule,
    "guest_os": GuestOsRule,
    "template": TemplateRule,
    "annotation": AnnotationRule,
    "hardware_version": HardwareVersionRule,
    "guids": GuidRule,
    "all": AllRule,
    "any": AnyRule,
    "not": NotRule,
}
"""The key that names a kind → the kind."""


def _kind_tag(value: object) -> str | None:
    """Which kind of rule a table (or a rule made in code) is; None when no single key says so."""
    if isinstance(value, dict):
        kinds = [kind for kind in RULE_KINDS if kind in value]
        return f"<{kinds[0]}>" if len(kinds) == 1 else None
    return next((f"<{kind}>" for kind, model in RULE_KINDS.items() if isinstance(value, model)), None)


# The angle brackets let the configuration's check tell a tag from a key in the place of an error.
Rule = Annotated[
    Annotated[NameRule, Tag("<name>")]
    | Annotated[DatacenterRule, Tag("<datacenter>")]
    | Annotated[ClusterRule, Tag("<cluster>")]
    | Annotated[HostRule, Tag("<host>")]
    | Annotated[FolderRule, Tag("<folder>")]
    | Annotated[DatastoreRule, Tag("<datastore>")]
    | Annotated[ResourcePoolRule, Tag("<resource_pool>")]
    | Annotated[TagRule, Tag("<tag>")]
    | Annotated[AttributeRule, Tag("<attribute>")]
    | Annotated[PowerStateRule, Tag("<power_state>")]
    | Annotated[GuestOsRule, Tag("<guest_os>")]
    | Annotated[TemplateRule, Tag("<template>")]
    | Annotated[AnnotationRule, Tag("<annotation>")]
    | Annotated[HardwareVersionRule, Tag("<hardware_version>")]
    | Annotated[GuidRule, Tag("<guids>")]
    | Annotated[AllRule, Tag("<all>")]
    | Annotated[AnyRule, Tag("<any>")]
    | Annotated[NotRule, Tag("<not>")],
    Discriminator(
        _kind_tag,
        custom_error_type="rule_kind",
        custom_error_message=f"a rule is a table with exactly one of these keys: {', '.join(RULE_KINDS)}",
    ),
]

for _model in (AllRule, AnyRule, NotRule):
    _model.model_rebuild()
