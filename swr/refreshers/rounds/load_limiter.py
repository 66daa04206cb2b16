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

# Seconds until the next try of a group if swr does not know how long another process holds it.
_SOON: Final = 1.0


class Loader(Protocol):
    """A cached loader, as `Cache.cached` and `Cache.cached_many` return it."""

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
        """The codec of the loader's values."""

    def key(self, *args: Any, **kwargs: Any) -> str:
        """Return the key of a group. Raises ConfigurationError."""

    def begin(self, calls: Iterable[tuple[tuple[Any, ...], int]]) -> list[Flight]:
        """Begin the loads of calls and return their flights. A flight loads nothing if the stored entry is new enough.

        Parameters:
            calls: for each call the arguments, and the version that the entry must be newer than.
        """


class Task(NamedTuple):
    """One group to refresh.

    Parameters:
        key: the cache key of the group.
        args: the arguments of the loader.
        newer_than: the entry must be newer than this version.
    """

    key: str
    args: tuple[Any, ...]
    newer_than: int


class Result(enum.Enum):
    """The result of a task."""

    LOADED = "loaded"
    # The stored entry was new enough, because another caller had loaded it.
    CURRENT = "current"
    # Another process is loading it, or every process backs off after failures.
    HELD = "held"
    FAILED = "failed"
    # Redis is unreachable: nothing was stored there.
    UNREACHABLE = "unreachable"


class Ended(NamedTuple):
    """The end of a task.

    Parameters:
        result: the result.
        again_in: seconds until another try makes sense, if the group was neither loaded nor current.
        error: the reason of a failure.
        stored: the fingerprint of the type of the entry that is stored now; "": there is no entry.
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
        # The number of changes so far. Callers compare it, so that they miss no change between a look and a wait.
        self.changes = 0
        self.counts = dict.fromkeys(Result, 0)
        self._loader = loader
        self._changed = OneShotEvent()

    @property
    def half(self) -> int:
        """Return the most tasks that begin in one call."""
        return max(1, self.at_once // 2)

    @property
    def free_slots(self) -> int:
        """Return how many tasks may begin now: half of `at_once`, or 0 while fewer than that are free.

        The tasks that begin in one call share commands to Redis. One half loads while the other waits for Redis.
        """
        return self.half if self.at_once - self.running >= self.half else 0

    def begin(self, tasks: Sequence[Task], ended: Callable[[Task, Ended], None]) -> None:
        """Begin to load tasks, and call `ended` for each task at its end."""
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
        """Wait until a load ends or `change` is called.

        Parameters:
            seconds: the longest wait; None: no limit.
            changes: the value of `changes` when the caller decided to wait; None: the current value.
        """
        if changes in (None, self.changes):
            with anyio.move_on_after(seconds):
                await self._changed.wait()

    async def drained(self, seconds: float) -> None:
        """Wait until no load is under way, but at most `seconds`."""
        with anyio.move_on_after(seconds):
            while self.running:
                await self.wait()

    def _follow(self, task: Task, flight: Flight, ended: Callable[[Task, Ended], None], again: int) -> None:
        # An async task that waits for the flight would cost as much as some loads do.
        flight.then = (*flight.then, functools.partial(self._look, task, ended, again))

    def _look(self, task: Task, ended: Callable[[Task, Ended], None], again: int, flight: Flight) -> None:
        end = self._judge(task, flight)
        if end is None and again < AGAIN:
            # The load had begun too early for `newer_than`, or an invalidation superseded it.
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
        """Return how `flight` ended `task`, or None if the task needs another flight."""
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
