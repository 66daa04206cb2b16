"""Tags that a response brings: from a function, or from the fields that CDNs read."""

import gzip
import json
from typing import Annotated

import pytest
from fastapi import Depends, FastAPI, Header
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from swr import Cache, ConfigurationError
from swr.endpoints.response_tags import ResponseTags
from swr.http.tag_fields import LONGEST_TAG, MOST_TAGS, tags_in
from swr.middleware import Rule, SWRMiddleware
from tests.web import App, Origin, client


@pytest.fixture
async def cache(place_url):
    async with Cache(place_url) as cache:
        yield cache


@pytest.fixture
def anyio_backend(place):
    return place.rpartition(" ")[2]


pytestmark = pytest.mark.anyio


async def states(http, *paths, **headers):
    return [(await http.get(path, headers=headers)).headers["swr-state"] for path in paths]


class TestDecorator:
    @pytest.mark.parametrize("runs_in_thread", [False, True])
    @pytest.mark.parametrize("has_login", [False, True])
    async def test_tags_function_makes_tags_from_returned_value_and_parameters(self, cache, runs_in_thread, has_login):
        app = FastAPI()
        app.add_middleware(SWRMiddleware, cache=cache)

        def guard(authorization: Annotated[str, Header()] = "") -> None:
            pass

        dependencies = [Depends(guard)] if has_login else []
        decorate = cache.response(
            fresh_for=60, stale_for=60, tags=lambda flights, group: [f"flight:{flight}" for flight in [*flights, group]]
        )
        if runs_in_thread:

            @app.get("/{group}", dependencies=dependencies)
            @decorate
            def flights(group: str) -> list[int]:
                return [1, 2]

        else:

            @app.get("/{group}", dependencies=dependencies)
            @decorate
            async def flights(group: str) -> list[int]:
                return [1, 2]

        fields = {"authorization": "x"} if has_login else {}
        async with client(app) as http:
            assert await states(http, "/a", "/b", "/a", "/b", **fields) == ["missing", "missing", "fresh", "fresh"]
            await cache.invalidate_tag("flight:a")
            assert await states(http, "/a", "/b", **fields) == ["missing", "fresh"]
            await cache.mark_stale_tags("flight:2")
            assert await states(http, "/a", "/b", **fields) == ["stale", "stale"]
            await cache.invalidate_tag("flight:3")
            assert "missing" not in await states(http, "/a", "/b", **fields)

    async def test_tags_function_receives_starlette_response_and_a_304_keeps_its_tags(self, cache):
        async def items(request: Request) -> JSONResponse:
            is_known = request.headers.get("if-none-match") == '"1"'
            return JSONResponse([1], 304 if is_known else 200, {"etag": '"1"', "cache-control": "no-cache"})

        rule = cache.response(
            fresh_for=60, tags=lambda response: [f"item:{item}" for item in json.loads(response.body)]
        )
        app = Starlette(routes=[Route("/x", rule(items))])
        app.add_middleware(SWRMiddleware, cache=cache)
        async with client(app) as http:
            how = [(await http.get("/x")).headers["cache-status"] for _ in range(3)]
            assert how[1:] == ["swr; fwd=request; fwd-status=304; stored"] * 2 or "304" in how[1]
            await cache.invalidate_tag("item:1")
            assert "304" not in (await http.get("/x")).headers["cache-status"]

    @pytest.mark.parametrize("has_login", [False, True])
    async def test_response_is_not_stored_and_logged_once_if_its_tags_function_fails(self, cache, caplog, has_login):
        app = FastAPI()
        app.add_middleware(SWRMiddleware, cache=cache)

        @app.get("/x")
        @cache.response(fresh_for=60, tags=lambda value: value["missing"])
        async def flights() -> dict[str, int]:
            return {}

        fields = {"authorization": "x"} if has_login else {}
        async with client(app) as http:
            for _ in range(2):
                answer = await http.get("/x", headers=fields)
                assert answer.json() == {}
                assert 'detail="tags"' in answer.headers["cache-status"] or has_login
                assert answer.headers["swr-state"] == "missing"
        assert sum("tags= of" in record.getMessage() for record in caplog.records) == 1

    @pytest.mark.parametrize("tags", [lambda: ["x"], lambda value, other: [], lambda *, value: []])
    def test_tags_function_with_unsuitable_parameters_is_rejected(self, tags):
        async def flights(group: str) -> None:
            pass

        with pytest.raises(ConfigurationError, match="tags="):
            Cache().response(fresh_for=60, tags=tags)(flights)
        with pytest.raises(ConfigurationError, match="tags="):
            Rule("/{group}", fresh_for=60, tags=tags)

    def test_tags_function_without_signature_receives_the_response_alone(self, monkeypatch):
        def silent(function):
            raise ValueError(f"no signature found for {function!r}")

        monkeypatch.setattr("inspect.signature", silent)
        assert ResponseTags(tuple, "x", ()).bound({})(["a"]) == ("a",)


class TestRule:
    async def test_tags_function_of_a_rule_receives_content_and_path_parameters(self, cache):
        app = App([(b"content-type", b"application/json")], body=b"[1, 2]")
        rule = Rule("/{name}", fresh_for=60, tags=lambda content, name="": [f"{name}:{id}" for id in content.json()])
        async with client(SWRMiddleware(app, cache, [rule])) as http:
            assert await states(http, "/a", "/b", "/a", "/b") == ["missing", "missing", "fresh", "fresh"]
            await cache.invalidate_tag("a:2")
            assert await states(http, "/a", "/b") == ["missing", "fresh"]

    @pytest.mark.parametrize(
        ("headers", "body"),
        [
            ([], b"[1]"),
            ([(b"content-type", b"application/json")], b"{"),
            ([(b"content-type", b"application/json")], json.dumps([*range(MOST_TAGS + 1)]).encode()),
            ([(b"content-type", b"application/json"), (b"content-encoding", b"gzip")], gzip.compress(b"[1]")),
            ([(b"content-type", b"application/json")], b'"one string"'),
        ],
    )
    async def test_response_is_not_stored_if_the_tags_of_its_rule_cannot_be_made(self, cache, headers, body):
        app = App(headers, body=body)
        rule = Rule(
            "/x", fresh_for=60, tags=lambda content: [f"{id}" for id in content.json()] if len(body) > 12 else "x"
        )
        async with client(SWRMiddleware(app, cache, [rule])) as http:
            assert await states(http, "/x", "/x") == ["missing", "missing"]
            answer = await http.get("/x")
            assert answer.headers["cache-status"] == 'swr; fwd=uri-miss; detail="tags"'

    async def test_post_response_is_not_stored_for_get_if_its_rule_has_a_tags_function(self, cache):
        fields = {"cache-control": "max-age=60", "content-location": "/x"}
        origin = Origin((200, fields, "[1]"))
        rule = Rule("/x", fresh_for=60, tags=lambda content: ["a"])
        async with client(SWRMiddleware(origin, cache, [rule])) as http:
            await http.post("/x")
            assert await states(http, "/x") == ["missing"]


class TestFields:
    @pytest.mark.parametrize(
        ("name", "value", "tags"),
        [
            ("surrogate-key", "a  b,c", ["a", "b,c"]),
            ("cache-tag", "a, b c,,d", ["a", "b c", "d"]),
            ("xkey", "a b,c", ["a", "b", "c", "b,c"]),
        ],
    )
    async def test_response_is_invalidated_by_each_tag_in_its_fields(self, cache, name, value, tags):
        app = App([(b"cache-control", b"max-age=60"), (name.encode(), value.encode()), (name.encode(), b"more")])
        async with client(SWRMiddleware(app, cache)) as http:
            for tag in [*tags, "more"]:
                assert await states(http, "/x", "/x") == ["missing", "fresh"]
                await cache.invalidate_tag(tag)
            assert (await http.get("/x")).headers[name] == f"{value}, more"

    @pytest.mark.parametrize("coding", ["latin-1", "utf-8"])
    async def test_non_ascii_tag_invalidates_a_response_sent_in_either_encoding(self, cache, coding):
        app = App([(b"cache-control", b"max-age=60"), (b"surrogate-key", "größe".encode(coding))])
        async with client(SWRMiddleware(app, cache)) as http:
            await states(http, "/x")
            await cache.invalidate_tag("größe")
            assert await states(http, "/x") == ["missing"]

    async def test_option_tag_fields_replaces_the_default_fields(self, cache):
        app = App([(b"cache-control", b"max-age=60"), (b"edge-cache-tag", b"a,b"), (b"xkey", b"x")])
        async with client(SWRMiddleware(app, cache, tag_fields=["Edge-Cache-Tag"])) as http:
            await states(http, "/x")
            await cache.invalidate_tag("x")
            assert await states(http, "/x") == ["fresh"]
            await cache.invalidate_tag("b")
            assert await states(http, "/x") == ["missing"]

    async def test_stripped_tag_fields_are_not_sent_and_a_304_keeps_the_tags(self, cache):
        fields = {"cache-control": "no-cache", "etag": '"1"', "surrogate-key": "a"}
        origin = Origin((200, fields, "x"), (200, {**fields, "surrogate-key": None}, "x"))
        async with client(SWRMiddleware(origin, cache, strip_tag_fields=True)) as http:
            for how in ("stored", "304", "304"):
                answer = await http.get("/x")
                assert how in answer.headers["cache-status"]
                assert "surrogate-key" not in answer.headers
            for method, headers in (("POST", {}), ("GET", {"cookie": "a=1"})):
                origin.answers((200, fields, "x"))
                answer = await http.request(method, "/y", headers=headers)
                assert "surrogate-key" not in answer.headers
            await cache.invalidate_tag("a")
            assert "304" not in (await http.get("/x")).headers["cache-status"]

    async def test_response_with_too_many_or_too_long_tags_is_not_stored(self, cache):
        for value in (b" ".join(b"%d" % number for number in range(MOST_TAGS + 1)), b"x" * (LONGEST_TAG + 1)):
            app = App([(b"cache-control", b"max-age=60"), (b"surrogate-key", value)])
            async with client(SWRMiddleware(app, cache)) as http:
                answer = await http.get("/x")
                assert answer.headers["cache-status"] == 'swr; fwd=uri-miss; detail="too many tags"'
            await cache.clear()

    async def test_response_is_not_stored_when_confirmations_add_too_many_tags(self, cache):
        fields = {"cache-control": "no-cache", "etag": '"1"'}
        origin = Origin(
            *(
                (200, {**fields, "surrogate-key": " ".join(f"{round}-{n}" for n in range(900))}, "x")
                for round in range(4)
            )
        )
        async with client(SWRMiddleware(origin, cache)) as http:
            how = [(await http.get("/x")).headers["cache-status"] for _ in range(4)]
        assert ["stored" in status for status in how] == [True, True, True, False]


def test_tag_is_decoded_in_every_possible_encoding():
    assert tags_in([(b"Xkey", b"\xff \xc3\xa9")], [b"xkey"]) == ("ÿ", "é", "Ã©")
