"""What is wrong with a configuration, in words that name the key and say what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from safehaul.config.settings import Settings
from safehaul.rules import RULE_KINDS

Location = tuple[str | int, ...]
_MESSAGES = {
    "missing": "is missing",
    "model_type": "must be a table",
    "dict_type": "must be a table",
    "model_attributes_type": "must be a table",
    "recursion_depth_exceeded": "stands too deep inside other rules",
    "tuple_type": "must be a list",
    "string_type": "must be a text in quotes",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
}
_TIME = 'a time of day in UTC such as "11:00", or "" for never'
_PATTERN_HINTS = {
    "name": "1 to 63 of a-z, 0-9, '-' and '_', beginning with a letter or digit",
    "address": "host:port",
    "verify_at": 'a day and time in UTC such as "sun 12:00", or "" for never',
    "prune_at": _TIME,
    "copy_at": _TIME,
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    file: str
    """The file, or `environment variable NAME` when that is where the value comes from."""
    key: str
    """`vm_groups["nightly"].streams`; empty when the file as a whole is meant."""
    reason: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.key, self.reason) if part)


def key_text(data: object, location: Location) -> str:
    """A place in the configuration as a person looks for it: items of a list by their `name`."""
    text = ""
    for part in location:
        if isinstance(part, int):
            data = data[part] if isinstance(data, Sequence) and part < len(data) else None
            name = data.get("name") if isinstance(data, Mapping) else None
            # A rule has a `name` too, but it is a pattern.
            label = f'"{name}"' if isinstance(name, str) and "." not in text else str(part)
            text += f"[{label[:80]}]"
        elif not _is_tag(part):
            text += f".{part}" if text else part
            data = data.get(part) if isinstance(data, Mapping) else None
    return text


def validation_problems(
    error: ValidationError, data: Mapping[str, Any], below: Location = ()
) -> Iterator[tuple[Location, str]]:
    """Every error of pydantic's as (location, reason). Never repeats a value: it could be a secret.

    `data` is the whole configuration; when only a part of it was validated, `below` says which, and the locations
    are within that part.
    """
    details = error.errors(include_url=False, include_input=False)
    locations = [detail["loc"] for detail in details]
    for detail in details:
        location, kind = detail["loc"], detail["type"]
        if kind == "too_short" and any(_is_below(other, location) for other in locations):
            continue  # counted after its broken items were left out: the items' own errors say what is wrong
        if kind == "extra_forbidden":
            yield location, _unknown_key(below + location)
        elif kind == "too_short":
            yield location, "must not be empty"
        elif kind == "string_pattern_mismatch":
            yield location, f"must be {_PATTERN_HINTS.get(str(location[-1]), detail['msg'])}"
        elif kind == "rule_kind":
            yield location, detail["msg"] + _rule_hint(data, below + location)
        else:
            reason = _MESSAGES.get(kind, detail["msg"]).removeprefix("Value error, ")
            yield location, reason[0].lower() + reason[1:]


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Begins with a comma, or is empty when nothing is near."""
    near = difflib.get_close_matches(word.lower(), list(candidates), n=1, cutoff=0.6)
    return f", did you mean {near[0]!r}?" if near else ""


def _is_tag(part: str | int) -> bool:
    """Kinds of rule stand in pydantic's locations as `<kind>`; they are no keys of the file."""
    return isinstance(part, str) and part.startswith("<")


def _is_below(location: Location, parent: Location) -> bool:
    return len(location) > len(parent) and location[: len(parent)] == parent


def _unknown_key(location: Location) -> str:
    candidates = _keys_at(location[:-1])
    hint = did_you_mean(str(location[-1]), candidates)
    return f"unknown key{hint}" if hint else f"unknown key; known here: {', '.join(candidates)}"


def _rule_hint(data: object, location: Location) -> str:
    for part in location:
        if _is_tag(part):
            continue
        try:
            data = data[part]  # type: ignore[index]  # untyped TOML: a wrong shape is what is caught below
        except (KeyError, IndexError, TypeError):
            return ""
    words = [str(key) for key in data] if isinstance(data, Mapping) else []
    return next((hint for word in words if (hint := did_you_mean(word, RULE_KINDS))), "")


def _keys_at(location: Location) -> list[str]:
    """The keys that the table at a location may have."""
    model: type[BaseModel] | None = Settings
    for part in location:
        if _is_tag(part):
            model = RULE_KINDS[str(part)[1:-1]]
        elif isinstance(part, str) and model is not None:
            fields = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
            model = _model_in(fields.get(part))
    return [field.alias or name for name, field in model.model_fields.items()] if model is not None else []


def _model_in(annotation: object) -> type[BaseModel] | None:
    """The model that an annotation is, or holds: `tuple[VmGroup, ...]`, `SecretRef | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)
