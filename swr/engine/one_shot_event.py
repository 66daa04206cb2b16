"""An event that in most cases no task waits for, or one."""

import asyncio

import anyio
import anyio.lowlevel


class OneShotEvent:
    """anyio's `Event` at a tenth of its price, until somebody waits."""

    __slots__ = ("_is_set", "_waiting")

    def __init__(self) -> None:
        self._is_set = False
        # On asyncio a future for each task that waits, in the order in which they came.
        self._waiting: dict[asyncio.Future[None], None] | anyio.Event | None = None

    def is_set(self) -> bool:
        """Return whether it has happened."""
        return self._is_set

    def set(self) -> None:
        """Say that it has happened, for good."""
        self._is_set = True
        waiting, self._waiting = self._waiting, None
        if isinstance(waiting, dict):
            for future in waiting:
                if not future.done():
                    future.set_result(None)
        elif waiting is not None:
            waiting.set()

    async def wait(self) -> None:
        """Wait until it has happened."""
        if self._is_set:
            await anyio.lowlevel.checkpoint()
            return
        if self._waiting is None:
            self._waiting = _waiting()
        waiting = self._waiting
        if not isinstance(waiting, dict):
            await waiting.wait()
            return
        # An event of anyio does the same, and finds out each time which event loop this is.
        future = asyncio.get_running_loop().create_future()
        waiting[future] = None
        try:
            await future
        finally:
            waiting.pop(future, None)


def _waiting() -> dict[asyncio.Future[None], None] | anyio.Event:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return anyio.Event()
    return {}
