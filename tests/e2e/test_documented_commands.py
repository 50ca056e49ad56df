"""Every command that a document tells the reader to type is run here, in order, by the shell, in a running data centre.

A document's commands share one shell, as a reader's do: what one sets, the next may use. The tutorial's run in the
data centre that its own first command leaves running.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from lab.datacentre import DataCentre
from lab.processes import processes_in, tool
from lab.site import MIB, DiskSpec, Site, VmSpec, demo_site
from tests.documents import DOCUMENTS, commands
from tests.e2e.site import run_job
from workers.cli.demo import ENVIRONMENT

pytestmark = pytest.mark.slow

TUTORIAL = next(path for path in DOCUMENTS if path.name == "tutorial.md")
SHELL_PATH = "/usr/local/bin:/usr/bin:/bin"
SCRIPT_WITHIN_S = 400
# What the documents' examples call theirs, in the lab's vCenter.
EXAMPLES = """
[[vcenters]]
name = "main"
url = "{url}"
user = "safehaul@vsphere.local"
password = {{ env = "LAB_VCENTER_PASSWORD" }}
thumbprint_sha256 = "{thumbprint}"

[[vm_groups]]
name = "nightly"
vcenter = "main"
media_agent = "vault"
rules = [{{ name = "web-*" }}]
min_free_bytes = "1 MiB"
"""


def _site() -> Site:
    """The VMs of the documents' examples: `web-1` can be restored in place; it is the smallest and so a job's last one,
    which leaves the time to cancel it by hand.
    """
    vms = [
        VmSpec(
            name=name,
            datastore="nfs-gold",
            power_state="poweredOff",
            disks=[DiskSpec(size_bytes=size * MIB, content="random")],
        )
        for name, size in [("web-1", 8), *((f"web-{number}", 16) for number in range(2, 10))]
    ]
    return demo_site(0).model_copy(update={"vms": vms})


@pytest.fixture(scope="module")
def lab() -> Iterator[DataCentre]:
    # One user runs it all, as a reader does: the commands write where the workers do.
    with (
        tempfile.TemporaryDirectory(prefix="safehaul-documents-") as directory,
        DataCentre(Path(directory), _site(), streams=1, ui=False) as started,
    ):
        with started.config.open("a") as file:
            file.write(EXAMPLES.format(url=started.vcenter["url"], thumbprint=started.vcenter["thumbprint"]))
        started.start_workers()
        run_job(started, "before", "nightly")
        yield started


def _script(document: Path) -> str:
    lines = ["set -euo pipefail"]
    for command in commands(document):
        if not command.runs_elsewhere:
            # What the shell is about to do stands before what it says, so that a failure shows where.
            lines += [f"printf '%s\\n' {_quoted('$ ' + command.text)}", command.text]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _run(document: Path, folder: Path, environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-c", _script(document)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SCRIPT_WITHIN_S,
        check=False,
        cwd=folder,
        env={"HOME": str(folder), "LANG": "C.UTF-8", **environment},
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


@pytest.mark.parametrize(
    "document",
    [path for path in DOCUMENTS if path != TUTORIAL and commands(path)],
    ids=lambda path: path.name,
)
def test_the_documents_commands_work(lab: DataCentre, document: Path) -> None:
    folder = lab.home / document.stem
    folder.mkdir()
    programs = str(Path(tool("safehaul")).parent)
    _run(
        document,
        folder,
        {
            **lab.environment,
            "PATH": f"{programs}:{SHELL_PATH}",
            "TEMPORAL_ADDRESS": lab.temporal.address,
        },
    )


def test_the_tutorial_can_be_followed_to_its_end(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    log = tmp_path / "first-terminal"
    with log.open("w") as output:
        demo = subprocess.Popen(
            [tool("safehaul"), "demo", "--keep"],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(place)},
        )
    try:
        deadline = time.monotonic() + 180
        while "Everything runs until Ctrl-C" not in log.read_text():
            assert demo.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        # The directory of the second terminal has the virtual environment where the project has it.
        second = tmp_path / "second-terminal"
        second.mkdir()
        (second / ".venv").symlink_to(sys.prefix)
        told = _run(TUTORIAL, second, {"PATH": SHELL_PATH})
        demo.send_signal(signal.SIGINT)
        assert demo.wait(90) == 0, log.read_text()
    finally:
        if demo.poll() is None:
            demo.send_signal(signal.SIGINT)
            demo.wait(90)
    for line in (
        "exit code 3",
        "Büro Server 01 restored",
        "a new VM: Restored",
        "no difference",
        "exit code 4",
    ):
        assert line in told, told
    assert log.read_text().splitlines()[-1] == "demo: PASSED"
    assert not ENVIRONMENT.is_symlink()
    assert list(place.iterdir()) == []
    assert processes_in(place) == []
