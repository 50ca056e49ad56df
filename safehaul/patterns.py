"""Patterns that people write in rules and filters: globs and regular expressions over a whole text.

Regular expressions are RE2's: matching takes time in proportion to the text, whatever the pattern. Python's own
engine backtracks: one unlucky pattern over one long VM name would hold up the discovery for ever. RE2 knows no
look-around and no back-references, and bounds the memory of a pattern.
"""

from __future__ import annotations

import fnmatch
import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

import re2

MAX_PATTERN_CHARS = 256
_MAX_REGEX_MEMORY_BYTES = 1 << 20

Matcher = Callable[[str], bool]


class PatternError(ValueError):
    """Not a regular expression, or one that RE2 does not take; the message says why."""


def plain(text: str) -> str:
    """One form for texts that look the same: some browsers send `é` as two code points."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


@lru_cache(maxsize=1024)
def matcher(pattern: str, *, regex: bool = False, ignore_case: bool = False) -> Matcher:
    """A test whether a whole text fits: a glob (`*` `?` `[abc]` `[!abc]`), or a regular expression.

    Raises:
        PatternError: the regular expression is wrong.
    """
    wanted = plain(pattern)
    if regex:
        return _regex(wanted, ignore_case=ignore_case)
    # fnmatch makes expressions with atomic groups, which do not backtrack.
    glob = re.compile(fnmatch.translate(wanted.casefold() if ignore_case else wanted))
    if ignore_case:
        return lambda text: glob.match(plain(text).casefold()) is not None
    return lambda text: glob.match(plain(text)) is not None


def _regex(pattern: str, *, ignore_case: bool) -> Matcher:
    options = re2.Options()
    options.case_sensitive = not ignore_case
    options.dot_nl = True  # annotations have several lines
    options.log_errors = False
    options.max_mem = _MAX_REGEX_MEMORY_BYTES
    try:
        compiled = re2.compile(pattern, options=options)
    except re2.error as error:
        raise PatternError(f"is no regular expression: {_reason(error)}") from None

    def fits(text: str) -> bool:
        # RE2 takes no lone surrogates, which a name from elsewhere could hold.
        clean = text if text.isascii() else plain(text).encode(errors="replace").decode()
        return compiled.fullmatch(clean) is not None

    return fits


def _reason(error: Exception) -> str:
    told = error.args[0] if error.args else ""
    text = told.decode(errors="replace") if isinstance(told, bytes) else str(told)
    return f"{text} (RE2 syntax: no look-around, no back-references)"
