"""The database of the long run: a row number for each key, which only grows, in memory that all processes share."""

import mmap
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

KEYS = 200
GROUPS = 10
LEASE_FOR = 1.0
HARD_TIMEOUT = 4.0


class Windows(NamedTuple):
    """How long a value may be served, in seconds; the later two count from the end of the first."""

    fresh_for: float
    stale_for: float
    stale_if_error: float


_WINDOWS = (Windows(0.5, 2, 0), Windows(2, 10, 0), Windows(5, 1, 30), Windows(30, 60, 60))


def windows_of(number: int) -> Windows:
    return _WINDOWS[number % len(_WINDOWS)]


def tags_of(number: int) -> tuple[str, ...]:
    return (f"group:{number % GROUPS}", "low" if number < KEYS // 2 else "high")


class Rows:
    """The rows. A row is one word of memory, so it is read whole while another process writes it.

    Parameters:
        path: of the file; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        with open(path, "a+b") as file:
            file.truncate(KEYS * 8)
            self._memory = mmap.mmap(file.fileno(), KEYS * 8)
        self._rows = memoryview(self._memory).cast("Q")

    def __getitem__(self, number: int) -> int:
        return self._rows[number]

    def raise_row(self, number: int) -> int:
        """Write the next row, and return it."""
        self._rows[number] += 1
        return self._rows[number]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._rows.release()
        self._memory.close()
