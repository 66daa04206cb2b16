"""One process of a fleet, told what to do by lines of JSON: python -m tests.worker URL LOADS [OPTIONS]

Every load appends a line to the file LOADS and returns its number and the truth, a file that the test writes.
"""

import asyncio
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from swr import Cache, Policy


class Worker:
    def __init__(self, url: str, loads: str, options: dict[str, Any]) -> None:
        self.cache = Cache(url, **options)
        self.loads = loads
        self.truth = Path(loads + ".truth")
        self.load_for = 0.0
        self.policy = Policy(60, 600)

    async def load(self) -> str:
        truth = self.truth.read_text()
        with open(self.loads, "a") as file:
            file.write(f"{os.getpid()} {time.time()}\n")
        await asyncio.sleep(self.load_for)
        return truth

    async def read(self, key: str, readers: int, at: float = 0.0) -> dict[str, Any]:
        """Read with many readers at once, from the time `at` on."""
        await asyncio.sleep(max(0.0, at - time.time()))
        seconds: list[float] = []

        async def one() -> tuple[str, str]:
            began = time.perf_counter()
            outcome = await self.cache.get_or_load(key, self.load, self.policy)
            seconds.append(time.perf_counter() - began)
            return outcome.state.value, outcome.value

        answers = await asyncio.gather(*(one() for _ in range(readers)))
        seconds.sort()
        return {
            "states": Counter(state for state, _ in answers),
            "values": Counter(value for _, value in answers),
            "p50": seconds[len(seconds) // 2],
            "p99": seconds[int(len(seconds) * 0.99)],
        }

    async def watch(self, key: str, seconds: float) -> list[tuple[float, str]]:
        """Read again and again; return when each value was first seen after another."""
        seen: list[tuple[float, str]] = []
        until = time.time() + seconds
        while time.time() < until:
            value = (await self.cache.get_or_load(key, self.load, self.policy)).value
            if not seen or seen[-1][1] != value:
                seen.append((time.time(), value))
            await asyncio.sleep(0.002)
        return seen

    async def do(self, command: dict[str, Any]) -> Any:
        what = command.pop("do")
        if what == "set":
            self.load_for = command.get("load_for", self.load_for)
            self.policy = Policy(*command.get("policy", (60, 600)), tags=tuple(command.get("tags", ())))
            return None
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
