"""The servers that the vCenter contract is tried on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.contract.lab_server import LabServer, lab_server
from tests.contract.vcenter_server import Ability
from tests.contract.vcsim_server import GOVMOMI, VcsimServer, vcsim_server


@dataclass(frozen=True)
class Kind:
    """One of them: what it can do, how it is started, and what must be installed for it."""

    abilities: frozenset[Ability]
    start: Callable[[Path], AbstractContextManager[Any]]
    marks: tuple[pytest.MarkDecorator, ...] = ()


SERVERS: Final[dict[str, Kind]] = {
    "lab": Kind(LabServer.abilities, lab_server),
    "vcsim": Kind(
        VcsimServer.abilities,
        vcsim_server,
        (
            pytest.mark.requires_debian("go", package="golang-go"),
            pytest.mark.requires_debian(GOVMOMI, package="golang-github-vmware-govmomi-dev"),
        ),
    ),
}
