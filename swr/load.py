"""One run of a job: when it began, under which lease, and how it ends."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio

from swr.entry import absence, stamp
from swr.errors import LeaseLost, LoadTimeout, StoreUnavailable
from swr.events import Committed, FencedOff
from swr.flight import Flight
from swr.policy import Policy
from swr.stores.base import Lease

if TYPE_CHECKING:
    from swr.engine import Engine


class Since(NamedTuple):
    """What was known when a load began: what it reads is not older than that.

    Parameters:
        began: wall clock, seconds.
        head: the newest barrier.
        fence: how many barriers this process had heard of.
        flight: the load's own, if it has one.
    """

    began: float
    head: int
    fence: int
    flight: Flight | None = None


class Load:
    """One run of a job: when it began, under which lease, and how it ends.

    Parameters:
        engine: whose.
        flight: who waits for it.
        lease: the right to store the value, or None where the store is away.
    """

    __slots__ = ("_engine", "_started", "_timer", "began", "flight", "head", "lease")

    def __init__(self, engine: "Engine", flight: Flight, lease: Lease | None) -> None:
        self._engine = engine
        self.flight = flight
        self.lease = lease
        self.began = engine.clock()
        self.head = engine.store.barriers.head if lease is None else lease.head
        self._started = flight.began = engine.time()
        self._timer: anyio.CancelScope | None = None
        flight.version = 0 if lease is None else lease.version

    @property
    def since(self) -> Since:
        """What was known when it began."""
        return Since(self.began, self.head, self.flight.fence, self.flight)

    def limit(self, seconds: float | None, given_up: Callable[[BaseException], None] | None = None) -> None:
        """Give the load up once it has run for `seconds`; said again, that counts in place of what was said before.

        It is cancelled, and whether it heeds that or not, it has failed with `LoadTimeout`.

        Parameters:
            seconds: counted from the load's beginning; None: it may run on.
            given_up: is told of the failure.
        """
        self.stop_timer()
        if seconds is not None and not self.flight.is_over:
            self._timer = anyio.CancelScope()
            self._engine.expire_later(
                self, self._started + seconds, self._timer, LoadTimeout(self.flight.key, seconds), given_up
            )

    def stop_timer(self) -> None:
        """Have no time limit any more."""
        # Most loads have none, and cancelling is not cheap.
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ends(self) -> bool:
        """Stop the timer; whether it is the load itself that ends now, for it was not given up before."""
        self.stop_timer()
        if self.flight.expired:
            return False
        self.flight.ended = self._engine.time()
        return True

    async def land(self, value: Any, policy: Policy, validator: str | None = None, *, absent: bool = False) -> None:
        """Store `value` and give it to everyone who waits; or store that it is absent, and leave.

        Raises:
            CodecError: it cannot be stored.
        """
        engine, flight, lease = self._engine, self.flight, self.lease
        if not self._ends():
            return
        took = max(0.0, engine.clock() - self.began)
        shortened = engine.uniform(0.0, policy.jitter) if policy.jitter else 0.0
        entry = stamp(value, policy, self.began, flight.version or 0, self.head, validator, took, shortened)
        if absent:
            entry = absence(entry)
        if lease is not None and not flight.doomed:
            try:
                await engine.store.commit(lease, entry, flight.job.codec)
            except LeaseLost:
                flight.doomed = True
            except StoreUnavailable:
                lease = None
            else:
                engine.events.publish(Committed, flight.key, entry.version)
        elif lease is not None:
            await engine.store.release(lease)
        if lease is None:
            flight.kept = True
            # Nobody fences this load but this process itself.
            if flight.fence != engine.fence or not engine.is_current(flight):
                flight.doomed = True
            if not flight.doomed:
                engine.store.keep(flight.key, entry)
        if flight.doomed:
            engine.events.publish(FencedOff, flight.key)
        flight.left = absent
        flight.landed = None if absent else entry
        engine.finish(flight)

    async def fail(self, error: BaseException) -> None:
        """End with a failure before the job itself ends; an exception out of the job does the same."""
        if self._ends():
            await self._engine.failed(self.flight, self.lease, error)

    async def leave(self, *, drop: bool = False) -> None:
        """End without a value: what was loaded is not to be stored. `drop` removes what is stored so far."""
        if not self._ends():
            return
        if drop:
            await self._engine.invalidate(self.flight.key)
        if self.lease is not None:
            await self._engine.store.release(self.lease)
        self.flight.left = True
        self._engine.finish(self.flight)
