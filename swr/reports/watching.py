"""Collects events of a process for dashboards, and its calls and hot keys while a dashboard is open."""

import re
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from cachetools import LRUCache

from swr.core.keys import URL_ON_HOST
from swr.engine.engine import Engine
from swr.events import (
    Answered,
    CommandRefused,
    CommitRejected,
    Event,
    Hit,
    Invalidated,
    Loaded,
    LoadFailed,
    Miss,
    RenewalRejected,
    RoundEnded,
    RoundQueued,
    Stale,
    StoreReachable,
    StoreUnreachable,
)
from swr.reports.digest import CallReport, HappeningReport, HotReport, cut

# The most calls that one turn collects, which are the first of that turn.
MOST_CALLS: Final = 64
_MOST_HAPPENINGS: Final = 20
_SHOWN_HOT: Final = 10
_LONGEST: Final = 512
# With each turn, older counts are multiplied by this, so that a key is hot only while it is read.
_FADING: Final = 0.8

_RESPONSE: Final = "GET "
# Matches the tag of all responses of a URL on one host, which requests with unsafe methods invalidate.
_OF_URL: Final = re.compile(rf"{URL_ON_HOST}([^\n]*)\n(?:path:)?url:(/.*)", re.DOTALL)

# Returns the name of the row of a key.
RowOf = Callable[[str], str]


class Watching:
    """A collector of the events and calls of one cache.

    It always collects rare events. Each call publishes an event, so for calls it subscribes in turns: after 64 calls it
    ends the subscription until the next digest. So the cost does not grow with the number of calls, and there is no
    cost while no dashboard is open.

    Parameters:
        engine: publishes the events.
        row_of: returns the name of the loader or route that a key belongs to.
        clean: removes secrets from the text of an error or from a tag.
    """

    def __init__(self, engine: Engine, row_of: RowOf, clean: Callable[[str], str]) -> None:
        self._engine = engine
        self._row_of = row_of
        self._clean = clean
        self._number = 0
        self._happenings: deque[HappeningReport] = deque(maxlen=_MOST_HAPPENINGS)
        self._calls: deque[CallReport] = deque(maxlen=MOST_CALLS)
        self._took: LRUCache[str, float] = LRUCache(MOST_CALLS)
        self._hot: dict[str, float] = {}
        # Key and layer of the last hit. The event of an answer may lack the layer.
        self._hit = ("", "")
        # The number of calls in this turn, and the number of reads when it began.
        self._seen = self._reads = 0
        # The number of calls that were not collected, because a turn had too many.
        self.dropped = 0
        # Callbacks of the dashboards in this process, for calls and for events.
        self._listeners: list[tuple[Callable[[CallReport], object], Callable[[HappeningReport], object]]] = []
        self._end_calls: Callable[[], None] | None = None
        self._end = engine.events.subscribe(self._on_event, _RARE)

    def listen(
        self, on_call: Callable[[CallReport], object], on_happening: Callable[[HappeningReport], object]
    ) -> None:
        """Add callbacks that get each call and each event at once. Adding the same pair again has no effect."""
        if (on_call, on_happening) not in self._listeners:
            self._listeners.append((on_call, on_happening))

    def close(self) -> None:
        """Stop collecting."""
        self.turn(is_open=False)
        self._end()

    def turn(self, *, is_open: bool, reads: int = 0) -> None:
        """Begin the next turn.

        Parameters:
            is_open: whether a dashboard is open.
            reads: the number of reads so far.
        """
        was_cut_short = is_open and self._end_calls is None and self._seen > 0
        if was_cut_short:
            self.dropped += max(0, reads - self._reads - self._seen)
        self._reads = reads
        if not is_open:
            self._seen = 0
            self._hot.clear()
            self._calls.clear()
            if self._end_calls is not None:
                self._pause()
            return
        self._hot = {key: count * _FADING for key, count in self._hot.items() if count > _FADING}
        self._seen = 0
        if self._end_calls is None:
            self._end_calls = self._engine.events.subscribe(self._on_call, _CALLS)

    def _pause(self) -> None:
        assert self._end_calls is not None
        self._end_calls()
        self._end_calls = None

    # -- what is collected ------------------------------------------------------------------------------------

    def happenings(self) -> tuple[HappeningReport, ...]:
        """Return the last events."""
        return tuple(self._happenings)

    def calls(self) -> tuple[CallReport, ...]:
        """Return the last calls."""
        return tuple(self._calls)

    def hot(self) -> tuple[HotReport, ...]:
        """Return the keys that are read most."""
        total = sum(self._hot.values())
        most = sorted(self._hot.items(), key=lambda pair: -pair[1])[:_SHOWN_HOT]
        return tuple(HotReport(cut(key, _LONGEST), self._row_of(key), count / total) for key, count in most)

    def _on_call(self, event: Event) -> None:
        if isinstance(event, Loaded):
            self._took[event.key] = event.seconds
            return
        assert isinstance(event, (Hit, Stale, Miss, Answered))
        is_response = event.key.startswith(_RESPONSE)
        if not isinstance(event, Answered):
            # The number of keys stays small: a turn adds few keys, and forgets those that are no longer read.
            self._hot[event.key] = self._hot.get(event.key, 0.0) + 1.0
            if not isinstance(event, Miss):
                self._hit = event.key, event.layer
        if is_response != isinstance(event, Answered):
            # A request publishes an event for its read and an `Answered`, which says more. Only the latter is a call.
            return
        call = self._answered(event) if isinstance(event, Answered) else self._read(event)
        self._calls.append(call)
        for on_call, _ in self._listeners:
            on_call(call)
        self._seen += 1
        if self._seen >= MOST_CALLS and self._end_calls is not None:
            self._pause()

    def _answered(self, event: Answered) -> CallReport:
        number, now = self._next(), self._engine.clock()
        key, hit_in = self._hit
        # The key of the hit entry begins with the key of the URL; with `Vary`, for example, more follows.
        layer = event.layer or (hit_in or None if key.startswith(event.key) else None)
        return CallReport(
            number,
            now,
            cut(event.key, _LONGEST),
            event.method,
            event.state,
            layer,
            event.seconds,
            event.status,
            cut(event.cache_status, _LONGEST),
        )

    def _read(self, event: Hit | Stale | Miss) -> CallReport:
        state = "fresh" if isinstance(event, Hit) else "stale" if isinstance(event, Stale) else "missing"
        # A miss without a time did not load itself: it joined a flight, or another process loaded the entry.
        took = self._took.pop(event.key, None) if isinstance(event, Miss) else None
        layer = ("flight" if took is None else "load") if isinstance(event, Miss) else event.layer or None
        row = event.loader or event.route or self._row_of(event.key)
        number, now = self._next(), self._engine.clock()
        return CallReport(number, now, cut(event.key, _LONGEST), cut(row, _LONGEST), state, layer, took)

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _on_event(self, event: Event) -> None:
        told = self._told(event)
        if told is None:
            return
        text, key, row, bad = told
        key = None if key is None else cut(key, _LONGEST)
        row = None if row is None else cut(row, _LONGEST)
        text = cut(self._clean(text), _LONGEST)
        happening = HappeningReport(self._next(), self._engine.clock(), type(event).__name__, text, key, row, bad)
        self._happenings.append(happening)
        for _, on_happening in self._listeners:
            on_happening(happening)

    def _told(self, event: Any) -> tuple[str, str | None, str | None, bool] | None:
        """Return a sentence about an event, its key, its row, and whether it is a problem; None: do not show it."""
        match event:
            case LoadFailed(is_outer=True):
                return None
            case LoadFailed():
                row = event.loader or event.route or self._row_of(event.key)
                return f"A load failed after {_lasting(event.seconds)}: {_text_of(event.error)}", event.key, row, True
            case Invalidated():
                return self._invalidated(event)
            case StoreUnreachable():
                return f"Redis is unreachable: {event.reason}", None, None, True
            case StoreReachable():
                return f"Redis is reachable again, after {event.unreachable_for:.1f} s.", None, None, False
            case CommandRefused():
                return f"Redis refused a command: {event.reason}", None, None, True
            case RenewalRejected():
                return "A lease was lost while its load ran.", event.key, self._row_of(event.key), True
            case CommitRejected():
                return "A value was not stored, because something superseded it.", event.key, None, False
            case RoundQueued():
                text = f"A round was enqueued: {event.new} new, {event.merged} still there{_missed(event.missed)}."
                return text, None, event.name, event.missed > 0
            case _:
                done = f"{event.loaded} loaded, {event.failed} failed{_missed(event.missed)}"
                return f"A round took {event.seconds:.1f} s: {done}.", None, event.name, event.failed + event.missed > 0

    def _invalidated(self, event: Invalidated) -> tuple[str, str | None, str | None, bool] | None:
        if event.elsewhere:
            # The process that invalidated reports it.
            return None
        done = "marked stale" if event.soft else "invalidated"
        if event.key is not None:
            return f"A key was {done}.", event.key, None, False
        if event.tag is not None:
            what, name = _named(event.tag)
            # The tag of a URL contains the query, which may hold secrets.
            return f"{what} was {done}.", None, self._clean(name), False
        if event.loader is not None:
            return f"All entries of a loader were {done}.", None, event.loader, False
        return f"Everything was {done}.", None, None, False


def _named(tag: str) -> tuple[str, str]:
    """Return "A tag" or "A URL", whichever the tag means, and its name for people."""
    of_url = _OF_URL.fullmatch(tag)
    return ("A tag", tag) if of_url is None else ("A URL", "".join(of_url.groups()))


def _missed(rounds: int) -> str:
    if not rounds:
        return ""
    return f"; before it {rounds} round{'s were' if rounds > 1 else ' was'} left out"


def _lasting(seconds: float) -> str:
    # The clock of some event loops has a resolution of a millisecond.
    return f"{seconds:.3g} s" if seconds >= 0.001 else "less than 1 ms"


def _text_of(error: BaseException) -> str:
    from swr.engine.failures import text_of

    return " ".join(text_of(error).split())


_RARE: Final = (
    LoadFailed,
    Invalidated,
    StoreUnreachable,
    StoreReachable,
    CommandRefused,
    RenewalRejected,
    CommitRejected,
    RoundQueued,
    RoundEnded,
)
_CALLS: Final = (Hit, Stale, Miss, Loaded, Answered)
