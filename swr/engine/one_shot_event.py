"""An event that in most cases no task waits for."""

import asyncio

import anyio
import anyio.lowlevel


class OneShotEvent:
    """anyio's `Event` at a tenth of its price, until somebody waits."""

    __slots__ = ("_event", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        self._event: asyncio.Event | anyio.Event | None = None

    def is_set(self) -> bool:
        """Return whether it has happened."""
        return self._is_set

    def set(self) -> None:
        """Say that it has happened, for good."""
        self._is_set = True
        if self._event is not None:
            self._event.set()

    async def wait(self) -> None:
        """Wait until it has happened."""
        if self._is_set:
            await anyio.lowlevel.checkpoint()
            return
        if self._event is None:
            self._event = _event()
        await self._event.wait()


def _event() -> asyncio.Event | anyio.Event:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return anyio.Event()
    # What anyio's own consists of, without its finding out each time which event loop this is.
    return asyncio.Event()
