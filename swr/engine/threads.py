"""The threads that plain `def` loaders run in."""

import asyncio
import contextlib
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

import anyio
import anyio.to_thread

from swr.engine.crossing import LoopEnded, wait_for
from swr.engine.one_shot_event import OneShotEvent

# A loader gets one more thread only if it holds fewer threads than are free. So a loader that hangs takes half of the
# threads, and the next one half of the rest. Many loaders have to hang before no thread is left.
_THREADS: Final = 80


class Threads:
    """A limited number of threads that run functions. The fewer are free, the fewer one loader may have.

    Python cannot stop a thread. A cancelled load leaves its thread behind, which is taken until its function returns.

    Parameters:
        loop: the running event loop, or on trio its token.
    """

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self._free = _THREADS
        # By loader: the number of threads that it holds, and its calls that wait for one.
        self._held: dict[str, int] = {}
        self._waiting: dict[str, deque[OneShotEvent]] = {}
        # This class counts, so anyio must not limit the threads, too.
        self._no_limit = anyio.CapacityLimiter(math.inf)

    async def run(self, loader: str, function: Callable[[], Any]) -> Any:
        """Call `function` in a thread, and return its result.

        Parameters:
            loader: the name of the loader, which takes the thread.
        """
        place = _Place(self, loader)
        await place.take()
        call = _Call(self, place, function)
        try:
            # The result is in a tuple, because trio refuses a coroutine as the result of a thread.
            (answer,) = await anyio.to_thread.run_sync(call.run, limiter=self._no_limit, abandon_on_cancel=True)
        except anyio.get_cancelled_exc_class():
            if call.abandon():
                place.end()
            raise
        except BaseException:
            place.end()
            raise
        place.end()
        return answer

    @property
    def taken(self) -> int:
        """Return how many threads run functions now."""
        return _THREADS - self._free

    async def take(self, loader: str) -> None:
        """Wait until the loader gets a thread."""
        if loader not in self._waiting and self._admits(loader):
            self._give(loader)
            return
        turn = OneShotEvent()
        self._waiting.setdefault(loader, deque()).append(turn)
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():
                self.give_back(loader)
            else:
                self._remove(loader, turn)
            raise

    def _admits(self, loader: str) -> bool:
        return self._held.get(loader, 0) < self._free

    def _give(self, loader: str) -> None:
        self._free -= 1
        self._held[loader] = self._held.get(loader, 0) + 1

    def give_back(self, loader: str) -> None:
        """Give a thread back. The waiting loaders that hold the fewest threads come first."""
        self._free += 1
        self._held[loader] -= 1
        if not self._held[loader]:
            del self._held[loader]
        while self._waiting:
            first = min(self._waiting, key=lambda name: self._held.get(name, 0))
            if not self._admits(first):
                return
            turn = self._waiting[first][0]
            self._remove(first, turn)
            self._give(first)
            turn.set()

    def _remove(self, loader: str, turn: OneShotEvent) -> None:
        """Remove a waiting call, and put its loader behind others that hold as many threads."""
        waiting = self._waiting.pop(loader)
        waiting.remove(turn)
        if waiting:
            self._waiting[loader] = waiting

    def soon(self, function: Callable[[], None]) -> None:
        """Call `function` in the event loop, from a thread."""
        # The loop may have ended before the thread.
        with contextlib.suppress(RuntimeError):
            if isinstance(self.loop, asyncio.AbstractEventLoop):
                self.loop.call_soon_threadsafe(function)
            else:
                self.loop.run_sync_soon(function)


class _Place:
    """The thread of one call, or none while the call lends it to others.

    Parameters:
        threads: the threads from which the call takes one.
        loader: the name of the call's loader.
    """

    __slots__ = ("_is_over", "_is_taken", "_loader", "_threads")

    def __init__(self, threads: Threads, loader: str) -> None:
        self._threads = threads
        self._loader = loader
        self._is_taken = False
        self._is_over = False

    async def take(self) -> None:
        """Wait until there is a thread. If the call has ended meanwhile, give it back at once."""
        await self._threads.take(self._loader)
        self._is_taken = True
        if self._is_over:
            self.give_back()

    def end(self) -> None:
        """Give the thread back for good: the call has ended."""
        self._is_over = True
        self.give_back()

    def give_back(self) -> None:
        """Give the thread back, unless this place has none."""
        if self._is_taken:
            self._is_taken = False
            self._threads.give_back(self._loader)


class _Call:
    """A call in a thread. Its caller may stop waiting before the call ends.

    Parameters:
        threads: the threads that the call runs in.
        place: the thread of the call.
        function: the function to call.
    """

    def __init__(self, threads: Threads, place: _Place, function: Callable[[], Any]) -> None:
        self.threads = threads
        self.place = place
        self._function = function
        self._lock = threading.Lock()
        self._is_running = False
        self._is_abandoned = False

    def run(self) -> tuple[Any]:
        """Call the function, unless its caller has stopped waiting."""
        with self._lock:
            if self._is_abandoned:
                return (None,)
            self._is_running = True
        _current.call = self
        try:
            return (self._function(),)
        finally:
            _current.call = None
            if self._ends_abandoned():
                self.threads.soon(self.place.end)

    def _ends_abandoned(self) -> bool:
        """Note that the function has returned; return whether its caller has stopped waiting."""
        with self._lock:
            self._is_running = False
            return self._is_abandoned

    def abandon(self) -> bool:
        """Note that the caller has stopped waiting; return True if the function does not run now, and never will."""
        with self._lock:
            self._is_abandoned = True
            return not self._is_running


class _Current(threading.local):
    """The call that a thread runs."""

    call: _Call | None = None


_current: Final = _Current()


@contextlib.contextmanager
def lent() -> Iterator[None]:
    """Lend the place of this thread to others in a `with` block, which waits for calls that may need a place."""
    call = _current.call
    if call is None:
        yield
        return
    call.threads.soon(call.place.give_back)
    try:
        yield
    finally:
        with contextlib.suppress(LoopEnded):
            wait_for(call.threads.loop, call.place.take)
