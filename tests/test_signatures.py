"""Annotations that name types which are defined further down, or imported only for type checkers."""

import sys
from dataclasses import dataclass
from typing import ForwardRef

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from swr import Cache, ConfigurationError, LoadContext, Policy
from swr.middleware import Rule, SWRMiddleware

pytestmark = pytest.mark.anyio


def define(source: str, **names: object) -> dict[str, object]:
    """Run source code whose annotations are not evaluated where they are written, and return its names."""
    future = "from __future__ import annotations\n" if sys.version_info < (3, 14) else ""
    exec(future + source, names)
    return names


LOADERS = """
@cache.cached("one:{number}:{at}", fresh_for=60, tags=lambda value, number: ())
async def one(number: Decimal, *, at: Moment | None = None) -> Later:
    return Later(number)

@cache.cached_many("many:{number}", fresh_for=60)
async def many(numbers: list[Decimal]) -> dict[int, Later]:
    return {number: Later(number) for number in numbers}

@cache.cached("asking:{number}", fresh_for=60)
async def asking(context: LoadContext[Later], number: Decimal) -> Later:
    return Later(context.has_value)

@cache.cached(key=lambda number: f"{number}", fresh_for=60)
async def by_key(number: Decimal) -> int:
    return number

async def anything(context: LoadContext[Later]) -> Later:
    return Later(2)

@dataclass
class Later:
    number: int
"""


@pytest.fixture
def cache():
    return Cache()


async def test_loader_may_use_types_that_are_defined_later(cache):
    names = define(LOADERS, cache=cache, dataclass=dataclass, LoadContext=LoadContext, __name__=__name__)
    later = names["Later"]
    async with cache:
        assert await names["one"](1) == later(1)
        assert await names["many"]([1, 2]) == {1: later(1), 2: later(2)}
        assert await names["asking"](1) == later(False)
        assert await names["by_key"](1) == 1
        assert (await cache.get_or_load("k", names["anything"], Policy(60))).value == later(2)


@pytest.mark.parametrize("annotation", ["Request", ForwardRef("Request")])
def test_request_parameter_is_refused_although_its_class_is_not_defined(cache, annotation):
    async def load(request): ...

    load.__annotations__["request"] = annotation
    with pytest.raises(ConfigurationError, match="'request', which belongs to one request"):
        cache.cached("k:{request}", fresh_for=60)(load)


ENDPOINTS = """
async def page(request: Request) -> Response:
    return PlainTextResponse("a page")

@cache.response(fresh_for=60)
async def decorated(request: Request) -> Response:
    return PlainTextResponse("a page")
"""


async def test_starlette_endpoint_may_use_types_that_are_not_defined(cache):
    names = define(ENDPOINTS, cache=cache, PlainTextResponse=PlainTextResponse, __name__=__name__)
    app = Starlette(routes=[Route("/page", names["page"]), Route("/decorated", names["decorated"])])
    app.add_middleware(SWRMiddleware, cache=cache, rules=[Rule("/page", fresh_for=60)])
    async with cache, httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for path in ("/page", "/decorated"):
            states = [(await client.get(path)).headers["swr-state"] for _ in range(2)]
            assert states == ["missing", "fresh"]
