"""What readers wait while Redis is hung, refuses, or answers late.

    scripts/bench outage [--quick]

A TCP proxy in front of the server, in a process of its own, hangs or refuses, again and again, while readers ask for
what is in memory, fresh and stale, and for what is nowhere, with a loader of 20 ms. Latencies run from a reader's
own first step to its answer; of those who wait for the loader, what it took is taken off. The first failures are over
a tenth of a second after the cache has published `StoreUnreachable`. The same readers of a cache without
Redis, in memory alone, show what of it is the machine's; so does the event loop's own time (`OwnTime`).

Then stale hits with every reply of Redis a second late, against the same without delay, in turns: every key is read
five times after it has become stale. In time each read begins a refresh, and so does a second late the first.
"""

import argparse
import asyncio
import contextlib
import logging
import statistics
import time
from typing import NamedTuple

from benchmarks.measure import OwnTime, percentile, print_machine, ratio, table, verdict
from swr import Cache, Cached, State
from swr.events import Event, StoreReachable, StoreUnreachable
from tests.proxy import ProxyElsewhere
from tests.servers import Server, kinds

_LOADER_TAKES = 0.02
_FAILING_FOR = 0.1
_READ_EACH = 5


class Setting(NamedTuple):
    """How often, and how long each time (seconds)."""

    rounds: int
    away_for: float
    delayed_rounds: int
    stale_keys: int


FULL = Setting(rounds=25, away_for=1.5, delayed_rounds=11, stale_keys=400)
QUICK = Setting(rounds=1, away_for=0.6, delayed_rounds=1, stale_keys=20)


class Moment(NamedTuple):
    """On the wall, and as the event loop's own time goes (seconds); also what is between two."""

    wall: float
    own: float

    def since(self, other: "Moment") -> "Moment":
        return Moment(self.wall - other.wall, self.own - other.own)


class Waits:
    """What readers waited, by who they are: while the first failures lasted, and later.

    Parameters:
        clock: of their event loop.
    """

    def __init__(self, clock: OwnTime) -> None:
        self._clock = clock
        self.first: dict[str, list[Moment]] = {}
        self.later: dict[str, list[Moment]] = {}
        self.errors = 0
        self.down_at: float | None = None

    def note(self, event: Event) -> None:
        """Listen to the cache."""
        self.down_at = time.perf_counter()

    def now(self) -> Moment:
        return Moment(time.perf_counter(), self._clock.now())

    def add(self, reader: str, began: Moment, waited: Moment) -> None:
        """Take note of one reader's wait."""
        over = self.down_at is not None and began.wall > self.down_at + _FAILING_FOR
        (self.later if over else self.first).setdefault(reader, []).append(waited)


class Readers:
    """Those who ask while Redis is away.

    Parameters:
        cache: over the proxy.
        waits: where it is noted what they waited.
    """

    def __init__(self, cache: Cache, waits: Waits) -> None:
        self._waits = waits
        # What the loader took, by what was asked for.
        self._took: dict[int, Moment] = {}

        @cache.cached("fresh:{number}", fresh_for=3600)
        async def fresh(number: int) -> int:
            return number

        @cache.cached("stale:{number}", fresh_for=0.001, stale_for=3600)
        async def stale(number: int) -> int:
            await asyncio.sleep(_LOADER_TAKES)
            return number

        @cache.cached("nowhere:{number}", fresh_for=3600)
        async def nowhere(number: int) -> int:
            began = waits.now()
            await asyncio.sleep(_LOADER_TAKES)
            self._took[number] = waits.now().since(began)
            return number

        self._in_memory = {"fresh in L1": fresh, "stale in L1": stale}
        self._nowhere = nowhere

    async def fill(self) -> None:
        """Have in memory what is to be there."""
        for read in self._in_memory.values():
            await asyncio.gather(*(read(number) for number in range(10)))
        await asyncio.sleep(0.05)

    async def run(self, seconds: float) -> None:
        """Ask for what is in memory two hundred times a second, and for something new a hundred times."""
        until = time.perf_counter() + seconds
        number = 0
        async with asyncio.TaskGroup() as group:
            while time.perf_counter() < until:
                if number % 2 == 0:
                    group.create_task(self._ask("nowhere", self._nowhere, number))
                for reader, read in self._in_memory.items():
                    await self._ask(reader, read, number % 10)
                number += 1
                await asyncio.sleep(0.005)

    async def _ask(self, reader: str, read: Cached[[int], int], number: int) -> None:
        began = self._waits.now()
        try:
            value = await read(number)
        except Exception:
            self._waits.errors += 1
            return
        waited = self._waits.now().since(began)
        self._waits.errors += value != number
        self._waits.add(reader, began, waited.since(self._took.pop(number)) if reader == "nowhere" else waited)


async def without_redis(server: Server, setting: Setting, clock: OwnTime) -> None:
    """Print the table of a server that is hung, and of one that refuses."""
    faults, alone = {"hung": Waits(clock), "refused": Waits(clock)}, Waits(clock)
    async with ProxyElsewhere(server.port) as proxy:
        for turn in range(setting.rounds):
            for fault, waits in faults.items():
                # What a round leaves undone, a lease for one, is nobody's business in the next.
                async with Cache(proxy.url, namespace=f"{fault}-{turn}") as cache:
                    cache.subscribe(waits.note, StoreUnreachable)
                    waits.down_at = None
                    readers = Readers(cache, waits)
                    await readers.fill()
                    await proxy.tell(hang=fault == "hung", refuse=fault == "refused")
                    await readers.run(setting.away_for)
                    await proxy.tell()
            async with Cache() as cache:
                readers = Readers(cache, alone)
                await readers.fill()
                await readers.run(setting.away_for)
    rows = []
    for reader, waited in alone.first.items():
        rows.append([f"not there at all: {reader}", str(len(waited)), *_percentiles(waited), ""])
    for fault, waits in faults.items():
        for when, by_reader, goals in (
            ("at first", waits.first, {"nowhere": 250.0}),
            ("later", waits.later, {"nowhere": 1.0, "fresh in L1": 1.0, "stale in L1": 1.0}),
        ):
            for reader, waited in by_reader.items():
                last = 1000 * percentile([wait.wall for wait in waited], 99)
                goal = verdict(last, at_most=goals.get(reader, 5.0))
                name = f"{fault}, {when}: {reader}"
                rows.append([name, str(len(waited)), *_percentiles(waited), goal])
        rows.append([f"{fault}: errors and wrong answers", str(waits.errors), "", "", "", "", _none(waits.errors)])
    columns = ["Redis is", "readers", "p50 ms", "p99 ms", "most ms", "p99 ms, own time", "goal (p99)"]
    title = f"Redis away; for what is nowhere, above the loader's 20 ms ({setting.rounds} rounds)"
    table(title, columns, rows)


def _percentiles(waited: list[Moment]) -> list[str]:
    wall, own = [wait.wall for wait in waited], [wait.own for wait in waited]
    return [f"{1000 * percentile(of, percent):.3f}" for of, percent in ((wall, 50), (wall, 99), (wall, 100), (own, 99))]


def _none(count: int) -> str:
    return f"0 {'MISSED' if count else 'reached'}"


# -- a second late --------------------------------------------------------------------------------------------


async def _run_on(seconds: float) -> None:
    """Let the event loop go on for a while and never wait.

    A processor that wakes up is twice as slow for a moment, and how often it sleeps depends on whether replies come.
    """
    until = time.perf_counter() + seconds
    while True:
        await asyncio.sleep(0)
        if time.perf_counter() >= until:
            return


class Stale:
    """Stale hits over a proxy of its own.

    Parameters:
        cache: over that proxy.
        proxy: which; None: the cache has no Redis at all.
        delay: seconds by which Redis is late.
    """

    def __init__(self, cache: Cache, proxy: ProxyElsewhere | None = None, delay: float = 0.0) -> None:
        self._proxy = proxy
        self._delay = delay
        self.not_stale = 0
        self._to_refresh = 0
        self._refreshed = asyncio.Event()

        @cache.cached("stale:{number}", fresh_for=0.001, stale_for=3600)
        async def read(number: int) -> int:
            self._to_refresh -= 1
            if self._to_refresh <= 0:
                self._refreshed.set()
            return number

        self._read = read
        self._up = asyncio.Event()
        self._up.set()
        cache.subscribe(lambda event: self._up.set(), StoreReachable)
        cache.subscribe(lambda event: self._up.clear(), StoreUnreachable)

    async def round(self, keys: int) -> list[float]:
        """Return what each of five stale hits of as many keys took, in milliseconds."""
        # Whatever the last round has left undone, and what is in memory is confirmed again.
        await self._up.wait()
        for number in range(keys):
            await self._read.refresh(number)
        self._to_refresh = keys
        self._refreshed.clear()
        waited = []
        if self._proxy is not None:
            await self._proxy.tell(delay=self._delay)
        for number in _READ_EACH * list(range(keys)):
            began = time.perf_counter()
            outcome = await self._read.outcome(number)
            waited.append(1000 * (time.perf_counter() - began))
            self.not_stale += outcome.state is not State.STALE
            await _run_on(0.001)
        if self._proxy is not None:
            await self._proxy.tell()
        async with asyncio.timeout(30):
            await self._refreshed.wait()
        return waited


async def a_second_late(server: Server, setting: Setting) -> None:
    """Print the table of stale hits with a slow Redis."""
    # One that may be as late as that, so that every refresh waits; and one that counts it as away.
    kinds_of = {
        "in time": (0.0, 3.0),
        "a second late": (1.0, 3.0),
        "a second late, time-out 0.2 s": (1.0, 0.2),
    }
    async with contextlib.AsyncExitStack() as stack:
        contestants = {}
        for number, (name, (delay, timeout)) in enumerate(kinds_of.items()):
            proxy = await stack.enter_async_context(ProxyElsewhere(server.port))
            cache = await stack.enter_async_context(Cache(proxy.url, namespace=f"late-{number}", timeout=timeout))
            contestants[name] = Stale(cache, proxy, delay)
        contestants["never: there is none"] = Stale(await stack.enter_async_context(Cache()))
        waited: dict[str, list[list[float]]] = {name: [] for name in contestants}
        for turn in range(setting.delayed_rounds):
            names = list(contestants)
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                waited[name].append(await contestants[name].round(setting.stale_keys))
    rows = []
    # Which of the hits, and how many there are of them in a round; the first of all keys come first.
    for which, count, has_goal in (("", None, True), ("; first hits", setting.stale_keys, False)):
        last = {name: [percentile(hits[:count], 99) for hits in rounds] for name, rounds in waited.items()}
        for name, contestant in contestants.items():
            factor = ratio(last[name], last["in time"])
            goal = f"0.80 to 1.20 {'MISSED' if factor > 1.2 else 'reached' if factor >= 0.8 else 'faster'}"
            hits = [wait for waits in waited[name] for wait in waits[:count]]
            rows.append(
                [
                    name + which,
                    str(len(hits)),
                    "" if which else str(contestant.not_stale),
                    f"{percentile(hits, 50):.3f}",
                    f"{statistics.median(last[name]):.3f}",
                    f"{factor:.2f}",
                    goal if has_goal and name in kinds_of and name != "in time" else "",
                ]
            )
    columns = ["Redis answers", "stale hits", "not stale", "p50 ms", "p99 ms", "p99, to in time", "goal"]
    title = f"A stale hit in L1 (p99: median of {setting.delayed_rounds} rounds)"
    table(title, columns, rows)


async def measure(setting: Setting, clock: OwnTime) -> None:
    """Print both tables."""
    with Server(kinds()[-1]) as server:
        await without_redis(server, setting, clock)
        await a_second_late(server, setting)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round: to see that it runs, not to measure")
    options = parser.parse_args()
    print_machine("swr", "redis")
    # That Redis is away is said at every round.
    logging.getLogger("swr").setLevel(logging.ERROR)
    clock = OwnTime()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(clock)) as runner:
        runner.run(measure(QUICK if options.quick else FULL, clock))


if __name__ == "__main__":
    main()
