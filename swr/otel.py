"""Metrics and spans for OpenTelemetry; needs `pip install 'swr[otel]'`."""

from swr.metrics.otel import export
from swr.metrics.tracing import trace_loads

__all__ = ["export", "trace_loads"]
