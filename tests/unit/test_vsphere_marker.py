"""Goal: a snapshot is ours only when its description is our marker to the letter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safehaul.errors import InvalidInputError
from safehaul.vsphere.marker import MAX_CHARS, marker, parse_marker

FIELDS = {
    "installation": "plant-7",
    "namespace_id": "0f3e",
    "workflow_id": "backup-vm/nightly-1/büro",
    "first_run_id": "r-1",
    "vc_guid": "uuid-a.uuid-b",
}


def test_a_marker_is_one_stable_line_and_parses_to_its_fields() -> None:
    text = marker(**FIELDS)
    assert text == marker(**FIELDS)
    assert "\n" not in text
    parsed = parse_marker(text)
    assert parsed is not None
    assert parsed.workflow_id == FIELDS["workflow_id"]
    assert parsed.namespace == FIELDS["namespace_id"]
    assert parsed.vc_guid == FIELDS["vc_guid"]


@pytest.mark.parametrize(
    "description",
    [
        "",
        "taken by hand",
        "safehaul",
        "safehaul-snapshot ",
        "safehaul-snapshot {}",
        "safehaul-snapshot not json",
        'safehaul-snapshot {"installation": "x"}',
        " " + marker(**FIELDS),
        marker(**FIELDS) + " and more",
        marker(**FIELDS)[:-1],
        marker(**FIELDS).replace("plant-7", ""),
        marker(**FIELDS) + " " * MAX_CHARS,
    ],
)
def test_anything_else_is_foreign(description: str) -> None:
    assert parse_marker(description) is None


@pytest.mark.parametrize("field", list(FIELDS))
def test_a_marker_without_an_owner_is_refused(field: str) -> None:
    with pytest.raises(InvalidInputError, match="owner"):
        marker(**{**FIELDS, field: ""})


def test_a_marker_that_vcenter_would_cut_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="characters"):
        marker(**{**FIELDS, "workflow_id": "w" * MAX_CHARS})


@given(st.text(max_size=300))
def test_no_description_breaks_the_parser(description: str) -> None:
    parse_marker(description)
    parse_marker("safehaul-snapshot " + description)
