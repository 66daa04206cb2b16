"""Metrics for Prometheus; needs `pip install 'swr[prometheus]'`."""

from swr.metrics.prometheus import export

__all__ = ["export"]
