"""Every event, when it is told and when not: in memory on asyncio and trio, and over a real server."""

import asyncio
import dataclasses
import logging
import sys
from pathlib import Path

import anyio
import pytest

from swr import Cache, CodecError, ConfigurationError, Policy, State, SWRError
from swr.core.codec import ANY
from swr.engine.engine import Engine
from swr.engine.publisher import Publisher
from swr.events import (
    KINDS,
    Answered,
    Bypassed,
    CommitRejected,
    Committed,
    Event,
    Hit,
    Invalidated,
    LeaseHeld,
    LeaseWaited,
    LoadBegun,
    Loaded,
    LoadFailed,
    Miss,
    NotStored,
    RenewalRejected,
    Stale,
    StoreReachable,
    StoreUnreachable,
)
from swr.middleware import SWRMiddleware
from tests.fleet import Job, Loader, fleet, gather, settle, until
from tests.proxy import Proxy
from tests.web import MAX_AGE, App, Client, Origin, client, http_scope, open_later

pytestmark = pytest.mark.anyio

POLICY = Policy(60, 600, 3600)
READS = (Hit, Stale, Miss, Bypassed, NotStored)


class Heard(list):
    """A subscriber that writes down."""

    def __init__(self, cache, *kinds):
        self.end = cache.subscribe(self.append, *kinds)

    def take(self):
        """What was told since the last time."""
        told = list(self)
        self.clear()
        return told

    def names(self):
        return [type(event).__name__ for event in self.take()]


@pytest.fixture
def anyio_backend(place):
    return place.rpartition(" ")[2]


@pytest.fixture
async def cache(place_url, clock):
    async with Cache(place_url, timeout=5, clock=clock, drain_for=0) as cache:
        yield cache


@pytest.fixture
async def heard(cache):
    return Heard(cache)


class TestLoaderEvents:
    async def test_miss_publishes_its_load_and_each_later_read_publishes_a_hit(self, cache, heard, clock):
        @cache.cached("k", fresh_for=60)
        async def load() -> int:
            return 1

        await load()
        begun, committed, loaded, miss = heard.take()
        assert (begun.key, committed.key, loaded.key, miss) == ("k", "k", "k", Miss("k"))
        assert (type(begun), type(committed), type(loaded)) == (LoadBegun, Committed, Loaded)
        assert begun.waited >= 0
        assert committed.version == cache.local.get("k").entry.version > 0
        assert loaded.seconds >= 0
        clock.advance(10)
        await load()
        await load.outcome()
        await cache.get_or_load("k", load.__wrapped__, POLICY)
        assert heard.take() == [Hit("k", 10.0)] * 3

    async def test_stale_hit_is_published_before_its_refresh(self, cache, heard, clock):
        load = Loader()
        await cache.get_or_load("k", load, POLICY)
        heard.clear()
        clock.advance(75)
        await cache.get_or_load("k", load, POLICY)
        assert heard.take() == [Stale("k", 75.0, 15.0, None)]
        await until(lambda: len(heard) == 3)
        assert heard.names() == ["LoadBegun", "Committed", "Loaded"]

    async def test_fallback_for_a_failed_load_is_published_as_stale_with_the_error(self, cache, heard, clock):
        load = Loader()
        await cache.get_or_load("k", load, POLICY)
        heard.clear()
        clock.advance(700)
        load.error = ValueError("no")
        outcome = await cache.get_or_load("k", load, POLICY)
        assert outcome.state is State.STALE
        begun, failed, stale = heard.take()
        assert (type(begun), type(failed)) == (LoadBegun, LoadFailed)
        assert (failed.key, failed.error) == ("k", load.error)
        assert stale == Stale("k", 700.0, 640.0, load.error)
        # All keep off for a while: the next reader is told the same without a load.
        await cache.get_or_load("k", load, POLICY)
        (stale,) = heard.take()
        assert (stale.staleness, repr(stale.error)) == (640.0, repr(load.error))

    async def test_failed_load_without_fallback_publishes_one_miss_for_each_reader(self, cache, heard):
        load = Loader()
        load.error = ValueError("no")
        await gather(*(cache.get_or_load("k", load, POLICY) for _ in range(3)))
        assert heard.names() == ["LoadBegun", "LoadFailed", "Miss", "Miss", "Miss"]

    async def test_cancelled_reader_publishes_a_miss_and_its_load_continues(self, cache, heard):
        load = Loader()
        load.gate = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(cache.get_or_load, "k", load, POLICY)
            await load.begun.wait()
            group.cancel_scope.cancel()
        assert heard.names() == ["LoadBegun", "Miss"]
        load.gate.set()
        await until(lambda: len(heard) == 2)
        assert heard.names() == ["Committed", "Loaded"]

    async def test_explicit_refresh_publishes_a_load_and_no_read(self, cache, heard):
        @cache.cached("k", fresh_for=60)
        async def load() -> int:
            return 1

        await load()
        heard.clear()
        await load.refresh()
        assert heard.names() == ["LoadBegun", "Committed", "Loaded"]

    async def test_value_that_cannot_be_stored_publishes_load_failed(self, cache, heard, place_url):
        if place_url is None:
            # There anything can be stored; but a loader that ends without a value fails as well.
            class Silent(Job):
                async def run(self, load):
                    pass

            with pytest.raises(SWRError):
                await cache.engine.fetch("k", Silent())
        else:

            async def load() -> int:
                return object()

            with pytest.raises(CodecError):
                await cache.get_or_load("k", load, POLICY)
        assert heard.names() == ["LoadBegun", "LoadFailed", "Miss"]

    async def test_load_cut_off_by_closing_publishes_load_failed(self, cache, heard):
        load = Loader()
        load.gate = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(gather, cache.get_or_load("k", load, POLICY))
            await load.begun.wait()
            await cache.aclose()
        begun, failed, miss = heard.take()
        assert (type(begun), miss) == (LoadBegun, Miss("k"))
        assert "the cache was closed" in str(failed.error)

    @pytest.mark.parametrize("by", ["key", "tag", "all"])
    async def test_load_overtaken_by_an_invalidation_publishes_commit_rejected_and_runs_again(self, cache, heard, by):
        load = Loader()
        invalidate = {
            "key": (lambda: cache.invalidate("k"), Invalidated("k", None, False)),
            "tag": (lambda: cache.invalidate_tag("t"), Invalidated(None, "t", False)),
            "all": (cache.clear, Invalidated(None, None, False)),
        }
        load.meanwhile, invalidated = invalidate[by]
        outcome = await cache.get_or_load("k", load, Policy(60, tags=["t"]))
        assert outcome.value == 2
        told = heard.take()
        assert (told[1], told[2]) == (invalidated, CommitRejected("k"))
        assert [type(event) for event in told] == [
            LoadBegun, Invalidated, CommitRejected, Loaded, LoadBegun, Committed, Loaded, Miss,
        ]  # fmt: skip

    async def test_invalidated_lease_publishes_renewal_rejected_then_commit_rejected(self, place_url):
        async with Cache(place_url, lease_for=0.03, timeout=5) as cache:
            heard, load = Heard(cache, RenewalRejected, CommitRejected), Loader()
            load.gate = anyio.Event()
            async with anyio.create_task_group() as group:
                group.start_soon(cache.get_or_load, "gone", load, POLICY)
                await load.begun.wait()
                await cache.invalidate("gone")
                await until(lambda: RenewalRejected("gone") in heard)
                load.gate.set()
        # So short a lease may run out once more on a busy machine.
        assert heard[:2] == [RenewalRejected("gone"), CommitRejected("gone")]


class TestSeveralProcesses:
    """Engines over one store in memory instead of a server; also on trio."""

    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request):
        return request.param

    @pytest.fixture
    async def two(self, clock):
        async with fleet(2, clock) as processes:
            yield processes

    @staticmethod
    def listen(process, *chosen):
        told = []
        process.engine.events.subscribe(told.append, chosen or KINDS)
        return told

    async def test_process_that_loses_the_lease_race_waits_and_does_not_load(self, two):
        winner, loser = two
        job = Job()
        job.gate = anyio.Event()
        told = self.listen(loser)
        async with anyio.create_task_group() as group:
            group.start_soon(winner.engine.fetch, "k", job)
            await job.begun.wait()
            group.start_soon(loser.engine.fetch, "k", job)
            await until(lambda: told)
            assert told == [LeaseHeld("k", 30.0, 0)]
            # It asks again now and then, and is told of as one.
            job.gate.set()
        assert [type(event) for event in told] == [LeaseHeld, LeaseWaited, Miss]
        assert told[1].key == "k"
        assert told[1].seconds > 0
        assert job.runs == 1

    async def test_repeated_lease_requests_publish_one_lease_held_event(self, two, monkeypatch):
        monkeypatch.setattr("swr.engine.refresh_path._LONGEST_WAIT", 0.01)
        winner, loser = two
        job = Job()
        job.gate = anyio.Event()
        told = self.listen(loser, LeaseHeld, LeaseWaited)
        async with anyio.create_task_group() as group:
            group.start_soon(winner.engine.fetch, "k", job)
            await job.begun.wait()
            group.start_soon(loser.engine.fetch, "k", job)
            await until(lambda: loser.link.calls.count("acquire") > 3)
            job.gate.set()
        assert [type(event) for event in told] == [LeaseHeld, LeaseWaited]
        # All of the wait, of which two whole turns went by.
        assert told[1].seconds > 0.015

    async def test_stale_read_that_loses_the_lease_publishes_lease_held_and_no_wait(self, two, clock):
        winner, loser = two
        job = Job()
        for process in two:
            await process.engine.fetch("k", job)
        clock.advance(61)
        told = self.listen(loser)
        job.gate, job.begun = anyio.Event(), anyio.Event()
        await winner.engine.fetch("k", job)
        await job.begun.wait()
        await loser.engine.fetch("k", job)
        await settle()
        assert told == [Stale("k", 61.0, 1.0, None), LeaseHeld("k", 30.0, 0)]
        job.gate.set()

    async def test_backoff_after_a_failed_load_elsewhere_publishes_lease_held(self, two, clock):
        winner, loser = two
        job, failing = Job(), Job(lambda _: ValueError("no"))
        for process in two:
            await process.engine.fetch("k", job)
        clock.advance(61)
        await winner.engine.fetch("k", failing)
        await settle()
        told = self.listen(loser)
        await loser.engine.fetch("k", failing)
        await settle()
        assert told == [Stale("k", 61.0, 1.0, None), LeaseHeld("k", 1.0, 1)]

    async def test_load_without_store_is_not_committed_and_invalidations_still_reject_it(self, two):
        process = two[0]
        await process.engine.ready()
        process.link.set_down(True)
        told, job = self.listen(process), Job()
        await process.engine.fetch("k", job)
        assert [type(event) for event in told] == [LoadBegun, Loaded, Miss]
        told.clear()
        job.before_store = lambda: process.engine.invalidate("other")
        await process.engine.fetch("other", job)
        # It is done again, twice at most; then its value is answered and not kept.
        again = [LoadBegun, Invalidated, CommitRejected, Loaded]
        assert [type(event) for event in told] == [*again * 3, Miss]

    async def test_put_publishes_committed_or_commit_rejected(self, two, clock):
        process = two[0]
        await process.engine.ready()
        told, engine = self.listen(process), process.engine
        since = engine.snapshot()
        assert await engine.put("k", ANY, 1, POLICY, since)
        assert [type(event) for event in told] == [Committed]
        assert (told[0].key, told[0].version) == ("k", process.local.get("k").entry.version)
        told.clear()
        # There is a newer one than the one that it was to replace.
        assert not await engine.put("k", ANY, 2, POLICY, since, known=0)
        assert told == [CommitRejected("k")]
        told.clear()
        process.link.before["commit"] = lambda: two[1].engine.invalidate("k")
        assert not await engine.put("k", ANY, 2, POLICY, since)
        assert told == [CommitRejected("k")]
        told.clear()
        process.link.set_down(True)
        since = engine.snapshot()
        await engine.invalidate_tag("t")
        assert not await engine.put("k", ANY, 3, POLICY, since)
        assert told == [StoreUnreachable(""), Invalidated(None, "t", False), CommitRejected("k")]

    async def test_each_change_of_store_reachability_is_published_once(self, two):
        process = two[0]
        await process.engine.ready()
        told = self.listen(process, StoreUnreachable, StoreReachable)
        assert process.engine.is_store_up
        for is_down in (False, True, True):
            process.link.set_down(is_down)
        assert told == [StoreUnreachable("")]
        assert not process.engine.is_store_up
        for _ in range(2):
            process.link.set_down(False)
        assert [type(event) for event in told] == [StoreUnreachable, StoreReachable]
        assert told[1].unreachable_for >= 0
        assert process.engine.is_store_up


class TestRealServer:
    """Events that need a real server."""

    @pytest.fixture
    def anyio_backend(self):
        return "asyncio"

    async def test_cache_that_loses_the_lease_race_publishes_lease_waited(self, server):
        load = Loader()
        load.gate = anyio.Event()
        async with Cache(server.url, timeout=5) as one, Cache(server.url, timeout=5) as other:
            heard, there = Heard(one), Heard(other)
            first = asyncio.create_task(one.get_or_load("k", load, POLICY))
            await load.begun.wait()
            second = asyncio.create_task(other.get_or_load("k", load, POLICY))
            await until(lambda: there)
            load.gate.set()
            await asyncio.gather(first, second)
            assert heard.names() == ["LoadBegun", "Committed", "Loaded", "Miss"]
            held, waited, miss = there.take()
            assert (held.key, held.failures, waited.key, miss) == ("k", 0, "k", Miss("k"))
            assert 0 < held.retry_after <= 30
            assert waited.seconds > 0

    async def test_invalidation_is_published_as_elsewhere_only_in_other_processes(self, server):
        async with Cache(server.url, timeout=5) as one, Cache(server.url, timeout=5) as other:
            heard, there = Heard(one, Invalidated), Heard(other, Invalidated)
            whats = [("k", None), (None, "t"), (None, None)]
            for what, invalidate in zip(
                whats, (one.invalidate("k"), one.invalidate_tag("t"), one.clear()), strict=True
            ):
                await invalidate
                await until(lambda: there)
                assert heard.take() == [Invalidated(*what, False)]
                assert there.take() == [Invalidated(*what, True)]
            # Its own messages come back to a process: by the time of this one all of them have.
            await other.invalidate("last")
            await until(lambda: heard)
            assert heard.take() == [Invalidated("last", None, True)]
            assert there.take() == [Invalidated("last", None, False)]

    async def test_invalidation_of_another_process_rejects_a_commit_and_the_load_runs_again(self, server):
        load = Loader()
        async with Cache(server.url, timeout=5) as one, Cache(server.url, timeout=5) as other:
            heard = Heard(one)
            load.meanwhile = lambda: other.invalidate("k")
            assert (await one.get_or_load("k", load, POLICY)).value == 2
            told = heard.take()
            # The message may come before the commit or after it.
            assert Invalidated("k", None, True) in told
            rest = [type(event) for event in told if type(event) is not Invalidated]
            assert rest == [LoadBegun, CommitRejected, Loaded, LoadBegun, Committed, Loaded, Miss]

    async def test_invalidations_before_the_cache_opens_are_not_published(self, server):
        async with Cache(server.url, timeout=5) as one:
            await one.invalidate_tag("t")
            await one.clear()
            other = Cache(server.url, timeout=5)
            there = Heard(other, Invalidated)
            async with other:
                await one.invalidate("k")
                await until(lambda: there)
            assert there == [Invalidated("k", None, True)]

    async def test_server_stop_and_return_each_log_one_line_and_publish_one_event(self, own_server, caplog):
        caplog.set_level(logging.WARNING, "swr")
        async with Cache(own_server.url, timeout=5) as cache:
            heard = Heard(cache, StoreUnreachable, StoreReachable)
            load = Loader()
            for number in (1, 2):
                own_server.kill()
                await until(lambda: heard)
                await cache.get_or_load("k", load, POLICY)
                (down,) = heard.take()
                assert f"({down.reason}); serving from memory" in caplog.text
                assert f"127.0.0.1:{own_server.port}, database 0, namespace 'swr'" in caplog.text
                assert down.reason
                assert not cache.engine.is_store_up
                own_server.start()
                await until(lambda: heard)
                (up,) = heard.take()
                assert up.unreachable_for > 0
                assert cache.engine.is_store_up
                messages = [record.message for record in caplog.records]
                for text in ("cannot reach Redis", "is reachable again"):
                    assert sum(text in message for message in messages) == number

    async def test_reopening_during_an_outage_publishes_no_second_store_unreachable(self, own_server, caplog):
        caplog.set_level(logging.WARNING, "swr")
        cache = Cache(own_server.url, timeout=2)
        heard = Heard(cache, StoreUnreachable, StoreReachable)
        own_server.kill()
        for _ in range(2):
            async with cache:
                await cache.get_or_load("k", Loader(), POLICY)
        own_server.start()
        async with cache:
            await until(lambda: len(heard) == 2)
        assert heard.names() == ["StoreUnreachable", "StoreReachable"]
        assert [record.message.partition(" at ")[0] for record in caplog.records] == ["cannot reach Redis", "Redis"]

    async def test_replayed_invalidations_are_published_once_in_each_process(self, own_server):
        async with (
            Proxy(own_server.port) as proxy,
            Cache(proxy.url, timeout=5) as cache,
            Cache(own_server.url, timeout=5) as other,
        ):
            heard, there = Heard(cache, Invalidated), Heard(other, Invalidated)
            proxy.refuse = True
            proxy.cut()
            await until(lambda: not cache.engine.is_store_up)
            await cache.invalidate("k")
            await cache.invalidate_tag("t")
            assert heard.take() == [Invalidated("k", None, False), Invalidated(None, "t", False)]
            # What the others say meanwhile is not heard, and not told of later.
            await other.invalidate_tag("missed")
            there.clear()
            proxy.refuse = False
            await until(lambda: len(there) == 2)
            assert set(there) == {Invalidated("k", None, True), Invalidated(None, "t", True)}
            await other.invalidate("last")
            await until(lambda: heard)
            assert heard.take() == [Invalidated("last", None, True)]


def state_of(event):
    return {Hit: "fresh", Stale: "stale", Miss: "missing"}.get(type(event), "missing")


class TestResponses:
    """Each answer to GET and HEAD publishes one event, which agrees with its `SWR-State`."""

    @pytest.fixture
    async def heard(self, cache):
        return Heard(cache, *READS)

    @staticmethod
    async def ask(http, heard, path="/x", method="GET", **fields):
        """Ask, and return the one event of it, which is that of the answer's state."""
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        response = await http.request(method, path, headers=headers)
        (event,) = heard.take()
        assert state_of(event) == response.headers["swr-state"]
        return event

    async def test_response_events_are_miss_then_hit_then_stale(self, cache, heard, clock):
        app = App([*MAX_AGE, (b"etag", b'"1"')])
        async with client(SWRMiddleware(app, cache)) as http:
            key = "GET http://test\n/x?"
            assert await self.ask(http, heard) == Miss(key)
            clock.advance(10)
            # As it is ready, as a 304, by way of a request that takes more than a glance, and HEAD.
            assert await self.ask(http, heard) == Hit(key, 10.0)
            assert await self.ask(http, heard, if_none_match='"1"') == Hit(key, 10.0)
            assert await self.ask(http, heard, cache_control="max-age=30") == Hit(key, 10.0)
            assert await self.ask(http, heard, method="HEAD") == Hit(key, 10.0)
            app.gate = anyio.Event()
            clock.advance(60)
            # The first one starts the refresh; then a stale one is ready.
            for _ in range(3):
                assert await self.ask(http, heard) == Stale(key, 70.0, 10.0, None)
            app.gate.set()

    async def test_bypassed_request_publishes_the_reason_and_no_miss(self, cache, heard):
        app = App(MAX_AGE)
        async with client(SWRMiddleware(app, cache)) as http:
            key = "GET http://test\n/x?"
            assert await self.ask(http, heard, cookie="a=b") == Bypassed(key, "cookie")
            assert await self.ask(http, heard, if_match="*") == Bypassed(key, "precondition")
            assert await self.ask(http, heard, cache_control="no-store") == Bypassed(key, "no-store")
            assert await self.ask(http, heard, method="HEAD") == Bypassed(key, "HEAD")
            assert await self.ask(http, heard, cache_control="only-if-cached") == Miss(key)
            assert await self.ask(http, heard) == Miss(key)
            assert await self.ask(http, heard, cache_control="only-if-cached") == Hit(key, pytest.approx(0))
            assert await self.ask(http, heard, authorization="me") == Bypassed(key, "authorization")

    async def test_post_and_options_publish_no_read(self, cache, heard):
        async with client(SWRMiddleware(App(MAX_AGE), cache)) as http:
            await http.post("/x")
            await http.options("/x")
        assert heard == []

    async def test_variant_publishes_misses_under_the_url_and_hits_under_its_own_key(self, cache, heard):
        app = App([*MAX_AGE, (b"vary", b"x-a")])
        async with client(SWRMiddleware(app, cache)) as http:
            url = "GET http://test\n/x?"
            assert await self.ask(http, heard, x_a="1") == Miss(url)
            hit = await self.ask(http, heard, x_a="1")
            assert type(hit) is Hit
            assert hit.key != url
            assert hit.key.startswith(url)
            assert await self.ask(http, heard, x_a="2") == Miss(url)

    async def test_range_requests_publish_a_miss_then_a_hit_on_the_stored_part(self, cache, heard):
        fields = {"cache-control": "max-age=60", "etag": '"1"', "content-range": "bytes 0-4/10"}
        app = Origin((206, fields, "01234"))
        async with client(SWRMiddleware(app, cache)) as http:
            assert type(await self.ask(http, heard, range="bytes=0-4")) is Miss
            hit = await self.ask(http, heard, range="bytes=1-3")
            assert (type(hit), hit.key) == (Hit, "GET http://test\n/x?\npart")
        assert app.runs == 1

    async def test_each_reader_of_one_load_publishes_a_miss(self, cache, heard):
        app = App(MAX_AGE)
        async with client(SWRMiddleware(app, cache)) as http:
            await gather(open_later(app), *(http.get("/x") for _ in range(3)))
        assert heard == [Miss("GET http://test\n/x?")] * 3
        assert app.runs == 1

    async def test_fallback_response_publishes_stale_with_its_error_or_a_hit_if_fresh(self, cache, heard, clock):
        app = App([(b"cache-control", b"max-age=60, stale-if-error=3600")])
        async with client(SWRMiddleware(app, cache)) as http:
            await self.ask(http, heard)
            clock.advance(70)
            app.error = ConnectionError("no")
            stale = await self.ask(http, heard)
            assert stale == Stale("GET http://test\n/x?", 70.0, 10.0, app.error)
            # Fresh, but not fresh enough for this client: what stands in for it counts as it is marked.
            app.error = None
            async with client(SWRMiddleware(App(MAX_AGE), cache, request_directives=["max-age"])) as strict:
                await self.ask(strict, heard, path="/y")
                clock.advance(30)
                assert await self.ask(strict, heard, path="/y", cache_control="max-age=60") == Hit(
                    "GET http://test\n/y?", 30.0
                )
            failing = App()
            failing.error = ConnectionError("no")
            async with client(SWRMiddleware(failing, cache, request_directives=["max-age"])) as strict:
                hit = await self.ask(strict, heard, path="/y", cache_control="max-age=5")
                assert hit == Hit("GET http://test\n/y?", 30.0)

    async def test_failing_app_and_leaving_client_each_publish_a_miss(self, cache, heard):
        app = App(MAX_AGE)
        app.error = ValueError("no")
        middleware = SWRMiddleware(app, cache)
        async with client(middleware, raises=True) as http:
            with pytest.raises(ValueError, match="no"):
                await http.get("/x")
        assert heard.take() == [Miss("GET http://test\n/x?")]
        app.error, app.gate, app.begun = None, anyio.Event(), anyio.Event()
        someone = Client()
        async with anyio.create_task_group() as group:
            group.start_soon(middleware, http_scope("/y"), someone.receive, someone.send)
            await app.begun.wait()
            group.cancel_scope.cancel()
        assert heard.take() == [Miss("GET http://test\n/y?")]
        app.gate.set()

    async def test_no_store_response_publishes_not_stored_and_then_bypassed(self, cache):
        heard = Heard(cache)
        app = App([(b"cache-control", b"no-store")])
        async with client(SWRMiddleware(app, cache)) as http:
            await http.get("/x")
            await until(lambda: len(heard) == 3)
            assert heard.names() == ["LoadBegun", "Loaded", "NotStored"]
            await http.get("/x")
            assert heard.names() == ["Bypassed"]

    async def test_post_publishes_invalidated_for_tags_of_its_url(self, cache):
        heard = Heard(cache, Invalidated)
        async with client(SWRMiddleware(App(), cache)) as http:
            await http.post("/x")
        assert {(event.key, event.elsewhere) for event in heard} == {(None, False)}
        assert all("/x" in event.tag for event in heard)


class TestSubscribers:
    async def test_fresh_hit_creates_no_event_without_subscribers_to_reads(self, cache):
        """Neither a hit of a loader nor one of a response; both take nanoseconds."""

        @cache.cached("k", fresh_for=60)
        async def load() -> int:
            return 1

        heard = Heard(cache, Miss, LoadBegun)
        async with client(SWRMiddleware(App([*MAX_AGE, (b"etag", b'"1"')]), cache)) as http:

            async def hits():
                await load()
                await http.get("/x")
                await http.get("/x", headers={"if-none-match": '"1"'})

            async def called():
                """The functions that have to do with events and are called by hits."""
                told_by = {Engine.publish_read.__code__, Publisher.publish.__code__, Hit.__init__.__code__}
                names = []

                def note(frame, what, _):
                    if what == "call" and frame.f_code in told_by:
                        names.append(frame.f_code.co_name)

                before = sys.getprofile()
                sys.setprofile(note)
                try:
                    await hits()
                finally:
                    sys.setprofile(before)
                return names

            # Loaded; looked at once more; ready.
            for _ in range(3):
                await hits()
            heard.clear()
            assert await called() == []
            reads = Heard(cache, Hit)
            one = ["publish_read", "publish", "__init__"]
            assert await called() == [*one, *one, "publish", *one, "publish"]
            assert len(reads) == 3
            reads.end()
            assert await called() == []
            assert heard == []

    async def test_subscriber_gets_the_chosen_events_and_none_after_its_end(self, cache):
        every, misses = Heard(cache), Heard(cache, Miss, Committed)
        await cache.get_or_load("a", Loader(), POLICY)
        assert (every.names(), misses.names()) == (["LoadBegun", "Committed", "Loaded", "Miss"], ["Committed", "Miss"])
        every.end()
        every.end()
        await cache.get_or_load("b", Loader(), POLICY)
        assert (every.names(), misses.names()) == ([], ["Committed", "Miss"])

    async def test_subscriber_that_raises_is_logged_once_and_does_not_stop_others(self, cache, caplog):
        told = []

        def broken(event):
            told.append(event)
            raise ValueError("broken listener")

        cache.subscribe(broken)
        heard = Heard(cache)
        for key in ("a", "b"):
            assert (await cache.get_or_load(key, Loader(), POLICY)).value == 1
        assert told == heard
        assert len(told) == 8
        (record,) = caplog.records
        assert "broken" in record.message
        assert "broken listener" in str(record.exc_info[1])

    async def test_subscriber_may_end_and_add_subscriptions_while_it_is_called(self, cache):
        first, late = [], []
        ends = []

        def once(event):
            first.append(event)
            for end in ends:
                end()
            cache.subscribe(late.append, Miss)

        ends += [cache.subscribe(once, Miss), cache.subscribe(lambda event: None, Miss)]
        for key in ("a", "b"):
            await cache.get_or_load(key, Loader(), POLICY)
        # From the next event on.
        assert (first, late) == ([Miss("a")], [Miss("b")])

    async def test_function_subscribed_twice_is_called_twice_until_one_subscription_ends(self, cache):
        told = []
        write = told.append
        ends = [cache.subscribe(write, Miss), cache.subscribe(write, Miss, Miss)]
        await cache.get_or_load("a", Loader(), POLICY)
        ends[0]()
        await cache.get_or_load("b", Loader(), POLICY)
        assert told == [Miss("a"), Miss("a"), Miss("b")]

    @pytest.mark.parametrize(
        ("subscriber", "chosen", "message"),
        [
            (None, (), "cannot be called"),
            (anyio.sleep, (), "is async"),
            (print, (Event,), "Hit, Stale, Miss"),
            (print, ("Hit",), "not a kind of event"),
        ],
    )
    async def test_invalid_subscriber_or_event_kind_is_rejected(self, cache, subscriber, chosen, message):
        with pytest.raises(ConfigurationError, match=message):
            cache.subscribe(subscriber, *chosen)


def test_event_kinds_are_complete_frozen_and_documented():
    # With slots, dataclass makes each class twice.
    # `Answered` is published for dashboards alone.
    assert {kind.__name__ for kind in KINDS} | {"Answered"} == {kind.__name__ for kind in Event.__subclasses__()}
    page = (Path(__file__).parent.parent / "docs" / "events.md").read_text()
    for kind in KINDS:
        fields = ", ".join(f"`{field.name}`" for field in dataclasses.fields(kind))
        assert page.count(f"\n| `{kind.__name__}` | {fields} | ") == 1
        assert all(field.name in kind.__doc__ for field in dataclasses.fields(kind)), kind
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(kind(*[None] * len(dataclasses.fields(kind))), dataclasses.fields(kind)[0].name, "other")


class TestAnswered:
    """The event of an answer agrees with the fields of the answer."""

    async def test_answered_event_names_state_layer_and_cache_status(self, cache, clock):
        age = {"cache-control": "max-age=60, stale-while-revalidate=600, stale-if-error=3600", "etag": '"1"'}
        app = Origin((200, age, "one"))
        heard = []
        cache.engine.events.subscribe(heard.append, [Answered])

        async def answered(**fields):
            fields = {name.replace("_", "-"): value for name, value in fields.items()}
            await http.get("/", headers=fields)
            event = heard.pop()
            return event.state, event.layer, event.cache_status.split("; ttl")[0]

        middleware = SWRMiddleware(app, cache, request_directives={"no-cache"})
        async with client(middleware) as http:
            assert await answered() == ("missing", "load", "fwd=uri-miss; stored")
            assert await answered() == ("fresh", None, "hit")
            assert await answered(cache_control="no-cache") == (
                "missing",
                "load",
                "fwd=request; fwd-status=304; stored",
            )
            clock.now += 1000
            assert await answered() == ("missing", "load", "fwd=stale; fwd-status=304; stored")
            clock.now += 30
            app.answers((500, {}, "two"))
            assert await answered(cache_control="no-cache") == ("fresh", None, "fwd=request; fwd-status=500")
            assert await answered(authorization="Basic x") == ("bypass", "app", 'fwd=bypass; detail="authorization"')

    async def test_key_that_looks_like_a_cache_status_does_not_change_the_event(self, cache):
        heard = []
        cache.engine.events.subscribe(heard.append, [Answered])
        async with client(SWRMiddleware(App(MAX_AGE), cache, show_key=True)) as http:
            for _ in range(2):
                await http.get("/fwd=bypass;collapsed;fwd=stale")
        assert [(event.state, event.layer) for event in heard] == [("missing", "load"), ("fresh", None)]
