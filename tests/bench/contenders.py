"""Who runs: the product in four ways, what bounds it, and the peers, each set up as its own documents say is fastest.

Each gets a folder of its own for a round and tells, step by step, which command to run there.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal, Protocol

from safehaul.messages.exports import ExportDefinition
from tests.bench.images import Images
from tests.bench.pipeline import Order
from tests.bench.processes import Command, call

_PASSWORD = "a passphrase for the benchmark"


class Step(StrEnum):
    """What is timed, in this order in each round."""

    READ = "read"
    FULL = "full"
    RESTORE = "restore"
    RESCAN = "rescan"
    INCREMENT = "increment"
    VERIFY = "verify"
    STREAMS = "four at once"
    RANDOM = "full of random"
    ZEROS = "full of zeros"


DISK_OF = {
    Step.READ: "ext4",
    Step.FULL: "ext4",
    Step.RESTORE: "ext4",
    Step.RESCAN: "ext4",
    Step.INCREMENT: "day2",
    Step.STREAMS: "ext4",
    Step.RANDOM: "random",
    Step.ZEROS: "zeros",
}
"""`verify` reads no disk. `restore` writes back what `full` stored. All but ALONE share one repository."""
ALONE = (Step.STREAMS, Step.RANDOM, Step.ZEROS)
"""Steps with an empty repository of their own."""
STREAMS = 4
"""Disks that one process backs up at once in `four at once`: as a job does with four disks on one access node."""


class Contender(Protocol):
    """One row of each table."""

    @property
    def name(self) -> str:
        """Unique."""

    @property
    def nfs(self) -> bool:
        """Whether it reads from the filer."""

    def repository(self, place: Path) -> Path:
        """What it stores, below its folder: a folder or a file."""

    def prepare(self, place: Path) -> None:
        """Make an empty repository below the folder; not timed."""

    def command(self, step: Step, place: Path) -> Command | None:
        """The step's command; None when it has none. A restore writes to `restored(place)`."""


def restored(place: Path) -> Path:
    """Where restores write."""
    return place / "restored"


_NAMES = {Step.FULL: "day-1", Step.RESTORE: "day-1", Step.RESCAN: "day-1-again", Step.INCREMENT: "day-2"}


@dataclass(frozen=True)
class Product:
    """safehaul: processes of its own that run the workers' code."""

    images: Images
    export: ExportDefinition
    encrypted: bool

    @property
    def nfs(self) -> bool:
        return self.export.mounted_at is None

    @property
    def name(self) -> str:
        return f"safehaul, {'NFS' if self.nfs else 'file'}, {'encrypted' if self.encrypted else 'plain'}"

    def repository(self, place: Path) -> Path:
        return place / "repository"

    def prepare(self, place: Path) -> None:
        call(self._arguments(Order(do="init", repository=self.repository(place), encrypted=self.encrypted)))

    def command(self, step: Step, place: Path) -> Command | None:
        if step is Step.READ or (step is Step.STREAMS and not self.encrypted):
            return None
        store = self.repository(place)
        order = Order(
            do="backup",
            repository=store,
            encrypted=self.encrypted,
            session=_NAMES.get(step, "alone"),
            export=self.export,
            disk=DISK_OF.get(step, ""),
            previous="day-1" if step in {Step.RESCAN, Step.INCREMENT} else "",
            changed=list(self.images.changed) if step is Step.INCREMENT else None,
        )
        if step is Step.RESTORE:
            order = order.model_copy(update={"do": "restore", "target": restored(place)})
        elif step is Step.VERIFY:
            order = order.model_copy(update={"do": "verify"})
        elif step is Step.STREAMS:
            order = order.model_copy(update={"do": "streams", "streams": STREAMS})
        reads = store if step in {Step.RESTORE, Step.VERIFY} else self.images.flat(order.disk)
        return Command(self._arguments(order), inputs=(reads,))

    def _arguments(self, order: Order) -> list[str]:
        return [sys.executable, "-m", "tests.bench.pipeline", order.model_dump_json()]


@dataclass(frozen=True)
class Bound:
    """The bare read, or the limit."""

    images: Images
    export: ExportDefinition
    do: Literal["read", "limit"]

    @property
    def nfs(self) -> bool:
        return self.export.mounted_at is None

    @property
    def name(self) -> str:
        return f"{'bare read' if self.do == 'read' else 'limit'}, {'NFS' if self.nfs else 'file'}"

    def repository(self, place: Path) -> Path:
        return place / "frames"

    def prepare(self, place: Path) -> None:
        """Nothing to make."""

    def command(self, step: Step, place: Path) -> Command | None:
        if (step is Step.READ) != (self.do == "read") or step in {Step.RESTORE, Step.VERIFY}:
            return None
        if step in {Step.RESCAN, Step.INCREMENT, Step.STREAMS}:
            return None
        disk = DISK_OF[step]
        path = f"{disk}/{self.images.flat(disk).name}"
        target = self.repository(place)
        arguments = ["-m", "tests.bench.limit", self.do, self.export.model_dump_json(), path, str(target)]
        return Command([sys.executable, *arguments], inputs=(self.images.flat(disk),))


@dataclass(frozen=True)
class Restic:
    """restic: compression `auto` and everything else as it comes; it always encrypts.

    `--force` reads the file although its times have not changed, as a rescan of a running VM's disk must.
    """

    images: Images
    sparse: bool
    """Whether its `restore` has `--sparse`."""
    name = "restic"
    nfs = False

    def repository(self, place: Path) -> Path:
        return place / "repository"

    def prepare(self, place: Path) -> None:
        call(["restic", "init", "--quiet"], self._environment(place))

    def command(self, step: Step, place: Path) -> Command | None:
        environment, store = self._environment(place), self.repository(place)
        if step in {Step.READ, Step.STREAMS}:
            return None
        if step is Step.VERIFY:
            arguments = ["restic", "check", "--read-data", "--quiet"]
            return Command(arguments, environment, inputs=(store,))
        folder = self.images.folder / DISK_OF[step]
        if step is Step.RESTORE:
            sparse = ["--sparse"] if self.sparse else []
            target = place / "restic-target"
            arguments = ["restic", "restore", "latest", "--quiet", *sparse, "--target", str(target)]
            written = Path(f"{target}{self.images.flat('ext4').resolve()}")
            return Command(arguments, environment, inputs=(store,), flush=written)
        flat = self.images.flat(DISK_OF[step]).resolve()
        arguments = ["restic", "backup", "--quiet", "--host", "bench", "--force", "--compression", "auto"]
        return Command([*arguments, str(flat)], environment, directory=folder, inputs=(flat,))

    def _environment(self, place: Path) -> dict[str, str]:
        return {
            "RESTIC_REPOSITORY": str(self.repository(place)),
            "RESTIC_PASSWORD": _PASSWORD,
            "RESTIC_CACHE_DIR": str(place / "cache"),
        }


@dataclass(frozen=True)
class Borg:
    """borg 1.x: fixed chunks of 1 MiB, zstd 1, no files cache, no checkpoints, no self-test at each start.

    `create --sparse` is left out on purpose: it was no faster, and as its chunks then begin anew after each hole of the
    file, a block written into a hole moves all chunks behind it: seven times as much was stored of the second day.
    """

    images: Images
    mode: str
    """Of `borg init --encryption`."""
    nfs = False

    @property
    def name(self) -> str:
        return "borg, plain" if self.mode == "none" else "borg, encrypted"

    def repository(self, place: Path) -> Path:
        return place / "repository"

    def prepare(self, place: Path) -> None:
        store = str(self.repository(place))
        call(["borg", "init", "--encryption", self.mode, store], self._environment(place))

    def command(self, step: Step, place: Path) -> Command | None:
        environment, store = self._environment(place), self.repository(place)
        if step in {Step.READ, Step.STREAMS}:
            return None
        if step is Step.VERIFY:
            return Command(["borg", "check", "--verify-data", str(store)], environment, inputs=(store,))
        archive = f"{store}::{_NAMES.get(step, 'alone')}"
        flat = self.images.flat(DISK_OF[step])
        if step is Step.RESTORE:
            target = place / "borg-target"
            target.mkdir(exist_ok=True)
            arguments = ["borg", "extract", "--sparse", archive]
            return Command(arguments, environment, target, inputs=(store,), flush=target / flat.name)
        arguments = [
            *("borg", "create", "--chunker-params", "fixed,1048576", "--compression", "zstd,1"),
            *("--files-cache", "disabled", "--checkpoint-interval", "0"),
        ]
        return Command([*arguments, archive, flat.name], environment, flat.parent, inputs=(flat,))

    def _environment(self, place: Path) -> dict[str, str]:
        return {
            "BORG_BASE_DIR": str(place / "base"),
            "BORG_PASSPHRASE": _PASSWORD,
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_SELFTEST": "disabled",
        }


@dataclass(frozen=True)
class Zstd:
    """`zstd -1 -T2`: one stream, no hash but its own checksum off, no index, no increments, nothing encrypted."""

    images: Images
    name = "zstd -1 -T2"
    nfs = False

    def repository(self, place: Path) -> Path:
        return place / "disk.zst"

    def prepare(self, place: Path) -> None:
        """Nothing to make."""

    def command(self, step: Step, place: Path) -> Command | None:
        store = self.repository(place)
        if step is Step.RESTORE:
            arguments = ["zstd", "-d", "-q", str(store), "-o", str(restored(place))]
            return Command(arguments, inputs=(store,), flush=restored(place))
        if step not in {Step.FULL, Step.RANDOM, Step.ZEROS}:
            return None
        flat = self.images.flat(DISK_OF[step])
        arguments = ["zstd", "-1", "-T2", "-q", "--no-check", str(flat), "-o", str(store)]
        return Command(arguments, inputs=(flat,), flush=store)


def fastest_borg_mode(cpu_flags: str) -> str:
    """As borg's help of `init` says: SHA-256 where the CPU has instructions for it, BLAKE2b elsewhere."""
    return "repokey" if "sha_ni" in cpu_flags.split() else "repokey-blake2"


def contenders(
    images: Images, local: ExportDefinition, nfs: ExportDefinition | None, *, full: bool
) -> list[Contender]:
    """All that can run, the product's headline first."""
    has_sparse = "--sparse" in _output(["restic", "restore", "--help"])
    flags = Path("/proc/cpuinfo").read_text()
    makers: list[Callable[[ExportDefinition], Contender]] = [
        lambda export: Product(images, export, encrypted=True),
        lambda export: Bound(images, export, "read"),
        lambda export: Bound(images, export, "limit"),
    ]
    if full:
        makers.insert(1, lambda export: Product(images, export, encrypted=False))
    found = [make(export) for export in (nfs, local) if export is not None for make in makers]
    found += [Restic(images, has_sparse), Borg(images, fastest_borg_mode(flags)), Zstd(images)]
    if full:
        found.append(Borg(images, "none"))
    return found


def _output(arguments: list[str]) -> str:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False).stdout
