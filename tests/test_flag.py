"""The event that most often nobody waits for."""

import anyio
import pytest

from swr.engine.one_shot_event import OneShotEvent

pytestmark = pytest.mark.anyio


async def test_set_wakes_all_waiting_tasks():
    flag, woken = OneShotEvent(), []

    async def wait(name: str) -> None:
        await flag.wait()
        woken.append(name)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(wait, "one")
            group.start_soon(wait, "two")
            await anyio.wait_all_tasks_blocked()
            assert (woken, flag.is_set()) == ([], False)
            flag.set()
    assert (sorted(woken), flag.is_set()) == (["one", "two"], True)


async def test_wait_after_set_returns_once_other_tasks_had_a_turn():
    flag, others = OneShotEvent(), []
    flag.set()
    flag.set()

    async def other() -> None:
        others.append("had its turn")

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(other)
            await flag.wait()
            await flag.wait()
            assert others


async def test_task_cancelled_at_the_moment_of_set_does_not_block_other_waiters():
    flag, woken = OneShotEvent(), []

    async def wait(name: str, scope: anyio.CancelScope) -> None:
        with scope:
            await flag.wait()
            woken.append(name)

    leaving = anyio.CancelScope()
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(wait, "one", leaving)
            group.start_soon(wait, "two", anyio.CancelScope())
            await anyio.wait_all_tasks_blocked()
            leaving.cancel()
            flag.set()
    assert woken == ["two"]
