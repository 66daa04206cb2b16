"""Tasks that end together: whoever is in a hurry, none is left behind."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import anyio
import pytest

from swr import Cache, Policy
from swr.engine.tasks import Tasks
from swr.testing import FakeClock
from tests.fleet import until
from tests.servers import Server

pytestmark = pytest.mark.anyio

# From Python 3.12 on.
FACTORIES = [asyncio.eager_task_factory] if hasattr(asyncio, "eager_task_factory") else []


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Work:
    """Says when it begins, and cleans up behind a shield when it is cancelled."""

    def __init__(self) -> None:
        self.done: list[str] = []

    async def __call__(self) -> None:
        self.done.append("begun")
        try:
            await asyncio.sleep(3600)
        finally:
            with anyio.CancelScope(shield=True):
                await asyncio.sleep(0.01)
            self.done.append("ended")


def start(tasks: Tasks, function: Callable[[], Awaitable[None]]) -> None:
    async def run(scope: anyio.CancelScope) -> None:
        with scope:
            await function()

    tasks.start_soon(run, anyio.CancelScope())


async def test_task_started_after_cancel_ends_at_its_first_wait():
    work = Work()
    async with Tasks() as tasks:
        tasks.cancel()
        start(tasks, work)
    assert work.done == ["begun", "ended"]


async def test_leaving_the_block_by_an_error_waits_for_all_tasks():
    work = Work()

    async def leave() -> None:
        async with Tasks() as tasks:
            start(tasks, work)
            await asyncio.sleep(0.01)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await leave()
    assert work.done == ["begun", "ended"]


async def test_waiter_that_is_cancelled_twice_still_waits_for_all_tasks():
    work = Work()

    async def wait() -> None:
        async with Tasks() as tasks:
            start(tasks, work)

    waiting = asyncio.ensure_future(wait())
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert work.done == ["begun", "ended"]


async def test_task_that_swallows_a_cancellation_is_cancelled_again():
    swallowed = []

    async def stubborn() -> None:
        for _ in range(3):
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                swallowed.append(1)

    async with Tasks() as tasks:
        start(tasks, stubborn)
        await asyncio.sleep(0.01)
        tasks.cancel()
    assert len(swallowed) == 3


def refusing(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
    """Make tasks, but none of the cache's own: this factory might begin them before their callers know of them."""
    assert not coroutine.__qualname__.startswith("BackgroundTasks.")
    return asyncio.Task(coroutine, loop=loop, **options)


@pytest.mark.parametrize("in_redis", [False, True])
@pytest.mark.parametrize("factory", [refusing, *FACTORIES])
async def test_batch_is_loaded_by_one_call_with_an_eager_or_custom_task_factory(any_server: Server, in_redis, factory):
    loop, calls = asyncio.get_running_loop(), []
    loop.set_task_factory(factory)
    try:
        namespace = f"eager:{factory.__name__}"
        async with Cache(any_server.url, namespace=namespace, timeout=60) if in_redis else Cache() as cache:

            @cache.cached_many("item:{item}", fresh_for=60)
            async def load(items: list[int]) -> dict[int, int]:
                calls.append(items)
                return {item: 10 * item for item in items}

            @cache.cached("one:{item}", fresh_for=60)
            async def load_one(item: int) -> int:
                return 10 * item

            assert await load([1, 2, 3]) == {1: 10, 2: 20, 3: 30}
            assert await load.refresh([1, 2, 3]) == {1: 10, 2: 20, 3: 30}
            assert calls == [[1, 2, 3], [1, 2, 3]]
            assert await asyncio.gather(*(load_one(item) for item in range(5))) == [0, 10, 20, 30, 40]
    finally:
        loop.set_task_factory(None)


def test_loads_cancelled_by_the_end_of_the_event_loop_do_not_count_as_failed(caplog):
    """As that of a script, or of an app without a lifespan: `asyncio.run` cancels every task in any order."""
    clock = FakeClock()
    cache = Cache(clock=clock)
    keys, begun = [f"k{number}" for number in range(8)], list[str]()

    async def read(key: str, forever: bool) -> None:
        async def load() -> int:
            begun.append(key)
            if forever:
                await asyncio.sleep(3600)
            return 1

        await cache.get_or_load(key, load, Policy(60, 600))

    async def main(forever: bool) -> None:
        begun.clear()
        for key in keys:
            await read(key, forever)
        await until(lambda: len(begun) == len(keys))

    asyncio.run(main(forever=False))
    clock.advance(61)
    asyncio.run(main(forever=True))
    assert not caplog.records
    # No load backs off.
    asyncio.run(main(forever=False))
