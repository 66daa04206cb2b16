"""The lines of rounds: the sums over all workers of a refresher."""

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
# Rounds by which a worker may be behind before the others' line goes out.
_WAITED_FOR = 2


class Lines:
    """Writes lines.

    Parameters:
        file: where to.
        gone: called when the reader there has gone.
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
    """A round over all workers.

    Parameters:
        name: of the refresher.
        round: see `RoundEnded`.
        workers: how many have reported.
        groups, loaded, current, held, failed, commands: see `RoundEnded`; over all workers.
        seconds: of the slowest one.
        queued, merged: `new` and `merged` of `RoundQueued`; 0 without a queue.
        missed: rounds before this one that no process has done.
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
    """Gathers what workers report, and shows a round when all who are there have done their part of it.

    Parameters:
        name: of the refresher.
        every: seconds between two rounds.
        strategy: "locks", where each worker looks at all groups, or "queue".
        show: is given each line.
        as_json: whether it is for programs.
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
        """A worker is there, and will report."""
        self._last[worker] = -1

    def end(self, worker: int) -> None:
        """Forget a worker that is gone, and count its reports."""
        del self._last[worker]
        self._look()

    def on_event(self, worker: int, event: RoundEvent) -> None:
        """Count what a worker reports."""
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
        """Show the rounds that all workers have reported, or that are too old to wait for the rest."""
        reported = self._last.values()
        over = max(min(reported, default=sys.maxsize), max(reported, default=0) - _WAITED_FOR)
        for number in sorted(self._open):
            if number <= over:
                totals = self._open.pop(number)
                # One that was enqueued, and whose workers have left before its end, has not been done.
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
    """Return an event as a line between processes."""
    return json.dumps({"event": type(event).__name__, **msgspec.to_builtins(event)})


def read(line: bytes) -> RoundEvent | None:
    """Return the event that a line is, or None."""
    try:
        fields = json.loads(line)
        return _KINDS[fields.pop("event")](**fields)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
