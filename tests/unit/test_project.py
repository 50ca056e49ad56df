"""Goal: the project's own promises hold: the lock, the size of modules, plain packages, make targets."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_ROOT = Path(__file__).parent.parent.parent
_PACKAGES = ("safehaul", "workflows", "activities", "workers", "lab", "tests")
_SOURCES = sorted(path for package in _PACKAGES for path in (_ROOT / package).rglob("*.py"))


def _lock() -> dict[str, tuple[str, list[str]]]:
    """Package → (version, hashes), as requirements.txt pins it."""
    text = (_ROOT / "requirements.txt").read_text().replace("\\\n", " ")
    pins = {}
    for line in text.splitlines():
        match = re.fullmatch(r"([a-z0-9.-]+)==(\S+)(?: ;[^-]*)?((?:\s+--hash=sha256:[0-9a-f]{64})+)\s*", line)
        assert match, f"not a pin with hashes: {line[:80]}"
        pins[match[1]] = (match[2], re.findall(r"sha256:([0-9a-f]{64})", match[3]))
    return pins


def test_the_lock_pins_every_package_by_hash_and_names_no_address() -> None:
    pins = _lock()
    assert len(pins) > 50
    assert all(len(set(hashes)) == len(hashes) > 0 for _, hashes in pins.values())
    assert not re.search(
        r"://|^\s*-[^-]|index-url|find-links", (_ROOT / "requirements.txt").read_text(), re.MULTILINE
    )


def test_the_lock_satisfies_every_bound_of_the_project_and_of_what_it_pins() -> None:
    pins = _lock()
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [("safehaul", text) for text in [*project["dependencies"], *extras["lab"], *extras["dev"]]]
    for name in pins:
        try:
            wanted += [(name, text) for text in requires(name) or ()]
        except ModuleNotFoundError:  # a package of the lock that another Python version needs
            continue
    for source, text in wanted:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if name == "safehaul" or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        assert name in pins, f"{source} needs {text}: run make lock"
        assert requirement.specifier.contains(pins[name][0], prereleases=True), f"{source} needs {text}"


def _functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_no_module_is_over_400_lines_and_no_function_over_70() -> None:
    too_long = []
    for path in _SOURCES:
        text = path.read_text()
        count = text.count("\n")
        if count > 400:
            too_long.append(f"{path.relative_to(_ROOT)}: {count} lines")
        for function in _functions(ast.parse(text)):
            length = (function.end_lineno or 0) - function.lineno + 1
            if length > 70:
                too_long.append(f"{path.relative_to(_ROOT)}: {function.name} has {length} lines")
    assert too_long == []


def test_packages_are_plain_and_their_modules_have_names_that_say_something() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
    bad = [
        str(path.relative_to(_ROOT))
        for path in _SOURCES
        if path.stem in vague or (path.name == "__init__.py" and path.stat().st_size > 0)
    ]
    assert bad == []


def test_nothing_is_left_to_be_done_later() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|raise NotImplementedError")
    bad = [
        f"{path.relative_to(_ROOT)}:{number}"
        for path in _SOURCES
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert bad == []


def test_an_ignored_type_error_has_its_reason() -> None:
    bare = re.compile(r"# type: ignore(\[[\w, -]+\])?\s*$")
    bad = [
        f"{path.relative_to(_ROOT)}:{number}"
        for path in _SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if bare.search(line)
    ]
    assert bad == []


def _make(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    command = ["make", "--no-print-directory", "-C", str(_ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def test_make_alone_teaches_every_target() -> None:
    done = _make()
    assert done.returncode == 0, done.stderr
    for target in ("demo", "test", "test-all", "bench", "check", "venv", "lock"):
        assert f"make {target} " in done.stdout


def test_make_says_which_python_is_missing(tmp_path: Path) -> None:
    old = tmp_path / "python2"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = _make("venv", f"VENV={tmp_path / 'venv'}", f"PYTHON={old}")
    assert done.returncode != 0
    assert f"needs Python 3.11 to 3.14; none of these is one: {old}" in done.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("in_ci", [False, True])
def test_a_missing_debian_program_skips_by_name_and_fails_in_ci(tmp_path: Path, *, in_ci: bool) -> None:
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "debian-packages").write_text("safehaul-nothing # a package\n")
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "conftest.py").write_text((_ROOT / "tests" / "conftest.py").read_text())
    (tests / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.requires_debian('no-such-program', package='safehaul-nothing')\n"
        "def test_needs(): pass\n"
        "@pytest.mark.requires_debian('sh', package='safehaul-nothing')\n"
        "def test_has(): pass\n"
    )
    environment = {**os.environ, "SAFEHAUL_CI": "1" if in_ci else "0"}
    options = [
        "-rs",
        "-c",
        str(_ROOT / "pyproject.toml"),
        "--rootdir",
        str(tmp_path),
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tests)],
        capture_output=True, text=True, timeout=60, check=False, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert "no-such-program is not installed: apt-get install safehaul-nothing" in done.stdout
    assert ("1 passed, 1 error" if in_ci else "1 passed, 1 skipped") in done.stdout
    assert done.returncode == int(in_ci)
