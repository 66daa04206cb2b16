"""Simulated faults for demonstrations: the next load fails, or loads hang."""

import logging
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import anyio

from swr.engine.engine import Engine
from swr.engine.flights import Flight
from swr.engine.load import Load
from swr.errors import StoreUnavailable
from swr.policy import Policy
from swr.reports.digest import Fault, cut, decode_faults, encode

if TYPE_CHECKING:
    from swr.stores.redis.digests import Digests

log = logging.getLogger("swr")

FAIL_NEXT: Final = "fail-next"
HANG: Final = "hang"
# The most faults at a time.
MOST: Final = 20
# The longest time for which a load hangs, and the lifetime of faults in Redis, in seconds.
_LONGEST: Final = 60.0
_FORGOTTEN_AFTER: Final = 60.0
# The most characters of a name in a digest.
_SHOWN: Final = 200


@runtime_checkable
class HasPolicy(Protocol):
    """A job whose loads have the limits of a policy."""

    policy: Policy


class SimulatedFailure(ConnectionError):
    """The error of a load that a user of the dashboard made fail."""


class Faults:
    """The simulated faults of one cache in this process.

    Parameters:
        engine: the engine of the cache.
        row_of: returns the name of the loader or route of a flight.
        digests: the access to Redis, where one process claims a fault; None: there is only this process.

    Attributes:
        is_allowed: whether this process may simulate faults.
        orders: the faults that it was asked to simulate.
    """

    def __init__(self, engine: Engine, row_of: Callable[[Flight], str], digests: "Digests | None") -> None:
        self.is_allowed = False
        self._engine = engine
        self._row_of = row_of
        self._digests = digests
        self.orders: tuple[Fault, ...] = ()
        # The name under which this process claims faults.
        self._name = secrets.token_hex(8)
        # Ids of the faults that this process has tried to claim, with their ends.
        self._done: dict[str, float] = {}

    def close(self) -> None:
        """Simulate no more faults."""
        self.orders = ()
        self._engine.runtime.strike = None

    def on_orders(self, data: bytes) -> None:
        """Replace the faults to simulate by those in the data from Redis."""
        if data or self.orders:
            self.order(decode_faults(data))

    def order(self, faults: tuple[Fault, ...]) -> None:
        """Replace the faults to simulate."""
        self.orders = faults[:MOST] if self.is_allowed else ()
        self._done = {name: until for name, until in self._done.items() if until > time.time()}
        self._engine.runtime.strike = self._strike if self.orders else None

    def told(self) -> tuple[tuple[str, str, float | None], ...]:
        """Return the kind, the row and the end of each pending fault, for the digest."""
        return tuple((cut(fault.kind, _SHOWN), cut(fault.row, _SHOWN), fault.until) for fault in self.pending())

    def pending(self) -> list[Fault]:
        """Return the faults that may still affect a load."""
        now = time.time()
        return [fault for fault in self.orders if fault.until > now and fault.id not in self._done]

    async def _strike(self, load: Load) -> None:
        """Delay a load, or make it fail, if a pending fault says so."""
        row = self._row_of(load.flight)
        for fault in self.pending():
            if fault.row != row:
                continue
            if fault.kind == HANG:
                job = load.flight.job
                if isinstance(job, HasPolicy):
                    load.limit(job.policy.hard_timeout)
                log.warning("a load of %r hangs, because the dashboard was asked to simulate that", load.flight.key)
                await anyio.sleep(min(fault.seconds, _LONGEST, fault.until - time.time()))
            elif fault.kind == FAIL_NEXT and await self._claim(fault):
                log.warning("a load of %r fails, because the dashboard was asked to simulate that", load.flight.key)
                raise SimulatedFailure("simulated by the dashboard")

    async def _claim(self, fault: Fault) -> bool:
        """Claim a fault that only one process may simulate; return whether this process got it."""
        self._done[fault.id] = fault.until
        if self._digests is None:
            return True
        try:
            is_own = await self._digests.claim(fault.id, self._name)
            if is_own:
                # Remove the fault from Redis, so that other processes no longer show it as pending.
                rest = tuple(one for one in decode_faults(await self._digests.faults()) if one.id != fault.id)
                await self._digests.simulate(encode(rest), _FORGOTTEN_AFTER)
            return is_own
        except StoreUnavailable:
            return True
