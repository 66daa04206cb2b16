"""Slow loaders: readers whose patience ends, and loads that are given up, for values and for responses."""

import contextlib
import itertools
import logging
import math
import threading

import anyio
import anyio.lowlevel
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from swr import Cache, ConfigurationError, LoadTimeout, Policy, State
from swr.engine.flights import Flight
from swr.middleware import Rule, SWRMiddleware
from tests.fleet import GROWING, Job, Loader, fleet, in_time, settle, until
from tests.web import MAX_AGE, App, Client, brief, client, http_scope

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("name", ["soft_timeout", "hard_timeout"])
def test_timeout_that_is_not_a_positive_duration_is_refused(name):
    assert getattr(Policy(1, **{name: "500ms"}), name) == 0.5
    assert getattr(Policy(1).tagged(("t",)), name) == "auto"
    assert getattr(Policy(1, **{name: None}), name) is None
    for wrong in (0, -1, "soon", True):
        with pytest.raises(ConfigurationError, match=name):
            Policy(1, **{name: wrong})
        with pytest.raises(ConfigurationError, match=name):
            Cache().cached(fresh_for=1, **{name: wrong})


class TestSoftTimeout:
    async def test_reader_gets_the_fallback_after_soft_timeout_and_the_load_goes_on(self, cache, clock):
        gate = anyio.Event()
        runs = []

        @cache.cached("k", fresh_for=10, stale_if_error=60, soft_timeout="10ms")
        async def load() -> int:
            runs.append(1)
            if len(runs) > 1:
                await gate.wait()
            return len(runs)

        await load()
        clock.advance(20)
        for _ in range(2):
            outcome = await load.outcome()
            assert (outcome.value, outcome.state, outcome.age, outcome.error) == (1, State.STALE, 20, None)
        assert await load() == 1
        gate.set()
        await settle()
        assert (await load.outcome()).state is State.FRESH
        assert (await load(), len(runs)) == (2, 2)

    async def test_reader_whose_fallback_is_invalidated_waits_for_the_newer_load(self, cache, clock):
        """The first reader found the value before it was invalidated. It waits for the load of a later reader."""

        async def values(key: str, soft_timeout: float) -> list[int]:
            gate, runs, found = anyio.Event(), [], []

            @cache.cached(key, fresh_for=10, stale_if_error=600, soft_timeout=soft_timeout)
            async def load() -> int:
                runs.append(1)
                if len(runs) > 1:
                    await gate.wait()
                return len(runs)

            async def read() -> None:
                found.append((await load.outcome()).value)

            def all_wait() -> bool:
                flight = cache.engine.flights.get(key)
                return len(cache.engine.flights.all()) == 2 and flight.waiters == 2

            await load()
            clock.advance(20)
            async with anyio.create_task_group() as group:
                group.start_soon(read)
                await until(lambda: len(runs) == 2)
                await load.invalidate()
                group.start_soon(read)
                await until(lambda: found or all_wait())
                if not found:
                    await anyio.sleep(4 * soft_timeout)
                gate.set()
            return found

        for soft_timeout in GROWING:
            found = await values(f"k{soft_timeout}", soft_timeout)
            # On a machine that stands still, his patience may end before the invalidation.
            if found[0] != 1:
                break
        assert found == [3, 3]

    async def test_fallback_within_fresh_for_is_given_as_fresh_and_later_as_stale(self, cache, clock):
        outcome = await cache.get_or_load("k", Loader(), Policy(10, 600, 600))
        entry = cache.engine.store.peek("k")
        flight = Flight(cache.engine.runtime, "k", Job(), entry, 0)
        assert entry.value == outcome.value
        assert cache.engine.given(entry, flight) == (entry, State.FRESH, None)
        clock.advance(20)
        assert cache.engine.given(entry, flight) == (entry, State.STALE, None)

    async def test_readers_of_a_load_without_a_slot_get_the_fallback_and_later_ones_at_once(
        self, cache, clock, monkeypatch
    ):
        monkeypatch.setattr("swr.engine.endings._LEAST_PATIENCE", 0.2)
        is_down, gate = False, anyio.Event()

        @cache.cached("k{n}", fresh_for=10, stale_if_error=600, max_concurrent_loads=1)
        async def load(n: int) -> int:
            if is_down:
                await gate.wait()
            return n

        await load(1)
        await load(2)
        is_down = True
        clock.advance(20)
        with anyio.fail_after(30):
            assert await load(1) == 1
            # This load waits for the slot of the one that hangs.
            assert (await load.outcome(2)).state is State.STALE
            flight = cache.engine.flights.get("k2")
            assert flight.load is None
            while cache.engine.patience_for((flight,), "auto") > 0:
                await anyio.sleep(0.01)
            assert await load(2) == 2
        gate.set()

    async def test_readers_of_a_hanging_load_get_the_fallback_and_later_ones_at_once(self, cache, clock, monkeypatch):
        monkeypatch.setattr("swr.engine.endings._LEAST_PATIENCE", 0.2)
        is_down, gate = False, anyio.Event()

        @cache.cached("k", fresh_for=10, stale_if_error=600)
        async def load() -> int:
            if is_down:
                await gate.wait()
                return 2
            return 1

        @cache.cached_many("k{n}", fresh_for=10, stale_if_error=600)
        async def load_many(numbers):
            if is_down:
                await gate.wait()
            return dict.fromkeys(numbers, 1)

        await load()
        await load_many([1, 2])
        is_down = True
        clock.advance(20)
        outcomes = []

        async def read():
            outcomes.append(await load.outcome())
            outcomes.extend((await load_many.outcome([1, 2])).values())

        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(read)
            engine = cache.engine
            flight = engine.flights.get("k")
            assert engine.patience_for((flight,), "auto") <= 0
            await read()
        assert {(outcome.value, outcome.state, outcome.error) for outcome in outcomes} == {(1, State.STALE, None)}
        gate.set()
        await settle()
        assert await load() == 2

    async def test_default_soft_timeout_is_three_times_the_last_load_time(self, cache, clock):
        """A query of eight seconds is not given up after ten."""
        gate = anyio.Event()
        takes = 8

        @cache.cached("k", fresh_for=10, stale_if_error=600)
        async def load() -> int:
            clock.advance(takes)
            if not takes:
                await gate.wait()
            return 1

        await load()
        takes = 0
        clock.advance(20)
        async with anyio.create_task_group() as group:
            group.start_soon(load)
            await settle()
            engine = cache.engine
            flight = engine.flights.get("k")
            assert 10 < engine.patience_for((flight,), "auto") <= 24
            assert engine.patience_for((flight,), None) is None
            gate.set()

    async def test_reader_without_a_fallback_waits_past_soft_timeout(self, cache):
        async def load():
            await anyio.sleep(0.05)
            return 1

        outcome = await cache.get_or_load("k", load, Policy(60, soft_timeout=0.001))
        assert (outcome.value, outcome.state) == (1, State.MISSING)

    async def test_value_invalidated_during_the_load_is_no_fallback(self, cache, clock):
        # On a machine that stands still, patience may end before the invalidation; then there is something to serve.
        for soft_timeout in GROWING:
            runs, invalidated, gate = [], anyio.Event(), anyio.Event()

            async def load(runs=runs, invalidated=invalidated, gate=gate):
                runs.append(1)
                if len(runs) == 2:
                    await cache.invalidate_tag("t")
                    invalidated.set()
                    await gate.wait()
                return len(runs)

            policy = Policy(10, stale_if_error=60, tags=("t",), soft_timeout=soft_timeout)
            key = f"k{soft_timeout}"
            await cache.get_or_load(key, load, policy)
            clock.advance(20)

            async def open_later(gate=gate, pause=5 * soft_timeout):
                await anyio.sleep(pause)
                gate.set()

            async with anyio.create_task_group() as group:
                group.start_soon(open_later)
                outcome = await cache.get_or_load(key, load, policy)
                was_invalidated = invalidated.is_set()
            if was_invalidated:
                break
        assert was_invalidated
        assert (outcome.value, outcome.state) == (3, State.MISSING)

    async def test_explicit_refresh_waits_past_soft_timeout(self, cache):
        @cache.cached("k", fresh_for=10, stale_for=60, soft_timeout=0.001)
        async def load() -> int:
            runs.append(1)
            await anyio.sleep(0.02)
            return len(runs)

        runs = []
        assert (await load(), await load.refresh()) == (1, 2)


class TestHardTimeout:
    async def test_load_that_exceeds_hard_timeout_is_cancelled_and_raises_load_timeout(self, cache):
        ended = []

        @cache.cached("k:{a}", fresh_for=10, hard_timeout="200ms")
        async def load(a: int) -> int:
            if not ended:
                try:
                    await anyio.sleep_forever()
                finally:
                    ended.append(True)
            return a

        while not ended:
            # On a machine that stands still, a load may be given up before it has begun.
            with pytest.raises(LoadTimeout, match=r"'k:1' was given up after 0\.2 s, its hard_timeout") as caught:
                await load(1)
            assert isinstance(caught.value, TimeoutError)
            assert (caught.value.key, caught.value.seconds) == ("k:1", 0.2)
            await settle()
        assert ended == [True]
        assert await in_time(lambda: load(1)) == 1

    async def test_timed_out_load_serves_the_stale_fallback_with_its_error(self, cache, clock, caplog):
        hangs = []

        async def load():
            if hangs:
                await anyio.sleep_forever()
            return 1

        await cache.get_or_load("k", load, Policy(10, stale_if_error=60))
        clock.advance(20)
        hangs.append(True)
        outcome = await cache.get_or_load("k", load, Policy(10, stale_if_error=60, hard_timeout=0.2))
        assert (outcome.value, outcome.state, type(outcome.error)) == (1, State.STALE, LoadTimeout)
        assert "LoadTimeout" in caplog.text
        assert "Traceback" not in caplog.text

    async def test_late_result_of_a_timed_out_thread_is_discarded(self, cache):
        release, left = threading.Event(), threading.Event()
        runs = itertools.count()

        @cache.cached("k", fresh_for=10, hard_timeout=0.2)
        def load() -> str:
            if next(runs):
                return "new"
            release.wait(60)
            left.set()
            return "late"

        with pytest.raises(LoadTimeout):
            await load()
        with anyio.fail_after(60):
            # A busy machine may begin no thread in time, so the run that hangs may be a later one.
            assert await in_time(load) == "new"
        release.set()
        assert await anyio.to_thread.run_sync(left.wait, 60)
        await settle()
        assert (await load.outcome()).state is State.FRESH
        assert await load() == "new"

    @pytest.mark.parametrize("end", ["store", "skip", "fail", "raise"])
    async def test_timed_out_load_can_no_longer_store_skip_or_fail(self, clock, caplog, end):
        done = anyio.Event()

        class Stubborn(Job):
            async def run(self, load):
                flights.append(load.flight)
                load.limit(0.01)
                try:
                    with anyio.CancelScope(shield=True):
                        await stored.wait()
                        if end == "store":
                            await load.store("late", self.policy)
                        elif end == "skip":
                            await load.skip(drop=True)
                        elif end == "fail":
                            await load.fail(ValueError("late"))
                        else:
                            raise ValueError("late")
                finally:
                    done.set()

        stored = anyio.Event()
        flights = []
        async with fleet(1, clock) as (process,):
            with pytest.raises(LoadTimeout):
                await process.engine.fetch("k", Stubborn())
            assert (await process.engine.fetch("k", Job(lambda run: "new"))).value == "new"
            stored.set()
            await done.wait()
            await settle()
            outcome = await process.engine.fetch("k", Job())
            assert (outcome.value, outcome.state) == ("new", State.FRESH)
        assert (type(flights[0].error), flights[0].loaded, flights[0].has_no_value) == (LoadTimeout, None, False)
        assert ("went on after its value was stored or given up" in caplog.text) is (end == "raise")

    @pytest.fixture
    def hangs(self):
        class Hangs(Job):
            async def run(self, load):
                load.limit(0.01)
                await anyio.sleep_forever()

        return Hangs()

    async def test_load_timeout_is_raised_after_the_lease_is_released(self, clock, hangs):
        async with fleet(1, clock) as (process,):
            process.link.before["release"] = lambda: anyio.sleep(0.02)
            with pytest.raises(LoadTimeout):
                await process.engine.fetch("k", hangs)
            assert process.link.calls[-1] == "release"

    async def test_other_process_can_load_after_a_timed_out_load(self, clock, hangs):
        async with fleet(2, clock) as (one, other):
            with pytest.raises(LoadTimeout):
                await one.engine.fetch("k", hangs)
            assert (await other.engine.fetch("k", Job())).value == 1

    async def test_second_limit_of_a_load_replaces_or_lifts_the_first(self, clock):
        class Lifts(Job):
            async def run(self, load):
                load.limit(0.01)
                load.limit(self.policy.hard_timeout)
                await anyio.sleep(math.inf if self.policy.hard_timeout == 0.02 else 0.05)
                await super().run(load)

        async with fleet(1, clock) as (process,):
            assert (await process.engine.fetch("k", Lifts())).value == 1
            with pytest.raises(LoadTimeout, match=r"0\.02 s"):
                await process.engine.fetch("other", Lifts(policy=Policy(1, hard_timeout=0.02)))

    async def test_load_that_runs_on_after_storing_its_value_is_not_limited(self, fetch_job):
        ended = []

        class RunsOn(Job):
            async def run(self, load):
                load.limit(limit)
                await super().run(load)
                load.limit(limit)
                await anyio.sleep(5 * limit)
                ended.append(True)

        outcome = None
        for limit in GROWING:  # noqa: B007  # the job reads it
            # On a machine that stands still, it may be given up before it is stored.
            with contextlib.suppress(LoadTimeout):
                outcome = await fetch_job(RunsOn())
                break
        assert outcome.value == 1
        await until(lambda: ended)

    async def test_load_that_ends_just_as_its_time_is_up_can_succeed(self, clock):
        class Ends(Job):
            async def run(self, load):
                load.limit(1e-9)
                # The timer's turn has come, and it has not run yet.
                await anyio.lowlevel.checkpoint()
                await super().run(load)

        async with fleet(1, clock) as (process,):
            outcome = None
            while outcome is None:
                try:
                    outcome = await process.engine.fetch("k", Ends())
                except LoadTimeout:
                    assert not process.engine.flights
            assert outcome.value == 1

    @pytest.fixture
    async def fetch_job(self, clock):
        async with fleet(1, clock) as (process,):

            async def fetch(job):
                return await process.engine.fetch("k", job)

            yield fetch


def hangs_at(*runs):
    """An app that never ends in its runs of these numbers."""

    class Hanging(App):
        async def __call__(self, scope, receive, send):
            if self.runs + 1 in runs:
                self.runs += 1
                await anyio.sleep_forever()
            await super().__call__(scope, receive, send)

    return Hanging(MAX_AGE)


class TestResponses:
    async def test_requests_to_a_hanging_app_get_504_after_hard_timeout(self, cache, caplog):
        app = hangs_at(1)
        async with client(SWRMiddleware(app, cache, hard_timeout=1)) as http:
            answers = []

            async def get():
                answers.append(await http.get("/x"))

            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(get)
            assert [brief(answer) for answer in answers] == [(504, "", "missing")] * 3
            assert answers[0].headers["cache-status"] == 'swr; fwd=uri-miss; detail="timeout"'
            assert app.runs == 1
            assert brief(await http.get("/x")) == (200, "2", "missing")
        assert "given up after 1 s" in caplog.text

    async def test_load_timeout_of_a_loader_inside_the_app_is_raised_by_the_app(self, cache, caplog):
        """It says which loader it was; the server logs it."""

        @cache.cached("rows:{table}", fresh_for=60, hard_timeout=0.2)
        async def rows(table: str) -> str:
            await anyio.sleep_forever()

        async def page(request):
            return PlainTextResponse(await rows("flights"))

        app = Starlette(routes=[Route("/x", page)])
        app.add_middleware(SWRMiddleware, cache=cache)
        async with client(app) as http:
            with pytest.raises(LoadTimeout, match=r"'rows:flights' was given up after 0\.2 s"):
                await http.get("/x")
        async with client(app, raises=False) as http:
            assert (await http.get("/x")).status_code == 500
        assert [record.getMessage() for record in caplog.records if record.name == "swr"] == []

    async def test_timed_out_response_is_replaced_by_the_stale_fallback(self, cache, clock):
        app = hangs_at(2, 3)
        async with client(SWRMiddleware(app, cache)) as http:
            await http.get("/x")
        clock.advance(700)
        async with client(SWRMiddleware(app, cache, hard_timeout=0.2)) as http:
            answer = await http.get("/x")
            assert brief(answer) == (200, "1", "stale")
            assert answer.headers["cache-status"] == "swr; fwd=stale; fwd-status=504"

    async def test_background_refresh_that_hangs_is_given_up(self, cache, clock):
        app = hangs_at(2)
        async with client(SWRMiddleware(app, cache)) as http:
            await http.get("/x")
        clock.advance(61)
        async with client(SWRMiddleware(app, cache, hard_timeout=0.2)) as http:
            assert brief(await http.get("/x")) == (200, "1", "stale")
            await settle()
            while cache.engine.flights:
                await anyio.sleep(0.01)
            clock.advance(600)
            assert brief(await http.get("/x")) == (200, "1", "stale")
            assert app.runs == 2

    async def test_body_that_never_ends_raises_load_timeout_after_its_first_piece(self, cache):
        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": MAX_AGE})
            await send({"type": "http.response.body", "body": b"begin", "more_body": True})
            await anyio.sleep_forever()

        visitor = Client()
        with pytest.raises(LoadTimeout):
            await SWRMiddleware(app, cache, hard_timeout=1)(http_scope("/x"), visitor.receive, visitor.send)
        assert [message.get("body") for message in visitor.sent] == [None, b"begin"]

    async def test_response_that_passes_through_is_not_limited(self, cache):
        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"no-store")]})
            await anyio.sleep(5 * limit)
            await send({"type": "http.response.body", "body": b"whole"})

        for limit in GROWING:
            async with client(SWRMiddleware(app, cache, hard_timeout=limit)) as http:
                answer = await http.get("/x")
            # On a machine that stands still, it may be given up before its head is there.
            if answer.status_code != 504:
                break
        assert answer.text == "whole"

    @pytest.mark.parametrize("rule", [Rule("/{rest:path}", hard_timeout=0.01), Rule("/x", fresh_for=1)])
    async def test_rule_overrides_or_inherits_the_hard_timeout_of_the_middleware(self, cache, rule):
        own = rule.hard_timeout
        app = SWRMiddleware(hangs_at(1), cache, [rule], hard_timeout=60 if own else 0.01)
        async with client(app) as http:
            with anyio.fail_after(60):
                assert (await http.get("/x")).status_code == 504

    async def test_endpoint_overrides_the_hard_timeout_of_its_rule(self, cache):
        released = threading.Event()

        @cache.response(fresh_for=60, hard_timeout=0.01)
        async def hanging(request):
            await anyio.sleep_forever()

        @cache.response(fresh_for=60, hard_timeout=0.01)
        def blocking(request):
            released.wait(60)
            return PlainTextResponse("late")

        @cache.response(fresh_for=60, hard_timeout=60)
        async def slow(request):
            await anyio.sleep(0.7)
            return PlainTextResponse("slow")

        routes = [Route("/hanging", hanging), Route("/blocking", blocking), Route("/slow", slow)]
        rules = [Rule("/slow", hard_timeout=0.5), Rule("/{rest:path}", hard_timeout=60)]
        async with client(SWRMiddleware(Starlette(routes=routes), cache, rules)) as http:
            with anyio.fail_after(60):
                assert brief(await http.get("/hanging")) == (504, "", "missing")
                # Its thread cannot be ended; nobody waits for it.
                assert brief(await http.get("/blocking")) == (504, "", "missing")
                assert brief(await http.get("/slow")) == (200, "slow", "missing")
            released.set()
            await settle()

    async def test_decorated_def_called_in_the_event_loop_applies_its_hard_timeout(self, cache):
        @cache.response(fresh_for=60, hard_timeout=0.01)
        def endpoint(request):
            return PlainTextResponse("x")

        async def app(scope, receive, send):
            endpoint(None)
            await anyio.sleep_forever()

        async with client(SWRMiddleware(app, cache)) as http:
            assert (await http.get("/x")).status_code == 504

    async def test_post_without_a_load_is_not_limited(self, cache):
        @cache.response(fresh_for=60, hard_timeout=0.01)
        async def endpoint(request):
            await anyio.sleep(0.05)
            return PlainTextResponse("x")

        app = Starlette(routes=[Route("/x", endpoint, methods=["POST"])])
        async with client(SWRMiddleware(app, cache)) as http:
            assert (await http.post("/x")).text == "x"

    async def test_app_that_resists_cancellation_gets_connection_error_when_it_sends(self, cache, caplog):
        begun, heard = [], []

        async def app(scope, receive, send):
            begun.append(1)
            with anyio.CancelScope(shield=True):
                await gate.wait()
                try:
                    await send({"type": "http.response.start", "status": 200, "headers": MAX_AGE})
                except ConnectionError as error:
                    heard.append(str(error))
                    raise

        gate = anyio.Event()
        async with client(SWRMiddleware(app, cache, hard_timeout=0.01)) as http:
            while not begun:
                assert (await http.get("/x")).status_code == 504
            gate.set()
            await settle()
        assert heard == ["this request was given up: it took longer than its hard_timeout"]
        assert not [record for record in caplog.records if record.levelno > logging.WARNING]

    @pytest.mark.parametrize(
        "make",
        [
            lambda: Rule("/x", hard_timeout=0),
            lambda: Cache().response(fresh_for=1, hard_timeout=0),
            lambda: SWRMiddleware(App(), Cache(), hard_timeout=0),
        ],
    )
    def test_hard_timeout_of_zero_is_refused(self, make):
        with pytest.raises(ConfigurationError, match="hard_timeout=0"):
            make()
