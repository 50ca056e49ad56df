"""OpenTelemetry: traces of workflows and steps, and the SDK's metrics. Off unless the environment asks for it."""

from __future__ import annotations

import os

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from temporalio.client import Interceptor
from temporalio.contrib.opentelemetry import TracingInterceptor
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig

TRACES = "SAFEHAUL_TRACES"
METRICS = "SAFEHAUL_METRICS_ADDRESS"


def interceptors() -> list[Interceptor]:
    """A tracing interceptor when SAFEHAUL_TRACES=console, else none."""
    if os.environ.get(TRACES, "") != "console":
        return []
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        provider = TracerProvider(resource=Resource.create({"service.name": "safehaul"}))
        provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
        trace.set_tracer_provider(provider)
    return [TracingInterceptor()]


def runtime() -> Runtime:
    """The SDK's runtime; with Prometheus metrics at SAFEHAUL_METRICS_ADDRESS (`127.0.0.1:9464`) when set."""
    address = os.environ.get(METRICS, "")
    if not address:
        return Runtime(telemetry=TelemetryConfig())
    return Runtime(telemetry=TelemetryConfig(metrics=PrometheusConfig(bind_address=address)))
