"""The reference of the configuration, made from the models: every key with its value, default and meaning.

`docs/configuration.md` is this text; a test compares them. What a key means stands below it in its model, and is
written for the person who edits the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator, BaseModel, BeforeValidator, Discriminator
from pydantic.fields import FieldInfo

from safehaul.config import reference_text as texts
from safehaul.config.fields import SIZE_FACTORS, AbsolutePath, SizeBytes
from safehaul.config.models import DiskFilter, TemporalSettings, TlsSettings, VmGroup
from safehaul.config.secrets import SecretRef
from safehaul.config.settings import Settings
from safehaul.messages.exports import NAME_PATTERN
from safehaul.retention import Retention
from safehaul.rule_kinds import Pattern
from safehaul.rules import MAX_RULE_DEPTH, RULE_KINDS

# What the file's table sets by itself: nobody types it.
HIDDEN = {"writable"}
_TABLE_HEAD = "| key | value | default | meaning |\n|---|---|---|---|\n"
_MODEL_WORDS: dict[type[BaseModel], str] = {
    SecretRef: "[secret](#secrets)",
    TlsSettings: "`true`, `false` or [a table](#temporaltls)",
    DiskFilter: "[disk filters](#disk-filters)",
    Retention: "[a table](#vm_groupsretention)",
}
_INNER: dict[type[BaseModel], tuple[str, type[BaseModel]]] = {
    TemporalSettings: ("tls", TlsSettings),
    VmGroup: ("retention", Retention),
}
"""Tables with a table inside them, which has a heading of its own."""
_TYPE_WORDS: dict[object, str] = {str: "text", bool: "`true` or `false`", UUID: "UUID"}
_PLURALS = {"text": "texts", "name": "names"}


def reference_markdown() -> str:
    """The whole page."""
    parts = [texts.HEAD, _contents()]
    told: dict[type[BaseModel], str] = {}
    for key, field in Settings.model_fields.items():
        parts += _section(key, field, told)
    parts += [_rules(), _disk_filters()]
    parts += [texts.SECRETS_HEAD, _keys(SecretRef), _toml(texts.REFERENCE_EXAMPLE), texts.FOOT]
    return "\n".join(parts)


def _contents() -> str:
    rows = []
    for key, field in Settings.model_fields.items():
        shown, count = _heading(key, field), "one"
        if _is_list(field):
            count = "one or more" if field.is_required() else "any number"
        elif not field.is_required():
            count = "one, or left out"
        first_sentence = _meaning(field).partition(". ")[0].rstrip(".")
        rows.append(f"| [{shown}](#{key}) | {count} | {first_sentence} |\n")
    return "".join(["| table | how many | what it is |\n|---|---|---|\n", *rows])


def _section(key: str, field: FieldInfo, told: dict[type[BaseModel], str]) -> Iterator[str]:
    """One key of the file's top level: a value of its own, a table, or a list of tables.

    `told` remembers under which heading a model's keys stand: two tables may have the same.
    """
    yield f"## {_heading(key, field)}\n"
    model = _model_of(field)
    if model is None:
        yield _TABLE_HEAD + _row(key, field)
    else:
        yield _meaning(field) + "\n"
        first = told.setdefault(model, key)
        yield _keys(model) if first == key else f"The keys are those of [`[[{first}]]`](#{first}).\n"
    yield _toml(texts.EXAMPLES[key])
    if model in _INNER:
        name, inner = _INNER[model]
        yield f"### `[{key}.{name}]`\n"
        yield _text_of(inner) + "\n"
        yield _keys(inner)
        yield _toml(texts.EXAMPLES[f"{key}.{name}"])


def _rules() -> str:
    rows = []
    for kind, model in RULE_KINDS.items():
        options, value, meaning = [], "", _text_of(model)
        for name, field in model.model_fields.items():
            if (field.alias or name) != kind:
                default = "" if field.default in {None, False} else f" (default {_default(field)})"
                options.append(f"`{name}`{default}")
                continue
            value = _value(name, field)
            meaning = f"{meaning} {_meaning(field)}".rstrip()
        cells = (f"`{kind}`", value, meaning, ", ".join(options) or "–", f"`{texts.RULE_EXAMPLES[kind]}`")
        rows.append(f"| {' | '.join(map(_cell, cells))} |\n")
    head = "| key | value | meaning | options | example |\n|---|---|---|---|---|\n"
    return texts.RULES_HEAD.format(depth=MAX_RULE_DEPTH) + "\n" + head + "".join(rows)


def _disk_filters() -> str:
    return "\n".join([texts.DISK_FILTERS_HEAD, _keys(DiskFilter), _toml(texts.DISK_FILTER_EXAMPLE)])


def _keys(model: type[BaseModel]) -> str:
    return _TABLE_HEAD + "".join(
        _row(key, field) for key, field in model.model_fields.items() if key not in HIDDEN
    )


def _row(key: str, field: FieldInfo) -> str:
    return f"| `{key}` | {_value(key, field)} | {_default(field)} | {_cell(_meaning(field))} |\n"


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _text_of(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def _value(key: str, field: FieldInfo) -> str:
    """What kind of value a key takes, with its unit and its bounds."""
    base, metadata = _core(field.annotation)
    metadata = [*metadata, *field.metadata]
    if get_origin(base) is tuple:
        inner, inner_metadata = _core(get_args(base)[0])
        word = _word(inner, inner_metadata)
        return f"list of {_PLURALS.get(word, word)}"
    if base in {int, float} and not _is_size(metadata):
        word = "seconds" if key.endswith("_s") else "whole number" if base is int else "number"
    else:
        word = _word(base, metadata)
    bounds = _bounds(metadata, as_size=_is_size(metadata))
    return f"{word}, {bounds}" if bounds else word


def _word(base: object, metadata: Sequence[object]) -> str:
    if isinstance(base, type) and issubclass(base, BaseModel):
        return _MODEL_WORDS[base]
    if get_origin(base) is Literal:
        return ", ".join(f'`"{item}"`' for item in get_args(base))
    checked = (
        ("[rules](#rules)", any(isinstance(item, Discriminator) for item in metadata)),
        ("size", _is_size(metadata)),
        ("name", any(getattr(item, "pattern", None) == NAME_PATTERN for item in metadata)),
        ("absolute path", _has_checks_of(AbsolutePath, metadata)),
        ("pattern", _has_checks_of(Pattern, metadata)),
    )
    return next((word for word, holds in checked if holds), "") or _TYPE_WORDS[base]


def _core(annotation: Any) -> tuple[Any, list[object]]:
    """An annotation without `Annotated` and `| None`, and the metadata that stood around it."""
    metadata: list[object] = []
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            metadata += more
        elif get_origin(annotation) in {Union, UnionType} and type(None) in get_args(annotation):
            annotation = next(part for part in get_args(annotation) if part is not type(None))
        else:
            return annotation, metadata


def _has_checks_of(kind: Any, metadata: Sequence[object]) -> bool:
    checks = [item for item in get_args(kind)[1:] if isinstance(item, AfterValidator | BeforeValidator)]
    return all(item in metadata for item in checks)


def _is_size(metadata: Sequence[object]) -> bool:
    return _has_checks_of(SizeBytes, metadata)


def _bounds(metadata: Sequence[object], *, as_size: bool) -> str:
    """The range in words; a size's own bounds, 0 and 1 EiB, say nothing."""

    def shown(number: Any) -> str:
        return _size_text(number) if as_size else str(number)

    # The kind of value and the key may both have bounds: the narrower ones count.
    lows: list[Any] = [
        item.ge for item in metadata if isinstance(item, Ge) and not (as_size and item.ge == 0)
    ]
    highs: list[Any] = [item.le for item in metadata if isinstance(item, Le)]
    lowest, highest = max(lows, default=None), min(highs, default=None)
    above = next((item.gt for item in metadata if isinstance(item, Gt)), None)
    if above is not None:
        return f"above {shown(above)}" + (f", at most {shown(highest)}" if highest is not None else "")
    if lowest is not None and highest is not None:
        return f"{shown(lowest)} to {shown(highest)}"
    return f"at least {shown(lowest)}" if lowest is not None else ""


def _default(field: FieldInfo) -> str:
    default = field.default
    if field.is_required():
        return "required"
    if default in (None, "", (), Retention()):
        return "–"
    if isinstance(default, TlsSettings):
        return f"`{str(default.enabled).lower()}`"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, str):
        return f'`"{default}"`'
    return f'`"{_size_text(default)}"`' if _is_size(field.metadata) else f"`{default:g}`"


def _size_text(size_bytes: int) -> str:
    """A size as the file takes it."""
    return next(
        f"{size_bytes // factor} {unit}"
        for unit, factor in reversed(SIZE_FACTORS.items())
        if size_bytes % factor == 0
    )


def _heading(key: str, field: FieldInfo) -> str:
    if _model_of(field) is None:
        return f"`{key}`"
    return f"`[[{key}]]`" if _is_list(field) else f"`[{key}]`"


def _is_list(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is tuple


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    base, _ = _core(get_args(field.annotation)[0] if _is_list(field) else field.annotation)
    return base if isinstance(base, type) and issubclass(base, BaseModel) else None


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _toml(text: str) -> str:
    return f"```toml\n{text}```\n"
