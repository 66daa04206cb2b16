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

# A load without a limit of its own may run for this many durations of a lease.
LIVES: Final = 10


class _Watched(NamedTuple):
    """A load under way.

    Parameters:
        lease: the lease to renew; None: there is none.
        due: when the next check of the load is due, in seconds of the event loop's clock.
        left: number of checks before the one that gives the load up; None: it may run without a limit.
        give_up: ends the load with a time-out.
    """

    lease: Lease | None
    due: float
    left: int | None
    give_up: Callable[[], Awaitable[Any]]


class Renewals:
    """The renewals of leases: swr renews the lease of a load after each third of `lease_for`, while the load may run.

    Parameters:
        runtime: the runtime of the engine.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._watched: dict[Flight, _Watched] = {}
        self._running = False

    def begin(self, flight: Flight, lease: Lease | None, give_up: Callable[[], Awaitable[Any]]) -> None:
        """Renew `lease` from now on, and give the load up after `LIVES` durations of a lease."""
        self._watched[flight] = _Watched(lease, self._next(), 3 * LIVES - 1, give_up)
        if not self._running:
            self._running = True
            # This task outlives the first load, so it must not keep that load's context variables alive.
            self._runtime.tasks.start(self._run, context=Context())

    def lift_limit(self, flight: Flight) -> None:
        """Let the load of `flight` run beyond `LIVES`, because it has another limit, or none."""
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
        # One task serves all loads, and waits some time for new loads before it ends. Most loads end before a renewal
        # is due, and a task for each load would cost more than some loads do.
        is_idle = False
        while self._watched or not is_idle:
            is_idle = not self._watched
            if is_idle:
                await anyio.sleep(self._runtime.lease_for / 3)
                continue
            # New leases come last, so the first one is due first. A variable for its load would keep the load alive.
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
            # A load with its final result has released its lease, even if its job still runs.
            if watched is not None and watched.lease is not None and not flight.is_finished:
                self._watched[flight] = watched._replace(lease=None)
                self._runtime.events.publish(events.RenewalRejected, flight.key)
