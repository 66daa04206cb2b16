"""One process of the long run: python -m tests.chaos.worker NAME URL FOLDER RELEASE

It reads on its own, invalidates when a line of JSON on its input says so, and writes down what it did and was
answered, one line of JSON for each, with times of the clock that all processes of a machine share.
"""

import asyncio
import os
import random
import sys
import time
import typing
from pathlib import Path
from typing import Any, Final

import msgspec

from swr import Cache, Fresh
from tests.chaos.rows import HARD_TIMEOUT, KEYS, LEASE_FOR, Rows, tags_of, windows_of

READERS = 6
PAUSE = 0.03
FAILS = 0.03
SLOW = 0.03
HANGS = 0.003
# How often all at once ask for one key, and how many.
CROWDED = 0.003
CROWD = 200
ANSWERED_WITHIN = 30.0
STALLED = 0.3
_BEAT = 0.05

# The number of the key, its row, and which load has read it: what two releases of the application make of it.
VALUES: Final = (tuple[int, int, str], list[int | str])


class LoadFailed(Exception):
    """What the loader raises; its argument is the load."""


class Worker:
    def __init__(self, name: str, url: str, folder: Path, release: int) -> None:
        self.name = name
        self.value: Any = VALUES[release]
        value = self.value
        self.random = random.Random(name)
        self.cache = Cache(url, lease_for=LEASE_FOR, timeout=0.3, drain_for=1)
        self.rows = Rows(folder / "rows")
        self.log = os.open(folder / f"{name}.log", os.O_APPEND | os.O_CREAT | os.O_WRONLY)
        self.lines: list[bytes] = []
        self.loads = 0
        self.tasks: set[asyncio.Task[None]] = set()

        @self.cache.cached("row:{number}", fresh_for=1, hard_timeout=HARD_TIMEOUT)
        async def one(number: int) -> Fresh[value]:
            return (await self.load([number]))[number]

        @self.cache.cached_many("row:{number}", fresh_for=1, hard_timeout=HARD_TIMEOUT)
        async def many(numbers: list[int]) -> dict[int, Fresh[value]]:
            return await self.load(numbers)

        self.one, self.many = one, many

    def note(self, *what: object) -> None:
        """Write a line down, at the next beat."""
        self.lines.append(msgspec.json.encode(what))

    def flush(self) -> None:
        if self.lines:
            os.write(self.log, b"\n".join(self.lines) + b"\n")
            self.lines.clear()

    # -- loads ------------------------------------------------------------------------------------------------

    async def load(self, numbers: list[int]) -> dict[int, Fresh[Any]]:
        self.loads += 1
        load, began = f"{self.name}:{self.loads}", time.monotonic()
        # What is read first is the oldest that the load can bring.
        rows = {number: self.rows[number] for number in numbers}
        if self.random.random() < HANGS:
            for number in numbers:
                self.note("hung", number, began)
            self.flush()
            await asyncio.sleep(3600)
        # Some loads last longer than a lease that is not renewed.
        slow = self.random.random() < SLOW
        await asyncio.sleep(self.random.uniform(0.3, 2.5 * LEASE_FOR) if slow else self.random.uniform(0.0, 0.05))
        failed = self.random.random() < FAILS
        for number, row in rows.items():
            self.note("failed" if failed else "load", number, row, load, began, time.monotonic())
        # Before a value can be anywhere: this process may be killed.
        self.flush()
        if failed:
            raise LoadFailed(load)
        return {
            number: Fresh(
                typing.get_origin(self.value)((number, row, load)), **windows_of(number)._asdict(), tags=tags_of(number)
            )
            for number, row in rows.items()
        }

    # -- readers ----------------------------------------------------------------------------------------------

    async def ask(self, how: str, numbers: list[int]) -> Exception | None:
        """Ask, and write down the answer; return the exception."""
        began = time.monotonic()
        if how == "refresh":
            self.note("refreshing", numbers[0], began)
        try:
            async with asyncio.timeout(ANSWERED_WITHIN):
                if how == "many":
                    outcomes = await self.many.outcome(numbers)
                elif how == "refresh":
                    value = await self.one.refresh(numbers[0])
                    self.note("refreshed", numbers[0], value, began, time.monotonic())
                    return None
                else:
                    outcomes = {numbers[0]: await self.one.outcome(numbers[0])}
        except Exception as error:
            load = error.args[0] if isinstance(error, LoadFailed) else ""
            self.note("raised", numbers, load, began, time.monotonic(), how, repr(error))
            return error
        ended = time.monotonic()
        for number in numbers:
            if number not in outcomes:
                self.note("raised", numbers, "", began, ended, how, f"no answer for {number}")
                continue
            outcome = outcomes[number]
            failed = outcome.error is not None
            self.note("answer", number, outcome.value, outcome.state.value, outcome.age, failed, began, ended)
        return None

    async def crowd(self, number: int) -> None:
        """Ask with many callers at once; each that raises has an exception of its own."""
        raised = await asyncio.gather(*(self.ask("one", [number]) for _ in range(CROWD)))
        errors = [error for error in raised if error is not None]
        if len(set(map(id, errors))) < len(errors):
            self.note("shared", len(errors))

    async def read(self) -> None:
        while True:
            await asyncio.sleep(self.random.expovariate(1 / PAUSE))
            how = self.random.choices(("one", "many", "refresh"), (92, 6, 2))[0]
            # A few keys are asked for often, and all at times.
            some = [min(int(self.random.expovariate(1 / 40)), KEYS - 1) for _ in range(5 if how == "many" else 1)]
            if self.random.random() < 0.3:
                some[0] = self.random.randrange(KEYS)
            if self.random.random() < CROWDED:
                await self.crowd(some[0])
            await self.ask(how, list(dict.fromkeys(some)))

    async def beat(self) -> None:
        """Write down what there is, and whenever this process has not run for a while."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(_BEAT)
            now = time.monotonic()
            if now - last > STALLED:
                self.note("stalled", last, now)
            last = now
            self.flush()

    # -- commands ---------------------------------------------------------------------------------------------

    async def invalidate(self, what: str, name: int | str) -> None:
        began = time.monotonic()
        self.note("invalidating", what, name, began)
        # It counts for others even if this process does not live to see it done.
        self.flush()
        try:
            if what == "key":
                await self.one.invalidate(int(name))
            elif what == "tag":
                await self.cache.invalidate_tag(str(name))
            else:
                await self.cache.clear()
        except Exception as error:
            self.note("raised", [], "", began, time.monotonic(), f"invalidate {what} {name}", repr(error))
        else:
            self.note("invalidated", what, name, began, time.monotonic())

    def start(self, coroutine: object) -> "asyncio.Task[None]":
        task = asyncio.ensure_future(coroutine)  # type: ignore[call-overload]  # a coroutine, as all callers give
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task  # type: ignore[no-any-return]  # as above

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        async with self.cache:
            self.start(self.beat())
            readers = [self.start(self.read()) for _ in range(READERS)]
            print("ready", flush=True)
            while line := await loop.run_in_executor(None, sys.stdin.readline):
                what, *arguments = msgspec.json.decode(line)
                if what == "look":
                    for number in range(KEYS):
                        await self.ask("one", [number])
                    self.flush()
                    print("looked", flush=True)
                elif what == "rest":
                    for reader in readers:
                        reader.cancel()
                else:
                    self.start(self.invalidate(what, *arguments))
            for task in tuple(self.tasks):
                task.cancel()
        self.flush()


def main() -> None:
    name, url, folder, release = sys.argv[1:]
    asyncio.run(Worker(name, url, Path(folder), int(release)).run())


if __name__ == "__main__":
    main()
