"""The engine: opens and closes, receives the store's notifications, and answers reads from the store or a load."""

import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, TypeVarTuple

from swr.core.codec import Codec
from swr.core.decision import FRESH, MISSING, Revalidate, decide, is_due_early
from swr.engine import deadlocks, direct
from swr.engine.background import BackgroundTasks, InUse
from swr.engine.backoff import Backoffs
from swr.engine.endings import Endings
from swr.engine.entries import Entries
from swr.engine.flights import Finished, Flight, Flights
from swr.engine.lease import Renewals
from swr.engine.load import Job, Reading, Snapshot
from swr.engine.notifications import Notifications
from swr.engine.opening import Opening
from swr.engine.portal import Portal
from swr.engine.read_log import log_read
from swr.engine.refresh_path import RefreshPath
from swr.engine.results import Failed
from swr.engine.runtime import Runtime
from swr.engine.store_reads import StoreReads
from swr.engine.switch import Switch
from swr.entry import Entry, Outcome, State
from swr.errors import ConfigurationError
from swr.events import Hit, Miss, Stale
from swr.policy import NO_LIMITS, Limits, Policy, Timeout
from swr.stats.counts import Counts, Layer
from swr.stores.base import NEWEST, LeasingStore
from swr.stores.clocks import wall_clock
from swr.stores.tag_versions import Name

log = logging.getLogger("swr")
Ts = TypeVarTuple("Ts")

# How often swr repeats a load that an invalidation has superseded. After that, readers get the loaded value, which is
# not stored.
AGAIN: Final = 2


class Engine:
    """The engine of a cache: it answers reads from a store, and runs the jobs that fill the store.

    Parameters:
        store: keeps entries and leases.
        lease_for: seconds that a lease lasts unless it is renewed.
        drain_for: seconds that closing waits for loads.
        clock: returns the wall clock's time, in seconds.
        uniform: returns a random number between its two arguments.
        switch: tells whether callers use the cache; the decorators and the middleware ask it.
        counts: the counters of the cache; None: new ones.
    """

    def __init__(
        self,
        store: LeasingStore,
        lease_for: float = 30.0,
        drain_for: float = 10.0,
        clock: Callable[[], float] = wall_clock,
        uniform: Callable[[float, float], float] = random.uniform,
        switch: Switch | None = None,
        counts: Counts | None = None,
    ) -> None:
        self.store = store
        self.switch = Switch() if switch is None else switch
        self._tasks = BackgroundTasks(
            drain_for, lambda: self._endings.cut_off(self._tasks.drain_for), self._settled, self._ended
        )
        self.counts = Counts() if counts is None else counts
        self.runtime = Runtime(store, self._tasks, lease_for, clock, uniform, self.counts, self.switch.tell_reads)
        self.portal = Portal(self._tasks, self.aclose)
        self.switch.is_elsewhere = self.portal.is_elsewhere
        self.events = self.runtime.events
        self.flights = Flights()
        self.backoffs = Backoffs(lambda: self.runtime.time())
        self._renewals = Renewals(self.runtime)
        self._endings = Endings(self.runtime, self.flights, self.backoffs)
        self._path = RefreshPath(self._endings, self._renewals)
        self._reads = StoreReads(self._path, self.flights, self.backoffs)
        self.notifications = Notifications(self.events, self.flights, self.backoffs, self._path.give_way)
        self.entries = Entries(self)
        self._opening = Opening(self.runtime, self.portal, self.notifications)
        self.on_opened = self._opening.on_opened

    def configure(self, store: LeasingStore, lease_for: float, drain_for: float, clock: Callable[[], float]) -> None:
        """Use these options of the class from the next opening on. The engine must be closed."""
        self._tasks.drain_for = drain_for
        self._ended()
        self.notifications.forget_outage()
        self.store, self._opening.is_done = store, False
        self.runtime.configure(store, lease_for, clock)

    def clock(self) -> float:
        """Return the wall clock's time, in seconds."""
        return self.runtime.clock()

    async def ready(self) -> None:
        """Open the cache on the running event loop, unless it is open there already.

        Raises:
            InUse: the cache is in use on another event loop.
        """
        while not self.is_open:
            await self._opening.run()

    @property
    def is_entered(self) -> bool:
        """Return whether the cache is open on the running event loop, and not disabled for the caller."""
        return self.is_open and not self.switch.is_disabled

    async def enter(self) -> bool:
        """Open the cache unless it is open here already; return whether the caller may use it.

        The caller may not if the cache is off, or if another event loop has it or takes it at the same time.
        """
        if self.switch.is_off:
            return False
        try:
            await self.ready()
        except InUse:
            self.switch.warn()
            return False
        return True

    async def aclose(self) -> None:
        """Wait for loads up to `drain_for` seconds, cancel the rest, release their leases, and disconnect.

        Raises:
            ConfigurationError: a loader closes the cache that waits for it.
        """
        for flight in (flight for code in deadlocks.chain() for flight in code.flights.values()):
            if flight.owner is self.runtime and not flight.done.is_set():
                raise ConfigurationError(
                    f"the loader of {flight.key!r} closes the cache that waits for it: close a cache where you open it"
                )
        if self._opening.is_done and self._tasks.is_here:
            await self._tasks.aclose()
            await self.store.aclose(self.notifications.handle)

    @property
    def is_open(self) -> bool:
        """Return whether the cache is open on the running event loop."""
        return self._opening.is_done and self._tasks.is_open

    @property
    def is_store_up(self) -> bool:
        """Return whether, as far as this process knows, the store is reachable and no invalidation is pending."""
        return self.notifications.is_store_reachable and not self.store.has_pending

    def start(self, function: Callable[[*Ts], Awaitable[Any]], *args: *Ts) -> None:
        """Run `function(*args)` in a background task of the cache, which closing cancels."""
        self._tasks.start(function, *args)

    async def _settled(self) -> None:
        await self._path.leave_behind()
        await self.store.settled()

    def _ended(self) -> None:
        self._opening.is_done = False
        self.flights.clear()
        self.backoffs.clear()
        self._renewals.clear()
        self.store.forget()

    async def fetch(
        self, key: str, job: Reading, limits: Limits = NO_LIMITS, patience: Timeout = None, early: float = 0.0
    ) -> Outcome[Any]:
        """Return the value of `key`: the stored one if it may be served, or the one that the job loads.

        If the cache is off or another event loop has just taken it, the job bypasses the cache.

        Parameters:
            key: the key to read.
            job: how the value is loaded.
            limits: the limits of the reader.
            patience: seconds that the reader waits for a load if there is an entry to fall back on; "auto": see
                `Policy`; None: until the load ends.
            early: see `Policy`.

        Raises:
            Exception: whatever the loader raised, if there is no entry to fall back on.
            CodecError: the value cannot be stored in Redis.
        """
        entry, clock = self.store.peek(key), self.runtime.clock
        decision = MISSING if entry is None else decide(entry, clock(), limits)
        error: BaseException | None = None
        if decision is not FRESH and not self.is_open and not await self.enter():
            return await job.call_past()
        try:
            asked = not decision.serve
            if asked:
                tally = self.counts.of(job.loader)
                entry = await self._reads.read(key, job, tally, entry, limits)
                decision = decide(entry, clock(), limits)
                tally.note_read(found=entry is not None)
            if entry is not None and decision.serve:
                state = decision.state
                is_due = decision.revalidate is Revalidate.BACKGROUND
                if early and not is_due:
                    # The caller of a fresh hit may run on another event loop than the cache.
                    draw = self.runtime.uniform(0.0, 1.0)
                    is_due = is_due_early(entry, clock(), early, draw) and await self.enter()
                if is_due:
                    self.refresh_soon(key, job, entry)
            else:
                entry, state, error = await self._wait_for(key, job, entry, patience)
        except BaseException:
            self.tell_miss(key, job.loader)
            raise
        layer = Layer.LOAD if not decision.serve else Layer.REDIS if asked else Layer.L1
        self.tell(key, entry, state, error, layer)
        if asked or state is not State.FRESH:
            log_read(self.backoffs, key, decision.serve, asked, state, error)
        return Outcome(entry.value, state, max(0.0, clock() - entry.created_at), error)

    async def _wait_for(
        self, key: str, job: Job, entry: Entry[Any] | None, patience: Timeout
    ) -> tuple[Entry[Any], State, BaseException | None]:
        """Return the entry that a load brings, or the fallback, with its state and the failure of the load."""
        again = 0
        while True:
            flight = self.begin(key, job, entry)
            await self.wait(flight, patience)
            loaded = flight.loaded
            if loaded is not None:
                if not flight.superseded or again == AGAIN:
                    return loaded, State.MISSING, None
                again += 1
                # The invalidation outdated the flight's entry, too. Another load may have stored one meanwhile.
                entry = self.store.peek(key)
                if entry is not None and decide(entry, self.clock()) is FRESH:
                    return entry, State.FRESH, None
            elif flight.has_no_value:
                # A batch loader found that there is no value. This caller has another loader, which must run, too.
                entry = None
            else:
                fallback = self.fallback(flight, flight.error)
                if fallback is not None:
                    return self.given(fallback, flight)
                if flight.error is not None and not flight.must_be_repeated:
                    raise flight.failure()
                # The reader's patience has ended, or the flight backed off. An invalidation may have outdated `entry`,
                # so the next flight must not fall back on it.
                entry = patience = None

    def tell(
        self,
        key: str,
        entry: Entry[Any],
        state: State,
        error: BaseException | None = None,
        layer: Layer = Layer.LOAD,
    ) -> None:
        """Count a read that got an entry, and publish its event.

        Parameters:
            layer: the layer that answered the read.
        """
        self.counts.of(entry.loader).reads(state).add(layer)
        self.publish_read(key, entry, state, error, layer)

    def tell_miss(self, key: str, origin: str) -> None:
        """Count a read that got no entry, and publish its event.

        Parameters:
            origin: the loader of the key; see `Entry.loader`.
        """
        tally = self.counts.of(origin)
        tally.missing.add(Layer.LOAD)
        self.events.publish(Miss, key, tally.loader, tally.route)

    def publish_read(
        self, key: str, entry: Entry[Any], state: State, error: BaseException | None, layer: Layer
    ) -> None:
        """Publish the event of a read that got an entry, if the event has subscribers; see `tell`."""
        kind = Miss if state is State.MISSING else Hit if state is State.FRESH else Stale
        if not self.events.has_subscriber(kind):
            return
        events, tally, now = self.events, self.counts.of(entry.loader), self.clock()
        age, loader, route = max(0.0, now - entry.created_at), tally.loader, tally.route
        if kind is Miss:
            events.publish(Miss, key, loader, route)
        elif kind is Hit:
            events.publish(Hit, key, age, layer.value, loader, route)
        else:
            events.publish(Stale, key, age, max(0.0, now - entry.fresh_until), error, layer.value, loader, route)

    def outcome(self, entry: Entry[Any], state: State, error: BaseException | None = None) -> Outcome[Any]:
        """Return the outcome of a read that got `entry`."""
        return Outcome(entry.value, state, max(0.0, self.clock() - entry.created_at), error)

    def refresh_soon(self, key: str, job: Job, entry: Entry[Any], *, forced: bool = False) -> Flight | None:
        """Refresh `key` in the background, unless it `backs_off`; with `forced`, even then."""
        # The cache may have been closed during the read. Its entry is an answer anyway.
        may_refresh = self._tasks.is_open and (forced or not self.backs_off(key))
        return self._path.launch(key, job, entry, forced=forced, is_behind=True) if may_refresh else None

    def backs_off(self, key: str) -> bool:
        """Return whether a load of `key` is under way, in this process or another, or the key backs off."""
        return key in self.flights or self.backoffs.left(key) > 0

    async def wait(self, flight: Flight, patience: Timeout = None) -> None:
        """Wait until `flight` has ended, for `patience` seconds at most."""
        await deadlocks.wait((flight,), self.patience_for((flight,), patience))

    def patience_for(self, flights: Iterable[Flight], patience: Timeout) -> float | None:
        """Return the seconds that a reader waits for `flights`; None: until they end. See `Endings.patience_for`."""
        return self._endings.patience_for(flights) if patience == "auto" else patience

    def begin(
        self, key: str, job: Job, entry: Entry[Any] | None, *, forced: bool = False, newer_than: int | None = None
    ) -> Flight:
        """Return the flight of `key` that is under way, or begin one.

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
                    flight.state = Finished(Failed(error, is_earlier=True))
                    flight.done.set()
                    return flight
            flight = self._path.launch(key, job, entry, forced=forced, newer_than=newer_than, chain=chain)
        else:
            self._path.join(flight, entry)
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

    def given(self, fallback: Entry[Any], flight: Flight) -> tuple[Entry[Any], State, BaseException | None]:
        """Return a fallback, its state, and the failure of `flight`. It is fresh if another load just stored it."""
        error = None if flight.error is None else flight.failure()
        is_fresh = error is None and decide(fallback, self.clock()) is FRESH
        return fallback, State.FRESH if is_fresh else State.STALE, error

    def is_loading(self, key: str) -> bool:
        """Return whether a load of `key` is under way in this process."""
        return key in self.flights

    def snapshot(self) -> Snapshot:
        """Return a snapshot for a load without a flight that begins now."""
        return Snapshot(self.clock(), self.store.tag_versions.newest, self.flights.fence)

    async def invalidate(self, *keys: str) -> None:
        """See `Store.invalidate`."""
        await self.portal.reach(self.entries.invalidate, *keys)

    async def invalidate_tag(self, *names: Name) -> None:
        """See `Store.invalidate_tag`."""
        await self.portal.reach(self.entries.invalidate_tag, *names)

    async def invalidate_announced(self, *tags: str) -> None:
        """See `Store.invalidate_announced`."""
        await self.portal.reach(self.entries.invalidate_announced, *tags)

    async def put(
        self, key: str, codec: Codec, value: Any, policy: Policy, snapshot: Snapshot, known: int = NEWEST
    ) -> bool:
        """Store a value that has no flight; see `direct.put`."""
        return await direct.put(self.runtime, self.flights, key, codec, value, policy, snapshot, known)
