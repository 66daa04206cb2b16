"""Waiting for flights; a loader that waits for itself, directly or through others, is refused instead of hanging."""

import contextlib
import functools
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextvars import ContextVar
from typing import Final

import anyio

from swr.engine.flights import Flight
from swr.errors import ConfigurationError


class Code:
    """The code of a loader that runs: it is not over before the flights that it loads for are.

    Parameters:
        flight: the first of these.
    """

    __slots__ = ("flights", "waits_for")

    def __init__(self, flight: Flight) -> None:
        self.flights = {flight.key: flight}
        # All of these flights share it, so that a wait costs the same however many a batch loads.
        self.waits_for = flight.waits_for

    @property
    def is_waited_for(self) -> bool:
        """Return whether a flight that it loads for is not over yet."""
        return any(not flight.done.is_set() for flight in self.flights.values())


# The code that runs here, last, and the code that waits for it, which is not over before this is.
Chain = tuple[Code, ...]
CHAIN: Final[ContextVar[Chain]] = ContextVar("swr_chain", default=())


def chain() -> Chain:
    """Return the code of loaders that runs here, and that which waits for it."""
    return CHAIN.get()


def begin(codes: Chain, flight: Flight) -> None:
    """Note that what runs in this context from now on loads for `flight`, and that these wait for it."""
    CHAIN.set((*codes, Code(flight)))


def loads_also(flights: Iterable[Flight]) -> None:
    """Say that the code that runs here loads for these, too: it must not wait for them."""
    code = CHAIN.get()[-1]
    for flight in flights:
        code.flights[flight.key] = flight
        flight.waits_for = code.waits_for


def loads_already(owner: object, key: str, codes: Chain) -> bool:
    """Return whether code of this chain loads `key`: a load that begins now would wait for itself."""
    flights = (code.flights.get(key) for code in codes)
    return any(flight is not None and flight.owner is owner and not flight.done.is_set() for flight in flights)


def refuse_oneself(owner: object, key: str, codes: Chain) -> None:
    """Refuse to load `key` if code of this chain loads it.

    Raises:
        ConfigurationError: it does.
    """
    if loads_already(owner, key, codes):
        keys = " -> ".join(repr(next(iter(code.flights))) for code in codes)
        raise ConfigurationError(
            f"a loader asks for the key that it is loading itself, and would wait forever: {keys} -> {key!r}"
        )


def refuse_circles(blocked: Iterable[Code], flights: Iterable[Flight]) -> None:
    """Refuse to wait for `flights` if one of them waits, directly or through others, for one that is `blocked`.

    Raises:
        ConfigurationError: one does.
    """
    ends = {id(code.waits_for) for code in blocked}
    todo: list[tuple[Flight, tuple[str, ...]]] = [(flight, (flight.key,)) for flight in flights]
    seen: set[int] = set()
    while todo:
        flight, path = todo.pop()
        waits_for = flight.waits_for
        if flight.done.is_set() or id(waits_for) in seen:
            continue
        if id(waits_for) in ends:
            raise ConfigurationError(f"loaders wait for each other, and would do so forever: {' -> '.join(path)}")
        seen.add(id(waits_for))
        todo.extend((other, (*path, other.key)) for other in waits_for)


@contextlib.contextmanager
def loading(flight: Flight) -> Iterator[None]:
    """Say that the code within loads for `flight`, which another task has begun: it must not wait for it."""
    token = CHAIN.set((*CHAIN.get(), Code(flight)))
    try:
        yield
    finally:
        CHAIN.reset(token)


class waiting_for:
    """Count the code within among those who wait for `flights`.

    A class, because each miss enters it, and a generator takes three times as long.

    Raises:
        ConfigurationError: they wait for what is loaded here.
    """

    __slots__ = ("_blocked", "_flights")

    def __init__(self, flights: Collection[Flight]) -> None:
        self._flights = flights
        self._blocked = [code for code in CHAIN.get() if code.is_waited_for]

    def __enter__(self) -> None:
        flights, blocked = self._flights, self._blocked
        if blocked:
            refuse_circles(blocked, flights)
        for flight in flights:
            flight.waiters += 1
        for code in blocked:
            for flight in flights:
                code.waits_for[flight] = code.waits_for.get(flight, 0) + 1

    def __exit__(self, *_: object) -> None:
        for flight in self._flights:
            flight.waiters -= 1
        for code in self._blocked:
            for flight in self._flights:
                code.waits_for[flight] -= 1
                if not code.waits_for[flight]:
                    del code.waits_for[flight]


async def wait(flights: Collection[Flight], patience: float | None = None) -> None:
    """Wait until all `flights` are over, for `patience` seconds at most.

    Raises:
        ConfigurationError: they wait for what is loaded here.
    """
    await wait_by(flights, functools.partial(_wait, flights, patience))


async def wait_by(flights: Collection[Flight], function: Callable[[], Awaitable[None]]) -> None:
    """Call `function`, which waits for `flights`: without a slot of the loader that waits.

    Raises:
        ConfigurationError: they wait for what is loaded here.
    """
    with waiting_for(flights):
        codes = CHAIN.get()
        # Loads of a batch share their slot.
        seat = next(reversed(codes[-1].flights.values())).seat if codes else None
        if seat is None:
            await function()
        else:
            async with seat.place.lent():
                await function()


async def _wait(flights: Collection[Flight], patience: float | None) -> None:
    with contextlib.nullcontext() if patience is None else anyio.move_on_after(patience):
        for flight in flights:
            if not flight.done.is_set():
                await flight.done.wait()
