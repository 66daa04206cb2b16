"""Starts worker processes, restarts those that die, and ends all of them at once."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Final

from swr.cli.rounds import Rounds, read
from swr.cli.shared import FAILURE, say

_AGAIN_IN: Final = 1.0
# The most bytes of a line. Reports are short, but processes that a loader starts may write longer lines.
_LONGEST_LINE: Final = 2**24
# Seconds for reading the last lines of a process that has ended.
_LAST_LINES: Final = 1.0


class Workers:
    """Processes that all run one command.

    Parameters:
        command: the command line.
        count: the number of processes.
        rounds: gets the reports of the processes.
    """

    def __init__(self, command: Sequence[str], count: int, rounds: Rounds) -> None:
        self._command = command
        self._count = count
        self._rounds = rounds
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._failed = 0

    async def run(self, stop: asyncio.Event, grace: float) -> int:
        """Keep the processes running until `stop` is set; return how many of them did not end properly then.

        Parameters:
            stop: set when the processes must end.
            grace: seconds that the processes may take to end.
        """
        keepers = [asyncio.create_task(self._keep(number, stop)) for number in range(self._count)]
        try:
            await stop.wait()
            self._send(asyncio.subprocess.Process.terminate)
            await asyncio.wait(keepers, timeout=grace)
        finally:
            stop.set()
            self._send(asyncio.subprocess.Process.kill)
            await asyncio.gather(*keepers)
        return self._failed

    def _send(self, signalled: Callable[[asyncio.subprocess.Process], None]) -> None:
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                signalled(process)

    async def _keep(self, number: int, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                ending = await self._one(number, stop)
            except OSError as error:
                ending = f"worker {number + 1} cannot be started ({error})"
            if not stop.is_set():
                say(f"{ending}; another is started in {_AGAIN_IN:g} s", FAILURE)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), _AGAIN_IN)

    async def _one(self, number: int, stop: asyncio.Event) -> str:
        """Run one process until it ends; return how it ended."""
        there, here = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=here,
                # Without its own group, a worker would get SIGINT from the terminal, and then SIGTERM from this
                # process.
                process_group=0,
            )
        except OSError:
            os.close(there)
            raise
        finally:
            os.close(here)
        self._running[number] = process
        self._rounds.begin(number)
        if stop.is_set():
            process.terminate()
        reading = asyncio.create_task(self._read(number, there))
        code = await process.wait()
        # Processes that the worker has started may outlive it, and keep its end of the pipe open.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reading, _LAST_LINES)
        del self._running[number]
        self._rounds.end(number)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        ending = f"worker {number + 1}, process {process.pid}, {how}"
        # A worker that has not yet installed its signal handlers is ended by SIGTERM itself, which is not a failure.
        if stop.is_set() and code not in (0, -signal.SIGTERM):
            self._failed += 1
            say(f"{ending} while it was stopping", FAILURE)
        return ending

    async def _read(self, number: int, pipe: int) -> None:
        """Take the lines of a process until the pipe ends: its reports, and text for stderr."""
        lines = asyncio.StreamReader(_LONGEST_LINE)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), os.fdopen(pipe, "rb")
        )
        try:
            while not lines.at_eof():
                # A line that is too long or cannot be printed is left out: without a reader, the worker would hang.
                with contextlib.suppress(ValueError, OSError):
                    self._on_line(number, await lines.readline())
        finally:
            transport.close()

    def _on_line(self, number: int, line: bytes) -> None:
        event = read(line)
        if event is None:
            print(line.decode(errors="replace"), end="", file=sys.stderr, flush=True)
        else:
            self._rounds.on_event(number, event)
