"""The output of the demo: a table that grows during the tour, and the figures at its end."""

import asyncio
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from examples.demo.client import Answer

STATES: Final = ("fresh", "stale", "missing")
_STYLES: Final = {"fresh": "green", "stale": "yellow", "missing": "red", "added": "cyan"}
_COLUMNS: Final = ("second", "request", "state", "worker", "ms", "loads", "requests")
_LINE: Final = "{:>6}  {:<19} {:<7}  {:>7}  {:>7}  {:>7}  {:>8}"
_ROWS: Final = 16


class Progress:
    """A sample of the answers: the last one of each state in each second (half a second in a terminal).

    Parameters:
        console: where to print.
        loads: returns the number of loads so far.
        live: whether to redraw one table in place, or to print line after line.
    """

    def __init__(self, console: Console, loads: Callable[[], int], live: bool) -> None:
        self.answers: dict[str, list[Answer]] = defaultdict(list)
        self._console = console
        self._loads = loads
        self._live = Live(console=console, auto_refresh=False) if live else None
        self._rows: deque[tuple[str, ...]] = deque(maxlen=max(4, min(_ROWS, console.height - 8)))
        self._latest: dict[str, Answer] = {}
        self._start = time.monotonic()

    @property
    def requests(self) -> int:
        """How many requests for rankings were answered."""
        return sum(len(self.answers[state]) for state in STATES)

    def on_answer(self, answer: Answer) -> None:
        """Record an answer."""
        self.answers[answer.state].append(answer)
        self._latest[answer.state] = answer

    async def run(self) -> None:
        """Show new answers at intervals, until cancelled."""
        while True:
            await asyncio.sleep(0.5 if self._live else 1)
            self._show()

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        if self._live:
            self._live.start()
        else:
            self._console.print(_LINE.format(*_COLUMNS))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def _show(self) -> None:
        second, loads, requests = f"{time.monotonic() - self._start:.1f}", f"{self._loads():,}", f"{self.requests:,}"
        fresh_first = sorted(self._latest.values(), key=lambda answer: list(_STYLES).index(answer.state))
        self._latest.clear()
        for answer in fresh_first:
            row = (
                second,
                answer.request,
                answer.state,
                answer.worker,
                f"{answer.milliseconds:.1f}",
                loads,
                requests,
            )
            self._rows.append(row)
            if not self._live:
                self._console.print(_LINE.format(*row), highlight=False)
        if self._live:
            self._live.update(_table(_COLUMNS, self._rows, left=("request", "state")), refresh=True)


@dataclass(frozen=True, slots=True)
class Side:
    """One side of the comparison, with or without the cache.

    Parameters:
        name: the name of the side.
        milliseconds: for each answered request, the time from when it was due to its answer.
        loads: how often the database was asked.
    """

    name: str
    milliseconds: Sequence[float]
    loads: int


def states_table(progress: Progress) -> Table:
    """Return a table of how many requests were answered in each state, and how long they took."""
    rows = [
        (state, f"{len(progress.answers[state]):,}", *_times([each.milliseconds for each in progress.answers[state]]))
        for state in STATES
    ]
    return _table(("state", "requests", "p50 ms", "p99 ms"), rows, left=("state",))


def comparison(due: int, sides: Sequence[Side]) -> Table:
    """Return a table of both sides, which had the same requests at the same rate.

    In the percentiles, a request without an answer counts as one that waits for ever.
    """
    rows = []
    for side in sides:
        waited = [*side.milliseconds, *[math.inf] * (due - len(side.milliseconds))]
        rows.append((side.name, f"{due:,}", f"{len(side.milliseconds):,}", f"{side.loads:,}", *_times(waited)))
    return _table(("", "due", "answered", "loads", "p50 ms", "p99 ms"), rows, left=("",))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of `values` that at least `percent` % of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


def _times(milliseconds: Sequence[float]) -> list[str]:
    values = [percentile(milliseconds, percent) for percent in (50, 99)] if milliseconds else []
    return ["never" if value == math.inf else f"{value:,.1f}" for value in values] or ["", ""]


def _table(
    columns: Sequence[str], rows: Sequence[tuple[str, ...]] | deque[tuple[str, ...]], left: tuple[str, ...]
) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    for row in rows:
        state = next((cell for cell in row if cell in _STYLES), "")
        table.add_row(*row, style=_STYLES.get(state))
    return table
