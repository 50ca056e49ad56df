"""When a run of a workflow should end for another one, because its history grows."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from workflows import policies


def history_is_long() -> bool:
    """True when this run should continue as new: the server suggests it, or our own bound is reached."""
    info = workflow.info()
    return (
        info.is_continue_as_new_suggested()
        or info.get_current_history_length() > policies.HISTORY_EVENTS_PER_RUN
    )
