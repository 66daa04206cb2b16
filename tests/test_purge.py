"""`PURGE`: what a CDN's users know, answered by the middleware and the proxy."""

import anyio
import httpx
import pytest

from swr import Cache, ConfigurationError
from swr.http.tag_fields import MOST_TAGS
from swr.middleware import Rule, SWRMiddleware
from swr.proxy import caching_proxy
from tests.web import App, client

MAX_AGE = (b"cache-control", b"max-age=60, stale-while-revalidate=600")
TOKEN = {"authorization": "Bearer s3cret"}


@pytest.fixture
async def cache(place_url):
    async with Cache(place_url) as cache:
        yield cache


@pytest.fixture
def anyio_backend(place):
    return place.rpartition(" ")[2]


pytestmark = pytest.mark.anyio


async def states(http, *paths):
    return [(await http.get(path)).headers["swr-state"] for path in paths]


async def test_purge_removes_the_responses_of_a_url_on_all_hosts_without_calling_the_app(cache):
    app = App([MAX_AGE])
    rules = [Rule("/x", ["QUERY"], drop_params=("utm",)), Rule("/x", drop_params=("ref",))]
    middleware = SWRMiddleware(app, cache, rules, purge_token="s3cret")
    async with client(middleware) as http:
        urls = ["/x", "/x?a=1&ref=2", "http://other/x", "/y"]
        await states(http, *urls)
        await http.request("QUERY", "/x?utm=1", content=b"a")
        answer = await http.request("PURGE", "/x?ref=9", headers=TOKEN)
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
        assert "/x" in answer.json()["done"]
        assert await states(http, *urls) == ["missing", "fresh", "missing", "fresh"]
        await http.request("PURGE", "http://third/x?utm=2", headers=TOKEN)
        answer = await http.request("QUERY", "/x?utm=1", content=b"a")
        assert answer.headers["swr-state"] == "missing"
    assert "PURGE" not in [scope["method"] for scope in app.scopes]


@pytest.mark.parametrize("name", ["SWR-Soft-Purge", "Fastly-Soft-Purge"])
async def test_soft_purge_makes_responses_stale(cache, name):
    async with client(SWRMiddleware(App([MAX_AGE]), cache, purge_token=b"s3cret")) as http:
        await states(http, "/x")
        await http.request("PURGE", "/x", headers={**TOKEN, name: "1"})
        assert await states(http, "/x") == ["stale"]
        await http.request("PURGE", "/x", headers={**TOKEN, name: "0"})
        assert await states(http, "/x") == ["missing"]


async def test_purge_with_tag_fields_removes_the_tagged_responses(cache):
    async with client(SWRMiddleware(App([MAX_AGE, (b"cache-tag", b"a, b c")]), cache, purge_token="s3cret")) as http:
        for headers in ({"cache-tag": "b c"}, {"surrogate-key": "x a"}):
            await states(http, "/x", "/y")
            answer = await http.request("PURGE", "/z", headers={**TOKEN, **headers})
            assert answer.status_code == 200
            assert await states(http, "/x", "/y") == ["missing", "missing"]


async def test_purge_by_tag_works_with_a_request_field_of_70_kb(cache):
    tagged = [MAX_AGE, (b"cache-tag", b"a")]
    async with client(SWRMiddleware(App(tagged), cache, purge_token="s3cret")) as http:
        await states(http, "/x")
        answer = await http.request("PURGE", "/x", headers={**TOKEN, "cache-tag": "a", "x": "x" * 70_000})
        assert answer.status_code == 200
        assert await states(http, "/x") == ["missing"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 401),
        ([("authorization", "Basic s3cret")], 401),
        ([("authorization", "Bearer wrong")], 401),
        ([("authorization", "Bearer")], 401),
        ([("authorization", "Bearer s3cret"), ("authorization", "Bearer s3cret")], 401),
        ([*TOKEN.items(), ("swr-soft-purge", "yes")], 400),
        ([*TOKEN.items(), ("swr-soft-purge", "1"), ("fastly-soft-purge", "0")], 400),
        ([*TOKEN.items(), ("surrogate-key", " ".join(map(str, range(MOST_TAGS + 1))))], 400),
        ([*TOKEN.items(), ("cache-tag", " , ")], 400),
        ([*TOKEN.items(), ("x", "x" * 70_000)], 400),
    ],
)
async def test_unauthorized_or_malformed_purge_removes_nothing(cache, headers, status):
    async with client(SWRMiddleware(App([MAX_AGE]), cache, purge_token="s3cret")) as http:
        await states(http, "/x")
        answer = await http.request("PURGE", "/x", headers=headers)
        assert (answer.status_code, "www-authenticate" in answer.headers) == (status, status == 401)
        assert answer.json()["error"]
        assert "s3cret" not in answer.text
        assert await states(http, "/x") == ["fresh"]


async def test_address_is_refused_after_ten_wrong_purge_tokens_and_others_are_not(cache, caplog):
    app = SWRMiddleware(App([MAX_AGE]), cache, purge_token="s3cret")

    async def status(token, address="10.0.0.9"):
        transport = httpx.ASGITransport(app, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            answer = await http.request("PURGE", "/x", headers={"authorization": f"Bearer {token}"})
        assert ("retry-after" in answer.headers) == (answer.status_code == 429)
        return answer.status_code

    assert [await status(number) for number in range(12)] == [401] * 10 + [429] * 2
    assert [await status("s3cret"), await status("s3cret", "10.0.0.8")] == [429, 200]
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith("PURGE: 10.0.0.9 has sent 10 wrong secrets")


async def test_purge_request_reaches_the_app_when_no_purge_token_is_set(cache):
    app = App([MAX_AGE])
    async with client(SWRMiddleware(app, cache)) as http:
        answer = await http.request("PURGE", "/x", headers=TOKEN)
        assert answer.headers["cache-status"] == "swr; fwd=method"
    assert app.runs == 1


@pytest.mark.parametrize("token", [1, "a b", "ä", "a\n"])
def test_purge_token_that_no_field_can_hold_is_refused_and_not_shown(token):
    with pytest.raises(ConfigurationError, match="purge_token") as error:
        SWRMiddleware(App(), Cache(), purge_token=token)
    assert repr(token) not in str(error.value)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_purge_while_redis_is_unreachable_acts_locally_and_answers_202(own_server, anyio_backend):
    url = own_server.url
    async with Cache(url, timeout=0.2) as cache, client(SWRMiddleware(App([MAX_AGE]), cache, purge_token="t")) as http:
        await states(http, "/x")
        own_server.kill()
        answer = await http.request("PURGE", "/x", headers={"authorization": "Bearer t"})
        assert answer.status_code == 202
        assert (await states(http, "/x", "/x"))[0] == "missing"
        own_server.start()
        with anyio.fail_after(60):
            while cache.engine.store.has_pending:
                await anyio.sleep(0.01)
        answer = await http.request("PURGE", "/x", headers={"authorization": "Bearer t"})
        assert answer.status_code == 200


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_proxy_answers_purge_without_asking_the_service(anyio_backend):
    async with client(caching_proxy("http://127.0.0.1:9", purge_token="s3cret")) as http:
        assert (await http.request("PURGE", "/x", headers=TOKEN)).status_code == 200
        assert (await http.request("PURGE", "/x")).status_code == 401
