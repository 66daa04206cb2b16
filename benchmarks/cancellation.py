"""A hundred thousand requests, most of them cancelled at a random moment: what that leaves behind.

    scripts/bench cancellation [--quick]

64 at a time read few keys (ten, which expire and are invalidated all the time, so that there is always a load to wait
for) or many, over Redis, with and without memory in front of it. A request is cancelled up to 4 ms after its beginning,
wherever it may be by then: about to ask, waiting for Redis, for a load of its own or for somebody else's. An answer is
wrong if it is another key's, or older than an invalidation that had returned before the question; whatever is raised
counts as wrong, too.
"""

import argparse
import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from benchmarks.measure import print_machine, table
from swr import Cache, Cached
from tests.servers import Server, kinds

_AT_ONCE = 64
_CANCELLED_WITHIN = 0.004
# Three in four are.
_CANCELLED = 0.75
_LOADER_TAKES = 0.003


class Setting(NamedTuple):
    """How many requests for each contestant, how many the many keys are, and when all has settled (seconds)."""

    requests: int
    many: int
    settled_after: float


FULL = Setting(requests=25_000, many=5_000, settled_after=2.0)
QUICK = Setting(requests=400, many=100, settled_after=0.1)


class Count:
    """What has become of the requests."""

    def __init__(self) -> None:
        self.answered = 0
        self.cancelled = 0
        self.wrong = 0
        self.loads = 0


class Rows:
    """A database whose rows change, behind a cache.

    Parameters:
        cache: which.
        keys: how many rows.
        count: where it is noted what readers got.
    """

    def __init__(self, cache: Cache, keys: int, count: Count) -> None:
        self._count = count
        self._keys = keys
        # What a row is now, and what nobody who asks from now on may be given less than.
        self._rows = [0] * keys
        self._least = [0] * keys

        @cache.cached("row:{number}", fresh_for=0.05, stale_for=0.05)
        async def read(number: int) -> list[int]:
            count.loads += 1
            row = self._rows[number]
            await asyncio.sleep(_LOADER_TAKES)
            return [number, row]

        self._read: Cached[[int], list[int]] = read

    async def ask(self) -> None:
        """One request."""
        number = random.randrange(self._keys)
        least = self._least[number]
        key, row = await self._read(number)
        if key != number or row < least:
            self._count.wrong += 1

    async def change(self) -> None:
        """Change rows without end."""
        while True:
            number = random.randrange(self._keys)
            self._rows[number] += 1
            row = self._rows[number]
            await self._read.invalidate(number)
            self._least[number] = row
            await asyncio.sleep(0.01)


async def bombard(ask: Callable[[], Awaitable[None]], requests: int, count: Count) -> None:
    """Make so many requests, and cancel most of them."""
    loop = asyncio.get_running_loop()
    left = requests

    async def client() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            request = asyncio.ensure_future(ask())
            if random.random() < _CANCELLED:
                loop.call_later(random.uniform(0, _CANCELLED_WITHIN), request.cancel)
            await asyncio.wait((request,))
            if request.cancelled():
                count.cancelled += 1
            elif request.exception() is not None:
                count.wrong += 1
            else:
                count.answered += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(client())


class Snapshot:
    """What there is now: tasks of this event loop, connections open at the server, and connections ever made to it."""

    def __init__(self, server: Server) -> None:
        said = server.says("INFO")
        self.tasks = len(asyncio.all_tasks())
        self.open, self.made = (
            int(said.partition(f"{name}:")[2].split()[0])
            for name in ("connected_clients", "total_connections_received")
        )


async def try_out(
    server: Server, ask: Callable[[], Awaitable[None]], setting: Setting, count: Count
) -> tuple[Snapshot, Snapshot, float]:
    """Return what there was before and what there is after, and the seconds."""
    # With the first load begins the one task that renews leases.
    await ask()
    await asyncio.sleep(setting.settled_after)
    before, began = Snapshot(server), time.perf_counter()
    await bombard(ask, setting.requests, count)
    took = time.perf_counter() - began
    await asyncio.sleep(setting.settled_after)
    return before, Snapshot(server), took


def row(name: str, count: Count, found: tuple[Snapshot, Snapshot, float], leases: int) -> list[str]:
    """Return one of the table."""
    before, after, took = found
    requests = count.answered + count.cancelled + count.wrong
    # The second snapshot's own.
    again = after.made - before.made - 1
    left = (after.open - before.open, after.tasks - before.tasks)
    reached = count.wrong == 0 and max(*left, leases) <= 0 and again <= requests / 1000
    return [
        name,
        *(f"{number:,}" for number in (requests, count.cancelled, count.loads, count.wrong)),
        ", ".join(map(str, left)),
        str(leases),
        f"{again:,}",
        f"{took / requests * 1e6:.0f}",
        f"0, 0, ≤ 1 in 1,000 {'reached' if reached else 'MISSED'}",
    ]


async def with_swr(server: Server, keys: int, l1_max_bytes: int, setting: Setting) -> list[str]:
    """Return the row of a cache."""
    count, namespace = Count(), f"cancellation-{keys}-{l1_max_bytes}"
    async with Cache(server.url, namespace=namespace, l1_max_bytes=l1_max_bytes) as cache:
        rows = Rows(cache, keys, count)
        changes = asyncio.create_task(rows.change())
        found = await try_out(server, rows.ask, setting, count)
        changes.cancel()
        await asyncio.wait((changes,))
        leases = server.command("EVAL", f"return #redis.call('KEYS', '{namespace}:*:l')", "0").removeprefix(b":")
    where = "L1 in front" if l1_max_bytes else "L1 off"
    return row(f"swr, {keys:,} keys, {where}", count, found, int(leases))


async def measure(setting: Setting) -> None:
    """Print the table."""
    rows = []
    with Server(kinds()[-1]) as server:
        for keys in (10, setting.many):
            for l1_max_bytes in (0, 64 * 2**20):
                rows.append(await with_swr(server, keys, l1_max_bytes, setting))
    columns = [
        *("", "requests", "cancelled", "loads", "wrong", "connections, tasks left", "leases left"),
        *("reconnects", "µs each", "goal"),
    ]
    table(f"{_AT_ONCE} requests at a time, three in four cancelled within 4 ms", columns, rows)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few requests: to see that it runs, not to measure")
    options = parser.parse_args()
    print_machine("swr", "redis")
    asyncio.run(measure(QUICK if options.quick else FULL))


if __name__ == "__main__":
    main()
