"""`@cache.response` above a decorator that injects arguments, as those of dishka and dependency-injector do."""

import functools
import inspect
import logging
from typing import Annotated

import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Request, WebSocket

from swr.middleware import SWRMiddleware
from tests.web import client

pytestmark = pytest.mark.anyio


class Service:
    def __init__(self, request: Request):
        self.request = request

    def language(self) -> str:
        return self.request.headers.get("accept-language", "none")


def inject(endpoint):
    """Give a `Service` to an endpoint; FastAPI fills one of two more parameters, with the request or a web socket."""

    @functools.wraps(endpoint)
    async def injected(*args, **kwargs):
        request, _ = kwargs.pop("___request"), kwargs.pop("___websocket", None)
        return await endpoint(*args, service=Service(request), **kwargs)

    own = [parameter for name, parameter in inspect.signature(endpoint).parameters.items() if name != "service"]
    added = [
        inspect.Parameter(f"___{kind.__name__.lower()}", inspect.Parameter.KEYWORD_ONLY, annotation=kind)
        for kind in (Request, WebSocket)
    ]
    injected.__signature__ = inspect.Signature([*own, *added])
    return injected


def guard(x_token: Annotated[str, Header()] = "") -> None:
    if x_token not in ("a", "b"):
        raise HTTPException(403)


def app_with(cache, dependencies=(), speaks=False, **terms):
    app, runs = FastAPI(title=str(terms)), []

    @app.get("/x/{group}", dependencies=dependencies)
    @cache.response(fresh_for=60, tags=("group:{group}",), **terms)
    @inject
    async def endpoint(group: str, service: Service) -> str:
        runs.append(group)
        return f"{group} {service.language()}" if speaks else group

    app.add_middleware(SWRMiddleware, cache=cache)
    return app, runs


async def states(app, *requests):
    async with client(app) as http:
        found = [await http.get("/x/ATL", headers=headers) for headers in requests]
    return [answer.headers["swr-state"] if answer.status_code == 200 else answer.status_code for answer in found]


async def test_injected_endpoint_is_stored_for_anonymous_requests(cache):
    app, runs = app_with(cache)
    assert await states(app, {}, {}) == ["missing", "fresh"]
    await cache.invalidate_tag("group:ATL")
    assert await states(app, {}) == ["missing"]
    assert runs == ["ATL", "ATL"]


async def test_injected_service_that_reads_the_language_prevents_sharing(cache):
    app, _ = app_with(cache, speaks=True)
    async with client(app) as http:
        for language in ("de", "fr", "de"):
            assert (await http.get("/x/ATL", headers={"accept-language": language})).json() == f"ATL {language}"


async def test_injected_endpoint_behind_a_guard_is_shared_only_if_shared_is_true(cache, caplog):
    asked = [{"x-token": "a"}, {"x-token": "b"}, {"x-token": "wrong"}]
    app, _ = app_with(cache, [Depends(guard)])
    with caplog.at_level(logging.WARNING):
        assert await states(app, *asked) == ["missing", "missing", 403]
    assert "key=lambda scope: ... if that selects it" in caplog.text
    app, _ = app_with(cache, [Depends(guard)], shared=True)
    assert await states(app, *asked) == ["missing", "fresh", 403]
