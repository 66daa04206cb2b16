"""What is kept warm: the newest number of each of many groups, in SQLite and through a cache."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from swr import Cache
from swr.refreshers import Refresher

GROUPS: Final = [f"group {number}" for number in range(2000)]
# One for each master.
SHARDS: Final = 3
_ASKED_FOR: Final = 0.1


class Numbers:
    """The database. Its methods block for a moment.

    Parameters:
        path: of the file; it is made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")  # readers and writers do not wait for one another
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute("CREATE TABLE IF NOT EXISTS numbers (name TEXT PRIMARY KEY, number INTEGER NOT NULL)")

    def raised(self, group: str) -> int:
        """Give a group its next number; return that."""
        query = (
            "INSERT INTO numbers VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET number = number + 1 RETURNING number"
        )
        with closing(self._connection.execute(query, (group,))) as found:
            [(number,)] = found.fetchall()
            return int(number)

    def of(self, group: str) -> int:
        """Return a group's newest number, 0 if it has none."""
        row = self._connection.execute("SELECT number FROM numbers WHERE name = ?", (group,)).fetchone()
        return int(row[0]) if row else 0


def warm(url: str, ask: Callable[[str], int]) -> tuple[Cache, Refresher]:
    """Return the cache and the refresher that every process has, producers as well as consumers.

    Parameters:
        url: of the cluster.
        ask: the database, for a group's number.
    """
    # A lease whose return is lost with a master stands until it ends.
    cache = Cache(url, timeout=1, lease_for=5)

    @cache.cached("number:{group}", fresh_for="1h")
    async def number(group: str) -> int:
        found = ask(group)
        await asyncio.sleep(_ASKED_FOR)  # what a database takes
        return found

    refresher = Refresher(
        number,
        GROUPS,
        every=1,
        strategy="queue",
        dirty_only=True,  # all groups once, then those that are marked
        shards=SHARDS,
        replicas=1,  # a mark counts when a replica has it: WAIT 1
        reclaim_after=4,
        lead_for=3,
    )
    return cache, refresher
