"""What one table of the configuration says of another: names must exist, and must not stand twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from safehaul.config.problems import Location, did_you_mean

_NAMED_LISTS = {
    "vcenters": "vCenter",
    "exports": "export",
    "restore_exports": "restore export",
    "access_nodes": "access node",
    "media_agents": "media agent",
    "vm_groups": "VM group",
}


def reference_problems(data: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
    """Every wrong reference as (location, reason).

    Looks at the merged data before it is known to be well formed, so that a person sees these problems
    together with those inside the tables; what is malformed is passed over, it is reported elsewhere.
    """
    for table in _NAMED_LISTS:
        yield from _duplicates(data, table)
    for table in ("exports", "restore_exports"):
        yield from _same_export_twice(data, table)
    known = {table: _names(data, table) for table in _NAMED_LISTS}
    yield from _copies(data, known["media_agents"])
    for index, group in _tables(data, "vm_groups"):
        for key, table in (("vcenter", "vcenters"), ("media_agent", "media_agents")):
            name = group.get(key)
            if isinstance(name, str) and name not in known[table]:
                yield ("vm_groups", index, key), _no_such(table, name, known[table])
        value = group.get("access_nodes")
        nodes = value if isinstance(value, list) else []
        for place, name in enumerate(nodes):
            location: Location = ("vm_groups", index, "access_nodes", place)
            if isinstance(name, str) and name not in known["access_nodes"]:
                yield location, _no_such("access_nodes", name, known["access_nodes"])
            elif name in nodes[:place]:
                yield location, f"{name!r} stands here twice"


def _tables(data: Mapping[str, Any], key: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The well-formed items of a list of tables, with their index."""
    items = data.get(key)
    for index, item in enumerate(items if isinstance(items, list) else []):
        if isinstance(item, Mapping):
            yield index, item


def _names(data: Mapping[str, Any], key: str) -> list[str]:
    return [item["name"] for _, item in _tables(data, key) if isinstance(item.get("name"), str)]


def _duplicates(data: Mapping[str, Any], table: str) -> Iterator[tuple[Location, str]]:
    first: dict[str, int] = {}
    for index, item in _tables(data, table):
        name = item.get("name")
        if isinstance(name, str) and first.setdefault(name, index) != index:
            yield (table, index, "name"), f"another {_NAMED_LISTS[table]} has the name {name!r} already"


def _same_export_twice(data: Mapping[str, Any], table: str) -> Iterator[tuple[Location, str]]:
    """Two definitions for one NAS volume: which one a node would open would be chance."""
    known: dict[tuple[str, str], dict[str, str]] = {}
    for index, item in _tables(data, table):
        hosts, path = item.get("remote_hosts"), item.get("remote_path")
        if not isinstance(hosts, list) or not isinstance(path, str):
            continue
        name, datacenter = str(item.get("name")), str(item.get("datacenter") or "")
        for host in dict.fromkeys(host.lower() for host in hosts if isinstance(host, str)):
            others = known.setdefault((host, path), {})
            # Without a datacentre it is for all of them.
            clash = [each for each, home in others.items() if home == datacenter or "" in {home, datacenter}]
            if clash and clash[0] != name:
                reason = (
                    f"{host}:{path} is in {clash[0]!r} already: keep one of them, or give each the `datacenter` "
                    "in which it is that filer"
                )
                yield (table, index, "remote_hosts"), reason
            others.setdefault(name, datacenter)


def _copies(data: Mapping[str, Any], known: list[str]) -> Iterator[tuple[Location, str]]:
    for index, agent in _tables(data, "media_agents"):
        target = agent.get("copy_to")
        if not isinstance(target, str) or not target:
            continue
        if target == agent.get("name"):
            yield (
                ("media_agents", index, "copy_to"),
                "a copy in the same repository is none: name another one",
            )
        elif target not in known:
            yield ("media_agents", index, "copy_to"), _no_such("media_agents", target, known)


def _no_such(table: str, name: str, known: list[str]) -> str:
    what = _NAMED_LISTS[table]
    hint = did_you_mean(name, known) or f"; there are: {', '.join(known[:20]) or 'none'}"
    return f"there is no {what} {name[:100]!r} in [[{table}]]{hint}"
