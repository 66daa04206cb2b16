"""One worker of a refresher: python -m tests.refreshing URL FILE OPTIONS

FILE gets a line for every load: when it began (seconds since 1970), the process, the group. OPTIONS are JSON: those of
`Refresher`, `groups` (how many), `takes` (seconds a load lasts), and `lease_for`. It ends at SIGTERM, in good order.
FILE.held contains a number. Once all processes together have begun this many loads, loads end only with their process.
"""

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from swr import Cache, Refresher

# Seconds between two rounds. Rounds begin at multiples of it, so no second round begins while a test runs.
FOR_GOOD = 1e9


def is_held(file: str) -> bool:
    try:
        most = int(Path(f"{file}.held").read_text())
    except FileNotFoundError:
        return False
    return Path(file).read_bytes().count(b"\n") >= most


async def work(url: str, file: str, options: dict[str, Any]) -> None:
    groups = [f"g{number}" for number in range(options.pop("groups"))]
    takes, lease_for = options.pop("takes", 0.0), options.pop("lease_for", 30)
    cache = Cache(url, timeout=2, lease_for=lease_for)
    loads = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @cache.cached("ranking:{group}", fresh_for=3600)
    async def ranking(group: str) -> str:
        os.write(loads, f"{time.time()} {os.getpid()} {group}\n".encode())
        await asyncio.sleep(takes)
        while not over.is_set() and is_held(file):
            await asyncio.sleep(0.01)
        return group

    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    async with cache, Refresher(ranking, groups, **options):
        print("ready", flush=True)
        await over.wait()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
