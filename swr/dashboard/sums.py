"""Sums over a fleet for a time interval: the differences of its processes' digests, added up. Pure."""

import itertools
import math
from collections import deque
from collections.abc import Iterable
from typing import Final

import msgspec

from swr.reports.digest import GROWING, Digest, RowReport, added, growth, less
from swr.stats.counts import OF_COMMANDS, OF_LOADS
from swr.stats.snapshot import Distribution

# Seconds that counts and shares cover, and seconds by which a digest may be late.
WINDOW: Final = 15.0
_USUAL_DELAY: Final = 2.0

# Whether the row is of a route, and the name of the loader or route.
RowName = tuple[bool, str]


class Sum(msgspec.Struct):
    """The sums of a time interval.

    Parameters:
        t: the end of the interval, in seconds since 1970.
        seconds: its length.
        rows: the rows by loader and route. Only their counts are meaningful, not their present numbers.
        commands: the number of Redis commands in each bucket of `OF_COMMANDS`.
        invalidations: the number of invalidations.
        uncached: the numbers of requests that were not cached, by reason.
        processes: the number of processes that reported.
    """

    t: float
    seconds: float
    rows: dict[RowName, RowReport]
    commands: tuple[int, ...] = ()
    invalidations: int = 0
    uncached: dict[str, int] = {}
    processes: int = 0


def difference(t: float, seconds: float, pairs: Iterable[tuple[Digest, Digest]], *, within: float) -> Sum:
    """Return the sums of the differences between two digests of each process.

    Parameters:
        t: the end of the interval, in seconds since 1970.
        seconds: its length.
        pairs: for each process, its digest before, and its present one.
        within: seconds. If the two digests are further apart, only this part of their difference counts. Without this,
            a single second after an outage of Redis would show the reads of minutes.
    """
    rows: dict[RowName, RowReport] = {}
    commands: tuple[int, ...] = ()
    uncached: dict[str, int] = {}
    invalidations = processes = 0
    for before, now in pairs:
        processes += 1
        share = within / (now.at - before.at) if is_late(within, before, now) else 1.0
        known = {(row.is_route, row.name): row for row in before.rows}
        for row in now.rows:
            name = (row.is_route, row.name)
            change = _change(known.get(name, RowReport(row.name, row.is_route)), row, share)
            rows[name] = change if name not in rows else added(rows[name], change)
        commands = _plus(commands, tuple(_part(count, share) for count in less(now.commands, before.commands)))
        invalidations += _part(max(0, now.invalidations - before.invalidations), share)
        for reason, count in now.uncached.items():
            more = max(0, count - before.uncached.get(reason, 0))
            uncached[reason] = uncached.get(reason, 0) + _part(more, share)
    return Sum(t, seconds, rows, commands, invalidations, uncached, processes)


def together(sums: Iterable[Sum]) -> Sum:
    """Return the sums of several intervals as one."""
    whole = Sum(0.0, 0.0, {})
    for one in sums:
        whole.t = max(whole.t, one.t)
        whole.seconds += one.seconds
        for name, row in one.rows.items():
            whole.rows[name] = row if name not in whole.rows else added(whole.rows[name], row)
        whole.commands = _plus(whole.commands, one.commands)
        whole.invalidations += one.invalidations
        whole.uncached = {
            reason: whole.uncached.get(reason, 0) + one.uncached.get(reason, 0)
            for reason in {**whole.uncached, **one.uncached}
        }
    return whole


class Window:
    """The sums of the last `WINDOW` seconds."""

    def __init__(self) -> None:
        self._sums: deque[Sum] = deque()

    def add(self, one: Sum) -> None:
        """Add the newest sum, and forget those that are too old."""
        self._sums.append(one)
        while self._sums[0].t <= one.t - WINDOW:
            self._sums.popleft()

    def seconds(self, t: float) -> float:
        """Return how many seconds the sums cover, without sums that are too old at the time `t`."""
        return sum(one.seconds for one in self._sums if one.t > t - WINDOW)

    def whole(self) -> Sum:
        """Return the total of all sums."""
        return together(self._sums)


def quantile(counts: tuple[int, ...], share: float, *, of_commands: bool = False) -> float | None:
    """Return the quantile `share` of a histogram of seconds, or None if the histogram is empty."""
    bounds = OF_COMMANDS if of_commands else OF_LOADS
    whole = _plus(counts[: len(bounds) + 1], (0,) * (len(bounds) + 1))
    return Distribution(bounds, whole, 0.0).quantile(share)


def is_late(seconds: float, before: Digest, now: Digest) -> bool:
    """Return whether a process has been silent for longer than `seconds` and the usual delays."""
    return now.at - before.at > seconds + _USUAL_DELAY


def _change(before: RowReport, now: RowReport, share: float) -> RowReport:
    change = growth(before, now)
    numbers = {name: _part(getattr(change, name), share) for name in GROWING}
    return msgspec.structs.replace(change, **numbers, seconds=tuple(_part(count, share) for count in change.seconds))


def _part(count: int, share: float) -> int:
    # Rounding up keeps rare things visible: a single failure, for example.
    return math.ceil(count * share)


def _plus(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(sum, itertools.zip_longest(one, other, fillvalue=0)))
