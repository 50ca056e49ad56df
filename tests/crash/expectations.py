"""What is demanded of a case beside the truth: that its VMs are backed up in spite of it."""

from __future__ import annotations

from tests.crash.points import Case

FAILOVER = True
"""A VM whose access node is gone goes on on another one. Without that such a VM may end Failed, truthfully."""

_AWAY = ("late", "never")


def must_complete(case: Case) -> bool:
    """True when every VM of the job must end Completed."""
    if case.point.kind == "zombie" and case.point.name == "terminated":
        return False  # somebody has ended a VM's workflow by force
    return FAILOVER or case.process != "access-node" or case.aftermath not in _AWAY
