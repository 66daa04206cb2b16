"""What the workers say of their rounds: a line in a file for each round that one enqueues and each ranking it loads."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Line(NamedTuple):
    """One thing that was done.

    Parameters:
        round: in which.
        worker: the process that did it.
        airport: whose ranking it has loaded; "": it has enqueued the round.
    """

    round: int
    worker: int
    airport: str


class Log:
    """The file, which several processes write.

    Parameters:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, number: int, airport: str) -> None:
        """Say that this process has loaded a ranking, or enqueued a round."""
        # One write a line: appends of several processes do not mix.
        with self._path.open("ab", buffering=0) as file:
            file.write(f"{number},{os.getpid()},{airport}\n".encode())

    def read(self) -> list[Line]:
        """Return what all have said so far."""
        text = self._path.read_text() if self._path.exists() else ""
        split = (line.split(",") for line in text.splitlines())
        return [Line(int(number), int(worker), airport) for number, worker, airport in split]


def loads(lines: Sequence[Line]) -> str:
    """Return how many rankings each process has loaded, as text."""
    counted = Counter(line.worker for line in lines if line.airport)
    return ", ".join(f"{number} by {worker}" for worker, number in sorted(counted.items()))
