"""Wait for flights. A loader that would wait for itself, directly or through others, gets an error instead."""

import contextlib
import functools
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextvars import ContextVar
from typing import Final

import anyio

from swr.engine.flights import Flight
from swr.errors import ConfigurationError


class Code:
    """One running call of a loader, and the flights that it loads for. A batch loader loads for several.

    Parameters:
        flight: the first of these flights.
    """

    __slots__ = ("flights", "waits_for")

    def __init__(self, flight: Flight) -> None:
        self.flights = {flight.key: flight}
        # All flights of a batch share this dict, so the cost of a wait does not grow with the batch.
        self.waits_for = flight.waits_for

    @property
    def is_waited_for(self) -> bool:
        """Return whether a flight that the code loads for is still under way."""
        return any(not flight.done.is_set() for flight in self.flights.values())


# Loaders that call each other, outermost first: each waits for the next, and the last one runs in this context.
Chain = tuple[Code, ...]
CHAIN: Final[ContextVar[Chain]] = ContextVar("swr_chain", default=())


def chain() -> Chain:
    """Return the loaders that run in this context, outermost first: each waits for the next."""
    return CHAIN.get()


def begin(codes: Chain, flight: Flight) -> None:
    """Note that this context loads for `flight` from now on, and that `codes` wait for it."""
    CHAIN.set((*codes, Code(flight)))


def loads_also(flights: Iterable[Flight]) -> None:
    """Note that the innermost loader of this context loads for `flights`, too: it must not wait for them."""
    code = CHAIN.get()[-1]
    for flight in flights:
        code.flights[flight.key] = flight
        flight.waits_for = code.waits_for


def loads_already(owner: object, key: str, codes: Chain) -> bool:
    """Return whether a loader in `codes` loads `key`. A load of `key` that begins now would wait for itself."""
    flights = (code.flights.get(key) for code in codes)
    return any(flight is not None and flight.owner is owner and not flight.done.is_set() for flight in flights)


def refuse_oneself(owner: object, key: str, codes: Chain) -> None:
    """Refuse to load `key` if a loader in `codes` loads it already.

    Raises:
        ConfigurationError: a loader in `codes` loads `key`.
    """
    if loads_already(owner, key, codes):
        keys = " -> ".join(repr(next(iter(code.flights))) for code in codes)
        raise ConfigurationError(
            f"a loader asks for the key that it is loading itself, and would wait forever: {keys} -> {key!r}"
        )


def refuse_circles(blocked: Iterable[Code], flights: Iterable[Flight]) -> None:
    """Refuse to wait for `flights` if one of them waits, directly or through others, for a loader in `blocked`.

    Raises:
        ConfigurationError: one of `flights` waits for a loader in `blocked`.
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
    """Note that the code in this block loads for `flight`, begun by another task, so it must not wait for `flight`."""
    token = CHAIN.set((*CHAIN.get(), Code(flight)))
    try:
        yield
    finally:
        CHAIN.reset(token)


class waiting_for:
    """A `with` block that counts its code as a waiter of `flights`.

    Each miss enters this block, and a class takes a third of the time that a generator takes.

    Raises:
        ConfigurationError: one of `flights` waits for a loader that runs here.
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
    """Wait until all `flights` have ended, for `patience` seconds at most; None: without a limit.

    Raises:
        ConfigurationError: one of `flights` waits for a loader that runs here.
    """
    await wait_by(flights, functools.partial(_wait, flights, patience))


async def wait_by(flights: Collection[Flight], function: Callable[[], Awaitable[None]]) -> None:
    """Call `function`, which waits for `flights`. A loader that waits lends its slot to other loads meanwhile.

    Raises:
        ConfigurationError: one of `flights` waits for a loader that runs here.
    """
    with waiting_for(flights):
        codes = CHAIN.get()
        # The loads of a batch share one slot, so the seat of any of them will do.
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
