"""No answer but what the app would have said: random apps, rules and users in random order, none of them trusted."""

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request as StarletteRequest
from starlette.responses import PlainTextResponse

from swr import Cache
from swr.http.request_fields import FieldClass, field_class
from swr.middleware import Rule, SWRMiddleware
from swr.testing import FakeClock
from tests.web import client

FIELDS = [
    "authorization", "x-api-key", "x-token", "x-tenant", "x-user-id", "x-app-version", "origin", "x-forwarded-host",
    "x-forwarded-proto", "forwarded", "x-forwarded-user", "cf-access-jwt-assertion", "hx-request", "save-data", "cookie",
    "x-feature-flags", "device-memory", "x-http-method-override", "x-original-url",
]  # fmt: skip
INPUTS = [
    *FIELDS,
    "host",
    "path",
    "query",
    "root_path",
    "session",
    "user",
    "state",
    "method",
    "content",
    "content-type",
]
CONTENT = ["content", "content-type"]
IGNORABLE = ["x-tenant", "x-app-version", "x-feature-flags", "device-memory", "x-user-id"]
METHODS = {"": "GET", "a": "QUERY", "b": "POST"}


class Session(dict[str, Any]):
    """A session that notes its use, as Starlette's does."""

    accessed = False

    def read(self) -> str:
        self.accessed = True
        return str(self.get("name"))


class User:
    def __init__(self, name: str) -> None:
        self.name = name
        self.is_authenticated = bool(name)


def written(draw: random.Random, value: str) -> bytes:
    """Return JSON that holds a value, in one of the ways to write it; nothing for no value."""
    members = [f'"value":{" " * draw.randrange(2)}"{value}"', '"other":1']
    return f"{{{','.join(draw.sample(members, 2))}}}".encode() if value else b""


def seen(scope: Any, inputs: list[str], content: bytes) -> str:
    """Return what an app that depends on `inputs` answers."""
    headers = StarletteRequest(scope).headers
    parts = []
    for name in inputs:
        if name == "session":
            value = scope["session"].read()
        elif name == "user":
            value = scope["user"].name
        elif name == "state":
            value = scope["state"].get("tenant", "")
        elif name == "query":
            value = scope["query_string"].decode()
        elif name in ("path", "root_path", "method"):
            value = scope[name]
        elif name == "content":
            value = json.loads(content)["value"] if content else ""
        else:
            value = headers.get(name, "")
        parts.append(f"{name}={value}")
    return "&".join(parts)


def make_rule(draw: random.Random) -> Rule:
    return Rule(
        "/{path:path}",
        ["GET", "HEAD", "QUERY", "POST"],
        safe=True,
        canonical_json=draw.random() < 0.5,
        fresh_for=60,
        stale_for=600,
        override=draw.random() < 0.3,
        vary=draw.sample(
            [name for name in FIELDS if name != "cookie" and field_class(name.encode()) is not FieldClass.CREDENTIAL],
            draw.randrange(3),
        ),
        credentials=draw.choice(["private", "private", "vary"]),
    )


@pytest.mark.parametrize("control", ["", "stale-while-revalidate=60", "must-understand"])
@settings(deadline=None, max_examples=80)
@given(seed=st.integers(0, 2**32))
def test_each_answer_equals_that_of_the_app_without_a_cache(control, seed):
    import anyio

    anyio.run(run, control, seed)


async def run(control: str, seed: int) -> None:
    draw = random.Random(seed)
    inputs = draw.sample(INPUTS, draw.randrange(1, 4))
    if draw.random() < 0.3:
        inputs[0] = draw.choice(CONTENT)
    # What does not change between requests keeps none of them away from the cache.
    varied = {*inputs, *draw.sample(INPUTS, 1)}
    # Only a request with content can differ by it.
    usual = "GET" if varied.isdisjoint(CONTENT) else draw.choice(["QUERY", "POST"])
    clock = FakeClock()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = {"cache-control": control} if control else {}
        content = await StarletteRequest(scope, receive).body()
        await PlainTextResponse(seen(scope, inputs, content), headers=headers)(scope, receive, send)

    # Without a key the tenant is one that swr sees by itself.
    key = draw.choice([None, lambda scope: scope.get("state", {}).get("tenant", "")])
    # What the operator says that no response depends on, and that is so.
    ignored = draw.sample([name for name in IGNORABLE if name not in inputs], draw.randrange(3))
    async with Cache(clock=clock) as cache:
        inner = SWRMiddleware(app, cache, rules=[make_rule(draw)], key=key, ignore_fields=ignored)
        expected = ""

        async def outer(scope: Any, receive: Any, send: Any) -> None:
            nonlocal expected
            scope = {**scope, **extra}
            reference = {**scope, "session": Session(scope["session"])}
            expected = seen(reference, inputs, content)
            await inner(scope, receive, send)

        async with client(outer) as http:
            for _ in range(16):
                name = {each: draw.choice(["", "a", "b"]) for each in varied}
                extra = {
                    "session": Session({"name": name["session"]}) if name.get("session") else Session(),
                    "user": User(name.get("user", "")),
                    "state": {"tenant": name["state"]} if name.get("state") else {},
                    "root_path": f"/{name['root_path']}" if name.get("root_path") else "",
                }
                headers = {each: name[each] for each in FIELDS if name.get(each)}
                method, content = METHODS[name["method"]] if "method" in name else usual, b""
                if method != "GET":
                    content = written(draw, name.get("content", ""))
                    headers["content-type"] = f"application/{name.get('content-type', '')}+json"
                headers["host"] = f"{name.get('host', '')}x.test"
                path = f"/p{name.get('path', '')}" + (f"?x={name['query']}" if name.get("query") else "")
                answer = await http.request(method, path, content=content, headers=headers)
                shown = inputs, method, content, headers, path, extra, dict(answer.headers)
                assert answer.text == expected, shown
                clock.advance(draw.choice([0, 0, 1, 61]))


NAMED = ["accept-language", "user-agent", "referer", "x-tenant", "origin"]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_app_with_correct_vary_is_cached_and_each_answer_is_right(seed):
    import anyio

    anyio.run(run_looking, seed)


async def run_looking(seed: int) -> None:
    """An app that looks at one field after another, by what it has seen, and names these in `Vary`."""
    draw = random.Random(seed)
    next_by = {(name, value): draw.choice([*NAMED, None]) for name in NAMED for value in ("", "a", "b")}
    first = draw.choice(NAMED)
    clock = FakeClock()
    runs = 0

    def answer_to(fields: Any) -> tuple[str, list[str]]:
        looked: dict[str, str] = {}
        name: str | None = first
        while name is not None and name not in looked:
            looked[name] = fields.get(name, "")
            name = next_by[name, looked[name]]
        return str(looked), list(looked)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal runs
        runs += 1
        text, looked = answer_to(StarletteRequest(scope).headers)
        headers = {"cache-control": "max-age=60, stale-while-revalidate=60", "vary": ", ".join(looked)}
        await PlainTextResponse(text, headers=headers)(scope, receive, send)

    async with Cache(clock=clock) as cache, client(SWRMiddleware(app, cache)) as http:
        for _ in range(4):
            requests = [{name: value for name in NAMED if (value := draw.choice(["", "a", "b"]))} for _ in range(5)]
            for _ in range(4):
                for fields in draw.sample(requests, len(requests)):
                    # Also without those that the client sends by itself.
                    answer = await http.get("/x", headers={"accept-language": "", "user-agent": "", **fields})
                    assert answer.text == answer_to(fields)[0], (next_by, first, fields)
                clock.advance(draw.choice([0, 1, 5]))
            runs = 0
            for fields in requests:
                await http.get("/x", headers={"accept-language": "", "user-agent": "", **fields})
            assert runs == 0, (next_by, first)
            clock.advance(draw.choice([0, 130]))


@pytest.mark.parametrize("name", FIELDS)
def test_no_fuzzed_field_is_of_the_ignored_class(name):
    assert name == "cookie" or field_class(name.encode()) is not FieldClass.IGNORED
