"""Responses whose bodies take too long to be stored."""

from collections.abc import Awaitable
from typing import Protocol

import anyio

from swr.engine.runtime import Runtime


class Run(Protocol):
    """A run of the app whose response may be stored."""

    def give_up_storing(self, seconds: float) -> Awaitable[None]:
        """Store nothing, and let go of those who wait: the body has not ended in time."""


class SlowBodies:
    """Has runs give up storing a response that has not ended some time after its beginning.

    Parameters:
        runtime: of the engine that runs them.
        longest: seconds that a response may take from its beginning to its end; None: as long as it likes.
    """

    def __init__(self, runtime: Runtime, longest: float | None) -> None:
        self._runtime = runtime
        self._longest = longest
        # When the time of each run is over, in seconds of the event loop's clock; the first one is due first.
        self._due: dict[Run, float] = {}
        self._is_running = False

    def begin(self, run: Run) -> None:
        """Note that the response of a run begins now."""
        if self._longest is None:
            return
        self._due.pop(run, None)
        self._due[run] = self._runtime.time() + self._longest
        if not self._is_running:
            self._is_running = True
            self._runtime.tasks.start(self._watch)

    def end(self, run: Run) -> None:
        """Forget a run: it is over."""
        self._due.pop(run, None)

    async def _watch(self) -> None:
        # One task for all runs: most responses end long before a task for each would be worth its price.
        assert self._longest is not None
        try:
            while self._due:
                run, due = next(iter(self._due.items()))
                if due > self._runtime.time():
                    await anyio.sleep_until(due)
                    continue
                del self._due[run]
                self._runtime.tasks.start(run.give_up_storing, self._longest)
        finally:
            self._is_running = False
            # When the event loop ends or the cache is closed, so do they.
            self._due.clear()
