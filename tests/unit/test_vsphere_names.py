"""Goal: names and paths from vCenter are understood once, and never lead out of their datastore."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safehaul.errors import InvalidInputError
from safehaul.vsphere.names import escape, parse_datastore_path, path_component, unescape


@pytest.mark.parametrize(
    ("escaped", "plain"),
    [
        ("a%2fb", "a/b"),
        ("a%2Fb%5Cc", "a/b\\c"),
        ("100%25", "100%"),
        ("%252f", "%2f"),
        ("50%", "50%"),
        ("%41%zz", "%41%zz"),
        ("Büro 数据库", "Büro 数据库"),
    ],
)
def test_only_the_three_escapes_are_undone_and_only_once(escaped: str, plain: str) -> None:
    assert unescape(escaped) == plain


@given(st.text(max_size=100))
def test_escape_and_unescape_are_inverse(name: str) -> None:
    assert unescape(escape(name)) == name


def test_a_slash_in_a_folder_name_does_not_make_two_folders() -> None:
    assert path_component("a%2fb%25") == "a%2fb%"


@pytest.mark.parametrize(
    ("text", "datastore", "path"),
    [
        ("[nfs-gold] vm one/vm one.vmx", "nfs-gold", "vm one/vm one.vmx"),
        ("[nfs (1)] dir/", "nfs (1)", "dir"),
        ("[nfs]", "nfs", ""),
        ("[nfs] ", "nfs", ""),
        ("[nfs] ..hidden/a..b", "nfs", "..hidden/a..b"),
    ],
)
def test_datastore_paths_are_taken_apart(text: str, datastore: str, path: str) -> None:
    parsed = parse_datastore_path(text)
    assert (parsed.datastore, parsed.path) == (datastore, path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain/path",
        "[nfs] ../../etc/passwd",
        "[nfs] a/../b",
        "[nfs] /etc/passwd",
        "[nfs] a//b",
        "[nfs] a/./b",
        "[nfs] a\x00b",
        "[nfs] a\nb",
        "[] a",
        "[nfs] " + "x" * 4000,
    ],
)
def test_paths_that_climb_or_lie_are_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_datastore_path(text)


def test_directory_and_file_name() -> None:
    parsed = parse_datastore_path("[nfs] a/b/c.vmdk")
    assert parsed.directory == "[nfs] a/b"
    assert parsed.file_name == "c.vmdk"
    assert parse_datastore_path("[nfs] c.vmdk").directory == "[nfs] "
