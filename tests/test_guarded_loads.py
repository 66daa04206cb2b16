"""Behind a login: one reader runs the endpoint for all, in its own task, and needs nothing that the others hold."""

import asyncio
import contextlib
import sys
import threading
from collections import Counter
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import anyio
import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.middleware.sessions import SessionMiddleware
from starlette.routing import Route

from swr import Cache
from swr.events import Bypassed, Hit, LoadBegun, Loaded, LoadFailed, Miss, NotStored, Stale
from swr.middleware import Rule, SWRMiddleware
from swr.prometheus import export
from tests.fleet import settle, until

# `tokens` is a fixture of every test here, too.
from tests.test_guarded import DETAIL, TOKENS, User, app_with, bearer, client, get, state, tokens, wrapped  # noqa: F401  # fixtures

pytestmark = pytest.mark.anyio

PATIENCE = 120
ROOT = Path(__file__).parent.parent


class Gated:
    """An endpoint whose runs wait, from a given one on, and end as they are told."""

    def __init__(self, waits_from=1, *, plain=False):
        self.runs = self.begun = 0
        self.waits_from = waits_from
        self.gate, self.plain_gate = anyio.Event(), threading.Event()
        self.results: dict[int, Any] = {}

        async def endpoint() -> Any:
            run = self.begin()
            if run >= self.waits_from:
                await self.gate.wait()
            return self.result(run)

        def plain_endpoint() -> Any:
            run = self.begin()
            if run >= self.waits_from:
                self.plain_gate.wait(PATIENCE)
            return self.result(run)

        self.endpoint = plain_endpoint if plain else endpoint

    def begin(self):
        self.runs += 1
        return self.runs

    def result(self, run):
        result = self.results.get(run, run)
        if isinstance(result, BaseException):
            raise result
        return result

    def open(self):
        self.gate.set()
        self.plain_gate.set()


class Readers:
    """Requests that run at the same time, and what they got."""

    def __init__(self, group, http):
        self.group, self.http = group, http
        self.found: list[Any] = []

    def ask(self, number, token="a", path="/x", **headers):
        async def ask():
            try:
                self.found.append(await get(self.http, token, path, **headers))
            except Exception as error:
                self.found.append(error)

        for _ in range(number):
            self.group.start_soon(ask)

    async def share_a_load(self, cache, gated, number, **headers):
        """Have one reader run the endpoint, after a first response, while the others wait; wait until all have answers."""
        await get(self.http)
        await cache.clear()
        self.ask(number, **headers)
        await until(lambda: gated.runs == 2 and waiting(cache) == number - 1)
        gated.open()
        await until(lambda: len(self.found) == number)

    @property
    def statuses(self):
        return Counter(response.status_code for response in self.found)


@contextlib.asynccontextmanager
async def readers_of(cache, app, **options):
    app.add_middleware(SWRMiddleware, cache=cache, **options)
    async with client(app, raises=False) as http, anyio.create_task_group() as group:
        readers = Readers(group, http)
        with anyio.fail_after(PATIENCE):
            yield readers


async def warm(http, gated):
    """Have a first response stored, however long the machine takes for it; the next runs wait."""
    with anyio.fail_after(PATIENCE):
        while (await get(http)).status_code != 200:
            pass
    gated.runs, gated.waits_from = 1, 2


def waiting(cache):
    """Return how many readers wait for a load."""
    return sum(flight.waiters for flight in cache.engine.flights._joinable.values() if "after" in flight.key)


# -- one load -------------------------------------------------------------------------------------------------------


@pytest.mark.uncounted
@pytest.mark.parametrize("plain", [False, True], ids=["async", "def"])
async def test_waiting_readers_get_the_response_that_one_of_them_loads(cache, plain):
    gated, guards = Gated(2, plain=plain), Counter()

    def guard(user: User) -> None:
        guards[user] += 1

    async with readers_of(cache, app_with(cache, gated.endpoint, dependencies=[Depends(guard)])) as readers:
        await get(readers.http)
        await cache.clear()
        guards.clear()
        for token in "ab":
            readers.ask(10, token)
        await until(lambda: gated.runs == 2 and waiting(cache) == 19)
        gated.open()
        await until(lambda: len(readers.found) == 20)
    assert {(state(found), found.json()) for found in readers.found} == {((200, "missing"), 2)}
    assert Counter("collapsed" in found.headers["cache-status"] for found in readers.found) == {True: 19, False: 1}
    assert all(DETAIL in found.headers["cache-status"] for found in readers.found)
    assert (gated.runs, guards) == (2, {"alice": 10, "bob": 10})


async def test_first_requests_of_an_endpoint_share_one_load(cache):
    gated = Gated()
    async with readers_of(cache, app_with(cache, gated.endpoint)) as readers:
        readers.ask(20)
        await until(lambda: gated.runs)
        gated.open()
        await until(lambda: len(readers.found) == 20)
    assert {(found.status_code, found.json()) for found in readers.found} == {(200, 1)}
    assert gated.runs == 1


class Pool:
    """Connections, of which each request holds one until its dependencies are closed."""

    def __init__(self, size):
        self.free = anyio.Semaphore(size)
        self.held = 0

    async def connection(self):
        async with self.free:
            self.held += 1
            try:
                yield self
            finally:
                self.held -= 1


async def test_readers_that_hold_all_pool_connections_share_one_load(cache):
    pool, gated = Pool(5), Gated(2)

    async def answer(connection: Annotated[Pool, Depends(pool.connection)]) -> Any:
        return await gated.endpoint()

    async with readers_of(cache, app_with(cache, answer)) as readers:
        await get(readers.http)
        await cache.clear()
        readers.ask(20)
        await until(lambda: gated.runs == 2 and waiting(cache) == 4)
        assert pool.held == 5
        gated.open()
        await until(lambda: len(readers.found) == 20)
    assert {found.json() for found in readers.found} == {2}
    assert gated.runs == 2


async def test_background_refresh_and_load_work_with_one_free_connection(cache, clock):
    pool, gated, leave = Pool(2), Gated(99), anyio.Event()

    async def answer(connection: Annotated[Pool, Depends(pool.connection)]) -> Any:
        return await gated.endpoint()

    app = app_with(cache, answer, fresh_for=9, stale_for=9)

    @app.get("/holds")
    async def holds(connection: Annotated[Pool, Depends(pool.connection)]) -> None:
        await leave.wait()

    async with readers_of(cache, app) as readers:
        await get(readers.http)
        clock.advance(10)
        # One connection is held for good. The stale answer frees the other one, which is taken before the refresh.
        readers.ask(1, path="/holds")
        await until(lambda: pool.held == 1)
        assert state(await get(readers.http)) == (200, "stale")
        await until(lambda: gated.runs == 2)
        await cache.clear()
        clock.advance(10)
        found = await get(readers.http)
        assert (state(found), found.json()) == ((200, "missing"), 3)
        leave.set()
        await until(lambda: readers.found)


async def test_reader_takes_over_from_background_run_that_waits_for_a_dependency(cache, clock):
    gated, requests, waits = Gated(99), [], anyio.Event()

    async def guard(request: Request) -> None:
        requests.append(1)
        if len(requests) == 3:
            # The background run of the second request.
            await waits.wait()

    async with readers_of(
        cache, app_with(cache, gated.endpoint, dependencies=[Depends(guard)], fresh_for=9, stale_for=9)
    ) as readers:
        await get(readers.http)
        clock.advance(10)
        assert state(await get(readers.http)) == (200, "stale")
        await until(lambda: len(requests) == 3)
        clock.advance(10)
        found = await get(readers.http)
        assert (state(found), found.json()) == ((200, "missing"), 2)
        assert (await get(readers.http)).json() == 2
        waits.set()


async def test_readers_wait_for_background_run_that_has_reached_the_endpoint(cache, clock):
    gated = Gated(2)
    async with readers_of(cache, app_with(cache, gated.endpoint, fresh_for=9, stale_for=9)) as readers:
        await get(readers.http)
        clock.advance(10)
        assert state(await get(readers.http)) == (200, "stale")
        await until(lambda: gated.runs == 2)
        clock.advance(10)
        readers.ask(3)
        await until(lambda: waiting(cache) == 3)
        gated.open()
        await until(lambda: len(readers.found) == 3)
    assert {found.json() for found in readers.found} == {2}
    assert gated.runs == 2


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_endpoint_runs_in_the_task_of_its_reader(cache, anyio_backend):
    sessions: dict[Any, str] = {}

    async def session(user: User):
        sessions[asyncio.current_task()] = "a session"
        yield
        del sessions[asyncio.current_task()]

    async def answer(session: Annotated[None, Depends(session)]) -> str:
        return sessions[asyncio.current_task()]

    async with wrapped(cache, app_with(cache, answer, shared=True)) as http:
        for expected in ("missing", "fresh"):
            found = await get(http)
            assert (found.json(), found.headers["swr-state"]) == ("a session", expected)
    assert not sessions


async def test_endpoint_that_requests_its_own_url_fails_without_hanging(cache):
    app = FastAPI()

    async def answer() -> Any:
        async with client(app) as http:
            return (await get(http)).json()

    app = app_with(cache, answer)
    async with readers_of(cache, app) as readers:
        readers.ask(2)
        await until(lambda: len(readers.found) == 2)
    assert readers.statuses == {500: 2}


# -- readers that leave ---------------------------------------------------------------------------------------------


class Stop(BaseException):
    """Ends more than a request."""


async def test_another_reader_takes_over_when_endpoint_thread_raises_base_exception(cache):
    gated = Gated(2, plain=True)
    gated.results[2] = Stop()
    async with readers_of(cache, app_with(cache, gated.endpoint)) as readers:
        await get(readers.http)
        await cache.clear()
        stopped: list[BaseException] = []

        async def stops():
            try:
                await get(readers.http)
            except BaseException as error:
                stopped.append(error)

        readers.group.start_soon(stops)
        await until(lambda: gated.runs == 2)
        readers.ask(2)
        await until(lambda: waiting(cache) == 2)
        gated.open()
        await until(lambda: len(readers.found) == 2 and stopped)
    assert [found.json() for found in readers.found] == [3, 3]


async def test_next_reader_takes_over_when_all_earlier_ones_leave_at_once(cache):
    gated, scopes = Gated(2), [anyio.CancelScope() for _ in range(3)]
    async with readers_of(cache, app_with(cache, gated.endpoint)) as readers:
        await get(readers.http)
        await cache.clear()

        async def leaves(scope):
            with scope:
                await get(readers.http)

        for number, scope in enumerate(scopes):
            readers.group.start_soon(leaves, scope)
            await until(lambda number=number: gated.runs == 2 and waiting(cache) == number)
        readers.ask(1)
        await until(lambda: waiting(cache) == 3)
        for scope in scopes:
            scope.cancel()
        await until(lambda: gated.runs >= 3)
        gated.open()
        await until(lambda: readers.found)
    assert [found.status_code for found in readers.found] == [200]


@pytest.mark.parametrize("others", [0, 3])
async def test_another_reader_takes_over_from_one_that_is_cancelled(cache, others):
    gated, closed = Gated(2), []

    async def session():
        try:
            yield object()
        finally:
            closed.append(gated.runs)

    async def answer(session: Annotated[object, Depends(session)]) -> Any:
        return await gated.endpoint()

    async with readers_of(cache, app_with(cache, answer)) as readers:
        await get(readers.http)
        await cache.clear()
        closed.clear()
        scope = anyio.CancelScope()

        async def leaves():
            with scope:
                await get(readers.http)

        readers.group.start_soon(leaves)
        await until(lambda: gated.runs == 2)
        readers.ask(others)
        await until(lambda: waiting(cache) == others)
        scope.cancel()
        if others:
            await until(lambda: gated.runs == 3)
        await until(lambda: closed)
        assert len(cache.engine.flights) == bool(others)
        gated.open()
        await until(lambda: len(readers.found) == others)
        assert {found.json() for found in readers.found} == ({3} if others else set())
        assert (await get(readers.http)).json() == 3
    assert gated.runs == 3


async def test_cancelled_waiting_reader_does_not_disturb_the_load(cache):
    gated = Gated(2)
    async with readers_of(cache, app_with(cache, gated.endpoint)) as readers:
        await get(readers.http)
        await cache.clear()
        readers.ask(1)
        await until(lambda: gated.runs == 2)
        scope = anyio.CancelScope()

        async def leaves():
            with scope:
                await get(readers.http)

        readers.group.start_soon(leaves)
        await until(lambda: waiting(cache) == 1)
        scope.cancel()
        await until(lambda: waiting(cache) == 0)
        gated.open()
        await until(lambda: readers.found)
    assert [found.json() for found in readers.found] == [2]


# -- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 404, 409])
async def test_http_exception_of_endpoint_is_raised_for_all_waiting_readers(cache, status):
    gated, seen = Gated(2), []
    gated.results[2] = HTTPException(status, {"why": "so"}, {"x-why": "so"})
    app = app_with(cache, gated.endpoint)

    @app.exception_handler(HTTPException)
    async def handle(request: Request, error: HTTPException) -> Response:
        seen.append(error)
        return JSONResponse(error.detail, error.status_code, error.headers)

    async with readers_of(cache, app) as readers:
        await readers.share_a_load(cache, gated, 5)
    assert {(found.status_code, found.text, found.headers["x-why"]) for found in readers.found} == {
        (status, '{"why":"so"}', "so")
    }
    assert len({id(error) for error in seen}) == len({id(error.headers) for error in seen}) == 5
    assert gated.runs == 2


async def test_private_http_exception_is_raised_only_for_its_own_reader(cache):
    gated = Gated(2)
    gated.results[2] = HTTPException(403, "not you", {"cache-control": "private"})
    async with readers_of(cache, app_with(cache, gated.endpoint)) as readers:
        await readers.share_a_load(cache, gated, 3)
    assert readers.statuses == {403: 1, 200: 2}


async def test_def_endpoint_with_private_responses_runs_for_each_reader(cache):
    gated = Gated(99, plain=True)
    gated.results |= {run: JSONResponse(run, headers={"cache-control": "private"}) for run in range(1, 9)}
    async with wrapped(cache, app_with(cache, gated.endpoint)) as http:
        assert [(await get(http)).json() for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("knows_user", [False, True])
@pytest.mark.parametrize("how", ["raised", "returned"])
@pytest.mark.parametrize("status", [401, 402, 403, 407, 429, 451])
async def test_refusal_with_lifetime_is_neither_shared_nor_stored(cache, status, how, knows_user):
    gated, lasts = Gated(2), {"cache-control": "max-age=60"}
    gated.results[2] = HTTPException(status, "no", lasts) if how == "raised" else JSONResponse("no", status, lasts)

    async def answer(request: Request) -> Any:
        return await gated.endpoint()

    endpoint, words = (answer, {"shared": True}) if knows_user else (gated.endpoint, {})
    async with readers_of(cache, app_with(cache, endpoint, **words)) as readers:
        await readers.share_a_load(cache, gated, 3)
        assert readers.statuses == {status: 1, 200: 2}
        assert (await get(readers.http)).status_code == 200


async def test_one_waiting_reader_retries_for_all_after_a_failure(cache):
    gated = Gated(2)
    gated.results[2] = KeyError("broken")
    async with readers_of(cache, app_with(cache, gated.endpoint)) as readers:
        await readers.share_a_load(cache, gated, 10)
    assert readers.statuses == {500: 1, 200: 9}
    assert gated.runs == 3


@pytest.mark.uncounted
@pytest.mark.parametrize(
    "failure",
    [KeyError("broken"), HTTPException(503, "broken"), PlainTextResponse("broken", 500)],
    ids=lambda failure: type(failure).__name__,
)
async def test_waiting_readers_get_the_second_of_two_failures(cache, failure):
    gated = Gated(2)
    gated.results |= dict.fromkeys(range(2, 9), failure)
    async with readers_of(cache, app_with(cache, gated.endpoint)) as readers:
        await readers.share_a_load(cache, gated, 6)
    assert readers.statuses == {503 if isinstance(failure, HTTPException) else 500: 6}
    assert gated.runs == 3


async def test_private_failure_makes_each_waiting_reader_run_the_endpoint(cache):
    gated = Gated(2)
    gated.results |= dict.fromkeys(range(2, 9), PlainTextResponse("broken", 500, headers={"cache-control": "private"}))
    async with readers_of(cache, app_with(cache, gated.endpoint)) as readers:
        await readers.share_a_load(cache, gated, 4)
    assert readers.statuses == {500: 4}
    assert gated.runs == 5


@pytest.mark.parametrize(
    "failure",
    [KeyError("broken"), HTTPException(503, "broken"), PlainTextResponse("broken", 500)],
    ids=lambda failure: type(failure).__name__,
)
@pytest.mark.parametrize("plain", [False, True], ids=["async", "def"])
async def test_stale_response_is_fallback_when_endpoint_fails(cache, clock, failure, plain):
    gated = Gated(99, plain=plain)
    gated.results[2] = failure
    app = app_with(cache, gated.endpoint, stale_for=0, stale_if_error=600)
    async with wrapped(cache, app) as http:
        await get(http)
        clock.advance(120)
        status = 503 if isinstance(failure, HTTPException) else 500
        for _ in range(2):
            found = await get(http)
            assert (state(found), found.json()) == ((200, "stale"), 1)
            assert f"fwd=stale; fwd-status={status}; {DETAIL}" in found.headers["cache-status"]
    assert gated.runs == 2


@pytest.mark.parametrize("plain", [False, True], ids=["async", "def"])
async def test_reader_gets_the_failure_when_nothing_is_stored(cache, plain):
    gated = Gated(99, plain=plain)
    gated.results |= dict.fromkeys(range(1, 4), KeyError("broken"))
    async with readers_of(cache, app_with(cache, gated.endpoint)) as readers:
        assert [(await get(readers.http)).status_code for _ in range(2)] == [500, 500]
    gated.results.clear()


async def test_exception_handler_of_app_answers_instead_of_stale_fallback(cache, clock):
    class NotThere(Exception):
        pass

    gated = Gated(99)
    gated.results |= dict.fromkeys((2, 3), NotThere())
    app = app_with(cache, gated.endpoint, stale_for=0, stale_if_error=600)

    @app.exception_handler(NotThere)
    async def answer(request, error):
        return JSONResponse("not there", 404)

    async with wrapped(cache, app) as http:
        assert state(await get(http)) == (200, "missing")
        clock.advance(61)
        for _ in range(2):
            found = await get(http)
            assert (found.status_code, found.headers["swr-state"]) == (404, "missing")
            assert "fwd-status" not in found.headers["cache-status"]
        assert state(await get(http)) == (200, "missing")


@pytest.mark.parametrize("how", ["raise", "return"])
async def test_404_of_endpoint_removes_the_stored_response(cache, clock, how):
    gated = Gated(99)
    gated.results[2] = HTTPException(404) if how == "raise" else PlainTextResponse("gone", 404)
    async with wrapped(cache, app_with(cache, gated.endpoint, stale_for=0, stale_if_error=600)) as http:
        assert state(await get(http)) == (200, "missing")
        clock.advance(61)
        assert state(await get(http)) == (404, "missing")
        found = await get(http)
        assert (state(found), found.json()) == ((200, "missing"), 3)


async def test_403_of_endpoint_keeps_the_stored_response_as_fallback(cache, clock):
    gated = Gated(99)
    gated.results |= {2: HTTPException(403), 3: KeyError("broken")}
    async with wrapped(cache, app_with(cache, gated.endpoint, stale_for=0, stale_if_error=600)) as http:
        assert state(await get(http)) == (200, "missing")
        clock.advance(61)
        assert state(await get(http)) == (403, "missing")
        assert state(await get(http)) == (200, "stale")


@pytest.mark.parametrize("where", ["decorator", "rule", "middleware"])
async def test_hard_timeout_answers_504_to_all_waiting_readers(cache, caplog, where):
    gated, ended = Gated(99), []

    async def answer() -> Any:
        try:
            return await gated.endpoint()
        except BaseException:
            ended.append(1)
            raise

    terms = {"hard_timeout": 0.5} if where == "decorator" else {}
    options = {"rule": {"rules": [Rule("/x", hard_timeout=0.5)]}, "middleware": {"hard_timeout": 0.5}}.get(where, {})
    async with readers_of(cache, app_with(cache, answer, **terms), **options) as readers:
        await warm(readers.http, gated)
        ended.clear()
        await cache.clear()
        readers.ask(3)
        await until(lambda: len(readers.found) == 3)
    assert readers.statuses == {504: 3}
    for found in readers.found:
        assert found.headers["cache-status"].partition("; detail=")[2] == '"timeout, after dependencies"'
    lines = [record.getMessage() for record in caplog.records if "given up after 0.5 s" in record.getMessage()]
    # On a machine that stands still, a load may be given up before its run has begun.
    assert len(lines) >= gated.runs - 1
    assert len(ended) == gated.runs - 1


async def test_stale_response_is_fallback_after_hard_timeout(cache, clock):
    gated = Gated(99)
    async with readers_of(cache, app_with(cache, gated.endpoint, stale_for=0, hard_timeout=0.5)) as readers:
        await warm(readers.http, gated)
        clock.advance(61)
        readers.ask(2)
        await until(lambda: len(readers.found) == 2)
    assert {(found.status_code, found.headers["swr-state"]) for found in readers.found} == {(200, "stale")}
    assert all("fwd-status=504" in found.headers["cache-status"] for found in readers.found)


async def test_readers_of_a_blocked_thread_get_504_after_hard_timeout(cache):
    gated = Gated(99, plain=True)
    async with readers_of(cache, app_with(cache, gated.endpoint, hard_timeout=0.5)) as readers:
        await warm(readers.http, gated)
        await cache.clear()
        asked = 0
        while readers.statuses[504] < 2 and asked < 30:
            # On a slow machine the limit may have ended the run before the next reader comes, who then has its own.
            readers.ask(1)
            asked += 1
            await anyio.sleep(0.05)
        await until(lambda: readers.statuses[504] >= 2)
        assert not gated.plain_gate.is_set()
        gated.open()
        await until(lambda: len(readers.found) == asked)


async def test_readers_who_waited_for_a_private_response_run_the_endpoint_themselves(cache):
    gated = Gated(2)
    gated.results |= {run: JSONResponse(run, headers={"cache-control": "private"}) for run in range(2, 9)}
    async with readers_of(cache, app_with(cache, gated.endpoint)) as readers:
        await readers.share_a_load(cache, gated, 3)
        # And nobody waits for the next run.
        readers.ask(2)
        await until(lambda: len(readers.found) == 5)
    assert sorted(found.json() for found in readers.found) == [2, 3, 4, 5, 6]
    assert all("private" in found.headers["cache-status"] for found in readers.found)


async def test_readers_who_waited_for_a_superseded_load_get_a_newer_response(cache):
    gated = Gated(2)
    async with readers_of(cache, app_with(cache, gated.endpoint)) as readers:
        await get(readers.http)
        await cache.clear()
        readers.ask(3)
        await until(lambda: gated.runs == 2 and waiting(cache) == 2)
        await cache.invalidate_url("/x")
        gated.open()
        await until(lambda: len(readers.found) == 3)
    assert sorted(found.json() for found in readers.found) == [2, 3, 3]


# -- the background -------------------------------------------------------------------------------------------------


async def test_stale_response_is_refreshed_by_one_background_run_with_all_dependencies(cache, clock):
    gated, guards, closed = Gated(2), [], []

    async def guard(user: User):
        guards.append(user)
        yield
        closed.append(user)

    async with readers_of(cache, app_with(cache, gated.endpoint, dependencies=[Depends(guard)])) as readers:
        await get(readers.http)
        clock.advance(61)
        for _ in range(5):
            found = await get(readers.http, "b")
            assert (state(found), found.json()) == ((200, "stale"), 1)
        await until(lambda: gated.runs == 2)
        gated.open()
        await until(lambda: len(closed) == 7)
        found = await get(readers.http)
        assert (state(found), found.json()) == ((200, "fresh"), 2)
    assert gated.runs == 2
    assert guards == ["alice", *["bob"] * 6, "alice"]


@pytest.mark.parametrize("failure", [HTTPException(401), HTTPException(404), HTTPException(429), KeyError("broken")])
async def test_background_run_refused_by_dependency_keeps_the_stale_response(cache, clock, failure, caplog):
    gated, requests = Gated(99), []

    def guard(request: Request) -> None:
        requests.append(1)
        if len(requests) == 3:
            raise failure

    async with readers_of(cache, app_with(cache, gated.endpoint, dependencies=[Depends(guard)])) as readers:
        await get(readers.http)
        clock.advance(61)
        assert state(await get(readers.http)) == (200, "stale")
        await until(lambda: len(requests) == 3)
        # No other one begins at once.
        for _ in range(2):
            assert state(await get(readers.http)) == (200, "stale")
        assert (len(requests), gated.runs) == (5, 1)
        clock.advance(5.1)
        assert state(await get(readers.http)) == (200, "stale")
        await until(lambda: gated.runs == 2)
    assert ("the app failed in a background refresh" in caplog.text) == isinstance(failure, KeyError)


async def test_background_run_with_another_key_stores_nothing(cache, clock):
    users, runs = [], []

    def next_user(user: User) -> str:
        users.append("bob" if len(users) == 2 else "alice")
        return users[-1]

    async def answer(user: Annotated[str, Depends(next_user)]) -> str:
        runs.append(user)
        return user

    async with readers_of(cache, app_with(cache, answer, key=lambda user: user)) as readers:
        await get(readers.http)
        clock.advance(61)
        assert (await get(readers.http)).json() == "alice"
        await until(lambda: len(users) == 3)
        await settle()
        assert (await get(readers.http)).json() == "alice"
    assert runs[:1] == ["alice"]
    assert "bob" not in runs


@pytest.mark.uncounted
@pytest.mark.parametrize("word", [{}, {"shared": True}], ids=["", "shared"])
async def test_background_run_gets_only_immutable_context_variables_of_its_request(cache, clock, word):
    tenant: ContextVar[str] = ContextVar("tenant")
    open_files: ContextVar[list] = ContextVar("open_files")
    gated, seen = Gated(99), []

    async def answer() -> int:
        seen.append((tenant.get(), open_files.get(None)))
        return await gated.endpoint()

    class SetsTheTenant:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            tenant.set("acme")
            if word:
                open_files.set([])
            await self.app(scope, receive, send)

    app = app_with(cache, answer, **word)
    app.add_middleware(SWRMiddleware, cache=cache)
    app.add_middleware(SetsTheTenant)
    async with client(app) as http:
        assert state(await get(http)) == (200, "missing")
        clock.advance(61)
        assert state(await get(http)) == (200, "stale")
        await until(lambda: gated.runs == 2)
        await settle()
        assert state(await get(http)) == (200, "fresh")
    assert seen[1] == ("acme", None)


async def test_background_run_that_fails_in_endpoint_backs_off(cache, clock):
    gated = Gated(99)
    gated.results |= dict.fromkeys(range(2, 9), KeyError("broken"))
    async with readers_of(cache, app_with(cache, gated.endpoint)) as readers:
        await get(readers.http)
        clock.advance(61)
        assert state(await get(readers.http)) == (200, "stale")
        await until(lambda: gated.runs == 2 and not len(cache.engine.flights))
        for _ in range(3):
            assert state(await get(readers.http)) == (200, "stale")
    assert gated.runs == 2


async def test_404_in_background_run_removes_the_stored_response(cache, clock):
    gated = Gated(99)
    gated.results[2] = HTTPException(404)
    async with readers_of(cache, app_with(cache, gated.endpoint)) as readers:
        await get(readers.http)
        clock.advance(61)
        assert state(await get(readers.http)) == (200, "stale")
        await until(lambda: gated.runs == 2 and not len(cache.engine.flights))
        assert state(await get(readers.http)) == (200, "missing")


async def test_background_run_ends_at_hard_timeout(cache, clock):
    gated, ended = Gated(99), []

    async def answer() -> Any:
        try:
            return await gated.endpoint()
        finally:
            ended.append(1)

    async with readers_of(cache, app_with(cache, answer, hard_timeout=0.5)) as readers:
        await warm(readers.http, gated)
        ended.clear()
        clock.advance(61)
        assert state(await get(readers.http)) == (200, "stale")
        await until(lambda: gated.runs == 2 and ended and not len(cache.engine.flights))
        assert state(await get(readers.http)) == (200, "stale")


async def test_concurrent_stale_responses_start_one_background_run(cache, clock):
    gated = Gated(2)
    async with readers_of(cache, app_with(cache, gated.endpoint)) as readers:
        await get(readers.http)
        clock.advance(61)
        readers.ask(5)
        await until(lambda: len(readers.found) == 5 and gated.runs == 2)
        # Even if the first one takes long to come to the endpoint.
        clock.advance(6)
        readers.ask(5)
        await until(lambda: len(readers.found) == 10)
        await settle()
        gated.open()
        await until(lambda: not len(cache.engine.flights))
    assert gated.runs == 2


async def test_late_background_run_does_not_run_endpoint_while_another_loads(cache, clock):
    gated, requests, waits = Gated(2), [], anyio.Event()

    async def guard(request: Request) -> None:
        requests.append(1)
        if len(requests) == 3:
            await waits.wait()

    async with readers_of(cache, app_with(cache, gated.endpoint, dependencies=[Depends(guard)])) as readers:
        await get(readers.http)
        clock.advance(61)
        assert state(await get(readers.http)) == (200, "stale")
        await until(lambda: len(requests) == 3)
        clock.advance(6)
        assert state(await get(readers.http)) == (200, "stale")
        await until(lambda: gated.runs == 2)
        waits.set()
        await settle()
        gated.open()
        await until(lambda: not len(cache.engine.flights))
    assert gated.runs == 2


async def test_background_run_gets_headers_and_a_copy_of_the_session_of_its_request(cache, clock):
    seen: list[Any] = []

    async def guard(request: Request) -> None:
        seen.append((dict(request.headers), dict(request.session), request.client, await request.body()))
        request.session["seen"] = len(seen)

    gated = Gated(99)
    app = app_with(cache, gated.endpoint, dependencies=[Depends(guard)])
    app.add_middleware(SWRMiddleware, cache=cache)
    app.add_middleware(SessionMiddleware, secret_key="secret")
    async with client(app) as http:
        await get(http, x_odd="1")
        clock.advance(61)
        assert state(await get(http, x_odd="1")) == (200, "stale")
        await until(lambda: gated.runs == 2 and not len(cache.engine.flights))
        assert state(await get(http, x_odd="1")) == (200, "fresh")
    assert seen[1] == seen[2]
    assert seen[3][1] == {"seen": 2}


async def test_background_run_receives_no_message_of_the_client(cache, clock):
    listened = []

    async def guard(request: Request) -> None:
        async def listen() -> None:
            listened.append(1)
            await request.receive()
            listened.append((await request.receive())["type"])

        if len(seen) == 2:
            with anyio.move_on_after(0.05):
                await listen()
        seen.append(1)

    seen: list[int] = []
    async with readers_of(cache, app_with(cache, Gated(99).endpoint, dependencies=[Depends(guard)])) as readers:
        await get(readers.http)
        clock.advance(61)
        await get(readers.http)
        await until(lambda: len(seen) == 3 and not len(cache.engine.flights))
    assert listened == [1]


# -- what else ------------------------------------------------------------------------------------------------------


async def test_reads_publish_miss_hit_and_stale_events(cache, clock):
    told: list[str] = []
    cache.subscribe(lambda event: told.append(type(event).__name__), Hit, Miss, Stale)
    gated = Gated(99)
    async with readers_of(cache, app_with(cache, gated.endpoint)) as readers:
        for _ in range(3):
            await get(readers.http)
        clock.advance(61)
        await get(readers.http)
        await until(lambda: gated.runs == 2 and not len(cache.engine.flights))
        await get(readers.http)
    assert told == ["Miss", "Hit", "Hit", "Stale", "Hit"]


@pytest.mark.parametrize(
    "failure", [KeyError("broken"), HTTPException(503), PlainTextResponse("broken", 500)], ids=["raised", "503", "500"]
)
async def test_failing_endpoint_counts_a_miss_per_reader_and_none_in_background(cache, clock, failure):
    told: list[str] = []
    cache.subscribe(lambda event: told.append(type(event).__name__), Hit, Miss, Stale, Bypassed, NotStored)
    gated = Gated(99)
    gated.results |= dict.fromkeys(range(2, 99), failure)
    async with readers_of(cache, app_with(cache, gated.endpoint)) as readers:
        await get(readers.http)
        clock.advance(61)
        assert state(await get(readers.http)) == (200, "stale")
        await until(lambda: gated.runs == 2 and not len(cache.engine.flights))
        assert told == ["Miss", "Stale"]
        await cache.clear()
        told.clear()
        gated.waits_from = 3
        readers.ask(4)
        await until(lambda: gated.runs == 3 and waiting(cache) == 3)
        gated.open()
        await until(lambda: len(readers.found) == 4)
    assert told == ["Miss"] * 4


@pytest.mark.parametrize("failure", [None, KeyError("broken"), HTTPException(503)], ids=["none", "raised", "503"])
async def test_load_of_endpoint_is_counted_once_from_the_first_request_on(cache, failure):
    told: list[Loaded | LoadFailed] = []
    cache.subscribe(told.append, Loaded, LoadFailed)
    registry, watching = CollectorRegistry(), cache.report().watching
    export(cache, registry)
    gated = Gated()
    if failure is not None:
        gated.results |= dict.fromkeys(range(1, 99), failure)
    async with readers_of(cache, app_with(cache, gated.endpoint)) as readers:
        readers.ask(1)
        await until(lambda: gated.runs == 1)
        # The dashboard tells of one load that runs, and hangs perhaps.
        assert cache.stats().routes["/x"].in_flight == 1
        gated.open()
        await until(lambda: len(readers.found) == 1 and not len(cache.engine.flights))
        if failure is None:
            await cache.clear()
            await get(readers.http)
    counted = cache.stats().routes["/x"]
    assert counted.loads + counted.failed == gated.runs
    assert sum(counted.seconds.counts) == gated.runs
    assert [event.is_outer for event in told] == [False, True] + [False] * (gated.runs - 1)
    assert [happening.kind for happening in watching.happenings()] == ["LoadFailed"] * counted.failed or not failure
    labels = {"cache": "swr", "loader": "", "route": "/x", "result": "loaded" if failure is None else "failed"}
    assert registry.get_sample_value("swr_load_duration_seconds_count", labels) == gated.runs


class OutOfStock(Exception):
    """The app has an answer for it."""


@pytest.mark.parametrize("plain", [False, True])
async def test_handled_exception_is_reported_as_not_stored(cache, plain):
    told: list[Bypassed | NotStored | Miss] = []
    cache.subscribe(told.append, Bypassed, NotStored, Miss)
    gated = Gated(2, plain=plain)
    gated.results |= dict.fromkeys(range(1, 99), OutOfStock())
    app = app_with(cache, gated.endpoint)
    app.add_exception_handler(OutOfStock, lambda request, error: JSONResponse({"detail": "out of stock"}, 404))
    async with readers_of(cache, app) as readers:
        await get(readers.http)
        readers.ask(4)
        await until(lambda: waiting(cache) == 3)
        gated.open()
        await until(lambda: len(readers.found) == 4)
    assert {response.headers["cache-status"] for response in readers.found} == {
        'swr; fwd=uri-miss; detail="exception handler"'
    }
    assert [(type(event), event.reason) for event in told] == [(NotStored, "exception handler")] * 5
    assert cache.stats().not_stored == {"exception handler": 5}


async def test_not_stored_event_names_status_429_for_each_waiting_reader(cache):
    told: list[Bypassed | NotStored | Miss] = []
    cache.subscribe(told.append, Bypassed, NotStored, Miss)
    gated = Gated(2)
    gated.results |= {n: PlainTextResponse("slow down", 429) for n in range(1, 99)}
    async with readers_of(cache, app_with(cache, gated.endpoint)) as readers:
        await get(readers.http)
        readers.ask(4)
        await until(lambda: waiting(cache) == 3)
        gated.open()
        await until(lambda: len(readers.found) == 4)
    assert [(type(event), event.reason) for event in told] == [(NotStored, "status 429")] * 5


async def test_starlette_endpoint_error_gets_stale_fallback_or_its_own_status(cache, clock):
    gated = Gated(99)
    gated.results |= {1: PlainTextResponse("x"), 2: HTTPException(503), 3: HTTPException(503)}

    async def answer(request):
        return await gated.endpoint()

    decorate = cache.response(fresh_for=60, stale_if_error=600, shared=True)
    app = Starlette(routes=[Route("/x", decorate(answer))])
    async with wrapped(cache, app) as http:
        await get(http)
        clock.advance(61)
        assert state(await get(http)) == (200, "stale")
        await cache.clear()
        assert (await get(http)).status_code == 503


async def test_401_of_dependency_keeps_the_stored_public_response(cache):
    async def guard(user: User) -> None: ...

    gated = Gated(99)
    gated.results[1] = PlainTextResponse("x", headers={"cache-control": "public, max-age=60"})
    async with wrapped(cache, app_with(cache, gated.endpoint, dependencies=[Depends(guard)])) as http:
        await get(http)
        assert (await http.get("/x", headers={**bearer("wrong"), "if-match": '"a"'})).status_code == 401
        assert state(await get(http)) == (200, "fresh")


async def test_reader_gets_response_when_cache_closes_during_its_load(clock):
    gated = Gated(2)
    cache = Cache(clock=clock, drain_for=0)
    async with readers_of(cache, app_with(cache, gated.endpoint)) as readers:
        await get(readers.http)
        await cache.clear()
        readers.ask(1)
        await until(lambda: gated.runs == 2)
        await cache.aclose()
        gated.open()
        await until(lambda: readers.found)
        assert [found.json() for found in readers.found] == [2]
        assert (await get(readers.http)).status_code == 200
    await cache.aclose()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_processes_share_loads_and_responses(server, anyio_backend):
    gated = Gated()
    async with Cache(server.url) as one, Cache(server.url) as other:
        apps = [app_with(cache, gated.endpoint) for cache in (one, other)]
        begun: list[str] = []
        one.subscribe(lambda event: begun.append(event.key), LoadBegun)
        async with wrapped(one, apps[0]) as first, wrapped(other, apps[1]) as second:
            found: list[httpx.Response] = []

            async def ask(http):
                found.append(await get(http))

            with anyio.fail_after(PATIENCE):
                async with anyio.create_task_group() as group:
                    for _ in range(10):
                        group.start_soon(ask, first)
                        group.start_soon(ask, second)
                    await until(lambda: gated.runs)
                    gated.open()
            assert [response.json() for response in found] == [1] * 20
            assert state(await get(second, "b")) == (200, "fresh")
            await one.invalidate_url("/x")
            assert (await get(first)).json() == 2
            await until_loaded(second, 2)
            assert (await get(second, "wrong")).status_code == 401
    assert gated.runs == 2


async def until_loaded(http, run):
    with anyio.fail_after(PATIENCE):
        while (await get(http)).json() != run:
            await anyio.sleep(0.01)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_two_operating_system_processes_load_once(server, anyio_backend):
    script = """
import asyncio, sys
from fastapi import Depends, FastAPI
from swr import Cache
from swr.middleware import SWRMiddleware
from tests.test_guarded import client, current_user, get, TOKENS

loads = []

async def endpoint() -> int:
    loads.append(1)
    await asyncio.sleep(0.1)
    return 1

async def main():
    TOKENS.update(a="alice", b="bob")
    app = FastAPI(dependencies=[Depends(current_user)])
    async with Cache(sys.argv[1]) as cache:
        app.get("/x")(cache.response(fresh_for=600)(endpoint))
        app.add_middleware(SWRMiddleware, cache=cache)
        async with client(app) as http:
            found = await asyncio.gather(*[get(http, "ab"[number % 2]) for number in range(20)])
    assert {(response.status_code, response.json()) for response in found} == {(200, 1)}
    print(len(loads))

asyncio.run(main())
"""
    printed: list[bytes] = []

    async def process():
        done = await anyio.run_process([sys.executable, "-c", script, server.url], cwd=ROOT, stderr=None)
        printed.append(done.stdout.strip())

    async with anyio.create_task_group() as group:
        group.start_soon(process)
        group.start_soon(process)
    assert sorted(printed) == [b"0", b"1"]


# -- conditions and ranges ------------------------------------------------------------------------------------------

MODIFIED, EARLIER = "Sat, 01 Nov 2025 00:00:00 GMT", "Fri, 31 Oct 2025 00:00:00 GMT"
ASKED = [
    ({"if-none-match": '"1"'}, 304, ""),
    ({"if-none-match": 'W/"1"'}, 304, ""),
    ({"if-none-match": '"0", "1"'}, 304, ""),
    ({"if-none-match": "*"}, 304, ""),
    ({"if-none-match": '"2"'}, 200, "0123456789"),
    ({"if-modified-since": MODIFIED}, 304, ""),
    ({"if-modified-since": EARLIER}, 200, "0123456789"),
    ({"if-none-match": '"2"', "if-modified-since": MODIFIED}, 200, "0123456789"),
    ({"range": "bytes=2-4"}, 206, "234"),
    ({"range": "bytes=-2"}, 206, "89"),
    ({"range": "bytes=20-"}, 416, ""),
    ({"range": "bytes=2-4", "if-range": '"1"'}, 206, "234"),
    ({"range": "bytes=2-4", "if-range": '"2"'}, 200, "0123456789"),
    ({"range": "bytes=2-4", "if-none-match": '"1"'}, 304, ""),
    ({"range": "no"}, 200, "0123456789"),
]


def digits(cache, **more):
    def limits(response: Response) -> None:
        response.headers["x-left"] = "9"

    async def answer(response: Response) -> Response:
        headers = {"etag": '"1"', "last-modified": MODIFIED, "x-other": "1"}
        return PlainTextResponse("0123456789", headers=headers)

    async def value() -> str:
        return "01234567"

    app = app_with(cache, answer, dependencies=[Depends(limits), Depends(User.__metadata__[0].dependency)], shared=True)
    app.get("/value", dependencies=[Depends(limits)])(cache.response(fresh_for=60, key=lambda: 1)(value))
    return app


@pytest.mark.uncounted
@pytest.mark.parametrize(("fields", "status", "text"), ASKED)
async def test_guarded_hit_answers_conditions_and_ranges_as_a_public_hit_does(cache, fields, status, text):
    front = FastAPI()

    @front.get("/x")
    async def answer() -> Response:
        headers = {"etag": '"1"', "last-modified": MODIFIED, "cache-control": "max-age=60"}
        return PlainTextResponse("0123456789", headers=headers)

    async with wrapped(cache, digits(cache)) as http, wrapped(Cache(), front) as other:
        await get(http)
        await other.get("/x")
        for token in ("a", "b"):
            found = await get(http, token, **fields)
            assert (found.status_code, found.text, found.headers["swr-state"]) == (status, text, "fresh")
            assert found.headers["cache-status"] == f"swr; hit; ttl=60; {DETAIL}"
            wanted = await other.get("/x", headers=fields)
            for name in ("etag", "last-modified", "content-range", "content-length", "content-type"):
                assert found.headers.get(name) == wanted.headers.get(name)
        assert (await http.get("/x", headers=fields)).status_code == 401


async def test_304_carries_headers_that_dependencies_set_for_its_reader(cache):
    app = FastAPI()

    def limits(response: Response, token: User) -> None:
        response.headers["x-user"] = token

    @app.get("/x", dependencies=[Depends(limits)])
    @cache.response(fresh_for=60)
    async def answer(response: Response) -> str:
        response.headers["etag"] = '"1"'
        return "text"

    @app.get("/y", dependencies=[Depends(limits)])
    @cache.response(fresh_for=60, shared=True)
    async def answer_shared(response: Response) -> str:
        response.headers["etag"] = '"1"'
        return "text"

    async with wrapped(cache, app) as http:
        for token, user, current in (("a", "alice", "missing"), ("b", "bob", "fresh")):
            found = await get(http, token, "/y", **{"if-none-match": '"1"'})
            assert (found.status_code, found.headers["x-user"], found.content) == (304, user, b"")
            assert (found.headers["etag"], found.headers["swr-state"]) == ('"1"', current)


@pytest.mark.parametrize("plain", [False, True])
async def test_loaded_collapsed_and_fallback_responses_answer_conditions(cache, clock, plain):
    gated = Gated(2, plain=plain)
    gated.results = {
        2: PlainTextResponse("0123456789", headers={"etag": '"1"'}),
        3: HTTPException(503),
    }
    asked = {"if-none-match": '"1"'}
    async with readers_of(cache, app_with(cache, gated.endpoint, stale_if_error=1000)) as readers:
        await get(readers.http)
        await cache.clear()
        readers.ask(1, **asked)
        await until(lambda: gated.runs == 2)
        readers.ask(1, "b", range="bytes=1-2")
        await until(lambda: waiting(cache) == 1)
        gated.open()
        await until(lambda: len(readers.found) == 2)
        own, waited = sorted(readers.found, key=lambda found: -found.status_code)
        assert own.status_code == 304
        assert own.headers["cache-status"] == f"swr; fwd=uri-miss; fwd-status=200; stored; {DETAIL}"
        assert (waited.status_code, waited.text) == (206, "12")
        assert waited.headers["cache-status"] == f"swr; fwd=uri-miss; collapsed; {DETAIL}"
        clock.advance(61 + 600)
        failed = await get(readers.http, **asked)
        assert failed.status_code == 304
        assert failed.headers["cache-status"] == f"swr; fwd=stale; fwd-status=503; {DETAIL}"


async def test_shared_error_response_ignores_conditions(cache):
    gated = Gated(2)
    gated.results |= dict.fromkeys(range(2, 9), PlainTextResponse("no", 500, headers={"etag": '"1"'}))
    async with readers_of(cache, app_with(cache, gated.endpoint)) as readers:
        await readers.share_a_load(cache, gated, 4, **{"if-none-match": '"1"'})
    assert {(found.status_code, found.text) for found in readers.found} == {(500, "no")}
