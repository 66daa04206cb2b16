"""Counters that the other parts of swr add to. The number of names is bounded, even if clients choose them."""

import enum
import time
from bisect import bisect_left
from collections.abc import Callable
from typing import Final

from swr.stats.snapshot import Counted, Distribution, LastError, Layers

# What entries carry of a route begins with this; of a loader they carry a digest, without a colon.
ROUTE: Final = "route:"
# Names above these numbers are counted as one.
OTHER: Final = "other"
# What no entry carries.
_OTHERS: Final = {False: ":other", True: ROUTE + ":other"}
MOST_NAMES: Final = 200
_MOST_DETAILS: Final = 64
_LONGEST_NAME: Final = 200
_LONGEST_TEXT: Final = 200
# How much the last read of the store weighs in the share of those that found nothing, and what share is most of them.
_WEIGHT: Final = 0.125
_MOST_READS: Final = 0.75

# Seconds.
OF_LOADS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
OF_COMMANDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Layer(enum.StrEnum):
    """The layer that answered a reader: memory, Redis, or a load."""

    L1 = "l1"
    REDIS = "redis"
    LOAD = "load"


class Reads:
    """Counters of the reads of one state by the layer that answered; a fresh hit adds to `l1` itself."""

    __slots__ = ("l1", "load", "redis")

    def __init__(self) -> None:
        self.l1 = self.redis = self.load = 0

    def add(self, layer: Layer) -> None:
        """Count one."""
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
        subscribers: called with each one, too.
    """

    __slots__ = ("bounds", "counts", "subscribers", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.subscribers: tuple[Callable[[float], object], ...] = ()
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
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
        """Note whether a read of the store, for what this process does not hold, has found anything."""
        self._absent += _WEIGHT * ((not found) - self._absent)

    @property
    def is_mostly_absent(self) -> bool:
        """Return whether most of the last such reads have found nothing."""
        return self._absent > _MOST_READS

    def end_load(self, key: str, seconds: float, error: BaseException | None, now: float) -> None:
        """Count a load that has ended.

        Parameters:
            key: what was loaded.
            error: why it has failed; None: it has not.
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
        """Return the numbers as they are now, with those that the caller knows."""
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
        # The app's own exception; its text is not a reason to fail.
        return ""


class Details:
    """Counters of something that happened, by its reason.

    A reason may name a field or a parameter, which clients choose; only what kind of a name it is counts.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def add(self, reason: str) -> str:
        """Count one, and return the name that it counts under."""
        word, _, rest = reason.partition(" ")
        if word in _NAMING and rest:
            reason = word
        if reason not in self.counts and len(self.counts) >= _MOST_DETAILS:
            reason = OTHER
        self.counts[reason] = self.counts.get(reason, 0) + 1
        return reason


# The first words of reasons after which a name follows.
_NAMING: Final = frozenset({"argument", "cookie", "dependency", "field", "parameter", "variable"})


class Counts:
    """Everything that is counted in one cache."""

    def __init__(self) -> None:
        self.since = time.time()
        # By what entries carry of their origin.
        self.tallies: dict[str, Tally] = {}
        self._names = dict.fromkeys((False, True), 0)
        self._templates = {"": ""}
        self.bypasses, self.not_stored = Details(), Details()
        self.invalidations = {"key": 0, "tag": 0, "loader": 0, "all": 0}
        self.evictions = 0
        self.commands, self.leases = Histogram(OF_COMMANDS), Histogram(OF_LOADS)

    def add_loader(self, digest: str, template: str) -> None:
        """Count what entries of a loader carry under its key template.

        Parameters:
            digest: what entries carry of it.
        """
        self._templates.setdefault(digest, template)

    def of(self, origin: str) -> Tally:
        """Return where that is counted which entries carry as their origin: `Entry.loader`."""
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
        """Note that nothing is held in memory any more."""
        for tally in self.tallies.values():
            tally.bytes = 0
