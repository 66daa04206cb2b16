"""What keeps the leases of loads that take long."""

from typing import TYPE_CHECKING, Final

import anyio

from swr.errors import LeaseLost, StoreUnavailable
from swr.events import LeaseGone
from swr.load import Load

if TYPE_CHECKING:
    from swr.engine import Engine

_RENEWED_FOR: Final = 10


class Renewals:
    """Renews the lease of each load at a third of its life until the load ends, ten lives at most.

    Parameters:
        engine: whose loads they are.
    """

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        # Loads under way: when their leases are to be renewed next, and how often yet.
        self._due: dict[Load, tuple[float, int]] = {}
        self._running = False

    def begin(self, load: Load) -> None:
        """Renew the lease of `load` from now on."""
        self._due[load] = (self._engine.time() + self._engine.lease_for / 3, 3 * _RENEWED_FOR)
        if not self._running:
            self._running = True
            self._engine.start(self._run)

    def end(self, load: Load) -> bool:
        """Renew it no more; whether it was to be."""
        return self._due.pop(load, None) is not None

    def clear(self) -> None:
        """Take note that no task runs any more."""
        self._due.clear()
        self._running = False

    async def _run(self) -> None:
        # One task for all loads, most of which end before anything is due: a task for each would cost more than
        # many a load.
        while self._due:
            # In the order in which they are due, for whatever comes in comes in last.
            load, (due, times) = next(iter(self._due.items()))
            now = self._engine.time()
            if due > now:
                await anyio.sleep_until(due)
                continue
            del self._due[load]
            if times:
                self._due[load] = (now + self._engine.lease_for / 3, times - 1)
                self._engine.start(self._renew, load)
        self._running = False

    async def _renew(self, load: Load) -> None:
        assert load.lease is not None
        try:
            await self._engine.store.renew(load.lease, self._engine.lease_for)
        except StoreUnavailable:
            return
        except LeaseLost:
            # What came of a load that is over has given its lease back, whatever its job goes on with.
            if self.end(load) and not load.flight.is_over:
                self._engine.events.publish(LeaseGone, load.flight.key)
