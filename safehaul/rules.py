"""The rules of a VM group: what a VM must be like to be selected.

A rule is a table with exactly one key that names its kind, and perhaps options of that kind:

    { name = "web-*", ignore_case = true }      glob over the VM's whole name: * ? [abc] [!abc]
    { folder = "Prod/Web", subfolders = false } path below the datacentre's VM folder
    { datastore = "nas-1" }                     any of the VM's datastores has exactly this name
    { power_state = "poweredOn" }
    { guids = ["VCENTER-UUID.VM-UUID"] }        explicit VC.GUIDs
    { all = [ … ] }  { any = [ … ] }  { not = { … } }

A new kind is a new class in `RULE_KINDS` and in the `Rule` union.
"""

from __future__ import annotations

import fnmatch
import re
import unicodedata
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator
from typing_extensions import override

from safehaul.messages.inventory import VmRecord

MAX_RULE_DEPTH = 8
"""all/any/not inside each other; deeper is a mistake, and bounds the recursion."""
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_VC_GUID = re.compile(rf"{_UUID}\.{_UUID}")


class RuleBase(BaseModel, ABC):
    """What every kind of rule can do."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, validate_by_name=True)

    @property
    def depth(self) -> int:
        """How many rules stand inside each other, this one included."""
        return 1

    @abstractmethod
    def matches(self, record: VmRecord) -> bool:
        """Whether the VM fulfils this rule."""

    @abstractmethod
    def text(self) -> str:
        """The rule in words, for reports."""


def _plain(text: str) -> str:
    """One form for names that look the same: some browsers send `é` as two code points."""
    return unicodedata.normalize("NFC", text)


class NameRule(RuleBase):
    """The VM's name fits a glob. Upper and lower case differ unless `ignore_case`."""

    name: str = Field(min_length=1, max_length=256)
    ignore_case: bool = False

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        glob = _plain(self.name)
        return re.compile(fnmatch.translate(glob.casefold() if self.ignore_case else glob))

    @override
    def matches(self, record: VmRecord) -> bool:
        name = _plain(record.name)
        return self._pattern.match(name.casefold() if self.ignore_case else name) is not None

    @override
    def text(self) -> str:
        return f"name {self.name!r}" + (" in any case" if self.ignore_case else "")


class FolderRule(RuleBase):
    """The VM is in a folder of the inventory; with its subfolders unless told otherwise."""

    folder: str = Field(max_length=4096)
    """Path below the datacentre's VM folder, `/`-separated; empty for the root."""
    subfolders: bool = True

    @override
    def matches(self, record: VmRecord) -> bool:
        wanted, actual = _plain(self.folder).strip("/"), _plain(record.folder).strip("/")
        inside = self.subfolders and (not wanted or actual.startswith(f"{wanted}/"))
        return actual == wanted or inside

    @override
    def text(self) -> str:
        return f"folder {self.folder!r}" + ("" if self.subfolders else " without subfolders")


class DatastoreRule(RuleBase):
    """Any of the VM's datastores has this name."""

    datastore: str = Field(min_length=1, max_length=256)

    @override
    def matches(self, record: VmRecord) -> bool:
        return _plain(self.datastore) in map(_plain, record.datastores)

    @override
    def text(self) -> str:
        return f"datastore {self.datastore!r}"


class PowerStateRule(RuleBase):
    """The VM is in this power state."""

    power_state: Literal["poweredOn", "poweredOff", "suspended"]

    @override
    def matches(self, record: VmRecord) -> bool:
        return record.power_state == self.power_state

    @override
    def text(self) -> str:
        return f"power state {self.power_state}"


class GuidRule(RuleBase):
    """The VM is one of those listed by VC.GUID. One that the inventory lacks is reported."""

    guids: tuple[str, ...] = Field(min_length=1, max_length=10_000)

    @field_validator("guids")
    @classmethod
    def _well_formed(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        lowered = tuple(guid.lower() for guid in value)
        for guid in lowered:
            if not _VC_GUID.fullmatch(guid):
                msg = (
                    f"{guid[:100]!r} is not a VC.GUID: vCenter's instance UUID, a dot, the VM's instance UUID"
                )
                raise ValueError(msg)
        return lowered

    @cached_property
    def positions(self) -> dict[str, int]:
        """VC.GUID → its place in the list."""
        return {guid: index for index, guid in reversed(list(enumerate(self.guids)))}

    @override
    def matches(self, record: VmRecord) -> bool:
        return record.vc_guid.lower() in self.positions

    @override
    def text(self) -> str:
        return (
            f"one of {len(self.guids)} listed VC.GUIDs" if len(self.guids) > 1 else f"VC.GUID {self.guids[0]}"
        )


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
    "folder": FolderRule,
    "datastore": DatastoreRule,
    "power_state": PowerStateRule,
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
    | Annotated[FolderRule, Tag("<folder>")]
    | Annotated[DatastoreRule, Tag("<datastore>")]
    | Annotated[PowerStateRule, Tag("<power_state>")]
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
