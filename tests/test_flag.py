"""The event that most often nobody waits for."""

import anyio
import pytest

from swr.engine.one_shot_event import OneShotEvent

pytestmark = pytest.mark.anyio


async def test_all_who_wait_are_woken():
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


async def test_what_has_happened_is_not_waited_for_but_others_have_their_turn():
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


async def test_who_leaves_in_the_turn_in_which_it_happens_holds_up_no_other():
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
