"""Load many keys by one call of a loader. Each key has its own flight and lease; a call loads the keys with leases."""

from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context
from types import TracebackType
from typing import Any, Final

import anyio
import anyio.lowlevel

from swr.core.codec import Codec
from swr.core.decision import is_absent
from swr.engine.deadlocks import loads_also
from swr.engine.engine import Engine
from swr.engine.failures import for_caller, shortened
from swr.engine.flights import Flight
from swr.engine.load import Load
from swr.engine.load_slots import Seat, move
from swr.engine.one_shot_event import OneShotEvent
from swr.entry import Entry
from swr.errors import SWRError
from swr.loaders.calling import StoreIf, last_of, store_answer
from swr.policy import Policy

_ABSENT: Final = object()
# Number of loads that go on in one turn of the event loop after a call of the loader.
_ENDED_AT_ONCE: Final = 100
# Seconds that a load waits for further leases, when another process has failed and releases its leases one by one.
_GATHERED_FOR: Final = 0.01


class _Round:
    """One call of the loader, and the loads that wait for it."""

    __slots__ = ("_ends", "error", "loads", "short", "traceback", "values")

    def __init__(self) -> None:
        self.loads: dict[Any, Load] = {}
        self.values: Mapping[Any, Any] = {}
        self.error: BaseException | None = None
        # The traceback of the loader, without the frames of the loads.
        self.traceback: TracebackType | None = None
        # For all loads except the first: a shortened failure and its traceback, if the failure is long.
        self.short: tuple[BaseException, TracebackType | None] | None = None
        # Each event wakes `_ENDED_AT_ONCE` loads.
        self._ends: list[OneShotEvent] = []

    async def join(self, item: Any, load: Load) -> None:
        """Add `item` to the call, and wait until the call has ended."""
        if len(self.loads) // _ENDED_AT_ONCE >= len(self._ends):
            self._ends.append(OneShotEvent())
        self.loads[item] = load
        await self._ends[-1].wait()

    async def end(self, error: BaseException | None = None) -> None:
        """Wake the loads, a limited number in each turn of the event loop."""
        self.error = error
        if error is not None:
            self.traceback = error.__traceback__
            self.short = shortened(error, self.traceback)
        with anyio.CancelScope(shield=True):
            for number, event in enumerate(self._ends):
                if number:
                    await anyio.lowlevel.checkpoint()
                event.set()


class Batch:
    """The loads that one caller has begun.

    Parameters:
        engine: runs the flights.
        call: calls the loader with a list of items; returns values by item.
        codec: how values are written.
        absent_for: seconds for which swr remembers that an item has no value; 0: not at all.
        loader: see `Entry`.
        tags: returns, for an item, a function that makes tags from its value; or None.
        store_if: returns whether a value is stored; None: each is.
        new_seat: returns a seat, with which a call takes a slot of the loader; None: it needs no slot.

    The first load that gets its lease calls the loader. Before that, it waits until the store has answered every flight
    of this batch that asks for a lease. Flights that get a lease later are loaded by another call.
    """

    def __init__(
        self,
        engine: Engine,
        call: Callable[[list[Any]], Awaitable[Mapping[Any, Any]]],
        codec: Codec,
        absent_for: float,
        loader: str,
        tags: Callable[[Any], Callable[[Any], tuple[str, ...]] | None],
        store_if: StoreIf | None = None,
        new_seat: Callable[[], Seat] | None = None,
    ) -> None:
        self.engine = engine
        self.codec = codec
        self.absent_for = absent_for
        self.loader = loader
        self.tags = tags
        self.store_if = store_if
        self.new_seat = None if new_seat is None else new_seat().others
        self._is_called = False
        self._call = call
        # The flight of each item, in the order of the caller's items.
        self._flights: dict[Any, Flight] = {}
        # For each item, the event that the store has answered its first lease request.
        self._first: dict[Any, OneShotEvent] = {}
        self._gathering: _Round | None = None
        # Set when all items have been added to this batch.
        self._filled = OneShotEvent()

    def filled(self) -> None:
        """Note that all items have been added, so that the loader may be called."""
        self._filled.set()

    def begin(
        self,
        item: Any,
        key: str,
        policy: Policy,
        entry: Entry[Any] | None,
        *,
        forced: bool = False,
        newer_than: int | None = None,
    ) -> Flight:
        """Return the flight of `key` that is under way, or begin one in this batch."""
        part = Part(self, item, policy)
        flight = self.engine.begin(key, part, entry, forced=forced, newer_than=newer_than)
        if flight.job is part and not flight.done.is_set():
            self._note(item, flight)
        return flight

    def refresh_soon(
        self, entries: Mapping[Any, Entry[Any]], keys: Mapping[Any, str], policy: Callable[[Any], Policy]
    ) -> None:
        """Refresh the entries of some items in the background, in this batch, unless a refresh runs already.

        Parameters:
            entries: the stored entries, by item.
            keys: the keys, by item.
            policy: returns the policy of an item.
        """
        try:
            for item, entry in entries.items():
                flight = self.engine.refresh_soon(keys[item], Part(self, item, policy(item)), entry)
                if flight is not None:
                    self._note(item, flight)
        finally:
            self.filled()

    def _note(self, item: Any, flight: Flight) -> None:
        self._flights[item] = flight
        self._first[item] = flight.answered

    async def value(self, item: Any, load: Load) -> Any:
        """Return the loader's value of `item`; one call loads all items whose leases were won."""
        gathering = self._gathering
        if gathering is None:
            gathering = self._gathering = _Round()
            gathering.loads[item] = load
            await self._lead(gathering, item, load)
        else:
            await gathering.join(item, load)
        if gathering.error is not None:
            # One failure ends several loads. Each raises a copy, which collects only the frames of that load.
            is_first = load is next(iter(gathering.loads.values()))
            told = None if is_first else gathering.short
            raise for_caller(*(told or (gathering.error, gathering.traceback)), is_last=False)
        return gathering.values.get(item, _ABSENT)

    async def _lead(self, gathering: _Round, item: Any, load: Load) -> None:
        try:
            if load.flight.answered is not self._first[item]:
                # A load of another process has failed, and that process may release further leases in a moment.
                await anyio.sleep(_GATHERED_FOR)
            if not self._filled.is_set():
                await self._filled.wait()
            for flight in self._flights.values():
                # A notification makes a flight ask again, with a new event.
                while not flight.answered.is_set():
                    await flight.answered.wait()
            self._gathering = None
            loads_also(other.flight for other in gathering.loads.values())
            gathering.values = await self._called(gathering)
        except anyio.get_cancelled_exc_class():
            # If this load has timed out, the other loads have, too, and their own timers end them.
            if not load.flight.is_finished:
                await gathering.end(SWRError(f"the batch loader of {load.flight.key!r} was cancelled from within"))
            raise
        except BaseException as error:
            await gathering.end(error)
        else:
            await gathering.end()
        finally:
            if self._gathering is gathering:
                self._gathering = None

    async def _called(self, gathering: _Round) -> Mapping[Any, Any]:
        """Call the loader for the items of a round, with a slot of the loader."""
        items = [item for item in self._flights if item in gathering.loads]
        if self.new_seat is not None and self._is_called:
            # Another call of this batch is under way, and has the slot of the batch.
            await move([load.flight for load in gathering.loads.values()])
            return await self._call(items)
        self._is_called = True
        try:
            return await self._call(items)
        finally:
            self._is_called = False


class Part:
    """A job: one key of a batch.

    Parameters:
        batch: the batch.
        item: the item of the key in the loader's list.
        policy: how long the value may be served.
    """

    __slots__ = ("_item", "batch", "codec", "context", "loader", "policy")

    is_outer = False

    def __init__(self, batch: Batch, item: Any, policy: Policy) -> None:
        self.batch = batch
        self._item = item
        self.policy = policy
        self.codec = batch.codec
        self.loader = batch.loader
        self.context: Context | None = None

    @property
    def new_seat(self) -> Callable[[], Seat] | None:
        """A function that returns the seat of this part, with which it takes a slot of the loader; see `LoadTerms`."""
        return self.batch.new_seat

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of the policy. The answer of the loader may have other tags."""
        return self.policy.tags

    async def run(self, load: Load) -> None:
        """Call the loader of the batch, and store its answer for this key."""
        batch, flight, policy = self.batch, load.flight, self.policy
        if not flight.forced and _is_known_absent(flight, batch.engine.clock()):
            # Another load has found meanwhile that there is no value.
            await load.skip()
            return
        load.limit(policy.hard_timeout)
        last = await last_of(batch.engine, load, asks=False)
        value = await batch.value(self._item, load)
        if value is not _ABSENT:
            await store_answer(load, value, policy, last, batch.tags(self._item), batch.store_if)
        elif batch.absent_for or load.may_replace:
            # This also removes the stored entry, and notifies other refreshers.
            await load.store(None, Policy(0, keep_for=batch.absent_for).tagged(policy.tags), absent=True)
        else:
            await load.skip()

    def may_fall_back(self, entry: Entry[Any], error: BaseException, now: float) -> bool:
        """Return True: the entry's own policy says how long it may be served after a failure."""
        return True


def _is_known_absent(flight: Flight, now: float) -> bool:
    """Return whether a load has found that there is no value. Readers trust that only as long as swr remembers it."""
    entry, newer_than = flight.entry, flight.newer_than
    if entry is None or newer_than is None:
        return is_absent(entry, now)
    return entry.absent and entry.version > newer_than
