"""Spans of OpenTelemetry, read back through its SDK: what was loaded, for whom, and what its loader did meanwhile."""

import asyncio
import contextlib
from typing import Annotated

import anyio
import pytest
from fastapi import Depends, FastAPI, Header
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from swr import Cache, ConfigurationError, LoadTimeout, State
from swr.middleware import SWRMiddleware
from swr.otel import trace_loads
from swr.policy import NO_LIMITS, Limits
from tests.fleet import POLICY, Job, settle, until
from tests.servers import ClusterOfSix, kinds
from tests.web import App, client

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(place):
    return place.rpartition(" ")[2]


class Traced:
    """A tracer, and the spans that have ended."""

    def __init__(self):
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("test")

    def named(self, name):
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


@pytest.fixture
def traced():
    return Traced()


@pytest.fixture
async def cache(place_url, clock, traced):
    async with Cache(place_url, namespace="shop", timeout=5, clock=clock) as cache:
        end = trace_loads(cache, traced.tracer)
        yield cache
        end()


def links_of(span):
    return [link.context.span_id for link in span.links]


@pytest.mark.parametrize("is_async", [True, False])
async def test_load_span_is_child_of_the_request_and_parent_of_query_and_commit(cache, traced, is_async):
    def query(group):
        with traced.tracer.start_as_current_span("query"):
            return group

    async def load(group: str) -> str:
        return query(group)

    def load_in_thread(group: str) -> str:
        return query(group)

    top = cache.cached("top:{group}", fresh_for=60)(load if is_async else load_in_thread)
    with traced.tracer.start_as_current_span("request") as request:
        await top("ATL")
        await top("ATL")
    (loaded,), (query_span,), (commit,) = (traced.named(name) for name in ("swr load", "query", "swr commit"))
    assert loaded.parent.span_id == request.get_span_context().span_id
    assert query_span.parent.span_id == commit.parent.span_id == loaded.context.span_id
    assert dict(loaded.attributes) == {"swr.cache": "shop", "swr.loader": "top:{group}"}


async def test_background_refresh_is_its_own_trace_with_a_link_to_the_request(cache, traced, clock):
    @cache.cached("top:{group}", fresh_for=60, stale_for=600)
    async def top(group: str) -> str:
        return group

    await top("ATL")
    clock.advance(70)
    with traced.tracer.start_as_current_span("request") as request:
        await top("ATL")
    await until(lambda: traced.named("swr refresh"))
    (refresh,) = traced.named("swr refresh")
    assert refresh.parent is None
    assert links_of(refresh) == [request.get_span_context().span_id]
    assert refresh.context.trace_id != request.get_span_context().trace_id
    assert [span.parent.span_id for span in traced.named("swr commit")][1:] == [refresh.context.span_id]
    # Without a request there is nothing to link to.
    clock.advance(70)
    await top("ATL")
    await until(lambda: len(traced.named("swr refresh")) == 2)
    assert traced.named("swr refresh")[1].links == ()


async def test_refresh_of_a_response_is_linked_to_the_request_and_marks_its_failure(cache, traced, clock):
    app = App([(b"cache-control", b"max-age=60, stale-while-revalidate=600")])
    async with client(SWRMiddleware(app, cache)) as http:
        with traced.tracer.start_as_current_span("request") as request:
            await http.get("/x")
            clock.advance(70)
            app.status = 500
            await http.get("/x")
        await until(lambda: traced.named("swr refresh"))
    (loaded,), (refresh,) = traced.named("swr load"), traced.named("swr refresh")
    assert loaded.parent.span_id == request.get_span_context().span_id
    assert links_of(refresh) == [request.get_span_context().span_id]
    assert (loaded.status.is_ok, refresh.status.is_ok) == (True, False)


async def test_refresh_without_the_failing_request_fields_is_linked_to_the_request(cache, traced, clock):
    async def app(scope, receive, send):
        status = 500 if (b"x-odd", b"1") in scope["headers"] else 200
        fields = [(b"cache-control", b"max-age=60, stale-if-error=600")] if status == 200 else []
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": b"x"})

    async with client(SWRMiddleware(app, cache)) as http:
        await http.get("/x")
        clock.advance(70)
        with traced.tracer.start_as_current_span("request") as request:
            assert (await http.get("/x", headers={"x-odd": "1"})).status_code == 200
        await until(lambda: traced.named("swr refresh") or len(traced.named("swr load")) > 2)
    (refresh,) = traced.named("swr refresh")
    assert (refresh.parent, links_of(refresh)) == (None, [request.get_span_context().span_id])
    assert refresh.status.is_ok


@pytest.mark.parametrize("fails", ["", "endpoint", "both", "dependency"])
async def test_refresh_behind_a_login_is_one_trace_that_includes_its_dependencies(cache, traced, clock, fails):
    runs, gate = [], anyio.Event()

    async def user(authorization: str = Header()) -> str:
        runs.append(authorization)
        if len(runs) == 3:
            await gate.wait()
        with traced.tracer.start_as_current_span("session"):
            if len(runs) == 3 and fails == "dependency":
                raise RuntimeError("no database")
            return await profile(authorization)

    @cache.cached("profile:{name}", fresh_for=60)
    async def profile(name: str) -> str:
        return name

    app = FastAPI()
    app.add_middleware(SWRMiddleware, cache=cache)

    @app.get("/top/{group}")
    @cache.response(fresh_for=60, stale_for=600, shared=True)
    async def top(group: str, name: Annotated[str, Depends(user)]) -> str:
        with traced.tracer.start_as_current_span("query"):
            if len(runs) == 3 and fails == "both":
                # Then there is nothing to fall back on, and the app fails, too.
                await cache.clear()
            if len(runs) == 3 and fails:
                raise RuntimeError("no database")
            return group

    async with client(app) as http:

        async def read() -> str:
            return (await http.get("/top/ATL", headers={"authorization": "Bearer 1"})).headers["swr-state"]

        assert await read() == "missing"
        clock.advance(70)
        # It is not part of what is looked at.
        await profile.refresh("Bearer 1")
        with traced.tracer.start_as_current_span("request") as request:
            assert await read() == "stale"
        traced.exporter.clear()
        gate.set()
        await until(lambda: traced.named("swr refresh"))
    (refresh,) = traced.named("swr refresh")
    assert (refresh.parent, links_of(refresh)) == (None, [request.get_span_context().span_id])
    assert refresh.status.is_ok == (not fails)
    assert [event.attributes["exception.type"] for event in refresh.events] == ["RuntimeError"] * bool(fails)
    within = [name for name in ("session", "query", "swr commit") for span in traced.named(name)]
    assert within == ["session", "query", "swr commit"][: {"": 3, "dependency": 1}.get(fails, 2)]
    assert all(span.parent.span_id == refresh.context.span_id for name in within for span in traced.named(name))
    of_route = {} if fails == "dependency" else {"swr.route": "/top/{group}"}
    assert dict(refresh.attributes) == {"swr.cache": "shop", **of_route}


async def test_span_of_a_raising_loader_records_the_exception(cache, traced):
    @cache.cached("top", fresh_for=60)
    async def top() -> str:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await top()
    (loaded,) = traced.named("swr load")
    assert not loaded.status.is_ok
    assert [event.attributes["exception.type"] for event in loaded.events] == ["ValueError"]


@pytest.mark.parametrize("is_batch", [True, False])
async def test_span_of_a_load_that_times_out_records_load_timeout(cache, traced, is_batch):
    @cache.cached_many("many:{n}", fresh_for=60, hard_timeout=0.01)
    async def many(numbers: list[int]) -> dict[int, int]:
        await anyio.sleep_forever()

    @cache.cached("one:{n}", fresh_for=60, hard_timeout=0.01)
    async def one(n: int) -> int:
        await anyio.sleep_forever()

    with pytest.raises(LoadTimeout):
        await (many([1]) if is_batch else one(1))
    await until(lambda: traced.named("swr load"))
    (loaded,) = traced.named("swr load")
    assert (loaded.status.is_ok, loaded.status.description) == (False, "LoadTimeout")
    assert [event.attributes["exception.type"] for event in loaded.events] == ["swr.errors.LoadTimeout"]


@pytest.mark.parametrize("is_stored", [True, False])
async def test_span_of_a_load_cancelled_by_close_is_an_error_unless_its_value_is_stored(traced, place_url, is_stored):
    begun = anyio.Event()

    class Long(Job):
        async def run(self, load):
            if is_stored:
                await load.store(1, POLICY)
            begun.set()
            await anyio.sleep_forever()

    async with Cache(place_url, drain_for=0) as cache:
        end = trace_loads(cache, traced.tracer)
        cache.engine.begin("k", Long(), None)
        await begun.wait()
    end()
    (loaded,) = traced.named("swr load")
    assert loaded.status.is_ok == is_stored
    assert len(loaded.events) == (not is_stored)


async def test_batch_call_has_one_load_span_and_one_commit_span(cache, traced):
    @cache.cached_many("top:{group}", fresh_for=60)
    async def top(groups: list[str]) -> dict[str, str]:
        with traced.tracer.start_as_current_span("query"):
            return {group: group for group in groups}

    await top([f"g{number}" for number in range(50)])
    (loaded,), (query,) = traced.named("swr load"), traced.named("query")
    assert query.parent.span_id == loaded.context.span_id
    assert len(traced.named("swr commit")) == 1


@pytest.mark.parametrize("is_batch", [True, False])
async def test_request_that_waits_for_the_load_of_another_request_links_to_it(cache, traced, is_batch):
    gate, begun = anyio.Event(), anyio.Event()

    async def load() -> None:
        begun.set()
        await gate.wait()

    @cache.cached("one:{name}", fresh_for=60)
    async def one(name: str) -> str:
        await load()
        return name

    @cache.cached_many("many:{name}", fresh_for=60)
    async def many(names: list[str]) -> dict[str, str]:
        await load()
        return {name: name for name in names}

    async def read(request: str, *names: str) -> None:
        with traced.tracer.start_as_current_span(request):
            await (many(list(names)) if is_batch else one(names[-1]))

    async with anyio.create_task_group() as group:
        group.start_soon(read, "first", "a", "b")
        await begun.wait()
        for _ in range(2):
            group.start_soon(read, "other", "b")
        group.start_soon(many, ["b"]) if is_batch else group.start_soon(one, "b")
        flight = cache.engine.flights.get("many:b" if is_batch else "one:b")
        await until(lambda: flight.waiters == 4)
        gate.set()
    (loaded,), (first,) = traced.named("swr load"), traced.named("first")
    assert (loaded.parent.span_id, first.links) == (first.context.span_id, ())
    assert [links_of(span) for span in traced.named("other")] == [[loaded.context.span_id]] * 2


@pytest.mark.parametrize("is_batch", [True, False])
async def test_request_never_links_to_its_own_load(cache, traced, is_batch):
    @cache.cached("one:{n}", fresh_for=60)
    async def one(n: int) -> int:
        return n

    @cache.cached_many("many:{n}", fresh_for=60)
    async def many(numbers: list[int]) -> dict[int, int]:
        return {n: n for n in numbers}

    async def read(n: int) -> None:
        await (many([n]) if is_batch else one(n))

    # From now on a miss probably begins its load before it knows that it is one.
    for n in range(12):
        await read(n)
    with traced.tracer.start_as_current_span("request") as request:
        await read(12)
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(read, 13)
    await until(lambda: len(traced.named("swr load")) == 14)
    loads = traced.named("swr load")[-2:]
    assert [load.parent.span_id for load in loads] == [request.get_span_context().span_id] * 2
    assert traced.named("request")[0].links == ()


async def test_stale_hit_after_many_misses_is_refreshed_in_its_own_trace(cache, traced, clock, place):
    # Without a local copy every read asks Redis. After some misses the lease request leaves with the read.
    @cache.cached("top:{n}", fresh_for=60, stale_for=600, local=place.startswith("memory"))
    async def top(n: int) -> int:
        with traced.tracer.start_as_current_span("query"):
            return n

    for n in range(20):
        await top(n)
    clock.advance(70)
    with traced.tracer.start_as_current_span("request") as request:
        assert (await top.outcome(7)).state is State.STALE
    await until(lambda: traced.named("swr refresh") or len(traced.named("swr load")) > 20)
    (refresh,) = traced.named("swr refresh")
    assert (refresh.parent, links_of(refresh)) == (None, [request.get_span_context().span_id])
    assert traced.named("query")[-1].parent.span_id == refresh.context.span_id
    assert len(traced.named("swr load")) == 20


@pytest.mark.parametrize("limits", [NO_LIMITS, Limits(max_stale=0)])
async def test_flight_begun_with_the_read_is_a_refresh_span_only_if_a_stale_hit_follows(two, traced, clock, limits):
    process, job = two[0], Job()
    cache = Cache()
    cache.engine = process.engine
    for number in range(12):
        await process.engine.fetch(f"other:{number}", Job())
    await two[1].engine.fetch("k", Job())
    clock.advance(70)
    end = trace_loads(cache, traced.tracer)
    # The flight has the lease before its reader has the answer.
    gate = anyio.Event()
    process.link.after["read"] = gate.wait

    async def read():
        with traced.tracer.start_as_current_span("request"):
            await process.engine.fetch("k", job, limits)

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await until(lambda: job.runs or ((flight := process.engine.flights.get("k")) and flight.load))
        await settle()
        gate.set()
    await until(lambda: traced.named("swr load") or traced.named("swr refresh"))
    end()
    (request,), spans = traced.named("request"), traced.named("swr load") + traced.named("swr refresh")
    is_served = limits is NO_LIMITS
    assert [span.name for span in spans] == ["swr refresh" if is_served else "swr load"]
    assert links_of(spans[0]) == ([request.context.span_id] if is_served else [])
    assert (spans[0].parent is None) == is_served
    assert request.links == ()


@pytest.mark.parametrize("fails", [False, True])
async def test_request_waiting_for_another_process_links_only_to_a_later_load_here(two, traced, fails):
    one, other = two
    cache = Cache()
    cache.engine = other.engine
    end = trace_loads(cache, traced.tracer)
    elsewhere, job = Job(lambda run: RuntimeError("no") if fails else 1), Job(lambda run: 2)
    elsewhere.gate = anyio.Event()

    async def load() -> None:
        with pytest.raises(RuntimeError, match="no") if fails else contextlib.nullcontext():
            await one.engine.fetch("k", elsewhere)

    async def read() -> None:
        with traced.tracer.start_as_current_span("request"):
            assert (await other.engine.fetch("k", job)).value == (2 if fails else 1)

    async with anyio.create_task_group() as group:
        group.start_soon(load)
        await elsewhere.begun.wait()
        for _ in range(3):
            group.start_soon(read)
        await settle()
        elsewhere.gate.set()
    end()
    loads = traced.named("swr load")
    assert len(loads) == fails
    ids = [load.context.span_id for load in loads]
    # The request that began the flight is the parent of its load.
    assert sorted(links_of(span) for span in traced.named("request")) == ([[], ids, ids] if fails else [[], [], []])


async def test_tracing_can_end_and_restart_and_a_second_tracer_is_refused(traced):
    async with Cache() as cache:
        end = trace_loads(cache, traced.tracer)
        with pytest.raises(ConfigurationError, match="is already traced"):
            trace_loads(cache)
        end()
        top = cache.cached("top", fresh_for=60)(lambda: 1)
        await top()
        assert traced.exporter.get_finished_spans() == ()
        again = trace_loads(cache, traced.tracer)
        end()
        await top.refresh()
        assert len(traced.named("swr load")) == 1
        again()
    with pytest.raises(ConfigurationError, match="give a swr"):
        trace_loads("redis://127.0.0.1")


def test_commits_over_a_cluster_are_children_of_their_load_or_refresh_span(traced):
    async def run(url):
        async with Cache(url, namespace="shop", timeout=60) as cache, Cache(url, namespace="shop", timeout=60) as other:
            trace_loads(cache, traced.tracer)

            def decorated(cache):
                @cache.cached("top:{n}", fresh_for=60, stale_for=60, tags=("t",))
                async def top(n: int) -> int:
                    with traced.tracer.start_as_current_span("query"):
                        return n

                return top

            top = decorated(cache)
            with traced.tracer.start_as_current_span("request"):
                await asyncio.gather(*map(top, range(9)))
            await other.mark_stale_tags("t")
            await until(lambda: cache.stats().invalidations["tag"])
            with traced.tracer.start_as_current_span("later request"):
                assert (await top.outcome(1)).state is State.STALE
            await until(lambda: len(traced.named("swr refresh")) == 1)

    with ClusterOfSix(kinds()[0]) as cluster:
        asyncio.run(run(cluster.url))
    (request,), (later,), (refresh,) = map(traced.named, ("request", "later request", "swr refresh"))
    loads = traced.named("swr load")
    assert {span.parent.span_id for span in loads} == {request.context.span_id}
    assert (refresh.parent, links_of(refresh)) == (None, [later.context.span_id])
    parents = sorted(span.context.span_id for span in (*loads, refresh))
    assert sorted(span.parent.span_id for span in traced.named("swr commit")) == parents
    assert sorted(span.parent.span_id for span in traced.named("query")) == parents
