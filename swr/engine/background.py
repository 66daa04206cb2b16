"""The only owner of background tasks: what it starts belongs to the cache, not to the caller that caused it."""

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
    """Return what represents the event loop that runs now."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        import trio

        return trio.lowlevel.current_trio_token()


class InUse(ConfigurationError):
    """Another event loop, which still runs, is using the cache."""

    def __init__(self) -> None:
        super().__init__(
            "the cache is in use on another event loop: give each loop (each thread) a Cache of its own, or call "
            "`.sync` in a thread: await asyncio.to_thread(loader.sync, ...)"
        )


class _Draining:
    """The tasks that closing waits for, and whether it still waits."""

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
        """Wait until there is nothing to wait for."""
        while self._busy:
            self._idle = anyio.Event()
            await self._idle.wait()


class BackgroundTasks:
    """Runs tasks on the current event loop until it is closed, by any task.

    Parameters:
        drain_for: seconds that running tasks are given at closing before they are cancelled.
        cut_off: called at closing, before tasks are cancelled that were given this time.
        settle: awaited at closing, for two seconds at most, between the end of what `start` has started and that of
            what `start_last` has.
        ended: called when no task runs any more, whether it was closed or its event loop ended.
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
        # Two threads may find at once that the event loop of before has ended.
        self._taking = threading.Lock()
        # On asyncio, the task that all others hang on.
        self._root: asyncio.Task[None] | None = None
        self._group: Tasks | TaskGroup | None = None
        self._last: Tasks | TaskGroup | None = None

    @property
    def loop(self) -> object | None:
        """The event loop in which it is open, or was when that ended; on trio its token."""
        return self._loop if self._pid == os.getpid() else None

    def keep_all(self) -> object:
        """Return an object that keeps every task alive, for a child process, which cannot end them."""
        return vars(self).copy()

    def forget_threads(self) -> None:
        """Note that this process is a child, in which one thread runs."""
        self._taking = threading.Lock()

    def leave(self) -> None:
        """Let go of an event loop that has ended.

        Raises:
            ConfigurationError: it is open, or being opened or closed.
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
        """Return whether tasks can be started here and now."""
        return self._group is not None and self._loop is running_loop()

    @property
    def is_here(self) -> bool:
        """Return whether it is open on the event loop that runs now, or in the last steps of being closed there."""
        return self._loop is running_loop()

    @property
    def is_closing(self) -> bool:
        """Return whether tasks are being cancelled because of closing, or because the event loop ends."""
        return self._group is None or self._draining.is_over

    async def open(self) -> None:
        """Take the current event loop.

        Raises:
            InUse: another event loop, which still runs, is using the cache.
        """
        loop, pid = running_loop(), os.getpid()
        while self._loop is loop and self._pid == pid and not (self._root is not None and self._root.done()):
            if self._group is not None or not self._ready.is_set():
                # The task that began this was cancelled before it was ready.
                await self._ready.wait()
                return
            # It is being closed, and no more can be started.
            await self._over.wait()
        with self._taking:
            if self._loop not in (None, loop) and self._pid == pid and not is_over(self._loop):
                raise InUse
            self._loop, self._pid = loop, pid
        # Whatever the last event loop left behind when it ended without a word.
        self._group = self._last = None
        self._ended()
        # The scopes of this event loop: anyio finds out each time which loop that is.
        self._scope = type(anyio.CancelScope())
        self._ready, self._stop, self._over = anyio.Event(), anyio.Event(), anyio.Event()
        self._draining = _Draining()
        # In an empty context: the first caller must not lend its context variables to all.
        context = contextvars.Context()
        if isinstance(loop, asyncio.AbstractEventLoop):
            self._root = context.run(asyncio.Task, self._run(Tasks(), Tasks(), self._draining), loop=loop)
        else:
            import trio

            groups = anyio.create_task_group(), anyio.create_task_group()
            trio.lowlevel.spawn_system_task(self._run, *groups, self._draining, context=context)
        await self._ready.wait()

    async def _run(self, group: Tasks | TaskGroup, last: Tasks | TaskGroup, draining: _Draining) -> None:
        # Another event loop may have taken over by the time that this one ends.
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
                    # A task that starts from now on would have no one to wait for it.
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
        """Return a cancel scope, without looking up which event loop this is; it must be open here."""
        return self._scope()

    def start(
        self,
        function: Callable[[*Ts], Awaitable[Any]],
        *args: *Ts,
        drained: bool = False,
        context: contextvars.Context | None = None,
    ) -> anyio.CancelScope:
        """Run `function(*args)` in a task of its own; return what cancels that.

        Parameters:
            drained: closing waits for it.
            context: what it sees of context variables; by default a copy of the caller's.
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
        """Run `function(*args)` in a task that ends after all that `start` has started, and may be needed for that."""
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
        """Wait for what is drained, then cancel the rest."""
        self._stop.set()
        with anyio.CancelScope(shield=True):
            await self._over.wait()


def _cancel(group: Tasks | TaskGroup) -> None:
    if isinstance(group, Tasks):
        group.cancel()
    else:
        group.cancel_scope.cancel()


def is_over(loop: object) -> bool:
    """Return whether an event loop runs no more, or has stopped for a while."""
    # A run of trio does not end without `_run` saying so.
    return isinstance(loop, asyncio.AbstractEventLoop) and not loop.is_running()


def _is_closed(loop: object) -> bool:
    """Return whether an event loop will never run again, rather than has stopped for a while."""
    return isinstance(loop, asyncio.AbstractEventLoop) and loop.is_closed()
