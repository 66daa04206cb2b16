"""The processes of a fleet, computed from their digests: which are alive, and their work since the last look. Pure."""

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from swr.dashboard import sums
from swr.dashboard.history import REMEMBERED_FOR, Remembered
from swr.dashboard.sums import WINDOW, RowName, Sum, Window
from swr.reports.digest import FORMAT, CallReport, Digest, HappeningReport, shifted

# Seconds without a digest after which a process counts as gone, or is shown as silent. It reports once a second.
GONE_AFTER: Final = 4.0
SILENT_AFTER: Final = 1.7
# The most processes that one look reads, and the most that are known, including ended ones.
_MOST_PROCESSES: Final = 2000
_MOST_KNOWN: Final = 4000

# Seconds by which clocks may differ and still count as equal.
_ALIKE: Final = 3.0
# Seconds after which a digest is no longer in Redis: a minute, and a margin.
_OLDEST: Final = 65.0

_REACHABLE: Final = {"StoreUnreachable": "outage", "StoreReachable": "reachable"}


class Seen(msgspec.Struct):
    """A process as the dashboard knows it.

    Parameters:
        digest: its last digest.
        at: when this digest came, in seconds since 1970 by the clock of the dashboard's process.
        seen: when this digest came, by the monotonic clock of the dashboard's process.
        reads_per_s: its reads per second between its last two digests.
        gone: whether it counts as ended.
        numbers: the numbers of its last event and its last call that were passed on, and its number of dropped calls.
        ahead: seconds by which the dashboard's clock is ahead of the process's clock; 0: too few to matter.
        age: the age of its last digest in seconds, by the clock of Redis.
    """

    digest: Digest
    at: float
    seen: float
    reads_per_s: float = 0.0
    gone: bool = False
    numbers: tuple[int, int, int] = (0, 0, 0)
    ahead: float = 0.0
    age: float = 0.0


class Fleet:
    """The processes of a namespace.

    Parameters:
        monotonic: returns the time of a monotonic clock, in seconds.
        clock: returns the wall-clock time, in seconds since 1970.

    Attributes:
        processes: the processes by id.
        window: sums over the last seconds.
        remembered: points and marks of the last minutes.
        unreadable: how many processes have written digests that this one cannot read.
        unseen: a sentence about further data that the dashboard cannot see, or "".
        failing: for each failing loader and route, when its failures began, and when they were last seen.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, clock: Callable[[], float] = time.time) -> None:
        self.processes: dict[str, Seen] = {}
        self.window = Window()
        self.remembered = Remembered()
        self.unreadable = 0
        self.unseen = ""
        self.failing: dict[RowName, tuple[float, float]] = {}
        self._monotonic = monotonic
        self._clock = clock
        self._began = clock()
        self._looked: float | None = None
        # When a look last saw all processes, and whether the last look did.
        self._saw = monotonic()
        self._was_whole = True

    def live(self) -> list[Seen]:
        """Return the running processes."""
        return [one for one in self.processes.values() if not one.gone]

    def look(
        self, digests: Mapping[str, Digest], *, is_whole: bool, ages: Mapping[str, float] = MappingProxyType({})
    ) -> tuple[list[tuple[str, HappeningReport]], list[tuple[str, CallReport]], int]:
        """Take the digests of the processes; return new events and new calls with their processes' ids.

        The third value is the number of calls that the processes have dropped since the last look.

        Parameters:
            digests: the digests by process id.
            is_whole: whether these are the digests of all processes. If not, other processes may run unseen.
            ages: the known ages of the digests, in seconds.
        """
        now, t, dropped = self._monotonic(), self._clock(), 0
        pairs: list[tuple[Digest, Digest]] = []
        happenings: list[tuple[str, HappeningReport]] = []
        calls: list[tuple[str, CallReport]] = []
        for name, digest in sorted(digests.items())[:_MOST_PROCESSES]:
            known = self.processes.get(name)
            if known is None and len(self.processes) >= _MOST_KNOWN:
                continue
            if known is not None and known.digest.at == digest.at:
                continue
            at_start = digest.started
            ahead = _ahead(t - digest.at, _OLDEST if known is None else _ALIKE + now - self._saw)
            if ahead:
                digest = shifted(digest, ahead)
            pairs.append((self._before(known, digest, at_start), digest))
            # A digest stays in Redis for a minute, and its process may have ended since it was written.
            age = ages.get(name, 0.0) if known is None else 0.0
            has_ended = digest.is_last and self._looked is not None and (known is None or not known.gone)
            one = self._see(name, known, digest, t - age, now - age)
            if has_ended:
                self.remembered.mark(t, "ended", f"process {digest.pid} on {digest.host} ended")
            one.ahead = ahead
            happenings += [(name, event) for event in digest.happenings if event.number > one.numbers[0]]
            calls += [(name, call) for call in digest.calls if call.number > one.numbers[1]]
            dropped += max(0, digest.dropped - one.numbers[2])
            one.numbers = (
                max([one.numbers[0], *(event.number for event in digest.happenings)]),
                max([one.numbers[1], *(call.number for call in digest.calls)]),
                digest.dropped,
            )
        for name, one in self.processes.items():
            one.age = ages.get(name, 0.0)
        self._saw = now if is_whole else self._saw
        self._look_for_gone(t, now, is_whole=is_whole)
        if self._was_whole and not is_whole:
            # From now on the sums cover fewer processes, and must not be mixed with earlier ones.
            self.window = Window()
        self._was_whole = is_whole
        if self._looked is not None and (is_whole or digests):
            # The first look has nothing to compare with. If a look saw no digest, there may have been reads anyway.
            self._count(t, max(0.001, now - self._looked), pairs)
        self._looked = now
        happenings.sort(key=lambda pair: pair[1].at)
        calls.sort(key=lambda pair: pair[1].at)
        self.mark(happenings, t)
        return happenings, calls, dropped

    def _count(self, t: float, seconds: float, pairs: list[tuple[Digest, Digest]]) -> None:
        """Add the growth of the processes' counts since the last look to the window and to the plots."""
        change = sums.difference(t, seconds, pairs, within=self.window.seconds(t) + seconds)
        self.window.add(change)
        is_late = any(sums.is_late(seconds, before, digest) for before, digest in pairs)
        point = sums.difference(t, seconds, pairs, within=seconds) if is_late else change
        point.processes = len(self.live())
        self.remembered.add(point)
        self._note_failing(change)

    def _before(self, known: Seen | None, digest: Digest, started: float) -> Digest:
        """Return the digest to compare with.

        For a known process this is its last digest. For a new one it is an empty digest. For a process that is older
        than this dashboard and not yet known, it is the digest itself, so that the growth is zero.

        Parameters:
            known: the process, if it is known.
            digest: its present digest.
            started: when the process began, by its own clock.
        """
        if known is not None:
            return known.digest
        is_new = self._looked is not None and digest.started >= self._began
        return Digest(FORMAT, digest.id, "", 0, "", "", started, started) if is_new else digest

    def _see(self, name: str, known: Seen | None, digest: Digest, t: float, now: float) -> Seen:
        if known is None:
            one = Seen(digest, t, now, gone=digest.is_last)
            if self._looked is not None and digest.started >= self._began - GONE_AFTER:
                self._mark_new(digest, t)
            else:
                # The events in this digest happened before the dashboard looked.
                one.numbers = (max((event.number for event in digest.happenings), default=0), 0, digest.dropped)
            self.processes[name] = one
            return one
        known.reads_per_s = _reads(known.digest, digest) / max(0.1, digest.at - known.digest.at)
        known.digest, known.at, known.seen, known.gone = digest, t, now, digest.is_last
        return known

    def _mark_new(self, digest: Digest, t: float) -> None:
        releases = {one.digest.release for one in self.processes.values()}
        where = f"process {digest.pid} on {digest.host}"
        if digest.release and digest.release not in releases:
            self.remembered.mark(t, "deploy", f"release {digest.release} ({where})")
        else:
            self.remembered.mark(t, "process", f"{where} began")

    def _look_for_gone(self, t: float, now: float, *, is_whole: bool) -> None:
        for name, one in list(self.processes.items()):
            if not is_whole and not one.gone:
                # This look says nothing about the process. Once Redis is back, it gets the full time to report again.
                one.seen = now
            if is_whole and not one.gone and now - one.seen > GONE_AFTER:
                one.gone = True
                if self._looked is None:
                    continue
                self.remembered.mark(t, "gone", f"process {one.digest.pid} on {one.digest.host} does not report")
            if now - one.seen > REMEMBERED_FOR:
                del self.processes[name]

    def _note_failing(self, change: Sum) -> None:
        for name, row in change.rows.items():
            if row.failed or row.backoffs:
                first = change.t if row.error is None else min(change.t, row.error[2])
                self.failing[name] = (self.failing.get(name, (first,))[0], change.t)
        self.failing = {name: pair for name, pair in self.failing.items() if pair[1] > change.t - WINDOW}

    def mark(self, happenings: list[tuple[str, HappeningReport]], t: float) -> None:
        """Mark invalidations and outages in the plots.

        Parameters:
            happenings: events, each with the id of its process.
            t: the present time, in seconds since 1970.
        """
        invalidations = [event for _, event in happenings if event.kind == "Invalidated"]
        if invalidations:
            first = invalidations[0]
            named = "" if first.row is None and first.key is None else f" ({first.row or 'one key'})"
            text = f"{first.text}{named}" if len(invalidations) == 1 else f"{len(invalidations)} invalidations"
            self.remembered.mark(t, "invalidation", text, first.at)
        for _, event in happenings:
            if event.kind in _REACHABLE:
                self.remembered.mark(t, _REACHABLE[event.kind], event.text, event.at)


def _ahead(ahead: float, oldest: float) -> float:
    """Return the seconds by which this clock is ahead of a process's clock, or 0 if the digest's age explains them.

    A changed digest was written after the last look. A digest of a new process may have been in Redis for a minute.

    Parameters:
        ahead: the present time minus the time in the digest.
        oldest: the greatest possible age of the digest, in seconds.
    """
    return 0.0 if -_ALIKE <= ahead <= oldest else ahead


def _reads(before: Digest, now: Digest) -> int:
    def total(digest: Digest) -> int:
        return sum(row.fresh + row.stale + row.missing for row in digest.rows)

    return max(0, total(now) - total(before))
