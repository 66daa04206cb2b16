"""Collects what the fleet does, in one task that serves all open pages."""

import functools
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar, TypeVarTuple

import anyio

from swr.cache import Cache
from swr.dashboard.fleet import Fleet, Seen
from swr.dashboard.keys import SECRET_BYTES, Keys
from swr.dashboard.moments import CallSeen, Happening
from swr.dashboard.parts import Queue
from swr.dashboard.queues import queues_of
from swr.dashboard.state import State
from swr.dashboard.telling import About, call_of, happening_of, state_of
from swr.engine.background import running_loop
from swr.errors import StoreUnavailable
from swr.reports.digest import CallReport, Digest, HappeningReport, decode
from swr.reports.reporter import Reporter
from swr.stores.base import StoreRefused
from swr.stores.redis.store import RedisStore
from swr.stores.threads import in_thread
from swr.stores.tiered import TieredStore

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

log = logging.getLogger("swr")

# Seconds between two looks, while a page is open and while none is.
_WATCHED_EVERY: Final = 1.0
_UNWATCHED_EVERY: Final = 10.0
# Seconds after the last request for which a page counts as open. Pages reconnect their streams every few seconds.
_WATCHED_FOR: Final = 5.0
# The most events, and the most calls, that are kept for streams.
_MOST_HELD: Final = 500
# The most calls, and the most events, of other processes that one look adds.
_MOST_SHOWN: Final = 100
# The most processes whose digests are handled on the event loop. More are handled in a thread.
_SMALL: Final = 8


class Held:
    """The last events or calls, numbered, so that a stream can ask for those after the last one it sent."""

    def __init__(self) -> None:
        self.number = 0
        self._held: deque[tuple[int, Any]] = deque(maxlen=_MOST_HELD)

    def add(self, thing: Any) -> None:
        """Add one, and forget the oldest if there are too many."""
        self.number += 1
        self._held.append((self.number, thing))

    def skip(self, count: int) -> None:
        """Note that `count` of them were left out."""
        self.number += count

    def since(self, number: int) -> tuple[list[Any], int]:
        """Return those after a number, and how many after it were left out or are forgotten already."""
        found = [thing for own, thing in self._held if own > number]
        return found, max(0, self.number - number - len(found))


class Hub:
    """The collector of the fleet's state, events and calls.

    While no page is open, it looks at the fleet every ten seconds, so that the plots have a past when a page opens.

    Parameters:
        cache: the cache of the process that serves the dashboard.
        keys: makes keys presentable.
        actions, simulate: what users may do; see `State`.
        beside: whether this process is not part of the fleet that it shows.

    Attributes:
        state: the present state; None before the first look.
        happenings, calls: the last events and calls, in the order in which they came.
        fleet: the processes.
    """

    def __init__(self, cache: Cache, keys: Keys, *, actions: bool, simulate: bool, beside: bool) -> None:
        self.state: State | None = None
        self.happenings, self.calls = Held(), Held()
        self.fleet = Fleet()
        self._cache = cache
        self._keys = keys
        self._allowed = (actions, simulate)
        self._beside = beside
        self._queues: list[Queue] = []
        self._has_secret = False
        self._watched_until = 0.0
        # The event loop on which the collecting task runs.
        self._loop: object = None
        self._looked, self._woken = anyio.Event(), anyio.Event()
        self._note = ""
        self._alone = "No process is shown" if beside else "Only this process is shown"
        cache.report(publishes=not beside)
        cache.engine.on_opened.append(self._start)

    # -- watching ---------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Note that a page is open, and wait until there is a recent state."""
        now = time.monotonic()
        was_watched, self._watched_until = now < self._watched_until, now + _WATCHED_FOR
        self._reporter.watch()
        await self.begin()
        if not was_watched:
            self._woken.set()
        if self.state is None or not was_watched:
            await self._looked.wait()

    async def begin(self) -> None:
        """Begin to collect, unless the task already runs on this event loop."""
        await self._cache.engine.ready()
        self._start()

    def _start(self) -> None:
        loop = running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._looked, self._woken = anyio.Event(), anyio.Event()
            self._reporter.watching.listen(self._on_own_call, self._on_own_happening)
            self._cache.engine.start(self._run)

    async def next(self) -> None:
        """Wait for the next look at the fleet."""
        await self._looked.wait()

    @property
    def _reporter(self) -> Reporter:
        return self._cache.report()

    @property
    def store(self) -> RedisStore | None:
        """The store in Redis; None: the cache is in memory."""
        tiered = self._cache.engine.store
        return tiered.store if isinstance(tiered, TieredStore) and isinstance(tiered.store, RedisStore) else None

    # -- looking ----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while True:
                await self._look_safely()
                # A process beside the fleet is the only one that looks, so it can always look often.
                is_watched = self._beside or time.monotonic() < self._watched_until
                with anyio.move_on_after(_WATCHED_EVERY if is_watched else _UNWATCHED_EVERY):
                    await self._woken.wait()
                self._woken = anyio.Event()
        finally:
            self._loop = None
            self._looked.set()

    async def _look_safely(self) -> None:
        try:
            await self._look()
        except Exception:
            log.exception("the dashboard could not look at the fleet; it tries again")
        looked, self._looked = self._looked, anyio.Event()
        looked.set()

    async def _look(self) -> None:
        own = self._reporter.digest()
        digests, is_whole = await self._digests(own)
        shown = {name: digest for name, digest in digests.items() if not (self._beside and name == own.id)}
        ages = self.store.digests.ages if is_whole and self.store is not None else {}
        look = functools.partial(self.fleet.look, is_whole=is_whole, ages={**ages, own.id: 0.0})
        happenings, calls, dropped = await _apart(len(shown), look, shown)
        others = [(process, event) for process, event in happenings if process != own.id]
        self.happenings.skip(max(0, len(others) - _MOST_SHOWN))
        for process, event in others[-_MOST_SHOWN:]:
            self.happenings.add(happening_of(process, event, self._keys))
        theirs = [(process, call) for process, call in calls if process != own.id]
        self.calls.skip(dropped + max(0, len(theirs) - _MOST_SHOWN))
        for process, call in theirs[-_MOST_SHOWN:]:
            self.calls.add(call_of(process, call, self._keys))
        actions, simulate = self._allowed
        about = About(
            self._cache.namespace,
            None if self._beside else own.id,
            actions,
            simulate,
            is_whole,
            self._note,
            Seen(own, own.at, 0.0),
            self._queues,
            tuple(f"{prefix}/" for prefix in self._cache.mounted if prefix),
        )
        self.state = await _apart(len(shown), state_of, time.time(), self.fleet, self._keys, about)

    async def _digests(self, own: Digest) -> tuple[dict[str, Digest], bool]:
        """Return the digests of the processes that can be seen, and whether these are all processes."""
        store, digests = self.store, {own.id: own}
        if store is None:
            # With Redis, each turn of the reporter begins when it writes its digest. Without Redis, it begins here.
            self._reporter.turn()
            self._note = "The cache is in the memory of this process."
            return digests, True
        try:
            await self._share_secret(store)
            if time.monotonic() < self._watched_until:
                await store.digests.watch(_WATCHED_FOR)
                await self._look_at_queues(store)
            found = await store.digests.read()
        except StoreUnavailable as error:
            self._note = f"{self._alone}: {error}"
            return digests, False
        if store.digests.refused:
            # Redis probably refuses the digests of the other processes, too, so the stored digests may be old.
            self._note = f"{self._alone}: Redis refuses what processes report ({store.digests.refused})"
            return digests, False
        self._note = ""
        others = await _apart(len(found), _decoded, found)
        self.fleet.unreadable = store.digests.unreadable + len(found) - len(others)
        # This process's own digest is newer than the one in Redis.
        return {**others, **digests}, True

    async def _look_at_queues(self, store: RedisStore) -> None:
        """Look at the queues. If Redis refuses that, show the rest of the fleet without them.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        try:
            self._queues, self.fleet.unseen = await queues_of(store, self._keys), ""
        except StoreRefused as error:
            self._queues, self.fleet.unseen = [], f"The queues cannot be seen: {error}"

    async def _share_secret(self, store: RedisStore) -> None:
        if not self._has_secret:
            secret = await store.digests.secret(self._keys.secret)
            if len(secret) == SECRET_BYTES:
                self._keys.secret = secret
            self._has_secret = True

    def _on_own_call(self, call: CallReport) -> None:
        shown: CallSeen = call_of(self._reporter.id, call, self._keys)
        self.calls.add(shown)

    def _on_own_happening(self, event: HappeningReport) -> None:
        shown: Happening = happening_of(self._reporter.id, event, self._keys)
        self.happenings.add(shown)
        if self._beside:
            # While Redis is unreachable, no process of the fleet can report that. So mark the outage from here.
            self.fleet.mark([(self._reporter.id, event)], event.at)


async def _apart(processes: int, function: Callable[[*Ts], T], *args: *Ts) -> T:
    """Call a function, for a large fleet in a thread, and return its result.

    Parameters:
        processes: the number of processes that the function handles.
        function: the function.
        args: its arguments.
    """
    return function(*args) if processes <= _SMALL else await in_thread(function, *args)


def _decoded(found: dict[str, bytes]) -> dict[str, Digest]:
    return {name: digest for name, data in found.items() if (digest := decode(data)) and digest.id == name}
