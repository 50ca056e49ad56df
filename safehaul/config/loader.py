"""Reads the configuration: a TOML file, then `SAFEHAUL_…` environment variables over it.

`SAFEHAUL_TEMPORAL__ADDRESS=db:7233` replaces one key of a table. An item of a list is addressed by its name,
in capitals and with `_` for `-`: `SAFEHAUL_VCENTERS__MAIN__URL=…`. A whole list is replaced by JSON:
`SAFEHAUL_ACCESS_NODES='[{"name": "node-1"}]'`.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource
from pydantic_settings.exceptions import SettingsError

from safehaul.config.problems import Location, Problem, did_you_mean, key_text, validation_problems
from safehaul.config.references import reference_problems
from safehaul.config.settings import ENV_DELIMITER, ENV_PREFIX, Settings
from safehaul.errors import ConfigError

CONFIG_VARIABLE = "SAFEHAUL_CONFIG"
DEFAULT_PATHS = (Path("safehaul.toml"), Path("/etc/safehaul/safehaul.toml"))
_FILE_LIMIT_BYTES = 16 * 2**20
_PROBLEMS_SHOWN = 50


def find_config(explicit: str | Path | None = None) -> Path:
    """The file that is used: the one named, else `SAFEHAUL_CONFIG`, else the first default that exists.

    Raises:
        ConfigError: nothing was named and no default exists.
    """
    named = explicit or os.environ.get(CONFIG_VARIABLE)
    if named:
        return Path(named)
    for path in DEFAULT_PATHS:
        if path.is_file():
            return path
    tried = ", ".join(str(path) for path in DEFAULT_PATHS)
    msg = (
        f"no configuration found (looked for {tried}): name one with --config or {CONFIG_VARIABLE}, or begin one by "
        "`safehaul config example --short > safehaul.toml`"
    )
    raise ConfigError(msg)


def check(path: str | Path) -> list[Problem]:
    """Everything that is wrong with the file and the environment, all at once; empty when nothing is."""
    return _examine(Path(path))[1]


def load(path: str | Path) -> Settings:
    """The configuration of a file with the environment over it.

    Raises:
        ConfigError: names every problem, a line each.
    """
    settings, problems = _examine(Path(path))
    if settings is None:
        lines = [str(problem) for problem in problems[:_PROBLEMS_SHOWN]]
        if len(problems) > _PROBLEMS_SHOWN:
            lines.append(f"… and {len(problems) - _PROBLEMS_SHOWN} more")
        raise ConfigError("\n".join(lines))
    return settings


def _examine(path: Path) -> tuple[Settings | None, list[Problem]]:
    """The settings when nothing is wrong, and otherwise all that is."""
    data, problems = _read_toml(path)
    if data is None:
        return None, problems
    problems += _merge_environment(data)
    found = list(reference_problems(data))
    settings = None
    # A leading underscore would be taken for one of pydantic-settings' own options.
    hidden = [key for key in data if key.startswith("_")]
    found += [((key,), "unknown key") for key in hidden]
    try:
        settings = Settings(**{key: value for key, value in data.items() if key not in hidden})
    except ValidationError as error:
        found += validation_problems(error, data)
    except RecursionError:
        found.append((("vm_groups",), "rules stand too deep inside each other"))
    problems += [Problem(_source(path, data, place), key_text(data, place), why) for place, why in found]
    return (None, problems) if problems else (settings, [])


def _read_toml(path: Path) -> tuple[dict[str, Any] | None, list[Problem]]:
    """The file's tables, or the one problem that keeps it from being read at all."""
    try:
        with path.open("rb") as file:
            raw = file.read(_FILE_LIMIT_BYTES + 1)
        if len(raw) > _FILE_LIMIT_BYTES:
            return None, [Problem(str(path), "", f"is larger than {_FILE_LIMIT_BYTES} bytes")]
        return tomllib.loads(raw.decode()), []
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        reason = f"is not UTF-8 text (line {line})"
    except tomllib.TOMLDecodeError as error:
        reason = f"is not TOML: {error}"  # says the line and column
    except RecursionError:
        reason = "is not usable: values stand too deep inside each other"
    return None, [Problem(str(path), "", reason)]


def _merge_environment(data: dict[str, Any]) -> list[Problem]:
    """Put the environment's values over `data`, in place."""
    problems = [
        Problem(
            f"environment variable {name}",
            section,
            f"unknown section{did_you_mean(section, Settings.model_fields)}",
        )
        for name in sorted(os.environ)
        if name.upper().startswith(ENV_PREFIX)
        and ENV_DELIMITER in name[len(ENV_PREFIX) :]
        and (section := name[len(ENV_PREFIX) :].lower().split(ENV_DELIMITER)[0]) not in Settings.model_fields
    ]
    try:
        environment = EnvSettingsSource(Settings)()
    except SettingsError as error:
        # The cause holds the value; the message only the section's name.
        return [*problems, Problem("environment", "", f"{error}: a list is written as JSON")]
    for key, value in environment.items():
        if isinstance(value, dict) and isinstance(data.get(key), list):
            problems += _merge_items(data[key], value, key)
        else:
            data[key] = _merged(data.get(key), value)
    return problems


def _merge_items(items: list[Any], overrides: dict[str, Any], table: str) -> list[Problem]:
    """Environment values for single items of a list of tables, found by name."""
    by_name = {
        _env_spelling(item["name"]): item
        for item in items
        if isinstance(item, dict) and isinstance(item.get("name"), str)
    }
    problems = []
    for name, value in overrides.items():
        item = by_name.get(_env_spelling(name))
        if item is None or not isinstance(value, dict):
            variable = f"{ENV_PREFIX}{table}{ENV_DELIMITER}{name}".upper()
            known = ", ".join(sorted(by_name)[:20]) or "none"
            reason = f"must address a key of an item by the item's name; there are: {known}"
            problems.append(Problem(f"environment variable {variable}{ENV_DELIMITER}…", table, reason))
        else:
            item.update(_merged(item, value))
    return problems


def _merged(old: Any, new: Any) -> Any:
    """`new` over `old`; tables are merged key by key."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
    if isinstance(new, str) and new.startswith(("[", "{")):
        try:
            return json.loads(new)
        except ValueError:
            return new  # it was not meant as JSON; the key's own check says what it should be
    return new


def _env_spelling(name: str) -> str:
    """Shells allow no dash in a variable's name."""
    return name.lower().replace("-", "_")


def _source(path: Path, data: Mapping[str, Any], place: Location) -> str:
    """Where the value at a place came from: the file, or the environment variable that is over it."""
    parts: list[str] = []
    here: Any = data
    present = {name.upper() for name in os.environ}
    for part in place:
        try:
            here = here[part]
        except (KeyError, IndexError, TypeError):
            here = None
        named = isinstance(part, int) and isinstance(here, Mapping)
        parts.append(_env_spelling(str(here.get("name")) if named else str(part)).upper())
        variable = ENV_PREFIX + ENV_DELIMITER.join(parts)
        if variable in present:
            return f"environment variable {variable}"
    return str(path)
