"""What the demo shows: a table that builds up during the tour, and the figures at its end."""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from examples.demo.client import Answer

STATES: Final = ("fresh", "stale", "missing")
_STYLES: Final = {"fresh": "green", "stale": "yellow", "missing": "red", "added": "cyan"}
_COLUMNS: Final = ("second", "request", "state", "worker", "ms", "loads so far", "requests")
_LINE: Final = "{:>6}  {:<19} {:<7}  {:>7}  {:>7}  {:>12}  {:>8}"
_ROWS: Final = 16


class Progress:
    """A sample of the answers: each second (half a second in a terminal) the last one of each state.

    Parameters:
        console: where to.
        loads: gives the number of loads so far.
        live: whether to redraw one table in place, or to print line after line.
    """

    def __init__(self, console: Console, loads: Callable[[], int], live: bool) -> None:
        self.milliseconds: dict[str, list[float]] = defaultdict(list)
        self._console = console
        self._loads = loads
        self._live = Live(console=console, auto_refresh=False) if live else None
        self._rows: deque[tuple[str, ...]] = deque(maxlen=max(4, min(_ROWS, console.height - 8)))
        self._latest: dict[str, Answer] = {}
        self._start = time.monotonic()

    @property
    def requests(self) -> int:
        """How many rankings have been asked for."""
        return sum(len(self.milliseconds[state]) for state in STATES)

    def on_answer(self, answer: Answer) -> None:
        """Take note of an answer."""
        self.milliseconds[answer.state].append(answer.milliseconds)
        self._latest[answer.state] = answer

    async def run(self) -> None:
        """Show what is new, again and again."""
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


def figures(
    progress: Progress,
    loads: int,
    seconds: float,
    uncached: Sequence[float],
    uncached_loads: int,
    uncached_seconds: float,
) -> Table:
    """Return the closing table: times by state, loads against requests, and the same without the cache."""
    rows = [_figures(state, progress.milliseconds[state]) for state in STATES]
    together = [milliseconds for state in STATES for milliseconds in progress.milliseconds[state]]
    rows.append(_figures("with the cache", together, loads, seconds))
    rows.append(_figures("without the cache", uncached, uncached_loads, uncached_seconds))
    return _table(("", "requests", "loads", "requests/s", "p50 ms", "p99 ms"), rows, left=("",))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of `values` that is not exceeded by `percent` % of them."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


def _figures(
    name: str, milliseconds: Sequence[float], loads: int | None = None, seconds: float | None = None
) -> tuple[str, ...]:
    times = [f"{percentile(milliseconds, percent):,.1f}" if milliseconds else "" for percent in (50, 99)]
    rate = "" if seconds is None else f"{len(milliseconds) / seconds:,.0f}"
    return (name, f"{len(milliseconds):,}", "" if loads is None else f"{loads:,}", rate, *times)


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
