"""Behind a login: an exception that says how long it holds is stored, and raised again for each reader."""

import enum

import anyio
import msgspec
import pytest
from fastapi import Depends, HTTPException, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException as PlainHTTPException

from swr import Cache
from swr.core.codec import CodecError
from swr.http.stored_response import StoredResponse, check
from swr.middleware import SWRMiddleware

# `tokens` is a fixture of every test here, too.
from tests.test_guarded import DETAIL, app_with, client, get, state, tokens, wrapped  # noqa: F401  # fixtures
from tests.test_guarded_loads import Gated, readers_of, until

pytestmark = pytest.mark.anyio
LASTS = {"Cache-Control": "max-age=5", "X-Why": "so"}


def missing(status=404, detail="no such player", headers=None, kind=HTTPException):
    return kind(status, detail, {**LASTS, **(headers or {})})


@pytest.mark.parametrize("plain", [False, True], ids=["async", "def"])
@pytest.mark.parametrize("kind", [HTTPException, PlainHTTPException], ids=["fastapi", "starlette"])
async def test_exception_with_a_lifetime_is_raised_for_each_reader_until_it_expires(cache, clock, kind, plain):
    gated, seen, ended = Gated(99, plain=plain), [], []
    detail = {"why": ["so", 1, None]} if kind is HTTPException else "so"
    gated.results[1] = missing(detail=detail, kind=kind)

    async def session():
        try:
            yield
        except PlainHTTPException as error:
            ended.append(error.status_code)
            raise

    app = app_with(cache, gated.endpoint, dependencies=[Depends(session)])

    @app.exception_handler(kind)
    async def handle(request: Request, error: PlainHTTPException) -> Response:
        seen.append(error)
        return JSONResponse({"handled": error.detail}, error.status_code, error.headers)

    async with wrapped(cache, app) as http:
        found = await get(http)
        assert (state(found), found.headers["cache-status"]) == (
            (404, "missing"),
            f"swr; fwd=uri-miss; stored; {DETAIL}",
        )
        clock.advance(2)
        for token in ("b", "a"):
            found = await get(http, token)
            assert (state(found), found.json()) == ((404, "fresh"), {"handled": detail})
            assert (found.headers["x-why"], found.headers["age"]) == ("so", "2")
            assert found.headers["cache-status"] == f"swr; hit; ttl=3; {DETAIL}"
        clock.advance(4)
        assert state(await get(http)) == (200, "missing")
    assert gated.runs == 2
    assert [type(error) for error in seen] == [kind] * 3
    assert {tuple(error.headers) for error in seen} == {tuple(LASTS)}
    assert len({id(error) for error in seen}) == 3
    assert ended == [404] * 3


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_stored_exception_reaches_waiting_readers_and_another_process(server):
    gated = Gated(2)
    gated.results[2] = missing()
    async with Cache(server.url) as one, Cache(server.url) as other:
        async with readers_of(one, app_with(one, gated.endpoint)) as readers:
            await readers.share_a_load(one, gated, 5)
        assert [(found.status_code, found.json()) for found in readers.found] == [
            (404, {"detail": "no such player"})
        ] * 5
        async with wrapped(other, app_with(other, gated.endpoint)) as http:
            assert state(await get(http)) == (404, "fresh")
    assert gated.runs == 2


async def test_invalidation_removes_a_stored_exception(cache):
    gated = Gated(99)
    gated.results[1] = missing()
    async with wrapped(cache, app_with(cache, gated.endpoint, tags=("players",))) as http:
        assert state(await get(http)) == (404, "missing")
        await cache.invalidate_tag("players")
        assert state(await get(http)) == (200, "missing")


class Reason(enum.StrEnum):
    GONE = "gone"


class Own(HTTPException):
    pass


def with_more():
    error = missing()
    error.more = 1
    return error


@pytest.mark.parametrize(
    "failure",
    [
        HTTPException(404, "no lifetime"),
        HTTPException(308, headers={"Location": "/y"}),
        *(missing(status) for status in (401, 403, 407, 429)),
        missing(headers={"Cache-Control": "private, max-age=5"}),
        missing(headers={"Cache-Control": "no-cache, max-age=5"}),
        missing(headers={"Set-Cookie": "a=b"}),
        missing(headers={"Retry-After": 5}),
        missing(headers={"Content-Length": "2"}),
        missing(detail=(1, 2)),
        missing(detail={1: 2}),
        missing(detail=Reason.GONE),
        missing(detail=float("nan")),
        missing(detail={"x"}),
        missing(detail="x" * 2000),
        missing(kind=Own),
        with_more(),
    ],
    ids=repr,
)
async def test_exception_that_may_differ_for_another_reader_is_not_stored(cache, failure):
    gated = Gated(99)
    gated.results |= {1: failure, 2: failure}
    app = app_with(cache, gated.endpoint)

    @app.exception_handler(HTTPException)
    async def handle(request: Request, error: HTTPException) -> Response:
        return PlainTextResponse("", error.status_code)

    async with wrapped(cache, app, max_body_bytes=1000) as http:
        for _ in range(2):
            with anyio.fail_after(30):
                assert state(await get(http)) == (failure.status_code, "missing")
    assert gated.runs == 2


@pytest.mark.parametrize(
    ("failure", "why"),
    [
        (HTTPException(404, "no lifetime"), "status 404"),
        (missing(401), "status 401"),
        (missing(headers={"Retry-After": 5}), "status 404"),
        (missing(headers={"Cache-Control": "private, max-age=5"}), "private"),
        (missing(detail="x" * 2000), "too large"),
        (Own(404), "status 404"),
    ],
    ids=repr,
)
async def test_cache_status_says_why_an_exception_is_not_stored(cache, failure, why):
    gated = Gated(99)
    gated.results[1] = failure
    app = app_with(cache, gated.endpoint)

    @app.exception_handler(HTTPException)
    async def handle(request: Request, error: HTTPException) -> Response:
        return PlainTextResponse("", error.status_code)

    async with wrapped(cache, app, max_body_bytes=1000) as http:
        found = await get(http)
    assert found.headers["cache-status"].endswith(f'detail="authorization, {why}"')


async def test_exception_is_not_stored_if_a_dependency_makes_the_response_private(cache):
    def sets_a_field(response: Response) -> None:
        response.headers["cache-control"] = "private"

    gated = Gated(99)
    gated.results |= {1: missing(), 2: missing()}
    async with wrapped(cache, app_with(cache, gated.endpoint, dependencies=[Depends(sets_a_field)])) as http:
        for _ in range(2):
            assert state(await get(http)) == (404, "missing")
    assert gated.runs == 2


@pytest.mark.parametrize("returned", [False, True], ids=["raised", "returned"])
@pytest.mark.parametrize(
    ("statuses", "found"),
    [
        # A good response stays, whatever the lifetime of the failure.
        ((422, 503), [(200, "missing"), (422, "missing"), (200, "stale")]),
        # It is gone; and then nothing good is left.
        ((404, 422), [(200, "missing"), (404, "missing"), (422, "missing"), (422, "fresh")]),
    ],
    ids=["422 then 503", "404 then 422"],
)
async def test_404_replaces_a_good_response_but_422_does_not(cache, clock, statuses, found, returned):
    gated = Gated(99)
    for run, status in enumerate(statuses, 2):
        gated.results[run] = JSONResponse("no", status, LASTS) if returned else missing(status)
    async with wrapped(cache, app_with(cache, gated.endpoint, stale_for=0, stale_if_error=600)) as http:
        for number, expected in enumerate(found, 1):
            assert state(await get(http)) == expected
            if number < len(found) - 1:
                clock.advance(61)
    assert gated.runs == 3


async def test_503_with_a_lifetime_is_stored_if_there_is_no_fallback(cache):
    gated = Gated(99)
    gated.results[1] = missing(503)
    async with wrapped(cache, app_with(cache, gated.endpoint)) as http:
        assert state(await get(http)) == (503, "missing")
        assert state(await get(http)) == (503, "fresh")
    assert gated.runs == 1


async def test_background_refresh_stores_an_exception_and_later_replaces_it(cache, clock):
    gated = Gated(99)
    gated.results[2] = missing(headers={"Cache-Control": "max-age=5, stale-while-revalidate=60"})
    app = app_with(cache, gated.endpoint)
    app.add_middleware(SWRMiddleware, cache=cache)
    async with client(app) as http:
        await get(http)
        for status, begun in ((200, 2), (404, 3)):
            clock.advance(61 if status == 200 else 6)
            assert state(await get(http)) == (status, "stale")
            await until(lambda begun=begun: gated.runs == begun and not len(cache.engine.flights))
        assert state(await get(http)) == (200, "fresh")


def test_stored_exception_with_invalid_detail_is_rejected():
    check(StoredResponse(404, [], b'"x"', raised="fastapi"))
    with pytest.raises(CodecError):
        check(StoredResponse(404, [], b"{", raised="fastapi"))
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(msgspec.to_builtins(StoredResponse(404, [], b"1", raised="other")), StoredResponse)
