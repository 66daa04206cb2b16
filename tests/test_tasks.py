"""Tasks that end together: whoever is in a hurry, none is left behind."""

import asyncio
from collections.abc import Awaitable, Callable

import anyio
import pytest

from swr.engine.tasks import Tasks

pytestmark = pytest.mark.anyio


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


async def test_one_that_is_started_after_the_end_ends_at_its_first_wait():
    work = Work()
    async with Tasks() as tasks:
        tasks.cancel()
        start(tasks, work)
    assert work.done == ["begun", "ended"]


async def test_whoever_leaves_by_an_error_waits_for_all():
    work = Work()

    async def leave() -> None:
        async with Tasks() as tasks:
            start(tasks, work)
            await asyncio.sleep(0.01)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await leave()
    assert work.done == ["begun", "ended"]


async def test_so_does_whoever_is_cancelled_while_he_waits():
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


async def test_one_that_swallows_a_cancellation_is_cancelled_again():
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
