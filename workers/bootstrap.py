"""What every worker process is made of: client, converter, sandbox, telemetry, and a clean end on SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import timedelta

from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.runtime import Runtime
from temporalio.service import RPCError, TLSConfig
from temporalio.worker import Interceptor, Worker, WorkerDeploymentConfig
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from safehaul.config.settings import Settings
from safehaul.errors import ConfigError, ConnectionLostError
from workers.converter import DATA_CONVERTER
from workers.telemetry import interceptors, runtime
from workflows import policies

logger = logging.getLogger("safehaul.worker")

# Heartbeats reach the server at least this often, so that a step's time-out of 15 s means a dead worker. Their answers
# tell a step of its cancel: a snapshot's removal is to begin within five seconds of one, and this is most of that time.
HEARTBEAT_THROTTLE = timedelta(seconds=2)
# A worker that is asked to stop lets its steps come to a safe point; they then go on elsewhere.
GRACE = timedelta(seconds=30)


def identity(role: str) -> str:
    """Who does a step, as the web UI shows it: `access-node.n1@host:pid`."""
    return f"{role}@{socket.gethostname()}:{os.getpid()}"


async def connect(settings: Settings, role: str = "safehaul") -> Client:
    """A client of the configured Temporal server. Errors: not reachable, or the namespace does not exist."""
    temporal = settings.temporal
    tls: bool | TLSConfig = False
    if temporal.tls.enabled:
        tls = TLSConfig(
            server_root_ca_cert=_read(temporal.tls.server_ca_file),
            domain=temporal.tls.domain or None,
            client_cert=_read(temporal.tls.client_cert_file),
            client_private_key=_read(temporal.tls.client_key_file),
        )
    try:
        return await Client.connect(
            temporal.address,
            namespace=temporal.namespace,
            data_converter=DATA_CONVERTER,
            tls=tls,
            api_key=temporal.api_key.resolve().get_secret_value() if temporal.api_key else None,
            identity=identity(role),
            interceptors=interceptors(),
            runtime=_runtime(),
        )
    except (RuntimeError, RPCError) as error:
        raise ConnectionLostError(
            f"the Temporal server at {temporal.address} (namespace {temporal.namespace!r}) does not answer: "
            f"{error}; see [temporal] in the configuration"
        ) from None


def sandbox() -> SandboxedWorkflowRunner:
    """The workflow sandbox; our own modules and pydantic are deterministic at import and pass through."""
    return SandboxedWorkflowRunner(
        restrictions=SandboxRestrictions.default.with_passthrough_modules(
            "pydantic", "pydantic_core", "annotated_types", "safehaul", "activities"
        )
    )


def deployment() -> WorkerDeploymentConfig | None:
    """Worker deployment versioning, on when SAFEHAUL_BUILD_ID is set: workflows stay on their build, but for those that
    must outlive it (`policies.outlives_its_build`). See docs/upgrades.md.
    """
    build_id = os.environ.get(policies.BUILD_ID_VARIABLE, "")
    if not build_id:
        return None
    return WorkerDeploymentConfig(
        version=WorkerDeploymentVersion(deployment_name="safehaul", build_id=build_id),
        use_worker_versioning=True,
        default_versioning_behavior=VersioningBehavior.PINNED,
    )


async def run_until_stopped(workers: Sequence[Worker], name: str) -> None:
    """Run the workers of a process until SIGTERM or SIGINT; then let them end cleanly."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        for worker in workers:
            await stack.enter_async_context(worker)
        logger.info("%s is ready", name)
        print(f"{name} is ready", flush=True)
        await stop.wait()
        logger.info("%s is stopping", name)


_the_runtime: list[Runtime] = []


def _runtime() -> Runtime:
    if not _the_runtime:
        _the_runtime.append(runtime())
    return _the_runtime[0]


def _read(path: object) -> bytes | None:
    if not path:
        return None
    try:
        with open(str(path), "rb") as file:  # noqa: PTH123
            return file.read()
    except OSError as error:
        raise ConfigError(f"[temporal] cannot read {path}: {error.strerror}") from None


__all__ = [
    "GRACE",
    "HEARTBEAT_THROTTLE",
    "Interceptor",
    "connect",
    "deployment",
    "run_until_stopped",
    "sandbox",
]
