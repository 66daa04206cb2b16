"""Engines for tests: of one process, or of several processes over one store; and jobs that count their runs."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import Context

import anyio

from swr.core.codec import ANY
from swr.engine.engine import Engine
from swr.engine.load import Load
from swr.errors import LoadTimeout
from swr.policy import Policy
from swr.stores.local import LocalCache
from swr.stores.memory import MemoryStore
from swr.stores.tiered import TieredStore
from swr.testing import FakeClock
from tests.flaky_store import FlakyStore

POLICY = Policy(60, 600, 3600)
# Time limits in seconds, for a test to try in turn: a busy machine may be too slow for the first one.
GROWING = (0.02, 0.2, 2.0, 20.0)


class Job:
    """A job that counts its runs. Each run calls `answer` at once, waits for `gate` if any, and stores that answer."""

    codec = ANY
    loader = ""
    context: Context | None = None
    new_seat = None
    is_outer = False

    def __init__(self, answer: Callable[[int], object] | None = None, policy: Policy = POLICY) -> None:
        self.runs = 0
        self.begun = anyio.Event()
        self.gate: anyio.Event | None = None
        self.policy = policy
        self.answer = answer or (lambda run: run)
        self.before_store: Callable[[], Awaitable[object]] | None = None

    async def run(self, load: Load) -> None:
        self.runs += 1
        run = self.runs
        value = self.answer(run)
        self.begun.set()
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(value, Exception):
            raise value
        if self.before_store is not None:
            await self.before_store()
        await load.store(value, self.policy)

    @property
    def tags(self) -> tuple[str, ...]:
        return self.policy.tags

    def may_fall_back(self, entry: object, error: BaseException, now: float) -> bool:
        return True


class Process:
    """A simulated process: an engine with a local cache, over a link of its own to the store."""

    def __init__(self, shared: MemoryStore, clock: FakeClock, l1_max_bytes: int = 2**20) -> None:
        self.link = FlakyStore(shared)
        self.local = LocalCache(l1_max_bytes, 1000)
        self.store = TieredStore(self.local, self.link, clock)
        self.engine = Engine(self.store, clock=clock, drain_for=2.0, uniform=lambda low, high: 1.0)


class Loader:
    """A loader that counts its runs. If a test says so, it waits for a gate, raises, or calls `meanwhile` half-way."""

    def __init__(self):
        self.runs = 0
        self.error = None
        self.meanwhile = None
        self.begun = anyio.Event()
        self.gate = None

    async def __call__(self) -> int:
        self.runs += 1
        run = self.runs
        self.begun.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        if self.error is not None:
            raise self.error
        return run


def define(cache, **options):
    """Return a loader of a group's rank that counts its calls, and waits for its gate if there is one."""
    calls = []

    @cache.cached("rank:{group}", **{"fresh_for": 60, "stale_for": 600, "tags": ("group:{group}",), **options})
    async def rank(group: str) -> list[int]:
        calls.append(group)
        number = len(calls)
        if rank.gate is not None:
            await rank.gate.wait()
        return [number]

    rank.calls, rank.gate = calls, None
    return rank


@asynccontextmanager
async def fleet(number: int, clock: FakeClock, l1_max_bytes: int = 2**20) -> AsyncIterator[list[Process]]:
    """Yield several processes over one store."""
    shared = MemoryStore(clock=clock)
    processes = [Process(shared, clock, l1_max_bytes) for _ in range(number)]
    try:
        yield processes
    finally:
        for process in processes:
            if process.link.is_down:
                # `set_down` reports the link as reachable; setting the flag alone would leave closing to the next retry.
                process.link.set_down(False)
            await process.engine.aclose()


async def gather(*calls):
    """Run calls at once; return their results, exceptions among them, in order."""
    results = [None] * len(calls)

    async def run(number, call):
        try:
            results[number] = await call
        except Exception as error:
            results[number] = error

    async with anyio.create_task_group() as group:
        for number, call in enumerate(calls):
            group.start_soon(run, number, call)
    return results


async def open_gate(job) -> None:
    """Open the gate of a job once it has begun and all callers have asked."""
    await job.begun.wait()
    await settle()
    job.gate.set()


async def in_time(call):
    """Return the result of a call that has a short time limit; try again if a busy machine exceeds it."""
    while True:
        with suppress(LoadTimeout):
            return await call()


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(30):
        await anyio.lowlevel.checkpoint()


async def until(condition, seconds=120.0):
    """Wait for something to become true."""
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.005)
