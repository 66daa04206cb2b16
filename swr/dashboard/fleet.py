"""The processes of a fleet, as their digests tell: which are alive, and what they did since the last look. Pure."""

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from swr.dashboard import sums
from swr.dashboard.history import REMEMBERED_FOR, Remembered
from swr.dashboard.sums import WINDOW, RowName, Sum, Window
from swr.reports.digest import FORMAT, CallReport, Digest, HappeningReport, shifted

# Seconds. A process that has not reported for so long counts as ended, or is shown as silent; it reports once a second.
GONE_AFTER: Final = 4.0
SILENT_AFTER: Final = 1.7
_MOST_PROCESSES: Final = 2000
# With those that have ended.
_MOST_KNOWN: Final = 4000

# Seconds. Clocks that differ by less are alike.
_ALIKE: Final = 3.0
_OLDEST: Final = 65.0

_REACHABLE: Final = {"StoreUnreachable": "outage", "StoreReachable": "reachable"}


class Seen(msgspec.Struct):
    """A process.

    Parameters:
        digest: its last one.
        at: when that came, by the clock of the process that looks; seconds since 1970.
        seen: likewise, by its monotonic clock.
        reads_per_s: between its last two digests.
        gone: whether it counts as ended.
        numbers: of its last event and call that were passed on, and of calls that it had dropped by then.
        ahead: seconds by which its clock is behind that of this process; 0: too few to matter.
        age: of its last digest in seconds, by the clock of Redis.
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
        monotonic: a clock that never goes back, seconds.
        clock: wall clock, seconds.

    Attributes:
        processes: by id.
        window: what happened in the last seconds.
        remembered: what happened in the last minutes.
        unreadable: how many processes have written what this one cannot read.
        unseen: what else cannot be seen, and why.
        failing: for each loader and route that fails, since when it does, and when that was last seen.
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
        # When it last saw all processes, and whether it did so at its last look.
        self._saw = monotonic()
        self._was_whole = True

    def live(self) -> list[Seen]:
        """Return the processes that run."""
        return [one for one in self.processes.values() if not one.gone]

    def look(
        self, digests: Mapping[str, Digest], *, is_whole: bool, ages: Mapping[str, float] = MappingProxyType({})
    ) -> tuple[list[tuple[str, HappeningReport]], list[tuple[str, CallReport]], int]:
        """Take the digests of the processes; return the events and calls that are new, each with its process.

        Beside them it returns how many calls the processes have dropped.

        Parameters:
            digests: by process.
            is_whole: whether they are those of all; if not, nothing is known of the others.
            ages: of the digests in seconds, as far as they are known.
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
            # A digest is in Redis for a minute; its process may have ended since then.
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
            # From now on the figures are those of fewer processes.
            self.window = Window()
        self._was_whole = is_whole
        if self._looked is not None and (is_whole or digests):
            # A first look has nothing to compare with, and a second in which nothing was seen is none without reads.
            self._count(t, max(0.001, now - self._looked), pairs)
        self._looked = now
        happenings.sort(key=lambda pair: pair[1].at)
        calls.sort(key=lambda pair: pair[1].at)
        self.mark(happenings, t)
        return happenings, calls, dropped

    def _count(self, t: float, seconds: float, pairs: list[tuple[Digest, Digest]]) -> None:
        """Add what the processes have counted since the last look to the figures and the plots."""
        change = sums.difference(t, seconds, pairs, within=self.window.seconds(t) + seconds)
        self.window.add(change)
        is_late = any(sums.is_late(seconds, before, digest) for before, digest in pairs)
        point = sums.difference(t, seconds, pairs, within=seconds) if is_late else change
        point.processes = len(self.live())
        self.remembered.add(point)
        self._note_failing(change)

    def _before(self, known: Seen | None, digest: Digest, started: float) -> Digest:
        """Return the digest to compare with: the last one; an empty one for a new process; itself for an old process.

        Parameters:
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
                # These happened before anybody looked.
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
                # Nothing is known of it. Once Redis is back, it has its time to report again.
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
        """Mark in the plots what happened, each event with its process.

        Parameters:
            t: the moment, in seconds since 1970.
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
    """Return by how many seconds this clock is ahead of that of a process; 0 if the age of its digest explains that.

    A digest that changes was written after the last look. One that is new may be in Redis for a minute already.
    """
    return 0.0 if -_ALIKE <= ahead <= oldest else ahead


def _reads(before: Digest, now: Digest) -> int:
    def total(digest: Digest) -> int:
        return sum(row.fresh + row.stale + row.missing for row in digest.rows)

    return max(0, total(now) - total(before))
