"""The only owner of background tasks: what it starts belongs to the cache, not to the caller that caused it."""

import asyncio
import contextvars
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVarTuple

import anyio
from anyio.abc import TaskGroup

from swr.errors import ConfigurationError
from swr.tasks import Tasks

log = logging.getLogger("swr")
_SETTLED_WITHIN: Final = 2.0
Ts = TypeVarTuple("Ts")


def running_loop() -> object:
    """Return what stands for the event loop that runs now."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        import trio

        return trio.lowlevel.current_trio_token()


class Revalidator:
    """Runs tasks on the current event loop until it is closed, whoever opens and whoever closes it.

    Parameters:
        drain_for: seconds that running tasks are given at closing before they are cancelled.
        settle: awaited at closing, for two seconds at most, between the end of what `start` has started and that of
            what `start_last` has.
        ended: called when no task runs any more, whether it was closed or its event loop ended.
    """

    _ready: anyio.Event

    def __init__(self, drain_for: float, settle: Callable[[], Awaitable[None]], ended: Callable[[], None]) -> None:
        self._drain_for = drain_for
        self._settle = settle
        self._ended = ended
        self._pid = 0
        self._loop: object | None = None
        # On asyncio, the task that all others hang on.
        self._root: asyncio.Task[None] | None = None
        self._group: Tasks | TaskGroup | None = None
        self._last: Tasks | TaskGroup | None = None
        self._busy = 0

    @property
    def is_open(self) -> bool:
        """Whether tasks can be started here and now."""
        return self._group is not None and self._loop is running_loop()

    @property
    def is_closing(self) -> bool:
        """Whether tasks are being cancelled because of closing, or because the event loop ends."""
        return self._group is None or self._cancelling

    async def open(self) -> None:
        """Take the current event loop.

        Raises:
            ConfigurationError: another event loop, which still runs, is using the cache.
        """
        loop, pid = running_loop(), os.getpid()
        if self._loop is loop and self._pid == pid and not (self._root is not None and self._root.done()):
            # Whoever began with this was cancelled before it had come to anything.
            await self._ready.wait()
            return
        if self._loop not in (None, loop) and self._pid == pid and not _is_over(self._loop):
            raise ConfigurationError(
                "the cache is in use on another event loop: give each loop (each thread) a Cache of its own"
            )
        # Whatever the last event loop left behind when it ended without a word.
        self._group = self._last = None
        self._ended()
        self._loop, self._pid = loop, pid
        self._ready, self._stop, self._over = anyio.Event(), anyio.Event(), anyio.Event()
        self._idle = anyio.Event()
        self._busy = 0
        self._cancelling = False
        # In an empty context: whoever happens to be first must not lend its context variables to all.
        context = contextvars.Context()
        if isinstance(loop, asyncio.AbstractEventLoop):
            self._root = context.run(loop.create_task, self._run(Tasks(), Tasks()))
        else:
            import trio

            groups = anyio.create_task_group(), anyio.create_task_group()
            trio.lowlevel.spawn_system_task(self._run, *groups, context=context)
        await self._ready.wait()

    async def _run(self, group: Tasks | TaskGroup, last: Tasks | TaskGroup) -> None:
        # Another event loop may have taken over by the time that this one ends.
        stop, over = self._stop, self._over
        try:
            async with last:
                async with group:
                    self._group, self._last = group, last
                    self._ready.set()
                    try:
                        await stop.wait()
                    except BaseException:
                        # Unless this loop was left, and this is another's by now.
                        if self._group is group:
                            self._cancelling = True
                        raise
                    with anyio.move_on_after(self._drain_for):
                        while self._busy:
                            self._idle = anyio.Event()
                            await self._idle.wait()
                    self._cancelling = True
                    _cancel(group)
                with anyio.move_on_after(_SETTLED_WITHIN):
                    await self._settle()
                _cancel(last)
        finally:
            if self._group is group:
                self._group = self._last = None
                self._loop = None
                self._ended()
            over.set()

    def start(
        self,
        function: Callable[[*Ts], Awaitable[Any]],
        *args: *Ts,
        drained: bool = False,
        context: contextvars.Context | None = None,
    ) -> None:
        """Run `function(*args)` in a task of its own.

        Parameters:
            drained: closing waits for it.
            context: what it sees of context variables; by default a copy of the caller's.
        """
        assert self._group is not None
        if drained:
            self._busy += 1
        run = self._group.start_soon
        if context is None:
            run(self._guard, function, args, drained)
        else:
            context.run(run, self._guard, function, args, drained)

    def start_last(self, function: Callable[[*Ts], Awaitable[Any]], *args: *Ts) -> None:
        """Run `function(*args)` in a task that ends after all that `start` has started, and may be needed for that."""
        assert self._last is not None
        self._last.start_soon(self._guard, function, args, False)

    async def _guard(self, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...], drained: bool) -> None:
        try:
            await function(*args)
        except Exception:
            log.exception("a background task failed")
        finally:
            if drained:
                self._busy -= 1
                self._idle.set()

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


def _is_over(loop: object) -> bool:
    # A run of trio does not end without `_run` saying so.
    return isinstance(loop, asyncio.AbstractEventLoop) and not loop.is_running()
