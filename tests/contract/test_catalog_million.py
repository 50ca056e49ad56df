"""Goal: no list, search or sum reads a large table from end to end, whatever is asked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from safehaul.catalog.catalog import Catalog
from tests.experiments.catalogue.million import Size, fill, questions

LARGE = {"backups", "disks", "job_vms"}
"""Tables of a million rows; those of VMs and jobs have a hundredth."""


SUM_OF_ALL = ("sums of everything", "postgresql")
"""It looks at every backup in any case, and PostgreSQL reckons its table to be read as fast as the index."""


def plans(catalog: Catalog) -> Iterator[tuple[str, str, list[str]]]:
    """Question, statement, and the large tables that it reads from end to end by the database's own plan."""
    engine = catalog._database.engine
    met: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        met.append((statement, parameters))

    for question, ask in questions(catalog).items():
        met.clear()
        event.listen(engine, "before_cursor_execute", note)
        ask()
        event.remove(engine, "before_cursor_execute", note)
        asked = [item for item in met if item[0].startswith("SELECT")]
        assert asked
        for statement, parameters in asked:
            yield question, statement, _read_whole(engine, statement, parameters)


def _read_whole(engine: Engine, statement: str, parameters: Any) -> list[str]:
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            explained = connection.exec_driver_sql(
                f"EXPLAIN (FORMAT JSON) {statement}", parameters
            ).scalar_one()
            return [
                node["Relation Name"]
                for node in _nodes(explained[0]["Plan"])
                if node["Node Type"] == "Seq Scan" and node["Relation Name"] in LARGE
            ]
        lines = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        scans = (re.fullmatch(r"SCAN (\w+)( USING .*INDEX .*)?", row[3]) for row in lines)
        return [scan[1] for scan in scans if scan and scan[1] in LARGE and not scan[2]]


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)


def _check(url: str, size: Size) -> None:
    catalog = Catalog(url)
    fill(catalog._database.engine, size)
    dialect = catalog._database.engine.dialect.name
    bad = [
        (question, tables, statement)
        for question, statement, tables in plans(catalog)
        if tables and (question, dialect) != SUM_OF_ALL
    ]
    assert bad == []
    catalog.close()


def test_an_sqlite_catalogue_answers_everything_by_an_index(tmp_path: Path) -> None:
    """It keeps no statistics: its plans are the same for few rows as for a million."""
    _check(f"sqlite:///{tmp_path / 'catalog.db'}", Size(vms=400, nights=3))


def test_a_few_vms_of_a_group_are_looked_up_by_their_names(tmp_path: Path) -> None:
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    engine = catalog._database.engine
    fill(engine, Size(vms=40, nights=2))
    met: list[tuple[str, Any]] = []
    event.listen(
        engine, "before_cursor_execute", lambda _c, _k, statement, given, *_: met.append((statement, given))
    )
    assert len(catalog.list_backups(search="0000", vm_group="group-07", status="Completed")) == 2
    (asked,) = [item for item in met if "FROM backups" in item[0]]
    with engine.connect() as connection:
        plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {asked[0]}", asked[1])]
    assert "backups_by_vm" in plan[0], plan
    catalog.close()


def test_a_scan_would_be_seen(tmp_path: Path) -> None:
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    fill(catalog._database.engine, Size(vms=20, nights=1))
    assert _read_whole(catalog._database.engine, "SELECT * FROM backups WHERE reason = ''", ()) == ["backups"]
    catalog.close()


@pytest.mark.slow
def test_a_million_backups_are_answered_by_an_index(catalog_url: str) -> None:
    _check(catalog_url, Size())
