"""The engine: opens and closes, receives the store's notifications, and answers reads from the store or a load."""

import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, TypeVarTuple

import anyio

from swr.core.codec import Codec
from swr.core.decision import FRESH, MISSING, Revalidate, decide, is_due_early
from swr.engine import deadlocks, direct, repeats
from swr.engine.background import BackgroundTasks, running_loop
from swr.engine.backoff import Backoffs
from swr.engine.endings import Endings
from swr.engine.failures import text_of
from swr.engine.flights import Failed, Finished, Flight, Flights
from swr.engine.lease import Renewals
from swr.engine.load import Job, Snapshot
from swr.engine.refresh_path import RefreshPath
from swr.engine.runtime import Runtime
from swr.entry import Entry, Outcome, State
from swr.errors import ConfigurationError
from swr.events import Hit, Invalidated, Miss, Stale, StoreReachable, StoreUnreachable
from swr.policy import NO_LIMITS, Limits, Policy, Timeout
from swr.stores.base import NEWEST, Kind, LeasingStore, Notification, Subscriber
from swr.stores.tag_versions import ALL

log = logging.getLogger("swr")
Ts = TypeVarTuple("Ts")

# An invalidation that supersedes a load starts it again, this many times at most. Then readers get the value that was
# loaded, and it is not stored.
AGAIN: Final = 2


class Engine:
    """Answer reads from a store, and run the jobs that fill it.

    Parameters:
        store: keeps entries and leases.
        lease_for: seconds that a lease lasts unless it is renewed.
        drain_for: seconds that loads are given at closing.
        clock: wall clock, seconds.
        uniform: random number between two.
    """

    def __init__(
        self,
        store: LeasingStore,
        lease_for: float = 30.0,
        drain_for: float = 10.0,
        clock: Callable[[], float] = time.time,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.store = store
        self.clock = clock
        self.drain_for = drain_for
        self._tasks = BackgroundTasks(drain_for, self._settled, self._ended)
        self.runtime = Runtime(store, self._tasks, lease_for, clock, uniform)
        self.events = self.runtime.events
        self.flights = Flights()
        self.backoffs = Backoffs(lambda: self.runtime.time())
        self._renewals = Renewals(self.runtime)
        self._endings = Endings(self.runtime, self.flights, self.backoffs)
        self._path = RefreshPath(self._endings, self._renewals)
        self._opened = False
        self._opening: tuple[object, anyio.Event] | None = None
        # Since when the store is unreachable, in seconds of a clock that outlives event loops.
        self._unreachable_since: float | None = None
        # Called with every notification, beside the engine.
        self._subscribers: list[Subscriber] = []

    # -- opening and closing ----------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Open, unless it is open here already.

        Raises:
            ConfigurationError: the cache is in use on another event loop.
        """
        while not self.is_open:
            loop = running_loop()
            if self._opening is not None and self._opening[0] is loop:
                await self._opening[1].wait()
                continue
            self._opening = opening = (loop, anyio.Event())
            try:
                with anyio.CancelScope(shield=True):
                    await self._tasks.open()
                    self.runtime.enter(loop)
                    try:
                        await self.store.open(self._tasks.start_last, self.on_notification)
                    except BaseException:
                        await self._tasks.aclose()
                        raise
                    self._opened = True
            finally:
                self._opening = None
                opening[1].set()

    async def aclose(self) -> None:
        """Wait for loads within the grace period, cancel the rest, give back their leases, disconnect.

        Raises:
            ConfigurationError: a loader closes the cache that waits for it.
        """
        for flight in deadlocks.chain():
            if flight.owner is self.runtime and not flight.done.is_set():
                raise ConfigurationError(
                    f"the loader of {flight.key!r} closes the cache that waits for it: close it where it was opened"
                )
        if self._opened and self._tasks.is_here:
            await self._tasks.aclose()
            await self.store.aclose(self.on_notification)

    @property
    def is_open(self) -> bool:
        """Whether it is open on the event loop that runs now."""
        return self._opened and self._tasks.is_open

    @property
    def is_store_up(self) -> bool:
        """Whether the store is reachable and no invalidation is pending, as far as is known."""
        return self._unreachable_since is None and not self.store.has_pending

    def start(self, function: Callable[[*Ts], Awaitable[Any]], *args: *Ts) -> None:
        """Run `function(*args)` in a task of the cache's own, to the end of the cache at the latest."""
        self._tasks.start(function, *args)

    async def _settled(self) -> None:
        await self._path.leave_behind()
        await self.store.settled()

    def _ended(self) -> None:
        self._opened = False
        self.flights.clear()
        self.backoffs.clear()
        self._renewals.clear()
        self.store.forget()

    # -- notifications ----------------------------------------------------------------------------------------

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber` with every notification of the store; calling what is returned ends that."""
        self._subscribers.append(subscriber)
        return lambda: self._subscribers.remove(subscriber)

    def on_notification(self, notification: Notification) -> None:
        """Note what happened in the store."""
        for subscriber in self._subscribers:
            subscriber(notification)
        kind, name, version, elsewhere, _ = notification
        match kind:
            case Kind.QUEUED:
                pass
            case Kind.UNREACHABLE:
                if self._unreachable_since is None:
                    self._unreachable_since = time.monotonic()
                    self.events.publish(StoreUnreachable, name)
                    self.flights.wake_all()
            case Kind.REPEATED:
                self._publish_tag(name, elsewhere=True)
            case Kind.TAG_VERSION:
                self.flights.fence += 1
                self._path.give_way(self.flights.outdate(name, version))
                if elsewhere:
                    self._publish_tag(name, elsewhere=True)
            case Kind.REACHABLE:
                self.flights.on_gap()
                if self._unreachable_since is not None:
                    seconds, self._unreachable_since = time.monotonic() - self._unreachable_since, None
                    self.events.publish(StoreReachable, seconds)
            case _:
                if kind is Kind.INVALIDATED:
                    self.flights.invalidate(name, version or NEWEST)
                    if elsewhere:
                        self.events.publish(Invalidated, name, None, True)
                self.backoffs.end(name)
                self.flights.wake(name)

    def _publish_tag(self, tag: str, *, elsewhere: bool) -> None:
        self.events.publish(Invalidated, None, None if tag == ALL else tag, elsewhere)

    # -- reading ----------------------------------------------------------------------------------------------

    async def fetch(
        self, key: str, job: Job, limits: Limits = NO_LIMITS, patience: Timeout = None, early: float = 0.0
    ) -> Outcome[Any]:
        """Return the value of `key`: what is stored if it may be served, else what the job loads.

        Parameters:
            key: what is asked for.
            job: how it is loaded.
            limits: what the reader accepts.
            patience: seconds that the reader waits for a load if there is an entry to fall back on; "auto": see
                `Policy`; None: to its end.
            early: see `Policy`.

        Raises:
            Exception: whatever the loader raised, if there is no entry to fall back on.
            CodecError: the value cannot be stored in Redis.
        """
        entry = self.store.peek(key)
        decision = MISSING if entry is None else decide(entry, self.clock(), limits)
        error: BaseException | None = None
        try:
            if decision is not FRESH and not self.is_open:
                await self.ready()
            asked = not decision.serve
            if asked:
                entry = await self.store.read(key, job.codec)
                decision = decide(entry, self.clock(), limits)
            if entry is not None and decision.serve:
                state = decision.state
                if decision.revalidate is Revalidate.BACKGROUND:
                    self.refresh_soon(key, job, entry)
                elif early and is_due_early(entry, self.clock(), early, self.runtime.uniform(0.0, 1.0)):
                    await self.ready()
                    self.refresh_soon(key, job, entry)
            else:
                entry, state, error = await self._wait_for(key, job, entry, patience)
        except BaseException:
            self.events.publish(Miss, key)
            raise
        if state is State.MISSING or self.events.reads:
            self.tell(key, entry, state, error)
        if asked or state is not State.FRESH:
            self.log_read(key, decision.serve, asked, state, error)
        return Outcome(entry.value, state, max(0.0, self.clock() - entry.created_at), error)

    def log_read(self, key: str, found: bool, asked: bool, state: State, error: BaseException | None) -> None:
        """Write a line about a read: was an entry `found` that may be served, and the store `asked`?"""
        if log.isEnabledFor(logging.DEBUG):
            layer = "the store" if asked else "the local cache"
            if not found:
                layer = "a load" if state is State.MISSING else "what was stored so far"
            log.debug("read of %r: %s, from %s", key, state.value, layer)
            if error is not None:
                backoff = self.backoffs.left(key)
                log.debug("read of %r: the load failed (%s); backing off for %.3f s", key, text_of(error), backoff)

    async def _wait_for(
        self, key: str, job: Job, entry: Entry[Any] | None, patience: Timeout
    ) -> tuple[Entry[Any], State, BaseException | None]:
        """Return what a load brings, or the entry to fall back on and why."""
        again = 0
        while True:
            flight = await self.join(key, job, entry, patience)
            loaded = flight.loaded
            if loaded is not None:
                if not flight.superseded or again == AGAIN:
                    return loaded, State.MISSING, None
                again += 1
                # What the flight knew is outdated, too. Another load may have ended meanwhile.
                entry = self.store.peek(key)
                if entry is not None and decide(entry, self.clock()) is FRESH:
                    return entry, State.FRESH, None
            elif flight.has_no_value:
                # A batch loader found that there is no value. This caller's own loader answers for itself.
                entry = None
            else:
                fallback = self.fallback(flight, flight.error)
                if fallback is not None:
                    return fallback, State.STALE, None if flight.error is None else flight.failure()
                if flight.error is not None:
                    raise flight.failure()
                # The reader's patience has ended, and there is nothing to fall back on (any more).
                patience = None

    def tell(self, key: str, entry: Entry[Any], state: State, error: BaseException | None = None) -> None:
        """Publish the event of an entry that a reader gets."""
        if state is State.MISSING:
            self.events.publish(Miss, key)
        elif self.events.reads:
            now = self.clock()
            age = max(0.0, now - entry.created_at)
            if state is State.FRESH:
                self.events.publish(Hit, key, age)
            else:
                self.events.publish(Stale, key, age, max(0.0, now - entry.fresh_until), error)

    def outcome(self, entry: Entry[Any], state: State, error: BaseException | None = None) -> Outcome[Any]:
        """Return `entry` as a reader gets it."""
        return Outcome(entry.value, state, max(0.0, self.clock() - entry.created_at), error)

    def refresh_soon(self, key: str, job: Job, entry: Entry[Any]) -> Flight | None:
        """Refresh `key` in the background, unless `backs_off`."""
        # Closed, perhaps, while the store was asked: the entry is an answer all the same.
        return None if self.backs_off(key) or not self._tasks.is_open else self._path.launch(key, job, entry)

    def backs_off(self, key: str) -> bool:
        """Whether somebody refreshes `key` already, here or elsewhere, or all leave it alone for a while."""
        return key in self.flights or self.backoff_left(key) > 0

    async def join(self, key: str, job: Job, entry: Entry[Any] | None, patience: Timeout = None) -> Flight:
        """Join the load of `key` that is under way, or begin one; return its flight when it is over, see `wait`."""
        flight = self.begin(key, job, entry)
        await self.wait(flight, patience)
        return flight

    async def wait(self, flight: Flight, patience: Timeout = None) -> None:
        """Wait until a flight is over, `patience` seconds at most."""
        await deadlocks.wait((flight,), self.patience_for((flight,), patience))

    def patience_for(self, flights: Iterable[Flight], patience: Timeout) -> float | None:
        """Return the seconds that a reader waits for `flights`; None: to their end. See `Endings.patience_for`."""
        return self._endings.patience_for(flights) if patience == "auto" else patience

    def begin(
        self, key: str, job: Job, entry: Entry[Any] | None, *, forced: bool = False, newer_than: int | None = None
    ) -> Flight:
        """Return the flight of the load of `key` that is under way, or of one that begins now.

        Parameters:
            forced: load even if an entry is stored or a load is under way.
            newer_than: see `Flight`.
        """
        chain = deadlocks.chain()
        if chain:
            deadlocks.refuse_oneself(self.runtime, key, chain)
        flight = None if forced else self.flights.get(key)
        if flight is None:
            error = None if forced or newer_than is not None else self.backoffs.error(key)
            if error is not None:
                flight = Flight(self.runtime, key, job, entry, self.flights.fence)
                if self.fallback(flight, error) is not None:
                    flight.state = Finished(Failed(error))
                    flight.done.set()
                    return flight
            flight = self._path.launch(key, job, entry, forced=forced, newer_than=newer_than, chain=chain)
        elif entry is not None and (flight.entry is None or flight.entry.version < entry.version):
            # The flight began without this entry, and may fall back on it all the same.
            flight.entry = entry
        return flight

    async def refresh(self, key: str, job: Job) -> Outcome[Any]:
        """Load `key` now, whatever is stored, and return the new value.

        Raises:
            Exception: whatever the loader raised.
        """
        await self.ready()
        again = 0
        while True:
            flight = self.begin(key, job, self.store.peek(key), forced=True)
            await deadlocks.wait((flight,))
            if flight.error is not None:
                raise flight.failure()
            assert flight.loaded is not None
            if not flight.superseded or again == AGAIN:
                return self.outcome(flight.loaded, State.MISSING)
            again += 1

    def fallback(self, flight: Flight, error: BaseException | None = None) -> Entry[Any] | None:
        """Return the entry that may be served if `flight` fails, or None; see `Endings.fallback`."""
        return self._endings.fallback(flight, error)

    def backoff_left(self, key: str) -> float:
        """Return the seconds for which `key` still backs off in this process."""
        return self.backoffs.left(key)

    def is_loading(self, key: str) -> bool:
        """Whether a load of `key` is under way in this process."""
        return key in self.flights

    def snapshot(self) -> Snapshot:
        """Return what is known now, for a load without a flight."""
        return Snapshot(self.clock(), self.store.tag_versions.newest, self.flights.fence)

    async def invalidate(self, key: str) -> None:
        """See `Store.invalidate`."""
        await self.ready()
        repeats.note(self, self.invalidate, key)
        await self.store.invalidate(key)
        self.events.publish(Invalidated, key, None, False)

    async def invalidate_tag(self, tag: str) -> None:
        """See `Store.invalidate_tag`."""
        await self.ready()
        repeats.note(self, self.invalidate_tag, tag)
        await self.store.invalidate_tag(tag)
        self._publish_tag(tag, elsewhere=False)

    async def put(
        self, key: str, codec: Codec, value: Any, policy: Policy, snapshot: Snapshot, known: int = NEWEST
    ) -> bool:
        """Store one more value under a key of its own; see `direct.put`."""
        return await direct.put(self.runtime, self.flights, key, codec, value, policy, snapshot, known)
