"""A cache that is off, for all or in one block, and calls that pass it by: loaders and apps answer, nothing is stored."""

import asyncio
import contextvars
import socket
import threading

import anyio
import anyio.lowlevel
import pytest
from fastapi import FastAPI

from swr import (
    NOT_MODIFIED,
    Cache,
    ConfigurationError,
    Fresh,
    LoadContext,
    LoadTimeout,
    NotModified,
    Outcome,
    Policy,
    Refresher,
    State,
)
from swr.events import Hit, Miss
from swr.middleware import Rule, SWRMiddleware
from swr.testing import FakeClock
from tests.fleet import settle, until
from tests.servers import Server
from tests.web import client

pytestmark = pytest.mark.anyio

POLICY = Policy(60, 600)
OFF = 'swr; fwd=bypass; detail="off"'


class Module:
    """Loaders of every kind, and an app."""

    def __init__(self, **options) -> None:
        self.loads: list[object] = []
        self.cache = cache = Cache(**options)

        @cache.cached("a:{group}", fresh_for=60, stale_for=600, tags=("tag:{group}",))
        async def one(group: str) -> str:
            self.loads.append(group)
            return f"{group}{len(self.loads)}"

        @cache.cached("b:{group}", fresh_for=60, copy=True)
        def plain(group: str) -> list[str]:
            self.loads.append(group)
            return [group, str(len(self.loads))]

        @cache.cached("c:{group}", fresh_for=60)
        async def asks(context: LoadContext[str], group: str) -> str | Fresh[str] | NotModified:
            self.loads.append(context.has_value)
            return Fresh(f"{group}{len(self.loads)}", fresh_for=5)

        @cache.cached("d:{group}", fresh_for=60, early=1e-9)
        async def early(group: str) -> str:
            self.loads.append(group)
            return f"{group}{len(self.loads)}"

        @cache.cached_many("e:{group}", fresh_for=60, copy=True)
        async def many(groups: list[str]) -> dict[str, str | Fresh[str]]:
            self.loads.append(groups)
            return {group: Fresh(group) for group in groups if group != "none"}

        class Service:
            @cache.cached("f:{group}", fresh_for=60, ignore=("_self",))
            async def method(_self, group: str) -> str:
                self.loads.append(group)
                return f"{group}{len(self.loads)}"

        self.one, self.plain, self.asks, self.early, self.many = one, plain, asks, early, many
        self.method = Service().method
        app = FastAPI()

        @app.get("/rule")
        async def rule() -> int:
            self.loads.append("rule")
            return len(self.loads)

        @app.get("/response")
        @cache.response(fresh_for=60)
        def response() -> int:
            self.loads.append("response")
            return len(self.loads)

        @app.post("/rule")
        async def change() -> None: ...

        self.inner = app
        self.app = SWRMiddleware(app, cache, rules=[Rule("/rule", fresh_for=60)])

    async def call_all(self) -> list[object]:
        """Call each loader and each endpoint; return the answers."""
        answers = [await loader("x") for loader in (self.one, self.plain, self.asks, self.early, self.method)]
        answers += [await self.many(["x"]), (await self.cache.get_or_load("k", self._load, POLICY)).value]
        async with client(self.app) as http:
            return [*answers, (await http.get("/rule")).text, (await http.get("/response")).text]

    def _load(self) -> int:
        self.loads.append("k")
        return len(self.loads)

    async def outcomes(self) -> list[Outcome[object]]:
        return [
            *[await loader.outcome("x") for loader in (self.one, self.plain, self.asks, self.early, self.method)],
            *(await self.many.outcome(["x"])).values(),
            await self.cache.get_or_load("k", self._load, POLICY),
        ]


EACH = 9


@pytest.fixture
def deaf():
    """A port on which somebody listens, to find out whether anybody connects."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


class TestOffForAll:
    @pytest.mark.parametrize("late", [False, True], ids=["off at creation", "off by configure"])
    async def test_disabled_cache_passes_each_call_to_its_loader_and_each_request_to_the_app(
        self, late: bool, anyio_backend: str
    ):
        module = Module(enabled=late)
        if late:
            module.cache.configure(enabled=False)
        for _ in range(3):
            assert len({*map(str, await module.call_all())}) == EACH
        assert len(module.loads) == 3 * EACH
        assert all(outcome.bypassed and outcome.state is State.MISSING for outcome in await module.outcomes())
        assert not module.cache.local.slots
        assert not module.cache.engine.is_open

    async def test_response_headers_report_that_the_cache_is_off(self):
        module = Module(enabled=False)
        async with client(module.app) as http:
            for path in ("/rule", "/response"):
                headers = (await http.get(path)).headers
                assert (headers["swr-state"], headers["cache-status"]) == ("missing", OFF)
            assert (await http.head("/rule", headers={"cookie": "a=1"})).headers["cache-status"] == OFF
            assert (await http.post("/rule")).status_code == 200

    async def test_disabled_cache_logs_no_warning_about_several_workers(self, monkeypatch, caplog):
        monkeypatch.setenv("WEB_CONCURRENCY", "4")
        module = Module(enabled=False)
        messages, sent = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}], []

        async def receive():
            return messages.pop(0)

        async def send(message):
            sent.append(message["type"])

        await module.app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
        assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        assert not caplog.text

    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_disabled_cache_never_connects_to_its_server(self, deaf: socket.socket):
        module = Module(url=f"redis://127.0.0.1:{deaf.getsockname()[1]}/0", enabled=False)
        assert not module.cache.is_shared
        refreshers = [Refresher(module.one, ["x"], 0.01, strategy) for strategy in ("queue", "locks", "read")]
        async with module.cache, refreshers[0], refreshers[1], refreshers[2]:
            await module.call_all()
            await module.one.invalidate("x")
            await module.many.invalidate(["x"])
            await module.cache.invalidate_tag("t")
            await module.cache.invalidate_url("/rule")
            await module.cache.clear()
            await module.one.refresh("x")
            await module.many.refresh(["x"])
            await refreshers[0].mark_dirty("x")
            with pytest.raises(ConfigurationError):
                await refreshers[0].mark_dirty(object())
            status = await refreshers[0].status()
            assert (status.name, status.queued, status.round) == ("a:group", 0, None)
        with pytest.raises(BlockingIOError):
            deaf.accept()
        assert len(module.loads) == EACH + 2

    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_stored_entries_survive_while_the_cache_is_off(self, any_server: Server):
        any_server.command("FLUSHALL")
        module = Module(url=any_server.url)
        first = await module.one("x")
        await module.cache.aclose()
        module.cache.configure(enabled=False)
        assert await module.one("x") != first
        module.cache.configure(enabled=True)
        assert await module.one("x") == first
        await module.cache.aclose()

    async def test_invalid_keys_are_refused_while_the_cache_is_off(self):
        module = Module(enabled=False)
        with pytest.raises(ConfigurationError, match="cannot be part of a key"):
            await module.one(object())
        with pytest.raises(ConfigurationError, match="cannot be part of a key"):
            await module.many([object()])
        with pytest.raises(ConfigurationError):
            await module.cache.get_or_load(5, module._load, POLICY)
        with pytest.raises(ConfigurationError, match="cannot be part of a key"):
            await module.one.refresh(object())

    def test_disabled_cache_works_in_several_event_loops_at_once(self):
        module = Module(enabled=False)
        gate = threading.Barrier(2)

        @module.cache.cached("g", fresh_for=60)
        def load() -> int:
            return gate.wait(60)

        answers: list[int] = []
        threads = [threading.Thread(target=lambda: answers.append(asyncio.run(load()))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == [0, 1]

    async def test_disabled_cache_emits_no_events(self):
        module, heard = Module(enabled=False), []
        module.cache.subscribe(heard.append)
        await module.call_all()
        assert not heard


class TestOffInABlock:
    async def test_calls_in_a_disabled_block_neither_read_nor_store(self):
        module = Module()
        async with module.cache:
            before = await module.call_all()
            with module.cache.disabled():
                inside = await module.call_all()
                assert all(outcome.bypassed for outcome in await module.outcomes())
                assert not {*map(str, inside[:5])} & {*map(str, before[:5])}
                await module.one("y")
            loads = len(module.loads)
            assert await module.call_all() == before
            assert len(module.loads) == loads
            assert not any(outcome.bypassed for outcome in await module.outcomes())
            assert module.one.key("y") not in module.cache.local.slots

    async def test_other_tasks_get_hits_during_a_disabled_block(self):
        module = Module()
        async with module.cache, anyio.create_task_group() as group:
            before = await module.call_all()
            entered, leave = anyio.Event(), anyio.Event()

            async def inside() -> None:
                with module.cache.disabled():
                    entered.set()
                    await leave.wait()
                    assert await module.one("x") not in before

            group.start_soon(inside)
            await entered.wait()
            loads, heard = len(module.loads), []
            module.cache.subscribe(heard.append, Hit, Miss)
            assert await module.call_all() == before
            assert len(module.loads) == loads
            assert {type(event) for event in heard} == {Hit}
            leave.set()

    async def test_task_started_in_a_disabled_block_bypasses_the_cache_until_the_block_ends(self):
        module = Module()
        async with module.cache, anyio.create_task_group() as group:
            first = await module.one("x")
            ended, answers = anyio.Event(), []

            async def child() -> None:
                answers.append(await module.one("x"))
                await ended.wait()
                # Another block is none of its business.
                with_other.enter()
                answers.append(await module.one("x"))
                with_other.leave()

            with_other = Elsewhere(module.cache)
            with module.cache.disabled():
                group.start_soon(child)
                with anyio.fail_after(60):
                    while not answers:
                        await anyio.lowlevel.checkpoint()
            ended.set()
        assert answers[0] != first
        assert answers[1] == first

    async def test_refresh_begun_before_a_disabled_block_continues(self):
        clock = FakeClock()
        module = Module(clock=clock)
        async with module.cache:
            first = await module.one("x")
            clock.advance(61)
            assert await module.one("x") == first
            with module.cache.disabled():
                await settle()
                await until(lambda: len(module.loads) == 2)
            await until(lambda: not module.cache.engine.is_loading(module.one.key("x")))
            outcome = await module.one.outcome("x")
            assert (outcome.value, outcome.state) == ("x2", State.FRESH)

    async def test_invalidation_in_a_disabled_block_takes_effect(self):
        module = Module()
        async with module.cache, client(module.app) as http:
            first = await module.one("x")
            await module.many(["x"])
            await http.get("/rule")
            with module.cache.disabled():
                await module.cache.invalidate_tag("tag:x")
                await module.many.invalidate(["x"])
                await http.post("/rule")
            loads = len(module.loads)
            assert await module.one("x") != first
            await module.many(["x"])
            assert (await http.get("/rule")).headers["swr-state"] == "missing"
            assert len(module.loads) == loads + 3

    async def test_nested_loaders_bypass_the_cache_in_a_disabled_block(self):
        module = Module()

        @module.cache.cached("outer", fresh_for=60)
        async def outer() -> str:
            return await module.one("x")

        @module.cache.cached("def", fresh_for=60)
        def threaded() -> bool:
            return module.cache.engine.switch.is_off

        async with module.cache:
            first = await outer()
            assert not await threaded()
            with module.cache.disabled():
                assert await outer() != first
                assert await threaded()

    async def test_disabled_blocks_can_nest_and_reuse_one_object(self):
        module = Module()
        async with module.cache:
            first = await module.one("x")
            block = module.cache.disabled()
            with block:
                with block:
                    assert await module.one("x") != first
                assert await module.one("x") != first
            assert await module.one("x") == first
            with block:
                assert await module.one("x") != first

    async def test_one_disabled_object_serves_overlapping_blocks_of_two_tasks(self):
        module, off = Module(), {}
        cache, load = module.cache, module.one
        block, first, second = cache.disabled(), anyio.Event(), anyio.Event()

        async def begins_first() -> None:
            with block:
                first.set()
                await second.wait()
            off["first"] = (await load.outcome("x")).bypassed

        async def ends_last() -> None:
            await first.wait()
            with block:
                second.set()
                while "first" not in off:
                    await anyio.lowlevel.checkpoint()
                off["last"] = (await load.outcome("x")).bypassed

        async with cache, anyio.create_task_group() as group:
            group.start_soon(begins_first)
            group.start_soon(ends_last)
        assert off == {"first": False, "last": True}

    async def test_other_caches_stay_on_in_a_disabled_block(self):
        module, other = Module(), Module()
        async with module.cache, other.cache:
            before = await other.call_all()
            with module.cache.disabled():
                assert await other.call_all() == before

    async def test_disabled_block_may_end_in_another_context_than_it_began(self):
        """pytest fixtures do this: their two halves run in different tasks."""
        module = Module()
        async with module.cache:
            first = await module.one("x")
            block, context = module.cache.disabled(), contextvars.copy_context()
            context.run(block.__enter__)
            block.__exit__(None, None, None)
            assert not context.run(lambda: module.cache.engine.switch.is_off)
            assert await module.one("x") == first

    async def test_disabled_block_of_a_thread_does_not_affect_other_threads(self):
        module = Module()
        async with module.cache:
            first = await module.one("x")
            with Elsewhere(module.cache) as elsewhere:
                elsewhere.enter()
                assert await module.one("x") == first
                elsewhere.leave()

    async def test_error_ends_a_disabled_block(self):
        module = Module()
        async with module.cache:
            first = await module.one("x")
            with pytest.raises(ZeroDivisionError), module.cache.disabled():
                raise ZeroDivisionError
            assert await module.one("x") == first


class Elsewhere:
    """A thread that is inside a `disabled` block while it is told so."""

    def __init__(self, cache: Cache) -> None:
        self._entered, self._leave = threading.Event(), threading.Event()

        def run() -> None:
            with cache.disabled():
                self._entered.set()
                self._leave.wait(60)

        self._thread = threading.Thread(target=run)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._leave.set()

    def enter(self) -> None:
        self._thread.start()
        self._entered.wait(60)

    def leave(self) -> None:
        self._leave.set()
        self._thread.join()


class TestOneCall:
    async def test_uncached_call_neither_reads_nor_stores(self):
        module = Module()
        async with module.cache:
            for loader in (module.one, module.plain, module.asks, module.early, module.method):
                first = await loader("x")
                assert await loader.uncached("x") != first
                assert await loader("x") == first
                await loader.uncached("y")
                assert loader.key("y") not in module.cache.local.slots
            values = await module.many(["x"])
            assert await module.many.uncached(["y", "none"]) == {"y": "y"}
            assert module.many.key("y") not in module.cache.local.slots
            assert await module.many(["x"]) == values
        assert len(module.loads) == 5 * 3 + 2

    async def test_uncached_call_does_not_open_the_cache(self):
        module = Module(url="redis://127.0.0.1:1/0")
        await module.one.uncached("x")
        assert await module.plain.uncached("x") == ["x", "2"]
        await module.many.uncached(["x"])
        assert not module.cache.engine.is_open

    async def test_uncached_call_accepts_arguments_that_cannot_be_part_of_a_key(self):
        cache = Cache()

        @cache.cached("k:{what}", fresh_for=60)
        async def load(what: object) -> object:
            return what

        @cache.cached_many("l:{what}", fresh_for=60)
        async def many(whats: list[object]) -> dict[object, object]:
            return {what: what for what in whats}

        what = object()
        assert await load.uncached(what) is what
        assert await many.uncached([what]) == {what: what}

    async def test_not_modified_from_an_uncached_call_is_an_error(self):
        cache = Cache()

        @cache.cached("k", fresh_for=60)
        async def load(context: LoadContext[int]) -> int | NotModified:
            return NOT_MODIFIED

        @cache.cached_many("l:{x}", fresh_for=60)
        async def many(xs: list[int]) -> dict[int, int | NotModified]:
            return dict.fromkeys(xs, NOT_MODIFIED)

        for call in (load.uncached(), many.uncached([1])):
            with pytest.raises(ConfigurationError, match="answered NOT_MODIFIED, and there is no last value"):
                await call

    async def test_uncached_call_ends_at_the_hard_timeout(self):
        cache = Cache()

        @cache.cached("k", fresh_for=60, hard_timeout=0.01)
        async def load() -> None:
            await anyio.sleep_forever()

        @cache.cached_many("l:{x}", fresh_for=60, hard_timeout=0.01)
        async def many(xs: list[int]) -> dict[int, int]:
            await anyio.sleep_forever()
            return {}

        for call in (load.uncached(), many.uncached([1])):
            with pytest.raises(LoadTimeout, match=r"given up after 0\.01 s, its hard_timeout"):
                await call

    async def test_long_list_is_loaded_in_parts_of_a_thousand_without_the_cache(self):
        module = Module(enabled=False)
        items = [str(number) for number in range(2500)]
        assert await module.many.uncached(items) == {item: item for item in items}
        assert await module.many(items) == {item: item for item in items}
        assert list(map(len, module.loads)) == [1000, 1000, 500] * 2

    async def test_error_of_a_loader_reaches_the_caller_unchanged(self):
        cache = Cache(enabled=False)

        @cache.cached("k", fresh_for=60)
        async def load() -> None:
            raise TimeoutError("mine")

        for call in (load.uncached(), load(), load.refresh(), load.outcome()):
            with pytest.raises(TimeoutError, match="mine"):
                await call
