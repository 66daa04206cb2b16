"""The tour of a refresher: rankings are warm before anyone reads them, even after a worker is killed."""

import asyncio
import os
import signal
import time
from collections import Counter
from contextlib import AsyncExitStack
from typing import Final

import httpx
from rich.console import Console

from examples.demo.client import Answer, ask, connect, replay
from examples.demo.log import Line, Log, loads
from examples.demo.screen import STATES, percentile
from examples.demo.servers import StartError
from examples.demo.trace import requests
from examples.flights import Flights

READERS: Final = 16
RATE: Final = 100.0
ROUNDS: Final = 5
# Readers never ask for these last airports. So if the tour finds a fresh ranking there, a round has loaded it.
QUIET: Final = ROUNDS
_WARM_WITHIN: Final = 60.0
_COLUMNS: Final = ("round", "queued by", "loads", "late flight", "fresh", "p99 ms")
_LINE: Final = "{:>5}  {:>9}  {:<28}  {:<12}  {:>5}  {:>6}"


async def rounds_tour(
    console: Console, url: str, workers: int, flights: Flights, log: Log, every: float, rate: float
) -> None:
    """Show a refresher at work for five rounds.

    Parameters:
        console: where to print.
        url: the URL of the ranking API.
        workers: the number of its worker processes.
        flights: its database, to count the loads and name the airports.
        log: the log of the workers.
        every: seconds between the beginnings of two rounds.
        rate: requests a second.

    Raises:
        StartError: the rankings were not loaded in time.
    """
    airports = flights.airports()
    await _warm(console, log, len(airports), every)
    first = int(time.time() // every)
    async with AsyncExitStack() as stack:
        readers = await connect(url, READERS, workers, stack)
        [client] = await connect(url, 1, 1, stack)
        tour = _Tour(console, client, log, every, first, airports)
        console.print(f"\n{rate:g} requests a second, round after round:\n")
        console.print(_LINE.format(*_COLUMNS))
        paths = [f"/rankings/{airport}" for airport in airports[:-QUIET]]
        seconds = (first + ROUNDS) * every - time.time()
        async with asyncio.TaskGroup() as group:
            group.create_task(replay(readers, requests(paths), seconds, tour.on_answer, rate))
            await tour.run()
            loaded = flights.loads
    fresh, stale, missing = (tour.states[state] for state in STATES)
    console.print(
        f"\n{fresh:,} of {tour.states.total():,} requests were answered fresh; {stale:,} with an older copy, at\n"
        f"once, which their worker had in memory; {missing:,} had to wait. The database was asked\n"
        f"for {loaded:,} rankings, each about once a round, however many read them.\n"
        f"{tour.added} late flights were added at airports that nobody asks for; the first who did\n"
        f"ask, a round later, got a fresh ranking with the flight in it {tour.shown} times."
    )


async def _warm(console: Console, log: Log, airports: int, every: float) -> None:
    """Wait until all rankings are loaded, and print which workers have loaded them."""
    until = time.monotonic() + _WARM_WITHIN
    while len({line.airport for line in log.read()} - {""}) < airports:
        if time.monotonic() > until:
            raise StartError(f"the rankings are not loaded after {_WARM_WITHIN:g} s: {loads(log.read())}")
        await asyncio.sleep(0.05)
    console.print(f"\nBefore the first request all are loaded: {loads(log.read())}.")


class _Tour:
    """The rounds that the tour shows.

    Parameters:
        console: where to print.
        client: the client that adds flights and looks for them.
        log: the log of the workers.
        every: seconds between the beginnings of two rounds.
        first: the number of the first round to show.
        airports: all airports; readers never ask for the last ones.
    """

    def __init__(
        self, console: Console, client: httpx.AsyncClient, log: Log, every: float, first: int, airports: list[str]
    ) -> None:
        self.states = Counter[str]()
        self.added = 0
        self.shown = 0
        self._console = console
        self._client = client
        self._log = log
        self._every = every
        self._first = first
        self._airports = airports
        self._milliseconds: list[float] = []
        self._fresh = 0

    def on_answer(self, answer: Answer) -> None:
        """Count an answer."""
        self.states[answer.state] += 1
        self._milliseconds.append(answer.milliseconds)
        self._fresh += answer.state == "fresh"

    async def run(self) -> None:
        """Show the rounds; add a flight in each except the last, and kill a worker in the middle one."""
        added = ""
        for number in range(self._first, self._first + ROUNDS):
            await self._until(number + 0.4)
            late, added = added, ""
            if number < self._first + ROUNDS - 1:
                added = self._airports[-1 - self.added]
                await self._add(added)
            if number == self._first + ROUNDS // 2:
                self._kill(number)
            await self._until(number + 1)
            self._show(number, late)
            if late:
                self.shown += await self._find(late)

    async def _until(self, number: float) -> None:
        """Wait until a point in a round: 7.5 is the middle of round 7."""
        await asyncio.sleep(number * self._every - time.time())

    async def _add(self, airport: str) -> None:
        flight = {"tailnum": "N0LATE", "arr_delay": 99_999}
        (await self._client.post(f"/flights/{airport}", json=[flight])).raise_for_status()
        self.added += 1

    async def _find(self, airport: str) -> bool:
        answer, response = await ask(self._client, f"/rankings/{airport}")
        self.on_answer(answer)
        return answer.state == "fresh" and response.json()["aircraft"][0]["tailnum"] == "N0LATE"

    def _kill(self, number: int) -> None:
        """Kill the leader of the queue, or without a queue the worker that has loaded most."""
        lines = self._log.read()
        queued = [line.worker for line in lines if not line.airport]
        [(busiest, _)] = Counter(line.worker for line in lines if line.round == number).most_common(1)
        worker = queued[-1] if queued else busiest
        os.kill(worker, signal.SIGKILL)
        self._console.print(f"       kill -9 {worker}{', which leads' if queued else ''}")

    def _show(self, number: int, late: str) -> None:
        lines = [line for line in self._log.read() if line.round == number]
        loaded = [line for line in lines if line.airport]
        # After a kill, three workers have loaded: the killed one, its successor and the other. Two fit into the line.
        shares = loads(lines).split(", ")
        row = (
            str(number - self._first + 1),
            next((str(line.worker) for line in lines if not line.airport), ""),
            ", ".join(shares[:2]),
            _late(late, loaded),
            f"{100 * self._fresh / max(1, len(self._milliseconds)):.0f} %",
            f"{percentile(self._milliseconds, 99):.1f}" if self._milliseconds else "",
        )
        self._console.print(_LINE.format(*row), highlight=False)
        for share in shares[2:]:
            self._console.print(_LINE.format("", "", share, "", "", "").rstrip(), highlight=False)
        self._milliseconds.clear()
        self._fresh = 0


def _late(airport: str, loaded: list[Line]) -> str:
    """Return the airport of the previous round's flight, with the worker that has loaded it."""
    return next((f"{airport}: {line.worker}" for line in loaded if line.airport == airport), airport)
