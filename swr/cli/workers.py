"""Starts worker processes, restarts those that die, and ends all of them at once."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Final

from swr.cli.rounds import Rounds, read
from swr.cli.shared import FAILURE, say

_AGAIN_IN: Final = 1.0
# A line is short; what a loader's own children write may be longer.
_LONGEST_LINE: Final = 2**24


class Workers:
    """Processes that all run one command.

    Parameters:
        command: the command line.
        count: how many.
        rounds: is told what they report.
    """

    def __init__(self, command: Sequence[str], count: int, rounds: Rounds) -> None:
        self._command = command
        self._count = count
        self._rounds = rounds
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._failed = 0

    async def run(self, stop: asyncio.Event, grace: float) -> int:
        """Keep them running until `stop` is set; return how many did not leave as they should.

        Parameters:
            grace: seconds that they may take to leave.
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
        """Run one process to its end; return how it ended."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
            # Ctrl-C reaches this process only, which passes it on once.
            process_group=0,
        )
        self._running[number] = process
        self._rounds.begin(number)
        if stop.is_set():
            process.terminate()
        assert process.stdout is not None
        async for line in process.stdout:
            event = read(line)
            if event is None:
                print(line.decode(errors="replace"), end="", file=sys.stderr, flush=True)
            else:
                self._rounds.on_event(number, event)
        code = await process.wait()
        del self._running[number]
        self._rounds.end(number)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        ending = f"worker {number + 1}, process {process.pid}, {how}"
        # One that had hardly begun to run ends by the signal itself.
        if stop.is_set() and code not in (0, -signal.SIGTERM):
            self._failed += 1
            say(f"{ending} when it was to leave", FAILURE)
        return ending
