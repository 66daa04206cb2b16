"""Requests whose content selects their responses: QUERY (RFC 10008), and POST where a rule says that it is safe."""

import json
from typing import Annotated

import anyio
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel

from swr import Cache, ConfigurationError
from swr.middleware import Content, Rule, SWRMiddleware, is_graphql_query
from tests.fleet import settle, until
from tests.web import App, Client, client, http_scope

JSON = {"content-type": "application/json"}
MAX_AGE = "max-age=60, stale-while-revalidate=600"


class Echo:
    """An app that answers with what it got, and counts: its n-th run, the method, the type, and the content."""

    def __init__(self, control=MAX_AGE, **fields):
        self.runs, self.seen = 0, []
        self.fields = {"cache-control": control, **fields}
        self.gate = None

    async def __call__(self, scope, receive, send):
        self.runs += 1
        body, message = b"", {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            assert message["type"] == "http.request", "the client left"
            body += message.get("body", b"")
        headers = dict(scope["headers"])
        self.seen.append((scope["method"], headers.get(b"content-type"), body))
        if self.gate is not None:
            await self.gate.wait()
        run = self.runs
        fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in self.fields.items() if value]
        etag = dict(fields).get(b"etag")
        if etag is not None and headers.get(b"if-none-match") == etag:
            await send({"type": "http.response.start", "status": 304, "headers": fields})
            await send({"type": "http.response.body"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": numbered(run, body)})


def numbered(run, body):
    # Beside code that takes all fields, this formatting would count as a look at any of them.
    return b"%d %b" % (run, body)


async def ask(http, method, content=b"", path="/x", **headers):
    """Return the state and the text of an answer."""
    fields = {name.replace("_", "-"): value for name, value in {**JSON, **headers}.items()}
    answer = await http.request(method, path, content=content, headers=fields)
    return answer.headers["swr-state"], answer.text


def why(answer):
    return answer.headers["cache-status"]


@pytest.fixture
async def cache(place_url):
    async with Cache(place_url) as cache:
        yield cache


@pytest.fixture
def anyio_backend(place):
    return place.rpartition(" ")[2]


pytestmark = pytest.mark.anyio


class TestQuery:
    async def test_query_with_equal_content_hits_and_with_other_content_misses(self, cache):
        app = Echo()
        async with client(SWRMiddleware(app, cache)) as http:
            assert await ask(http, "QUERY", b"a") == ("missing", "1 a")
            assert await ask(http, "QUERY", b"b") == ("missing", "2 b")
            assert await ask(http, "GET") == ("missing", "3 ")
            assert await ask(http, "QUERY") == ("missing", "4 ")
            assert await ask(http, "QUERY", b"a") == ("fresh", "1 a")
            assert await ask(http, "QUERY", b"b") == ("fresh", "2 b")
            assert await ask(http, "GET") == ("fresh", "3 ")
            assert await ask(http, "HEAD") == ("fresh", "")
            assert await ask(http, "QUERY") == ("fresh", "4 ")

    @pytest.mark.parametrize(
        "fields",
        [
            [("content-type", "text/plain")],
            [("content-type", "application/json; charset=latin-1")],
            [("content-type", "multipart/form-data; boundary=b")],
            [("content-type", "application/json"), ("content-type", "text/plain")],
            [("content-type", "application/json"), ("content-encoding", "gzip")],
            [("content-type", "application/json"), ("content-language", "de")],
            [("content-type", "application/json"), ("content-anything", "de")],
            [],
        ],
    )
    async def test_query_with_different_content_type_or_encoding_has_its_own_response(self, cache, fields):
        app = Echo()
        rule = Rule("/x", ["QUERY"], fresh_for=60, canonical_json=True)
        async with client(SWRMiddleware(app, cache, [rule])) as http:
            await ask(http, "QUERY", b"1")
            for state in ("missing", "fresh"):
                answer = await http.request("QUERY", "/x", content=b"1", headers=fields)
                assert (answer.headers["swr-state"], answer.text) == (state, "2 1")

    async def test_background_refresh_sends_the_same_content(self, cache):
        app = Echo("max-age=0, stale-while-revalidate=600")
        async with client(SWRMiddleware(app, cache)) as http:
            assert await ask(http, "QUERY", b"a", origin="o") == ("missing", "1 a")
            assert await ask(http, "QUERY", b"a", origin="o", user_agent="u") == ("stale", "1 a")
            with anyio.fail_after(30):
                while (await ask(http, "QUERY", b"a", origin="o"))[1] == "1 a":
                    await anyio.sleep(0.01)
        assert set(app.seen) == {("QUERY", b"application/json", b"a")}

    async def test_rule_applies_only_to_its_own_methods(self, cache):
        app = Echo("")
        rules = [Rule("/x", fresh_for=60), Rule("/y", ["QUERY"], fresh_for=60)]
        async with client(SWRMiddleware(app, cache, rules)) as http:
            states = [(await ask(http, "QUERY", b"a", path))[0] for path in ("/x", "/x", "/y", "/y")]
            assert states == ["missing", "missing", "missing", "fresh"]
            states = [(await ask(http, "GET", b"", path))[0] for path in ("/x", "/x", "/y", "/y")]
            assert states == ["missing", "fresh", "missing", "missing"]

    async def test_concurrent_queries_with_equal_content_share_one_load(self, cache):
        app = Echo()
        app.gate = anyio.Event()
        async with client(SWRMiddleware(app, cache)) as http, anyio.create_task_group() as group:
            answers = []

            async def one(content):
                answers.append(await ask(http, "QUERY", content))

            for content in (b"a", b"b", b"a", b"a"):
                group.start_soon(one, content)
            await settle()
            app.gate.set()
        assert app.runs == 2
        assert sorted(text[-1] for _, text in answers) == ["a", "a", "a", "b"]

    async def test_conditions_and_ranges_of_query_are_answered_from_the_stored_response(self, cache):
        app = Echo(etag='"1"')
        async with client(SWRMiddleware(app, cache)) as http:
            await ask(http, "QUERY", b"abc")
            answer = await http.request("QUERY", "/x", content=b"abc", headers={**JSON, "if-none-match": '"1"'})
            assert (answer.status_code, answer.text) == (304, "")
            answer = await http.request("QUERY", "/x", content=b"abc", headers={**JSON, "range": "bytes=2-"})
            assert (answer.status_code, answer.text) == (206, "abc")
            # Another content has another response, for which a part may be stored.
            answer = await http.request("QUERY", "/x", content=b"b", headers={**JSON, "if-none-match": '"2"'})
            assert (answer.status_code, answer.text) == (200, "2 b")
        assert app.runs == 2

    @pytest.mark.uncounted
    @pytest.mark.parametrize("status", [204, 303, 308, 415, 422])
    async def test_redirect_or_error_is_stored_for_its_content_and_not_for_its_location(self, cache, status):
        """RFC 10008 2.3 to 2.5: swr follows no redirect, and a GET of the named URL runs the app."""
        app = App(
            [(b"cache-control", b"max-age=60"), (b"location", b"/named"), (b"accept-query", b'"a/b"')], status, b""
        )
        async with client(SWRMiddleware(app, cache)) as http:
            for state in ("missing", "fresh"):
                answer = await http.request("QUERY", "/x", content=b"a", headers=JSON)
                assert (answer.status_code, answer.headers["swr-state"]) == (status, state)
                assert (answer.headers["location"], answer.headers["accept-query"]) == ("/named", '"a/b"')
            assert (await ask(http, "QUERY", b"b"))[0] == (await ask(http, "GET", path="/named"))[0] == "missing"

    async def test_query_revalidates_its_stored_response_with_the_same_content(self, cache):
        app = Echo("no-cache", etag='"1"')
        async with client(SWRMiddleware(app, cache)) as http:
            assert await ask(http, "QUERY", b"a") == ("missing", "1 a")
            assert await ask(http, "QUERY", b"a") == ("missing", "1 a")
        assert app.seen == [("QUERY", b"application/json", b"a")] * 2

    async def test_write_or_invalidation_of_url_removes_its_responses_for_every_content(self, cache):
        app = Echo()
        rules = [
            Rule("/x", ["QUERY"], fresh_for=60, drop_params=("utm",)),
            Rule("/x", fresh_for=60, drop_params=("ref",)),
        ]
        async with client(SWRMiddleware(app, cache, rules)) as http:
            for method, path in (("POST", "/x?utm=2"), ("DELETE", "/x"), ("invalidate", "/x")):
                before = app.runs
                assert (await ask(http, "QUERY", b"a", "/x?utm=1"))[0] == "missing"
                assert (await ask(http, "QUERY", b"b", "/x"))[0] == "missing"
                assert (await ask(http, "QUERY", b"a", "/x?utm=3"))[0] == "fresh"
                if method == "invalidate":
                    await cache.invalidate_url(path)
                else:
                    await http.request(method, path)
                assert (await ask(http, "QUERY", b"a", "/x?utm=1"))[0] == "missing"
                assert (await ask(http, "QUERY", b"b", "/x"))[0] == "missing"
                await cache.invalidate_url("/x")
                assert app.runs == before + 4 + (method != "invalidate")

    async def test_query_does_not_invalidate_the_get_response(self, cache):
        app = Echo(location="/y", content_location="/x", accept_query='"application/json"')
        async with client(SWRMiddleware(app, cache)) as http:
            await ask(http, "GET")
            answer = await http.request("QUERY", "/x", content=b"a")
            assert answer.headers["accept-query"] == '"application/json"'
            assert (await ask(http, "GET"))[0] == "fresh"

    @pytest.mark.parametrize("announced", [True, False])
    async def test_query_with_too_long_content_bypasses_the_cache(self, cache, announced):
        app = Echo()
        content = b"x" * 101

        async def pieces():
            for _ in range(101):
                yield b"x"

        async with client(SWRMiddleware(app, cache, max_content_bytes=100)) as http:
            for _ in range(2):
                answer = await http.request("QUERY", "/x", content=content if announced else pieces())
                assert why(answer) == 'swr; fwd=bypass; detail="content too large"'
                assert app.seen[-1][2] == content
            assert (await ask(http, "QUERY", content[:100]))[0] == "missing"
            assert (await ask(http, "QUERY", content[:100]))[0] == "fresh"

    async def test_query_whose_content_comes_too_slowly_bypasses_the_cache(self, cache):
        app, sent = Echo(), []
        bodies = [b"", b"b", b"a"]

        async def receive():
            if len(bodies) == 1 and app.runs == 0:
                await anyio.sleep_forever()
            return {"type": "http.request", "body": bodies.pop(), "more_body": bool(bodies)}

        async def send(message):
            sent.append(message)

        # No machine is too fast for this.
        middleware = SWRMiddleware(app, cache, max_body_time=0.02)
        with anyio.fail_after(30):
            await middleware({**http_scope("/x"), "method": "QUERY"}, receive, send)
        assert dict(sent[0]["headers"])[b"cache-status"] == b'swr; fwd=bypass; detail="content incomplete"'
        assert sent[1]["body"] == b"1 ab"

    @pytest.mark.parametrize("came", [[], [{"type": "http.request", "body": b"a", "more_body": True}]])
    async def test_app_receives_disconnect_when_client_leaves_before_its_content_is_complete(self, cache, came):
        heard, messages = [], [*came, {"type": "http.disconnect"}]

        async def app(scope, receive, send):
            heard.extend([await receive() for _ in range(len(came) + 1)])

        async def receive():
            return messages.pop(0)

        await SWRMiddleware(app, cache)({**http_scope("/x"), "method": "QUERY"}, receive, Client().send)
        assert heard == [*came, {"type": "http.disconnect"}]

    async def test_query_bypasses_the_cache_for_the_same_reasons_as_get(self, cache):
        app = Echo()
        async with client(SWRMiddleware(app, cache)) as http:
            for fields, reason in (
                ({"cookie": "a=1"}, "cookie"),
                ({"if-match": '"1"'}, "precondition"),
                ({"x": "x" * 70_000}, "header too long"),
            ):
                for _ in range(2):
                    answer = await http.request("QUERY", "/x", content=b"a", headers=fields)
                    assert why(answer) == f'swr; fwd=bypass; detail="{reason}"'
            answer = await http.request("QUERY", "/x", content=b"b", headers={"cache-control": "only-if-cached"})
            assert answer.status_code == 504
        assert app.runs == 6

    async def test_disabled_cache_passes_query_to_the_app(self, cache):
        app = Echo()
        with cache.disabled():
            async with client(SWRMiddleware(app, cache)) as http:
                answer = await http.request("QUERY", "/x", content=b"a")
                assert (why(answer), answer.text) == ('swr; fwd=bypass; detail="off"', "1 a")

    async def test_content_selects_the_response_behind_a_login(self, cache):
        app, runs = FastAPI(), 0
        app.add_middleware(SWRMiddleware, cache=cache)

        class Search(BaseModel):
            text: str

        def guard(authorization: Annotated[str, Header()]) -> None:
            if authorization != "right":
                raise HTTPException(401)

        @app.api_route("/search", methods=["QUERY"], dependencies=[Depends(guard)])
        @cache.response(fresh_for=60, stale_for=60)
        async def search(search: Search) -> str:
            nonlocal runs
            runs += 1
            return f"{runs} {search.text}"

        async with client(app) as http:

            async def found(text, token="right"):
                headers = {"authorization": token}
                answer = await http.request("QUERY", "/search", json={"text": text}, headers=headers)
                return answer.status_code, answer.json(), answer.headers["swr-state"]

            assert await found("a") == (200, "1 a", "missing")
            assert await found("b") == (200, "2 b", "missing")
            assert await found("a") == (200, "1 a", "fresh")
            assert await found("b") == (200, "2 b", "fresh")
            assert (await found("a", "wrong"))[0] == 401
            await cache.mark_stale_urls("/search")
            assert await found("a") == (200, "1 a", "stale")
            with anyio.fail_after(30):
                while (await found("a"))[1] == "1 a":
                    await anyio.sleep(0.01)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_content_selects_and_unsafe_post_invalidates_while_redis_is_unreachable(own_server):
    app = Echo()
    rules = [Rule("/x", ["POST"], fresh_for=60, safe=lambda content: content.body != b"change")]
    async with Cache(own_server.url) as cache, client(SWRMiddleware(app, cache, rules)) as http:
        for method in ("QUERY", "POST"):
            await ask(http, method, b"a")
        own_server.kill()
        await until(lambda: not cache.engine.is_store_up)
        for method, runs in (("QUERY", 1), ("POST", 2)):
            assert await ask(http, method, b"a") == ("fresh", f"{runs} a")
            assert await ask(http, method, b"b") == ("missing", f"{runs + 2} b")
        await http.post("/x", content=b"change", headers=JSON)
        for method in ("QUERY", "POST"):
            assert (await ask(http, method, b"a"))[0] == "missing"
        assert not cache.engine.is_store_up


GRAPHQL = [Rule("/graphql", ["POST"], fresh_for=60, safe=is_graphql_query)]


class TestPost:
    async def test_post_without_rule_invalidates_its_url(self, cache):
        app = Echo()
        async with client(SWRMiddleware(app, cache, [Rule("/y", ["POST"], fresh_for=60, safe=True)])) as http:
            await ask(http, "GET")
            answer = await http.post("/x", content=b"a")
            assert why(answer) == "swr; fwd=method"
            assert (await ask(http, "GET"))[0] == "missing"

    async def test_safe_post_is_answered_by_its_content_and_does_not_invalidate(self, cache):
        app = Echo("")
        rules = [Rule("/x", ["GET", "POST"], fresh_for=60, safe=True)]
        async with client(SWRMiddleware(app, cache, rules)) as http:
            assert await ask(http, "GET") == ("missing", "1 ")
            assert await ask(http, "POST", b"a") == ("missing", "2 a")
            assert await ask(http, "POST", b"b") == ("missing", "3 b")
            assert await ask(http, "POST", b"a") == ("fresh", "2 a")
            assert await ask(http, "GET") == ("fresh", "1 ")
            assert await ask(http, "QUERY", b"a") == ("missing", "4 a")
            await http.put("/x")
            assert (await ask(http, "POST", b"a"))[0] == "missing"

    async def test_safe_post_ignores_conditions_and_ranges_and_gets_no_cache_control(self, cache):
        app = Echo("")
        rules = [Rule("/x", ["POST"], fresh_for=60, client_max_age=60, safe=True)]
        async with client(SWRMiddleware(app, cache, rules)) as http:
            for state in ("missing", "fresh"):
                headers = {"if-none-match": "*", "range": "bytes=0-1"}
                answer = await http.post("/x", content=b"abc", headers=headers)
                assert (answer.status_code, answer.text, answer.headers["swr-state"]) == (200, "1 abc", state)
                assert not {"cache-control", "etag"} & answer.headers.keys()

    async def test_background_refresh_of_safe_post_sends_no_condition(self, cache):
        app = Echo("", etag='"1"')
        rules = [Rule("/x", ["POST"], fresh_for=60, stale_for=60, safe=True)]
        async with client(SWRMiddleware(app, cache, rules)) as http:
            await ask(http, "POST", b"a")
            await cache.mark_stale_urls("/x")
            assert (await ask(http, "POST", b"a")) == ("stale", "1 a")
            with anyio.fail_after(30):
                while (await ask(http, "POST", b"a"))[1] != "2 a":
                    await anyio.sleep(0.01)
        assert app.seen == [("POST", b"application/json", b"a")] * 2

    async def test_safe_post_shows_its_key_when_show_key_is_on(self, cache):
        rules = [Rule("/x", ["POST"], fresh_for=60, safe=True)]
        async with client(SWRMiddleware(Echo(), cache, rules, show_key=True)) as http:
            await ask(http, "POST", b"a")
            answer = await http.post("/x", content=b"a", headers=JSON)
            assert "POST content: " in why(answer)

    async def test_graphql_query_is_cached_and_mutation_invalidates_it(self, cache):
        app = Echo("")
        async with client(SWRMiddleware(app, cache, GRAPHQL)) as http:
            query, mutation = (json.dumps({"query": text}).encode() for text in ("{a}", "mutation {a}"))
            for state in ("missing", "fresh"):
                assert (await ask(http, "POST", query, "/graphql"))[0] == state
            for run in (2, 3):
                answer = await http.post("/graphql", content=mutation, headers=JSON)
                assert (why(answer), answer.text[0]) == ("swr; fwd=method", str(run))
            assert (await ask(http, "POST", query, "/graphql"))[0] == "missing"

    @pytest.mark.parametrize(
        ("path", "fields", "content"),
        [
            ("/x?_method=DELETE", {}, b"a"),
            ("/x?%5fmethod=DELETE", {}, b"a"),
            ("/x", {"content-type": "Application/X-WWW-Form-Urlencoded"}, b"a=b&%5Fmethod=DELETE"),
            ("/x", {"x-http-method-override": "DELETE"}, b"a"),
            ("/x", {"content-type": "application/x-www-form-urlencoded"}, b"_method=DELETE"),
            ("/x", [("content-type", "application/x-www-form-urlencoded"), ("content-type", "a/b")], b"_method=DELETE"),
            ("/x", {}, b"a=b&_method=DELETE"),
            ("/x", {"content-type": "application/json"}, b'{"\\u005fmethod": "DELETE"}'),
            ("/x", {"content-type": "application/json; charset=utf-16"}, b'{"_method": "DELETE"}'),
            ("/x", {"content-type": "application/x-www-form-urlencoded"}, b"_method=DELETE&a=" + b"a" * 2**16),
            ("/x", {"x_http_method_override": "DELETE"}, b"a"),
            ("/x", {"content-type": "multipart/form-data; boundary=b"}, b'--b\r\nname="_method"'),
        ],
    )
    async def test_post_that_overrides_its_method_is_not_safe(self, cache, path, fields, content):
        app = Echo()
        async with client(SWRMiddleware(app, cache, [Rule("/x", ["POST"], fresh_for=60, safe=True)])) as http:
            for run in (1, 2):
                answer = await http.post(path, content=content, headers=fields)
                assert (why(answer), answer.text[0]) == ("swr; fwd=method", str(run))

    @pytest.mark.parametrize("kind", ["application/json", "application/graphql", "application/x-ndjson"])
    async def test_post_that_only_mentions_a_method_is_safe(self, cache, kind):
        async with client(SWRMiddleware(Echo(), cache, [Rule("/x", ["POST"], fresh_for=60, safe=True)])) as http:
            for state in ("missing", "fresh"):
                content = b'{"a": "_method"}' if kind == "application/json" else b"{ payment_method }"
                answer = await http.post("/x", content=content, headers={"content-type": kind})
                assert answer.headers["swr-state"] == state

    async def test_failing_safe_predicate_makes_post_unsafe_and_is_logged_once(self, cache, caplog):
        app = Echo()
        rules = [Rule("/x", ["POST"], fresh_for=60, safe=lambda content: content.json()["read"])]
        async with client(SWRMiddleware(app, cache, rules)) as http:
            for content in (b"{", b"{}", b'{"read": 1}', b'{"read": false}'):
                assert why(await http.post("/x", content=content, headers=JSON)) == "swr; fwd=method"
            assert (await ask(http, "POST", b'{"read": true}'))[0] == "missing"
            assert (await ask(http, "POST", b'{"read": true}'))[0] == "fresh"
        assert (
            sum("safe= of Rule('/x')" in record.getMessage() for record in caplog.records if record.levelno > 10) == 1
        )

    @pytest.mark.parametrize(
        ("safe", "expected"), [(True, 'swr; fwd=bypass; detail="content too large"'), (len, "swr; fwd=method")]
    )
    async def test_post_with_too_long_content_is_safe_only_if_rule_says_safe_true(self, cache, safe, expected):
        app = Echo()
        rules = [Rule("/x", ["POST"], fresh_for=60, safe=safe)]
        async with client(SWRMiddleware(app, cache, rules, max_content_bytes=3)) as http:
            answer = await http.post("/x", content=b"abcd")
            assert (why(answer), answer.text) == (expected, "1 abcd")

    async def test_disabled_cache_treats_safe_post_as_unsafe(self, cache):
        app = Echo()
        with cache.disabled():
            async with client(SWRMiddleware(app, cache, [Rule("/x", ["POST"], fresh_for=60, safe=True)])) as http:
                assert why(await http.post("/x", content=b"a")) == "swr; fwd=method"

    async def test_canonical_json_selects_by_value_unless_client_sends_no_transform(self, cache):
        app = Echo("")
        rules = [Rule("/x", ["POST"], fresh_for=60, safe=True, canonical_json=True)]
        async with client(SWRMiddleware(app, cache, rules)) as http:
            for state in ("missing", "fresh"):
                assert (await ask(http, "POST", b'{"a": 1, "b": [2]}'))[0] == state
            assert await ask(http, "POST", b'{"b":[2],"a":1}') == ("fresh", '1 {"a": 1, "b": [2]}')
            # RFC 10008 2.7: this client means its bytes.
            assert (await ask(http, "POST", b'{"b":[2],"a":1}', cache_control="no-transform"))[0] == "missing"


@pytest.mark.parametrize(
    "options",
    [
        {"methods": ["POST"]},
        {"methods": ["GET"], "safe": True},
        {"methods": ["POST"], "safe": "yes"},
        {"methods": ["HEAD"]},
        {"methods": ["PUT"]},
        {"methods": []},
    ],
)
def test_rule_with_invalid_methods_or_safe_is_refused(options):
    with pytest.raises(ConfigurationError):
        Rule("/x", fresh_for=60, **options)


def test_negative_max_content_bytes_is_refused():
    with pytest.raises(ConfigurationError, match="max_content_bytes"):
        SWRMiddleware(Echo(), Cache(), max_content_bytes=-1)


def content_of(body, *types):
    fields = [(b"content-type", kind.encode()) for kind in types or ("application/json",)]
    return Content(body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body, fields)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a":1,"b":2}', ' {"b" : 2,\n"a":1} '),
        ('["\\u0041\\/"]', '["A/"]'),
        ('{"a":{"c":[],"b":{}}}', '{"a":{"b":{},"c":[]}}'),
        ('{"":null}', '{"" :null}'),
    ],
)
def test_equal_json_values_have_equal_canonical_text(one, other):
    assert content_of(one).text(canonical=True) == content_of(other).text(canonical=True)
    assert content_of(one).text(canonical=False) != content_of(other).text(canonical=False)


DIFFERENT = [
    "1", "1.0", "1e0", "10000000000000000000001", "10000000000000000000002", '"1"', "true", "null", "[]", "{}", "[[]]",
    '"null"', '{"a":1}', '{"a":1,"a":1}', '{"a":2,"a":1}', '{"a":1,"a":2}', "NaN", "Infinity", '"\\ud800"', '"\\ud801"', "-0", "0",
    "[1,2]", "[2,1]", '{"a":[1]}', '["a",1]', '"number 1"', "[" * 3000, "[" * 20_000 + "]" * 20_000, b"\xff", b"\xfe", "\ufeff1", "1" * 5000, "",
    "1" * 5001, '{"a":1,"A":2}', '{"A":2,"a":1}', '[["a",1]]', '{"b":1}', b'"\xc3\xa9"', '"e"',
]  # fmt: skip


def test_different_or_unreadable_json_has_different_canonical_text():
    texts = [content_of(body).text(canonical=True) for body in DIFFERENT]
    assert len(set(texts)) == len(DIFFERENT)


@pytest.mark.parametrize(
    ("types", "is_json"),
    [
        (["application/json"], True),
        (['Application/JSON; Charset="UTF-8"'], True),
        (["application/graphql+json"], True),
        (["application/json; charset=latin-1"], False),
        (["application/json; x=y"], False),
        (["text/json"], False),
        (["application/json", "application/json"], False),
        (["image/svg+json"], False),
    ],
)
def test_content_is_json_only_with_one_unambiguous_json_content_type(types, is_json):
    content = content_of('{"a": 1}', *types)
    if is_json:
        assert content.json() == {"a": 1}
    else:
        with pytest.raises(ValueError, match="not JSON"):
            content.json()


def test_content_with_content_encoding_is_not_read_as_json():
    fields = [(b"content-type", b"application/json"), (b"content-encoding", b"identity")]
    with pytest.raises(ValueError, match="not JSON"):
        Content(b"1", fields).json()


@pytest.mark.parametrize(
    "body", ['{"a":1,"a":2}', '{"a":1,"A":2}', '{"ks":1,"\u212a\u017f":2}', "NaN", b"\xff", "\ufeff1", "[" * 100_000]
)
def test_json_that_parsers_read_differently_is_refused(body):
    with pytest.raises(ValueError):  # noqa: PT011  # each says it in its own words
        content_of(body).json()


READING = [
    "{a}", "query {a}", "query Q($x: I = {a: 1}) @d(a: {}) {a(b: \"} mutation {\") ...F} fragment F on T {b}",
    "# mutation\n{a}", '{a(x: """ } mutation \\""" {""")}', '{a(x: """ \\\\""" ) } mutation {b} #""")}',
    "query mutation {mutation}", '{a(x: "\\"} mutation {b}")}', ", \ufeff{a}",
]  # fmt: skip
CHANGING = [
    "mutation {a}", "{a} mutation {b}", "query {a} mutation M {b}", "subscription {a}", "", " ", "# {a}", "{", "{a}}", "(", "query",
    '{a(x: "\\\\")} mutation {b}', '{a(x: """ """)} mutation {b}', "{a} #\u2028 mutation {b}", "type A {b}", '{a(b: ")}',
    '"""{a}', '{a(x: """)}', "{a]", "query ({a)}", "extend {a}", '"a" query {a}',
]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "reads"),
    [
        *(({"query": text}, True) for text in READING),
        *(({"query": text}, False) for text in CHANGING),
        ({"query": "{a}", "operationName": "x", "variables": {}, "extensions": {"clientLibrary": {}}}, True),
        ({"query": "{a}", "extensions": None}, True),
        ([{"query": "{a}"}, {"query": "{b}"}], True),
        ([{"query": "{a}"}, {"query": "mutation {b}"}], False),
        ([], False),
        ({}, False),
        ("{a}", False),
        ({"query": ["{a}"]}, False),
        ({"query": "{a}", "Query": "mutation {b}"}, False),
        ({"query": "{a}", "id": "1"}, False),
        ({"query": "{a}", "extensions": {"persistedQuery": {}}}, False),
        ({"query": "{a}", "extensions": [1]}, False),
        ({"extensions": {"persistedQuery": {}}}, False),
    ],
)
def test_graphql_request_is_a_query_only_if_every_operation_is(value, reads):
    assert is_graphql_query(content_of(json.dumps(value))) is reads


def test_graphql_request_with_ambiguous_document_is_not_a_query():
    assert not is_graphql_query(content_of('{"query": "mutation {a}", "query": "{a}"}'))
    assert not is_graphql_query(
        Content(b'{"query": "{a}"}', [(b"content-type", b"application/json")], b"query=mutation")
    )
    assert not is_graphql_query(content_of('{"query": "{a}"}', "text/plain"))
