"""A mistake that a newcomer makes gets an error or a log line that names the thing and says what to do."""

import asyncio
import datetime
import logging
from typing import Annotated

import httpx
import pytest
from fastapi import FastAPI, Header
from pydantic import RedisDsn, SecretStr
from redis.asyncio import Redis
from starlette.responses import JSONResponse, Response

from swr import Cache, ConfigurationError, Fresh, Policy
from swr.loaders import stored_entries
from swr.middleware import Rule, SWRMiddleware
from swr.testing import FakeClock, isolated

pytestmark = pytest.mark.anyio


@pytest.fixture
def cache():
    return Cache()


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Cache(Redis()), r"^a redis\.asyncio\.client\.Redis is not a URL, .* a client as redis=$"),
        (
            lambda: Cache(SecretStr("redis://h:6379/0")),
            r"^a pydantic\.types\.SecretStr is not a URL, .* get_secret_value\(\) of a SecretStr",
        ),
        (
            lambda: Cache(secret=SecretStr("a secret")),
            r"^secret= must be text or bytes, .* get_secret_value\(\) of a SecretStr",
        ),
        (
            lambda: Cache(RedisDsn("redis://h:6379/0")),
            r"^a pydantic\.networks\.RedisDsn is not a URL, which is text: give str",
        ),
        (lambda: Policy(fresh_for=1, early=-1), "^early=-1: give a number, 0 or more$"),
        (lambda: Policy(fresh_for=1, jitter=2), "^jitter=2: give a number between 0 and 1$"),
        (lambda: SWRMiddleware(FastAPI(), Cache(), Rule("/", fresh_for=1)), r"give a list of rules, \[Rule"),
        (
            lambda: Rule("/a/*", fresh_for=1),
            r"'\*' is not a wildcard; write \{name\} for a part, \{name:path\} for all$",
        ),
        (lambda: isolated("redis://h").__enter__(), "^cache='redis://h': give a swr.Cache$"),
    ],
)
def test_invalid_argument_is_refused_with_an_error_that_explains_it(make, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        make()


async def test_missing_loader_argument_raises_type_error_with_the_loader_name(cache):
    @cache.cached("one:{a}", fresh_for=60)
    async def one(a: int) -> int:
        return a

    @cache.cached_many("many:{n}", fresh_for=60)
    async def many(ns: list[int]) -> dict[int, int]:
        return {n: n for n in ns}

    for call, name in ((one(), "one"), (one.invalidate(), "one"), (many(), "many"), (many.invalidate(), "many")):
        with pytest.raises(TypeError, match=rf"^tests\.test_mistakes\..*\.{name}\(\) missing a required argument: "):
            await call


async def test_template_slot_of_a_missing_attribute_is_named_in_the_error(cache):
    @cache.cached("one:{user.id}", fresh_for=60)
    async def one(user: dict[str, int]) -> int:
        return user["id"]

    with pytest.raises(
        ConfigurationError, match=r"^the slot \{user\.id\} of a template cannot be filled: 'dict' object"
    ):
        await one({"id": 1})


async def test_declared_header_parameter_warns_only_behind_a_login(cache, caplog):
    app = FastAPI()
    app.add_middleware(SWRMiddleware, cache=cache)

    @app.get("/")
    @cache.response(fresh_for=60)
    async def of_tenant(x_tenant: Annotated[str, Header()]) -> str:
        return x_tenant

    async with cache, httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for state in ("missing", "fresh"):
            for name in ("one", "two"):
                answer = await client.get("/", headers={"x-tenant": name})
                assert (answer.json(), answer.headers["swr-state"]) == (name, state)
                assert "detail" not in answer.headers["cache-status"]
        assert not caplog.records
        # Behind a login the endpoint runs for each request, unless a word says more.
        answer = await client.get("/", headers={"x-tenant": "one", "authorization": "Bearer x"})
    assert 'detail="authorization, argument x_tenant"' in answer.headers["cache-status"]
    assert "argument x_tenant" in caplog.text


async def test_list_of_tags_is_refused_with_a_hint_to_unpack_it(cache):
    for method in (cache.invalidate_tag, cache.invalidate_tags, cache.mark_stale_tags):
        with pytest.raises(ConfigurationError, match=r"holds several tags: write invalidate_tags\(\*tags\)"):
            await method(["a", "b"])


async def test_value_in_place_of_a_loader_is_refused(cache):
    with pytest.raises(
        ConfigurationError, match=r"^loader=5 is not a function: give one, or store the value with cache"
    ):
        await cache.get_or_load("k", 5, Policy(fresh_for=60))


async def test_coroutine_as_a_loaded_value_is_refused(cache):
    async def inner() -> int:
        return 1

    coroutines = [inner(), inner()]
    for value in (coroutines[0], Fresh(coroutines[1])):

        async def forgets_to_await(value=value):
            return value

        with pytest.raises(ConfigurationError, match=r"^the value for 'k' is a coroutine, .*: await it in the loader$"):
            await cache.get_or_load("k", forgets_to_await, Policy(fresh_for=60))
    for coroutine in coroutines:
        coroutine.close()


async def test_response_as_a_loaded_value_is_refused(cache):
    @cache.cached("k", fresh_for=60)
    async def load():
        return JSONResponse({})

    with pytest.raises(ConfigurationError, match="JSONResponse, which belongs to one request: return its data, or"):
        await load()
    with pytest.raises(ConfigurationError, match=r"load returns a response, which belongs to one request: .*response"):

        @cache.cached("r", fresh_for=60)
        async def load() -> Response:
            return JSONResponse({})


async def test_unfilled_template_slot_in_a_key_tag_or_url_is_logged_once(cache, caplog):
    stored_entries._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="swr"):
        for _ in range(2):
            await cache.invalidate_tag("mistakes:{group}")
            await cache.invalidate_url("/mistakes/{group.id}")
            await cache.invalidate("mistaken:{group}")
            await cache.get_or_load("mistaken:{name}", lambda: 1, Policy(fresh_for=60))
            await cache.invalidate_tags('{"a": 1}', "{}", "{1}", "{a")
    assert [record.args[0] for record in caplog.records] == [
        "mistakes:{group}",
        "/mistakes/{group.id}",
        "mistaken:{group}",
        "mistaken:{name}",
    ]
    assert "write an f-string, f'mistakes:{group}'" in caplog.records[0].getMessage()


async def test_middleware_added_twice_raises_configuration_error(cache):
    app = FastAPI()

    @app.get("/x")
    @cache.response(fresh_for=60)
    async def x() -> int:
        return 1

    app.add_middleware(SWRMiddleware, cache=cache)
    app.add_middleware(SWRMiddleware, cache=cache)
    async with cache, httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        with pytest.raises(
            ConfigurationError, match=r"^the app was asked for 'http://test/x\?' while .*: add SWRMiddleware once"
        ):
            await client.get("/x")


def test_fake_clock_advances_by_any_duration():
    clock = FakeClock(0)
    clock.advance(5)
    clock.advance("1m")
    clock.advance(datetime.timedelta(hours=1))
    clock.advance(-1)
    assert clock() == 3664
    with pytest.raises(ConfigurationError, match=r"^seconds='soon' is not a duration"):
        clock.advance("soon")


def test_missing_argument_raises_the_same_error_from_a_thread(cache):
    @cache.cached("one:{a}", fresh_for=60)
    def one(a: int) -> int:
        return a

    async def main() -> None:
        with pytest.raises(TypeError, match=r"one\(\) missing a required argument: 'a'"):
            await asyncio.to_thread(one.sync)

    asyncio.run(main())
    cache.sync.close()
