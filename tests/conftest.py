"""Tells tests that need a program of a Debian package apart, and lets nothing be skipped silently in CI."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

_DEBIAN_PACKAGES = Path(__file__).parent.parent / ".ci" / "debian-packages"
# Debian keeps file system tools where a plain user's PATH does not look.
_SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
_IN_CI = os.environ.get("SAFEHAUL_CI") == "1"


def pytest_configure() -> None:
    """A developer's own SAFEHAUL_… variables must not configure the tests."""
    for name in [name for name in os.environ if name.startswith("SAFEHAUL_") and name != "SAFEHAUL_CI"]:
        del os.environ[name]


def debian_packages() -> set[str]:
    """The Debian packages that CI installs."""
    lines = _DEBIAN_PACKAGES.read_text().splitlines()
    return {word for line in lines if (word := line.partition("#")[0].strip())}


def _missing(program: str, package: str) -> str:
    """Why a test cannot run here, with the command that helps; empty when it can."""
    if package not in debian_packages():
        msg = f"add {package} to .ci/debian-packages: CI would lack {program}"
        raise pytest.UsageError(msg)
    found = Path(program).exists() if program.startswith("/") else shutil.which(program, path=_SEARCH_PATH)
    return "" if found else f"{program} is not installed: apt-get install {package}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """`@pytest.mark.requires_debian("mke2fs", package="e2fsprogs")`: a program's name, or a file's path.

    `@pytest.mark.requires_root`: what only root may do.
    """
    if item.get_closest_marker("requires_root") and os.geteuid():
        pytest.skip("only root can do this: run the tests as root")
    for mark in item.iter_markers("requires_debian"):
        reason = _missing(mark.args[0], mark.kwargs["package"])
        if reason:
            pytest.skip(reason)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, None]:
    """In CI a test that was skipped has failed: everything that it needs is to be installed there."""
    outcome = yield
    _refuse_skip(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, None]:
    """The same for a module that skips itself as a whole."""
    outcome = yield
    _refuse_skip(outcome.get_result())


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if _IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, which is a failure in CI: {reason}"
