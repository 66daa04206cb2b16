"""The tour: readers and a writer at work on the ranking API, then the readers once more without the cache."""

import asyncio
from contextlib import AsyncExitStack
from itertools import cycle
from typing import Final

from rich.console import Console

from examples.demo.client import Answer, add_late_flight, connect, replay
from examples.demo.screen import Progress, figures
from examples.demo.trace import requests
from examples.flights import Flights

READERS: Final = 16
RATE: Final = 250.0


async def tour(console: Console, url: str, workers: int, flights: Flights, seconds: float) -> None:
    """Show the ranking API at work.

    Parameters:
        console: where to.
        url: of the ranking API.
        workers: the number of its worker processes.
        flights: its database, to count the loads and name the airports.
        seconds: how long; a third of it more goes to the comparison.
    """
    airports = flights.airports()
    # The trace's hottest key stands for the ranking over all airports, the next for the busiest airport, and so on.
    paths = ["/rankings", *(f"/rankings/{airport}" for airport in airports)]
    progress = Progress(console, lambda: flights.loads, live=console.is_terminal and not console.is_dumb_terminal)
    shown: list[bool] = []
    uncached: list[float] = []

    async def write() -> None:
        [client] = await connect(url, 1, 1, stack)
        for airport in cycle(airports[:20]):
            await asyncio.sleep(1)
            shown.append(await add_late_flight(client, airport, progress.on_answer))

    def hear_uncached(answer: Answer) -> None:
        uncached.append(answer.milliseconds)

    async with AsyncExitStack() as stack:
        readers = await connect(url, READERS, workers, stack)
        console.print(f"{RATE:g} requests a second, and one late flight added every second, for {seconds:g} s:\n")
        with progress:
            async with asyncio.TaskGroup() as group:
                beside = [group.create_task(progress.run()), group.create_task(write())]
                await replay(readers, requests(paths), seconds, progress.on_answer, RATE)
                for task in beside:
                    task.cancel()
        # Refreshes that are still under way belong to the tour.
        await asyncio.sleep(0.5)
        loads = flights.loads
        console.print(
            f"\nThe same requests without the cache, one at a time to each worker, for {seconds / 3:.0f} s ...\n"
        )
        alone = await connect(url, workers, workers, stack)
        await replay(alone, (f"/uncached{path}" for path in requests(paths)), seconds / 3, hear_uncached)
    console.print(figures(progress, loads, seconds, uncached, flights.loads - loads, seconds / 3))
    console.print(
        f"{progress.requests:,} requests took {loads:,} loads, one for {progress.requests / loads:.0f} requests;\n"
        f"without the cache every request is a load, and {workers} at a time, each waiting for its own, are all that\n"
        f"these {workers} workers can do. With it they answered {progress.requests / seconds:.0f} a second.\n"
        f"{len(shown)} late flights were added; the very next answer showed {sum(shown)} of them."
    )
