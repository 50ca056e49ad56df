"""How a person says since when."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from safehaul.errors import InvalidInputError

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
SINCE_HELP = "Only since then: 90m, 24h, 7d, 2w, or a date or time like 2026-11-25T18:00 (UTC)."


UNTIL_HELP = "Only before then; written as for --since."


def parse_since(text: str | None, now: datetime | None = None, *, option: str = "--since") -> datetime | None:
    """The time that `text` means, with its time zone; None for None. Raises InvalidInputError."""
    if text is None:
        return None
    ago = re.fullmatch(r"(\d{1,6})([mhdw])", text.strip())
    try:
        if ago:
            return (now or datetime.now(UTC)) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        found = datetime.fromisoformat(text.strip())
    except (ValueError, OverflowError):
        raise InvalidInputError(
            f"{option} {text[:50]!a} is no time: write 90m, 24h, 7d, 2w, or a date or time like 2026-11-25T18:00 (UTC)"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
