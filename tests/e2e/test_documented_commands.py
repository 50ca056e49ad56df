"""Every command that a document tells the reader to type is run here, in order, by the shell, in a running data centre.

A document's commands share one shell, as a reader's do: what one sets, the next may use.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.datacentre import DataCentre
from lab.other_user import as_user
from lab.processes import tool
from lab.site import demo_site
from tests.documents import DOCUMENTS, commands
from tests.e2e.site import data_centre, run_job

pytestmark = pytest.mark.slow

ELSEWHERE = {
    r"make demo( |$)": "tests/e2e/test_demo.py",
    r"make (test|test-all|check)( |$)": ".ci/run",
    r"git clone ": "a fresh clone is what CI starts from",
    r"safehaul worker ": "lab/datacentre.py starts every worker so",
    r"safehaul demo": "tests/e2e/test_demo.py",
    r"safehaul repo init": "lab/datacentre.py makes every repository so; a second one is refused",
    r"safehaul --install-completion": "it would edit the shell's own start files; tests/unit prove the script",
    r"openssl s_client ": "tests/contract/test_vcenter_role.py",
    r"(sudo )?apt-get ": ".ci/run installs Debian's packages",
}
NIGHTLY = """
[[vm_groups]]
name = "nightly"
vcenter = "lab"
media_agent = "vault"
rules = [{ name = "files" }, { name = "archive*" }]
min_free_bytes = "1 MiB"
"""


def _run_elsewhere(text: str) -> str | None:
    return next((pattern for pattern in ELSEWHERE if re.match(pattern, text)), None)


@pytest.fixture(scope="module")
def lab() -> Iterator[DataCentre]:
    with data_centre(demo_site(6)) as started:
        with started.config.open("a") as file:
            file.write(NIGHTLY)
        started.start_workers()
        run_job(started, "demo-1")
        yield started


def _script(document: Path) -> str:
    lines = ["set -euo pipefail"]
    for command in commands(document):
        if _run_elsewhere(command.text) is None:
            # What the shell is about to do stands before what it says, so that a failure shows where.
            lines += [f"printf '%s\\n' {_quoted('$ ' + command.text)}", command.text]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_documents_commands_work(lab: DataCentre, document: Path) -> None:
    script = _script(document)
    path = os.pathsep.join([str(Path(tool("safehaul")).parent), os.environ.get("PATH", os.defpath)])
    command = ["bash", "-c", script]
    folder = lab.home / document.stem
    folder.mkdir()
    if lab.worker_uid is not None:
        os.chown(folder, lab.worker_uid, lab.worker_uid)
        command = as_user(lab.worker_uid, command)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=folder,
        env=dict(os.environ)
        | lab.environment
        | {"PATH": path, "TEMPORAL_ADDRESS": lab.temporal.address, "HOME": str(folder)},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_what_is_run_elsewhere_is_still_in_a_document() -> None:
    """An exception that no document needs any more would hide the next wrong command."""
    texts = [command.text for document in DOCUMENTS for command in commands(document)]
    unused = [pattern for pattern in ELSEWHERE if not any(re.match(pattern, text) for text in texts)]
    assert unused == []
