"""Metrics for Prometheus, by way of `prometheus_client`."""

import os
from collections.abc import Callable, Iterator
from typing import Final

from swr.cache import Cache
from swr.errors import ConfigurationError
from swr.metrics.base import COUNTED, METRICS, Exporter, Metric

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError("swr.prometheus needs prometheus-client: pip install 'swr[prometheus]'") from error

__all__ = ["export"]

_MULTIPROCESS: Final = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
_UNITS: Final = {"s": "_seconds", "By": "_bytes"}


def name_of(metric: Metric) -> str:
    """Return the name of a metric in Prometheus, without the `_total` of a counter."""
    return metric.name.replace(".", "_") + _UNITS.get(metric.unit, "")


class _Registered(Exporter, Collector):
    """The metrics of swr in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # In multiprocess mode another process collects the metrics, and that process sees only instruments.
        super().__init__(adds_reads=any(os.environ.get(name) for name in _MULTIPROCESS))
        self._registry = registry
        self._instruments = {metric: self._instrument(metric) for metric in self.added}
        registry.register(self)

    def _instrument(self, metric: Metric) -> Counter | Histogram:
        name, about, labels = name_of(metric), metric.about, ["cache", *metric.labels]
        if metric.buckets:
            return Histogram(name, about, labels, buckets=metric.buckets, registry=self._registry)
        return Counter(name, about, labels, registry=self._registry)

    def series(self, metric: Metric, labels: dict[str, str]) -> Callable[[float], object]:
        instrument = self._instruments[metric]
        if isinstance(instrument, Histogram):
            return instrument.labels(**labels).observe
        return instrument.labels(**labels).inc

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        stats = self.stats()
        for metric in METRICS:
            if metric in self._instruments:
                continue
            kind = CounterMetricFamily if metric in COUNTED else GaugeMetricFamily
            family = kind(name_of(metric), metric.about, labels=["cache", *metric.labels])
            for labels, value in self.read(metric, stats):
                family.add_metric(list(labels.values()), value)
            yield family

    def leave(self) -> None:
        """Remove this collector and its instruments from the registry."""
        for collector in (*self._instruments.values(), self):
            self._registry.unregister(collector)


_REGISTERED: Final[dict[CollectorRegistry, _Registered]] = {}


def export(cache: Cache, registry: CollectorRegistry = REGISTRY) -> Callable[[], None]:
    """Export metrics of `cache` to Prometheus from now on.

    Parameters:
        cache: its `namespace` is the label `cache` of every series.
        registry: the registry that collects the metrics; by default that of `prometheus_client`. You can export several
            caches to one registry; caches with the same namespace count as one.

    Returns:
        A function that ends the export. The metrics leave the registry with its last cache.

    Raises:
        ConfigurationError: `cache` is not a cache, or this registry has it already.
    """
    if not isinstance(cache, Cache):
        raise ConfigurationError(f"cache={cache!r}: give a swr.Cache")
    registered = _REGISTERED.get(registry)
    if registered is None:
        registered = _REGISTERED[registry] = _Registered(registry)
    registered.add(cache)

    def end() -> None:
        registered.remove(cache)
        if registered.is_empty and _REGISTERED.get(registry) is registered:
            del _REGISTERED[registry]
            registered.leave()

    return end
