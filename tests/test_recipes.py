"""Each recipe of docs/recipes runs as it is there, with the real libraries, and keeps what the page promises."""

import functools
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated

import anyio
import httpx
import jwt
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream
from django.db import connections, models
from fastapi import Depends, HTTPException, Request, Response
from fastapi.security import HTTPBearer
from litestar import Litestar
from litestar.exceptions import ImproperlyConfiguredException
from litestar.middleware import DefineMiddleware
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from swr import Cache, ConfigurationError
from swr.testing import FakeClock
from tests.fleet import until
from tests.recipes import DOCS, programs, recipe
from tests.servers import Server

pytestmark = pytest.mark.anyio
pytest_plugins = ["pytester"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def url(any_server: Server) -> str:
    any_server.command("FLUSHALL")
    return any_server.url


@pytest.fixture
async def page(request: pytest.FixtureRequest, clock: FakeClock) -> AsyncIterator[ModuleType]:
    """The first program of the recipe that the class of a test names, its cache open."""
    page = recipe(f"recipes/{request.cls.page_name}", clock)
    async with page.cache:
        yield page


def client(app, **options) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", **options)


@asynccontextmanager
async def lifespan(app) -> AsyncIterator[None]:
    """Start an app as a server does, and end it."""
    sends, received = anyio.create_memory_object_stream(2)
    told = []
    started, ended = anyio.Event(), anyio.Event()

    async def send(message) -> None:
        told.append(message["type"])
        (started if message["type"].startswith("lifespan.startup") else ended).set()

    async with sends, received, anyio.create_task_group() as group:
        group.start_soon(app, {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, received.receive, send)
        await sends.send({"type": "lifespan.startup"})
        await started.wait()
        yield
        await sends.send({"type": "lifespan.shutdown"})
        await ended.wait()
        group.cancel_scope.cancel()
    assert told == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def loaded(http: httpx.AsyncClient, path: str, then: object, **options) -> None:
    """Ask until a background refresh has brought a new answer."""
    with anyio.fail_after(30):
        while (await http.get(path, **options)).json() != then:
            await anyio.sleep(0.005)


def test_every_recipe_page_has_a_program_and_tests() -> None:
    pages = {page.stem for page in (DOCS / "recipes").glob("*.md")} - {"index"}
    tested = set(re.findall(r'(?:recipe\("recipes/|page_name = ")(\w+)"', Path(__file__).read_text()))
    assert tested == pages
    assert all(programs(f"recipes/{page}") for page in pages)
    index = (DOCS / "recipes" / "index.md").read_text()
    assert all(f"({page}.md)" in index for page in pages)


class TestRepository:
    @pytest.fixture
    async def page(self, clock, url, tmp_path):
        page = recipe("recipes/repository", clock, url)
        page.engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/players.db")
        async with page.engine.begin() as connection:
            await connection.run_sync(page.Base.metadata.create_all)
        async with page.cache:
            yield page
        await page.engine.dispose()

    async def put(self, page, name: str, league: str, points: int) -> None:
        async with page.session_factory().begin() as session:
            await session.merge(page.Player(name=name, league=league, points=points))

    async def test_background_refresh_uses_a_session_of_its_own(self, page, clock, caplog):
        await self.put(page, "ann", "one", 1)
        async with client(page.app) as http:
            assert (await http.get("/rankings/one")).json() == [{"name": "ann", "points": 1}]
            await self.put(page, "ann", "one", 2)
            clock.advance(61)
            assert (await http.get("/rankings/one")).json() == [{"name": "ann", "points": 1}]
            await loaded(http, "/rankings/one", [{"name": "ann", "points": 2}])
        assert page.engine.pool.checkedout() == 0
        assert not caplog.records

    async def test_rankings_are_kept_apart_by_league_and_players_are_shared(self, page):
        await self.put(page, "ann", "one", 1)
        one, two = (page.Rankings(page.session_factory(), league) for league in ("one", "two"))
        assert await one.top() == [page.Row("ann", 1)]
        assert await two.top() == []
        assert await one.points("ann") == await two.points("ann") == 1
        assert one.points.key("ann") == two.points.key("ann")

    async def test_overridden_session_factory_shows_uncommitted_rows(self, page):
        async with page.engine.connect() as connection:
            await connection.begin()
            ours = async_sessionmaker(connection, join_transaction_mode="create_savepoint")
            async with ours.begin() as session:
                session.add(page.Player(name="eve", league="three", points=3))
            page.app.dependency_overrides[page.session_factory] = lambda: ours
            async with client(page.app) as http:
                assert (await http.get("/rankings/three")).json() == [{"name": "eve", "points": 3}]
            await connection.rollback()


class TestJWT:
    page_name = "jwt"

    async def login(self, http, name: str, password: str) -> dict[str, str]:
        token = (await http.post("/token", data={"username": name, "password": password})).json()["access_token"]
        return {"Authorization": f"Bearer {token}"}

    async def test_shared_answers_load_once_and_own_answers_once_per_user(self, page):
        async with client(page.app) as http:
            alice, bob = await self.login(http, "alice", "secret"), await self.login(http, "bob", "secret2")
            told = {}
            for path in ("/rankings/ATL", "/me/favourites", "/prices"):
                for name, user in (("alice", alice), ("bob", bob), ("alice again", alice), ("bob again", bob)):
                    answer = await http.get(path, headers=user)
                    told[path, name] = (answer.headers["swr-state"], answer.json())
            assert [told["/rankings/ATL", name][0] for name in ("alice", "bob")] == ["missing", "fresh"]
            assert told["/me/favourites", "bob"] == ("missing", ["eve"])
            assert told["/me/favourites", "bob again"] == ("fresh", ["eve"])
            assert told["/me/favourites", "alice again"] == ("fresh", ["ann"])
            assert told["/prices", "alice again"] == ("fresh", {"ticket": 80})
            assert told["/prices", "bob again"] == ("fresh", {"ticket": 100})
            again = await http.get("/me/favourites", headers=bob)
            assert again.headers["cache-status"] == 'swr; hit; ttl=60; detail="after dependencies"'

    async def test_change_invalidates_answers_of_its_user_only(self, page):
        async with client(page.app) as http:
            users = [await self.login(http, "alice", "secret"), await self.login(http, "bob", "secret2")]
            for user in users:
                await http.get("/me/favourites", headers=user)
            await http.post("/me/favourites/zoe", headers=users[0])
            answers = [await http.get("/me/favourites", headers=user) for user in users]
            assert [answer.headers["swr-state"] for answer in answers] == ["missing", "fresh"]
            assert [answer.json() for answer in answers] == [["ann", "zoe"], ["eve"]]

    async def test_request_without_valid_login_is_refused_although_answer_is_stored(self, page):
        async with client(page.app) as http:
            bob = await self.login(http, "bob", "secret2")
            for path in ("/rankings/ATL", "/me/favourites"):
                assert (await http.get(path, headers=bob)).status_code == 200
                assert (await http.get(path)).status_code == 401
                assert (await http.get(path, headers={"Authorization": "Bearer x"})).status_code == 401
            page.users["bob"].disabled = True
            for path in ("/rankings/ATL", "/me/favourites"):
                assert (await http.get(path, headers=bob)).status_code == 400

    async def test_expired_token_is_refused_although_answer_is_fresh(self, page):
        async with client(page.app) as http:
            assert (await http.get("/rankings/ATL", headers=await self.login(http, "bob", "secret2"))).is_success
            claims = {"sub": "bob", "exp": 1}
            token = jwt.encode(claims, page.SECRET_KEY, algorithm="HS256")
            answer = await http.get("/rankings/ATL", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == 401


class TestTenants:
    ASKS = {
        "/by-field/ATL": lambda tenant: {"X-Tenant": tenant},
        "/by-token/ATL": lambda tenant: {"Authorization": f"Bearer token-of-{tenant}"},
        "/by-context/ATL": lambda tenant: {"Authorization": f"Bearer token-of-{tenant}"},
    }

    @pytest.fixture
    async def page(self, clock, url):
        page = recipe("recipes/tenants", clock, url)
        async with page.cache:
            yield page

    @pytest.mark.uncounted
    @pytest.mark.parametrize("path", ASKS)
    async def test_tenants_never_get_each_others_fresh_stale_or_refreshed_answers(self, page, clock, path):
        own = {"acme": ["ATL ann"], "initech": ["ATL eve"]}
        async with client(page.app) as http:
            for _ in range(3):
                for tenant in ("acme", "initech", "acme", "initech"):
                    assert (await http.get(path, headers=self.ASKS[path](tenant))).json() == own[tenant]
                clock.advance(61)
            page.rows["initech"] = ["zoe"]
            await loaded(http, path, ["ATL zoe"], headers=self.ASKS[path]("initech"))
            assert (await http.get(path, headers=self.ASKS[path]("acme"))).json() == ["ATL ann"]

    @pytest.mark.uncounted
    @pytest.mark.parametrize("path", ASKS)
    async def test_clearing_one_tenant_keeps_answers_of_the_other(self, page, path):
        async with client(page.app) as http:
            for tenant in ("acme", "initech"):
                await http.get(path, headers=self.ASKS[path](tenant))
            page.rows.update(acme=["new"], initech=["unseen"])
            await http.delete("/tenants/acme/cache")
            answers = [(await http.get(path, headers=self.ASKS[path](tenant))).json() for tenant in ("acme", "initech")]
            assert answers == [["ATL new"], ["ATL eve"]]

    async def test_answers_are_kept_apart_by_host(self, page):
        async with client(page.app) as http:
            told = []
            for host in ("acme.example", "initech.example", "acme.example"):
                answer = await http.get("/by-field/ATL", headers={"Host": host, "X-Tenant": "acme"})
                told.append(answer.headers["swr-state"])
            assert told == ["missing", "missing", "fresh"]


class TestErrors:
    page_name = "errors"

    @pytest.mark.parametrize("path", ["/players/ann", "/secret/ann", "/values/ann"])
    async def test_404_is_cached_for_its_own_time_and_invalidated_by_a_put(self, page, clock, path):
        async with client(page.app, headers={"Authorization": "Bearer x"} if "secret" in path else {}) as http:
            for _ in range(2):
                assert (await http.get(path)).status_code == 404
            page.players["ann"] = 1
            clock.advance(4)
            assert (await http.get(path)).status_code == 404
            clock.advance(2)
            assert (await http.get(path)).json() == {"points": 1}
            del page.players["ann"]
            clock.advance(700)
            assert (await http.get(path)).status_code == 404
            await http.put("/players/ann", params={"points": 2})
            assert (await http.get(path)).json() == {"points": 2}
            clock.advance(6)
            page.players["ann"] = 3
            assert (await http.get(path)).json() == {"points": 2}

    async def test_404_raised_behind_a_login_is_cached_only_with_a_lifetime(self, page):
        @page.app.get("/raises/{name}", dependencies=[Depends(HTTPBearer())])
        @page.cache.response(fresh_for=60)
        async def raises(name: str) -> None:
            runs.append(name)
            raise HTTPException(404, headers={"Cache-Control": "max-age=5"} if name == "ann" else None)

        runs = []
        async with client(page.app, headers={"Authorization": "Bearer x"}) as http:
            for path in ("/raises/ann", "/raises/bob") * 2:
                assert (await http.get(path)).status_code == 404
        assert runs == ["ann", "bob", "bob"]


class TestCommit:
    @pytest.fixture
    async def page(self, clock, url, tmp_path):
        page = recipe("recipes/commit", clock, url)
        page.engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/players.db")
        page.sessions.configure(bind=page.engine)
        async with page.engine.begin() as connection:
            await connection.run_sync(page.Base.metadata.create_all)
        async with page.sessions.begin() as session:
            session.add(page.Player(name="ann", points=1))
        async with page.cache:
            yield page
        await page.engine.dispose()

    async def test_read_between_invalidation_and_commit_leaves_no_old_value(self, page, monkeypatch):
        seen = []
        invalidate = page.points_of.invalidate

        async def and_somebody_reads(name: str) -> None:
            await invalidate(name)
            seen.append(await page.points_of(name))

        page.points_of.invalidate = and_somebody_reads
        async with client(page.app) as http:
            assert (await http.get("/players/ann")).json() == 1
            await http.put("/players/ann", params={"points": 2})
            assert (seen, (await http.get("/players/ann")).json()) == ([1], 2)

    async def test_rollback_leaves_the_old_value_for_the_next_reader(self, page):
        @page.app.put("/fails/{name}")
        async def fails(name: str, session: Annotated[AsyncSession, Depends(page.transaction)]) -> None:
            (await session.get_one(page.Player, name)).points = 5
            await page.points_of.invalidate(name)
            raise HTTPException(409)

        async with client(page.app) as http:
            assert (await http.get("/players/ann")).json() == 1
            assert (await http.put("/fails/ann")).status_code == 409
            assert (await http.get("/players/ann")).json() == 1

    async def test_transaction_block_in_a_script_invalidates_at_commit(self, page):
        await page.points_of("ann")
        async for session in page.transaction():
            (await session.get_one(page.Player, "ann")).points = 7
            await page.cache.invalidate_tag("players")
            assert await page.points_of("ann") == 1
        assert await page.points_of("ann") == 7


class TestSQLModel:
    async def test_values_and_responses_are_cached_invalidated_and_refreshed(self, clock, url, caplog):
        """One test: SQLModel keeps one registry of tables for the whole process."""
        page = recipe("recipes/sqlmodel", clock, url)
        page.SQLModel.metadata.create_all(page.engine)
        with page.Session(page.engine) as session:
            session.add(page.Hero(name="ann", team=page.Team(name="Reds")))
            session.commit()
        async with page.cache, client(page.app) as http:
            assert (await http.get("/heroes/1")).json() == {"id": 1, "name": "ann", "team_name": "Reds"}
            assert [hero["name"] for hero in (await http.get("/heroes")).json()] == ["ann"]
            assert (await http.get("/heroes/2")).status_code == 404
            await http.post("/heroes", json={"name": "eve"})
            assert (await http.get("/heroes/2")).json()["name"] == "eve"
            told = [await http.get("/heroes") for _ in range(2)]
            assert [[hero["name"] for hero in answer.json()] for answer in told] == [["ann", "eve"]] * 2
            assert [answer.headers["swr-state"] for answer in told] == ["missing", "fresh"]
            with page.Session(page.engine) as session:
                session.get(page.Hero, 2).name = "zoe"
                session.commit()
            clock.advance(61)
            assert (await http.get("/heroes/2")).json()["name"] == "eve"
            await loaded(http, "/heroes/2", {"id": 2, "name": "zoe", "team_name": None})

            async def load(id: int): ...

            load.__annotations__["return"] = page.Hero
            with pytest.raises(ConfigurationError, match="cannot be stored in Redis"):
                page.cache.cached("table:{id}", fresh_for=60)(load)
        page.engine.dispose()
        assert not caplog.records


class TestGraphQL:
    page_name = "graphql"

    @pytest.mark.uncounted
    async def test_resolvers_share_one_load_and_the_next_query_needs_none(self, page):
        async with client(page.app) as http:
            for _ in range(2):
                answer = await http.post("/graphql", json={"query": "{ players { name team } }"})
                assert [player["team"] for player in answer.json()["data"]["players"]] == [
                    "Reds",
                    "Blues",
                    "Reds",
                    None,
                ]
            assert page.queries == [[1, 2, 3]]
            await http.post("/graphql", json={"query": 'mutation { renameTeam(teamId: 1, name: "Greens") }'})
            answer = await http.post("/graphql", json={"query": "{ players { team } }"})
            assert [player["team"] for player in answer.json()["data"]["players"]] == [
                "Greens",
                "Blues",
                "Greens",
                None,
            ]
            assert page.queries == [[1, 2, 3], [1]]

    @pytest.mark.uncounted
    async def test_stale_values_are_answered_and_refreshed_in_one_batch_load(self, page, clock):
        async with client(page.app) as http:
            page.players.remove(("zoe", 3))
            ask = {"query": "{ players { team } }"}
            await http.post("/graphql", json=ask)
            page.teams.update({1: "A", 2: "B"})
            clock.advance(61)
            answer = await http.post("/graphql", json=ask)
            assert answer.json()["data"]["players"][0] == {"team": "Reds"}
            await until(lambda: len(page.queries) == 2)
            assert page.queries == [[1, 2], [1, 2]]


class TestLitestar:
    @pytest.fixture(params=["around the app", "in the app"])
    async def app(self, request, clock):
        self.page = page = recipe("recipes/litestar", clock)
        if request.param == "around the app":
            yield page.app
            return
        middleware = DefineMiddleware(page.SWRMiddleware, cache=page.cache, rules=page.rules)
        handlers = [page.player, page.ranking, page.change, page.forget]
        yield Litestar(handlers, middleware=[middleware], lifespan=[lambda app: page.cache], logging_config=None)

    async def test_responses_and_values_are_cached_refreshed_and_invalidated(self, app, clock, caplog):
        page = self.page
        async with lifespan(app), client(app) as http:
            told = [(await http.get("/rankings/ATL")).headers["swr-state"] for _ in range(2)]
            assert told == ["missing", "fresh"]
            assert (await http.get("/players/ann")).json() == {"points": 1}
            page.points["ann"] = 2
            clock.advance(61)
            answer = await http.get("/rankings/ATL")
            assert (answer.headers["swr-state"], answer.json()) == ("stale", ["ATL ann 1"])
            await loaded(http, "/rankings/ATL", ["ATL ann 2"])
            await http.put("/players/ann", params={"number": 3})
            assert (await http.get("/players/ann")).json() == {"points": 3}
            assert (await http.get("/rankings/ATL")).json() == ["ATL ann 3"]
            page.points["ann"] = 4
            await http.delete("/rankings/ATL")
            assert (await http.get("/rankings/ATL")).json() == ["ATL ann 4"]
            own = await http.get("/rankings/ATL", headers={"Authorization": "Bearer x"})
            assert own.headers["cache-status"] == 'swr; fwd=bypass; detail="authorization"'
        assert not [record for record in caplog.records if record.name == "swr"]

    async def test_litestar_refuses_the_response_decorator(self, app):
        @self.page.get("/x")
        @self.page.cache.response(fresh_for=60)
        async def handler() -> int:
            return 1

        with pytest.raises(ImproperlyConfiguredException, match="'swr_request' does not have a type annotation"):
            Litestar([handler], logging_config=None)


class TestDjango:
    @pytest.mark.uncounted
    async def test_values_and_responses_are_cached_refreshed_and_invalidated(
        self, clock, url, caplog, tmp_path, monkeypatch
    ):
        """One test: Django is configured once in a process."""
        monkeypatch.chdir(tmp_path)
        page = await anyio.to_thread.run_sync(self.set_up, clock, url)
        async with lifespan(page.app), client(page.app) as http:
            for path in ("/ranking", "/count"):
                first = await http.get(path)
                assert first.json() in ({"ranking": ["ann"]}, {"players": 1})
            assert (await http.get("/count")).headers["swr-state"] == "fresh"
            await anyio.to_thread.run_sync(self.in_a_thread, page.save, "eve", 2)
            clock.advance(61)
            assert (await http.get("/ranking")).json() == {"ranking": ["ann"]}
            assert (await http.get("/count")).headers["swr-state"] == "stale"
            await loaded(http, "/ranking", {"ranking": ["eve", "ann"]})
            await loaded(http, "/count", {"players": 2})
            assert (await http.post("/players/zoe/3")).status_code == 200
            assert (await http.get("/ranking")).json() == {"ranking": ["zoe", "eve", "ann"]}
            assert (await http.get("/count")).json() == {"players": 3}
        assert page.cache._opened == 0
        assert not [record for record in caplog.records if record.name == "swr"]

    def set_up(self, clock, url):
        page = recipe("recipes/django", clock, url)
        with page.django.db.connection.schema_editor() as editor:
            editor.create_model(page.Player)
        page.Player.objects.create(name="ann", points=1)
        page.django.db.connections.close_all()
        return page

    def in_a_thread(self, function, *arguments) -> None:
        function(*arguments)
        connections.close_all()

    async def test_django_model_is_refused_as_a_cached_value(self):
        with pytest.raises(ConfigurationError, match="cannot be stored in Redis"):

            @Cache().cached("user", fresh_for=60)
            def load() -> models.Model: ...


class TestRefresher:
    async def test_refresher_inside_the_app_loads_groups_before_any_request(self, clock, url):
        page = recipe("recipes/refresher", clock, url)
        async with lifespan(page.app), client(page.app) as http:
            await until(lambda: len(page.loads) == 3)
            await loaded(http, "/rankings/ATL", [f"ATL {rank}" for rank in range(100)])
            assert sorted(page.loads) == ["ATL", "LAX", "ORD"]

    async def test_app_reads_values_loaded_by_a_refresher_in_another_process(self, clock, url, tmp_path):
        (tmp_path / "ranking.py").write_text(programs("recipes/refresher")[0].replace("redis://127.0.0.1:6379/0", url))
        page = recipe("recipes/refresher", FakeClock(time.time()), url)
        page.app.router.lifespan_context = page.beside
        command = [sys.executable, "-m", "swr", "refresh", "ranking:refresher", "--json"]
        environment = {**os.environ, "PYTHONPATH": str(DOCS.parent)}
        async with await anyio.open_process(command, cwd=tmp_path, env=environment) as process:
            with anyio.fail_after(60):
                line = json.loads(await BufferedByteReceiveStream(process.stdout).receive_until(b"\n", 10_000))
            assert (line["groups"], line["loaded"], line["failed"]) == (3, 3, 0)
            async with lifespan(page.app), client(page.app) as http:
                for group in ("ATL", "LAX", "ORD"):
                    assert len((await http.get(f"/rankings/{group}")).json()) == 100
            assert page.loads == []
            process.terminate()
            assert await process.wait() == 0


class TestLimits:
    page_name = "limits"

    async def test_rate_limit_in_front_of_the_cache_counts_hits(self, page):
        async with client(page.app) as http:
            answers = [await http.get("/rankings/ATL") for _ in range(101)]
        assert [answer.status_code for answer in answers] == [200] * 100 + [429]
        assert answers[99].headers["swr-state"] == "fresh"

    async def test_guards_limit_and_log_hits_for_each_user_separately(self, page):
        async with client(page.app) as http:
            told = [await http.get("/secret/ATL", headers={"X-API-Key": "alice"}) for _ in range(6)]
            assert [answer.status_code for answer in told] == [200] * 5 + [429]
            assert told[4].headers["swr-state"] == "fresh"
            other = await http.get("/secret/ATL", headers={"X-API-Key": "bob"})
            assert (other.status_code, other.headers["swr-state"]) == (200, "fresh")
        assert page.audit == [("alice", "/secret/ATL")] * 5 + [("bob", "/secret/ATL")]

    async def test_background_refresh_counts_as_one_more_request(self, page, clock):
        async with client(page.app, headers={"X-API-Key": "alice"}) as http:
            await http.get("/secret/ATL")
            clock.advance(61)
            assert (await http.get("/secret/ATL")).headers["swr-state"] == "stale"
            await until(lambda: len(page.audit) == 3)
        assert page.asked["alice"] == 3

    async def test_hit_runs_guards_and_decorators_as_the_table_of_the_page_says(self, page):
        """Each row, for a public response and behind a login."""
        ran = []

        async def plain() -> None:
            ran.append(1)

        async def looking(request: Request) -> None:
            ran.append(request.method)

        def decorator(function):
            @functools.wraps(function)
            async def run(*args, **kwargs):
                ran.append(1)
                return await function(*args, **kwargs)

            return run

        app, response = page.app, page.cache.response(fresh_for=60)

        async def endpoint() -> int:
            return 1

        async def taking(argument: Annotated[None, Depends(plain)]) -> int:
            return 1

        app.get("/guard with request", dependencies=[Depends(looking)])(response(endpoint))
        app.get("/guard", dependencies=[Depends(plain)])(response(endpoint))
        app.get("/argument")(response(taking))
        app.get("/below")(response(decorator(endpoint)))
        app.get("/above")(decorator(response(endpoint)))
        told = {}
        async with client(app) as http:
            for path in ("guard with request", "guard", "argument", "below", "above"):
                for headers in ({}, {"Authorization": "Bearer x"}):
                    await http.get(f"/{path}", headers=headers)
                    ran.clear()
                    state = (await http.get(f"/{path}", headers=headers)).headers["swr-state"]
                    told[path, bool(headers)] = (state, len(ran))
        assert told == {
            ("guard with request", False): ("fresh", 1),
            ("guard with request", True): ("fresh", 1),
            ("guard", False): ("fresh", 0),
            ("guard", True): ("fresh", 1),
            ("argument", False): ("fresh", 0),
            ("argument", True): ("fresh", 1),
            ("below", False): ("fresh", 0),
            ("below", True): ("missing", 1),
            ("above", False): ("missing", 1),
            ("above", True): ("missing", 1),
        }


class TestWholeAPI:
    @pytest.fixture
    async def page(self, clock, url, tmp_path):
        page = recipe("recipes/api", clock, url)
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/league.db")
        page.sessions.configure(bind=engine)
        page.queries = []
        event.listen(engine.sync_engine, "before_cursor_execute", lambda *told: page.queries.append(told[2]))
        async with engine.begin() as connection:
            await connection.run_sync(page.Base.metadata.create_all)
        async with page.sessions.begin() as session:
            for number, name in enumerate(("ann", "bob", "root")):
                session.add(page.User(id=number, name=name, password=name, is_admin=name == "root"))
            for number in range(30):
                session.add(page.Player(id=number, league="one", name=f"p{number:02}", points=number))
        async with lifespan(page.app):
            yield page
        await engine.dispose()

    @pytest.fixture
    async def http(self, page):
        async with client(page.app) as http:
            yield http

    @pytest.fixture
    async def users(self, http):
        users = {}
        for name in ("ann", "bob", "root"):
            answer = await http.post("/token", data={"username": name, "password": name})
            users[name] = {"Authorization": f"Bearer {answer.json()['access_token']}"}
        return users

    @pytest.mark.uncounted
    async def test_hit_makes_no_query_and_pages_are_kept_apart(self, page, http, users):
        for path in ("/leagues/one/ranking", "/leagues/one/ranking?offset=10"):
            first = await http.get(path, headers=users["ann"])
            assert (await http.get(path, headers=users["bob"])).json() == first.json()
            page.queries.clear()
            again = await http.get(path, headers=users["bob"])
            assert (again.json(), again.headers["swr-state"], page.queries) == (first.json(), "fresh", [])
        assert (first.json()["items"][0]["id"], first.json()["total"]) == (19, 30)
        assert (await http.get("/leagues/one/ranking")).status_code == 401
        assert (await http.get("/leagues/one/ranking?limit=101", headers=users["ann"])).status_code == 422

    async def test_favourites_are_kept_per_user_and_invalidated_by_an_admin_write(self, page, http, users):
        assert (await http.put("/me/favourites/3", headers=users["ann"])).status_code == 204
        for _ in range(2):
            told = {name: (await http.get("/me/favourites", headers=users[name])).json() for name in ("ann", "bob")}
            assert told == {"ann": [{"id": 3, "name": "p03", "points": 3}], "bob": []}
        await http.get("/leagues/one/ranking", headers=users["bob"])
        assert (await http.put("/admin/players/3/points/99", headers=users["bob"])).status_code == 403
        assert (await http.put("/admin/players/3/points/99", headers=users["root"])).json()["points"] == 99
        assert (await http.get("/leagues/one/ranking", headers=users["bob"])).json()["items"][0]["id"] == 3
        assert (await http.get("/me/favourites", headers=users["ann"])).json()[0]["points"] == 99

    async def test_removed_user_is_refused_although_the_ranking_is_fresh(self, page, http, users):
        assert (await http.get("/leagues/one/ranking", headers=users["bob"])).is_success
        assert (await http.delete("/admin/users/1", headers=users["root"])).status_code == 204
        assert (await http.get("/leagues/one/ranking", headers=users["bob"])).status_code == 401
        assert (await http.get("/leagues/one/ranking", headers=users["ann"])).headers["swr-state"] == "fresh"

    @pytest.mark.uncounted
    async def test_stale_ranking_is_served_to_all_readers_and_refreshed_by_one_query(self, page, http, users, clock):
        await http.get("/leagues/one/ranking", headers=users["ann"])
        clock.advance(61)
        page.queries.clear()
        states = []

        async def ask(name: str) -> None:
            states.append((await http.get("/leagues/one/ranking", headers=users[name])).headers["swr-state"])

        async with anyio.create_task_group() as group:
            for name in ["ann", "bob"] * 10:
                group.start_soon(ask, name)
        assert set(states) <= {"stale", "fresh"}
        with anyio.fail_after(30):
            while (await http.get("/leagues/one/ranking", headers=users["ann"])).headers["swr-state"] != "fresh":
                await anyio.sleep(0.005)
        assert sum("ORDER BY players.points" in query for query in page.queries) == 1

    def test_tests_shown_on_the_page_pass(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        text = (DOCS / "recipes" / "api.md").read_text()
        files = dict(re.findall(r"^```py\n# (\w+)\.py\n(.*?)^```", text, re.S | re.M))
        pytester.makepyfile(**files, league=programs("recipes/api")[0])
        # Only what is in question: each plugin that somebody has installed takes its time.
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        # In this process, which has imported the libraries.
        result = pytester.runpytest_inprocess("-p", "anyio", "-p", "no:cacheprovider", "-W", "error")
        result.assert_outcomes(passed=3)

    async def test_endpoint_and_guard_that_use_one_session_need_shared_true(self, page, http, users):
        async def with_session(user: page.UserDep, session: page.SessionDep) -> None:
            await session.get(page.User, user.id)

        def add(path, **word):
            @page.app.get(path, dependencies=[Depends(with_session)])
            @page.cache.response(fresh_for=60, **word)
            async def endpoint(session: page.SessionDep) -> int:
                return 1

        add("/without")
        add("/with", shared=True)

        @page.app.get("/total", dependencies=[Depends(page.current_user)])
        @page.cache.response(fresh_for=60, shared=True)
        async def total(response: Response) -> int:
            response.headers["X-Total-Count"] = "30"
            return 1

        for path in ("/without", "/with", "/total"):
            await http.get(path, headers=users["ann"])
        stored = (await http.get("/total", headers=users["bob"])).headers
        assert (stored["swr-state"], stored["x-total-count"]) == ("fresh", "30")
        without = await http.get("/without", headers=users["ann"])
        assert 'argument session, which a guard needs too"' in without.headers["cache-status"]
        assert (await http.get("/with", headers=users["bob"])).headers["swr-state"] == "fresh"


class TestMigrating:
    """The apps of docs/migrating.md after their migration do what they did before, and what the page says is new."""

    async def test_app_migrated_from_fastapi_cache2_behaves_as_the_page_says(self, clock, url):
        page = recipe("migrating", clock, url)
        async with lifespan(page.app), client(page.app) as http:
            told = [await http.get("/rankings/ATL", params={"limit": 1}) for _ in range(2)]
            assert [answer.json() for answer in told] == [[{"name": "ann", "points": 3}]] * 2
            assert [answer.headers["swr-state"] for answer in told] == ["missing", "fresh"]
            etag = {"If-None-Match": told[0].headers["etag"]}
            assert told[0].headers["cache-control"] == "no-cache"
            assert (await http.get("/rankings/ATL", params={"limit": 1}, headers=etag)).status_code == 304
            for user, state, points in (("ann", "missing", 3), ("bob", "missing", 2), ("ann", "fresh", 3)):
                answer = await http.get("/me", headers={"Authorization": f"Bearer {user}"})
                assert (answer.json(), answer.headers["swr-state"]) == ({"points": points, "of": 5}, state)
            assert (await http.get("/me")).status_code == 401
            await http.put("/players/ann", params={"points": 9})
            assert (await http.get("/rankings/ATL")).json()[0] == {"name": "ann", "points": 9}
            answer = await http.get("/me", headers={"Authorization": "Bearer ann"})
            assert answer.json() == {"points": 9, "of": 11}
            assert (await page.total.outcome()).state == "fresh"

    async def test_app_migrated_from_cashews_behaves_as_the_page_says(self, clock, url):
        page = recipe("migrating", clock, url, number=1)
        async with page.cache:
            rankings = page.Rankings()
            rows = [page.Row("ann", 3), page.Row("bob", 2)]
            assert await rankings.top("ATL") == await page.Rankings().top("ATL") == rows
            assert await page.player("zoe") is None
            page.players["zoe"] = ("LAX", 1)
            assert await page.player("zoe") == page.Row("zoe", 1)
            assert await page.total() == 11
            await page.save("ann", "ATL", 9)
            assert await rankings.top("ATL") == [page.Row("ann", 9), page.Row("bob", 2)]
            assert (await page.player("ann"), await page.total()) == (page.Row("ann", 9), 17)
            # What `early` did: served at once, refreshed behind the reader.
            page.players["bob"] = ("ATL", 4)
            clock.advance(61)
            assert (await rankings.top.outcome("ATL")).state == "stale"
            with anyio.fail_after(30):
                while (await rankings.top("ATL"))[1].points != 4:
                    await anyio.sleep(0.005)
            # What `soft` did: a new load after a minute, the old value if that fails.
            page.players["bad"] = ("LAX", None)
            outcome = await page.total.outcome()
            assert (outcome.value, outcome.state, type(outcome.error)) == (17, "stale", TypeError)

    async def test_app_migrated_from_aiocache_behaves_as_the_page_says(self, clock, url):
        page = recipe("migrating", clock, url, number=2)
        async with page.cache:
            assert await page.top("ATL") == [page.Row("ann", 3), page.Row("bob", 2)]
            assert await page.by_name(["ann", "zoe"]) == {"ann": page.Row("ann", 3)}
            del page.players["ann"]
            assert await page.by_name(["ann", "bob"]) == {"ann": page.Row("ann", 3), "bob": page.Row("bob", 2)}

    def test_app_migrated_from_dogpile_cache_behaves_as_the_page_says(self, clock, url):
        page = recipe("migrating", clock, url, number=3)
        with page.cache.sync:
            assert page.first("ATL") == "ann"
            assert page.first("ORD") == "nobody"
            page.players["eve"] = ("ORD", 5)
            assert page.first("ORD") == "eve", "nothing was stored of a group without players"
            del page.players["eve"]
            page.save("zoe", "ORD", 7)
            assert page.first("ORD") == "zoe"
        page.cache.sync.close()

    async def test_app_migrated_from_hishel_behaves_as_the_page_says(self, clock, url):
        page = recipe("migrating", clock, url, number=4)
        async with lifespan(page.app), client(page.app) as http:
            for path, told in (
                ("/rankings/ATL", "max-age=60, stale-while-revalidate=600"),
                ("/players/ann", "max-age=5"),
            ):
                answers = [await http.get(path) for _ in range(2)]
                assert [answer.headers["swr-state"] for answer in answers] == ["missing", "fresh"]
                assert [answer.headers["cache-control"] for answer in answers] == [told] * 2

    @pytest.mark.uncounted
    @pytest.mark.parametrize(("number", "total"), [(5, "/total"), (6, None)])
    async def test_app_migrated_from_fastapi_redis_sdk_or_cachex_behaves_as_the_page_says(
        self, clock, url, number, total
    ):
        page = recipe("migrating", clock, url, number=number)
        async with lifespan(page.app), client(page.app) as http:
            assert [(await http.get("/rankings/ATL")).headers["swr-state"] for _ in range(2)] == ["missing", "fresh"]
            assert (await http.get(total)).json() == 5 if total else await page.total("ATL") == 5
            page.players["ann"] = 9
            await http.post("/rankings/ATL")
            assert (await http.get("/rankings/ATL")).headers["swr-state"] == "missing"
            # As before: the total of the one has no tag, and holds for its five minutes.
            assert (await http.get(total)).json() == 5 if total else await page.total("ATL") == 11
