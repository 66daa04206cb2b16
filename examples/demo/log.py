"""The workers' log of their rounds: a line for each round that a worker enqueues and each ranking that it loads."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Line(NamedTuple):
    """One line: a worker has loaded a ranking, or enqueued a round.

    Parameters:
        round: the number of the round.
        worker: the id of the worker process.
        airport: the airport whose ranking was loaded; "": the worker has enqueued the round.
    """

    round: int
    worker: int
    airport: str


class Log:
    """The log file, which several processes write.

    Parameters:
        path: the path of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, number: int, airport: str) -> None:
        """Log that this process has loaded a ranking, or with airport "" enqueued a round."""
        # A line is one write, so that lines of several processes do not mix.
        with self._path.open("ab", buffering=0) as file:
            file.write(f"{number},{os.getpid()},{airport}\n".encode())

    def read(self) -> list[Line]:
        """Return the lines of all processes so far."""
        text = self._path.read_text() if self._path.exists() else ""
        split = (line.split(",") for line in text.splitlines())
        return [Line(int(number), int(worker), airport) for number, worker, airport in split]


def loads(lines: Sequence[Line]) -> str:
    """Return how many rankings each process has loaded, as text."""
    counted = Counter(line.worker for line in lines if line.airport)
    return ", ".join(f"{number} by {worker}" for worker, number in sorted(counted.items()))
