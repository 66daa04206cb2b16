"""A module with refreshers on the server of WARMED_URL, for the tests of `swr refresh`."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from swr import Cache, Refresher

print("a module that prints")

EVERY = float(os.environ.get("WARMED_EVERY", "0.5"))
# How long a load takes, in seconds.
SECONDS = float(os.environ.get("WARMED_SECONDS", "0"))
# How long the import of this module takes, in seconds.
IMPORT = float(os.environ.get("WARMED_IMPORT", "0"))
# Files with a line for each process, and with a line for each load.
PROCESSES = Path(os.environ["WARMED_FOLDER"]) / "processes"
LOADS = Path(os.environ["WARMED_FOLDER"]) / "loads"

cache = Cache(os.environ["WARMED_URL"], timeout=5, drain_for=60)
in_memory = Cache()

with PROCESSES.open("a") as file:
    file.write(f"{os.getpid()}\n")
time.sleep(IMPORT)


@cache.cached("top:{group}", fresh_for=60)
async def top(group: str) -> str:
    """Load a group."""
    print("a loader that prints")
    with LOADS.open("a") as file:
        file.write(f"{group}\n")
    await asyncio.sleep(SECONDS)
    return group


@in_memory.cached("top:{group}", fresh_for=60)
async def alone(group: str) -> str:
    """Load a group into the memory of this process."""
    return group


async def groups() -> AsyncIterator[str]:
    """Yield all groups."""
    for number in range(20):
        yield f"g{number}"


class Refreshers:
    """One refresher of each kind."""

    locks = Refresher(top, groups, every=EVERY, strategy="locks", drain_for=5)
    queue = Refresher(top, groups, every=EVERY, strategy="queue", name="top", drain_for=5)
    hasty = Refresher(top, groups, every=EVERY, strategy="locks", drain_for=0)
    read = Refresher(top, groups, every=EVERY, strategy="read")
    alone = Refresher(alone, groups, every=EVERY)
