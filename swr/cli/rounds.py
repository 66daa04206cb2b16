"""The output of `swr refresh`: a line for each round, with sums over all workers."""

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

import msgspec

from swr.cli.shared import write_nowhere
from swr.events import RoundEnded, RoundQueued

RoundEvent = RoundEnded | RoundQueued
_KINDS = {kind.__name__: kind for kind in (RoundEnded, RoundQueued)}
# How many rounds a worker may be behind before the line of a round goes out without its report.
_WAITED_FOR = 2


class Lines:
    """A writer of lines.

    Parameters:
        file: the file to write to.
        gone: called when the reader of a pipe has ended.
    """

    def __init__(self, file: TextIO, gone: Callable[[], None]) -> None:
        self._file = file
        self._gone = gone
        self.are_read = True

    def show(self, line: str) -> None:
        """Write a line at once."""
        try:
            print(line, file=self._file, flush=True)
        except BrokenPipeError:
            self.are_read = False
            write_nowhere(self._file)
            self._gone()


class Totals(msgspec.Struct):
    """The results of a round, over all workers.

    Parameters:
        name: the name of the refresher.
        round: the number of the round; see `RoundEnded`.
        workers: the number of workers that have reported.
        groups, loaded, current, held, failed, commands: see `RoundEnded`; over all workers.
        seconds: the time of the slowest worker.
        queued, merged: `new` and `merged` of `RoundQueued`; 0 without a queue.
        missed: the number of skipped rounds directly before this one.
    """

    name: str
    round: int
    workers: int = 0
    groups: int = 0
    loaded: int = 0
    current: int = 0
    held: int = 0
    failed: int = 0
    commands: int = 0
    seconds: float = 0.0
    queued: int = 0
    merged: int = 0
    missed: int = 0


class Rounds:
    """A collector of the workers' reports, which shows a round when all running workers have reported it.

    Parameters:
        name: the name of the refresher.
        every: seconds from the beginning of one round to the next.
        strategy: "locks", with which each worker looks at all groups, or "queue".
        show: called with each line.
        as_json: whether lines are JSON objects.
    """

    def __init__(self, name: str, every: float, strategy: str, show: Callable[[str], None], as_json: bool) -> None:
        self._name = name
        self._every = every
        self._strategy = strategy
        self._show = show
        self._as_json = as_json
        self._open: dict[int, Totals] = {}
        # The last round that each worker has reported.
        self._last: dict[int, int] = {}

    def begin(self, worker: int) -> None:
        """Note that a worker runs and will report."""
        self._last[worker] = -1

    def end(self, worker: int) -> None:
        """Forget a worker that has ended, so that no round waits for it."""
        del self._last[worker]
        self._look()

    def on_event(self, worker: int, event: RoundEvent) -> None:
        """Add a worker's report to the totals of its round."""
        if event.name != self._name:
            return
        totals = self._open.setdefault(event.number, Totals(event.name, event.number))
        totals.missed = max(totals.missed, event.missed)
        if isinstance(event, RoundQueued):
            totals.queued += event.new
            totals.merged += event.merged
        else:
            self._last[worker] = max(self._last[worker], event.number)
            totals.workers += 1
            totals.seconds = max(totals.seconds, event.seconds)
            if self._strategy == "queue":
                totals.groups += event.groups
            else:
                totals.groups = max(totals.groups, event.groups)
            for name in ("loaded", "current", "held", "failed", "commands"):
                setattr(totals, name, getattr(totals, name) + getattr(event, name))
        self._look()

    def _look(self) -> None:
        """Show the rounds that all workers have reported, and the rounds that are too old to wait for more reports."""
        reported = self._last.values()
        over = max(min(reported, default=sys.maxsize), max(reported, default=0) - _WAITED_FOR)
        for number in sorted(self._open):
            if number <= over:
                totals = self._open.pop(number)
                # Without a report, the round was only enqueued, and its workers ended before they could report it.
                if totals.workers:
                    self._show(self._line(totals))

    def _line(self, totals: Totals) -> str:
        if self._as_json:
            return json.dumps(msgspec.to_builtins(totals))
        words = [
            f"{totals.groups:,} groups",
            *(f"{getattr(totals, name):,} {name}" for name in ("loaded", "current", "held", "failed")),
            f"{totals.seconds:.2f} s",
            f"{totals.commands:,} Redis commands",
            f"{totals.workers} worker{'s' * (totals.workers != 1)}",
        ]
        if self._strategy == "queue":
            words.insert(1, f"{totals.queued:,} queued")
            if totals.merged:
                words.insert(2, f"{totals.merged:,} still queued")
        if totals.missed:
            words.append(f"{totals.missed:,} rounds missed before")
        at = datetime.fromtimestamp(totals.round * self._every, UTC)
        return f"{at:%H:%M:%S} UTC, round {totals.round}: {', '.join(words)}"


def written(event: RoundEvent) -> str:
    """Return an event as a line for the process that started this worker."""
    return json.dumps({"event": type(event).__name__, **msgspec.to_builtins(event)})


def read(line: bytes) -> RoundEvent | None:
    """Return the event in a line of a worker, or None if the line is something else."""
    try:
        fields = json.loads(line)
        return _KINDS[fields.pop("event")](**fields)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
