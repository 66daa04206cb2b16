"""The history that the dashboard's process keeps: 15 minutes of points, and the marks in the plots. Pure."""

import threading
from collections import deque
from typing import Final

from swr.dashboard.parts import Mark, Point
from swr.dashboard.state import History
from swr.dashboard.sums import Sum, quantile, together

# Seconds for which ended processes stay known.
REMEMBERED_FOR: Final = 900.0
_MOST_POINTS: Final = 1000
_MOST_MARKS: Final = 500


class Remembered:
    """The points and marks of the last minutes."""

    def __init__(self) -> None:
        # A thread may add points while the event loop reads them.
        self._lock = threading.Lock()
        self._points: deque[Point] = deque(maxlen=_MOST_POINTS)
        # Pairs of the time when a mark was added, and the mark. The two times can differ: a process can report the loss
        # of Redis only after it has Redis again.
        self._marks: deque[tuple[float, Mark]] = deque(maxlen=_MOST_MARKS)

    def add(self, one: Sum) -> None:
        """Add the point of a sum."""
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
            now: the present time, in seconds since 1970.
            kind, text: see `Mark`.
            at: when the marked event happened, if that was earlier.
        """
        with self._lock:
            self._marks.append((now, {"t": now if at is None else at, "kind": kind, "text": text}))

    def since(self, t: float) -> History:
        """Return the points after a time, and the marks that were added after it."""
        with self._lock:
            points, marks = list(self._points), list(self._marks)
        return {
            "points": [point for point in points if point["t"] > t],
            "marks": [mark for added, mark in marks if added > t],
        }


def together_seconds(whole: Sum) -> tuple[int, ...]:
    """Return the number of loads of all rows in each bucket of durations."""
    counts: list[int] = []
    for row in whole.rows.values():
        counts += [0] * (len(row.seconds) - len(counts))
        for number, count in enumerate(row.seconds):
            counts[number] += count
    return tuple(counts)
