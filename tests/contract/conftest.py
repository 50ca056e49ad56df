"""The fixtures of the contracts: `server` is each vCenter that a test can run on, `lab` the lab's alone,
`catalog_url` a database of each kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract import postgresql
from tests.contract.lab_server import LabServer, lab_server
from tests.contract.postgresql import PostgreSql
from tests.contract.servers import SERVERS
from tests.contract.vcenter_server import Server


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for `server` runs on each one that has the abilities which it `needs`."""
    if "server" not in metafunc.fixturenames:
        return
    wanted = {ability for mark in metafunc.definition.iter_markers("needs") for ability in mark.args}
    chosen = [
        pytest.param(name, marks=kind.marks) for name, kind in SERVERS.items() if wanted <= kind.abilities
    ]
    metafunc.parametrize("server", chosen, indirect=True, scope="module")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    """The lab, for what only its plan of faults and its own orders can do."""
    with lab_server(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if request.param == "lab":
        yield request.getfixturevalue("lab")
        return
    with SERVERS[request.param].start(tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSql]:
    """A PostgreSQL server of this run."""
    with postgresql.running() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=postgresql.NEEDS)])
def catalog_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database for a catalogue, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'catalog.db'}"
    server: PostgreSql = request.getfixturevalue("postgresql_server")
    return server.database()
