"""What is measured in a cache, for whatever system it is exported to: the metrics, and what each event adds to them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Final

from swr.cache import Cache
from swr.errors import ConfigurationError
from swr.events import (
    CommandRefused,
    CommitRejected,
    Committed,
    Event,
    Hit,
    Invalidated,
    LeaseHeld,
    LeaseWaited,
    Loaded,
    LoadFailed,
    Miss,
    RenewalRejected,
    Stale,
    StoreUnreachable,
    Subscriber,
)


@dataclass(frozen=True, eq=False)
class Metric:
    """One metric; it has one series for every cache and every choice of label values, and never one for a key.

    Parameters:
        name: its parts, joined by dots.
        unit: by UCUM, as OpenTelemetry has it; in braces: of what it is a number.
        about: what it is.
        labels: beside the cache's, each with all values that it can have.
        buckets: upper bounds, in `unit`; a histogram has some.
    """

    name: str
    unit: str
    about: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()


_WORK: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_AGES: Final = (0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)

READS: Final = Metric(
    "swr.reads", "{read}", "Reads by what the reader was given", {"state": ("fresh", "stale", "missing")}
)
STALENESS: Final = Metric("swr.staleness", "s", "How long ago what was served stale was last fresh", buckets=_AGES)
LOADS: Final = Metric("swr.load.duration", "s", "How long loaders ran", {"result": ("loaded", "failed")}, buckets=_WORK)
REFUSALS: Final = Metric(
    "swr.lease.refusals",
    "{load}",
    "Loads that did not get the lease: another process holds it, or the key backs off after failures",
    {"reason": ("held", "backoff")},
)
WAITS: Final = Metric("swr.lease.wait.duration", "s", "How long loads waited that found the lease held", buckets=_WORK)
LOSSES: Final = Metric("swr.lease.losses", "{lease}", "Leases that were found to be gone while their load ran")
COMMITS: Final = Metric("swr.commits", "{commit}", "Values that were stored")
REJECTED: Final = Metric("swr.commits.rejected", "{commit}", "Values not stored because they were superseded")
INVALIDATIONS: Final = Metric(
    "swr.invalidations",
    "{invalidation}",
    "Invalidations, by this process or another",
    {"scope": ("key", "tag", "loader", "all"), "origin": ("here", "elsewhere")},
)
OUTAGES: Final = Metric("swr.store.outages", "{outage}", "How often the link to the store was lost")
REFUSED: Final = Metric("swr.store.refusals", "{command}", "Commands that the store refused: its memory is full, say")
ADDED: Final = (READS, STALENESS, LOADS, REFUSALS, WAITS, LOSSES, COMMITS, REJECTED, INVALIDATIONS, OUTAGES, REFUSED)

SIZE: Final = Metric("swr.l1.size", "By", "Memory size of the entries in the local cache (L1), outdated ones included")
ENTRIES: Final = Metric("swr.l1.entries", "{entry}", "Entries in the local cache (L1), outdated ones included")
UP: Final = Metric("swr.store.up", "", "Whether the store is reachable (1) or memory and loaders answer alone (0)")
READ: Final[Mapping[Metric, Callable[[list[Cache]], float]]] = {
    SIZE: lambda caches: sum(cache.local.slots.currsize for cache in caches),
    ENTRIES: lambda caches: sum(len(cache.local.slots) for cache in caches),
    UP: lambda caches: all(cache.engine.is_store_up for cache in caches),
}


class Exporter(ABC):
    """Caches, and what is known of them in one place that metrics are exported from.

    Caches of one namespace are counted as one: the sum of what they do and hold, and no store is up unless all are.
    """

    def __init__(self) -> None:
        self._caches: dict[Cache, Callable[[], None]] = {}

    @property
    def is_empty(self) -> bool:
        """Whether it has no cache."""
        return not self._caches

    @abstractmethod
    def series(self, metric: Metric, labels: dict[str, str]) -> Callable[[float], object]:
        """Return what adds a number to one series of a metric of `ADDED`."""

    def add(self, cache: Cache) -> None:
        """Begin to measure `cache`.

        Raises:
            ConfigurationError: it is being measured already, and would be counted twice.
        """
        if cache in self._caches:
            raise ConfigurationError(f"the cache {cache.namespace!r} is exported there already: end that first")
        series = {
            (metric, values): self.series(
                metric, {"cache": cache.namespace, **dict(zip(metric.labels, values, strict=True))}
            )
            for metric in ADDED
            for values in product(*metric.labels.values())
        }
        self._caches[cache] = cache.subscribe(_subscriber(series))

    def remove(self, cache: Cache) -> None:
        """Measure `cache` no longer; what was counted stays counted."""
        end = self._caches.pop(cache, None)
        if end is not None:
            end()

    def read(self, metric: Metric) -> Iterator[tuple[dict[str, str], float]]:
        """Return what a metric of `READ` is now, with the labels of each series."""
        # Copied, for it may be asked in a thread of its own.
        caches = list(self._caches)
        for namespace in sorted({cache.namespace for cache in caches}):
            value = READ[metric]([cache for cache in caches if cache.namespace == namespace])
            yield {"cache": namespace}, float(value)


# What each of these events adds 1 to.
_COUNTED: Final[Mapping[type[Event], Metric]] = {
    RenewalRejected: LOSSES,
    Committed: COMMITS,
    CommitRejected: REJECTED,
    StoreUnreachable: OUTAGES,
    CommandRefused: REFUSED,
}


def _subscriber(series: Mapping[tuple[Metric, tuple[str, ...]], Callable[[float], object]]) -> Subscriber:
    """Return a subscriber that adds each event to `series`."""

    def add(metric: Metric, number: float, *labels: str) -> None:
        series[metric, labels](number)

    def on_event(event: Event) -> None:
        match event:
            case Hit():
                add(READS, 1, "fresh")
            case Stale():
                add(READS, 1, "stale")
                add(STALENESS, event.staleness)
            case Miss():
                add(READS, 1, "missing")
            case Loaded():
                add(LOADS, event.seconds, "loaded")
            case LoadFailed():
                add(LOADS, event.seconds, "failed")
            case LeaseHeld():
                add(REFUSALS, 1, "backoff" if event.failures else "held")
            case LeaseWaited():
                add(WAITS, event.seconds)
            case Invalidated():
                named = {"key": event.key, "tag": event.tag, "loader": event.loader}
                scope = next((scope for scope, name in named.items() if name is not None), "all")
                add(INVALIDATIONS, 1, scope, "elsewhere" if event.elsewhere else "here")
            case _ if type(event) in _COUNTED:
                add(_COUNTED[type(event)], 1)

    return on_event
