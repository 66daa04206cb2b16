"""Calls from code that is not async into an event loop: the loop of the cache, or one in a thread of its own."""

import asyncio
import atexit
import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar, TypeVarTuple
from weakref import WeakSet

import anyio
import anyio.from_thread
import anyio.to_thread

from swr.engine.background import BackgroundTasks, InUse, is_over, running_loop
from swr.engine.crossing import LoopEnded, is_in_loop, wait_for
from swr.engine.threads import lent
from swr.errors import ConfigurationError, SWRError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# Seconds that a thread waits for the end of an event loop, and how many times it checks in that time.
_ENDS_WITHIN: Final = 5.0
_LOOKS: Final = 500
# Retries of a call, because an event loop may end between the check of the loop and the call.
_TRIES: Final = 2
# Libraries that replace threads by greenlets: a module, its function that tells whether it did, and the argument.
_REPLACERS: Final = (
    ("gevent.monkey", "is_module_patched", "threading"),
    ("eventlet.patcher", "is_monkey_patched", "thread"),
)


class Portal:
    """The way for threads to call async functions in the event loop that has the cache open.

    If the cache is closed, the call runs in the loop that the thread works for, such as that of a `def` endpoint. If
    there is none, the portal starts a loop in a thread of its own. A forked child starts its own thread.

    Parameters:
        tasks: the background tasks, which know the event loop of the cache.
        close: closes the cache, in its event loop.
    """

    def __init__(self, tasks: BackgroundTasks, close: Callable[[], Awaitable[None]]) -> None:
        self._tasks = tasks
        self._close = close
        self._lock = threading.Lock()
        self._own: _OwnLoop | None = None
        _PORTALS.add(self)

    def call(self, what: str, function: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `function`, called and awaited in the event loop.

        Parameters:
            what: names the call in errors.

        Raises:
            ConfigurationError: this thread must not be blocked, because it runs an event loop or greenlets.
            SWRError: the event loop has ended meanwhile, or the interpreter is ending.
            Exception: whatever `function` raised.
        """
        greenlets = _greenlets()
        if greenlets:
            raise ConfigurationError(
                f"{what} needs threads, which {greenlets} has replaced: run this program with threads or processes, "
                "such as gunicorn's gthread or Celery's prefork"
            )
        if is_in_loop():
            raise ConfigurationError(
                f"{what} would block the event loop that runs here: await the call without .sync, or use a thread"
            )
        if sys.is_finalizing():
            # At this point no other thread runs any more, and this thread cannot wait.
            raise SWRError(f"{what} comes too late: the interpreter is ending")
        with lent():
            for _ in range(_TRIES):
                loop = self._loop()
                try:
                    return wait_for(loop, function)
                except LoopEnded:
                    _let_end(loop)
            return wait_for(self._loop(), function)

    def _loop(self) -> object:
        """Return the event loop for a call from this thread."""
        loop = self._tasks.loop
        if loop is None or is_over(loop):
            loop = _loop_of_worker() or self._own_loop()
        return loop

    def close(self) -> None:
        """Close the cache, wherever it is open, and end the portal's own thread."""
        loop = self._tasks.loop
        if loop is not None and not (self._own is not None and self._own.loop is loop):
            self.call("cache.sync.close()", self._close)
        self.stop()

    def stop(self) -> None:
        """End the portal's own thread, if there is one; close the cache first, if it is open there."""
        with self._lock:
            own, self._own = self._own, None
        if own is not None:
            own.stop(self._close if self._tasks.loop is own.loop else None)

    def is_elsewhere(self) -> bool:
        """Return whether this thread runs an event loop, but another event loop of the program has the cache open."""
        try:
            if self._tasks.is_here:
                return False
        except (ImportError, RuntimeError):
            # No event loop runs here, and trio may not be installed.
            return False
        loop, own = self._tasks.loop, self._own
        return loop is not None and not (own is not None and own.loop is loop) and not is_over(loop)

    async def reach(self, function: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> None:
        """Await an invalidation, `function(*args)`, in the event loop that has the cache open; here if it is closed.

        Raises:
            SWRError: something blocks that event loop. The loop makes the invalidation as soon as it runs again.
        """
        while True:
            try:
                if not self.is_elsewhere():
                    await function(*args)
                else:
                    call = functools.partial(self.call, "an invalidation", functools.partial(function, *args))
                    # Without the shield, a cancelled caller would not even get a thread.
                    with anyio.CancelScope(shield=True):
                        await anyio.to_thread.run_sync(call)
            except InUse:
                # Another event loop has taken the cache meanwhile.
                continue
            return

    async def give_way(self) -> None:
        """Close the cache in the portal's own event loop, if it is open there, so that the running loop can open it."""
        own = self._own
        if own is not None and own.loop is not running_loop() and self._tasks.loop is own.loop:
            await anyio.to_thread.run_sync(self.stop)

    def _own_loop(self) -> object:
        with self._lock:
            if self._own is None or self._own.loop.is_closed():
                self._own = _OwnLoop()
            return self._own.loop

    def forget(self) -> None:
        """Forget the portal's own thread in a forked child, where the thread of the parent does not run."""
        self._lock = threading.Lock()
        self._tasks.forget_threads()
        if self._own is not None:
            # Python would warn if the parent's event loop and tasks were destroyed here, so keep them alive.
            _INHERITED.append((self._own, self._tasks.keep_all()))
            self._own = None


def _greenlets() -> str:
    """Return the name of the library that has replaced threads, or an empty string.

    Greenlets share one thread. A greenlet that blocked it to wait for an event loop would keep the loop from running.
    """
    for name, asks, module in _REPLACERS:
        patcher = sys.modules.get(name)
        if patcher is not None and getattr(patcher, asks)(module):
            return name.partition(".")[0]
    return ""


class _OwnLoop:
    """An event loop in a thread, until it is stopped."""

    loop: asyncio.AbstractEventLoop
    _end: asyncio.Event

    def __init__(self) -> None:
        began = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(began)), name="swr", daemon=True)
        self._thread.start()
        began.wait()

    async def _main(self, began: threading.Event) -> None:
        self.loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        began.set()
        await self._end.wait()

    def stop(self, close: Callable[[], Awaitable[None]] | None) -> None:
        """Call `close` in the loop, and end it."""
        try:
            if close is not None:
                wait_for(self.loop, close)
        finally:
            # The loop may have ended already.
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._end.set)
            self._thread.join(_ENDS_WITHIN)


_PORTALS: Final[WeakSet[Portal]] = WeakSet()
_INHERITED: Final[list[object]] = []


def _stop_all() -> None:
    for portal in list(_PORTALS):
        portal.stop()


def _forget_all() -> None:
    for portal in list(_PORTALS):
        portal.forget()


atexit.register(_stop_all)
# Windows has no `os.register_at_fork`.
with contextlib.suppress(AttributeError):
    os.register_at_fork(after_in_child=_forget_all)


def _let_end(loop: object) -> None:
    """Wait until an event loop that cancels its tasks has ended, for `_ENDS_WITHIN` seconds at most."""
    looks = 0
    while looks < _LOOKS and isinstance(loop, asyncio.AbstractEventLoop) and loop.is_running():
        looks += 1
        time.sleep(_ENDS_WITHIN / _LOOKS)


def _loop_of_worker() -> object | None:
    """Return the event loop that this worker thread of anyio works for, or None."""
    try:
        return anyio.from_thread.run_sync(running_loop)
    except RuntimeError:
        return None
