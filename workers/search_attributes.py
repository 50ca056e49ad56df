"""The search attributes that the workflows write: checked when the CommServe starts, made when they are missing.

An attribute that is not registered would fail every workflow task for ever.
"""

from __future__ import annotations

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.client import Client
from temporalio.service import RPCError

from safehaul.errors import ConfigError
from workflows.policies import SEARCH_ATTRIBUTES

KEYWORD = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD


async def ensure_search_attributes(client: Client) -> None:
    """Check names and types and create what is missing. Raises ConfigError with the exact command."""
    names = [key.name for key in SEARCH_ATTRIBUTES]
    try:
        known = await client.operator_service.list_search_attributes(
            ListSearchAttributesRequest(namespace=client.namespace)
        )
    except RPCError as error:
        raise ConfigError(
            f"the Temporal server does not tell its search attributes ({error.message}); create them with: "
            f"{_command(client, names)}"
        ) from None
    wrong = [name for name in names if known.custom_attributes.get(name, KEYWORD) != KEYWORD]
    if wrong:
        raise ConfigError(
            f"search attributes {', '.join(wrong)} exist with another type than Keyword: remove them with "
            f"`temporal operator search-attribute remove` and create them with: {_command(client, wrong)}"
        )
    missing = [name for name in names if name not in known.custom_attributes]
    if not missing:
        return
    try:
        await client.operator_service.add_search_attributes(
            AddSearchAttributesRequest(
                namespace=client.namespace, search_attributes=dict.fromkeys(missing, KEYWORD)
            )
        )
    except RPCError as error:
        raise ConfigError(
            f"search attributes {', '.join(missing)} are missing and cannot be created ({error.message}): "
            f"run {_command(client, missing)}"
        ) from None


def _command(client: Client, names: list[str]) -> str:
    flags = " ".join(f"--name {name} --type Keyword" for name in names)
    return f"`temporal operator search-attribute create --namespace {client.namespace} {flags}`"
