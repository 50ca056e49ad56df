"""Goal: a snapshot is ours only when its description is our marker to the letter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from safehaul.messages.marker import MAX_CHARS, SnapshotMarker

MARKER = SnapshotMarker(
    installation="plant-7",
    namespace="0f3e",
    workflow_id="backup-vm/nightly-1/büro",
    first_run_id="r-1",
    vc_guid="uuid-a.uuid-b",
)


def test_a_marker_is_one_stable_line_and_parses_to_itself() -> None:
    text = MARKER.text()
    assert text == MARKER.model_copy().text()
    assert "\n" not in text
    assert SnapshotMarker.parse(text) == MARKER


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
        " " + MARKER.text(),
        MARKER.text() + " and more",
        MARKER.text()[:-1],
        MARKER.text().replace("plant-7", ""),
        MARKER.text() + " " * MAX_CHARS,
    ],
)
def test_anything_else_is_foreign(description: str) -> None:
    assert SnapshotMarker.parse(description) is None


@pytest.mark.parametrize("field", list(SnapshotMarker.model_fields))
def test_a_marker_without_an_owner_cannot_be_made(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        SnapshotMarker.model_validate({**MARKER.model_dump(), field: ""})


def test_the_longest_ids_that_temporal_takes_still_fit() -> None:
    # 1,000 bytes are its limit; a letter of four bytes becomes twelve characters of JSON.
    longest = MARKER.model_copy(update={"workflow_id": "\N{GRINNING FACE}" * 250})
    assert SnapshotMarker.parse(longest.text()) == longest


@given(st.text(max_size=300))
def test_no_description_breaks_the_parser(description: str) -> None:
    SnapshotMarker.parse(description)
    SnapshotMarker.parse("safehaul-snapshot " + description)
