"""Spans of OpenTelemetry, read back through its SDK: what was loaded, for whom, and what its loader did meanwhile."""

import contextlib

import anyio
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from swr import Cache, ConfigurationError
from swr.middleware import SWRMiddleware
from swr.otel import trace_loads
from tests.fleet import Job, settle, until
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
async def test_a_load_belongs_to_the_request_that_waits_for_it_and_what_the_loader_does_to_the_load(
    cache, traced, is_async
):
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


async def test_a_refresh_in_the_background_is_a_trace_of_its_own_with_a_link_to_the_request(cache, traced, clock):
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


async def test_a_refresh_of_a_response_is_linked_to_the_request_and_failures_are_marked(cache, traced, clock):
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


async def test_a_loader_that_raises_marks_its_span(cache, traced):
    @cache.cached("top", fresh_for=60)
    async def top() -> str:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await top()
    (loaded,) = traced.named("swr load")
    assert not loaded.status.is_ok
    assert [event.attributes["exception.type"] for event in loaded.events] == ["ValueError"]


async def test_a_batch_has_one_span_for_each_call_of_its_loader(cache, traced):
    @cache.cached_many("top:{group}", fresh_for=60)
    async def top(groups: list[str]) -> dict[str, str]:
        with traced.tracer.start_as_current_span("query"):
            return {group: group for group in groups}

    await top([f"g{number}" for number in range(50)])
    (loaded,), (query,) = traced.named("swr load"), traced.named("query")
    assert query.parent.span_id == loaded.context.span_id
    assert len(traced.named("swr commit")) == 1


@pytest.mark.parametrize("is_batch", [True, False])
async def test_who_waits_for_the_load_of_another_request_has_a_link_to_it(cache, traced, is_batch):
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
async def test_a_request_has_no_link_to_a_load_of_its_own_however_often_it_waits_for_it(cache, traced, is_batch):
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


@pytest.mark.parametrize("fails", [False, True])
async def test_who_waits_for_another_process_has_a_link_only_if_its_own_then_loads(two, traced, fails):
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


async def test_tracing_ends_and_begins_again_and_one_tracer_at_a_time_is_enough(traced):
    async with Cache() as cache:
        end = trace_loads(cache, traced.tracer)
        with pytest.raises(ConfigurationError, match="traced already"):
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
    with pytest.raises(ConfigurationError, match="is not a swr"):
        trace_loads("redis://127.0.0.1")
