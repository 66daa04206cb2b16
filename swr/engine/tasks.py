"""A group of tasks with one end, as an anyio task group has, at a fifth of its price per task."""

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Final, Self

import anyio

log = logging.getLogger("swr")
# Seconds that a task may disregard its cancellation before it is left behind.
_PATIENCE: Final = 2.0


class Tasks:
    """Tasks on asyncio whose exceptions stay their own; leaving the block waits for all.

    They are cancelled as anyio cancels: again at each await, and not behind a shield. A task that disregards that is
    left behind: it would keep a whole server from ending.
    """

    def __init__(self) -> None:
        # The event loop itself holds tasks only weakly.
        self._scopes: dict[asyncio.Task[None], anyio.CancelScope] = {}
        self._forget = self._scopes.pop
        # For callbacks: a copy of the caller's context variables for each of them would be made for nothing.
        self._nothing = contextvars.Context()
        self._cancelled = False

    def start_soon(
        self, function: Callable[..., Coroutine[Any, Any, None]], scope: anyio.CancelScope, *args: Any
    ) -> None:
        """Run `function(scope, *args)` in a task of its own; all that it does, it does within `scope`."""
        if self._cancelled:
            scope.cancel()
        # Not by the loop's task factory: an eager one would run it before its caller knows of it.
        task = asyncio.Task(function(scope, *args), loop=asyncio.get_running_loop())
        self._scopes[task] = scope
        task.add_done_callback(self._forget, context=self._nothing)

    def cancel(self) -> None:
        """Cancel all that runs, and all that is started from now on."""
        self._cancelled = True
        for scope in list(self._scopes.values()):
            scope.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is GeneratorExit:
            # Their event loop has ended: they cannot be cancelled or awaited.
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
                # They are not left behind, however short the time is.
                self.cancel()
                cancelled = again
        if cancelled is not None:
            raise cancelled
