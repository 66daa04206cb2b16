"""What a million distinct keys leave behind in a process whose memory is capped at 64 MB, and what each costs.

    scripts/bench memory [--quick]

`Cache()`, in memory alone: every key is a miss, a load that returns 200 bytes, and an entry that takes another's place
once the cap is reached. Two fresh processes take turns: one that a thousand keys have gone through, and one that a
million have. How much it has grown is the most that was ever resident, above what was before the first key.
"""

import argparse
import asyncio
import gc
import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import print_machine, ratio, table, verdict
from benchmarks.processes import Worker, workers
from swr import Cache, Cached

_MB = 2**20
_CHUNK = 1_000


class Setting(NamedTuple):
    """How many keys, how often a thousand more, and the cap in bytes."""

    keys: int
    rounds: int
    cap: int


FULL = Setting(keys=1_000_000, rounds=15, cap=64 * _MB)
QUICK = Setting(keys=2_500, rounds=1, cap=2 * _MB)


# -- a process ------------------------------------------------------------------------------------------------


def most_resident() -> int:
    """Return the most bytes of this process that were ever resident."""
    status = Path("/proc/self/status")
    if status.exists():
        # Unlike getrusage's, it does not begin with what the parent had.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def reader_of(cache: Cache) -> Cached[[int], bytes]:
    """Return the loader behind the cache."""

    @cache.cached("key:{number}", fresh_for=3600)
    async def read(number: int) -> bytes:
        return b"%0200d" % number

    return read


async def timed(read: Cached[[int], bytes], first: int, number: int) -> float:
    """Return the seconds per read of so many keys from `first` on."""
    began = time.perf_counter()
    for key in range(first, first + number):
        await read(key)
    return (time.perf_counter() - began) / number


async def work(keys: int, cap: int) -> None:
    """Let as many keys go through; then, at each line, say what a thousand more cost, and a thousand that are there.

    A process of no keys begins again with every line, and so never has more than a thousand.
    """
    cache = Cache(l1_max_bytes=cap)
    read = reader_of(cache)
    await timed(read, 0, 1)
    gc.collect()
    before = most_resident()
    if keys:
        await timed(read, 1, keys)
    print("ready", flush=True)
    first = keys + 1
    while (await asyncio.to_thread(sys.stdin.readline)).strip():
        if not keys:
            await cache.clear()
        miss = await timed(read, first, _CHUNK)
        hit = await timed(read, first, _CHUNK)
        first += _CHUNK
        print(json.dumps([miss, hit, most_resident() - before, len(cache.local.slots)]), flush=True)
    await cache.aclose()


# -- the conductor --------------------------------------------------------------------------------------------


class Taken:
    """What one of the two processes came to, round after round."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.miss: list[float] = []
        self.hit: list[float] = []
        self.grown = 0
        self.held = 0

    def round(self) -> None:
        """Have it read."""
        self._worker.tell("go")
        miss, hit, self.grown, self.held = json.loads(self._worker.answer())
        self.miss.append(miss)
        self.hit.append(hit)


def compare(setting: Setting, quick: bool) -> None:
    """Print the table."""
    module, flags = "benchmarks.memory", ["--quick"] if quick else []
    with (
        workers(1, module, *flags, "--work", "0") as few,
        workers(1, module, *flags, "--work", str(setting.keys)) as all_,
    ):
        little, much = Taken(few[0]), Taken(all_[0])
        for turn in range(setting.rounds):
            for taken in (little, much) if turn % 2 else (much, little):
                taken.round()
    rows = []
    for name, taken in ((f"{_CHUNK:,}", little), (f"{setting.keys:,}", much)):
        cells = [name, f"{taken.held:,}", f"{taken.grown / _MB:.0f}"]
        for own, other in ((taken.miss, little.miss), (taken.hit, little.hit)):
            cells += [f"{statistics.median(own) * 1e6:.2f}", f"{ratio(own, other):.2f}"]
        goal = ""
        if taken is much:
            costs = [verdict(ratio(*pair), at_most=1.2) for pair in ((much.miss, little.miss), (much.hit, little.hit))]
            grown = "reached" if taken.grown <= 100 * _MB else "MISSED"
            goal = f"≤ 100 MB {grown}; miss {costs[0]}; hit {costs[1]}"
        rows.append([*cells, goal])
    columns = ["distinct keys", "held", "MB more resident", "µs a miss", "to 1,000", "µs a hit", "to 1,000", "goals"]
    table(f"Cache(l1_max_bytes={setting.cap:,}), in memory (median of {setting.rounds} rounds)", columns, rows)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few keys: to see that it runs, not to measure")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    setting = QUICK if options.quick else FULL
    if options.work is not None:
        asyncio.run(work(options.work, setting.cap))
        return
    print_machine("swr")
    compare(setting, options.quick)


if __name__ == "__main__":
    main()
