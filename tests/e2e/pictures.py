"""Takes the pictures of the documents from a real run: `python -m tests.e2e.pictures [DIRECTORY]`.

A data centre of the lab, a job whose VMs stand at different moments (one is being read, one waits for a filer that
holds its reads, one is tried again), the web UI in Chromium and `safehaul job watch` as a person sees them.
Takes about a minute.
"""

from __future__ import annotations

import asyncio
import io
import sys
import time
from pathlib import Path

from rich.console import Console
from temporalio.client import Client

from lab.datacentre import DataCentre
from lab.esx.api import Settings
from lab.nfs_gate import NFS3ERR_IO, Rule
from lab.site import (
    ADMINISTRATOR,
    BACKUP_PRIVILEGES,
    BACKUP_USER,
    LAB_PASSWORD,
    DatastoreSpec,
    DiskSpec,
    Site,
    UserSpec,
    VmSpec,
)
from safehaul.config.loader import load
from tests.e2e.browser import WebUi
from tests.e2e.site import data_centre, start_job, wait_end
from workers.bootstrap import connect
from workers.cli import job_calls
from workers.cli.job_pace import Pace
from workers.cli.job_table import live_table
from workers.cli.vm_looks import VmLooks

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
MIB = 2**20
JOB = "nightly-1"
WIDTH, HEIGHT = 1240, 760
COLUMNS = 118
# As rich's own, but without fonts from elsewhere.
SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g></svg>
"""


def site() -> Site:
    """Eight VMs; the large ones are still being read when the pictures are taken."""
    gold = "nfs-gold"

    def vm(name: str, *mib: int) -> VmSpec:
        disks = [DiskSpec(size_bytes=size * MIB) for size in mib]
        return VmSpec(name=name, datastore=gold, disks=disks, guest_rate=20)

    legacy = vm("legacy", 16)
    legacy.disks.append(DiskSpec(size_bytes=16 * MIB, mode="independent_persistent"))

    return Site(
        datastores=[DatastoreSpec(name=gold, type="NFS", remote_path="/exports/gold")],
        vms=[
            vm("db-1", 1536),
            vm("db-2", 1400),
            vm("files", 640, 64),
            vm("mail", 512),
            vm("web-1", 24, 24),
            vm("web-2", 24),
            legacy,
            vm("print", 16),
        ],
        users=[
            UserSpec(name=ADMINISTRATOR, password=LAB_PASSWORD, privileges=["*"]),
            UserSpec(name=BACKUP_USER, password=LAB_PASSWORD, privileges=BACKUP_PRIVILEGES),
        ],
        settings=Settings(),
    )


async def watched(lab: DataCentre, to: Path, seconds: float) -> None:
    """Watch the job for a while as `safehaul job watch` does, and save what it shows then."""
    client: Client = await connect(load(lab.config))
    looks, pace = VmLooks(client), Pace()
    begun = time.monotonic()
    while True:
        progress = (await job_calls.standing(client, JOB)).progress
        assert progress is not None, "the job has ended before its picture was taken"
        await looks.renew(progress.running)
        measure = pace.measure(progress, looks.of)
        if time.monotonic() - begun > seconds:
            break
        await asyncio.sleep(1.0)
    screen = Console(width=COLUMNS, record=True, file=io.StringIO(), force_terminal=True)
    screen.print(live_table(progress, looks.of, measure, height=30, width=COLUMNS))
    screen.save_svg(str(to), title=f"safehaul job watch {JOB}", code_format=SVG, unique_id="watch")


def photographed(lab: DataCentre, ui: WebUi, to: Path) -> None:
    """The web UI's pages of the running job and of one VM."""
    rows = _list(ui)
    ui.picture(to / "web-ui-list.png")
    child = next(row["Workflow ID"] for row in rows if row.get("VmName") == "files")
    ui.open_workflow(JOB)
    ui.from_the_start("Step 5 · ")
    ui.picture(to / "web-ui-job.png")
    ui.open_tab("user-metadata")
    ui.details("running")
    ui.scroll_to("[data-testid=timeline-tab]")
    ui.picture(to / "web-ui-job-details.png")
    ui.open_workflow(child)
    ui.from_the_start("Step 11 · ")
    ui.picture(to / "web-ui-vm.png")
    ui.open_tab("user-metadata")
    ui.details("step 11")
    ui.scroll_to("[data-testid=timeline-tab]")
    ui.picture(to / "web-ui-vm-details.png")
    ui.open_tab("pending-activities")
    ui.shows('"waits_for"')
    ui.scroll_to("[data-testid=timeline-tab]")
    ui.picture(to / "web-ui-pending.png")


def _list(ui: WebUi) -> list[dict[str, str]]:
    """The job and its VMs, with the columns that tell them apart."""
    query = 'VmGroup="demo"'
    ui.open_list(query)
    ui.wait(lambda: "RUNNING" in ui.text())
    ui.choose_columns(
        add=["VmName", "AccessNode", "BackupStatus"], remove=["Run ID", "Type", "End"], last="Workflow ID"
    )
    ui.open_list(query)
    ui.wait(lambda: "BackupStatus" in ui.text() and "files" in ui.text())
    return ui.rows()


def take(to: Path) -> None:
    """Take all pictures anew."""
    to.mkdir(parents=True, exist_ok=True)
    with (
        data_centre(site(), gate=True, ui=True) as lab,
        WebUi(lab.temporal.ui_url, width=WIDTH, height=HEIGHT) as ui,
    ):
        lab.gate.hold("files-flat.vmdk", 160 * MIB)
        lab.gate.refuse(Rule(names="mail-flat.vmdk", status=NFS3ERR_IO))
        lab.start_workers()
        start_job(lab, JOB)
        asyncio.run(watched(lab, to / "job-watch.svg", 14.0))
        photographed(lab, ui, to)
        lab.gate.clear()
        lab.gate.release()
        wait_end(lab, JOB, 600.0)


if __name__ == "__main__":
    take(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURES)
