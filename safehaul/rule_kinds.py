"""The kinds of rule that look at one property of a VM. `safehaul.rules` combines them and lists them all."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from typing_extensions import override

from safehaul.messages.inventory import InventoryDetail, VmRecord
from safehaul.patterns import MAX_PATTERN_CHARS, Matcher, PatternError, matcher, plain

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_VC_GUID = re.compile(rf"{_UUID}\.{_UUID}")
_VERSION = re.compile(r"(?P<sign><=|>=|<|>|)\s*(?:vmx-)?(?P<number>\d{1,3})")
_RECORD_VERSION = re.compile(r"vmx-(\d{1,3})")


class RuleBase(BaseModel, ABC):
    """What every kind of rule can do."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        validate_by_name=True,
        use_attribute_docstrings=True,
    )

    @property
    def depth(self) -> int:
        """How many rules stand inside each other, this one included."""
        return 1

    @property
    def details(self) -> frozenset[InventoryDetail]:
        """What must be read of vCenter's inventory for this rule, beyond what is always read."""
        return frozenset()

    @abstractmethod
    def matches(self, record: VmRecord) -> bool:
        """Whether the VM fulfils this rule."""

    @abstractmethod
    def text(self) -> str:
        """The rule in words, for reports."""


def _check_pattern(value: str, info: ValidationInfo) -> str:
    """A wrong regular expression is a problem of the configuration, at the key that holds it."""
    if info.data.get("regex") is True:
        try:
            matcher(value, regex=True)
        except PatternError as error:
            raise ValueError(str(error)) from None
    return value


Pattern = Annotated[str, Field(min_length=1, max_length=MAX_PATTERN_CHARS), AfterValidator(_check_pattern)]


class TextRule(RuleBase):
    """A rule whose value is a pattern over a whole text. Upper and lower case differ unless `ignore_case`."""

    # Before the patterns of the subclasses, whose check asks for it.
    regex: bool = False
    """False: a glob. True: a regular expression in RE2's syntax, which must fit the whole text."""
    ignore_case: bool = False
    """True: upper and lower case are the same."""

    def _matcher_of(self, pattern: str) -> Matcher:
        return matcher(pattern, regex=self.regex, ignore_case=self.ignore_case)

    def _said(self, pattern: str) -> str:
        kind = "regex " if self.regex else ""
        return f"{kind}{pattern!r}" + (" in any case" if self.ignore_case else "")


class PropertyRule(TextRule):
    """A rule over one text property of a VM, or over several of which one must fit."""

    KEY: ClassVar[str]
    """The key that holds the pattern, which also names the kind."""
    WORDS: ClassVar[str]

    @cached_property
    def _fits(self) -> Matcher:
        return self._matcher_of(getattr(self, self.KEY))

    @abstractmethod
    def _texts(self, record: VmRecord) -> Iterable[str]:
        """What the pattern is tried on."""

    @override
    def matches(self, record: VmRecord) -> bool:
        return any(map(self._fits, self._texts(record)))

    @override
    def text(self) -> str:
        return f"{self.WORDS} {self._said(getattr(self, self.KEY))}"


class NameRule(PropertyRule):
    """The VM's name fits."""

    KEY, WORDS = "name", "name"
    name: Pattern

    @override
    def _texts(self, record: VmRecord) -> Iterable[str]:
        return (record.name,)


class DatacenterRule(PropertyRule):
    """The VM is in a datacentre whose name fits."""

    KEY, WORDS = "datacenter", "datacenter"
    datacenter: Pattern

    @override
    def _texts(self, record: VmRecord) -> Iterable[str]:
        return (record.datacenter,)


class ClusterRule(PropertyRule):
    """The VM's host is in a cluster whose name fits; a host that stands alone is in none."""

    KEY, WORDS = "cluster", "cluster"
    cluster: Pattern

    @override
    def _texts(self, record: VmRecord) -> Iterable[str]:
        return filter(None, (record.cluster,))


class HostRule(PropertyRule):
    """The VM is on a host whose name fits, now: it may be on another tomorrow."""

    KEY, WORDS = "host", "host"
    host: Pattern

    @override
    def _texts(self, record: VmRecord) -> Iterable[str]:
        return filter(None, (record.host,))


class DatastoreRule(PropertyRule):
    """Any of the VM's datastores has a name that fits."""

    KEY, WORDS = "datastore", "datastore"
    datastore: Pattern

    @override
    def _texts(self, record: VmRecord) -> Iterable[str]:
        return record.datastores


class GuestOsRule(PropertyRule):
    """The configured guest operating system fits, by its id (`windows2019srv_64Guest`) or by its full name."""

    KEY, WORDS = "guest_os", "guest OS"
    guest_os: Pattern

    @override
    def _texts(self, record: VmRecord) -> Iterable[str]:
        return filter(None, (record.guest_id, record.guest_name))


class AnnotationRule(PropertyRule):
    """The VM's notes fit, as a whole: `*backup: yes*`."""

    KEY, WORDS = "annotation", "annotation"
    annotation: Pattern

    @override
    def _texts(self, record: VmRecord) -> Iterable[str]:
        return (record.annotation,)


class TagRule(TextRule):
    """The VM carries a tag whose name fits, in a category whose name fits when one is given.

    Tags of folders, hosts and datastores are not the VM's.
    """

    tag: Pattern
    category: Pattern | None = None

    @property
    @override
    def details(self) -> frozenset[InventoryDetail]:
        return frozenset({InventoryDetail.TAGS})

    @cached_property
    def _fits(self) -> tuple[Matcher, Matcher | None]:
        return self._matcher_of(self.tag), self._matcher_of(self.category) if self.category else None

    @override
    def matches(self, record: VmRecord) -> bool:
        name, category = self._fits
        return any(name(tag.name) and (category is None or category(tag.category)) for tag in record.tags)

    @override
    def text(self) -> str:
        within = f" of category {self._said(self.category)}" if self.category else ""
        return f"tag {self._said(self.tag)}{within}"


class AttributeRule(TextRule):
    """The VM has a custom attribute of exactly this name, with a value that fits (any but empty, unless given)."""

    attribute: str = Field(min_length=1, max_length=256)
    value: Pattern | None = None

    @property
    @override
    def details(self) -> frozenset[InventoryDetail]:
        return frozenset({InventoryDetail.ATTRIBUTES})

    @cached_property
    def _fits(self) -> Matcher:
        return bool if self.value is None else self._matcher_of(self.value)

    @override
    def matches(self, record: VmRecord) -> bool:
        wanted = plain(self.attribute)
        return any(plain(name) == wanted and self._fits(value) for name, value in record.attributes.items())

    @override
    def text(self) -> str:
        return f"attribute {self.attribute!r}" + (
            "" if self.value is None else f" with value {self._said(self.value)}"
        )


class FolderRule(RuleBase):
    """The VM is in a folder of the inventory; with its subfolders unless told otherwise."""

    folder: str = Field(max_length=4096)
    """Path below the datacentre's VM folder, `/`-separated; empty for the root."""
    subfolders: bool = True

    @override
    def matches(self, record: VmRecord) -> bool:
        return _is_in(record.folder, self.folder, deep=self.subfolders)

    @override
    def text(self) -> str:
        return f"folder {self.folder!r}" + ("" if self.subfolders else " without subfolders")


class ResourcePoolRule(RuleBase):
    """The VM is in a resource pool (or vApp); with the pools below it unless told otherwise."""

    resource_pool: str = Field(max_length=4096)
    """Path below the cluster's or host's own root pool, `/`-separated; empty for that root."""
    subpools: bool = True

    @override
    def matches(self, record: VmRecord) -> bool:
        # A template is in no pool, not even in the root.
        return not record.template and _is_in(record.resource_pool, self.resource_pool, deep=self.subpools)

    @override
    def text(self) -> str:
        return f"resource pool {self.resource_pool!r}" + ("" if self.subpools else " without subpools")


class PowerStateRule(RuleBase):
    """The VM is in this power state."""

    power_state: Literal["poweredOn", "poweredOff", "suspended"]

    @override
    def matches(self, record: VmRecord) -> bool:
        return record.power_state == self.power_state

    @override
    def text(self) -> str:
        return f"power state {self.power_state}"


class TemplateRule(RuleBase):
    """The VM is a template, or is none."""

    template: bool

    @override
    def matches(self, record: VmRecord) -> bool:
        return record.template is self.template

    @override
    def text(self) -> str:
        return "is a template" if self.template else "is no template"


class HardwareVersionRule(RuleBase):
    """The virtual hardware's version compares: `19`, `vmx-19`, `>=13`, `<7`. An unknown version never does."""

    hardware_version: str = Field(max_length=32)

    @field_validator("hardware_version")
    @classmethod
    def _comparison(cls, value: str) -> str:
        if not _VERSION.fullmatch(value.strip()):
            msg = "must be a version, or a comparison with one: '19', 'vmx-19', '>=13', '<7'"
            raise ValueError(msg)
        return value.strip()

    @override
    def matches(self, record: VmRecord) -> bool:
        wanted, found = (
            _VERSION.fullmatch(self.hardware_version),
            _RECORD_VERSION.fullmatch(record.hardware_version),
        )
        if wanted is None or found is None:
            return False
        ours, theirs = int(found[1]), int(wanted["number"])
        return {
            "": ours == theirs,
            "<": ours < theirs,
            "<=": ours <= theirs,
            ">": ours > theirs,
            ">=": ours >= theirs,
        }[wanted["sign"]]

    @override
    def text(self) -> str:
        return f"hardware version {self.hardware_version}"


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


def _is_in(actual: str, wanted: str, *, deep: bool) -> bool:
    """Whether a path is another path, or below it when `deep`."""
    wanted, actual = plain(wanted).strip("/"), plain(actual).strip("/")
    return actual == wanted or (deep and (not wanted or actual.startswith(f"{wanted}/")))
