"""Counters that the other parts of swr add to. The number of names is bounded, even if clients choose them."""

import enum
import time
from bisect import bisect_left
from collections.abc import Callable
from typing import Final

from swr.stats.snapshot import Counted, Distribution, LastError, Layers

# The prefix of a route in `Entry.loader`. The digest of a loader contains no colon.
ROUTE: Final = "route:"
# Loaders and routes beyond `MOST_NAMES` share this name, and so do reasons beyond `_MOST_DETAILS`.
OTHER: Final = "other"
# The keys of the shared tallies of loaders (False) and of routes (True). No entry has one of them as its origin.
_OTHERS: Final = {False: ":other", True: ROUTE + ":other"}
MOST_NAMES: Final = 200
_MOST_DETAILS: Final = 64
_LONGEST_NAME: Final = 200
_LONGEST_TEXT: Final = 200
# Of the moving share of store reads that found nothing: the weight of the last read, and the share that counts as most.
_WEIGHT: Final = 0.125
_MOST_READS: Final = 0.75

# Upper bounds of the buckets for the durations of loads and of commands, in seconds.
OF_LOADS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
OF_COMMANDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Layer(enum.StrEnum):
    """The layer that answered a reader: the local cache, Redis, or a load."""

    L1 = "l1"
    REDIS = "redis"
    LOAD = "load"


class Reads:
    """Counters of the reads of one state by the layer that answered. The code of fresh hits adds to `l1` directly."""

    __slots__ = ("l1", "load", "redis")

    def __init__(self) -> None:
        self.l1 = self.redis = self.load = 0

    def add(self, layer: Layer) -> None:
        """Count one read."""
        if layer is Layer.L1:
            self.l1 += 1
        elif layer is Layer.REDIS:
            self.redis += 1
        else:
            self.load += 1

    def snapshot(self) -> Layers:
        """Return the numbers as they are."""
        return Layers(self.l1, self.redis, self.load)


class Histogram:
    """A histogram of durations.

    Parameters:
        bounds: upper bounds of the buckets, in seconds.

    Attributes:
        subscribers: functions that are called with each duration.
    """

    __slots__ = ("bounds", "counts", "subscribers", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.subscribers: tuple[Callable[[float], object], ...] = ()
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds
        for subscriber in self.subscribers:
            subscriber(seconds)

    def snapshot(self) -> Distribution:
        """Return the numbers as they are."""
        return Distribution(self.bounds, tuple(self.counts), self.sum)


class Tally:
    """The counters of one loader or one route.

    Parameters:
        name: the key template or the path template.
        is_route: whether it is a route's.
    """

    __slots__ = (
        "_absent",
        "bytes",
        "error",
        "failed",
        "failures",
        "fresh",
        "is_route",
        "loader",
        "loads",
        "missing",
        "name",
        "route",
        "seconds",
        "stale",
    )

    def __init__(self, name: str, is_route: bool) -> None:
        self.name = name
        self.is_route = is_route
        self.loader, self.route = ("", name) if is_route else (name, "")
        self.fresh, self.stale, self.missing = Reads(), Reads(), Reads()
        self.loads = self.failed = self.bytes = 0
        self.seconds, self.failures = Histogram(OF_LOADS), Histogram(OF_LOADS)
        self.error: LastError | None = None
        self._absent = 0.0

    def reads(self, state: str) -> Reads:
        """Return the reads of a state by its name."""
        return self.fresh if state == "fresh" else self.stale if state == "stale" else self.missing

    def note_read(self, *, found: bool) -> None:
        """Note whether a store read of a key that is not in the local cache found an entry."""
        self._absent += _WEIGHT * ((not found) - self._absent)

    @property
    def is_mostly_absent(self) -> bool:
        """Return whether most of the last store reads found nothing."""
        return self._absent > _MOST_READS

    def end_load(self, key: str, seconds: float, error: BaseException | None, now: float) -> None:
        """Count a load that has ended.

        Parameters:
            key: of the load.
            error: why it failed; None: it did not fail.
            now: wall clock, seconds.
        """
        self.seconds.add(seconds)
        if error is None:
            self.loads += 1
        else:
            self.failed += 1
            self.failures.add(seconds)
            self.error = LastError(type(error).__name__, _text_of(error)[:_LONGEST_TEXT], now, key)

    def snapshot(self, in_flight: int, backoffs: int) -> Counted:
        """Return the current numbers, with the two that only the caller knows."""
        return Counted(
            self.fresh.snapshot(),
            self.stale.snapshot(),
            self.missing.snapshot(),
            self.loads,
            self.failed,
            in_flight,
            self.seconds.snapshot(),
            self.failures.snapshot(),
            self.error,
            backoffs,
            self.bytes,
        )


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        # The `__str__` of an app's exception may raise. That must not break the counting.
        return ""


class Details:
    """Counters of one kind of occurrence, by reason.

    A reason may contain the name of a field or a parameter, which clients choose. Only the word before the name counts.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def add(self, reason: str) -> str:
        """Count one, and return the name under which it counts."""
        word, _, rest = reason.partition(" ")
        if word in _NAMING and rest:
            reason = word
        if reason not in self.counts and len(self.counts) >= _MOST_DETAILS:
            reason = OTHER
        self.counts[reason] = self.counts.get(reason, 0) + 1
        return reason


# First words of reasons that are followed by a name.
_NAMING: Final = frozenset({"argument", "cookie", "dependency", "field", "parameter", "variable"})


class Counts:
    """All counters of one cache."""

    def __init__(self) -> None:
        self.since = time.time()
        # By the origin of entries (`Entry.loader`).
        self.tallies: dict[str, Tally] = {}
        self._names = dict.fromkeys((False, True), 0)
        self._templates = {"": ""}
        self.bypasses, self.not_stored = Details(), Details()
        self.invalidations = {"key": 0, "tag": 0, "loader": 0, "all": 0}
        self.evictions = 0
        self.commands, self.leases = Histogram(OF_COMMANDS), Histogram(OF_LOADS)

    def add_loader(self, digest: str, template: str) -> None:
        """Count a loader under its key template.

        Parameters:
            digest: the `Entry.loader` of the loader's entries.
        """
        self._templates.setdefault(digest, template)

    def of(self, origin: str) -> Tally:
        """Return the tally of an origin, the `Entry.loader` of its entries."""
        tally = self.tallies.get(origin)
        return self._new(origin) if tally is None else tally

    def _new(self, origin: str) -> Tally:
        is_route = origin.startswith(ROUTE)
        name = origin.removeprefix(ROUTE) if is_route else self._templates.get(origin)
        if name is None or name == OTHER or len(name) > _LONGEST_NAME or self._names[is_route] >= MOST_NAMES:
            return self.tallies.setdefault(_OTHERS[is_route], Tally(OTHER, is_route))
        self._names[is_route] += 1
        tally = self.tallies[origin] = Tally(name, is_route)
        return tally

    def forget_bytes(self) -> None:
        """Note that the local cache is empty."""
        for tally in self.tallies.values():
            tally.bytes = 0
