"""Processes of a benchmark, which do as they are told on standard input and answer on standard output, line by line."""

import contextlib
import select
import subprocess
import sys
from collections.abc import Iterator

# An answer that takes so many seconds does not come any more.
_PATIENCE = 1800.0


class Worker:
    """One process, `python -m MODULE ARGUMENTS`. It ends when its standard input does."""

    def __init__(self, module: str, *arguments: str) -> None:
        command = [sys.executable, "-m", module, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(self, line: str) -> None:
        """Write one line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        """Return the next line.

        Raises:
            RuntimeError: there is none.
        """
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], _PATIENCE)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise RuntimeError(f"a worker {'ended' if ready else 'is silent'}")
        return line.strip()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def kill(self) -> None:
        """Kill it (-9); `close` is still to be called."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it, by force if need be."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@contextlib.contextmanager
def workers(number: int, module: str, *arguments: str) -> Iterator[list[Worker]]:
    """Several processes that are all ready, as their first line says."""
    with contextlib.ExitStack() as stack:
        started = []
        for _ in range(number):
            worker = Worker(module, *arguments)
            stack.callback(worker.close)
            started.append(worker)
        for worker in started:
            if (said := worker.answer()) != "ready":
                raise RuntimeError(f"a worker says {said!r}")
        yield started
