"""The rankings that a benchmark's workers load: from SQLite, or from PostgreSQL where that is on the path."""

import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib.util import find_spec
from pathlib import Path

from examples.demo.servers import free_port
from examples.flights import Aircraft
from tests.servers import until

_ON_A_DAY = """
    SELECT tailnum, name, flights, total FROM (
        SELECT tailnum, MAX(carrier) AS carrier, COUNT(*) AS flights, SUM(arr_delay) AS total
        FROM flights WHERE dest = ? AND month = ? AND day = ? AND tailnum IS NOT NULL AND arr_delay IS NOT NULL
        GROUP BY tailnum ORDER BY total DESC, tailnum LIMIT 100
    ) AS late LEFT JOIN airlines USING (carrier) ORDER BY total DESC, tailnum
"""
_OF_ALL_DAYS = _ON_A_DAY.replace("AND month = ? AND day = ? ", "")
_INDEX = "CREATE INDEX flights_by_day ON flights (dest, month, day)"
# What PostgreSQL is told instead of `examples.flights`.
_TABLES = """
    CREATE TABLE airlines (carrier TEXT PRIMARY KEY, name TEXT);
    CREATE TABLE flights (
        month INTEGER, day INTEGER, hour INTEGER, carrier TEXT, tailnum TEXT,
        origin TEXT, dest TEXT, arr_delay INTEGER, distance INTEGER
    );
"""
# Of one worker's pool.
_CONNECTIONS = 8
# PostgreSQL refuses to run as root.
_NOBODY = {"user": "nobody", "group": "nogroup", "extra_groups": []}

Query = Callable[[str], list[Aircraft]]


def index_days(path: Path) -> None:
    """Have the made groups found as fast as the real ones."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(_INDEX)


@contextmanager
def querying(where: str) -> Iterator[Query]:
    """Return what loads the ranking of a group ("ATL", or "ATL 2 14": month and day), from any thread.

    Parameters:
        where: a file of SQLite's, or a URL of PostgreSQL's.
    """
    with ExitStack() as stack:
        if where.startswith("postgresql:"):
            from psycopg_pool import ConnectionPool

            pool = stack.enter_context(ConnectionPool(where, min_size=1, max_size=_CONNECTIONS))

            def rows(sql: str, parameters: list[str | int]) -> list[tuple[str, str | None, int, int]]:
                with pool.connection() as connection:
                    return connection.execute(sql.replace("?", "%s"), parameters).fetchall()
        else:

            def rows(sql: str, parameters: list[str | int]) -> list[tuple[str, str | None, int, int]]:
                with closing(sqlite3.connect(where)) as connection:
                    return connection.execute(sql, parameters).fetchall()

        def query(group: str) -> list[Aircraft]:
            airport, *day = group.split()
            found = rows(_ON_A_DAY if day else _OF_ALL_DAYS, [airport, *map(int, day)])
            return [Aircraft(rank, *row) for rank, row in enumerate(found, start=1)]

        yield query


def has_postgresql() -> bool:
    """Whether PostgreSQL, and what speaks to it, are there."""
    return bool(find_spec("psycopg_pool")) and all(shutil.which(command) for command in ("initdb", "postgres"))


@contextmanager
def postgresql(path: Path) -> Iterator[str]:
    """Run PostgreSQL with the flights that SQLite has at `path`; its URL."""
    import psycopg

    who = _NOBODY if os.geteuid() == 0 else {}
    port = free_port()
    url = f"postgresql://swr@127.0.0.1:{port}/postgres"
    with tempfile.TemporaryDirectory(prefix="swr-postgresql-") as folder:
        if who:
            shutil.chown(folder, "nobody", "nogroup")
        data = f"{folder}/data"
        made = [
            "initdb",
            "--pgdata",
            data,
            "--username",
            "swr",
            "--auth",
            "trust",
            "--locale",
            "C",
            "--encoding",
            "UTF8",
            "--no-sync",
        ]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL, cwd=folder, **who)
        options = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        command = [
            "postgres",
            "-D",
            data,
            *(word for name, value in options.items() for word in ("-c", f"{name}={value}")),
        ]
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=folder, **who)
        try:
            until(lambda: _answers(url, server), seconds=30)
            with psycopg.connect(url) as connection, closing(sqlite3.connect(path)) as flights:
                connection.execute(_TABLES)
                for table in ("airlines", "flights"):
                    with connection.cursor().copy(f"COPY {table} FROM STDIN") as copy:
                        for row in flights.execute(f"SELECT * FROM {table}"):
                            copy.write_row(row)
                connection.execute(_INDEX)
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE")
            yield url
        finally:
            # At once: nothing is to be kept.
            server.send_signal(signal.SIGINT)
            server.wait()


def _answers(url: str, server: subprocess.Popen[bytes]) -> bool:
    import psycopg

    if server.poll() is not None:
        raise RuntimeError(f"PostgreSQL ended as soon as it was started, with {server.returncode}")
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True
