"""Time limits of objects that usually end earlier: one task watches all of them."""

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
        """Handle the end of the object's time limit, which was `seconds`."""


class _Table:
    """The moments at which objects are due.

    Parameters:
        loop: the event loop of the task that watches this table; None: no task watches it.
    """

    def __init__(self, loop: object | None) -> None:
        self.loop = loop
        # When each object is due, in seconds of the event loop's clock; the first object is due first.
        self.due: dict[Due, float] = {}


class Deadlines:
    """A watcher that tells each of many objects when its time is over, unless the object has ended before.

    One task serves all objects, and stays for a while when it has none left. Most objects end long before they are due,
    so a task or a timer for each would cost more than their work.

    Parameters:
        runtime: the runtime of the engine, which starts the task.
        seconds: the time of each object; None: no object is ever due.
    """

    def __init__(self, runtime: Runtime, seconds: float | None) -> None:
        self._runtime = runtime
        self._seconds = seconds
        self._table = _Table(None)

    def begin(self, one: Due) -> None:
        """Begin the time of an object now; this also restarts it."""
        if self._seconds is None:
            return
        loop = running_loop()
        if self._table.loop is not loop:
            self._table = _Table(loop)
            # The task outlives the first object. An empty context keeps no object of that request alive.
            self._runtime.tasks.start(self._watch, self._seconds, self._table, context=Context())
        self._table.due.pop(one, None)
        self._table.due[one] = self._runtime.time() + self._seconds

    def end(self, one: Due) -> None:
        """Forget an object, which has ended."""
        self._table.due.pop(one, None)

    async def _watch(self, seconds: float, table: _Table) -> None:
        due, is_idle = table.due, False
        try:
            while due or not is_idle:
                is_idle = not due
                if is_idle:
                    await anyio.sleep(seconds)
                    continue
                # Take only the time: a local variable for the object would keep it alive during the sleep.
                at = next(iter(due.values()))
                if at > self._runtime.time():
                    await anyio.sleep_until(at)
                else:
                    await _tell_due(due, self._runtime.time(), seconds)
        finally:
            # The event loop ends or the cache is closed, so the objects end, too.
            table.loop = None
            due.clear()


async def _tell_due(due: dict[Due, float], now: float, seconds: float) -> None:
    """Tell all objects whose time is over, one in each turn of the event loop."""
    for one in list(itertools.takewhile(lambda one: due[one] <= now, due)):
        if due.get(one, math.inf) <= now:
            del due[one]
            one.on_due(seconds)
            await anyio.lowlevel.checkpoint()
