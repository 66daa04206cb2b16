"""An event loop that stands still reads no notification: what it has missed it must not serve when it goes on."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import httpx
import pytest
import uvloop

from swr import Cache, Policy, State
from swr.middleware import Rule, SWRMiddleware
from swr.stores.hearing import Hearing
from swr.stores.local import LocalCache
from swr.testing import FakeClock
from tests.fleet import until
from tests.servers import Server
from tests.test_redis import Counter, end

LONG = Policy(600, 600, tags=("t",))
INVALIDATE = {
    "key": lambda cache: cache.invalidate("k:1"),
    "tag": lambda cache: cache.invalidate_tag("t"),
    "clear": lambda cache: cache.clear(),
}
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def _patience_with_the_machine() -> None:
    """These are about swr's own patience."""


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    loop = LOOPS[request.param]()
    yield loop
    end(loop)


@pytest.fixture
def other(server: Server) -> Iterator[Callable[[Callable[[Cache], Awaitable[Any]]], None]]:
    """Another process, that does what it is told."""
    loop = asyncio.new_event_loop()
    cache = Cache(server.url, timeout=10)
    yield lambda action: loop.run_until_complete(action(cache))
    loop.run_until_complete(cache.aclose())
    loop.close()


def decorated(cache: Cache, load: Counter) -> Callable[[], Awaitable[int]]:
    cached = cache.cached("k:{number}", fresh_for=600, tags=("t",))

    @cached
    async def numbered(number: int) -> int:
        return await load()

    return lambda: numbered(1)


def batched(cache: Cache, load: Counter) -> Callable[[], Awaitable[int]]:
    @cache.cached_many("k:{number}", fresh_for=600, tags=("t",))
    async def numbered(numbers: list[int]) -> dict[int, int]:
        return dict.fromkeys(numbers, await load())

    async def one() -> int:
        return (await numbered([1]))[1]

    return one


def direct(cache: Cache, load: Counter) -> Callable[[], Awaitable[int]]:
    async def one() -> int:
        return (await cache.get_or_load("k:1", load, LONG)).value

    return one


WAYS = {"decorator": decorated, "batch": batched, "get_or_load": direct}


@pytest.mark.uncounted
@pytest.mark.parametrize("how", INVALIDATE)
@pytest.mark.parametrize("way", WAYS)
def test_loop_that_runs_only_during_calls_serves_no_entry_invalidated_meanwhile(server: Server, loop, other, way, how):
    """In a script, a Lambda handler or a shell, each call runs the loop, and no code runs it in between."""
    cache, load = Cache(server.url, timeout=10), Counter()
    call = WAYS[way](cache, load)
    for value in range(1, 4):
        assert [loop.run_until_complete(call()) for _ in range(3)] == [value] * 3
        other(INVALIDATE[how])
    loop.run_until_complete(cache.aclose())


def test_app_whose_loop_pauses_serves_no_response_invalidated_meanwhile(server: Server, loop, other):
    cache, load = Cache(server.url, timeout=10), Counter()

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"%d" % await load()})

    cached = SWRMiddleware(app, cache=cache, rules=[Rule("/x", fresh_for=600)])
    client = httpx.AsyncClient(transport=httpx.ASGITransport(cached), base_url="http://test")
    for value in range(1, 4):
        assert [loop.run_until_complete(client.get("/x")).text for _ in range(3)] == [str(value)] * 3
        other(lambda cache: cache.invalidate_url("http://test/x"))
    loop.run_until_complete(client.aclose())
    loop.run_until_complete(cache.aclose())


def test_new_loop_for_each_call_serves_no_entry_invalidated_before_it(server: Server, loop, other):
    """No code closes the loops, so the cache does not notice their end."""
    cache, load = Cache(server.url, timeout=10), Counter()
    call = decorated(cache, load)
    left = [loop]
    assert loop.run_until_complete(call()) == 1
    for value in range(2, 4):
        other(INVALIDATE["key"])
        left.append(asyncio.new_event_loop())
        assert left[-1].run_until_complete(call()) == value
    left[-1].run_until_complete(cache.aclose())
    for one in left[1:]:
        end(one)


def test_loop_that_paused_serves_no_stale_entry_invalidated_meanwhile(server: Server, loop, other):
    cache, load = Cache(server.url, timeout=10), Counter()

    async def outcome():
        return await cache.get_or_load("k:1", load, Policy(0.001, 600))

    assert loop.run_until_complete(outcome()).value == 1
    other(INVALIDATE["key"])
    time.sleep(0.002)
    found = loop.run_until_complete(outcome())
    assert (found.value, found.state) == (2, State.MISSING)
    loop.run_until_complete(cache.aclose())


@pytest.mark.parametrize("how", INVALIDATE)
def test_blocked_loop_serves_no_entry_invalidated_meanwhile(server: Server, loop, other, how, monkeypatch):
    """A blocking call, a stopped process or a debugger holds the loop without ending its run."""
    monkeypatch.setattr("swr.stores.hearing.HEARD_FOR", 0.05)
    cache, load = Cache(server.url, timeout=10), Counter()
    call = decorated(cache, load)

    async def held() -> None:
        assert await call() == 1
        thread = anyio.to_thread.run_sync(other, INVALIDATE[how])
        await thread
        # Ready before anything that the loop reads from sockets, or does at times.
        time.sleep(0.1)  # noqa: ASYNC251  # holds the event loop on purpose
        assert await call() == 2

    loop.run_until_complete(held())
    loop.run_until_complete(cache.aclose())


def test_fresh_hit_on_a_running_loop_sends_no_command(server: Server, loop, no_heartbeats):
    cache, load = Cache(server.url, timeout=10), Counter()
    call = decorated(cache, load)

    async def calls() -> None:
        await call()
        sent = cache.engine.store.sent
        for _ in range(10):
            assert await call() == 1
            await asyncio.sleep(0.01)
        assert cache.engine.store.sent == sent

    loop.run_until_complete(calls())
    loop.run_until_complete(calls())
    loop.run_until_complete(cache.aclose())


def test_loop_that_pauses_serves_its_entries_while_redis_is_unreachable(server: Server, loop, tmp_path):
    with Server(server.kind) as mortal:
        cache, load = Cache(mortal.url), Counter()
        call = decorated(cache, load)
        assert loop.run_until_complete(call()) == 1
    assert [loop.run_until_complete(call()) for _ in range(3)] == [1] * 3
    loop.run_until_complete(cache.aclose())


def test_pause_of_a_loop_without_asyncgen_hooks_is_noticed_by_elapsed_time(server: Server, other, monkeypatch):
    monkeypatch.setattr("swr.stores.hearing.HEARD_FOR", 0.05)
    loop = asyncio.new_event_loop()
    cache, load = Cache(server.url, timeout=10), Counter()
    call = decorated(cache, load)

    async def without_hooks() -> int:
        sys.set_asyncgen_hooks(None, None)
        return await call()

    assert loop.run_until_complete(without_hooks()) == 1
    other(INVALIDATE["key"])
    time.sleep(0.1)
    assert loop.run_until_complete(without_hooks()) == 2
    loop.run_until_complete(cache.aclose())
    end(loop)


@pytest.mark.anyio
async def test_first_call_of_keep_ends_when_a_second_one_begins(monkeypatch):
    monkeypatch.setattr("swr.stores.hearing._TURNED_EVERY", 0.001)
    hearing, ended = Hearing(LocalCache(2**20, 100), lambda: 1000.0, lambda: None), []

    async def keep(name: str) -> None:
        await hearing.keep()
        ended.append(name)

    async with anyio.create_task_group() as group:
        for name in ("first", "second"):
            group.start_soon(keep, name)
            await until(lambda: not hearing.is_lost)
        await until(lambda: ended)
        assert ended == ["first"]
        hearing.lose()
    assert ended == ["first", "second"]
    assert hearing.is_lost


@pytest.mark.anyio
async def test_clock_set_forward_causes_no_second_gap():
    clock, gaps = FakeClock(), []
    local = LocalCache(2**20, 100)
    hearing = Hearing(local, clock, lambda: gaps.append(True))
    hearing.resume()
    clock.advance(3600)
    assert clock() > local.trust.until
    hearing.resume()
    assert not hearing.is_lost
    assert len(gaps) == 1
