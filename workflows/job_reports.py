"""Reports that the job itself makes of a VM, and pages of reports that fit into one message."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from safehaul.messages.job import ChildRef, PlannedVm
    from safehaul.messages.vm import VmReport, VmStatus
    from workflows import policies


def report_of(child: ChildRef, status: VmStatus, reason: str) -> VmReport:
    """The report of a child that cannot report itself."""
    return VmReport(
        vc_guid=child.vc_guid,
        name=child.name,
        status=status,
        reason=reason,
        node=child.node,
        given_by=child.given_by,
        child_id=child.child_id,
        started_at=child.started_at,
        ended_at=workflow.now(),
    )


def failed_report(vm: PlannedVm, reason: str) -> VmReport:
    """The report of a VM that was never given to a node."""
    return VmReport(
        vc_guid=vm.vc_guid, name=vm.name, status=VmStatus.FAILED, reason=reason, ended_at=workflow.now()
    )


def page_of(reports: list[VmReport]) -> list[VmReport]:
    """The first reports, as many as fit into one message."""
    page: list[VmReport] = []
    size_bytes = 0
    for report in reports[: policies.REPORT_PAGE_VMS]:
        size_bytes += len(report.model_dump_json())
        if page and size_bytes > policies.REPORT_PAGE_BYTES:
            break
        page.append(report)
    return page
