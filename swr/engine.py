"""The one refresh path: flight, lease, second look, load, fenced commit, wake-up.

A miss, a stale hit, an early refresh, an explicit one and each key of a batch all run `Engine._fly`. Nothing else in
swr loads and stores.
"""

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVarTuple

import anyio
from cachetools import LRUCache

from swr import waiting
from swr.codec import Codec
from swr.decision import FRESH, MISSING, Revalidate, decide, is_due_early
from swr.entry import Entry, Outcome, State, stamp
from swr.errors import ConfigurationError, LeaseLost, LoadTimeout, StoreUnavailable, SWRError
from swr.events import (
    Committed,
    FencedOff,
    Hit,
    Invalidated,
    LeaseHeld,
    LeaseWaited,
    LoadBegun,
    Loaded,
    LoadFailed,
    Miss,
    Publisher,
    Stale,
    StoreDown,
    StoreUp,
)
from swr.flag import Flag
from swr.flight import Flight, Job
from swr.load import Load, Since
from swr.policy import NO_LIMITS, Limits, Policy
from swr.renewal import Renewals
from swr.revalidator import Revalidator, running_loop
from swr.stores.barriers import ALL
from swr.stores.base import NEWEST, Kind, Lease, LeasingStore, Message

log = logging.getLogger("swr")
Ts = TypeVarTuple("Ts")

# A load that an invalidation overtook is done again, so often at most; then its value is answered, not stored.
AGAIN: Final = 2
_LONGEST_PAUSE: Final = 60.0
# News may be lost: whoever waits for it asks again after this many seconds at the latest.
_LONGEST_WAIT: Final = 1.0
_SHORTEST_WAIT: Final = 0.01
_THREADS: Final = 40
# The fence of a flight that has been overtaken in its own process.
_PARTED: Final = -1


class Engine:
    """Runs jobs over a store.

    Parameters:
        store: where entries and leases lie.
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
        self.events = Publisher()
        self.fence = 0
        # The event loop's clock, without anyio's asking each time which loop that is.
        self.time: Callable[[], float] = anyio.current_time
        # Since when the store is known to be away, in seconds of a clock that outlives event loops.
        self._down_since: float | None = None
        self.lease_for = lease_for
        self.drain_for = drain_for
        self.uniform = uniform
        self._owner = Revalidator(drain_for, store.settled, self._ended)
        self._opened = False
        self._opening: tuple[object, anyio.Event] | None = None
        self._flights: dict[str, Flight] = {}
        # Those that are under way, and that nobody joins any more.
        self._parted: dict[str, set[Flight]] = {}
        # Keys whose lease was denied, or whose load failed: until when not to ask again, and why.
        self._denied: LRUCache[str, tuple[float, BaseException | None]] = LRUCache(10_000)
        self._tokens = 0
        self._renewals = Renewals(self)
        # Who hears of every message, beside the engine.
        self._listeners: list[Callable[[Message], None]] = []

    # -- opening and closing ----------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Open, unless it is open here already.

        Raises:
            ConfigurationError: the cache is in use on another event loop.
        """
        while not (self._opened and self._owner.is_open):
            loop = running_loop()
            if self._opening is not None and self._opening[0] is loop:
                await self._opening[1].wait()
                continue
            self._opening = opening = (loop, anyio.Event())
            try:
                with anyio.CancelScope(shield=True):
                    await self._owner.open()
                    self.threads = anyio.CapacityLimiter(_THREADS)
                    self.time = loop.time if isinstance(loop, asyncio.AbstractEventLoop) else anyio.current_time
                    self._instance = secrets.token_hex(8)
                    try:
                        await self.store.open(self._owner.start_last, self._hear)
                    except BaseException:
                        await self._owner.aclose()
                        raise
                    self._opened = True
            finally:
                self._opening = None
                opening[1].set()

    async def aclose(self) -> None:
        """Wait for loads within the grace period, cancel the rest, give back their leases, disconnect.

        Raises:
            ConfigurationError: it is a load itself that does this, and would be waited for.
        """
        for flight in waiting.chain():
            if flight.engine is self and not flight.done.is_set():
                raise ConfigurationError(
                    f"the loader of {flight.key!r} closes the cache that waits for it: close it where it was opened"
                )
        if self._opened and self._owner.is_here:
            await self._owner.aclose()
            await self.store.aclose(self._hear)

    @property
    def is_store_up(self) -> bool:
        """Whether the store is there, as far as is known: before the first opening it is."""
        return self._down_since is None

    def _ended(self) -> None:
        self._opened = False
        self._flights.clear()
        self._parted.clear()
        self._denied.clear()
        self._renewals.clear()
        self.store.forget()

    # -- news -------------------------------------------------------------------------------------------------

    def listen(self, listener: Callable[[Message], None]) -> Callable[[], None]:
        """Have `listener` told of every message of the store; what is returned ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def start(self, function: Callable[[*Ts], Awaitable[Any]], *args: *Ts) -> None:
        """Run `function(*args)` in a task of the cache's own, to the end of the cache at the latest."""
        self._owner.start(function, *args)

    def _hear(self, message: Message) -> None:
        for listener in self._listeners:
            listener(message)
        kind, name, version, elsewhere = message
        if kind is Kind.QUEUED:
            return
        if kind is Kind.DOWN:
            if self._down_since is None:
                self._down_since = time.monotonic()
                self.events.publish(StoreDown, name)
            return
        if kind is Kind.REPEATED:
            self._tell_of_tag(name, elsewhere=True)
            return
        if kind is Kind.BARRIER or kind is Kind.UP:
            # Of what was said before the link was up nothing was heard; a load without a lease may have missed it.
            self.fence += 1
            if kind is Kind.UP and self._down_since is not None:
                away, self._down_since = time.monotonic() - self._down_since, None
                self.events.publish(StoreUp, away)
            if elsewhere:
                self._tell_of_tag(name, elsewhere=True)
            return
        if kind is Kind.INVALIDATED:
            self._doom(name, version or NEWEST)
            if elsewhere:
                self.events.publish(Invalidated, name, None, True)
        self._denied.pop(name, None)
        self._wake(name)

    def _tell_of_tag(self, tag: str, *, elsewhere: bool) -> None:
        self.events.publish(Invalidated, None, None if tag == ALL else tag, elsewhere)

    def _doom(self, key: str, version: int) -> None:
        flight = self._flights.get(key)
        if flight is not None and flight.entry is not None and flight.entry.version < version:
            # The load may be newer than this news; what stands in if it fails is not.
            flight.entry = None
        if flight is not None and (flight.version is None or flight.version < version):
            # Whoever calls from now on starts another.
            self._part(flight)
            flight.doomed = flight.version is not None

    def _part(self, flight: Flight) -> None:
        """Have nobody join `flight` any more. No news of its key reaches it, so what it knows counts no longer."""
        del self._flights[flight.key]
        self._parted.setdefault(flight.key, set()).add(flight)
        flight.fence = _PARTED

    def _wake(self, key: str) -> None:
        flight = self._flights.get(key)
        if flight is not None:
            flight.hear()
        for flight in self._parted.get(key, ()):
            flight.hear()

    # -- asking -----------------------------------------------------------------------------------------------

    async def fetch(
        self, key: str, job: Job, limits: Limits = NO_LIMITS, patience: float | None = None, early: float = 0.0
    ) -> Outcome[Any]:
        """Return the value of `key`: what is stored if it may be served, else what the job loads.

        Parameters:
            key: what is asked for.
            job: how it is loaded.
            limits: what the reader accepts.
            patience: seconds that the reader waits for a load if something stored can stand in; None: to its end.
            early: see `Policy`.

        Raises:
            Exception: whatever the loader raised, where nothing stored can stand in.
            CodecError: the value cannot be stored in Redis.
        """
        entry = self.store.peek(key)
        decision = MISSING if entry is None else decide(entry, self.clock(), limits)
        error: BaseException | None = None
        try:
            if decision is not FRESH and not (self._opened and self._owner.is_open):
                await self.ready()
            if not decision.serve:
                entry = await self.store.read(key, job.codec)
                decision = decide(entry, self.clock(), limits)
            if entry is not None and decision.serve:
                state = decision.state
                if decision.revalidate is Revalidate.BACKGROUND:
                    self.refresh_soon(key, job, entry)
                elif early and is_due_early(entry, self.clock(), early, self.uniform(0.0, 1.0)):
                    await self.ready()
                    self.refresh_soon(key, job, entry)
            else:
                entry, state, error = await self._wait_for(key, job, entry, patience)
        except BaseException:
            self.events.publish(Miss, key)
            raise
        if state is State.MISSING or self.events.reads:
            self.tell(key, entry, state, error)
        return Outcome(entry.value, state, max(0.0, self.clock() - entry.created_at), error)

    async def _wait_for(
        self, key: str, job: Job, entry: Entry[Any] | None, patience: float | None
    ) -> tuple[Entry[Any], State, BaseException | None]:
        """Return what a load brings, or what stands in for it and why."""
        again = 0
        while True:
            flight = await self.join(key, job, entry, patience)
            if flight.left:
                # Somebody who asked for several has found that there is none; a loader of one speaks for itself.
                entry = None
            elif flight.landed is None:
                fallback = self.fallback(flight, flight.error)
                if fallback is not None:
                    return fallback, State.STALE, flight.error
                if flight.error is not None:
                    raise flight.error
                # The reader's patience has ended, and nothing can stand in (any more).
                patience = None
            elif not flight.doomed or again == AGAIN:
                return flight.landed, State.MISSING, None
            else:
                again += 1
                # What the flight knew is what it was overtaken for.
                entry = self.store.peek(key)

    def tell(self, key: str, entry: Entry[Any], state: State, error: BaseException | None = None) -> None:
        """Tell whoever listens that a reader is given `entry`."""
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
        """Refresh `key` in the background, unless `keeps_off`."""
        # Closed, perhaps, while the store was asked: the entry is an answer all the same.
        return None if self.keeps_off(key) or not self._owner.is_open else self._launch(key, job, entry)

    def keeps_off(self, key: str) -> bool:
        """Whether somebody refreshes `key` already, here or elsewhere, or all leave it alone for a while."""
        return key in self._flights or self.kept_off_for(key) > 0

    async def join(self, key: str, job: Job, entry: Entry[Any] | None, patience: float | None = None) -> Flight:
        """Wait for the load of `key` that is under way, or for one that begins now, for `patience` seconds at most.

        Return its flight; it is over if it has an error, or an entry that has landed.
        """
        flight = self.begin(key, job, entry)
        await waiting.wait((flight,), patience)
        return flight

    def begin(
        self, key: str, job: Job, entry: Entry[Any] | None, *, forced: bool = False, since: int | None = None
    ) -> Flight:
        """Return the flight of the load of `key` that is under way, or of one that begins now.

        Parameters:
            forced: load, whatever is stored and whoever loads already.
            since: see `Flight`.
        """
        chain = waiting.chain()
        if chain:
            waiting.refuse_oneself(self, key, chain)
        flight = None if forced else self._flights.get(key)
        if flight is None:
            denied = None if forced or since is not None else self._denied.get(key)
            if denied is not None and denied[1] is not None and self.time() < denied[0]:
                flight = Flight(self, key, job, entry, self.fence)
                if self.fallback(flight, denied[1]) is not None:
                    flight.error = denied[1]
                    flight.done.set()
                    return flight
            flight = self._launch(key, job, entry, forced=forced, since=since, chain=chain)
        elif entry is not None and (flight.entry is None or flight.entry.version < entry.version):
            # The flight began without it; it may stand in all the same.
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
            await waiting.wait((flight,))
            if flight.error is not None:
                raise flight.error
            assert flight.landed is not None
            if not flight.doomed or again == AGAIN:
                return self.outcome(flight.landed, State.MISSING)
            again += 1

    def fallback(self, flight: Flight, error: BaseException | None = None) -> Entry[Any] | None:
        """Return what may be answered if the load of `flight` fails, with `error` or at all."""
        entry = flight.entry if flight.fence == self.fence else self.store.peek(flight.key)
        now = self.clock()
        decision = decide(entry, now)
        if entry is None or not (decision.serve or decision.fallback):
            return None
        return entry if error is None or flight.job.masks(entry, error, now) else None

    def kept_off_for(self, key: str) -> float:
        """Return for how many seconds nobody here is to ask for the lease of `key` again."""
        denied = self._denied.get(key)
        return 0.0 if denied is None else max(0.0, denied[0] - self.time())

    def is_loading(self, key: str) -> bool:
        """Whether a load of `key` is under way in this process."""
        return key in self._flights

    def since(self) -> Since:
        """Return what is known now, for a load without a flight."""
        return Since(self.clock(), self.store.barriers.head, self.fence)

    async def invalidate(self, key: str) -> None:
        """See `Store.invalidate`."""
        await self.ready()
        await self.store.invalidate(key)
        self.events.publish(Invalidated, key, None, False)

    async def invalidate_tag(self, tag: str) -> None:
        """See `Store.invalidate_tag`."""
        await self.ready()
        await self.store.invalidate_tag(tag)
        self._tell_of_tag(tag, elsewhere=False)

    # -- the path ---------------------------------------------------------------------------------------------

    def _launch(
        self,
        key: str,
        job: Job,
        entry: Entry[Any] | None,
        *,
        forced: bool = False,
        since: int | None = None,
        chain: waiting.Chain = (),
    ) -> Flight:
        if not self._owner.is_open:
            raise SWRError(f"the cache was closed while {key!r} was asked for")
        before = self._flights.get(key)
        if before is not None:
            self._part(before)
        flight = self._flights[key] = Flight(self, key, job, entry, self.fence, forced=forced, since=since)
        flight.scope = self._owner.start(self._fly, flight, chain, drained=True, context=job.context)
        return flight

    async def _fly(self, flight: Flight, chain: waiting.Chain) -> None:
        self._tokens += 1
        token = f"{self._instance}{self._tokens:x}"
        asked = self.time()
        lease: Lease | None = None
        try:
            try:
                lease = await self._win(flight, token)
            except BaseException:
                # One of this token may stand, or not.
                lease = Lease(flight.key, token, 0, 0)
                raise
            finally:
                if flight.refused is not None:
                    self.events.publish(LeaseWaited, flight.key, self.time() - flight.refused)
            if flight.done.is_set():
                return
            load = Load(self, flight, lease)
            self.events.publish(LoadBegun, flight.key, self.time() - asked)
            if lease is not None:
                self._renewals.begin(load)
            waiting.begin((*chain, flight))
            try:
                await flight.job.run(load)
            finally:
                self._renewals.end(load)
                load.stop_timer()
            if not flight.is_over:
                raise SWRError(f"the loader of {flight.key!r} ended without a value")
        except anyio.get_cancelled_exc_class() as error:
            if flight.is_over or self._owner.is_closing or not isinstance(error, asyncio.CancelledError):
                raise
            # Not our doing: something inside the loader was cancelled. That is the load's failure, and nobody else's.
            await self.failed(flight, lease, SWRError(f"the loader of {flight.key!r} was cancelled from within"))
        except BaseException as error:
            # A loader's SystemExit is its callers' to raise; here it would end every other load.
            if flight.is_over:
                log.exception("what ran on after %r was stored or given up failed", flight.key)
            else:
                await self.failed(flight, lease, error)
        finally:
            if not flight.is_over:
                flight.error = SWRError(f"the cache was closed while {flight.key!r} was loaded")
                self.finish(flight)
                if lease is not None:
                    with anyio.CancelScope(shield=True), anyio.move_on_after(1.0):
                        await self.store.release(lease)

    async def _win(self, flight: Flight, token: str) -> Lease | None:
        """Get the lease, waiting behind others. None: the store is away, or the flight is over without a load."""
        known = flight.entry.version if flight.entry is not None else 0
        if flight.forced:
            known = NEWEST
        elif flight.since is not None:
            known = flight.since
        while True:
            # News that comes while the answer is on its way must not be slept through.
            flight.has_news = False
            if flight.answered.is_set():
                flight.answered = Flag()
            try:
                answer = await self.store.acquire(
                    flight.key,
                    token,
                    self.lease_for,
                    known,
                    flight.job.codec,
                    # Where nothing can be served nobody keeps off: each caller is owed its loader's own answer.
                    force=flight.forced or (not _is_unasked(flight) and self.fallback(flight) is None),
                )
                flight.answered.set()
                if isinstance(answer, Lease):
                    return answer
                if isinstance(answer, Entry):
                    # The second look: somebody else has loaded it. Whoever waited for that takes it as it is.
                    flight.entry = answer
                    # That there is none says only who is asked for several.
                    taken = flight.refused is not None or flight.forced or decide(answer, self.clock()) is FRESH
                    if (taken or _is_unasked(flight)) and not answer.absent:
                        flight.landed = answer
                        self.finish(flight)
                        return None
                    known = answer.version
                    continue
                if answer.failures and flight.waiters and self.fallback(flight) is None:
                    # What could have been served was invalidated meanwhile: now nobody keeps off.
                    continue
                if flight.refused is None:
                    self.events.publish(LeaseHeld, flight.key, answer.retry_after, answer.failures)
                if answer.failures or not (flight.waiters or flight.forced):
                    if flight.has_news:
                        # The lease may have been given back since.
                        continue
                    self._keep_off(flight, answer.retry_after, answer.failures)
                    return None
                if known == NEWEST:
                    known = answer.now
                if flight.refused is None:
                    flight.refused = self.time()
                with anyio.move_on_after(min(_LONGEST_WAIT, max(_SHORTEST_WAIT, answer.retry_after))):
                    await flight.news()
            except StoreUnavailable as error:
                if _is_unasked(flight):
                    # Nobody waits, and one process's memory is not what it was to fill.
                    flight.error = error
                    self.finish(flight)
                return None
            finally:
                flight.answered.set()

    def _keep_off(self, flight: Flight, retry_after: float, failures: int) -> None:
        """End the flight without a load: somebody else has the lease, or all keep off after failures."""
        if failures:
            denied = self._denied.get(flight.key)
            flight.error = (denied and denied[1]) or SWRError(
                f"the last {failures} loads of {flight.key!r} failed in another process; "
                f"the next is tried in {retry_after:.1f} s"
            )
        self._denied[flight.key] = (self.time() + retry_after, flight.error)
        self.finish(flight)

    async def failed(self, flight: Flight, lease: Lease | None, error: BaseException) -> None:
        """End a flight whose load has failed: give its lease back, and keep off for a while if anything stands in."""
        pause = 0.0
        if flight.ended is None:
            flight.ended = self.time()
        stands_in = self.fallback(flight, error) is not None
        if stands_in or flight.since is not None:
            failures = 0 if lease is None else lease.failures
            pause = min(_LONGEST_PAUSE, 2.0 ** min(failures, 10)) * self.uniform(0.75, 1.25)
            log.warning(
                "the load of %r failed (%s: %s); %sthe next try comes in %.1f s",
                flight.key,
                type(error).__name__,
                error,
                "what is stored stands in, " if stands_in else "",
                pause,
                exc_info=None if isinstance(error, SWRError) else error,
            )
        if lease is not None:
            await self.store.release(lease, pause)
        if pause:
            # After the release, whose message says that the lease may be asked for again.
            self._denied[flight.key] = (self.time() + pause, error)
        flight.error = error
        self.finish(flight)

    def expire_later(
        self,
        load: Load,
        at: float,
        timer: anyio.CancelScope,
        error: LoadTimeout,
        given_up: Callable[[BaseException], None] | None,
    ) -> None:
        """See `Load.limit`; `at` is a time of the event loop's clock, and cancelling `timer` prevents it."""
        self._owner.start(self._expire, load, at, timer, error, given_up)

    async def _expire(
        self,
        load: Load,
        at: float,
        timer: anyio.CancelScope,
        error: LoadTimeout,
        given_up: Callable[[BaseException], None] | None,
    ) -> None:
        with timer:
            await anyio.sleep_until(at)
        if timer.cancel_called or load.flight.is_over:
            return
        load.flight.expired = True
        load.flight.scope.cancel()
        self._renewals.end(load)
        if given_up is not None:
            given_up(error)
        # Nobody else ends the flight now, closing or not.
        with anyio.CancelScope(shield=True):
            await self.failed(load.flight, load.lease, error)

    async def put(self, key: str, codec: Codec, value: Any, policy: Policy, since: Since, known: int = NEWEST) -> bool:
        """Store one more value under a key of its own; False if something stands against it.

        Parameters:
            since: what was known when it was loaded.
            known: the version of what it is to replace, if nothing newer may have come.
        """
        self._tokens += 1
        lease = Lease(key, f"{self._instance}{self._tokens:x}", 0, 0)
        try:
            answer = await self.store.acquire(key, lease.token, self.lease_for, known, codec, force=True)
            if not isinstance(answer, Lease):
                self.events.publish(FencedOff, key)
                return False
            lease = answer
            await self.store.commit(lease, stamp(value, policy, since.began, lease.version, since.head), codec)
            self.events.publish(Committed, key, lease.version)
        except LeaseLost:
            self.events.publish(FencedOff, key)
            return False
        except StoreUnavailable:
            # Nobody fences this but this process itself.
            if since.fence != self.fence or (since.flight is not None and not self.is_current(since.flight)):
                self.events.publish(FencedOff, key)
                return False
            self.store.keep(key, stamp(value, policy, since.began, 0, since.head))
        except BaseException:
            # Whoever asked for this was cancelled; the lease would stand in everybody's way.
            with anyio.CancelScope(shield=True), anyio.move_on_after(1.0):
                await self.store.release(lease)
            raise
        return True

    def is_current(self, flight: Flight) -> bool:
        """Whether later callers would still join `flight`: no refresh or invalidation has come after it."""
        return self._flights.get(flight.key) is flight

    def finish(self, flight: Flight) -> None:
        """Release everyone who waits for `flight`, and those of this process who wait for its lease."""
        if self.is_current(flight):
            del self._flights[flight.key]
        elif flight.fence == _PARTED and (parted := self._parted.get(flight.key)) is not None:
            parted.discard(flight)
            if not parted:
                del self._parted[flight.key]
        if flight.landed is not None or flight.left:
            self._denied.pop(flight.key, None)
        flight.done.set()
        self._wake(flight.key)
        for then in flight.then:
            then(flight)
        if flight.began is not None:
            seconds = (self.time() if flight.ended is None else flight.ended) - flight.began
            if flight.error is None:
                self.events.publish(Loaded, flight.key, seconds)
            else:
                self.events.publish(LoadFailed, flight.key, seconds, flight.error)


def _is_unasked(flight: Flight) -> bool:
    """Whether it is a refresher's, and no reader has joined it."""
    return flight.since is not None and not flight.waiters
