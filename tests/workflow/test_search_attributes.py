"""The trap of search attributes that are not registered: tasks fail for ever. The CommServe looks first."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.service import RPCError

from lab.temporal import TemporalServer
from safehaul.errors import ConfigError
from safehaul.messages.job import JobReport
from tests.workflow.conftest import running
from tests.workflow.world import World
from workers.search_attributes import ensure_search_attributes
from workflows.policies import SEARCH_ATTRIBUTES

NAMES = {key.name for key in SEARCH_ATTRIBUTES}
WITHIN_S = 30.0


@pytest.fixture
async def elsewhere(temporal: TemporalServer) -> Client:
    """A client of a new namespace, in which no attribute is registered."""
    namespace = f"bare-{uuid.uuid4().hex[:8]}"
    done = temporal.cli("operator", "namespace", "create", "--namespace", namespace)
    assert done.returncode == 0, done.stderr
    client = await Client.connect(
        temporal.address, namespace=namespace, data_converter=pydantic_data_converter
    )
    for _ in range(int(WITHIN_S / 0.2)):  # the server's parts hear of a namespace one after the other
        try:
            await _registered(client)
            [item async for item in client.list_workflows("ExecutionStatus = 'Running'")]
        except RPCError:
            await asyncio.sleep(0.2)
        else:
            break
    return client


async def _registered(client: Client) -> dict[str, IndexedValueType.ValueType]:
    answer = await client.operator_service.list_search_attributes(
        ListSearchAttributesRequest(namespace=client.namespace)
    )
    return dict(answer.custom_attributes)


@pytest.mark.slow
async def test_without_them_a_job_hangs_and_with_them_it_completes(elsewhere: Client, job_id: str) -> None:
    """Trap: the first task of the job fails again and again. The remedy makes what is missing, and the job goes on."""
    assert not NAMES & set(await _registered(elsewhere))
    async with running(elsewhere, World(vm_count=1)):
        job = await elsewhere.start_workflow(
            "BackupJob", {"vm_group": "test"}, id=job_id, task_queue="commserve"
        )
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(job.result(), 5)
        history = await job.fetch_history()
        assert not any(event.HasField("activity_task_scheduled_event_attributes") for event in history.events)
        await ensure_search_attributes(elsewhere)
        assert set(await _registered(elsewhere)) >= NAMES
        report = JobReport.model_validate(await asyncio.wait_for(job.result(), 60))
    assert report.status == "Completed"


@pytest.mark.slow
async def test_a_second_start_changes_nothing_and_a_wrong_type_is_refused_with_the_command(
    elsewhere: Client,
) -> None:
    await elsewhere.operator_service.add_search_attributes(
        AddSearchAttributesRequest(
            namespace=elsewhere.namespace,
            search_attributes={"VmName": IndexedValueType.INDEXED_VALUE_TYPE_TEXT},
        )
    )
    with pytest.raises(ConfigError) as refused:
        await ensure_search_attributes(elsewhere)
    assert "VmName" in str(refused.value)
    assert (
        f"temporal operator search-attribute create --namespace {elsewhere.namespace} --name VmName --type Keyword"
        in str(refused.value)
    )
    assert "JobId" not in await _registered(elsewhere)


async def test_where_all_are_there_nothing_is_done(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    before = await _registered(client)
    assert set(before) >= NAMES
    monkeypatch.setattr(client.operator_service, "add_search_attributes", None)
    await ensure_search_attributes(client)
    assert await _registered(client) == before
