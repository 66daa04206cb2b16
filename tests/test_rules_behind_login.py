"""Each option of a rule has the same meaning in front of the app and behind the dependencies of a decorated endpoint."""

from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Query, Request, Security
from fastapi.security import APIKeyCookie, APIKeyHeader, APIKeyQuery, HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel

from swr.middleware import Rule, SWRMiddleware
from tests.web import client

pytestmark = pytest.mark.anyio

GUARD = [Depends(HTTPBearer())]
ALICE, BOB = {"authorization": "Bearer alice"}, {"authorization": "Bearer bob"}


def user(token: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> str:
    return token.credentials


class Paging:
    def __init__(self, limit: int = 10, page: int = 1) -> None:
        self.limit, self.page = limit, page


class Filters(BaseModel):
    limit: int = 10
    page: int = 1


def page_of(limit: int = 10, page: int = 1) -> dict[str, int]:
    return {"limit": limit, "page": page}


async def by_class(paging: Annotated[Paging, Depends()]) -> int:
    return paging.limit


async def by_model(filters: Annotated[Filters, Query()]) -> int:
    return filters.limit


async def by_dict(paging: Annotated[dict[str, int], Depends(page_of)]) -> int:
    return paging["limit"]


async def by_scalar(limit: int = 10) -> int:
    return limit


async def by_alias(paging: Annotated[Any, Depends(lambda limit=Query(10, alias="limit"): [limit])]) -> int:
    return int(paging[0])


def behind(cache, endpoint, rule, dependencies=GUARD, route=None, **terms):
    """Return a client of an app with one decorated endpoint behind a guard, and one rule."""
    app = FastAPI()
    app.api_route("/x", dependencies=dependencies, **(route or {}))(cache.response(fresh_for=60, **terms)(endpoint))
    app.add_middleware(SWRMiddleware, cache=cache, rules=[rule])
    return client(app)


def detail(response):
    return response.headers["cache-status"].partition('detail="')[2].rstrip('"')


# -- parts of the query -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [{}, {"shared": True}, {"key": lambda scope: "all"}], ids=["plain", "shared", "key"])
@pytest.mark.parametrize("endpoint", [by_class, by_model, by_dict, by_scalar, by_alias])
@pytest.mark.parametrize("kept", [("page",), ()])
async def test_rule_that_leaves_out_a_declared_parameter_prevents_sharing_behind_dependencies(
    cache, caplog, endpoint, terms, kept
):
    async with behind(cache, endpoint, Rule("/x", keep_params=kept), **terms) as http:
        for who, limit in ((ALICE, 10), (BOB, 50), (ALICE, 50)):
            found = await http.get("/x", params={"limit": limit}, headers=who)
            assert found.json() == limit
        assert detail(found) == "authorization, parameter limit"
    assert len([record for record in caplog.records if "query parameter 'limit'" in record.getMessage()]) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"keep_params": ("page", "limit")},
        {"keep_params": ("page",), "drop_params": ("limit",)},
        {"drop_params": ("utm_*",)},
        {"sort_query": True},
    ],
    ids=str,
)
async def test_rule_that_accounts_for_the_declared_parameters_keeps_sharing_behind_dependencies(cache, options):
    async with behind(cache, by_class, Rule("/x", **options)) as http:
        states = [(await http.get("/x?page=1&limit=10", headers=who)).headers["swr-state"] for who in (ALICE, BOB)]
    assert states == ["missing", "fresh"]


async def test_sorted_query_is_one_response_behind_dependencies(cache):
    async with behind(cache, by_class, Rule("/x", sort_query=True)) as http:
        await http.get("/x?limit=5&page=1", headers=ALICE)
        assert (await http.get("/x?page=1&limit=5", headers=BOB)).headers["swr-state"] == "fresh"
        assert (await http.get("/x?page=1&limit=6", headers=BOB)).json() == 6


async def test_dropped_parameter_selects_no_response_behind_dependencies(cache):
    async with behind(cache, by_class, Rule("/x", drop_params=("utm_*", "page"))) as http:
        await http.get("/x?limit=5&page=1&utm_source=a", headers=ALICE)
        found = await http.get("/x?limit=5&page=2&utm_source=b", headers=BOB)
        assert (found.json(), found.headers["swr-state"]) == (5, "fresh")


async def test_rule_that_leaves_out_a_key_in_the_query_prevents_sharing_behind_dependencies(cache):
    async def answer(key: Annotated[str, Security(APIKeyQuery(name="token"))]) -> str:
        return key

    rule = Rule("/x", drop_params=("token",))
    async with behind(cache, answer, rule, dependencies=[], key=lambda scope: "all") as http:
        for token in ("a", "b"):
            found = await http.get("/x", params={"token": token})
            assert (found.json(), detail(found)) == (token, "key, parameter token")


@pytest.mark.parametrize(("options", "is_shared"), [({"drop_params": ("utm_*",)}, True), ({"keep_params": ()}, False)])
async def test_parameters_that_a_rule_leaves_out_are_found_although_a_guard_copies_the_scope(cache, options, is_shared):
    def copying(request: Request) -> None:
        request.state.copy = dict(request.scope)

    guards = [*GUARD, Depends(copying)]
    async with behind(cache, by_class, Rule("/x", **options), dependencies=guards) as http:
        states = [(await http.get("/x", headers=who)).headers["swr-state"] for who in (ALICE, BOB)]
        assert states == ["missing", "fresh" if is_shared else "missing"]


# -- request fields and credentials -------------------------------------------------------------------------------


async def units(request: Request) -> str | None:
    return request.headers.get("x-units")


async def units_of_user(request: Request, who: Annotated[str, Depends(user)]) -> list[str | None]:
    return [who, request.headers.get("x-units")]


@pytest.mark.parametrize("on", ["rule", "decorator"])
@pytest.mark.parametrize(
    ("endpoint", "terms"), [(units, {"shared": True}), (units_of_user, {"key": lambda who: who})], ids=["shared", "key"]
)
async def test_vary_selects_behind_dependencies(cache, endpoint, terms, on):
    vary = {"vary": ("X-Units",)}
    rule = Rule("/x", **(vary if on == "rule" else {}))
    async with behind(cache, endpoint, rule, **terms, **(vary if on == "decorator" else {})) as http:
        for expected in ("missing", "fresh"):
            for unit in ("km", "mi", None):
                found = await http.get("/x", headers={**ALICE, **({"x-units": unit} if unit else {})})
                answer = found.json()
                assert (answer[1] if isinstance(answer, list) else answer, found.headers["swr-state"]) == (
                    unit,
                    expected,
                )


async def test_vary_of_a_rule_counts_as_the_client_sent_it_and_as_the_endpoint_gets_it(cache):
    async def answer(request: Request) -> list[str]:
        return [request.headers["x-units"], request.state.sent]

    app = FastAPI()

    @app.middleware("http")
    async def rename(request, call_next):
        """Put a field into the state, and one of the path into the fields."""
        request.state.sent = request.headers["x-units"]
        headers = [pair for pair in request.scope["headers"] if pair[0] != b"x-units"]
        request.scope["headers"] = [*headers, (b"x-units", request.headers.get("x-request-id", "").encode())]
        return await call_next(request)

    app.get("/x", dependencies=GUARD)(cache.response(fresh_for=60, shared=True)(answer))
    app.add_middleware(SWRMiddleware, cache=cache, rules=[Rule("/x", vary=("X-Units",))])
    async with client(app) as http:
        for sent in ("km", "mi"):
            for changed in ("a", "b"):
                found = await http.get("/x", headers={**ALICE, "x-units": sent, "x-request-id": changed})
                assert found.json() == [changed, sent]


async def test_refresh_behind_dependencies_is_for_the_value_of_a_rules_vary_field(cache, clock):
    async def answer(request: Request) -> str:
        return request.headers["x-units"]

    rule = Rule("/x", vary=("X-Units",))
    async with behind(cache, answer, rule, shared=True, stale_for=600) as http:

        async def ask():
            found = [await http.get("/x", headers={**ALICE, "x-units": unit}) for unit in ("km", "mi")]
            assert [answer.json() for answer in found] == ["km", "mi"]
            return [answer.headers["swr-state"] for answer in found]

        assert await ask() == ["missing", "missing"]
        clock.advance(61)
        assert await ask() == ["stale", "stale"]
        assert "missing" not in await ask()


@pytest.mark.parametrize(
    ("scheme", "sent"),
    [
        (HTTPBearer(), lambda who: {"authorization": f"Bearer {who}"}),
        (APIKeyHeader(name="X-API-Key"), lambda who: {"x-api-key": who}),
        (APIKeyHeader(name="X-Of-The-App"), lambda who: {"x-of-the-app": who}),
        (APIKeyCookie(name="key"), lambda who: {"cookie": f"key={who}"}),
    ],
)
async def test_rule_with_credentials_vary_keeps_users_apart_behind_dependencies(cache, scheme, sent):
    async def answer(request: Request) -> list[str | None]:
        return [request.headers.get(name) for name in ("authorization", "x-api-key", "x-of-the-app", "cookie")]

    rule = Rule("/x", credentials="vary", ignore_fields=("X-Of-The-App",))
    async with behind(cache, answer, rule, [Security(scheme)], shared=True) as http:
        for expected in ("missing", "fresh"):
            for who in ("alice", "bob"):
                found = await http.get("/x", headers=sent(who))
                assert who in str(found.json())
                assert found.headers["swr-state"] == expected


async def test_ignored_field_of_a_rule_selects_no_response_behind_dependencies(cache):
    async with behind(cache, by_class, Rule("/x", ignore_fields=("X-App-Version",))) as http:
        await http.get("/x", headers={**ALICE, "x-app-version": "1"})
        assert (await http.get("/x", headers={**BOB, "x-app-version": "2"})).headers["swr-state"] == "fresh"


async def test_key_of_a_rule_selects_behind_dependencies(cache):
    async def answer(request: Request) -> str:
        return request.client.host

    app = FastAPI()
    app.get("/x", dependencies=GUARD)(cache.response(fresh_for=60, shared=True)(answer))
    app.add_middleware(
        SWRMiddleware, cache=cache, rules=[Rule("/x", key=lambda scope: dict(scope["headers"])[b"user-agent"].decode())]
    )
    async with client(app) as http:
        states = [
            (await http.get("/x", headers={**who, "user-agent": agent})).headers["swr-state"]
            for who, agent in ((ALICE, "one"), (BOB, "two"), (BOB, "one"))
        ]
    assert states == ["missing", "missing", "fresh"]


async def test_cookies_of_a_rule_select_behind_dependencies(cache):
    async def answer(request: Request) -> str | None:
        return request.cookies.get("lang")

    async with behind(cache, answer, Rule("/x", cookies=("lang",)), shared=True) as http:
        for expected in ("missing", "fresh"):
            for lang in ("de", "fr"):
                found = await http.get("/x", headers={**ALICE, "cookie": f"lang={lang}; seen={expected}"})
                assert (found.json(), found.headers["swr-state"]) == (lang, expected)


# -- methods and tags ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "QUERY"])
@pytest.mark.parametrize("options", [{"vary": ("X-Units",)}, {"keep_params": ()}], ids=["vary", "keep_params"])
async def test_options_of_a_rule_for_another_method_count_behind_dependencies(cache, method, options):
    async def answer(request: Request, limit: Annotated[Paging, Depends()]) -> list[Any]:
        return [request.headers.get("x-units"), limit.limit, (await request.body()).decode()]

    safe = {"safe": True} if method == "POST" else {}
    rule, route = Rule("/x", [method], **safe, **options), {"methods": [method]}
    async with behind(cache, answer, rule, route=route, shared=True) as http:
        for limit in (10, 50):
            for unit in ("km", "mi"):
                for content in ("a", "b"):
                    asked = {"params": {"limit": limit}, "headers": {**ALICE, "x-units": unit}, "content": content}
                    assert (await http.request(method, "/x", **asked)).json() == [unit, limit, content]


async def test_terms_of_the_decorator_replace_those_of_a_rule_in_front_and_behind(cache, clock):
    """Times, tags and `override` come from the decorator, whatever the rule says."""

    async def answer() -> str:
        return "same"

    rule = Rule("/{path:path}", fresh_for=6000, override=True, tags=("of-the-rule",))
    app = FastAPI()
    app.get("/behind", dependencies=GUARD)(cache.response(fresh_for=60)(answer))
    app.get("/front")(cache.response(fresh_for=60)(answer))
    app.add_middleware(SWRMiddleware, cache=cache, rules=[rule])
    async with client(app) as http:

        async def states():
            return [(await http.get(path, headers=who)).headers["swr-state"] for path, who in (("/behind", ALICE), ("/front", {}))]  # fmt: skip

        assert await states() == ["missing", "missing"]
        await cache.invalidate_tag("of-the-rule")
        assert await states() == ["fresh", "fresh"]
        clock.advance(61)
        assert await states() == ["missing", "missing"]
