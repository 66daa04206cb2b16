"""The threads that plain `def` loaders run in."""

import asyncio
import contextlib
import math
import threading
from collections.abc import Callable
from typing import Any, Final

import anyio
import anyio.to_thread

# One loader gets fewer threads than there are, so that others go on when it hangs.
_THREADS: Final = 60
_EACH: Final = 40


class Threads:
    """Run functions in threads, so many at a time, and so many for each loader.

    A thread cannot be ended. A load that is cancelled leaves its thread behind; that counts until its function returns.

    Parameters:
        loop: the event loop that runs now, or its token on trio.
    """

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._all = anyio.CapacityLimiter(_THREADS)
        self._each: dict[str, anyio.CapacityLimiter] = {}
        # The counting is done here.
        self._no_limit = anyio.CapacityLimiter(math.inf)

    async def run(self, loader: str, function: Callable[[], Any]) -> Any:
        """Return what `function` returns, called in a thread.

        Parameters:
            loader: whose threads it takes.
        """
        limiter = self._each.get(loader)
        if limiter is None:
            limiter = self._each[loader] = anyio.CapacityLimiter(_EACH)
        place = _Place((limiter, self._all))
        await place.take()
        call = _Call(function, lambda: self._soon(place.give_back))
        try:
            # In a tuple, for trio refuses a thread that returns a coroutine; a `def` may give one all the same.
            (answer,) = await anyio.to_thread.run_sync(call.run, limiter=self._no_limit, abandon_on_cancel=True)
        except anyio.get_cancelled_exc_class():
            if call.abandon():
                place.give_back()
            raise
        except BaseException:
            place.give_back()
            raise
        place.give_back()
        return answer

    def _soon(self, function: Callable[[], None]) -> None:
        """Call `function` in the event loop, from a thread."""
        # The loop may have ended before the thread.
        with contextlib.suppress(RuntimeError):
            if isinstance(self._loop, asyncio.AbstractEventLoop):
                self._loop.call_soon_threadsafe(function)
            else:
                self._loop.run_sync_soon(function)


class _Place:
    """One thread of each of several limits.

    Parameters:
        limiters: in the order in which they are taken.
    """

    def __init__(self, limiters: tuple[anyio.CapacityLimiter, ...]) -> None:
        self._limiters = limiters
        self._taken: list[anyio.CapacityLimiter] = []

    async def take(self) -> None:
        """Wait until there is a thread."""
        try:
            for limiter in self._limiters:
                await limiter.acquire_on_behalf_of(self)
                self._taken.append(limiter)
        except BaseException:
            self.give_back()
            raise

    def give_back(self) -> None:
        """Let others have the thread."""
        while self._taken:
            self._taken.pop().release_on_behalf_of(self)


class _Call:
    """A call in a thread whose caller may not wait for its end.

    Parameters:
        function: what is called.
        left: called in the thread when `function` has returned to nobody.
    """

    def __init__(self, function: Callable[[], Any], left: Callable[[], None]) -> None:
        self._function = function
        self._left = left
        self._lock = threading.Lock()
        self._is_running = False
        self._is_abandoned = False

    def run(self) -> tuple[Any]:
        """Call the function, unless nobody waits for it any more."""
        with self._lock:
            if self._is_abandoned:
                return (None,)
            self._is_running = True
        try:
            return (self._function(),)
        finally:
            if self._ends_abandoned():
                self._left()

    def _ends_abandoned(self) -> bool:
        """Note that the function has returned; return whether nobody waits for it any more."""
        with self._lock:
            self._is_running = False
            return self._is_abandoned

    def abandon(self) -> bool:
        """Say that nobody waits; return whether the function does not run, and will not."""
        with self._lock:
            self._is_abandoned = True
            return not self._is_running
