"""The cache in code that is not async: through a loop that runs, or through a thread of the cache's own."""

import asyncio
import contextlib
import functools
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import anyio
import anyio.to_thread
import pytest
from fastapi import FastAPI

from swr import Cache, ConfigurationError, Policy, State, SWRError
from swr.engine import portal as portals
from swr.engine.crossing import LoopEnded, wait_for
from swr.events import Invalidated
from swr.testing import FakeClock, isolated
from tests.servers import Server
from tests.web import client

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "sync.md").read_text()
FILES = dict(re.findall(r"^```python\n# (\w+)\.py\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
POLICY = Policy(60, 600)
MANY = 150


class Module:
    """What a module of an app makes at import."""

    def __init__(self, **options) -> None:
        self.loads: list[object] = []
        self.cache = cache = Cache(**options)

        @cache.cached("a:{group}", fresh_for=60, stale_for=600, tags=("tag:{group}",))
        async def one(group: str) -> str:
            self.loads.append(group)
            return f"{group}{len(self.loads)}"

        @cache.cached("b:{group}", fresh_for=60)
        def plain(group: str) -> str:
            self.loads.append(group)
            return f"{group}{len(self.loads)}"

        @cache.cached_many("c:{group}", fresh_for=60)
        def many(groups: list[str]) -> dict[str, str]:
            self.loads.append(groups)
            return {group: f"{group}{len(self.loads)}" for group in groups}

        class Service:
            @cache.cached("d:{group}", fresh_for=60, ignore=("_self",))
            async def method(_self, group: str) -> str:
                self.loads.append(group)
                return f"{group}{len(self.loads)}"

        self.one, self.plain, self.many, self.method = one, plain, many, Service().method


@pytest.fixture
def module():
    module = Module()
    yield module
    module.cache.sync.close()


def own_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "swr"]


class TestWithoutEventLoop:
    def test_sync_calls_of_a_loader_return_their_results(self, module):
        for loader in (module.one, module.plain, module.method):
            sync = loader.sync
            first = sync("x")
            assert sync(group="x") == first
            assert (sync.outcome("x").value, sync.outcome("x").state) == (first, State.FRESH)
            assert sync.uncached("x") != first
            assert sync("x") == first
            second = sync.refresh("x")
            assert sync("x") == second != first
            sync.invalidate("x")
            assert sync("x") not in (first, second)
        first = module.many.sync(["x", "y"])
        assert module.many.sync(["x"]) == {"x": first["x"]}
        assert module.many.sync.outcome(["x"])["x"].state is State.FRESH
        assert module.many.sync.refresh(["x"]) != {"x": first["x"]}
        assert module.many.sync.uncached(["z"]).keys() == {"z"}
        module.many.sync.invalidate(["x"])
        assert module.many.sync.outcome(["x"])["x"].state is State.MISSING

    def test_sync_loader_sets_peeks_marks_and_invalidates_values(self, module):
        for loader in (module.one, module.plain, module.method):
            sync = loader.sync
            assert sync.peek("x") is None
            assert sync.set("known", group="x")
            assert (sync.peek("x").value, sync("x")) == ("known", "known")
            sync.mark_stale("x")
            assert sync.peek("x") is None or sync.peek("x").state is State.STALE
            sync.set("known", "x")
            sync.invalidate_all()
            assert sync.peek("x") is None
            sync.set("known", "x")
            sync.mark_stale_all()
            assert sync.peek("x") is None or sync.peek("x").state is State.STALE
        many = module.many.sync
        assert many.set({"x": "known"}, ["x"])
        assert {item: found.value for item, found in many.peek(["x", "y"]).items()} == {"x": "known"}
        many.mark_stale(["x"])
        many.mark_stale_all()
        many.invalidate_all()
        assert many.peek(["x"]) == {}

    def test_sync_cache_marks_and_invalidates_keys_tags_and_urls(self, module):
        sync = module.cache.sync
        policy = Policy(60, 60, tags=("t",))
        for mark in (
            lambda: sync.mark_stale("k"),
            lambda: sync.mark_stale_tags("s", "t"),
            sync.mark_stale_all,
        ):
            assert sync.set("k", 1, policy, returns=int)
            assert sync.peek("k", returns=int).state is State.FRESH
            mark()
            assert sync.peek("k", returns=int).state is State.STALE
        sync.set("k", 1, policy)
        sync.invalidate_tags("s", "t")
        assert sync.peek("k") is None
        for many in (sync.invalidate_urls, sync.mark_stale_urls):
            many("/rankings/ATL", "/rankings/DEN")
            with pytest.raises(ConfigurationError, match="has no path"):
                many("/rankings/ATL", "")

    def test_sync_calls_of_the_cache_return_after_they_took_effect(self, module):
        sync = module.cache.sync
        assert sync.get_or_load("k", lambda: 1, POLICY).state is State.MISSING
        assert sync.get_or_load("k", lambda: 1, POLICY, returns=int).state is State.FRESH

        async def load() -> int:
            return 2

        sync.invalidate("k")
        assert sync.get_or_load("k", load, POLICY).value == 2
        first = module.one.sync("x")
        sync.invalidate_tag("tag:x")
        second = module.one.sync("x")
        sync.clear()
        assert len({first, second, module.one.sync("x")}) == 3
        sync.invalidate_url("/rankings/ATL")
        with pytest.raises(ConfigurationError, match="has no path"):
            sync.invalidate_url("")

    def test_all_threads_share_one_cache_thread_and_one_load(self, module):
        gate = threading.Barrier(8)

        def call(_: int) -> str:
            gate.wait(60)
            return module.plain.sync("x")

        with ThreadPoolExecutor(8) as pool:
            assert {*pool.map(call, range(8))} == {"x1"}
        assert len(own_threads()) == 1
        module.cache.sync.close()
        assert not own_threads()
        assert module.plain.sync("x") == "x1"

    def test_cache_closes_at_the_end_of_its_with_block(self, module):
        with module.cache.sync as sync:
            assert module.cache.engine.runtime.tasks.loop is not None
            with sync:
                pass
            assert module.one.sync("x") == "x1"
        assert module.cache.engine.runtime.tasks.loop is None
        module.cache.configure(namespace="shop")

    def test_unused_cache_closes_without_error(self):
        Cache().sync.close()

    def test_errors_of_loaders_are_raised_unchanged(self, module):
        @module.cache.cached("e:{kind}", fresh_for=60)
        def fails(kind: str) -> None:
            raise {"key": KeyError, "time": TimeoutError}[kind]("mine")

        with pytest.raises(KeyError, match="mine"):
            fails.sync("key")
        with pytest.raises(TimeoutError, match="mine"):
            fails.sync("time")
        with pytest.raises(ConfigurationError, match="cannot be part of a key"):
            fails.sync(object())

    def test_value_stored_in_redis_by_one_cache_is_read_by_another(self, any_server: Server):
        any_server.command("FLUSHALL")
        one, two = Module(url=any_server.url), Module(url=any_server.url)
        assert one.one.sync("x") == two.one.sync("x") == "x1"
        one.cache.sync.close()
        two.cache.sync.close()
        assert not own_threads()

    def test_isolated_empties_the_cache_and_ends_its_thread(self, module):
        for number in (1, 2):
            with isolated(module.cache):
                assert module.one.sync("x") == f"x{number}"
            assert not own_threads()

    def test_load_continues_for_other_callers_when_one_is_interrupted(self, module):
        """Ctrl-C in a script, or the time-out of a worker that raises in its main thread."""
        begun, gate = threading.Event(), threading.Event()

        @module.cache.cached("i", fresh_for=60)
        def slow() -> int:
            begun.set()
            gate.wait(60)
            return 1

        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(slow.sync)
            begun.wait(60)
            main = threading.main_thread().ident
            timer = threading.Timer(0.05, lambda: signal.pthread_kill(main, signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                slow.sync()
            gate.set()
            assert other.result(60) == 1
        assert slow.sync.outcome().state is State.FRESH


class TestLoadersThatCallLoaders:
    def test_nested_def_loaders_do_not_exhaust_the_threads(self, module):
        """There are more loads than threads, and each of them waits for another load."""
        cache = module.cache

        @cache.cached("inner:{n}", fresh_for=60)
        def inner(n: int) -> int:
            return n

        @cache.cached("middle:{n}", fresh_for=60)
        def middle(n: int) -> int:
            return inner.sync(n) + 1

        @cache.cached("outer:{n}", fresh_for=60)
        def outer(n: int) -> int:
            return middle.sync(n) + 1

        async def main() -> list[int]:
            async with cache:
                return await asyncio.gather(*map(outer, range(MANY)))

        assert asyncio.run(main()) == [n + 2 for n in range(MANY)]

    def test_def_loader_may_call_a_loader_of_another_cache(self, module):
        other = Module()

        @module.cache.cached("outer:{n}", fresh_for=60)
        def outer(n: str) -> str:
            return other.plain.sync(n)

        assert outer.sync("x") == "x1"
        other.cache.sync.close()

    def test_at_most_40_loader_threads_run_at_once(self, module):
        """A thread that has waited for another load goes on only when a place is free."""
        running, most, lock = 0, 0, threading.Lock()

        @module.cache.cached("inner:{n}", fresh_for=60)
        def inner(n: int) -> int:
            return n

        @module.cache.cached("outer:{n}", fresh_for=60)
        def outer(n: int) -> None:
            nonlocal running, most
            inner.sync(n)
            with lock:
                running += 1
                most = max(most, running)
            threading.Event().wait(0.001)
            with lock:
                running -= 1

        async def main() -> None:
            async with module.cache:
                await asyncio.gather(*map(outer, range(MANY)))

        asyncio.run(main())
        assert most <= 40

    def test_loaders_that_would_wait_for_each_other_are_refused(self, module):
        @module.cache.cached("ping", fresh_for=60)
        def ping() -> int:
            return pong.sync()

        @module.cache.cached("pong", fresh_for=60)
        def pong() -> int:
            return ping.sync()

        with pytest.raises(ConfigurationError, match="'ping' -> 'pong' -> 'ping'"):
            ping.sync()

    @pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
    @pytest.mark.parametrize("is_async", [True, False])
    def test_exit_raised_by_a_loader_reaches_its_caller_and_spares_the_event_loop(self, module, error, is_async):
        """`sys.exit` of a parser of arguments that a loader uses."""

        def ends() -> str:
            raise error(3)

        async def ends_too() -> str:
            raise error(3)

        loader = module.cache.cached("ends", fresh_for=60)(ends_too if is_async else ends)
        for call in (loader.sync, loader.sync.refresh, loader.sync.uncached):
            with pytest.raises(error, match="3"):
                call()
        assert module.one.sync("x") == "x1"
        assert len(own_threads()) == 1

    def test_cache_thread_whose_event_loop_ended_is_replaced(self, module):
        module.one.sync("x")
        module.cache.engine.portal._own.stop(None)
        assert not own_threads()
        assert module.one.sync("y") == "y2"
        module.cache.engine.portal._own.stop(None)
        module.cache.sync.close()
        assert not own_threads()

    def test_sync_call_in_an_async_loader_is_refused(self, module):
        @module.cache.cached("wrong", fresh_for=60)
        async def wrong() -> str:
            return module.one.sync("x")

        with pytest.raises(ConfigurationError, match="would block the event loop that runs here: await the call"):
            wrong.sync()


@pytest.mark.anyio
class TestBesideEventLoop:
    async def test_worker_thread_uses_the_event_loop_that_started_it(self, module, anyio_backend):
        """A `def` endpoint: nobody has opened the cache yet."""
        assert await anyio.to_thread.run_sync(module.one.sync, "x") == "x1"
        assert module.cache.engine.is_open
        assert await module.one("x") == "x1"
        assert not own_threads()
        await anyio.to_thread.run_sync(module.cache.sync.invalidate_tag, "tag:x")
        assert await module.one("x") == "x2"
        await anyio.to_thread.run_sync(module.cache.sync.close)
        assert not module.cache.engine.is_open

    async def test_any_thread_uses_the_event_loop_in_which_the_cache_is_open(self, module, anyio_backend):
        async with module.cache:
            answers: list[str] = []
            thread = threading.Thread(target=lambda: answers.append(module.plain.sync("x")))
            thread.start()
            with anyio.fail_after(60):
                while not answers:
                    await anyio.sleep(0.001)
            thread.join()
            assert await module.plain("x") == answers[0] == "x1"
        assert not own_threads()

    async def test_sync_call_in_the_thread_of_the_event_loop_is_refused(self, module, anyio_backend):
        for call, what in (
            (lambda: module.one.sync("x"), "the .sync of the loader of 'a:{group}'"),
            (lambda: module.many.sync(["x"]), "the .sync of the loader of 'c:{group}'"),
            (module.cache.sync.clear, r"cache.sync.clear\(...\)"),
            (lambda: module.cache.sync.invalidate("k"), r"cache.sync.invalidate\(...\)"),
            (module.cache.sync.__enter__, "cache.sync"),
        ):
            for _ in range(2):
                with pytest.raises(ConfigurationError, match=f"^{what}.* would block the event loop that runs here"):
                    call()
                await module.one("x")
        with pytest.raises(ConfigurationError, match="would block"):
            module.cache.sync.close()
        await module.cache.aclose()

    async def test_disabled_block_in_a_thread_bypasses_the_cache(self, module, anyio_backend):
        def disabled() -> str:
            with module.cache.disabled():
                assert module.one.sync.outcome("x").bypassed
                return module.one.sync("x")

        async with module.cache:
            first = await module.one("x")
            assert await anyio.to_thread.run_sync(disabled) != first
            assert await anyio.to_thread.run_sync(module.one.sync, "x") == first

    async def test_until_committed_repeats_its_invalidations_at_its_end(self, module, anyio_backend):
        heard: list[str | None] = []
        module.cache.subscribe(lambda event: heard.append(event.tag), Invalidated)

        def commits() -> None:
            with module.cache.sync.until_committed():
                module.cache.sync.invalidate_tag("a")
                module.cache.sync.invalidate_tag("b")
                assert heard == ["a", "b"]
            assert heard == ["a", "b"] * 2
            with contextlib.suppress(ZeroDivisionError), module.cache.sync.until_committed():
                module.cache.sync.invalidate_tag("c")
                raise ZeroDivisionError
            assert heard[4:] == ["c", "c"]
            module.cache.sync.invalidate_tag("d")
            assert heard[6:] == ["d"]

        async with module.cache:
            await anyio.to_thread.run_sync(commits)

    async def test_def_endpoint_calls_loader_through_the_event_loop_of_the_app(self, module):
        app = FastAPI()

        @app.get("/{group}")
        def endpoint(group: str) -> str:
            return module.one.sync(group)

        async with client(app) as http:
            assert [(await http.get("/x")).json() for _ in range(2)] == ["x1", "x1"]
        assert await module.one("x") == "x1"
        assert not own_threads()
        await module.cache.aclose()


class TestChangingEventLoops:
    def test_event_loop_takes_the_cache_over_from_its_own_thread(self, module):
        assert module.one.sync("x") == "x1"

        async def main() -> None:
            assert await module.one("x") == "x1"
            await module.cache.invalidate_tag("tag:x")
            assert await module.one("x") == "x2"
            assert module.cache.engine.is_open
            assert not own_threads()
            assert await asyncio.to_thread(module.one.sync, "x") == "x2"
            assert not own_threads()

        asyncio.run(main())
        assert module.one.sync("x") == "x2"
        assert module.plain.sync("x") == "x3"
        assert len(own_threads()) == 1

    def test_sync_call_does_not_wait_for_a_paused_event_loop(self, module):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(module.one("x"))
        assert module.plain.sync("y") == "y2"
        module.cache.sync.close()
        loop.run_until_complete(module.one("x"))
        loop.run_until_complete(module.cache.aclose())
        loop.close()

    @pytest.mark.parametrize("is_begun", [False, True])
    def test_call_raises_loop_ended_when_its_event_loop_ends(self, is_begun: bool, monkeypatch):
        """A server that shuts down while a thread asks: what the loop has not done by then it never does."""
        loop, blocked, scheduled, begun = asyncio.new_event_loop(), *(threading.Event() for _ in range(3))
        schedule = asyncio.run_coroutine_threadsafe

        def then_tell(*args):
            future = schedule(*args)
            scheduled.set()
            return future

        def block() -> None:
            blocked.set()
            scheduled.wait(60)
            loop.stop()

        def run() -> None:
            if is_begun:
                loop.run_until_complete(asyncio.to_thread(begun.wait, 60))
            else:
                loop.call_soon(block)
                loop.run_forever()
            loop.close()

        async def function() -> None:
            begun.set()
            await asyncio.sleep(3600)

        monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", then_tell)
        monkeypatch.setattr("swr.engine.crossing._LOOKED_AFTER", 0.01)
        thread = threading.Thread(target=run)
        thread.start()
        if not is_begun:
            blocked.wait(60)
        with pytest.raises(LoopEnded, match="has ended, or ended during a call"):
            wait_for(loop, function)
        thread.join()
        with pytest.raises(LoopEnded):
            wait_for(loop, function)

    def test_call_cancelled_by_the_end_of_its_event_loop_runs_again_in_another(self, module):
        entered = threading.Event()
        runs: list[asyncio.AbstractEventLoop] = []

        @module.cache.cached("slow", fresh_for=60)
        async def slow() -> int:
            runs.append(asyncio.get_running_loop())
            entered.set()
            if len(runs) == 1:
                await asyncio.sleep(3600)
            return len(runs)

        async def main(pool: ThreadPoolExecutor):
            await module.one("x")
            answer = pool.submit(slow.sync)
            await asyncio.to_thread(entered.wait, 60)
            return answer

        with ThreadPoolExecutor(1) as pool:
            assert asyncio.run(main(pool)).result(60) == 2
        assert len({*runs}) == 2

    def test_call_raises_loop_ended_when_trio_has_ended(self, module):
        trio = pytest.importorskip("trio")
        tokens = []

        async def main() -> None:
            tokens.append(trio.lowlevel.current_trio_token())

        async def function() -> None: ...

        trio.run(main)
        with pytest.raises(LoopEnded):
            wait_for(tokens[0], function)

    def test_all_cache_threads_end_with_the_process(self, module):
        module.one.sync("x")
        portals._stop_all()
        assert not own_threads()
        assert module.cache.engine.runtime.tasks.loop is None

    def test_child_process_leaves_the_inherited_thread_alone(self, module):
        """In this process, where the parent's thread goes on."""
        module.one.sync("x")
        parents = module.cache.engine.portal._own
        portals._forget_all()
        assert portals._INHERITED.pop()[0] is parents
        assert own_threads()
        parents.stop(module.cache.engine.aclose)
        assert module.one.sync("x") == "x1"
        assert len(own_threads()) == 1

    def test_sync_call_waits_for_a_long_load(self, module, monkeypatch):
        monkeypatch.setattr("swr.engine.crossing._LOOKED_AFTER", 0.001)
        gate = threading.Event()
        threading.Timer(0.05, gate.set).start()
        assert module.cache.sync.get_or_load("k", lambda: gate.wait(60), POLICY).value is True

    def test_call_fails_when_the_event_loop_ends_again_and_again(self, module, monkeypatch):
        def ends(*_: object) -> None:
            raise LoopEnded

        monkeypatch.setattr("swr.engine.portal.wait_for", ends)
        monkeypatch.setattr("swr.engine.portal._LOOKS", 1)
        monkeypatch.setattr("swr.engine.portal._ENDS_WITHIN", 0.01)
        with pytest.raises(SWRError, match="the event loop of the cache has ended"):
            module.one.sync("x")
        monkeypatch.undo()


SCRIPT = """
import os, sys, threading, time
sys.path.insert(0, {root!r})
from swr import Cache
cache = Cache({url!r})
loads = []

@cache.cached("k:{{group}}", fresh_for=0.05, stale_for=600)
def load(group: str) -> str:
    loads.append(group)
    time.sleep(0.2)
    print("loaded", os.getpid() == main, flush=True)
    return group

main = os.getpid()
"""


def run_script(text: str, url: str | None = None) -> str:
    code = SCRIPT.format(root=str(ROOT), url=url) + text
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


class TestProcesses:
    def test_process_exit_waits_for_loads_under_way(self, any_server: Server):
        any_server.command("FLUSHALL")
        output = run_script("load.sync('x'); time.sleep(0.1); load.sync('x')", any_server.url)
        assert output == "loaded True\nloaded True\n"
        # Its lease is given back, and nobody waits for it.
        assert run_script("load.sync.refresh('x')", any_server.url) == "loaded True\n"

    def test_call_is_refused_with_what_to_do_when_gevent_replaced_threads(self):
        output = run_script("""
import gevent.monkey

gevent.monkey.patch_thread()
for call in (lambda: load.sync("x"), cache.sync.clear):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, error)
""")
        for line, what in zip(output.splitlines(), ("the .sync of the loader", "cache.sync.clear(...)"), strict=True):
            assert line.startswith(f"ConfigurationError {what}")
            assert "needs threads, which gevent has replaced: run this program with threads or processes" in line

    @pytest.mark.parametrize(
        ("library", "asks"), [("gevent.monkey", "is_module_patched"), ("eventlet.patcher", "is_monkey_patched")]
    )
    def test_error_names_the_library_that_replaced_threads(self, library, asks, module, monkeypatch):
        for has_replaced in (False, True):
            monkeypatch.setitem(sys.modules, library, SimpleNamespace(**{asks: lambda _, answer=has_replaced: answer}))
            if not has_replaced:
                assert module.one.sync("x") == "x1"
        with pytest.raises(ConfigurationError, match=f"threads, which {library.partition('.')[0]} has replaced"):
            module.one.sync("x")
        monkeypatch.undo()
        module.cache.sync.close()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    @pytest.mark.parametrize("where", ["memory", "redis"])
    def test_forked_child_gets_its_own_cache_thread(self, where, any_server: Server):
        """The prefork pool of Celery, a server that preloads its app."""
        any_server.command("FLUSHALL")
        output = run_script(
            """
load.sync("x")
pid = os.fork()
if not pid:
    assert load.sync("child") == "child"
    assert len(loads) == 2
    assert [thread.name for thread in threading.enumerate()].count("swr") == 1
    cache.sync.close()
    sys.stdout.flush()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert load.sync("parent") == "parent"
""",
            any_server.url if where == "redis" else None,
        )
        assert output.split("\n")[:3] == ["loaded True", "loaded False", "loaded True"]

    def test_call_in_a_destructor_at_interpreter_exit_is_refused(self):
        """What an object of the module does when it is thrown away."""
        output = run_script(
            """
class Last:
    def __del__(self):
        try:
            load.sync("y")
        except BaseException as error:
            print(error)

load.sync("x")
# An atexit callback may call still.
import atexit
atexit.register(load.sync, "z")
last = Last()
"""
        )
        late = "the .sync of the loader of 'k:{group}' comes too late: the interpreter is ending"
        lines = output.splitlines()
        assert lines[:2] == ["loaded True", "loaded True"]
        # A thread of loaders that is still alive may keep the module's names, and then Python destroys no `last`.
        assert lines[2:] in ([], [late])

    def test_call_during_interpreter_finalization_is_refused(self, monkeypatch):
        monkeypatch.setattr("sys.is_finalizing", lambda: True)
        with pytest.raises(SWRError, match="comes too late"):
            Cache().sync.clear()
        monkeypatch.undo()


class TestDocsPage:
    @pytest.fixture
    def names(self, request, any_server: Server):
        any_server.command("FLUSHALL")
        text = FILES[request.param].replace("redis://127.0.0.1:6379/0", any_server.url)
        names: dict[str, object] = {"__name__": request.param}
        exec(compile(text, f"{request.param}.py", "exec"), names)
        yield names
        names["cache"].sync.close()

    @pytest.mark.parametrize("names", ["script"], indirect=True)
    def test_script_of_the_page_caches_its_ranking(self, names):
        assert (names["ranking"], names["outcome"].state, names["value"]) == (["ATL"], State.FRESH, 1)

    @pytest.mark.parametrize("names", ["endpoint"], indirect=True)
    def test_def_endpoints_of_the_page_cache_and_invalidate(self, names):
        async def main() -> None:
            async with client(names["app"]) as http:
                assert (await http.get("/rankings/ATL")).json() == ["ATL"]
                assert (await http.post("/rankings/ATL")).status_code == 200
            assert (await names["top100"].outcome("ATL")).state is State.MISSING
            await names["cache"].aclose()

        asyncio.run(main())

    @pytest.mark.parametrize("names", ["tasks"], indirect=True)
    def test_celery_tasks_of_the_page_cache_and_invalidate(self, names, request, monkeypatch):
        from celery.contrib.testing.worker import start_worker

        # Celery takes away the handlers of the root logger, and sets its level.
        root = logging.getLogger()
        monkeypatch.setattr(root, "handlers", root.handlers.copy())
        request.addfinalizer(functools.partial(root.setLevel, root.level))
        app = names["celery"]
        app.conf.broker_connection_retry_on_startup = True
        with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=60):
            assert names["report"].delay("ATL").get(timeout=60) == "ATL"
            assert names["top100"].sync.outcome("ATL").state is State.FRESH
            names["recalculate"].delay("ATL").get(timeout=60)
        assert names["top100"].sync.outcome("ATL").state is State.MISSING
        app.close()

    @pytest.mark.parametrize("names", ["flask_app"], indirect=True)
    def test_flask_views_of_the_page_cache_and_invalidate(self, names):
        http = names["app"].test_client()
        assert http.get("/rankings/ATL").json == ["ATL"]
        assert names["top100"].sync.outcome("ATL").state is State.FRESH
        assert http.post("/rankings/ATL").status_code == 204
        assert names["top100"].sync.outcome("ATL").state is State.MISSING

    def test_django_views_of_the_page_cache_and_invalidate(self, any_server: Server, tmp_path):
        any_server.command("FLUSHALL")
        text = FILES["views"].replace("redis://127.0.0.1:6379/0", any_server.url)
        (tmp_path / "views.py").write_text(text)
        (tmp_path / "main.py").write_text("""
import asyncio
import django
from django.conf import settings

settings.configure(
    ROOT_URLCONF="urls", ALLOWED_HOSTS=["testserver"], SECRET_KEY="x",
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
)
django.setup()
from django.test import AsyncClient, Client
import views

http = Client()
assert http.get("/rankings/ATL").json() == {"ranking": ["ATL"]}
assert views.top100.sync.outcome("ATL").state == "fresh"
assert http.post("/rankings/ATL/change").status_code == 204
assert views.top100.sync.outcome("ATL").state == "missing"

async def main():
    assert (await AsyncClient().get("/async/ATL")).json() == {"ranking": ["ATL"]}
    assert (await AsyncClient().get("/rankings/ATL")).json() == {"ranking": ["ATL"]}
    await views.cache.aclose()

asyncio.run(main())
print("done")
""")
        (tmp_path / "urls.py").write_text("""
from django.urls import path
import views

urlpatterns = [
    path("rankings/<group>", views.ranking),
    path("rankings/<group>/change", views.change),
    path("async/<group>", views.ranking_async),
]
""")
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
        done = subprocess.run(
            [sys.executable, "main.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.stdout == "done\n", done.stderr


def test_second_event_loop_bypasses_the_cache_and_the_log_suggests_sync(module, caplog):
    async def beside() -> list[str]:
        past = [await module.one("y"), await module.one("y")]
        return [*past, *[await asyncio.to_thread(module.one.sync, "y") for _ in range(2)]]

    async def main() -> None:
        assert await module.one("x") == "x1"
        assert await asyncio.to_thread(asyncio.run, beside()) == ["y2", "y3", "y4", "y4"]
        await module.cache.aclose()

    asyncio.run(main())
    assert "in a thread: await asyncio.to_thread(loader.sync, ...)" in caplog.text


def test_stale_value_is_served_and_refreshed_in_background():
    clock = FakeClock()
    module = Module(clock=clock)
    assert module.one.sync("x") == "x1"
    clock.advance(61)
    assert module.one.sync("x") == "x1"
    module.cache.sync.close()
    assert module.one.sync("x") == "x2"
    module.cache.sync.close()
