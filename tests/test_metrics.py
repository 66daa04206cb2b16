"""What the exporters say, read back through each system's own means: the text of Prometheus, the SDK of OpenTelemetry."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from fastapi import FastAPI
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Gauge, Histogram, InMemoryMetricReader, Sum
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from swr import Cache, ConfigurationError, Policy, otel, prometheus
from swr.metrics.base import ADDED, COUNTED, LOADS, METRICS, REFUSALS
from swr.metrics.prometheus import name_of
from swr.middleware import SWRMiddleware
from swr.testing import FakeClock
from tests.fleet import Loader, until
from tests.web import client

pytestmark = pytest.mark.anyio

POLICY = Policy(60, 600, 3600)
SECRET = "user:4711"


@pytest.fixture
def anyio_backend(place):
    return place.rpartition(" ")[2]


@pytest.fixture
async def cache(place_url, clock):
    async with Cache(place_url, namespace="shop", timeout=5, clock=clock) as cache:
        yield cache


async def live(cache, clock):
    """Have something happen of each kind, the lease's and the store's apart."""
    load = Loader()
    await cache.get_or_load(SECRET, load, POLICY)
    for _ in range(3):
        await cache.get_or_load(SECRET, load, POLICY)
    clock.advance(70)
    await cache.get_or_load(SECRET, load, POLICY)
    await until(lambda: load.runs == 2 and not cache.engine.is_loading(SECRET))
    clock.advance(700)
    load.error = ValueError("no")
    await cache.get_or_load(SECRET, load, POLICY)
    load.error = None
    load.meanwhile = lambda: cache.invalidate("other")
    await cache.get_or_load("other", load, POLICY)
    await cache.invalidate_tag("t")
    await cache.clear()
    await cache.get_or_load(SECRET, load, POLICY)


# What has neither a key template nor a route.
NOWHERE = {"loader": "", "route": ""}
FRESH = {**NOWHERE, "state": "fresh", "layer": "l1"}
# What that comes to, by the names of `swr.metrics`: labels and value; of a histogram, number and sum where it is known.
LIVED = [
    ("swr.reads", {**NOWHERE, "state": "fresh", "layer": "l1"}, 3),
    ("swr.reads", {**NOWHERE, "state": "stale", "layer": "l1"}, 1),
    ("swr.reads", {**NOWHERE, "state": "stale", "layer": "load"}, 1),
    ("swr.reads", {**NOWHERE, "state": "missing", "layer": "load"}, 3),
    ("swr.staleness", NOWHERE, (2, 10.0 + 640.0)),
    # SECRET three times, "other" twice, for the first commit was rejected.
    ("swr.load.duration", {**NOWHERE, "result": "loaded"}, (5, None)),
    ("swr.load.duration", {**NOWHERE, "result": "failed"}, (1, None)),
    ("swr.loads.in_flight", NOWHERE, 0),
    ("swr.backoffs", NOWHERE, 0),
    ("swr.l1.evictions", {}, 0),
    ("swr.lease.wait.duration", {}, (0, None)),
    ("swr.lease.refusals", {"reason": "held"}, 0),
    ("swr.lease.refusals", {"reason": "backoff"}, 0),
    ("swr.lease.losses", {}, 0),
    ("swr.commits", {}, 4),
    ("swr.commits.rejected", {}, 1),
    ("swr.invalidations", {"scope": "key", "origin": "here"}, 1),
    ("swr.invalidations", {"scope": "tag", "origin": "here"}, 1),
    ("swr.invalidations", {"scope": "all", "origin": "here"}, 1),
    ("swr.invalidations", {"scope": "key", "origin": "elsewhere"}, 0),
    ("swr.store.outages", {}, 0),
    ("swr.store.up", {}, 1),
]


def is_counter(metric):
    return metric in COUNTED or (metric in ADDED and not metric.buckets)


class Scraped:
    """A registry as a server of Prometheus sees it."""

    def __init__(self):
        self.registry = CollectorRegistry()

    def export(self, cache):
        return prometheus.export(cache, self.registry)

    def samples(self):
        text = generate_latest(self.registry).decode()
        assert SECRET not in text
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name, labels=None, namespace="shop"):
        metric = next(metric for metric in METRICS if metric.name == name)
        called = name_of(metric)
        where = frozenset({"cache": namespace, **(labels or {})}.items())
        samples = self.samples()
        if metric.buckets:
            top = frozenset({*where, ("le", "+Inf")})
            number = samples.get((f"{called}_count", where))
            assert samples.get((f"{called}_bucket", top)) == number
            return number, samples.get((f"{called}_sum", where))
        return samples.get((f"{called}_total" if is_counter(metric) else called, where))


class Collected:
    """A meter as an exporter of OpenTelemetry's SDK sees it."""

    def __init__(self):
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])
        self.meter = self.provider.get_meter("test")

    def export(self, cache):
        return otel.export(cache, self.meter)

    def metrics(self):
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        assert SECRET not in data.to_json()
        return {
            metric.name: metric for r in data.resource_metrics for scope in r.scope_metrics for metric in scope.metrics
        }

    def value(self, name, labels=None, namespace="shop"):
        metric = self.metrics().get(name)
        where = {f"swr.{label}": value for label, value in {"cache": namespace, **(labels or {})}.items()}
        for point in metric.data.data_points if metric else ():
            if dict(point.attributes) == where:
                return (point.count, point.sum) if isinstance(metric.data, Histogram) else point.value
        return None


@pytest.fixture(params=[Scraped, Collected])
def system(request):
    return request.param()


class TestBothExporters:
    async def test_reads_loads_commits_and_invalidations_are_counted(self, system, cache, clock):
        system.export(cache)
        await live(cache, clock)
        for name, labels, expected in LIVED:
            value = system.value(name, labels)
            if isinstance(system, Collected) and value is None:
                # Of a histogram OpenTelemetry has no series that nothing has been added to.
                assert expected == (0, None), name
            elif isinstance(expected, tuple):
                assert value[0] == expected[0], name
                assert value[1] >= 0
                assert expected[1] is None or value[1] == pytest.approx(expected[1]), name
            else:
                assert value == expected, (name, labels)
        assert system.value("swr.l1.entries") == len(cache.local.slots) > 0
        size = sum(slot.weight for slot in cache.local.slots.values())
        assert system.value("swr.l1.size") == size > 0

    async def test_lease_losses_refusals_and_waits_are_counted(self, system, place_url):
        """Of two caches where one server is there for both; else of one, that loses its lease to an invalidation."""
        async with Cache(place_url, namespace="one", timeout=5, lease_for=0.03) as one:
            system.export(one)
            load = Loader()
            load.gate = anyio.Event()
            async with anyio.create_task_group() as group:
                group.start_soon(one.get_or_load, "k", load, POLICY)
                await load.begun.wait()
                await one.invalidate("k")
                await until(lambda: system.value("swr.lease.losses", namespace="one") == 1)
                load.gate.set()
        if place_url is None:
            return
        shared = {"namespace": "shop", "timeout": 5}
        clock, load = FakeClock(), Loader()
        load.gate = anyio.Event()
        async with Cache(place_url, clock=clock, **shared) as winner, Cache(place_url, clock=clock, **shared) as loser:
            system.export(loser)
            async with anyio.create_task_group() as group:
                group.start_soon(winner.get_or_load, "k", load, POLICY)
                await load.begun.wait()
                group.start_soon(loser.get_or_load, "k", load, POLICY)
                await until(lambda: system.value("swr.lease.refusals", {"reason": "held"}) == 1)
                load.gate.set()
            assert system.value("swr.lease.wait.duration")[0] == 1
            clock.advance(61)
            # A pause that lasts longer than the test.
            winner.engine.runtime.uniform = lambda low, high: 30.0
            load.error = ValueError("no")
            await winner.get_or_load("k", load, POLICY)
            await until(lambda: not winner.engine.is_loading("k"))
            await loser.get_or_load("k", load, POLICY)
            await until(lambda: system.value("swr.lease.refusals", {"reason": "backoff"}) == 1)
            for scope, invalidate in (
                ("key", winner.invalidate("k")),
                ("tag", winner.invalidate_tag("t")),
                ("all", winner.clear()),
            ):
                await invalidate
                labels = {"scope": scope, "origin": "elsewhere"}
                await until(lambda labels=labels: system.value("swr.invalidations", labels) == 1)

    @pytest.mark.uncounted
    async def test_caches_are_counted_by_namespace_and_summed_within_one(self, system):
        caches = [Cache(namespace="a"), Cache(namespace="b"), Cache(namespace="b")]
        ends = [system.export(cache) for cache in caches]
        for cache in caches:
            await cache.get_or_load("k", Loader(), POLICY)
        missing = {**NOWHERE, "state": "missing", "layer": "load"}
        assert [system.value("swr.reads", missing, name) for name in "ab"] == [1, 2]
        assert [system.value("swr.l1.entries", {}, name) for name in "ab"] == [1, 2]
        ends[1]()
        for cache in caches:
            await cache.get_or_load("k", Loader(), POLICY)
        assert [system.value("swr.reads", FRESH, name) for name in "ab"] == [1, 1]
        # What was counted stays counted; what it held is no longer known.
        assert system.value("swr.reads", missing, "b") == 2
        assert system.value("swr.l1.entries", {}, "b") == 1
        for cache in caches:
            await cache.aclose()

    async def test_export_can_end_and_begin_again_but_not_run_twice(self, system):
        async with Cache(namespace="shop") as cache:
            end = system.export(cache)
            with pytest.raises(ConfigurationError, match="the cache 'shop' is already exported here"):
                system.export(cache)
            await cache.get_or_load("k", Loader(), POLICY)
            for _ in range(2):
                end()
            assert not cache.engine.events.reads
            assert system.value("swr.store.up") is None
            await cache.get_or_load("k", Loader(), POLICY)
            end = system.export(cache)
            await cache.get_or_load("k", Loader(), POLICY)
            assert system.value("swr.reads", FRESH) == 1
            assert system.value("swr.store.up") == 1
            end()

    async def test_export_of_anything_but_a_cache_is_refused(self, system):
        with pytest.raises(ConfigurationError, match="give a swr"):
            system.export("redis://127.0.0.1")


class TestRedisServer:
    @pytest.fixture
    def anyio_backend(self):
        return "asyncio"

    @pytest.mark.uncounted
    async def test_store_outage_is_counted_once_and_store_is_up_again(self, system, own_server):
        async with Cache(own_server.url, namespace="shop", timeout=5) as cache:
            system.export(cache)
            assert system.value("swr.store.up") == 1
            own_server.kill()
            await until(lambda: system.value("swr.store.up") == 0)
            assert system.value("swr.store.outages") == 1
            own_server.start()
            await until(lambda: system.value("swr.store.up") == 1)
            assert system.value("swr.store.outages") == 1


class TestPrometheus:
    @pytest.fixture
    def anyio_backend(self):
        return "asyncio"

    async def test_series_without_loader_or_route_exist_from_the_start(self):
        system = Scraped()
        async with Cache(namespace="shop") as cache:
            system.export(cache)
            for name, labels, _ in LIVED:
                if "loader" in labels:
                    # Loaders and routes come with what happens to them.
                    continue
                expected = 1 if name == "swr.store.up" else 0
                assert system.value(name, labels) in (expected, (expected, 0)), (name, labels)

    async def test_scrape_reads_stats_of_each_cache_once(self):
        """They take milliseconds if thousands of keys back off, and a scrape holds up the event loop."""
        registry, asked, caches = CollectorRegistry(), [], [Cache(namespace="a"), Cache(namespace="b")]
        for cache in caches:
            prometheus.export(cache, registry)
            cache.stats = lambda cache=cache, stats=cache.stats: asked.append(cache) or stats()
        generate_latest(registry)
        assert asked == caches

    async def test_metrics_leave_the_registry_when_the_last_export_ends(self):
        system = Scraped()
        caches = [Cache(namespace="a"), Cache(namespace="b")]
        first, second = (system.export(cache) for cache in caches)
        first()
        assert system.value("swr.store.up", namespace="b") == 1
        second()
        assert generate_latest(system.registry) == b""
        # An end that comes once more ends nothing of what began since.
        again = system.export(caches[0])
        second()
        assert system.value("swr.store.up", namespace="a") == 1
        again()

    async def test_multiprocess_mode_adds_every_read_at_once(self, monkeypatch, tmp_path):
        """There another process collects, which can ask this one for nothing."""
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
        system, clock = Scraped(), FakeClock()
        app = FastAPI()
        app.get("/plain")(lambda: "x")
        async with Cache(namespace="shop", clock=clock) as cache:
            end = system.export(cache)
            await live(cache, clock)
            async with client(SWRMiddleware(app, cache)) as http:
                for _ in range(2):
                    await http.get("/plain")
                for name in ("x-one", "x-two"):
                    await http.get("/plain", headers={"cookie": "a=b", name: "1"})
            for name, labels, expected in LIVED:
                if name in ("swr.reads", "swr.staleness"):
                    value = system.value(name, labels)
                    assert value == expected or value[0] == expected[0], (name, labels)
            assert system.value("swr.not_stored", {"reason": "no freshness"}) == 1
            assert system.value("swr.bypasses", {"reason": "no freshness"}) == 1
            assert system.value("swr.bypasses", {"reason": "cookie"}) == 2
            end()

    def test_multiprocess_mode_sums_reads_of_all_processes(self, tmp_path):
        code = """
import asyncio
from prometheus_client import CollectorRegistry, generate_latest, multiprocess
from swr import Cache, Policy, prometheus

async def main():
    async with Cache(namespace="shop") as cache:
        prometheus.export(cache)
        for _ in range(3):
            await cache.get_or_load("k", lambda: 1, Policy(60))

asyncio.run(main())
registry = CollectorRegistry()
multiprocess.MultiProcessCollector(registry)
print([line for line in generate_latest(registry).decode().splitlines() if 'fresh' in line][-1])
"""
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
        said = [
            subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True)
            for _ in range(2)
        ]
        assert [float(one.stdout.split()[-1]) for one in said] == [2, 4]

    async def test_prometheus_export_uses_the_default_registry_without_an_argument(self):
        async with Cache(namespace="mine") as cache:
            end = prometheus.export(cache)
            assert REGISTRY.get_sample_value("swr_store_up", {"cache": "mine"}) == 1
            end()
            assert REGISTRY.get_sample_value("swr_store_up", {"cache": "mine"}) is None


class TestOpenTelemetry:
    @pytest.fixture
    def anyio_backend(self):
        return "asyncio"

    async def test_instruments_have_kind_unit_and_buckets_of_each_metric(self, recwarn, caplog):
        system, clock = Collected(), FakeClock()
        async with Cache(namespace="shop", clock=clock) as cache, Cache(namespace="other") as other:
            for each in (cache, other):
                system.export(each)
            await live(cache, clock)
            metrics = system.metrics()
        for metric in METRICS:
            found = metrics.get(metric.name)
            if found is None:
                assert metric.name in ("swr.lease.wait.duration", "swr.store.command.duration") or not any(
                    metric.labels.values()
                )
                continue
            assert (found.unit, found.description) == (metric.unit, metric.about)
            if metric.buckets:
                assert isinstance(found.data, Histogram)
                assert tuple(found.data.data_points[0].explicit_bounds) == metric.buckets
            elif metric.name == "swr.store.up":
                assert isinstance(found.data, Gauge)
            else:
                assert isinstance(found.data, Sum)
                assert found.data.is_monotonic is is_counter(metric)
        # The SDK complains of an instrument that is made twice.
        assert [record.message for record in caplog.records if record.name.startswith("opentelemetry")] == []

    def test_otel_export_uses_global_provider_even_if_it_is_set_later(self):
        code = """
import asyncio
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from swr import Cache, Policy
from swr.otel import export

async def main():
    async with Cache(namespace="mine") as cache:
        export(cache)
        reader = InMemoryMetricReader()
        metrics.set_meter_provider(MeterProvider([reader]))
        await cache.get_or_load("k", lambda: 1, Policy(60))
        (scope,) = reader.get_metrics_data().resource_metrics[0].scope_metrics
        print(scope.scope.name, *sorted(metric.name for metric in scope.metrics))

asyncio.run(main())
"""
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
        assert output.split() == [
            "swr",
            *sorted(
                metric.name
                for metric in METRICS
                if (not metric.buckets and "reason" not in metric.labels) or metric in (LOADS, REFUSALS)
            ),
        ]


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("swr.prometheus", "prometheus_client", "prometheus-client: pip install 'swr[prometheus]'"),
        ("swr.otel", "opentelemetry.metrics", "opentelemetry-api: pip install 'swr[otel]'"),
        ("swr.metrics.tracing", "opentelemetry", "opentelemetry-api: pip install 'swr[otel]'"),
    ],
)
def test_missing_package_is_named_with_how_to_install_it(monkeypatch, name, package, extra):
    for module in (name, name.replace("swr.", "swr.metrics.")):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=re.escape(extra)):
        importlib.import_module(name)


def row(metric):
    """A metric's row in the documentation."""
    called = name_of(metric) + ("_total" if is_counter(metric) else "")
    kind = "counter" if is_counter(metric) else "histogram" if metric.buckets else "gauge"
    labels = "; ".join(f"`{label}`: {', '.join(values)}".removesuffix(": ") for label, values in metric.labels.items())
    unit = {"s": ", seconds", "By": ", bytes"}.get(metric.unit, "")
    cells = [f"`{called}`", f"`{metric.name}`", kind + unit, labels]
    return "|".join(["", *(f" {cell} " if cell else " " for cell in [*cells, metric.about]), ""])


def test_documentation_lists_every_metric_with_its_labels():
    page = (Path(__file__).parent.parent / "docs" / "events.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `swr_")]
    assert rows == [row(metric) for metric in METRICS]
