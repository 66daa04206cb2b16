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


async def test_on_due_is_called_once_and_only_for_items_that_have_not_ended(cache):
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


async def test_on_due_is_not_called_for_an_item_that_another_on_due_ends(cache):
    await cache.engine.ready()
    deadlines, second, third = Deadlines(cache.engine.runtime, 0.05), One(), One()
    first = One(lambda: deadlines.end(second))
    for one in (first, second, third):
        deadlines.begin(one)
    await until(lambda: third.told, PATIENCE)
    assert (first.told, second.told) == ([0.05], [])


async def test_background_task_ends_when_no_item_is_left_and_starts_again(cache):
    await cache.engine.ready()
    deadlines, one = Deadlines(cache.engine.runtime, 0.02), One()
    deadlines.begin(one)
    deadlines.end(one)
    assert deadlines._table.loop is not None
    await until(lambda: deadlines._table.loop is None, PATIENCE)
    deadlines.begin(one)
    await until(lambda: one.told, PATIENCE)


async def test_no_item_becomes_due_without_a_time_limit(cache):
    deadlines, one = Deadlines(cache.engine.runtime, None), One()
    deadlines.begin(one)
    await settle()
    deadlines.end(one)
    assert not one.told


async def test_many_items_due_at_once_yield_to_the_event_loop(cache):
    """For instance ten thousand clients that begin to wait in one moment, when the app hangs."""
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
