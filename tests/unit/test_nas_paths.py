"""Goal: no text from vCenter or from a descriptor becomes a path outside its datastore; refusals show it safely."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safehaul.errors import InvalidInputError
from safehaul.nas.paths import DatastorePath, parse_datastore_path, resolve_parent_hint


@pytest.mark.parametrize(
    ("text", "datastore", "relative"),
    [
        ("[ds1] vm/vm.vmdk", "ds1", "vm/vm.vmdk"),
        ("[ds 1 (nfs)] a b/c d-000001.vmdk", "ds 1 (nfs)", "a b/c d-000001.vmdk"),
        ("[ds] Größe 虚拟机/磁盘.vmdk", "ds", "Größe 虚拟机/磁盘.vmdk"),
        ("[ds] vm.vmdk", "ds", "vm.vmdk"),
        ("[ds] 100%/..hidden/x..vmdk", "ds", "100%/..hidden/x..vmdk"),
        ("[ds] می‌خواهم/x.vmdk", "ds", "می‌خواهم/x.vmdk"),
    ],
)
def test_good_paths_are_kept_as_they_are(text: str, datastore: str, relative: str) -> None:
    parsed = parse_datastore_path(text)
    assert (parsed.datastore, parsed.relative) == (datastore, relative)
    assert str(parsed) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "vm/vm.vmdk",
        "[ds]vm/vm.vmdk",
        "[ds]",
        "[ds] ",
        "[] vm.vmdk",
        "[ds] /etc/passwd",
        "[ds] ../../etc/passwd",
        "[ds] vm/../x.vmdk",
        "[ds] vm/./x.vmdk",
        "[ds] vm//x.vmdk",
        "[ds] vm/",
        "[ds] vm\\x.vmdk",
        "[ds] vm/a\x00.vmdk",
        "[ds] vm/a\n.vmdk",
        "[ds] vm/\x1b[31m.vmdk",
        "[ds] vm%2f..%2fx.vmdk",
        "[ds] vm%5Cx.vmdk",
        "[ds] vm/%00x",
        "[ds] vm/\u202egpj.vmdk",
        "[ds] vm/\ud800.vmdk",
        "[ds] vm/a\u2028b.vmdk",
        "[d\ns] vm.vmdk",
        f"[{'d' * 81}] vm.vmdk",
        f"[ds] {'a' * 256}.vmdk",
        f"[ds] {'ü' * 128}.vmdk",
        f"[ds] {'a/' * 2500}x.vmdk",
    ],
)
def test_bad_paths_are_refused_and_shown_safely(text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_datastore_path(text)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400


@given(st.text())
def test_what_is_accepted_stays_below_its_datastore(text: str) -> None:
    try:
        parsed = parse_datastore_path("[ds] " + text)
    except InvalidInputError:
        return
    parts = parsed.relative.split("/")
    assert not {"", ".", ".."} & set(parts)
    assert "\\" not in parsed.relative


@pytest.mark.parametrize("name", ["x-flat.vmdk", "日本.vmdk", " x.vmdk"])
def test_an_extent_is_a_plain_name_in_the_same_directory(name: str) -> None:
    assert parse_datastore_path("[ds] vm/x.vmdk").sibling(name) == DatastorePath("ds", f"vm/{name}")
    assert parse_datastore_path("[ds] x.vmdk").sibling(name) == DatastorePath("ds", name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "../x", "a\\b", "%2e%2e%2fx", "a\x00"])
def test_any_other_extent_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_datastore_path("[ds] vm/x.vmdk").sibling(name)


def test_a_parent_hint_is_resolved_on_known_datastores_only() -> None:
    child = parse_datastore_path("[ds] vm/x-000001.vmdk")
    volumes = {"ds": "ds", "base": "base", "5f1c-aa": "base"}
    assert resolve_parent_hint(child, "x.vmdk", volumes) == DatastorePath("ds", "vm/x.vmdk")
    assert resolve_parent_hint(child, "/vmfs/volumes/base/t/y.vmdk", volumes) == DatastorePath(
        "base", "t/y.vmdk"
    )
    assert resolve_parent_hint(child, "/vmfs/volumes/5f1c-aa/t/y.vmdk", volumes).datastore == "base"
    for hint in [
        "../t/y.vmdk",
        "/etc/passwd",
        "/vmfs/volumes/other/y.vmdk",
        "/vmfs/volumes/base/../y",
        "t/y.vmdk",
        "",
    ]:
        with pytest.raises(InvalidInputError):
            resolve_parent_hint(child, hint, volumes)
