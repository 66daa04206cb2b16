"""The tour: readers and a writer use the ranking API, then the same reads run again without the cache."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from itertools import cycle, islice
from typing import Final

import httpx
from rich.console import Console

from examples.demo.client import add_late_flight, ask, connect, replay
from examples.demo.screen import STATES, Progress, Side, comparison, states_table
from examples.demo.trace import requests
from examples.flights import Flights

READERS: Final = 48
RATE: Final = 250.0


async def tour(console: Console, url: str, workers: int, flights: Flights, seconds: float, rate: float) -> None:
    """Show the ranking API at work.

    Parameters:
        console: where to print.
        url: the URL of the ranking API.
        workers: the number of its worker processes.
        flights: its database, to count the loads and name the airports.
        seconds: how long the tour takes; the comparison takes a third of this time in addition.
        rate: requests a second.
    """
    airports = flights.airports()
    paths = _paths(airports)
    progress = Progress(console, lambda: flights.loads, live=console.is_terminal and not console.is_dumb_terminal)
    due = int(seconds / 3 * rate)
    before = int(seconds * rate) - due
    shown: list[bool] = []
    loads_before: list[int] = []
    uncached: list[float] = []

    async def write() -> None:
        [client] = await connect(url, 1, 1, stack)
        for airport in cycle(airports[:20]):
            await asyncio.sleep(1)
            shown.append(await add_late_flight(client, airport, progress.on_answer))

    async def count_loads() -> None:
        await asyncio.sleep(before / rate)
        loads_before.append(flights.loads)

    async with AsyncExitStack() as stack:
        readers = await connect(url, READERS, workers, stack)
        console.print(f"{rate:g} requests a second, and one late flight added every second, for {seconds:g} s:\n")
        with progress:
            async with asyncio.TaskGroup() as group:
                beside = [group.create_task(each) for each in (progress.run(), write(), count_loads())]
                await replay(readers, requests(paths), seconds, progress.on_answer, rate)
                for task in beside:
                    task.cancel()
        # Refreshes that are still under way belong to the tour.
        await asyncio.sleep(0.5)
        loads = flights.loads
        console.print(states_table(progress))
        console.print(f"\nThe last {due:,} of them once more, at the same rate, without the cache ...\n")
        without = (f"/uncached{path}" for path in islice(requests(paths), before, before + due))
        await replay(readers, without, seconds / 3, lambda answer: uncached.append(answer.waited), rate)
    cached = [answer.waited for state in STATES for answer in progress.answers[state] if before / rate <= answer.due]
    sides = [
        Side("with the cache", cached, loads - loads_before[0]),
        Side("without the cache", uncached, flights.loads - loads),
    ]
    console.print(comparison(due, sides))
    console.print(
        f"All {progress.requests:,} requests with it took {loads:,} loads, one for "
        f"{progress.requests / loads:.0f} requests.\n"
        f"Without it each answer is a load: {len(uncached):,} of {due:,} requests were answered in time.\n"
        f"{len(shown)} late flights were added; the very next answer showed {sum(shown)} of them."
    )


async def keep_busy(url: str, workers: int, airports: list[str]) -> None:
    """Ask for some rankings a second until cancelled, so that the dashboard has something to show.

    Parameters:
        url: the URL of the ranking API.
        workers: the number of its worker processes.
        airports: all airports, the busiest first.
    """
    paths = requests(_paths(airports))

    async def read(client: httpx.AsyncClient, paths: Iterator[str]) -> None:
        while True:
            # A user of the dashboard may let loads fail.
            with suppress(httpx.HTTPError):
                await ask(client, next(paths))
            await asyncio.sleep(0.2)

    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        for client in await connect(url, 2 * workers, workers, stack):
            group.create_task(read(client, paths))


def _paths(airports: list[str]) -> list[str]:
    """Return the paths, the most popular first: the ranking over all airports, the busiest airport, and so on."""
    return ["/rankings", *(f"/rankings/{airport}" for airport in airports)]
