"""The only owner of background tasks. A task belongs to the cache, not to the caller that caused it."""

import asyncio
import contextvars
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVarTuple

import anyio
from anyio.abc import TaskGroup

from swr.engine.tasks import Tasks
from swr.errors import ConfigurationError

log = logging.getLogger("swr")
_SETTLED_WITHIN: Final = 2.0
Ts = TypeVarTuple("Ts")


def running_loop() -> object:
    """Return the running event loop, or on trio the token of the current run."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        import trio

        return trio.lowlevel.current_trio_token()


class InUse(ConfigurationError):
    """The cache is in use on another event loop, which still runs."""

    def __init__(self) -> None:
        super().__init__(
            "the cache is in use on another event loop: give each loop (each thread) a Cache of its own, or call "
            "`.sync` in a thread: await asyncio.to_thread(loader.sync, ...)"
        )


class _Draining:
    """A count of the tasks that closing waits for, and whether closing has stopped waiting."""

    def __init__(self) -> None:
        self.is_over = False
        self._busy = 0
        self._idle = anyio.Event()

    def add(self) -> None:
        """Count one more task to wait for."""
        self._busy += 1

    def remove(self) -> None:
        """Count one task less to wait for."""
        self._busy -= 1
        if not self._busy:
            self._idle.set()

    async def wait(self) -> None:
        """Wait until all counted tasks have ended."""
        while self._busy:
            self._idle = anyio.Event()
            await self._idle.wait()


class BackgroundTasks:
    """A runner of tasks on the current event loop, until any task closes it.

    Parameters:
        drain_for: seconds that closing waits for drained tasks before it cancels them.
        cut_off: called at closing if drained tasks still run after `drain_for`, before they are cancelled.
        settle: awaited at closing, for two seconds at most, after the tasks of `start` have ended and before those of
            `start_last` are cancelled.
        ended: called when no task runs any more, because the cache was closed or its event loop has ended.
    """

    _ready: anyio.Event
    _over: anyio.Event
    _scope: type[anyio.CancelScope]
    _draining: _Draining

    def __init__(
        self,
        drain_for: float,
        cut_off: Callable[[], None],
        settle: Callable[[], Awaitable[None]],
        ended: Callable[[], None],
    ) -> None:
        self.drain_for = drain_for
        self._cut_off = cut_off
        self._settle = settle
        self._ended = ended
        self._pid = 0
        self._loop: object | None = None
        # Two threads may find at the same time that the previous event loop has ended.
        self._taking = threading.Lock()
        # On asyncio, the task of `_run`, which owns all other tasks.
        self._root: asyncio.Task[None] | None = None
        self._group: Tasks | TaskGroup | None = None
        self._last: Tasks | TaskGroup | None = None

    @property
    def loop(self) -> object | None:
        """The event loop (on trio its token) that has the cache open, or had it open when the loop ended."""
        return self._loop if self._pid == os.getpid() else None

    def keep_all(self) -> object:
        """Return an object that keeps every task alive, because a forked child cannot end its parent's tasks."""
        return vars(self).copy()

    def forget_threads(self) -> None:
        """Replace the lock in a forked child, because a thread that runs only in the parent may hold it."""
        self._taking = threading.Lock()

    def leave(self) -> None:
        """Forget an event loop that has ended.

        Raises:
            ConfigurationError: the cache is open, or is being opened or closed.
        """
        loop = self._loop
        if loop is not None and self._pid == os.getpid() and not _is_closed(loop):
            raise ConfigurationError(
                "the cache is open already: configure it before its first use, or close it first "
                "(await cache.aclose(), or cache.sync.close())"
            )
        self._loop = self._group = self._last = None

    @property
    def is_open(self) -> bool:
        """Return whether tasks can be started on the running event loop."""
        return self._group is not None and self._loop is running_loop()

    @property
    def is_here(self) -> bool:
        """Return whether the cache is open on the running event loop, or in its last steps of closing there."""
        return self._loop is running_loop()

    @property
    def is_closing(self) -> bool:
        """Return whether tasks are being cancelled, because the cache closes or its event loop ends."""
        # `asyncio.run` cancels every task of a loop that ends, in any order, before one of them goes on.
        is_ending = self._root is not None and self._root.cancelling() > 0
        return is_ending or self._group is None or self._draining.is_over

    async def open(self) -> None:
        """Start to run tasks on the current event loop.

        Raises:
            InUse: another event loop, which still runs, is using the cache.
        """
        loop, pid = running_loop(), os.getpid()
        while self._loop is loop and self._pid == pid and not (self._root is not None and self._root.done()):
            if self._group is not None or not self._ready.is_set():
                # The cache is open, or the task that began to open it was cancelled before `_run` was ready.
                await self._ready.wait()
                return
            # The cache is being closed, and can start no more tasks.
            await self._over.wait()
        with self._taking:
            if self._loop not in (None, loop) and self._pid == pid and not is_over(self._loop):
                raise InUse
            self._loop, self._pid = loop, pid
        # Clear the state of a previous event loop that ended without closing the cache.
        self._group = self._last = None
        self._ended()
        # The scope class of this backend: `anyio.CancelScope()` would look up the backend at each call.
        self._scope = type(anyio.CancelScope())
        self._ready, self._stop, self._over = anyio.Event(), anyio.Event(), anyio.Event()
        self._draining = _Draining()
        # An empty context: tasks must not inherit the context variables of the first caller.
        context = contextvars.Context()
        if isinstance(loop, asyncio.AbstractEventLoop):
            self._root = context.run(asyncio.Task, self._run(Tasks(), Tasks(), self._draining), loop=loop)
        else:
            import trio

            self._root = None
            groups = anyio.create_task_group(), anyio.create_task_group()
            trio.lowlevel.spawn_system_task(self._run, *groups, self._draining, context=context)
        await self._ready.wait()

    async def _run(self, group: Tasks | TaskGroup, last: Tasks | TaskGroup, draining: _Draining) -> None:
        # Keep these events: another event loop may have replaced the attributes by the time that this one ends.
        stop, over = self._stop, self._over
        try:
            async with last:
                async with group:
                    self._group, self._last = group, last
                    self._ready.set()
                    try:
                        await stop.wait()
                        with anyio.move_on_after(self.drain_for) as limit:
                            await draining.wait()
                        if limit.cancelled_caught:
                            self._cut_off()
                    finally:
                        draining.is_over = True
                    _cancel(group)
                if self._last is last:
                    # From now on no code would wait for a new task.
                    self._group = None
                with anyio.move_on_after(_SETTLED_WITHIN):
                    await self._settle()
                _cancel(last)
        finally:
            if self._last is last:
                self._group = self._last = None
                self._loop = None
                self._ended()
            over.set()

    def new_scope(self) -> anyio.CancelScope:
        """Return a cancel scope without a look-up of the backend. The cache must be open on this event loop."""
        return self._scope()

    def start(
        self,
        function: Callable[[*Ts], Awaitable[Any]],
        *args: *Ts,
        drained: bool = False,
        context: contextvars.Context | None = None,
    ) -> anyio.CancelScope:
        """Run `function(*args)` in a task of its own; return the scope that cancels the task.

        Parameters:
            drained: whether closing waits for the task.
            context: the context variables of the task; None: a copy of the caller's.
        """
        assert self._group is not None
        draining = self._draining if drained else None
        if draining is not None:
            draining.add()
        run, scope = self._group.start_soon, self._scope()
        if context is None:
            run(self._guard, scope, function, args, draining)
        else:
            context.run(run, self._guard, scope, function, args, draining)
        return scope

    def start_last(self, function: Callable[[*Ts], Awaitable[Any]], *args: *Ts) -> None:
        """Run `function(*args)` in a task that outlives all tasks of `start`, because they may need it."""
        assert self._last is not None
        self._last.start_soon(self._guard, self._scope(), function, args, None)

    async def _guard(
        self,
        scope: anyio.CancelScope,
        function: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        draining: _Draining | None,
    ) -> None:
        with scope:
            try:
                await function(*args)
            except Exception:
                log.exception("a background task failed")
            finally:
                if draining is not None:
                    draining.remove()

    async def aclose(self) -> None:
        """Wait for the drained tasks, then cancel all others."""
        self._stop.set()
        with anyio.CancelScope(shield=True):
            await self._over.wait()


def _cancel(group: Tasks | TaskGroup) -> None:
    if isinstance(group, Tasks):
        group.cancel()
    else:
        group.cancel_scope.cancel()


def is_over(loop: object) -> bool:
    """Return whether an event loop does not run: it has ended, or pauses between two runs."""
    # A trio run cannot end before `_run`, which then makes the cache forget that run.
    return isinstance(loop, asyncio.AbstractEventLoop) and not loop.is_running()


def _is_closed(loop: object) -> bool:
    """Return whether an event loop cannot run again. A loop that only pauses between two runs can."""
    return isinstance(loop, asyncio.AbstractEventLoop) and loop.is_closed()
