"""Random endpoints behind a login: nobody gets an answer that the app would not have given."""

import inspect
from contextvars import ContextVar
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Cookie, Depends, FastAPI, Header, HTTPException, Request, Response
from hypothesis import given, settings
from hypothesis import strategies as st

from swr import Cache
from swr.middleware import SWRMiddleware
from swr.testing import FakeClock
from tests.fleet import settle
from tests.web import client

USERS = {"a": "alice", "b": "bob"}
current: ContextVar[Any] = ContextVar("current_user_of_fuzz", default=None)
SOURCES = ["user", "request", "header", "cookie", "context", "mutable", "session", "path", "query", "reply", "plain"]


def token_of(authorization: Annotated[str, Header()] = "") -> str:
    if authorization not in USERS:
        raise HTTPException(401)
    return authorization


def user_of(token: Annotated[str, Depends(token_of)]) -> str:
    return USERS[token]


def session():
    return {}


def plain():
    return "plain"


PARAMETERS = {
    "user": Annotated[str, Depends(user_of)],
    "request": Request,
    "header": Annotated[str, Header(alias="authorization")],
    "cookie": Annotated[str, Cookie(alias="user")],
    "session": Annotated[dict, Depends(session)],
    "path": str,
    "query": int,
    "reply": Response,
    "plain": Annotated[str, Depends(plain)],
}


def make(sources, *, is_async, guard_at, cache=None, terms=None):
    """Return an app whose endpoint answers with all that it sees of its sources."""
    sources = sorted(sources)

    async def guard(
        request: Request,
        response: Response,
        token: Annotated[str, Depends(token_of)],
        db: Annotated[dict, Depends(session)],
    ) -> None:
        user = USERS[token]
        response.headers["x-user"] = user
        db["user"] = user
        if "context" in sources:
            current.set(user)
        if "mutable" in sources:
            current.set({"user": user})
        if "path" in sources:
            request.scope["path_params"]["path"] = user
        request.state.user = user

    def seen(arguments: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for source in sources:
            if source == "request":
                found[source] = arguments[source].state.user
            elif source in ("context", "mutable"):
                found[source] = str(current.get())
            elif source == "session":
                found[source] = arguments[source].get("user")
            elif source == "reply":
                arguments[source].headers["x-seen"] = "1"
            else:
                found[source] = arguments[source]
        return found

    async def asynchronous(**arguments: Any) -> dict[str, Any]:
        return seen(arguments)

    def synchronous(**arguments: Any) -> dict[str, Any]:
        return seen(arguments)

    endpoint = asynchronous if is_async else synchronous
    endpoint.__signature__ = inspect.Signature(
        [
            inspect.Parameter(source, inspect.Parameter.KEYWORD_ONLY, annotation=PARAMETERS[source])
            for source in sources
            if source in PARAMETERS
        ]
    )
    if cache is not None:
        endpoint = cache.response(fresh_for=60, stale_for=60, **terms)(endpoint)
    app, router = FastAPI(), APIRouter(dependencies=[Depends(guard)] if guard_at == "router" else [])
    router.get("/x/{path}", dependencies=[Depends(guard)] if guard_at == "route" else [])(endpoint)
    app.include_router(router)
    if cache is not None:
        app.add_middleware(SWRMiddleware, cache=cache)
    return app


# Each with the seconds that pass before it: after 61 an answer is stale, and swr refreshes it as the client that asked.
requests = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("12"), st.sampled_from([0, 0, 61])), min_size=3, max_size=8
)
# What says who asks: the request, or the value that a dependency has made of it.
KEYS = {
    "scope": lambda scope: dict(scope["headers"])[b"authorization"].decode(),
    "user": lambda user: user,
}


@settings(max_examples=60, deadline=None)
@given(
    sources=st.sets(st.sampled_from(SOURCES), max_size=3),
    is_async=st.booleans(),
    guard_at=st.sampled_from(["route", "router"]),
    word=st.sampled_from([None, None, *KEYS]),
    requests=requests,
)
def test_random_endpoint_behind_a_login_answers_as_it_would_without_cache(sources, is_async, guard_at, word, requests):
    async def main():
        if word == "user":
            sources.add("user")
        terms = {"key": KEYS[word]} if word else {}
        bare = make(sources, is_async=is_async, guard_at=guard_at)
        clock = FakeClock()
        async with Cache(clock=clock) as cache:
            app = make(sources, is_async=is_async, guard_at=guard_at, cache=cache, terms=terms)
            async with client(app) as http, client(bare) as wanted:
                for token, query, seconds in requests:
                    clock.advance(seconds)
                    fields = {"authorization": token, "cookie": f"user={token}"}
                    found, expected = [
                        await side.get(f"/x/me?query={query}", headers=fields) for side in (http, wanted)
                    ]
                    assert (found.status_code, found.json()) == (expected.status_code, expected.json())
                    for name in ("x-user", "x-seen"):
                        assert found.headers.get(name) == expected.headers.get(name)
                    await settle()

    anyio.run(main)
