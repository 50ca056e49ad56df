"""Custom attributes and tags of a site: their definitions, and what a VM carries of them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from lab.esx.objects import CustomField, Labels, Tag, TagCategory
from lab.esx.spec import Site

_FIRST_KEY = 101


def labels(site: Site) -> Labels:
    """Everything that the site or one of its VMs names, each once."""
    names = dict.fromkeys([*site.attributes, *(name for vm in site.vms for name in vm.attributes)])
    written = dict.fromkeys([*site.tags, *(tag for vm in site.vms for tag in vm.tags)])
    categories = {name: TagCategory(id=_urn("Category", name), name=name) for name in map(_category, written)}
    return Labels(
        fields=[CustomField(key=_FIRST_KEY + number, name=name) for number, name in enumerate(names)],
        categories=list(categories.values()),
        tags=[
            Tag(id=_urn("Tag", each), name=each.partition("/")[2], category_id=categories[_category(each)].id)
            for each in written
        ],
    )


def tag_ids(known: Labels, written: Iterable[str]) -> list[str]:
    """Ids of tags that are written `category/name`."""
    by_id = {each.id for each in known.tags}
    return [each for each in (_urn("Tag", text) for text in written) if each in by_id]


def attribute_values(known: Labels, values: dict[str, str]) -> dict[int, str]:
    """Values of custom attributes by key instead of by name."""
    return {each.key: values[each.name] for each in known.fields if each.name in values}


def _category(written: str) -> str:
    return written.partition("/")[0]


def _urn(kind: str, name: str) -> str:
    """In the form of vCenter's tagging service."""
    return f"urn:vmomi:InventoryService{kind}:{uuid.uuid5(uuid.NAMESPACE_DNS, f'{kind}.{name}')}:GLOBAL"
