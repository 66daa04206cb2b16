"""Time limits of things that usually end before: one task watches them all."""

import itertools
import math
from contextvars import Context
from typing import Protocol

import anyio
import anyio.lowlevel

from swr.engine.background import running_loop
from swr.engine.runtime import Runtime


class Due(Protocol):
    """Something that may take too long."""

    def on_due(self, seconds: float) -> None:
        """Take note that its time, which was `seconds`, is over."""


class _Table:
    """The moments at which objects are due.

    Parameters:
        loop: the event loop on which a task looks at it, as long as that task runs.
    """

    def __init__(self, loop: object | None) -> None:
        self.loop = loop
        # In seconds of the event loop's clock; the first one is due first.
        self.due: dict[Due, float] = {}


class Deadlines:
    """Tells each of many objects that its time is over, unless it has ended before.

    One task serves all, and waits for others when it has none left. Most end long before they are due, and a task or a
    timer for each would cost more than they do.

    Parameters:
        runtime: of the engine whose task it is.
        seconds: the time of each; None: none is ever due.
    """

    def __init__(self, runtime: Runtime, seconds: float | None) -> None:
        self._runtime = runtime
        self._seconds = seconds
        self._table = _Table(None)

    def begin(self, one: Due) -> None:
        """Note that an object begins now, or again."""
        if self._seconds is None:
            return
        loop = running_loop()
        if self._table.loop is not loop:
            self._table = _Table(loop)
            # It outlives the first object, and keeps nothing of that alive.
            self._runtime.tasks.start(self._watch, self._seconds, self._table, context=Context())
        self._table.due.pop(one, None)
        self._table.due[one] = self._runtime.time() + self._seconds

    def end(self, one: Due) -> None:
        """Forget an object: it is over."""
        self._table.due.pop(one, None)

    async def _watch(self, seconds: float, table: _Table) -> None:
        due, is_idle = table.due, False
        try:
            while due or not is_idle:
                is_idle = not due
                if is_idle:
                    await anyio.sleep(seconds)
                    continue
                # A variable for the object would keep it alive.
                at = next(iter(due.values()))
                if at > self._runtime.time():
                    await anyio.sleep_until(at)
                else:
                    await _tell_due(due, self._runtime.time(), seconds)
        finally:
            # When the event loop ends or the cache is closed, so do they.
            table.loop = None
            due.clear()


async def _tell_due(due: dict[Due, float], now: float, seconds: float) -> None:
    """Tell all objects whose time is over, each in a turn of the event loop."""
    for one in list(itertools.takewhile(lambda one: due[one] <= now, due)):
        if due.get(one, math.inf) <= now:
            del due[one]
            one.on_due(seconds)
            await anyio.lowlevel.checkpoint()
