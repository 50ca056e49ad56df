"""The tags of VMs, from vCenter's REST endpoint: its SOAP API does not have them (vmware-facts 24).

vSphere Automation API, "Tagging": one call tells the ids of the tags of many objects; one call for each tag and each
category that is met tells its name. There is no call for several names, but a site has many VMs and few tags.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any, Final

from safehaul.errors import NotFoundError
from safehaul.messages.inventory import VmTag
from safehaul.vsphere.faults import UnreadableAnswerError
from safehaul.vsphere.rest import RestSession

# The call takes a list without a page token, and vCenter's services have refused lists of a few hundred.
OBJECTS_A_CALL: Final = 100
_ATTACHED: Final = "/api/cis/tagging/tag-association?action=list-attached-tags-on-objects"
_TAG: Final = "/api/cis/tagging/tag/"
_CATEGORY: Final = "/api/cis/tagging/category/"


def tags_of(
    rest: RestSession, morefs: Sequence[str], heartbeat: Callable[[], None] | None = None
) -> dict[str, list[VmTag]]:
    """The tags of each VM that has some, by moref, ordered by category and name.

    A tag that is deleted meanwhile is on no VM.

    Raises:
        SafehaulError: vCenter could not be asked, or its answer is none.
    """
    attached: dict[str, list[str]] = {}
    for start in range(0, len(morefs), OBJECTS_A_CALL):
        _beat(heartbeat)
        attached.update(_attached(rest, morefs[start : start + OBJECTS_A_CALL]))
    categories: dict[str, str | None] = {}
    tags: dict[str, VmTag | None] = {}
    for tag_id in dict.fromkeys(each for ids in attached.values() for each in ids):
        _beat(heartbeat)
        tags[tag_id] = _tag(rest, tag_id, categories)
    return {
        moref: sorted(
            (tag for each in ids if (tag := tags[each]) is not None), key=lambda tag: (tag.category, tag.name)
        )
        for moref, ids in attached.items()
    }


def _attached(rest: RestSession, morefs: Sequence[str]) -> dict[str, list[str]]:
    """Ids of the tags of some VMs. A VM without tags, or that the account may not see, may be missing."""
    body = {"object_ids": [{"id": moref, "type": "VirtualMachine"} for moref in morefs]}
    answer = rest.call("POST", _ATTACHED, body)
    try:
        return {
            str(each["object_id"]["id"]): [str(tag_id) for tag_id in each["tag_ids"]]
            for each in answer
            if each["tag_ids"]
        }
    except (TypeError, KeyError) as error:
        raise _unreadable(_ATTACHED, error) from error


def _tag(rest: RestSession, tag_id: str, categories: dict[str, str | None]) -> VmTag | None:
    found = _named(rest, _TAG, tag_id)
    if found is None:
        return None
    try:
        category_id, name = str(found["category_id"]), str(found["name"])
    except (TypeError, KeyError) as error:
        raise _unreadable(_TAG, error) from error
    if category_id not in categories:
        category = _named(rest, _CATEGORY, category_id)
        categories[category_id] = None if category is None else str(category.get("name", ""))
    within = categories[category_id]
    return None if within is None else VmTag(category=within, name=name)


def _named(rest: RestSession, path: str, object_id: str) -> Any:
    try:
        return rest.get(path + urllib.parse.quote(object_id, safe=":"))
    except NotFoundError:  # deleted since its id was told
        return None


def _unreadable(path: str, error: Exception) -> UnreadableAnswerError:
    return UnreadableAnswerError(
        f"{path.partition('?')[0]}: vCenter's answer is not of the known form ({type(error).__name__}: {error})"
    )


def _beat(heartbeat: Callable[[], None] | None) -> None:
    if heartbeat is not None:
        heartbeat()
