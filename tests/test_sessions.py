"""Sessions of Starlette's older versions, which are plain dicts: swr notes their use itself."""

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from swr.endpoints.sessions import NotedSession
from swr.middleware import Rule, SWRMiddleware
from tests.web import client

pytestmark = pytest.mark.anyio

# Sets the session as `SessionMiddleware` did in Starlette 0.46.
OLDER = """
class SessionMiddleware:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        scope["session"] = {}

        async def send_wrapper(message):
            if message["type"] == "http.response.start" and scope["session"]:
                saved.append(dict(scope["session"]))
            await send(message)

        await self.app(scope, receive, send_wrapper)
"""


def with_sessions(endpoint, saved, module):
    names = {"__name__": module, "saved": saved}
    exec(OLDER, names)
    app = Starlette(routes=[Route("/x", endpoint)])
    app.add_middleware(names["SessionMiddleware"])
    return app


@pytest.mark.parametrize(
    ("use", "state"),
    [
        (lambda session: session.get("user", "nobody"), "missing"),
        (lambda session: session.setdefault("token", "1"), "missing"),
        (lambda session: str(len(session)), "fresh"),
    ],
    ids=["get", "setdefault", "length"],
)
async def test_response_is_shared_only_if_the_app_does_not_use_the_session_of_an_older_starlette(cache, use, state):
    saved = []
    app = with_sessions(lambda request: PlainTextResponse(use(request.session)), saved, "starlette.middleware.sessions")
    async with client(SWRMiddleware(app, cache, [Rule("/x", fresh_for=60)])) as http:
        answers = [await http.get("/x") for _ in range(2)]
    assert [answer.headers["swr-state"] for answer in answers] == ["missing", state]
    assert ('detail="session"' in answers[0].headers["cache-status"]) is (state == "missing")
    assert saved == ([{"token": "1"}] * 2 if answers[0].text == "1" else [])


async def test_session_of_other_middleware_stays_the_dict_that_it_has_set(cache):
    seen = []

    def endpoint(request):
        seen.append(type(request.session))
        return PlainTextResponse("x")

    async with client(SWRMiddleware(with_sessions(endpoint, [], "other"), cache, [Rule("/x", fresh_for=60)])) as http:
        await http.get("/x")
    assert seen == [dict]


@pytest.mark.parametrize(
    "use",
    [
        lambda session: "user" in session,
        lambda session: session["user"],
        lambda session: [*session],
        lambda session: session.items(),
        lambda session: session.update(user="b"),
        lambda session: session.pop("user"),
        lambda session: {**session},
        lambda session: dict(session),
    ],
    ids=["in", "item", "iteration", "items", "update", "pop", "unpacking", "dict"],
)
def test_each_use_of_a_session_is_noted_but_its_length_is_not(use):
    session = NotedSession(user="a")
    assert bool(session)
    assert len(session) == 1
    assert not session.accessed
    use(session)
    assert session.accessed
