"""The wait of one client for a load; the client gets the messages of its own run of the app as they come."""

from collections.abc import Callable
from contextvars import copy_context
from functools import partial

import anyio
import anyio.lowlevel
from starlette.types import Send

from swr.engine import deadlocks
from swr.engine.flights import Flight
from swr.middleware.capture import Capture
from swr.middleware.config import Config
from swr.policy import Timeout


class Delivery:
    """One client that waits for a load.

    Parameters:
        config: the middleware's options.
        flight: the flight of the load.
        job: the client's own job; another client's job may run the app instead.
        soft_timeout: how long the client waits if there is an entry to fall back on; see `Policy`.
        has_fallback: returns whether there is such an entry.
    """

    def __init__(
        self, config: Config, flight: Flight, job: Capture, soft_timeout: Timeout, has_fallback: Callable[[], bool]
    ) -> None:
        self._engine = engine = config.engine
        self._unwatched = config.unwatched
        self._flight = flight
        self._job = job
        self._has_fallback = has_fallback
        patience = engine.patience_for((flight,), soft_timeout)
        # When the soft time-out ends, in seconds of the event loop's clock; None: the client waits to the end.
        self._patient_until = None if patience is None else engine.runtime.time() + patience
        # Cancelled when the client leaves.
        self._scope = engine.runtime.tasks.new_scope()
        # The scope of the task that watches the client's connection, and an event that the task sets at its end.
        self._watching: tuple[anyio.CancelScope, anyio.Event] | None = None
        self._context = copy_context()

    async def deliver(self, send: Send) -> bool:
        """Send the messages of the run until the load and the run are over; False: the client has left.

        The load goes on if the client leaves or its soft time-out ends. After the time-out this method sends nothing.
        """
        self._unwatched.begin(self)
        try:
            with self._scope:
                await self._deliver(send)
        finally:
            self._unwatched.end(self)
            self._job.detach()
            if self._watching is not None:
                watching, ended = self._watching
                watching.cancel()
                with anyio.CancelScope(shield=True):
                    # Servers allow one call of `receive` at a time.
                    await ended.wait()
        return not self._scope.cancelled_caught

    def on_due(self, seconds: float) -> None:
        """Watch from now on whether the client is still connected; most loads end before this is called."""
        ended = anyio.Event()
        self._watching = self._engine.runtime.tasks.start(self._watch, ended, context=self._context), ended

    async def _watch(self, ended: anyio.Event) -> None:
        try:
            await self._job.outbox.watch(self._scope)
        finally:
            ended.set()

    async def _deliver(self, send: Send) -> None:
        engine, flight, job = self._engine, self._flight, self._job
        is_own = flight.job is job
        if is_own:
            flight.then += (job.outbox.wake,)
        if self._patient_until is not None:
            patience = max(0.0, self._patient_until - engine.runtime.time())
            if is_own:
                await deadlocks.wait_by((flight,), partial(self._wait_for_beginning, patience))
            else:
                await engine.wait(flight, patience)
            if not flight.done.is_set() and not job.outbox.is_begun and self._has_fallback():
                job.outbox.hold_back()
                return
        if is_own:
            await deadlocks.wait_by((flight,), partial(job.outbox.deliver, send, flight.done.is_set))
        else:
            await engine.wait(flight)
        if flight.error is not None and flight.waiters:
            # Let the other waiting tasks run first: the last one may raise the failure itself instead of a copy.
            await anyio.lowlevel.checkpoint()
        if job.is_begun:
            await job.outbox.deliver(send, lambda: job.is_over)

    async def _wait_for_beginning(self, patience: float) -> None:
        """Wait, for at most `patience` seconds, until the client's own run has begun to answer or is over."""
        flight, outbox = self._flight, self._job.outbox
        with anyio.move_on_after(patience):
            while not (flight.done.is_set() or outbox.is_begun):
                await outbox.wait()
