"""The Temporal namespace that this process talks to: its UUID tells our snapshots from another cluster's."""

from __future__ import annotations

from datetime import timedelta

import temporalio.api.workflowservice.v1 as workflowservice
from temporalio.client import Client

from safehaul.errors import NotFoundError

ASK_WITHIN = timedelta(seconds=10)


async def namespace_id(client: Client) -> str:
    """UUID of the client's namespace. Raises RPCError; NotFoundError when the server does not tell it."""
    answer = await client.workflow_service.describe_namespace(
        workflowservice.DescribeNamespaceRequest(namespace=client.namespace), timeout=ASK_WITHIN
    )
    if not answer.namespace_info.id:
        raise NotFoundError(f"the Temporal server does not tell the id of namespace {client.namespace}")
    return answer.namespace_info.id
