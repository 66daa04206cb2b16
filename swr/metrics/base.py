"""The metrics of a cache, independent of the system to which they are exported, and the source of each.

Rare occurrences are added when their event is published. Frequent occurrences are counted in the cache, and an exporter
reads these counts when it needs them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Final, NamedTuple

from swr.cache import Cache
from swr.errors import ConfigurationError
from swr.events import (
    Bypassed,
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
    NotStored,
    RenewalRejected,
    Stale,
    StoreUnreachable,
    Subscriber,
)
from swr.stats.counts import OF_COMMANDS, OF_LOADS, Details, Layer
from swr.stats.snapshot import Counted, Stats


@dataclass(frozen=True, eq=False)
class Metric:
    """One metric; it has one series for every cache and every combination of label values, and never one for a key.

    Parameters:
        name: its parts, joined by dots.
        unit: the unit in UCUM, as in OpenTelemetry; in braces: the things that are counted.
        about: the description.
        labels: the labels besides the cache, each with all values that it can have. An empty tuple: the values, such as
            loaders and routes, are known only at run time, and their number is bounded.
        buckets: upper bounds of the buckets of a histogram, in `unit`; empty: it is not a histogram.
    """

    name: str
    unit: str
    about: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()


_AGES: Final = (0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
# The labels of a loader or of a route; one of them is always empty.
_WHERE: Final = {"loader": (), "route": ()}
_STATES: Final = ("fresh", "stale", "missing")
_LAYERS: Final = tuple(layer.value for layer in Layer)

# -- added when an event is published -------------------------------------------------------------------------------

STALENESS: Final = Metric("swr.staleness", "s", "Time from the end of freshness to each stale answer", _WHERE, _AGES)
LOADS: Final = Metric(
    "swr.load.duration", "s", "How long loads ran", {**_WHERE, "result": ("loaded", "failed")}, OF_LOADS
)
REFUSALS: Final = Metric(
    "swr.lease.refusals",
    "{load}",
    "Loads that did not get the lease: another load holds it, or the key backs off after failures",
    {"reason": ("held", "backoff")},
)
WAITS: Final = Metric(
    "swr.lease.wait.duration", "s", "How long loads waited because the lease was held", buckets=OF_LOADS
)
LOSSES: Final = Metric("swr.lease.losses", "{lease}", "Leases that were lost while their load ran")
COMMITS: Final = Metric("swr.commits", "{commit}", "Values that were stored")
REJECTED: Final = Metric("swr.commits.rejected", "{commit}", "Values not stored because they were superseded")
INVALIDATIONS: Final = Metric(
    "swr.invalidations",
    "{invalidation}",
    "Invalidations, by this process or another",
    {"scope": ("key", "tag", "loader", "all"), "origin": ("here", "elsewhere")},
)
OUTAGES: Final = Metric("swr.store.outages", "{outage}", "How often the connection to the store was lost")
REFUSED: Final = Metric(
    "swr.store.refusals", "{command}", "Commands that the store refused, for example because its memory is full"
)
COMMANDS: Final = Metric(
    "swr.store.command.duration", "s", "How long Redis took to answer; one command at a time is measured",
    buckets=OF_COMMANDS,
)  # fmt: skip
ADDED: Final = (
    STALENESS, LOADS, REFUSALS, WAITS, LOSSES, COMMITS, REJECTED, INVALIDATIONS, OUTAGES, REFUSED, COMMANDS
)  # fmt: skip

# -- counted in the cache ---------------------------------------------------------------------------------------------

READS: Final = Metric(
    "swr.reads",
    "{read}",
    "Reads by the state of the answer, and by the layer that answered",
    {**_WHERE, "state": _STATES, "layer": _LAYERS},
)
BYPASSES: Final = Metric("swr.bypasses", "{request}", "Requests that the cache could not answer", {"reason": ()})
NOT_STORED: Final = Metric(
    "swr.not_stored", "{response}", "Responses of the app that could not be stored", {"reason": ()}
)
EVICTIONS: Final = Metric("swr.l1.evictions", "{entry}", "Entries that left the local cache because it was full")

# The values of the labels, with the value of their series.
Values = Iterator[tuple[tuple[str, ...], float]]


def _reads(stats: Stats) -> Values:
    for where, counted in _counted(stats):
        for state in _STATES:
            layers = getattr(counted, state)
            for layer in _LAYERS if state != "missing" else (Layer.LOAD.value,):
                yield (*where, state, layer), getattr(layers, layer)


def _counted(stats: Stats) -> Iterator[tuple[tuple[str, str], Counted]]:
    for loader, counted in stats.loaders.items():
        yield (loader, ""), counted
    for route, counted in stats.routes.items():
        yield ("", route), counted


def _details(details: Mapping[str, int]) -> Values:
    return (((reason,), number) for reason, number in details.items())


COUNTED: Final[Mapping[Metric, Callable[[Stats], Values]]] = {
    READS: _reads,
    BYPASSES: lambda stats: _details(stats.bypasses),
    NOT_STORED: lambda stats: _details(stats.not_stored),
    EVICTIONS: lambda stats: iter([((), stats.local.evictions)]),
}

# -- current values ---------------------------------------------------------------------------------------------------

SIZE: Final = Metric("swr.l1.size", "By", "Memory size of the entries in the local cache (L1), outdated ones included")
ENTRIES: Final = Metric("swr.l1.entries", "{entry}", "Entries in the local cache (L1), outdated ones included")
IN_FLIGHT: Final = Metric("swr.loads.in_flight", "{load}", "Loads that run now", _WHERE)
BACKOFFS: Final = Metric("swr.backoffs", "{key}", "Keys that back off now because their loads failed", _WHERE)
UP: Final = Metric("swr.store.up", "", "Whether the store is reachable (1) or memory and loaders answer alone (0)")
READ: Final[Mapping[Metric, Callable[[Stats], Values]]] = {
    SIZE: lambda stats: iter([((), stats.local.bytes)]),
    ENTRIES: lambda stats: iter([((), stats.local.entries)]),
    IN_FLIGHT: lambda stats: ((where, counted.in_flight) for where, counted in _counted(stats)),
    BACKOFFS: lambda stats: ((where, counted.backoffs) for where, counted in _counted(stats)),
}
METRICS: Final = (*ADDED, *COUNTED, *READ, UP)


class _Exported(NamedTuple):
    """A cache that is exported.

    Parameters:
        end: ends the export.
        before: the counts of the cache when the export began.
    """

    end: Callable[[], None]
    before: dict[Metric, dict[tuple[str, ...], float]]


class Exporter(ABC):
    """The caches that one registry or meter exports.

    Caches of one namespace count as one: their numbers are added up, and the store is up only if it is up for all.

    Parameters:
        adds_reads: whether reads are added one by one, because the exporting process cannot read this process's counts.
    """

    def __init__(self, *, adds_reads: bool = False) -> None:
        self.added = (*ADDED, READS, BYPASSES, NOT_STORED) if adds_reads else ADDED
        self._caches: dict[Cache, _Exported] = {}
        # By namespace: the counts of caches that are no longer exported.
        self._kept: dict[str, dict[Metric, dict[tuple[str, ...], float]]] = {}

    @property
    def is_empty(self) -> bool:
        """Return whether it exports no cache."""
        return not self._caches

    @abstractmethod
    def series(self, metric: Metric, labels: dict[str, str]) -> Callable[[float], object]:
        """Return a function that adds a number to one series of a metric in `added`."""

    def add(self, cache: Cache) -> None:
        """Begin to export `cache`.

        Raises:
            ConfigurationError: `cache` is exported already, and would count twice.
        """
        if cache in self._caches:
            raise ConfigurationError(f"the cache {cache.namespace!r} is already exported here: end that export first")
        series = Series(lambda metric, labels: self.series(metric, {"cache": cache.namespace, **labels}))
        for metric in self.added:
            for values in product(*metric.labels.values()):
                series.of(metric, values)
        on_command = series.of(COMMANDS, ())
        commands = cache.engine.counts.commands
        commands.subscribers += (on_command,)
        kinds = KINDS_OF_READS if READS in self.added else ()
        end_events = cache.subscribe(_subscriber(series, self.added), *KINDS_ADDED, *kinds)

        def end() -> None:
            commands.subscribers = tuple(other for other in commands.subscribers if other is not on_command)
            end_events()

        stats = cache.stats()
        self._caches[cache] = _Exported(end, {metric: dict(counted(stats)) for metric, counted in COUNTED.items()})

    def remove(self, cache: Cache) -> None:
        """End the export of `cache`; its counts so far stay."""
        exported = self._caches.pop(cache, None)
        if exported is not None:
            exported.end()
            stats, kept = cache.stats(), self._kept.setdefault(cache.namespace, {})
            for metric in COUNTED:
                _sum_up(kept.setdefault(metric, {}), metric, stats, exported)

    def stats(self) -> dict[Cache, Stats]:
        """Return the present numbers of each cache."""
        # Copied, because another thread may call this.
        return {cache: cache.stats() for cache in list(self._caches)}

    def read(self, metric: Metric, stats: Mapping[Cache, Stats]) -> Iterator[tuple[dict[str, str], float]]:
        """Yield the labels and the value of each series of a metric in `COUNTED` or `READ`, or of `UP`.

        Parameters:
            metric: the metric.
            stats: the result of `stats`, which one export of all metrics needs only once: it takes some time.
        """
        caches = [(cache, exported) for cache, exported in list(self._caches.items()) if cache in stats]
        namespaces = {cache.namespace for cache, _ in caches}
        if metric in COUNTED:
            namespaces |= set(self._kept)
        for namespace in sorted(namespaces):
            of_namespace = [(cache, exported) for cache, exported in caches if cache.namespace == namespace]
            if metric is UP:
                yield {"cache": namespace}, float(all(cache.engine.is_store_up for cache, _ in of_namespace))
                continue
            values = dict(self._kept.get(namespace, {}).get(metric, {}))
            for cache, exported in of_namespace:
                _sum_up(values, metric, stats[cache], exported)
            for labels, value in values.items():
                yield {"cache": namespace, **dict(zip(metric.labels, labels, strict=True))}, float(value)


def _sum_up(values: dict[tuple[str, ...], float], metric: Metric, stats: Stats, exported: _Exported) -> None:
    """Add a cache's values of a metric to `values`, without the counts from before its export."""
    before = exported.before.get(metric, {})
    for labels, value in (COUNTED[metric] if metric in COUNTED else READ[metric])(stats):
        values[labels] = values.get(labels, 0.0) + value - before.get(labels, 0.0)


class Series:
    """The series of one cache, each made when it is first needed.

    Parameters:
        make: returns a function that adds a number to a series.
    """

    def __init__(self, make: Callable[[Metric, dict[str, str]], Callable[[float], object]]) -> None:
        self._make = make
        self._series: dict[tuple[Metric, tuple[str, ...]], Callable[[float], object]] = {}

    def of(self, metric: Metric, labels: tuple[str, ...]) -> Callable[[float], object]:
        """Return a function that adds a number to one series."""
        adds = self._series.get((metric, labels))
        if adds is None:
            named = dict(zip(metric.labels, labels, strict=True))
            adds = self._series[metric, labels] = self._make(metric, named)
        return adds


# The metric to which each of these events adds 1.
_COUNTED_EVENTS: Final[Mapping[type[Event], Metric]] = {
    RenewalRejected: LOSSES,
    Committed: COMMITS,
    CommitRejected: REJECTED,
    StoreUnreachable: OUTAGES,
    CommandRefused: REFUSED,
}
# `Hit` is not among them: to publish one takes longer than the hit itself.
KINDS_ADDED: Final = (Stale, Loaded, LoadFailed, LeaseHeld, LeaseWaited, Invalidated, *_COUNTED_EVENTS)
KINDS_OF_READS: Final = (Hit, Miss, Bypassed, NotStored)


def _subscriber(series: Series, added: Collection[Metric]) -> Subscriber:
    """Return a subscriber that adds each event to `series`."""
    adds_reads = READS in added
    # Reasons may contain names that clients choose, so `Details` bounds their number.
    bypasses, not_stored = Details(), Details()

    def add(metric: Metric, number: float, *labels: str) -> None:
        series.of(metric, labels)(number)

    def on_event(event: Event) -> None:
        match event:
            case Stale():
                add(STALENESS, event.staleness, event.loader, event.route)
                if adds_reads:
                    on_read(event)
            case Loaded() | LoadFailed() if event.is_outer:
                pass
            case Loaded():
                add(LOADS, event.seconds, event.loader, event.route, "loaded")
            case LoadFailed():
                add(LOADS, event.seconds, event.loader, event.route, "failed")
            case LeaseHeld():
                add(REFUSALS, 1, "backoff" if event.failures else "held")
            case LeaseWaited():
                add(WAITS, event.seconds)
            case Invalidated():
                add(INVALIDATIONS, 1, event.scope, "elsewhere" if event.elsewhere else "here")
            case _ if type(event) in _COUNTED_EVENTS:
                add(_COUNTED_EVENTS[type(event)], 1)
            case _:
                on_read(event)

    def on_read(event: Event) -> None:
        match event:
            case Hit():
                add(READS, 1, event.loader, event.route, "fresh", event.layer)
            case Stale():
                add(READS, 1, event.loader, event.route, "stale", event.layer)
            case Miss():
                add(READS, 1, event.loader, event.route, "missing", "load")
            case Bypassed():
                add(BYPASSES, 1, bypasses.add(event.reason))
            case _:
                assert isinstance(event, NotStored)
                add(NOT_STORED, 1, not_stored.add(event.reason))

    return on_event
