"""A copy of the product with a defect, for the proof that the matrix notices one. The product itself has no switch."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("safehaul", "workflows", "activities", "workers")
NOT_TAKEN_OVER = {
    "workflows/policies.py": (
        "    retry=RetryPolicy(initial_interval=timedelta(seconds=2), maximum_interval=timedelta(seconds=30)),\n",
        "    retry=_ONCE,\n",
    ),
    "workflows/snapshot_guard.py": (
        "return await hand_over(removal, vm.vm_group, explain(error))",
        "return Removal(gone=False, pending=True, moref=removal.moref, reason=explain(error))",
    ),
}
"""A removal that fails is neither tried again nor handed to RemoveSnapshot."""
ORPHANS_STAY = {
    "workflows/vm_runner.py": (
        "        if finished.orphaned:\n",
        "        if finished.orphaned and not finished.child_id:\n",
    ),
}
"""The job does not remove the snapshot of a VM whose workflow was terminated."""


@contextlib.contextmanager
def broken_copy(defects: Mapping[str, tuple[str, str]]) -> Iterator[Path]:
    """The packages in a temporary directory, where in each file of `defects` one text stands in place of another.

    Raises ValueError when a file does not hold its text exactly once: the product has changed, and so must the defect.
    """
    directory = Path(tempfile.mkdtemp(prefix="safehaul-broken-"))
    try:
        # The workers run as another user.
        directory.chmod(0o755)
        for package in PACKAGES:
            shutil.copytree(ROOT / package, directory / package, ignore=shutil.ignore_patterns("__pycache__"))
        for name, (sound, broken) in defects.items():
            path = directory / name
            text = path.read_text()
            if text.count(sound) != 1:
                message = f"{name} holds {sound!r} {text.count(sound)} times: adapt the defect"
                raise ValueError(message)
            path.write_text(text.replace(sound, broken))
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
