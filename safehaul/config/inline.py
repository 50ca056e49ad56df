"""A VM group that a job was given whole, in place of a name: the same tables, the same checks, the same words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from safehaul.config.models import VmGroup
from safehaul.config.problems import Problem, key_text, validation_problems
from safehaul.config.references import reference_problems
from safehaul.config.settings import Settings
from safehaul.errors import InvalidInputError
from safehaul.messages.requests import INLINE_GROUP_NAME

_PLACE = ("vm_groups", 0)
_PROBLEMS_SHOWN = 20


def group_of(settings: Settings, name: str, inline: Mapping[str, Any] | None) -> VmGroup:
    """The VM group of that name in the configuration, or the one that was given whole.

    Raises:
        InvalidInputError: there is no such group; or names every key of the inline group that is wrong.
    """
    return settings.vm_group(name) if inline is None else inline_group(settings, inline)


def inline_group(settings: Settings, raw: Mapping[str, Any]) -> VmGroup:
    """Check and make an inline group. Its `name` may be left out, and must not be that of a configured group.

    Raises:
        InvalidInputError: names every key that is wrong, and why.
    """
    given = {"name": INLINE_GROUP_NAME, **raw}
    data: dict[str, Any] = {
        "vm_groups": [given],
        **{
            table: [{"name": item.name} for item in getattr(settings, table)]
            for table in ("vcenters", "access_nodes", "media_agents")
        },
    }
    found = [(place, reason) for place, reason in reference_problems(data) if place[:2] == _PLACE]
    if any(given["name"] == group.name for group in settings.vm_groups):
        found.append(
            ((*_PLACE, "name"), "is the name of a configured VM group: their backups would be mixed up")
        )
    if "retention" in given:
        found.append(
            ((*_PLACE, "retention"), "is for a configured VM group: backups of one that is given whole stay")
        )
    group: VmGroup | None = None
    try:
        group = VmGroup.model_validate(given)
    except ValidationError as error:
        found += [(_PLACE + place, reason) for place, reason in validation_problems(error, data, _PLACE)]
    except RecursionError:
        found.append(((*_PLACE, "rules"), "rules stand too deep inside each other"))
    if group is None or found:
        told = "; ".join(
            str(Problem("", key_text(data, place).replace(key_text(data, _PLACE), "vm_group", 1), reason))
            for place, reason in found[:_PROBLEMS_SHOWN]
        )
        more = f"; and {len(found) - _PROBLEMS_SHOWN} more" if len(found) > _PROBLEMS_SHOWN else ""
        raise InvalidInputError(f"the inline VM group is wrong: {told}{more}")
    return group
