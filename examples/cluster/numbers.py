"""The data that are kept warm: the newest number of each of many groups, in SQLite and through a cache."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from swr import Cache
from swr.refreshers import Refresher

GROUPS: Final = [f"group {number}" for number in range(2000)]
# One shard for each master.
SHARDS: Final = 3
_ASKED_FOR: Final = 0.1


class Numbers:
    """The database. Its methods block for a short time.

    Parameters:
        path: the file of the database, which is created if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")  # readers and writers do not wait for one another
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute("CREATE TABLE IF NOT EXISTS numbers (name TEXT PRIMARY KEY, number INTEGER NOT NULL)")

    def raised(self, group: str) -> int:
        """Give a group its next number, and return the number."""
        query = (
            "INSERT INTO numbers VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET number = number + 1 RETURNING number"
        )
        with closing(self._connection.execute(query, (group,))) as found:
            [(number,)] = found.fetchall()
            return int(number)

    def of(self, group: str) -> int:
        """Return the newest number of a group, or 0 if it has none."""
        row = self._connection.execute("SELECT number FROM numbers WHERE name = ?", (group,)).fetchone()
        return int(row[0]) if row else 0


def warm(url: str, ask: Callable[[str], int]) -> tuple[Cache, Refresher]:
    """Return the cache and the refresher that every process has, producers as well as consumers.

    Parameters:
        url: the URL of the cluster.
        ask: returns a group's number from the database.
    """
    # If a master dies before its replica knows that a lease was given back, the lease stays until it expires.
    cache = Cache(url, timeout=1, lease_for=5)

    @cache.cached("number:{group}", fresh_for="1h")
    async def number(group: str) -> int:
        found = ask(group)
        await asyncio.sleep(_ASKED_FOR)  # the time that a slower database would take
        return found

    refresher = Refresher(
        number,
        GROUPS,
        every=1,
        strategy="queue",
        dirty_only=True,  # all groups once, then only marked ones
        shards=SHARDS,
        replicas=1,  # a mark is acknowledged when a replica has it: WAIT 1
        reclaim_after=4,
        lead_for=3,
    )
    return cache, refresher
