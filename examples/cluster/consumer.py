"""One consumer: loads marked groups until SIGTERM.

python -m examples.cluster.consumer URL DATABASE REPORT
"""

import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from examples.cluster.numbers import Numbers, warm
from swr.events import Loaded, LoadFailed


class Consumed(msgspec.Struct):
    """The report of a consumer.

    Parameters:
        loads: how many loads it has run.
        failed: how many of these loads failed.
    """

    loads: int = 0
    failed: int = 0


async def consume(url: str, database: Path, begun: Callable[[], None]) -> Consumed:
    """Load marked groups until SIGTERM, finish or hand back the tasks under way, and return the report."""
    stop, done = asyncio.Event(), Consumed()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    cache, refresher = warm(url, Numbers(database).of)

    def count(event: Loaded | LoadFailed) -> None:
        done.loads += 1
        done.failed += isinstance(event, LoadFailed)

    cache.subscribe(count, Loaded, LoadFailed)
    async with cache, refresher:
        begun()
        await stop.wait()
    return done


if __name__ == "__main__":
    report = Path(sys.argv[3])
    done = asyncio.run(consume(sys.argv[1], Path(sys.argv[2]), report.touch))
    report.write_bytes(msgspec.json.encode(done))
