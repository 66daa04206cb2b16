"""What becomes due after some time, unless it has ended before."""

import anyio
import pytest

from swr.middleware.deadlines import Deadlines
from tests.fleet import settle, until

pytestmark = pytest.mark.anyio

PATIENCE = 30


class One:
    """Something that may take too long; `then` is called when it is told so."""

    def __init__(self, then=lambda: None):
        self.told, self.then = [], then

    def on_due(self, seconds):
        self.told.append(seconds)
        self.then()


async def test_what_has_not_ended_in_time_is_told_so_once(cache):
    await cache.engine.ready()
    deadlines, late, ended = Deadlines(cache.engine.runtime, 0.05), One(), One()
    deadlines.begin(late)
    deadlines.begin(ended)
    deadlines.end(ended)
    await until(lambda: late.told, PATIENCE)
    later = One()
    deadlines.begin(later)
    await until(lambda: later.told, PATIENCE)
    assert (late.told, ended.told, later.told) == ([0.05], [], [0.05])


async def test_what_ends_when_another_is_told_is_not_told_itself(cache):
    await cache.engine.ready()
    deadlines, second, third = Deadlines(cache.engine.runtime, 0.05), One(), One()
    first = One(lambda: deadlines.end(second))
    for one in (first, second, third):
        deadlines.begin(one)
    await until(lambda: third.told, PATIENCE)
    assert (first.told, second.told) == ([0.05], [])


async def test_its_task_ends_when_there_is_nothing_left(cache):
    await cache.engine.ready()
    deadlines, one = Deadlines(cache.engine.runtime, 0.02), One()
    deadlines.begin(one)
    deadlines.end(one)
    assert deadlines._table.loop is not None
    await until(lambda: deadlines._table.loop is None, PATIENCE)
    deadlines.begin(one)
    await until(lambda: one.told, PATIENCE)


async def test_without_a_time_nothing_is_due(cache):
    deadlines, one = Deadlines(cache.engine.runtime, None), One()
    deadlines.begin(one)
    await settle()
    deadlines.end(one)
    assert not one.told


async def test_many_at_once_leave_turns_of_the_event_loop_to_others(cache):
    """Who: ten thousand clients that begin to wait in one moment, on the day the app hangs."""
    await cache.engine.ready()
    deadlines, turns = Deadlines(cache.engine.runtime, 0.05), []
    many = [One(lambda: told.append(len(turns))) for _ in range(50)]
    told = []
    for one in many:
        deadlines.begin(one)
    while len(told) < len(many):
        turns.append(1)
        await anyio.lowlevel.checkpoint()
    assert len(set(told)) > 10
