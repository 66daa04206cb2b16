"""The opening of a cache. In each event loop one opening runs at a time, and at most one event loop gets the cache."""

from collections.abc import Callable

import anyio

from swr.engine.background import running_loop
from swr.engine.notifications import Notifications
from swr.engine.portal import Portal
from swr.engine.runtime import Runtime


class Opening:
    """The opening of a cache on the running event loop.

    Parameters:
        runtime: the runtime of the engine; its tasks know which event loop has the cache.
        portal: closes the cache in the portal's own event loop, if it is open there.
        notifications: receives the notifications of the store.

    Attributes:
        on_opened: functions that every opening calls when tasks can be started.
        is_done: whether the store is open.
    """

    def __init__(self, runtime: Runtime, portal: Portal, notifications: Notifications) -> None:
        self._runtime = runtime
        self._portal = portal
        self._notifications = notifications
        # The end of the opening, by event loop: two event loops may try to open the cache at the same time.
        self._under_way: dict[object, anyio.Event] = {}
        self.on_opened: list[Callable[[], object]] = []
        self.is_done = False

    async def run(self) -> None:
        """Open the cache. If an opening is under way in this event loop, only wait until it succeeds or fails.

        Raises:
            InUse: the cache is in use on another event loop.
        """
        loop = running_loop()
        over = self._under_way.get(loop)
        if over is not None:
            await over.wait()
            return
        self._under_way[loop] = over = anyio.Event()
        try:
            with anyio.CancelScope(shield=True):
                await self._open(loop)
        finally:
            del self._under_way[loop]
            over.set()

    async def _open(self, loop: object) -> None:
        runtime = self._runtime
        await self._portal.give_way()
        await runtime.tasks.open()
        runtime.enter(loop)
        try:
            await runtime.store.open(runtime.tasks.start_last, self._notifications.handle)
        except BaseException:
            await runtime.tasks.aclose()
            raise
        self.is_done = True
        for begin in self.on_opened:
            begin()
