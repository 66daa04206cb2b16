"""New York's flights of 2013 in SQLite, and rankings that are slow enough to be worth caching.

`python -m examples.flights flights.db` creates the database.
"""

import csv
import gzip
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DATA: Final = Path(__file__).parent / "data"

_SCHEMA: Final = """
    PRAGMA journal_mode = WAL;  -- readers and the writer do not wait for one another
    CREATE TABLE airlines (carrier TEXT PRIMARY KEY, name TEXT);
    CREATE TABLE flights (
        month INTEGER, day INTEGER, hour INTEGER, carrier TEXT, tailnum TEXT,
        origin TEXT, dest TEXT, arr_delay INTEGER, distance INTEGER
    );
"""
# Created when the table is full, because updating the index with each row takes longer.
_INDEX: Final = "CREATE INDEX flights_by_dest ON flights (dest)"
_BY_DELAY: Final = """
    SELECT tailnum, name, flights, total FROM (
        SELECT tailnum, MAX(carrier) AS carrier, COUNT(*) AS flights, SUM(arr_delay) AS total
        FROM flights WHERE dest = ? AND tailnum IS NOT NULL AND arr_delay IS NOT NULL
        GROUP BY tailnum ORDER BY total DESC, tailnum LIMIT ?
    ) LEFT JOIN airlines USING (carrier) ORDER BY total DESC, tailnum
"""
_BY_MILES: Final = """
    SELECT tailnum, name, flights, total FROM (
        SELECT tailnum, MAX(carrier) AS carrier, COUNT(*) AS flights, SUM(distance) AS total
        FROM flights WHERE tailnum IS NOT NULL AND distance IS NOT NULL
        GROUP BY tailnum ORDER BY total DESC, tailnum LIMIT ?
    ) LEFT JOIN airlines USING (carrier) ORDER BY total DESC, tailnum
"""
_AIRPORTS: Final = "SELECT dest FROM flights GROUP BY dest ORDER BY COUNT(*) DESC, dest"
_ADD: Final = "INSERT INTO flights (dest, tailnum, carrier, arr_delay, distance) VALUES (?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class Aircraft:
    """One line of a ranking; `total` is minutes of delay or miles flown."""

    rank: int
    tailnum: str
    airline: str | None
    flights: int
    total: int


@dataclass(frozen=True, slots=True)
class Flight:
    """A flight that has arrived: late by `arr_delay` minutes, after `distance` miles."""

    tailnum: str
    carrier: str | None = None
    arr_delay: int | None = None
    distance: int | None = None


class Flights:
    """The database. Its methods block. Each call has a connection of its own, so any thread may call them.

    Parameters:
        path: the path of a database that `build` has created.

    Raises:
        FileNotFoundError: there is no database at `path`.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise FileNotFoundError(f"no database at {path}; python -m examples.flights {path} makes it")
        self._path = path
        self._log = path.with_name(f"{path.name}.loads")

    def by_delay(self, airport: str, limit: int = 100) -> list[Aircraft]:
        """Return the aircraft with the greatest total arrival delay at one airport."""
        return self._ranking(_BY_DELAY, airport, limit)

    def by_miles(self, limit: int = 100) -> list[Aircraft]:
        """Return the aircraft that flew the most miles, over all airports."""
        return self._ranking(_BY_MILES, limit)

    def airports(self) -> list[str]:
        """Return the airports, the one with the most arrivals first."""
        with closing(self._connect()) as connection:
            return [airport for (airport,) in connection.execute(_AIRPORTS)]

    def add(self, airport: str, flights: Sequence[Flight]) -> None:
        """Add flights that have arrived at an airport."""
        rows = [(airport, flight.tailnum, flight.carrier, flight.arr_delay, flight.distance) for flight in flights]
        with closing(self._connect()) as connection, connection:
            connection.executemany(_ADD, rows)

    @property
    def loads(self) -> int:
        """How many rankings all processes together have loaded from the database."""
        return self._log.stat().st_size if self._log.exists() else 0

    def _ranking(self, query: str, *parameters: str | int) -> list[Aircraft]:
        # Each query appends one byte: unlike with a counter, several processes cannot overwrite each other's updates.
        with self._log.open("ab") as log:
            log.write(b".")
        with closing(self._connect()) as connection:
            return [Aircraft(rank, *row) for rank, row in enumerate(connection.execute(query, parameters), start=1)]

    def _connect(self) -> sqlite3.Connection:
        # Without mode=rw, SQLite would silently create an empty database at a wrong path.
        return sqlite3.connect(f"{self._path.resolve().as_uri()}?mode=rw", uri=True)


def build(path: Path) -> Flights:
    """Create the database from `examples/data`, which takes a few seconds.

    Raises:
        FileExistsError: `path` already exists.
    """
    if path.exists():
        raise FileExistsError(f"{path} is there already")
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(_SCHEMA)
        with (
            connection,
            (DATA / "airlines.csv").open(newline="", encoding="utf-8") as airlines,
            gzip.open(DATA / "flights2013.csv.gz", "rt", newline="", encoding="utf-8") as flights,
        ):
            connection.executemany("INSERT INTO airlines VALUES (?, ?)", _rows(airlines))
            connection.executemany("INSERT INTO flights VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", _rows(flights))
            connection.execute(_INDEX)
    return Flights(path)


def _rows(lines: Iterable[str]) -> Iterator[Sequence[str | None]]:
    """Yield the rows of a CSV file without its header, with None for a missing value."""
    reader = csv.reader(lines)
    next(reader)
    for row in reader:
        # Most rows have all values, and need no new list.
        yield [None if cell in ("", "NA") else cell for cell in row] if "NA" in row or "" in row else row


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m examples.flights PATH")
    try:
        build(Path(sys.argv[1]))
    except OSError as error:
        sys.exit(str(error))
