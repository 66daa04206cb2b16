# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""The types of the middleware, the rules and the proxy as users see them, checked by mypy and pyright; never run."""

from collections.abc import Callable
from typing import assert_type

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Scope

from swr import Cache
from swr.middleware import Rule, SWRMiddleware
from swr.proxy import Proxy

cache = Cache()


@cache.response(fresh_for=60, stale_for="10m", tags=("group:{group}",))
async def ranking(group: str, limit: int = 10) -> dict[str, int]:
    return {group: limit}


@cache.response(fresh_for=60)
def ranking_def(group: str) -> JSONResponse:
    return JSONResponse(group)


@cache.response(fresh_for=60, key=ranking_def, shared=False)
async def by_request(request: Request) -> JSONResponse:
    return JSONResponse({})


def tenant(scope: Scope) -> str:
    return "a"


async def endpoints() -> None:
    assert_type(await ranking("ATL"), dict[str, int])
    assert_type(ranking_def(group="ATL"), JSONResponse)
    await ranking(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    cache.response(fresh_for=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    cache.response(fresh_for=1, credentials="no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def middleware() -> None:
    rules = [Rule("/rankings/{group}", fresh_for=60, stale_for="10m", tags=("group:{group}",), vary=("X-Units",))]
    app = FastAPI()
    app.add_middleware(SWRMiddleware, cache=cache, rules=rules, ignore_fields=("X-App",), key=tenant)
    app.add_middleware(SWRMiddleware)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    site = Starlette(
        routes=[Route("/", by_request)], middleware=[Middleware(SWRMiddleware, cache=cache, rules=rules, version="1")]
    )
    asgi: ASGIApp = SWRMiddleware(site, cache, rules)
    asgi = SWRMiddleware(Proxy("http://127.0.0.1:9000", timeout=10), cache)
    del asgi


def subscribing() -> Callable[[], None]:
    return cache.subscribe(print)


def create_app(url: str | None) -> None:
    cache.configure(url, namespace="shop", lease_for="5s", enabled=False)
    cache.configure(l1_max_bytes=0)
    cache.configure(namspace="shop")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    cache.configure(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(Cache.from_env("redis://h", drain_for=5), Cache)
    assert_type(Cache.from_env(), Cache)


def of_user(user: str) -> str:
    return user


def of_named(*, user: str, group: str) -> str:
    return user + group


@cache.response(fresh_for=60, key=of_user)
async def basket(user: str) -> str:
    return user


@cache.response(fresh_for=60, key=of_named)
async def basket_in(user: str, group: str) -> str:
    return user


@cache.response(fresh_for=60, key=lambda user: user.name)
async def basket_of_lambda(user: str) -> str:
    return user


@cache.response(fresh_for=60, key=lambda user, group: (user, group))
async def basket_of_two(user: str, group: str) -> str:
    return user
