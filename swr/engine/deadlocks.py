"""Waiting for flights; a loader that waits for itself, directly or through others, is refused in place of hanging."""

import contextlib
import functools
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextvars import ContextVar
from typing import Final

import anyio

from swr.engine.flights import Flight
from swr.errors import ConfigurationError

# The flights that wait for the code that runs here: it is not over before this code is.
Chain = tuple[Flight, ...]
CHAIN: Final[ContextVar[Chain]] = ContextVar("swr_chain", default=())


def chain() -> Chain:
    """Return the flights that wait for the code that runs here."""
    return CHAIN.get()


def begin(flights: Chain) -> None:
    """Note that these flights wait for everything that runs in this context from now on."""
    CHAIN.set(flights)


def loads_also(flights: Iterable[Flight]) -> None:
    """Say that the code that runs here loads for these, too: it must not wait for them."""
    CHAIN.set((*CHAIN.get(), *flights))


def refuse_oneself(owner: object, key: str, flights: Chain) -> None:
    """Refuse to load `key` if one of `flights`, a chain, is such a load.

    Raises:
        ConfigurationError: one is.
    """
    if any(flight.owner is owner and flight.key == key and not flight.done.is_set() for flight in flights):
        keys = " -> ".join(repr(flight.key) for flight in flights)
        raise ConfigurationError(
            f"a loader asks for what it is itself to load, and would wait forever: {keys} -> {key!r}"
        )


def refuse_circles(blocked: Collection[Flight], flights: Iterable[Flight]) -> None:
    """Refuse to wait for `flights` if one of them waits, directly or through others, for one that is `blocked`.

    Raises:
        ConfigurationError: one does.
    """
    todo: list[tuple[Flight, tuple[str, ...]]] = [(flight, (flight.key,)) for flight in flights]
    seen: set[Flight] = set()
    while todo:
        flight, path = todo.pop()
        if flight in blocked:
            raise ConfigurationError(f"loaders wait for each other, and would do so forever: {' -> '.join(path)}")
        if flight not in seen:
            seen.add(flight)
            todo.extend((other, (*path, other.key)) for other in flight.waits_for if not other.done.is_set())


@contextlib.contextmanager
def loading(flight: Flight) -> Iterator[None]:
    """Say that the code within loads for `flight`, which another task has begun: it must not wait for it."""
    token = CHAIN.set((*CHAIN.get(), flight))
    try:
        yield
    finally:
        CHAIN.reset(token)


@contextlib.contextmanager
def waiting_for(flights: Collection[Flight]) -> Iterator[None]:
    """Count the code within among those who wait for `flights`.

    Raises:
        ConfigurationError: they wait for what is loaded here.
    """
    blocked = [flight for flight in CHAIN.get() if not flight.done.is_set()]
    if blocked:
        refuse_circles(blocked, flights)
    for flight in flights:
        flight.waiters += 1
    for flight in blocked:
        flight.waits_for = (*flight.waits_for, *flights)
    try:
        yield
    finally:
        for flight in flights:
            flight.waiters -= 1
        for flight in blocked:
            flight.waits_for = tuple(other for other in flight.waits_for if other not in flights)


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
        loaders = CHAIN.get()
        seat = loaders[-1].seat if loaders else None
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
