"""Renew the leases of long-running loads, and give up the loads that run too long."""

from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any, Final, NamedTuple

import anyio

from swr import events
from swr.engine.flights import Flight
from swr.engine.runtime import Runtime
from swr.errors import LeaseLost, StoreUnavailable
from swr.stores.base import Lease

# Lives of a lease that a load without a limit of its own may run.
LIVES: Final = 10


class _Watched(NamedTuple):
    """A load under way.

    Parameters:
        lease: what is renewed; None: nothing.
        due: when the next look at the load is due, in seconds of the event loop's clock.
        left: how many looks are left until the load is given up; None: it may run as long as it likes.
        give_up: gives the load up.
    """

    lease: Lease | None
    due: float
    left: int | None
    give_up: Callable[[], Awaitable[Any]]


class Renewals:
    """Renew the lease of each load at a third of its life, as long as the load may run.

    Parameters:
        runtime: of the engine whose loads they are.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._watched: dict[Flight, _Watched] = {}
        self._running = False

    def begin(self, flight: Flight, lease: Lease | None, give_up: Callable[[], Awaitable[Any]]) -> None:
        """Renew `lease` from now on, and give the load up after `LIVES`."""
        self._watched[flight] = _Watched(lease, self._next(), 3 * LIVES, give_up)
        if not self._running:
            self._running = True
            # It outlives the first load, and keeps nothing of that alive.
            self._runtime.tasks.start(self._run, context=Context())

    def lift_limit(self, flight: Flight) -> None:
        """Let the load of `flight` run as long as it likes, or as its own limit says."""
        watched = self._watched.get(flight)
        if watched is not None:
            self._watched[flight] = watched._replace(left=None)

    def let_go(self, flight: Flight) -> Lease | None:
        """Stop renewing the lease of `flight`, whose load goes on; return the lease, if it was being renewed."""
        watched = self._watched.get(flight)
        if watched is None:
            return None
        self._watched[flight] = watched._replace(lease=None)
        return watched.lease

    def end(self, flight: Flight) -> None:
        """Stop renewing the lease of `flight`: its load has ended."""
        self._watched.pop(flight, None)

    def clear(self) -> None:
        """Forget all leases: their event loop has ended."""
        self._watched.clear()
        self._running = False

    def _next(self) -> float:
        return self._runtime.time() + self._runtime.lease_for / 3

    async def _run(self) -> None:
        # One task serves all loads, and waits for others when it has none left. Most loads end before a renewal is due,
        # and a task for each would cost more than many a load.
        is_idle = False
        while self._watched or not is_idle:
            is_idle = not self._watched
            if is_idle:
                await anyio.sleep(self._runtime.lease_for / 3)
                continue
            # New leases come last, so the first one is due first. A variable for its load would keep that alive.
            due = next(iter(self._watched.values())).due
            if due > self._runtime.time():
                await anyio.sleep_until(due)
            else:
                self._look()
        self._running = False

    def _look(self) -> None:
        """Renew the lease that is due first, or give its load up."""
        flight, (lease, _, left, give_up) = next(iter(self._watched.items()))
        del self._watched[flight]
        if flight.is_finished:
            return
        if left == 0:
            self._runtime.tasks.start(give_up)
            return
        self._watched[flight] = _Watched(lease, self._next(), None if left is None else left - 1, give_up)
        if lease is not None:
            self._runtime.tasks.start(self._renew, flight, lease)

    async def _renew(self, flight: Flight, lease: Lease) -> None:
        try:
            await self._runtime.store.renew(lease, self._runtime.lease_for)
        except StoreUnavailable:
            return
        except LeaseLost:
            watched = self._watched.get(flight)
            # A load whose result stands has given its lease back, even if its job goes on.
            if watched is not None and watched.lease is not None and not flight.is_finished:
                self._watched[flight] = watched._replace(lease=None)
                self._runtime.events.publish(events.RenewalRejected, flight.key)
