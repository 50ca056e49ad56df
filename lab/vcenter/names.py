r"""Inventory names on the wire.

vCenter escapes the three characters that would make inventory paths ambiguous: `%`, `/` and `\` as `%25`,
`%2f` and `%5c` (ManagedEntity.name in the vSphere Web Services API reference).
"""

from __future__ import annotations

import re

_ESCAPES = {"%": "%25", "/": "%2f", "\\": "%5c"}
_SPECIAL = re.compile(r"[%/\\]")
_ESCAPED = re.compile(r"%(25|2f|5c)", re.IGNORECASE)
_BACK = {"25": "%", "2f": "/", "5c": "\\"}
# What XML 1.0 cannot carry at all (section 2.2, "Char").
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def escaped(name: str) -> str:
    """The name as SOAP answers show it."""
    return _SPECIAL.sub(lambda match: _ESCAPES[match[0]], _NOT_XML.sub("\ufffd", name))


def unescaped(name: str) -> str:
    """The name as the host keeps it."""
    return _ESCAPED.sub(lambda match: _BACK[match[1].lower()], name)
