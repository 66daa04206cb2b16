"""Every command of every operation, struck by every fault: callers get answers, and nothing outdated, ever."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from swr import Cache, Cached
from tests.proxy import Proxy
from tests.servers import Server, kinds
from tests.test_redis import until
from tests.test_topologies import fresh

pytestmark = [pytest.mark.anyio, pytest.mark.uncounted]

FAULTS = ("unsent", "unanswered", "silent", "swallowed", "late")
# Trials that wait most of their time, side by side.
AT_ONCE = 24


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module", params=kinds() if os.environ.get("SWR_FULL") else kinds()[:1])
def server(request):
    with Server(request.param) as server:
        yield server


class Trial:
    """Two caches over one server, and a database that both load from; one of them is behind the proxy."""

    def __init__(self, server: Server, lease_for: float) -> None:
        self._server = server
        self._lease_for = lease_for
        self.row = 1
        self.failing = False
        self.seconds = 0.0

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator["Trial"]:
        namespace = fresh()
        async with (
            Proxy(self._server.port) as self.proxy,
            Cache(self.proxy.url, namespace=namespace, lease_for=self._lease_for) as self.struck,
            Cache(self._server.url, namespace=namespace, lease_for=self._lease_for, timeout=2) as other,
        ):
            self.one, self.other = self._loader_of(self.struck), self._loader_of(other)
            await other.engine.ready()
            yield self

    def _loader_of(self, cache: Cache) -> Cached[[], int]:
        @cache.cached("row", fresh_for=60, stale_for=600, stale_if_error=600, tags=("t",))
        async def load() -> int:
            row = self.row
            await asyncio.sleep(self.seconds)
            if self.failing:
                raise ValueError("the database is away")
            return row

        return load

    async def recovered(self) -> None:
        """End the fault, and wait until all that it left to be done is done."""
        self.proxy.heal()
        store = self.struck.engine.store
        await until(lambda: store.is_reachable and store._pending.is_empty)


async def read(trial: Trial) -> None:
    assert await trial.one() == 1


async def refresh(trial: Trial) -> None:
    trial.row = 2
    assert await trial.one.refresh() == 2


async def slow_refresh(trial: Trial) -> None:
    """The lease is renewed on the way."""
    trial.row, trial.seconds = 2, 1.2
    assert await trial.one.refresh() == 2


async def failed_refresh(trial: Trial) -> None:
    trial.failing = True
    with pytest.raises(ValueError, match="away"):
        await trial.one.refresh()


async def invalidate(trial: Trial) -> None:
    trial.row = 2
    await trial.one.invalidate()
    assert await trial.one() == 2


async def invalidate_tag(trial: Trial) -> None:
    trial.row = 2
    await trial.struck.invalidate_tag("t")
    assert await trial.one() == 2


async def clear(trial: Trial) -> None:
    trial.row = 2
    await trial.struck.clear()
    assert await trial.one() == 2


async def invalidate_a_load(trial: Trial) -> None:
    """What is loading when it is invalidated is answered to nobody who asks later."""
    trial.seconds = 0.05
    async with asyncio.TaskGroup() as group:
        group.create_task(trial.one.refresh())
        await asyncio.sleep(0.02)
        trial.row = 2
        await trial.one.invalidate()
        assert await trial.one() == 2


OUTDATING = (invalidate, invalidate_tag, clear, invalidate_a_load)


async def run(server: Server, operation: Callable[[Trial], Awaitable[None]], stored: bool, fault: str, n: int) -> int:
    """Do it once; return how many commands it took, 0 if the fault has struck."""
    trial = Trial(server, 0.9 if operation is slow_refresh else 30)
    async with trial.open():
        if stored:
            await trial.other()
        trial.proxy.arm(fault, n)
        async with asyncio.timeout(60):
            await operation(trial)
        commands = trial.proxy.commands
        struck = trial.proxy.struck
        await trial.recovered()
        trial.failing, trial.seconds = False, 0.0
        async with asyncio.timeout(60):
            if operation in OUTDATING:
                # It was told, or is told now, and a message takes a moment.
                while await trial.other() != trial.row:
                    await asyncio.sleep(0.01)
            # No lease is left that represents nobody, and what comes now reaches both.
            trial.row = 3
            assert await trial.other.refresh() == 3
        async with asyncio.timeout(60):
            while await trial.one() != 3:
                await asyncio.sleep(0.01)
    return 0 if struck else commands


OPERATIONS = [
    (read, True),
    (read, False),
    (refresh, True),
    (slow_refresh, True),
    (failed_refresh, True),
    (failed_refresh, False),
    (invalidate, True),
    (invalidate_tag, True),
    (clear, True),
    (invalidate_a_load, True),
]


@pytest.mark.parametrize(
    ("operation", "stored"), OPERATIONS, ids=[f"{operation.__name__}-{stored}" for operation, stored in OPERATIONS]
)
async def test_fault_at_any_command_leaves_no_lease_and_no_outdated_value(server: Server, operation, stored):
    commands = await run(server, operation, stored, "unsent", 10**6)
    assert commands
    many = asyncio.Semaphore(AT_ONCE)

    async def one(fault: str, number: int) -> bool:
        async with many:
            return not await run(server, operation, stored, fault, number)

    async with asyncio.TaskGroup() as group:
        # Heartbeats come on top, now and then.
        numbers = range(1, commands + 2)
        trials = [group.create_task(one(fault, number)) for number in numbers for fault in FAULTS]
    # On a busy machine a cache may have found Redis unreachable before its turn came.
    assert any(trial.result() for trial in trials)
