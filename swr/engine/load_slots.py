"""A limit of the loads of one loader that run at once in this process. Each takes a slot before it asks for the lease.

A load that waits for other loads lends its slot meanwhile. So a load that holds a slot never waits for another slot,
and loaders that call each other cannot wait forever.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Protocol

from swr.engine.background import running_loop
from swr.engine.carrying_on import insist
from swr.engine.one_shot_event import OneShotEvent


class Waited(Protocol):
    """The part of a flight that a place needs."""

    waiters: int


class Seated(Waited, Protocol):
    """A flight that may have a seat; it has none if its loader has no limit."""

    @property
    def seat(self) -> "Seat | None": ...


class LoadSlots:
    """The slots of one loader.

    Parameters:
        number: the number of slots.
    """

    __slots__ = ("_number", "_queue")

    def __init__(self, number: int) -> None:
        self._number = number
        self._queue: _Queue | None = None

    @property
    def queue(self) -> "_Queue":
        """The free slots on the running event loop, and the places that wait for one."""
        loop = running_loop()
        if self._queue is None or self._queue.loop is not loop:
            self._queue = _Queue(loop, self._number)
        return self._queue


class _Queue:
    """The free slots on one event loop, and the places that wait for one.

    Parameters:
        loop: the event loop, or on trio the token of its run.
        free: the number of free slots.
    """

    __slots__ = ("_waiting", "free", "loop")

    def __init__(self, loop: object, free: int) -> None:
        self.loop = loop
        self.free = free
        # The places that wait, in the order of their arrival.
        self._waiting: dict[Place, None] = {}

    def add(self, place: "Place") -> None:
        """Queue `place`, which gets a slot when its turn comes."""
        self._waiting[place] = None
        self.serve()

    def remove(self, place: "Place") -> None:
        """Remove `place` from the queue."""
        del self._waiting[place]

    def serve(self) -> None:
        """Give free slots to waiting places, first to the places that readers wait for."""
        while self.free and self._waiting:
            first = next((place for place in self._waiting if place.has_readers), next(iter(self._waiting)))
            self.remove(first)
            self.free -= 1
            first.get()


class Place:
    """A slot, or a turn in the queue. It belongs to one load, or to all loads of one call of a batch loader.

    Parameters:
        slots: the slots of the loader.
    """

    __slots__ = ("_flights", "_has_slot", "_lent", "_queue", "_turn", "slots")

    def __init__(self, slots: LoadSlots) -> None:
        self.slots = slots
        self._flights: set[Any] = set()
        self._has_slot = False
        self._lent = 0
        self._queue: _Queue | None = None
        self._turn = OneShotEvent()

    @property
    def has_readers(self) -> bool:
        """Return whether readers wait for a load of this place."""
        return any(flight.waiters for flight in self._flights)

    def get(self) -> None:
        """Note that this place has a slot now."""
        self._has_slot = True
        self._turn.set()

    async def enter(self, flight: Waited) -> None:
        """Wait until `flight` may load."""
        self._flights.add(flight)
        try:
            await self._hold()
        except BaseException:
            self.leave(flight)
            raise

    def leave(self, flight: Waited) -> None:
        """Note that `flight` does not load, or has stopped loading."""
        self._flights.discard(flight)
        if not self._flights:
            self._give_back()

    def give_up(self, flight: Waited) -> None:
        """Note that swr gives the load of `flight` up, so it waits for no slot. A load that has a slot returns it."""
        if not self._has_slot:
            self.leave(flight)

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[None]:
        """Lend the slot to other loads while the code in this block waits for loads that may need one."""
        self._lent += 1
        self._give_back()
        try:
            yield
        finally:
            self._lent -= 1
            await self._hold_again()

    async def _hold_again(self) -> None:
        """Wait for a slot even if a time-out in the loader cancels the wait: the loader goes on, and needs a slot."""
        cancelled = await insist(self._hold)
        if cancelled is not None:
            raise cancelled

    async def _hold(self) -> None:
        while self._flights and not self._lent and not self._has_slot:
            if self._queue is None:
                self._turn, self._queue = OneShotEvent(), self.slots.queue
                self._queue.add(self)
            await self._turn.wait()

    def _give_back(self) -> None:
        queue, self._queue = self._queue, None
        if queue is None:
            return
        if self._has_slot:
            self._has_slot = False
            queue.free += 1
            queue.serve()
        else:
            queue.remove(self)
            # Other loads of the same call wake up, and check whether they have to wait.
            self._turn.set()


class Seat:
    """The share of one load in a place.

    Parameters:
        place: the load's own place, or the place of its batch.
    """

    __slots__ = ("place",)

    def __init__(self, place: Place) -> None:
        self.place = place

    def others(self) -> "Seat":
        """Return a seat of another load in the same place."""
        return Seat(self.place)

    async def take(self, flight: Waited) -> None:
        """See `Place.enter`."""
        await self.place.enter(flight)

    def leave(self, flight: Waited) -> None:
        """See `Place.leave`."""
        self.place.leave(flight)

    def give_up(self, flight: Waited) -> None:
        """See `Place.give_up`."""
        self.place.give_up(flight)


async def move(flights: Iterable[Seated]) -> None:
    """Move `flights` from a place that they share with other flights to a new one, and wait for a slot there."""
    moved = [(flight, flight.seat) for flight in flights if flight.seat is not None]
    place = Place(moved[0][1].place.slots)
    for flight, seat in moved:
        seat.leave(flight)
        seat.place = place
    for flight, seat in moved:
        await seat.take(flight)
