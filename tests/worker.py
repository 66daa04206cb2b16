"""One process of a fleet, which executes commands from lines of JSON: python -m tests.worker URL LOADS [OPTIONS]

Every load appends a line to the file LOADS and returns the truth, from a file that the test writes. While another file,
the gate, exists, the loads of a process that is `gated` do not end. With the option "release", the value is a model: of
the release before a deploy ("old") or after it ("new").
"""

import asyncio
import json
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swr import Cache, Policy


@dataclass
class Old:
    truth: str


@dataclass
class New:
    truth: str
    rank: int


class Worker:
    def __init__(self, url: str, loads: str, options: dict[str, Any]) -> None:
        release = options.pop("release", None)
        self.returns: Any = {None: str, "old": Old, "new": New}[release]
        self.cache = Cache(url, **options)
        self.loads = loads
        self.truth = Path(loads + ".truth")
        self.gate = Path(loads + ".gate")
        self.gated = False
        self.load_for = 0.0
        self.policy = Policy(60, 600)

    async def load(self) -> Any:
        truth = self.truth.read_text()
        with open(self.loads, "a") as file:
            file.write(f"{os.getpid()} {time.time()}\n")
        await asyncio.sleep(self.load_for)
        while self.gated and self.gate.exists():
            await asyncio.sleep(0.002)
        return New(truth, 1) if self.returns is New else self.returns(truth)

    async def read(self, key: str, readers: int, at: float = 0.0, says: str = "") -> dict[str, Any]:
        """Read with many readers at once, from the time `at` on.

        Parameters:
            says: a file that gets a line as soon as all readers wait for one load.
        """
        await asyncio.sleep(max(0.0, at - time.time()))
        seconds: list[float] = []

        async def one() -> tuple[str, str]:
            began = time.perf_counter()
            outcome = await self.cache.get_or_load(key, self.load, self.policy, returns=self.returns)
            seconds.append(time.perf_counter() - began)
            return outcome.state.value, getattr(outcome.value, "truth", outcome.value)

        tasks = [asyncio.ensure_future(one()) for _ in range(readers)]
        flights = self.cache.engine.flights
        while says and ((flight := flights.get(key)) is None or flight.waiters < readers):
            await asyncio.sleep(0.002)
        if says:
            with open(says, "a") as file:
                file.write("waits\n")
        answers = await asyncio.gather(*tasks)
        seconds.sort()
        return {
            "states": Counter(state for state, _ in answers),
            "values": Counter(value for _, value in answers),
            "p50": seconds[len(seconds) // 2],
            "p99": seconds[int(len(seconds) * 0.99)],
        }

    async def watch(self, key: str, last: str) -> list[str]:
        """Read repeatedly until the value is `last`; return the sequence of different values."""
        seen: list[str] = []
        while not seen or seen[-1] != last:
            value = (await self.cache.get_or_load(key, self.load, self.policy, returns=self.returns)).value
            if not seen or seen[-1] != value:
                seen.append(value)
            await asyncio.sleep(0.002)
        return seen

    async def do(self, command: dict[str, Any]) -> Any:
        what = command.pop("do")
        if what == "set":
            self.load_for = command.get("load_for", self.load_for)
            self.gated = command.get("gated", self.gated)
            self.policy = Policy(*command.get("policy", (60, 600)), tags=tuple(command.get("tags", ())))
            return None
        if what == "reachable":
            return self.cache.engine.store.is_reachable
        if what in ("read", "watch"):
            return await getattr(self, what)(**command)
        return await getattr(self.cache, what)(**command)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        async with self.cache:
            print(json.dumps("ready"), flush=True)
            while line := await loop.run_in_executor(None, sys.stdin.readline):
                try:
                    answer = await self.do(json.loads(line))
                except Exception as error:
                    answer = {"error": repr(error)}
                print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(Worker(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}).run())
