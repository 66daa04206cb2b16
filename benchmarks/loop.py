"""How long the event loop is held while large values and long lists go through the cache.

    scripts/bench loop [--quick]

A task of the same event loop measures each of its turns: the time that the loop's own thread ran, and the time on the
wall, which also counts threads that let no other run, and whatever else the machine does. Python's collector is
switched off meanwhile: how long it takes depends on all that a program holds.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import gc
import time
from collections.abc import Callable
from typing import Any

from benchmarks.measure import print_machine, table, verdict
from swr import Cache
from tests.servers import Server, kinds

_GOAL = 0.05


@dataclasses.dataclass
class Row:
    """One row of a ranking."""

    tail: str
    miles: int
    share: float
    group: str


class Turns:
    """The longest turn of the event loop within a block, in seconds: on the wall, and of the loop's own thread."""

    wall = own = 0.0

    async def __aenter__(self) -> "Turns":
        self._task = asyncio.create_task(self._measure())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _measure(self) -> None:
        wall, own = time.perf_counter(), time.thread_time()
        while True:
            await asyncio.sleep(0)
            now, ran = time.perf_counter(), time.thread_time()
            self.wall, self.own = max(self.wall, now - wall), max(self.own, ran - own)
            wall, own = now, ran


def rows(number: int) -> list[Row]:
    """Return so many rows."""
    return [Row(f"N{index}", index, index / 7, "ATL") for index in range(number)]


def numbers(number: int) -> list[int]:
    """Return so many numbers."""
    return list(range(number))


def names(number: int) -> set[str]:
    """Return a set of so many names."""
    return {f"N{index}" for index in range(number)}


def lists(number: int) -> list[list[int]]:
    """Return a table of so many lines."""
    return [list(range(1000)) for _ in range(number)]


def text(number: int) -> str:
    """Return so many characters."""
    return "x" * number


async def values(url: str | None, kind: Any, value: Any) -> list[tuple[str, Turns]]:
    """Load one large value, and read it in another process's place."""

    async def load() -> Any:
        return value

    load.__annotations__["return"] = kind
    measured = []
    async with Cache(url, l1_max_bytes=2**30) as cache, Cache(url, l1_max_bytes=2**30) as other:
        await cache.invalidate("value")
        for what, reader in (("load", cache), ("read", other)):
            if what == "load" or url is not None:
                read = reader.cached("value", fresh_for=600)(load)
                async with Turns() as turns:
                    await read()
                    await asyncio.sleep(0.1)
                measured.append((what, turns))
    return measured


async def batch(url: str | None, number: int) -> list[tuple[str, Turns]]:
    """Load a long list by a batch loader, and read it."""
    measured = []
    async with Cache(url, l1_max_bytes=2**30) as cache:

        @cache.cached_many("many:{item}", fresh_for=600)
        async def many(items: list[int]) -> dict[int, int]:
            return {item: item for item in items}

        await cache.clear()
        items = list(range(number))
        for what in ("load", "read"):
            async with Turns() as turns:
                await many(items)
            measured.append((what, turns))
    return measured


async def measure(url: str, *, quick: bool) -> None:
    """Measure all, and print the table."""
    share = 50 if quick else 1
    large: list[tuple[str, Any, Callable[[int], Any], int]] = [
        ("integers", list[int], numbers, 1_000_000 // share),
        ("rows", list[Row], rows, 100_000 // share),
        ("rows", list[Row], rows, 400_000 // share),
        ("lists of 1,000", list[list[int]], lists, 1000 // share),
        ("names in a set", set[str], names, 300_000 // share),
        ("characters", str, text, 20_000_000 // share),
    ]
    lines = []
    for store, where in (("memory", None), ("Redis", url)):
        for name, kind, make, number in large:
            measured = await values(where, kind, make(number))
            lines += [(f"{what}: {number:,} {name}, {store}", turns) for what, turns in measured]
        for number in (20_000 // share, 100_000 // share):
            measured = await batch(where, number)
            lines += [(f"{what}: cached_many of {number:,}, {store}", turns) for what, turns in measured]
    table(
        "The longest turn of the event loop",
        ["", "ms on the wall", "ms of its thread", "goal, ms of its thread"],
        [
            (name, f"{turns.wall * 1e3:.0f}", f"{turns.own * 1e3:.0f}", verdict(turns.own * 1e3, at_most=_GOAL * 1e3))
            for name, turns in lines
        ],
    )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small values: to see that it runs, not to measure")
    options = parser.parse_args()
    print_machine("swr", "msgspec")
    gc.disable()
    with Server(kinds()[0]) as server:
        asyncio.run(measure(server.url, quick=options.quick))


if __name__ == "__main__":
    main()
