"""Metrics for OpenTelemetry; needs `pip install 'swr[otel]'`."""

from swr.metrics.otel import export

__all__ = ["export"]
