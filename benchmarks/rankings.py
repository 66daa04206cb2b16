"""The value that the benchmarks serve: a Top 100 of aircraft by minutes of delay."""

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Aircraft:
    """One row of the ranking."""

    rank: int
    tailnum: str
    flights: int
    minutes: float


def top100() -> list[Aircraft]:
    """Return the ranking, typed."""
    return [
        Aircraft(n, f"N{n * 7919 % 900 + 100}{chr(65 + n % 26)}{chr(65 + n * 7 % 26)}", 411 - 3 * n, 9123.25 - 37 * n)
        for n in range(1, 101)
    ]


def top100_plain() -> list[dict[str, Any]]:
    """Return the ranking as JSON gives it back: 7 kB of it."""
    return [asdict(aircraft) for aircraft in top100()]


def top100_body() -> bytes:
    """Return the ranking as an API sends it: 5 kB."""
    rows = [{"rank": row.rank, "tailnum": row.tailnum, "minutes": row.minutes} for row in top100()]
    return json.dumps(rows, separators=(",", ":")).encode()
