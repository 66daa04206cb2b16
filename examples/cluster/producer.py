"""One producer: gives groups new numbers and marks them until SIGTERM.

python -m examples.cluster.producer URL DATABASE REPORT
"""

import asyncio
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from examples.cluster.numbers import GROUPS, Numbers, warm
from swr import StoreUnavailable

RATE: Final = 100.0
_AT_ONCE: Final = 8


class Produced(msgspec.Struct):
    """The report of a producer.

    Parameters:
        acknowledged: the number of acknowledged marks.
        refused: the number of attempts that failed and were repeated.
        slowest: the longest time between the first attempt and the acknowledgement of a mark, in seconds.
        latest: the newest number of each group whose mark was acknowledged.
    """

    acknowledged: int = 0
    refused: int = 0
    slowest: float = 0.0
    latest: dict[str, int] = {}


async def produce(url: str, database: Path, begun: Callable[[], None]) -> Produced:
    """Mark groups until SIGTERM, repeat each mark until it is acknowledged, and return the report."""
    numbers, stop, done = Numbers(database), asyncio.Event(), Produced()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    cache, refresher = warm(url, numbers.of)

    async def write_and_mark() -> None:
        while not stop.is_set():
            group = random.choice(GROUPS)
            number = numbers.raised(group)
            began = time.monotonic()
            while True:
                try:
                    await refresher.mark_dirty(group)
                    break
                except StoreUnavailable:
                    # No replica has the mark, or the reply that says so was lost.
                    done.refused += 1
                    await asyncio.sleep(0.1)
            done.acknowledged += 1
            done.slowest = max(done.slowest, time.monotonic() - began)
            done.latest[group] = max(number, done.latest.get(group, 0))
            await asyncio.sleep(random.expovariate(RATE / _AT_ONCE))

    async with cache:
        begun()
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(write_and_mark())
    return done


if __name__ == "__main__":
    report = Path(sys.argv[3])
    done = asyncio.run(produce(sys.argv[1], Path(sys.argv[2]), report.touch))
    report.write_bytes(msgspec.json.encode(done))
