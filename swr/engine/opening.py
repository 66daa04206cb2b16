"""Opening a cache: once at a time in each event loop, of which one at most gets it."""

from collections.abc import Callable

import anyio

from swr.engine.background import running_loop
from swr.engine.notifications import Notifications
from swr.engine.portal import Portal
from swr.engine.runtime import Runtime


class Opening:
    """Opens a cache in the event loop that runs then.

    Parameters:
        runtime: of the engine; its tasks know which event loop has the cache.
        portal: gives way to an event loop of the program's.
        notifications: get those of the store.

    Attributes:
        on_opened: called at every opening, when tasks can be started.
        is_done: whether the store is open.
    """

    def __init__(self, runtime: Runtime, portal: Portal, notifications: Notifications) -> None:
        self._runtime = runtime
        self._portal = portal
        self._notifications = notifications
        # One event loop may find that the cache is taken while the other one still opens it.
        self._under_way: dict[object, anyio.Event] = {}
        self.on_opened: list[Callable[[], object]] = []
        self.is_done = False

    async def run(self) -> None:
        """Open, unless that is under way in this event loop: then wait for its end, whatever that is.

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
