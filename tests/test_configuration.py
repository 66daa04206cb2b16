"""A cache that is made at import and configured when the app is made; and what the environment says of it."""

import asyncio
import inspect
import logging
import time

import anyio
import pytest
from fastapi import FastAPI
from redis.asyncio import Redis

from swr import Cache, ConfigurationError, Policy, Refresher, State
from swr.events import Hit, Miss
from swr.lifecycle.options import Options
from swr.middleware import Rule, SWRMiddleware
from swr.settings import ENABLED, NAMESPACE, URL, read_environment
from swr.testing import FakeClock
from tests.fleet import until
from tests.servers import Server
from tests.web import client

pytestmark = pytest.mark.anyio

POLICY = Policy(60, 600)


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch):
    for name in (URL, NAMESPACE, ENABLED):
        monkeypatch.delenv(name, raising=False)


class Module:
    """What a module of an app makes at import."""

    def __init__(self, **options) -> None:
        self.loads: list[str] = []
        self.cache = cache = Cache(**options)

        @cache.cached("ranking:{group}", fresh_for=60, stale_for=600)
        async def top(group: str) -> str:
            self.loads.append(group)
            return group

        @cache.cached("early:{group}", fresh_for=60, early=0.1)
        def plain(group: str) -> str:
            self.loads.append(group)
            return group

        @cache.cached_many("many:{group}", fresh_for=60)
        async def many(groups: list[str]) -> dict[str, str]:
            self.loads += groups
            return {group: group for group in groups}

        self.top, self.plain, self.many = top, plain, many

        app = FastAPI()

        @app.get("/rankings/{group}")
        async def ranking(group: str) -> str:
            self.loads.append(group)
            return group

        self.app = SWRMiddleware(app, cache=cache, rules=[Rule("/rankings/{group}", fresh_for=60)])

    async def use(self) -> None:
        """Have each of its parts load once, and answer once from the cache."""
        for _ in range(2):
            assert await self.top("ATL") == await self.plain("ATL") == "ATL"
            assert await self.many(["ATL"]) == {"ATL": "ATL"}
            async with client(self.app) as http:
                assert (await http.get("/rankings/ATL")).text == '"ATL"'
        assert len(self.loads) == 4


async def keys_of(server: Server) -> set[str]:
    async with Redis.from_url(server.url) as redis:
        return {key.decode().partition(":")[0].partition("{")[0] for key in await redis.keys()}


class TestConfigure:
    async def test_objects_decorated_before_configure_store_in_configured_redis(self, any_server: Server):
        any_server.command("FLUSHALL")
        module = Module()
        module.cache.configure(any_server.url, namespace="shop")
        await module.use()
        await module.cache.aclose()
        assert await keys_of(any_server) == {"shop"}

        other = Module(url=any_server.url, namespace="shop")
        for loader in (other.top, other.plain):
            assert await loader("ATL") == "ATL"
        assert await other.many(["ATL"]) == {"ATL": "ATL"}
        async with client(other.app) as http:
            assert (await http.get("/rankings/ATL")).headers["swr-state"] == "fresh"
        assert not other.loads
        await other.cache.aclose()

    async def test_objects_decorated_before_configure_receive_invalidations_of_others(self, any_server: Server):
        any_server.command("FLUSHALL")
        module = Module()
        module.cache.configure(any_server.url)
        async with module.cache, Cache(any_server.url) as other:
            await module.use()
            before = module.cache.local.trust
            await other.clear()
            await until(lambda: module.cache.local.trust is not before)
            await module.top("ATL")
            assert len(module.loads) == 5

    async def test_configure_applies_options_like_the_constructor(self):
        clock = FakeClock()
        module = Module()
        module.cache.configure(
            namespace="shop", l1_max_bytes=2**16, lease_for="7s", drain_for=3, secret="s" * 32, clock=clock
        )
        made = Cache(namespace="shop", l1_max_bytes=2**16, lease_for="7s", drain_for=3, secret="s" * 32, clock=clock)
        engine = module.cache.engine
        assert module.cache.namespace == "shop"
        assert (engine.runtime.tasks.drain_for, engine.runtime.lease_for) == (3, 7)
        assert module.cache.local.slots.maxsize == 2**16
        assert module.cache.digest(b"x") == made.digest(b"x") != Cache().digest(b"x")
        await module.use()
        clock.advance(61)
        assert (await module.top.outcome("ATL")).state is State.STALE
        assert await module.plain("ATL") == "ATL"
        async with client(module.app) as http:
            assert (await http.get("/rankings/ATL")).headers["swr-state"] == "missing"

    async def test_cache_configured_without_l1_holds_no_entry_in_memory(self, any_server: Server):
        any_server.command("FLUSHALL")
        module = Module()
        module.cache.configure(any_server.url, l1_max_bytes=0)
        async with module.cache:
            await module.use()
            assert not module.cache.local.slots

    async def test_configure_keeps_options_that_are_not_given(self, any_server: Server):
        cache = Cache("redis://127.0.0.1:1/0", namespace="shop")
        cache.configure(lease_for=5)
        assert cache.is_shared
        assert cache.namespace == "shop"
        cache.configure(any_server.url)
        assert cache.namespace == "shop"
        assert cache.engine.runtime.lease_for == 5
        client = Redis.from_url(any_server.url)
        cache.configure(redis=client)
        assert (await cache.get_or_load("k", lambda: 1, POLICY)).value == 1
        await cache.aclose()
        await client.aclose()
        cache.configure(None, redis=None)
        assert not cache.is_shared
        cache.configure(any_server.url)
        assert cache.is_shared

    async def test_rejected_option_leaves_configuration_unchanged(self):
        cache = Cache(namespace="shop", l1_max_bytes=2**16)
        store = cache.engine.store
        for options, message in (
            ({"url": "http://h"}, "does not begin with redis://"),
            ({"url": "redis://h", "redis": object()}, "both a URL"),
            ({"namespace": "a b"}, "namespace='a b'"),
            ({"lease_for": 0}, "lease_for=0"),
            ({"clock": 5}, "clock=5: give a function"),
            ({"enabled": "0"}, "enabled='0': give True or False"),
        ):
            with pytest.raises(ConfigurationError, match=message):
                cache.configure(**{"l1_max_bytes": 0, **options})
            with pytest.raises(ConfigurationError, match=message):
                Cache(**options)
        with pytest.raises(TypeError, match="namspace"):
            cache.configure(namspace="x")
        assert cache.engine.store is store
        assert cache.namespace == "shop"
        assert cache.local.slots.maxsize == 2**16

    async def test_configure_rejects_open_cache_and_accepts_it_after_close(self):
        module = Module()
        await module.top("ATL")
        with pytest.raises(ConfigurationError, match=r"open already: configure it before its first use, or close it"):
            module.cache.configure(namespace="shop")
        assert module.cache.namespace == "swr"
        assert await module.top("ATL") == "ATL"
        assert len(module.loads) == 1
        await module.cache.aclose()
        module.cache.configure(namespace="shop")
        assert await module.top("ATL") == "ATL"
        assert len(module.loads) == 2

    def test_configure_rejects_cache_open_on_trio_until_that_run_ends(self):
        module = Module()

        async def main() -> None:
            await module.top("ATL")
            with pytest.raises(ConfigurationError, match="open already"):
                module.cache.configure(namespace="shop")

        anyio.run(main, backend="trio")
        module.cache.configure(namespace="shop")
        assert module.cache.namespace == "shop"

    def test_cache_left_open_by_ended_loop_is_configured_again(self, any_server: Server):
        """The loop of the previous test ended without a lifespan, and no code closed the cache."""
        any_server.command("FLUSHALL")
        module = Module()
        for name, url in (("one", any_server.url), ("two", None), ("three", any_server.url)):
            module.cache.configure(url, namespace=name)
            module.loads.clear()
            asyncio.run(module.use())

    def test_configure_rejects_cache_whose_loop_pauses(self):
        module = Module()
        loop = asyncio.new_event_loop()
        loop.run_until_complete(module.top("ATL"))
        with pytest.raises(ConfigurationError, match="open already"):
            module.cache.configure(namespace="shop")
        loop.run_until_complete(module.cache.aclose())
        loop.close()
        module.cache.configure(namespace="shop")

    async def test_subscribers_and_taken_templates_survive_configure(self, any_server: Server):
        any_server.command("FLUSHALL")
        module, heard = Module(), []
        module.cache.subscribe(heard.append, Hit, Miss)
        module.cache.configure(any_server.url)
        with pytest.raises(ConfigurationError, match="is that of"):
            module.cache.cached("ranking:{name}", fresh_for=1)(lambda name: name)
        await module.top("ATL")
        await module.top("ATL")
        assert [type(event) for event in heard] == [Miss, Hit]
        await module.cache.aclose()

    async def test_refresher_made_before_configure_refreshes_in_configured_redis(self, any_server: Server):
        any_server.command("FLUSHALL")
        module = Module()
        refreshers = [
            Refresher(module.top, ["ATL"], 1, "queue"),
            Refresher(module.many, ["ORD"], 1, "locks"),
        ]
        module.cache.configure(any_server.url, namespace="shop")
        async with module.cache, refreshers[0], refreshers[1]:
            await refreshers[0].mark_dirty("ATL")
            await until(lambda: {"ATL", "ORD"} <= set(module.loads))
            assert (await refreshers[0].status()).dead == 0
        assert await keys_of(any_server) == {"shop"}

    async def test_queue_without_redis_fails_when_used_and_works_after_configure(self, any_server: Server):
        any_server.command("FLUSHALL")
        module = Module()
        refresher = Refresher(module.top, ["ATL"], 60, "queue")
        for use in (refresher.__aenter__, refresher.mark_dirty, refresher.status):
            with pytest.raises(ConfigurationError, match="give the cache a URL"):
                await use()
        await module.cache.aclose()
        module.cache.configure(any_server.url)
        assert (await refresher.status()).queued == 0
        await module.cache.aclose()

    def test_configure_has_the_same_parameters_as_the_constructor(self):
        assert [*Options.__annotations__] == [*inspect.signature(Cache).parameters][1:]


class TestEnvironment:
    def test_from_env_uses_arguments_without_variables(self):
        cache = Cache.from_env("redis://h", namespace="shop")
        assert cache.is_shared
        assert cache.namespace == "shop"
        assert not Cache.from_env().is_shared

    async def test_variables_override_arguments_of_from_env(self, any_server: Server, monkeypatch):
        any_server.command("FLUSHALL")
        monkeypatch.setenv(URL, f" {any_server.url}\n")
        monkeypatch.setenv(NAMESPACE, "shop")
        monkeypatch.setenv(ENABLED, "on")
        cache = Cache.from_env(redis=Redis(port=1), namespace="other", lease_for=5)
        assert cache.engine.runtime.lease_for == 5
        async with cache:
            await cache.get_or_load("k", lambda: 1, POLICY)
        assert await keys_of(any_server) == {"shop"}

    def test_empty_variable_counts_as_unset(self, monkeypatch):
        for name in (URL, NAMESPACE, ENABLED):
            monkeypatch.setenv(name, " ")
        found = read_environment()
        assert (found.url, found.namespace, found.enabled) == (None, None, None)

    def test_constructor_ignores_environment_variables(self, monkeypatch):
        monkeypatch.setenv(URL, "redis://h")
        monkeypatch.setenv(NAMESPACE, "shop")
        assert not Cache().is_shared
        assert Cache().namespace == "swr"

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            (URL, "h:6379", "SWR_REDIS_URL: its value does not begin with redis://"),
            (URL, "me:hunter2@h:6379", "SWR_REDIS_URL: its value does not begin with redis://"),
            (URL, "hunter2", "SWR_REDIS_URL: its value does not begin with redis:"),
            (URL, "http://me:hunter2@h", "SWR_REDIS_URL: 'http://…@h' does not begin with redis://"),
            (URL, "redis://me:hunter2@h/hunter", "SWR_REDIS_URL: 'redis://…@h/hunter': .*not the number of a database"),
            (URL, "redis://me:hunter2/x@h", "SWR_REDIS_URL: 'redis://…@h'"),
            (URL, "redis://me:hunter2\u2100@h", "SWR_REDIS_URL: 'redis://…@h': .*percent-encoded"),
            (URL, "redis+sentinel://me:hunter2@h", "SWR_REDIS_URL: .*the master's name"),
            (NAMESPACE, "a b", "SWR_NAMESPACE='a b' cannot begin keys"),
            (NAMESPACE, "ü", "SWR_NAMESPACE='ü' cannot begin"),
            (ENABLED, "maybe", "SWR_ENABLED='maybe': give one of 1, true, yes, on, 0, false, no, off"),
            (ENABLED, "2", "SWR_ENABLED='2': give one of"),
        ],
    )
    def test_error_about_invalid_variable_names_it_without_its_password(self, name, value, message, monkeypatch):
        monkeypatch.setenv(name, value)
        with pytest.raises(ConfigurationError, match=message) as caught:
            Cache.from_env()
        assert "hunter2" not in str(caught.value)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None

    async def test_password_appears_in_no_repr_log_or_error(self, any_server: Server, monkeypatch, caplog):
        caplog.set_level(logging.DEBUG)
        monkeypatch.setenv(URL, f"redis://me:hunter2@127.0.0.1:{any_server.port}/0?client_name=hunter2")
        cache = Cache.from_env(secret="hunter2")
        texts = [repr(cache), str(cache), repr(read_environment()), repr(cache.engine), repr(cache.engine.store)]
        async with cache:
            assert (await cache.get_or_load("k", lambda: 1, POLICY)).value == 1
        with pytest.raises(ConfigurationError) as caught:
            cache.configure(f"redis://me:hunter2@h/{'x'}")
        assert "hunter2" not in "".join([*texts, caplog.text, str(caught.value)])
        assert "127.0.0.1" in texts[0]

    def test_repr_of_cache_shows_url_and_namespace_without_password(self):
        assert repr(Cache()) == "Cache(namespace='swr')"
        assert repr(Cache("redis://me:pw@h/0", namespace="shop")) == "Cache('redis://…@h/0', namespace='shop')"
        assert repr(Cache(redis=Redis(password="pw"))) == "Cache(redis=…, namespace='swr')"

    def test_repr_of_environment_hides_the_password(self):
        shown = repr(read_environment({URL: "redis://me:pw@h", NAMESPACE: "shop", ENABLED: "no"}))
        assert shown == "Environment(url='redis://…@h', namespace='shop', enabled=False)"
        assert repr(read_environment({})) == "Environment(url=None, namespace=None, enabled=None)"


class TestClock:
    async def test_cache_without_clock_follows_a_replaced_time_function(self, monkeypatch):
        """freezegun replaces the function in the module in the same way."""
        module = Module()
        await module.use()
        later = time.time() + 61
        monkeypatch.setattr(time, "time", lambda: later)
        assert (await module.top.outcome("ATL")).state is State.STALE
        assert await module.plain("ATL") == "ATL"
        async with client(module.app) as http:
            assert (await http.get("/rankings/ATL")).headers["swr-state"] == "missing"
        await module.cache.aclose()
