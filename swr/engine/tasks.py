"""A group of tasks on asyncio, at a fifth of the cost per task of an anyio task group."""

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Final, Self

import anyio

log = logging.getLogger("swr")
# Seconds that a cancelled task has to end before the group leaves it behind.
_PATIENCE: Final = 2.0


class Tasks:
    """A group of tasks on asyncio. An exception of one task does not end the others; leaving the block waits for all.

    The group cancels tasks as anyio does: again at each await, and not behind a shield. It leaves a task behind that
    ignores its cancellation, because such a task would keep a whole server from ending.
    """

    def __init__(self) -> None:
        # This holds the tasks, because the event loop holds only weak references to them.
        self._scopes: dict[asyncio.Task[None], anyio.CancelScope] = {}
        self._forget = self._scopes.pop
        # A context for callbacks. Without it, asyncio would copy the caller's context variables for each callback.
        self._nothing = contextvars.Context()
        self._cancelled = False

    def start_soon(
        self, function: Callable[..., Coroutine[Any, Any, None]], scope: anyio.CancelScope, *args: Any
    ) -> None:
        """Run `function(scope, *args)` in a task of its own. The function must do all its work within `scope`."""
        if self._cancelled:
            scope.cancel()
        # This does not use the loop's task factory: an eager one would run the task before this method returns.
        task = asyncio.Task(function(scope, *args), loop=asyncio.get_running_loop())
        self._scopes[task] = scope
        task.add_done_callback(self._forget, context=self._nothing)

    def cancel(self) -> None:
        """Cancel all running tasks, and all tasks that start from now on."""
        self._cancelled = True
        for scope in list(self._scopes.values()):
            scope.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is GeneratorExit:
            # The event loop has ended, so its tasks can be neither cancelled nor awaited.
            return
        cancelled: BaseException | None = None
        if error is not None:
            self.cancel()
        while self._scopes:
            try:
                done, _ = await asyncio.wait(self._scopes, timeout=_PATIENCE if self._cancelled else None)
                if not done:
                    log.error(
                        "%d tasks of the cache disregard their cancellation, and closing goes on without them: a "
                        "loader must let the CancelledError through",
                        len(self._scopes),
                    )
                    break
            except asyncio.CancelledError as again:
                # This task was cancelled. It cancels the tasks of the group, and still waits for them.
                self.cancel()
                cancelled = again
        if cancelled is not None:
            raise cancelled
