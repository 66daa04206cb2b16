"""Renew the leases of long-running loads."""

from typing import Final

import anyio

from swr import events
from swr.engine.flights import Flight
from swr.engine.runtime import Runtime
from swr.errors import LeaseLost, StoreUnavailable
from swr.stores.base import Lease

_RENEWED_FOR: Final = 10


class Renewals:
    """Renew the lease of each load at a third of its life until the load ends, for ten lives at most.

    Parameters:
        runtime: of the engine whose loads they are.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        # For each load under way: its lease, when that is due to be renewed, and how many renewals are left.
        self._due: dict[Flight, tuple[Lease, float, int]] = {}
        self._running = False

    def begin(self, flight: Flight, lease: Lease) -> None:
        """Renew `lease` from now on."""
        self._due[flight] = (lease, self._next(), 3 * _RENEWED_FOR)
        if not self._running:
            self._running = True
            self._runtime.tasks.start(self._run)

    def end(self, flight: Flight) -> bool:
        """Stop renewing the lease of `flight`; return whether it was being renewed."""
        return self._due.pop(flight, None) is not None

    def clear(self) -> None:
        """Forget all leases: their event loop has ended."""
        self._due.clear()
        self._running = False

    def _next(self) -> float:
        return self._runtime.time() + self._runtime.lease_for / 3

    async def _run(self) -> None:
        # One task serves all loads. Most loads end before a renewal is due, and a task for each would cost more than
        # many a load.
        while self._due:
            # New leases come last, so the first one is due first.
            flight, (lease, due, left) = next(iter(self._due.items()))
            if due > self._runtime.time():
                await anyio.sleep_until(due)
                continue
            del self._due[flight]
            if left:
                self._due[flight] = (lease, self._next(), left - 1)
                self._runtime.tasks.start(self._renew, flight, lease)
        self._running = False

    async def _renew(self, flight: Flight, lease: Lease) -> None:
        try:
            await self._runtime.store.renew(lease, self._runtime.lease_for)
        except StoreUnavailable:
            return
        except LeaseLost:
            # A load whose result stands has given its lease back, even if its job goes on.
            if self.end(flight) and not flight.is_finished:
                self._runtime.events.publish(events.LeaseLost, flight.key)
