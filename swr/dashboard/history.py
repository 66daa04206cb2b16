"""The memory of the process that serves the page: 15 minutes of points, and the marks of the plots. Pure."""

import threading
from collections import deque
from typing import Final

from swr.dashboard.parts import Mark, Point
from swr.dashboard.state import History
from swr.dashboard.sums import Sum, quantile, together

# Seconds.
REMEMBERED_FOR: Final = 900.0
_MOST_POINTS: Final = 1000
_MOST_MARKS: Final = 500


class Remembered:
    """The points and marks of the last minutes."""

    def __init__(self) -> None:
        # A thread adds what the event loop asks for.
        self._lock = threading.Lock()
        self._points: deque[Point] = deque(maxlen=_MOST_POINTS)
        # Each with when it was added: a process tells of the loss of Redis when it has Redis again.
        self._marks: deque[tuple[float, Mark]] = deque(maxlen=_MOST_MARKS)

    def add(self, one: Sum) -> None:
        """Add a point."""
        whole = together([one])
        rows = whole.rows.values()
        seconds = together_seconds(whole)
        point: Point = {
            "t": one.t,
            "seconds": one.seconds,
            "fresh": sum(row.fresh for row in rows),
            "stale": sum(row.stale for row in rows),
            "missing": sum(row.missing for row in rows),
            "waited": sum(row.load for row in rows),
            "loads": sum(row.loads for row in rows),
            "failed": sum(row.failed for row in rows),
            "p50": quantile(seconds, 0.5),
            "p99": quantile(seconds, 0.99),
            "processes": one.processes,
        }
        with self._lock:
            self._points.append(point)

    def mark(self, now: float, kind: str, text: str, at: float | None = None) -> None:
        """Add a mark.

        Parameters:
            now: the moment, in seconds since 1970.
            kind, text: see `Mark`.
            at: when it happened, if that was earlier.
        """
        with self._lock:
            self._marks.append((now, {"t": now if at is None else at, "kind": kind, "text": text}))

    def since(self, t: float) -> History:
        """Return what was added after a moment."""
        with self._lock:
            points, marks = list(self._points), list(self._marks)
        return {
            "points": [point for point in points if point["t"] > t],
            "marks": [mark for added, mark in marks if added > t],
        }


def together_seconds(whole: Sum) -> tuple[int, ...]:
    """Return how long the loads of all rows took, by bucket."""
    counts: list[int] = []
    for row in whole.rows.values():
        counts += [0] * (len(row.seconds) - len(counts))
        for number, count in enumerate(row.seconds):
            counts[number] += count
    return tuple(counts)
