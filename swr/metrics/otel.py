"""Metrics for OpenTelemetry, through its API. The SDK that the program sets up decides where they go."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final
from weakref import WeakKeyDictionary

from swr.cache import Cache
from swr.errors import ConfigurationError
from swr.metrics.base import ADDED, COUNTED, READ, UP, Exporter, Metric

try:
    from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation, get_meter
except ImportError as error:
    raise ImportError("swr.otel needs opentelemetry-api: pip install 'swr[otel]'") from error

__all__ = ["export"]

# Until the program has set up its SDK, this meter does nothing; then it forwards to the meter of the SDK.
_METER: Final = get_meter("swr")


class _Count:
    """A number that the SDK reads. Calling the SDK for each hit would take ten times as long as the hit itself."""

    __slots__ = ("attributes", "number")

    def __init__(self, labels: dict[str, str]) -> None:
        self.attributes = _attributes(labels)
        self.number = 0.0

    def add(self, number: float) -> None:
        self.number += number


class _Metered(Exporter):
    """The instruments of swr at one meter."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._counts: dict[Metric, dict[tuple[str, ...], _Count]] = {}
        self._histograms: dict[Metric, Histogram] = {}
        for metric in ADDED:
            if metric.buckets:
                self._histograms[metric] = meter.create_histogram(
                    metric.name, metric.unit, metric.about, explicit_bucket_boundaries_advisory=metric.buckets
                )
            else:
                self._counts[metric] = {}
                callback = partial(self._observe_counts, metric)
                meter.create_observable_counter(metric.name, [callback], metric.unit, metric.about)
        for metric in COUNTED:
            meter.create_observable_counter(metric.name, [partial(self._observe, metric)], metric.unit, metric.about)
        for metric in (*READ, UP):
            # By OpenTelemetry's conventions, a number that can be summed over processes is not a gauge.
            create = meter.create_observable_gauge if metric is UP else meter.create_observable_up_down_counter
            create(metric.name, [partial(self._observe, metric)], metric.unit, metric.about)

    def series(self, metric: Metric, labels: dict[str, str]) -> Callable[[float], object]:
        if metric.buckets:
            return partial(self._histograms[metric].record, attributes=_attributes(labels))
        return self._counts[metric].setdefault(tuple(labels.values()), _Count(labels)).add

    def _observe_counts(self, metric: Metric, _: CallbackOptions) -> Iterator[Observation]:
        # Copied, because the SDK calls this in a thread of its own.
        for count in list(self._counts[metric].values()):
            yield Observation(count.number, count.attributes)

    def _observe(self, metric: Metric, _: CallbackOptions) -> Iterator[Observation]:
        for labels, value in self.read(metric, self.stats()):
            yield Observation(value, _attributes(labels))


def _attributes(labels: dict[str, str]) -> dict[str, str]:
    return {f"swr.{name}": value for name, value in labels.items()}


_METERED: Final[WeakKeyDictionary[Meter, _Metered]] = WeakKeyDictionary()


def export(cache: Cache, meter: Meter = _METER) -> Callable[[], None]:
    """Export metrics of `cache` to OpenTelemetry from now on.

    Parameters:
        cache: its `namespace` is the attribute `swr.cache` of every series.
        meter: makes the instruments; by default the meter "swr" of the global meter provider. You can export several
            caches to one meter; caches with the same namespace count as one.

    Returns:
        A function that ends the export.

    Raises:
        ConfigurationError: `cache` is not a cache, or this meter has it already.
    """
    if not isinstance(cache, Cache):
        raise ConfigurationError(f"cache={cache!r}: give a swr.Cache")
    metered = _METERED.get(meter)
    if metered is None:
        metered = _METERED[meter] = _Metered(meter)
    metered.add(cache)
    return partial(metered.remove, cache)
