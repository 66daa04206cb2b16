"""The local cache (L1): hits among many keys, what is found under a cap, and what an entry takes.

    scripts/bench local [--quick] [--million]

- A fresh hit with 1 to 100,000 keys in random order, beside async_lru of the same size; with `--million` of as many.
- The hit ratio under a cap in bytes on a real trace of requests (`examples/data/README.md`), beside other policies.
- The memory of an entry of 200 bytes, which nobody has read again and which somebody has.
"""

import argparse
import asyncio
import gc
import json
import lzma
import random
import statistics
import sys
import time
from array import array
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from cachetools import LRUCache

from benchmarks.measure import Run, installed, interleave, print_machine, ratio, table, verdict
from benchmarks.memory import most_resident
from benchmarks.processes import workers
from swr import Cache

_TRACE = Path(__file__).parent.parent / "examples/data/web12.trace.xz"


class Setting(NamedTuple):
    """How many keys, calls, rounds, requests of the trace, and entries."""

    sizes: tuple[int, ...]
    calls: int
    rounds: int
    requests: int
    entries: int


FULL = Setting((1, 100, 10_000, 100_000), 50_000, 9, 100_000, 100_000)
QUICK = Setting((1, 100), 100, 2, 2_000, 1_000)


# -- hits -----------------------------------------------------------------------------------------------------


def shuffled(hit: Callable[[Any], Awaitable[Any]], keys: Sequence[Any]) -> Run:
    """Return what calls `hit` so many times, with keys in random order."""

    async def run(times: int) -> float:
        order = random.choices(keys, k=times)
        began = time.perf_counter()
        for key in order:
            await hit(key)
        return time.perf_counter() - began

    return run


async def hits(setting: Setting) -> None:
    """Print the table of hits."""
    from async_lru import alru_cache

    for kind in ("text", "number"):
        rows = []
        for size in setting.sizes:
            keys: list[Any] = [f"group-{number}" if kind == "text" else number for number in range(size)]

            async def load(group: Any) -> Any:
                return [group]

            async with Cache(l1_max_bytes=2**33) as cache:
                own = cache.cached("ranking:{group}", fresh_for=10**6)(load)
                other = alru_cache(maxsize=size)(load)
                # A million loads would take minutes: the first one's entry is put in the place of the others'.
                await own(keys[0])
                entry = cache.local.slots[own.key(keys[0])].entry
                # All of it stays, so that the collector would look at millions of objects in vain.
                gc.disable()
                for key in keys:
                    cache.local.put(own.key(key), msgspec.structs.replace(entry, value=[key]))
                    assert await own(key) == await other(key)
                gc.freeze()
                gc.enable()
                runs = {"swr": shuffled(own, keys), "async_lru": shuffled(other, keys)}
                taken = await interleave(runs, dict.fromkeys(runs, setting.calls), setting.rounds)
                gc.unfreeze()
                other.cache_clear()
                assert len(cache.local.slots) == size
            factor = ratio(taken["swr"], taken["async_lru"])
            medians = [f"{statistics.median(taken[name]) * 1e6:.2f}" for name in runs]
            rows.append([f"{size:,}", *medians, f"{factor:.2f}", verdict(factor, at_most=0.7)])
        columns = [f"fresh hit: keys in random order, a {kind}", "swr, µs", "async_lru, µs", "swr to it", "goal"]
        table(f"A hit among many keys (median of {setting.rounds} rounds)", columns, rows)


# -- hit ratio ------------------------------------------------------------------------------------------------


def lru(trace: Sequence[int], size: int) -> int:
    """Return the hits of the least recently used."""
    cache: LRUCache[int, bool] = LRUCache(size)
    hits = 0
    for key in trace:
        if cache.get(key) is None:
            cache[key] = True
        else:
            hits += 1
    return hits


def sieve(trace: Sequence[int], size: int) -> int:
    """Return the hits of SIEVE, as its authors have it."""
    used: dict[int, bool] = {}
    order: list[int | None] = []
    hand = hits = 0
    for key in trace:
        if key in used:
            hits += 1
            used[key] = True
            continue
        while len(used) >= size:
            if hand == len(order):
                order, hand = [item for item in order if item is not None], 0
            item = order[hand]
            if item is not None and not used[item]:
                del used[item]
                order[hand] = None
            elif item is not None:
                used[item] = False
            hand += 1
        used[key] = False
        order.append(key)
    return hits


def s3_fifo(trace: Sequence[int], size: int) -> int:
    """Return the hits of S3-FIFO, as its authors have it: a small queue of a tenth, counts up to three."""
    small, main, gone = deque[int](), deque[int](), OrderedDict[int, None]()
    uses: dict[int, int] = {}
    hits, most_small = 0, max(1, size // 10)

    def from_main() -> None:
        while uses[main[0]]:
            uses[main[0]] -= 1
            main.rotate(-1)
        del uses[main.popleft()]

    def from_small() -> None:
        while small:
            key = small.popleft()
            if uses[key] <= 1:
                del uses[key]
                gone[key] = None
                if len(gone) > size - most_small:
                    gone.popitem(last=False)
                return
            uses[key] = 0
            main.append(key)
            if len(main) > size - most_small:
                from_main()
                return

    for key in trace:
        if key in uses:
            hits += 1
            uses[key] = min(3, uses[key] + 1)
            continue
        while len(uses) >= size:
            if len(small) >= most_small or not main:
                from_small()
            else:
                from_main()
        uses[key] = 0
        if key in gone:
            del gone[key]
            main.append(key)
        else:
            small.append(key)
    return hits


def w_tiny_lfu(trace: Sequence[int], size: int) -> int:
    """Return the hits of W-TinyLFU with its window of a hundredth, and exact counts in the place of a sketch."""
    window, probation, protected = OrderedDict[int, None](), OrderedDict[int, None](), OrderedDict[int, None]()
    counts: dict[int, int] = {}
    hits = counted = 0
    most_window = max(1, size // 100)
    most_protected = (size - most_window) * 8 // 10
    for key in trace:
        counts[key] = min(15, counts.get(key, 0) + 1)
        counted += 1
        if counted >= 10 * size:
            counted //= 2
            counts = {item: count // 2 for item, count in counts.items() if count > 1}
        if key in window or key in protected:
            hits += 1
            (window if key in window else protected).move_to_end(key)
        elif key in probation:
            hits += 1
            del probation[key]
            protected[key] = None
            if len(protected) > most_protected:
                probation[protected.popitem(last=False)[0]] = None
        else:
            window[key] = None
            if len(window) > most_window:
                came, _ = window.popitem(last=False)
                if len(probation) + len(protected) < size - most_window:
                    probation[came] = None
                    continue
                place = probation or protected
                if counts.get(came, 0) > counts.get(next(iter(place)), 0):
                    place.popitem(last=False)
                    probation[came] = None
    return hits


async def through_swr(trace: Sequence[int], size: int) -> int:
    """Return the hits of swr, under a cap of as many bytes as so many entries take."""
    misses = 0
    async with Cache() as cache:

        @cache.cached("page:{number}", fresh_for=10**6)
        async def page(number: int) -> bytes:
            nonlocal misses
            misses += 1
            return b"x" * 200

        # All keys are of one length, and so of one weight.
        first = 10**6
        await page(first - 1)
        weight = cache.local.slots.currsize
        await cache.clear()
        cache.local.slots.maxsize = size * weight
        misses = 0
        for number in trace:
            await page(first + number)
        assert len(cache.local.slots) <= size
    return len(trace) - misses


def hit_ratio(setting: Setting) -> None:
    """Print the table of hit ratios."""
    trace = array("I")
    trace.frombytes(lzma.decompress(_TRACE.read_bytes())[: 4 * setting.requests])
    trace.byteswap()
    keys = len(set(trace))
    policies: dict[str, Callable[[Sequence[int], int], int]] = {
        "swr": lambda trace, size: asyncio.run(through_swr(trace, size)),
        "LRU": lru,
        "SIEVE": sieve,
        "S3-FIFO": s3_fifo,
        "W-TinyLFU": w_tiny_lfu,
    }
    goals = {1: 0.403, 5: 0.635, 10: 0.717}
    rows = []
    for percent in (1, 2, 5, 10, 20):
        size = max(1, keys * percent // 100)
        found = {name: policy(trace, size) / len(trace) for name, policy in policies.items()}
        goal = max(goals.get(percent, 0), found["SIEVE"])
        met = f"≥ {goal:.3f} {'reached' if found['swr'] >= goal else 'MISSED'}"
        rows.append([f"{percent} %, {size:,}", *(f"{share:.3f}" for share in found.values()), met])
    table(
        f"Hit ratio: {len(trace):,} requests, {keys:,} keys of one size",
        ["of the keys fit", *policies, "goal (swr)"],
        rows,
    )


# -- memory ---------------------------------------------------------------------------------------------------


async def fill(entries: int, reads: int) -> None:
    """Load so many entries, read each so many times, and print the bytes that one takes."""
    async with Cache(l1_max_bytes=2**33) as cache:

        @cache.cached("key:{number}", fresh_for=3600)
        async def read(number: int) -> bytes:
            return b"%0200d" % number

        for number in range(1000):
            await read(-number - 1)
        print("ready", flush=True)
        gc.collect()
        before, held = most_resident(), len(cache.local.slots)
        counted = cache.local.slots.currsize
        for number in range(entries):
            await read(number)
            for _ in range(reads):
                await read(number)
        grown = most_resident() - before
        added = len(cache.local.slots) - held
        print(json.dumps([grown / added, (cache.local.slots.currsize - counted) / added]), flush=True)
    sys.stdin.readline()


def memory(setting: Setting, flags: Sequence[str]) -> None:
    """Print the table of memory."""
    rows = []
    for name, reads in (("loaded", 0), ("loaded and read again", 1)):
        with workers(1, "benchmarks.local", *flags, "--fill", str(reads)) as (worker,):
            taken, counted = json.loads(worker.answer())
            worker.tell("end")
        goal = f"≤ 500 {'reached' if taken <= 500 else 'MISSED'}"
        rows.append([name, f"{taken:.0f}", f"{counted:.0f}", goal])
    columns = ["an entry of 200 bytes", "bytes that it takes", "bytes that the cap counts", "goal"]
    table(f"Memory ({setting.entries:,} entries, each process new)", columns, rows)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few calls: to see that it runs, not to measure")
    parser.add_argument("--million", action="store_true", help="1,000,000 keys, too, which takes minutes")
    parser.add_argument("--only", choices=["hits", "ratio", "memory"], help="one of the three tables")
    parser.add_argument("--fill", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    setting = QUICK if options.quick else FULL
    if options.million:
        setting = setting._replace(sizes=(*setting.sizes, 1_000_000))
    if options.fill is not None:
        asyncio.run(fill(setting.entries, options.fill))
        return
    print_machine("swr", "async-lru", "cachetools")
    if options.only in (None, "memory"):
        memory(setting, ["--quick"] if options.quick else [])
    if options.only in (None, "ratio"):
        hit_ratio(setting)
    if options.only in (None, "hits") and installed("async_lru"):
        asyncio.run(hits(setting))


if __name__ == "__main__":
    main()
