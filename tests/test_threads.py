"""Plain `def` loaders in threads: how many run at a time, and who is kept waiting by those that hang."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from swr import Cache, LoadContext, LoadTimeout, Policy, SWRError
from swr.engine.threads import _THREADS, Threads, _Call, _Place, lent
from swr.testing import FakeClock
from tests.fleet import until

pytestmark = pytest.mark.anyio

# As many threads as a loader gets that hangs alone.
_EACH = _THREADS // 2


class Hanging:
    """A database that answers nobody until it is told to; counts who waits in it."""

    def __init__(self):
        self.gate = threading.Event()
        self.running = self.most = self.calls = 0
        self._lock = threading.Lock()

    def query(self):
        with self._lock:
            self.running += 1
            self.calls += 1
            self.most = max(self.most, self.running)
        self.gate.wait(60)
        with self._lock:
            self.running -= 1
        return 1


@pytest.fixture
def database():
    hanging = Hanging()
    yield hanging
    hanging.gate.set()


async def test_hanging_loader_leaves_threads_to_other_loaders(database):
    async with Cache() as cache:

        @cache.cached("hangs:{n}", fresh_for=60)
        def hangs(n):
            return database.query()

        @cache.cached_many("quick:{n}", fresh_for=60)
        def quick(numbers):
            return dict.fromkeys(numbers, 2)

        async with anyio.create_task_group() as group:
            for n in range(2 * _THREADS):
                group.start_soon(hangs, n)
            await until(lambda: database.running == _EACH)
            with anyio.fail_after(30):
                assert await quick([1]) == {1: 2}
                assert (await cache.get_or_load("k", lambda: 3, Policy(60))).value == 3
            database.gate.set()
    assert database.calls == 2 * _THREADS
    assert database.most == _EACH


@pytest.mark.uncounted
@pytest.mark.parametrize("loaders", [2, 3, 6])
async def test_several_hanging_loaders_leave_threads_to_other_loaders(loaders):
    databases = [Hanging() for _ in range(loaders)]
    async with Cache() as cache:

        def hanging(database):
            @cache.cached(f"hangs {databases.index(database)}:{{n}}", fresh_for=60)
            def hangs(n):
                return database.query()

            hangs.__wrapped__.__qualname__ = f"hangs {databases.index(database)}"
            return hangs

        @cache.cached("quick:{n}", fresh_for=60)
        def quick(n):
            return n

        threads = cache.engine.runtime.threads
        try:
            async with anyio.create_task_group() as group:
                for database, hangs in zip(databases, map(hanging, databases), strict=True):
                    for n in range(_THREADS):
                        group.start_soon(hangs, n)
                    # Half of what the others have left.
                    most = (_THREADS - threads.taken) // 2
                    await until(lambda database=database, most=most: database.running >= max(1, most))
                assert threads.taken < _THREADS
                with anyio.fail_after(60):
                    assert [await quick(n) for n in range(20)] == list(range(20))
                # Who has recovered goes on, whatever the others do.
                databases[0].gate.set()
                await until(lambda: databases[0].calls == _THREADS and not databases[0].running)
                assert max(one.most for one in databases[1:]) <= _EACH
                for database in databases:
                    database.gate.set()
        finally:
            for database in databases:
                database.gate.set()
        assert [one.calls for one in databases] == [_THREADS] * loaders
        assert not threads.taken
        assert not threads._waiting


async def test_timed_out_loads_keep_their_threads_until_the_threads_end(database):
    async with Cache() as cache:

        @cache.cached("hangs:{n}", fresh_for=60, hard_timeout=0.1)
        def hangs(n):
            return database.query()

        async def read(n):
            with pytest.raises(LoadTimeout):
                await hangs(n)

        with anyio.fail_after(60):
            for start in range(0, 400, 100):
                async with anyio.create_task_group() as group:
                    for n in range(start, start + 100):
                        group.start_soon(read, n)
        assert database.most <= _EACH
        assert database.calls <= _EACH
        database.gate.set()
        await until(lambda: not database.running)
        # The threads are there again, all of them.
        threads = cache.engine.runtime.threads
        await until(lambda: not threads.taken)


async def test_call_abandoned_before_its_thread_begins_is_skipped():
    called = []
    threads = Threads(None)
    call = _Call(threads, _Place(threads, "loader"), lambda: called.append(1))
    assert call.abandon()
    assert call.run() == (None,)
    assert not called


async def test_call_cancelled_at_any_moment_gives_its_thread_back(database):
    """The call is cancelled before it has a thread, before the thread begins, and while the thread runs."""
    async with Cache() as cache:
        threads = cache.engine.runtime.threads
        for turns in (*range(8), None):
            calls = database.calls
            async with anyio.create_task_group() as group:
                group.start_soon(threads.run, "hangs", database.query)
                if turns is None:
                    await until(lambda calls=calls: database.calls > calls)
                else:
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
        database.gate.set()
        await until(lambda: not threads.taken and not threads._held)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_waiter_cancelled_as_it_gets_a_thread_gives_the_thread_back():
    async with Cache() as cache:
        await cache.engine.ready()
        threads = cache.engine.runtime.threads
        for _ in range(_THREADS // 2):
            await threads.take("hangs")
        taken = threads.taken
        waiting = asyncio.create_task(threads.take("hangs"))
        await until(lambda: threads._waiting)
        threads.give_back("hangs")
        assert threads.taken == taken
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert threads.taken == taken - 1
        for _ in range(taken - 1):
            threads.give_back("hangs")
        assert not threads._held


async def test_thread_place_given_back_twice_is_counted_once():
    """This happens when the event loop ends, or a load is cancelled, while its loader waits in `.sync`."""
    async with Cache() as cache:
        threads = cache.engine.runtime.threads
        place, other = _Place(threads, "lends"), _Place(threads, "lends")
        await place.take()
        await other.take()
        place.give_back()
        place.give_back()
        assert threads.taken == 1
        other.give_back()
        assert not threads.taken


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_call_in_another_event_loop_gives_a_hanging_loader_no_extra_threads(database):
    async with Cache() as cache:

        @cache.cached("hangs:{n}", fresh_for=60)
        def hangs(n):
            return database.query()

        @cache.cached("quick", fresh_for=60)
        def quick():
            return 2

        def elsewhere():
            assert anyio.run(quick) == 2

        async with anyio.create_task_group() as group:
            for half in range(2):
                for n in range(_EACH):
                    group.start_soon(hangs, half * _EACH + n)
                await until(lambda: database.running == _EACH)
                await anyio.to_thread.run_sync(elsewhere)
            for n in range(_EACH):
                group.start_soon(hangs, 2 * _EACH + n)
            await until(lambda: len(cache.engine.flights) == 3 * _EACH)
            for _ in range(3):
                # Every load that may get a thread has one now.
                await anyio.to_thread.run_sync(lambda: None)
            database.gate.set()
        assert database.most == _EACH
        assert len(cache.engine.runtime._threads) <= 2


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_thread_place_that_becomes_free_after_its_call_failed_is_given_back(database, monkeypatch):
    """Something blocks the event loop when a loader returns from `.sync`, so that its call fails."""
    monkeypatch.setattr("swr.engine.crossing._LOOKED_AFTER", 0.001)
    loop, is_lent = asyncio.get_running_loop(), asyncio.Event()
    begins, is_blocked, unblocks = threading.Event(), threading.Event(), threading.Event()

    def block():
        is_blocked.set()
        unblocks.wait(60)

    def lends():
        try:
            with lent():
                loop.call_soon_threadsafe(is_lent.set)
                begins.wait(60)
                loop.call_soon_threadsafe(block)
                is_blocked.wait(60)
        finally:
            unblocks.set()

    async with Cache() as cache:
        threads = cache.engine.runtime.threads
        async with anyio.create_task_group() as group:
            lending = asyncio.create_task(threads.run("lends", lends))
            await is_lent.wait()
            # No thread is left for the loader.
            for number in range(_THREADS):
                group.start_soon(threads.run, f"hangs {number}", database.query)
            await until(lambda: threads.taken == _THREADS)
            begins.set()
            with pytest.raises(SWRError, match="held up for"):
                await lending
            database.gate.set()
        await until(lambda: not threads._waiting)
        assert not threads.taken


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_large_values_are_encoded_and_decoded_while_the_event_loop_threads_hang(any_server, database):
    """The threads of an app may all wait for a cached value or for a database."""
    any_server.command("FLUSHALL")
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    hanging = loop.run_in_executor(None, database.query)
    limiter = anyio.to_thread.current_default_thread_limiter()
    for n in range(int(limiter.total_tokens)):
        limiter.acquire_on_behalf_of_nowait(n)
    policy, numbers = Policy(60), list(range(200_000))
    async with Cache(any_server.url, timeout=30) as first, Cache(any_server.url, timeout=30) as second:
        with anyio.fail_after(60):
            await first.get_or_load("k", lambda: numbers, policy, returns=list[int])
            outcome = await second.get_or_load("k", database.query, policy, returns=list[int])
            assert outcome.value == numbers
            await until(lambda: first.local.get("k").weight > 1_000_000)
    database.gate.set()
    await hanging


class Copied:
    """Knows in which thread it was copied last."""

    thread = None

    def __deepcopy__(self, memo):
        Copied.thread = threading.get_ident()
        return Copied()


@pytest.mark.uncounted
async def test_copies_of_large_values_are_made_in_a_thread():
    clock, here = FakeClock(), threading.get_ident()
    async with Cache(clock=clock, l1_max_bytes=2**30) as cache:
        size = 0

        @cache.cached("one", fresh_for=60, copy=True)
        async def one() -> list[object]:
            return [Copied() for _ in range(size)]

        @cache.cached("context", fresh_for=60, keep_for=600, copy=True)
        async def with_context(context: LoadContext[object]) -> list[object]:
            return [Copied() for _ in range(size)]

        @cache.cached_many("many:{n}", fresh_for=60, copy=True)
        async def many(numbers):
            return {number: [Copied() for _ in range(size)] for number in numbers}

        for size, is_elsewhere in ((10, False), (10_000, True)):
            await one.invalidate()
            await many.invalidate([1])
            for call in (one, one, one.outcome, one.refresh):
                await call()
                assert (Copied.thread != here) is is_elsewhere
            for call in (many, many.outcome, many.refresh):
                await call([1])
                assert (Copied.thread != here) is is_elsewhere
            await with_context.refresh()
            clock.advance(61)
            Copied.thread = None
            assert len(await with_context()) == size
            assert (Copied.thread != here) is is_elsewhere


def test_thread_of_a_timed_out_load_on_trio_is_free_once_it_ends():
    """The test starts trio itself, so that coverage includes code that only trio reaches."""
    gate, begun = threading.Event(), threading.Event()

    async def main():
        async with Cache() as cache:

            @cache.cached("hangs", fresh_for=60, hard_timeout=0.05)
            def hangs():
                begun.set()
                gate.wait(60)

            # On a busy machine the time may be over before the thread begins.
            while not begun.is_set():
                with pytest.raises(LoadTimeout):
                    await hangs()
                await anyio.sleep(0.01)
            threads = cache.engine.runtime.threads
            assert threads.taken == 1
            gate.set()
            await until(lambda: not threads.taken)

    anyio.run(main, backend="trio")
