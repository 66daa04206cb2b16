"""Runs the loads of a refresher, a limited number at a time, and reports the result of each."""

import enum
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

import anyio

from swr.core.codec import Codec
from swr.engine.engine import AGAIN, Engine
from swr.engine.flights import Flight
from swr.engine.one_shot_event import OneShotEvent
from swr.engine.results import LocalOnly, NoValue, Stored, Unstored
from swr.errors import StoreUnavailable, SWRError

# Where it is not known for how long somebody else has it.
_SOON: Final = 1.0


class Loader(Protocol):
    """A cached loader: what `Cache.cached` and `Cache.cached_many` make."""

    @property
    def engine(self) -> Engine:
        """The engine that runs the loads."""

    @property
    def template(self) -> str:
        """The key template."""

    @property
    def stays_here(self) -> bool:
        """Return whether its values are not shared with other processes."""

    @property
    def codec(self) -> Codec:
        """The codec of its values."""

    def key(self, *args: Any, **kwargs: Any) -> str:
        """Return the key of a group. Raises ConfigurationError."""

    def begin(self, calls: Iterable[tuple[tuple[Any, ...], int]]) -> list[Flight]:
        """Begin to load, unless what is stored is newer than a version."""


class Task(NamedTuple):
    """One group to refresh.

    Parameters:
        key: of its entry.
        args: of its loader.
        newer_than: the entry must be newer than this version.
    """

    key: str
    args: tuple[Any, ...]
    newer_than: int


class Result(enum.Enum):
    """The result of a task."""

    LOADED = "loaded"
    # Somebody else had loaded it in time.
    CURRENT = "current"
    # Another process is loading it, or every process backs off after failures.
    HELD = "held"
    FAILED = "failed"
    # Redis is unreachable: nothing was stored there.
    UNREACHABLE = "unreachable"


class Ended(NamedTuple):
    """The end of a task.

    Parameters:
        result: what came of it.
        again_in: seconds until it is worth another try, where it was not done.
        error: why it failed.
        stored: the fingerprint of the entry that there is now; "": there is none.
    """

    result: Result
    again_in: float = 0.0
    error: BaseException | None = None
    stored: str = ""


class LoadLimiter:
    """Runs a limited number of tasks at a time.

    Parameters:
        loader: loads each group.
        at_once: the most loads that run at a time.
    """

    def __init__(self, loader: Loader, at_once: int) -> None:
        self.at_once = at_once
        self.running = 0
        # Counts the changes, so that none is missed between a look and a wait.
        self.changes = 0
        self.counts = dict.fromkeys(Result, 0)
        self._loader = loader
        self._changed = OneShotEvent()

    @property
    def half(self) -> int:
        """Return how many tasks begin in one call, at most."""
        return max(1, self.at_once // 2)

    @property
    def free_slots(self) -> int:
        """Return how many tasks may begin now: half of `at_once`, or 0 while fewer than that are free.

        The tasks that begin in one call share commands to Redis. One half loads while the other waits for Redis.
        """
        return self.half if self.at_once - self.running >= self.half else 0

    def begin(self, tasks: Sequence[Task], ended: Callable[[Task, Ended], None]) -> None:
        """Begin to load; `ended` is called for each when it is over."""
        flights = self._loader.begin((task.args, task.newer_than) for task in tasks)
        self.running += len(tasks)
        for task, flight in zip(tasks, flights, strict=True):
            self._follow(task, flight, ended, 0)

    def change(self) -> None:
        """Wake everything that waits for a change."""
        self.changes += 1
        changed, self._changed = self._changed, OneShotEvent()
        changed.set()

    async def wait(self, seconds: float | None = None, changes: int | None = None) -> None:
        """Wait until a load has ended or somebody has said `change`, for some seconds at most.

        Parameters:
            changes: how many there had been when the caller decided to wait; None: as many as now.
        """
        if changes in (None, self.changes):
            with anyio.move_on_after(seconds):
                await self._changed.wait()

    async def drained(self, seconds: float) -> None:
        """Wait until no load is under way, for some seconds at most."""
        with anyio.move_on_after(seconds):
            while self.running:
                await self.wait()

    def _follow(self, task: Task, flight: Flight, ended: Callable[[Task, Ended], None], again: int) -> None:
        # No task of its own waits for each: that would cost as much as many a load.
        flight.then = (*flight.then, functools.partial(self._look, task, ended, again))

    def _look(self, task: Task, ended: Callable[[Task, Ended], None], again: int, flight: Flight) -> None:
        end = self._judge(task, flight)
        if end is None and again < AGAIN:
            # It had begun too early, or was overtaken by an invalidation.
            try:
                (flight,) = self._loader.begin([(task.args, task.newer_than)])
            except SWRError as error:
                end = Ended(Result.HELD, _SOON, error)
            else:
                self._follow(task, flight, ended, again + 1)
                return
        end = end or Ended(Result.HELD, _SOON)
        self.running -= 1
        self.counts[end.result] += 1
        self.change()
        ended(task, end)

    def _judge(self, task: Task, flight: Flight) -> Ended | None:
        """Return how `task` ended with `flight`; None: it is to be begun again."""
        if flight.error is not None:
            if isinstance(flight.error, StoreUnavailable):
                return Ended(Result.UNREACHABLE, _SOON, flight.error)
            again_in = self._loader.engine.backoffs.left(task.key)
            return Ended(Result.HELD if flight.load is None else Result.FAILED, again_in or _SOON, flight.error)
        if flight.superseded:
            return None
        match flight.result:
            case LocalOnly():
                return Ended(Result.UNREACHABLE, _SOON)
            case Stored(entry):
                version = entry.version
            case NoValue() | Unstored():
                version = 0 if flight.load is None else flight.load.version
            case _:
                return Ended(Result.HELD, self._loader.engine.backoffs.left(task.key) or _SOON)
        if version <= task.newer_than:
            return None
        is_stored = flight.loaded is not None and not isinstance(flight.result, Unstored)
        stored = flight.job.codec.fingerprint if is_stored else ""
        return Ended(Result.CURRENT if flight.load is None else Result.LOADED, stored=stored)
