"""What PruneRepository is asked, what its steps answer, and its report. All of it bounded: a message may have 2 MB."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from safehaul.messages.base import Message, Request
from safehaul.messages.exports import NAME_PATTERN

MAX_VMS_TOLD = 200
"""VMs of which a report tells what was forgotten, and what was kept and why."""
MAX_BACKUPS_TOLD = 10
"""Forgotten backups that are named for each of them; the audit log has them all."""
MAX_PROBLEMS_TOLD = 50
MAX_RULES_TOLD = 500


class PruneRequest(Request):
    """What a person or a schedule gives to PruneRepository: `{"media_agent": "vault"}`."""

    media_agent: str = Field(pattern=NAME_PATTERN)
    """Whose repository."""
    dry_run: bool = False
    """True: report what would be done, and do nothing."""


class PruneStep(Message):
    """A step's input."""

    media_agent: str
    dry_run: bool = False
    after: str = ""
    """VC.GUID of the last VM that was dealt with; empty: from the first."""


class ForgottenItem(Message):
    """A backup that was forgotten."""

    backup_id: str
    reason: str


class VmPruned(Message):
    """What was done with the backups of one VM."""

    vc_guid: str
    vm_name: str
    forgotten: list[ForgottenItem] = Field(default_factory=list)
    """The first of them."""
    forgotten_count: int = 0
    kept_count: int = 0
    kept_for: dict[str, int] = Field(default_factory=dict)
    """Kind of reason → backups kept for it: `{"daily": 7, "legal hold": 1}`."""


class ForgetPage(Message):
    """What one piece of forgetting has done."""

    after: str = ""
    """Where the next piece goes on."""
    ended: bool = False
    """True: that was the last VM."""
    vms: int = 0
    backups: int = 0
    forgotten: int = 0
    held: int = 0
    rules: dict[str, str] = Field(default_factory=dict)
    """VM group → what it keeps, by the configuration with which the MediaAgent was started."""
    told: list[VmPruned] = Field(default_factory=list)
    problems: list[str] = Field(default_factory=list)
    """What could not be read or done, and was left."""


class Purged(Message):
    """What was given up for good, because it was forgotten long ago."""

    purged: int = 0
    recovered: int = 0
    """Forgotten backups that are held: they were brought back."""
    waiting: int = 0
    """Forgotten ones that can still be recovered."""
    problems: list[str] = Field(default_factory=list)


class Collected(Message):
    """What the collection of unneeded chunks has done."""

    freed_bytes: int = 0
    numbers: dict[str, int] = Field(default_factory=dict)
    """The collection's own numbers."""


class PruneReport(Message):
    """PruneRepository's result."""

    media_agent: str
    dry_run: bool = False
    """True: nothing was done; it says what would be."""
    started_at: datetime
    ended_at: datetime
    forgetting: ForgetPage = ForgetPage()
    purging: Purged = Purged()
    collection: Collected = Collected()


def joined(one: ForgetPage, other: ForgetPage) -> ForgetPage:
    """Two pieces, one after the other, as one."""
    return ForgetPage(
        after=other.after,
        ended=other.ended,
        vms=one.vms + other.vms,
        backups=one.backups + other.backups,
        forgotten=one.forgotten + other.forgotten,
        held=one.held + other.held,
        rules=one.rules | other.rules,
        told=_first_told([*one.told, *other.told]),
        problems=[*one.problems, *other.problems][:MAX_PROBLEMS_TOLD],
    )


def _first_told(vms: list[VmPruned]) -> list[VmPruned]:
    """Those that lost a backup go before those that kept all."""
    return sorted(vms, key=lambda vm: not vm.forgotten_count)[:MAX_VMS_TOLD]
