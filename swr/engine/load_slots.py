"""A limit of the loads of one loader that run at once in this process: each takes a slot before it asks for the lease.

A load that waits for other loads gives its slot to others meanwhile. So a load with a slot waits for nothing that needs
one, and loaders that ask for each other cannot wait forever.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import anyio

from swr.engine.background import running_loop
from swr.engine.one_shot_event import OneShotEvent


class Waited(Protocol):
    """A flight."""

    waiters: int


class Seated(Waited, Protocol):
    """A flight with a seat; without limit it has none."""

    @property
    def seat(self) -> "Seat | None": ...


class LoadSlots:
    """The slots of one loader.

    Parameters:
        number: how many there are.
    """

    __slots__ = ("_number", "_queue")

    def __init__(self, number: int) -> None:
        self._number = number
        self._queue: _Queue | None = None

    @property
    def queue(self) -> "_Queue":
        """The slots that are free on this event loop, and who waits for one."""
        loop = running_loop()
        if self._queue is None or self._queue.loop is not loop:
            self._queue = _Queue(loop, self._number)
        return self._queue


class _Queue:
    """Free slots, and the places that wait for one.

    Parameters:
        loop: represents an event loop.
        free: slots.
    """

    __slots__ = ("_waiting", "free", "loop")

    def __init__(self, loop: object, free: int) -> None:
        self.loop = loop
        self.free = free
        # In the order in which they came.
        self._waiting: dict[Place, None] = {}

    def add(self, place: "Place") -> None:
        """Give `place` a slot as soon as it is its turn."""
        self._waiting[place] = None
        self.serve()

    def remove(self, place: "Place") -> None:
        """Let `place` wait no longer."""
        del self._waiting[place]

    def serve(self) -> None:
        """Give free slots to those who wait: first to those that readers wait for."""
        while self.free and self._waiting:
            first = next((place for place in self._waiting if place.has_readers), next(iter(self._waiting)))
            self.remove(first)
            self.free -= 1
            first.get()


class Place:
    """One of the slots, or a turn in the queue for one: of a load, or of the loads that are one call of a batch loader.

    Parameters:
        slots: of the loader.
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
        """Return whether readers wait for what is loaded."""
        return any(flight.waiters for flight in self._flights)

    def get(self) -> None:
        """Take note that it has a slot now."""
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
        """Say that `flight` does not load, or not any more."""
        self._flights.discard(flight)
        if not self._flights:
            self._give_back()

    def give_up(self, flight: Waited) -> None:
        """Note that the load of `flight` ends and waits for no slot. A load that has a slot gives it back itself."""
        if not self._has_slot:
            self.leave(flight)

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[None]:
        """Let others have the slot while the code within waits for what may need one."""
        self._lent += 1
        self._give_back()
        try:
            yield
        finally:
            self._lent -= 1
            await self._hold_again()

    async def _hold_again(self) -> None:
        """Wait for a slot even if a time-out of the loader ends that: the loader goes on, and needs one for it."""
        cancelled: BaseException | None = None
        is_held = False
        while not is_held:
            try:
                with anyio.CancelScope(shield=True):
                    await self._hold()
                is_held = True
            except asyncio.CancelledError as error:
                # `asyncio.timeout` reaches behind the shield.
                cancelled = error
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
            # Others of the same call look again whether they have to wait.
            self._turn.set()


class Seat:
    """The part of a place that one load has.

    Parameters:
        place: its own, or that of the batch whose part it is.
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
    """Move flights from a place that they share with others to one of their own, and wait for a slot there."""
    moved = [(flight, flight.seat) for flight in flights if flight.seat is not None]
    place = Place(moved[0][1].place.slots)
    for flight, seat in moved:
        seat.leave(flight)
        seat.place = place
    for flight, seat in moved:
        await seat.take(flight)
