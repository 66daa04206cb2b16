"""Waiting for a load on behalf of one client, which gets what its own run of the app brings while that comes."""

from collections.abc import Callable
from typing import Final

import anyio
from starlette.types import Send

from swr.engine.engine import Engine
from swr.engine.flights import Flight
from swr.middleware.capture import Capture
from swr.policy import Timeout

# Seconds after which swr looks whether a client that waits is still there. Most loads end earlier.
_UNWATCHED_FOR: Final = 1.0


class Delivery:
    """One client that waits for a load.

    Parameters:
        engine: what loads.
        flight: of the load.
        job: the client's own run of the app, if that is the load's.
        soft_timeout: how long the client waits if there is an entry to fall back on; see `Policy`.
        has_fallback: whether there is.
    """

    def __init__(
        self, engine: Engine, flight: Flight, job: Capture, soft_timeout: Timeout, has_fallback: Callable[[], bool]
    ) -> None:
        self._engine = engine
        self._flight = flight
        self._job = job
        self._has_fallback = has_fallback
        patience = engine.patience_for((flight,), soft_timeout)
        # By the event loop's clock.
        self._patient_until = None if patience is None else engine.runtime.time() + patience

    async def deliver(self, send: Send) -> bool:
        """Send what the run brings, until the load and the run are over; False: the client has left.

        A client that leaves ends no load, and neither does one whose patience ends. The latter gets nothing here.
        """
        job, failure = self._job, None
        try:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(job.outbox.deliver, send)
                    try:
                        with anyio.move_on_after(_UNWATCHED_FOR) as unwatched:
                            await self._wait()
                        if unwatched.cancelled_caught:
                            group.start_soon(job.outbox.watch, scope)
                            await self._wait()
                    except Exception as error:
                        # The group would wrap it in an ExceptionGroup.
                        failure = error
                    group.cancel_scope.cancel()
        finally:
            job.detach()
        if failure is not None:
            raise failure
        return not scope.cancelled_caught

    async def _wait(self) -> None:
        engine, flight, job = self._engine, self._flight, self._job
        if self._patient_until is not None:
            await engine.wait(flight, max(0.0, self._patient_until - engine.runtime.time()))
            if not flight.done.is_set() and not job.outbox.is_begun and self._has_fallback():
                job.outbox.hold_back()
                return
        await engine.wait(flight)
        await job.wait()
