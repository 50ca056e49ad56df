"""How a number of bytes reads."""

from __future__ import annotations


def readable(size_bytes: float) -> str:
    """A number of bytes as a person reads it: `1.5 KiB`."""
    value, unit = float(size_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
