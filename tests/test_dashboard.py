"""The dashboard's server: who may look and act, what it answers, and that it leaves the app around it alone."""

import base64
import json
import logging
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import anyio
import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

import swr
from swr import Cache, ConfigurationError, Policy
from swr.dashboard import hub, pages, server, streams
from swr.dashboard import own_token as own_token_module
from swr.dashboard.hub import Held
from swr.dashboard.json import dumps
from swr.dashboard.keys import Keys, seal, unseal
from swr.dashboard.own_token import own_token
from swr.dashboard.pages import address_of, page_of
from swr.dashboard.streams import Position
from swr.dashboard.why import explained, why_of
from swr.middleware import Rule, SWRMiddleware, guesses
from tests.fleet import until
from tests.web import NAMES_ROUTES

pytestmark = pytest.mark.anyio

MARKUP = "<script>alert(1)</script>\u2028\"'&"
ACT = {"x-swr-action": "1", "sec-fetch-site": "same-origin"}


def with_cookie(request):
    """Add the cookie of this user's dashboards where a browser sends it."""
    if not request.url.path.startswith("/x/"):
        request.headers["cookie"] = f"swr-dashboard={own_token()}"
    return request


def browser(app, address="127.0.0.1", base_url="http://localhost:8000", **options):
    """Return a client at an address that has the cookie of this user's dashboards."""
    client = None if address is None else (address, 50000)
    options = {"auth": with_cookie, **options}
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, client=client, raise_app_exceptions=False), base_url=base_url, **options
    )


def site(cache, middleware=False, **options):
    """Return an app with a dashboard, a loader and a route, and how often the loader ran."""
    ran = []

    @cache.cached("x:{name}", fresh_for=60, stale_for=60, stale_if_error=600, tags=("all",))
    async def load(name: str) -> str:
        ran.append(name)
        if name.startswith("bad"):
            raise ValueError(f"{name} {MARKUP} redis://u:secret@h/0?password=p https://h/?token=t")
        return "VALUE"

    async def show(request):
        value = await load(request.path_params["name"])
        return JSONResponse(value, headers={"cache-control": request.query_params.get("cc", "max-age=60")})

    app = Starlette(routes=[Mount("/swr", swr.dashboard(cache, **options)), Route("/x/{name}", show)])
    whole = SWRMiddleware(app, cache, rules=[Rule("/{path:path}", fresh_for=60, override=True)]) if middleware else app
    return whole, load, ran


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(hub, "_WATCHED_EVERY", 0.05)
    monkeypatch.setattr(streams, "_EVERY", 0.02)
    monkeypatch.setattr(streams, "_LASTS", 0.4)


async def until_async(condition):
    """Wait for something to become true."""
    with anyio.fail_after(60):
        while not await condition():
            await anyio.sleep(0.01)


@pytest.fixture
async def cache():
    async with Cache() as cache:
        yield cache


# -- who may look -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "base_url", "fields", "status"),
    [
        ("127.0.0.1", "http://localhost:8000", {}, 200),
        ("127.9.9.9", "http://127.0.0.1", {}, 200),
        ("::1", "http://[::1]:8000", {}, 200),
        ("::ffff:127.0.0.1", "http://localhost", {}, 200),
        ("10.0.0.1", "http://localhost", {}, 403),
        ("testclient", "http://localhost", {}, 403),
        (None, "http://localhost", {}, 403),
        # A name of another site that resolves to the loopback.
        ("127.0.0.1", "http://evil.example", {}, 403),
        ("127.0.0.1", "http://localhost.evil.example", {}, 403),
        ("127.0.0.1", "http://localhost", {"host": "[::1"}, 403),
        ("127.0.0.1", "http://localhost", {"host": "localhost:x"}, 403),
        # Somebody behind a proxy on this machine.
        ("127.0.0.1", "http://localhost", {"x-forwarded-for": "127.0.0.1"}, 403),
        ("127.0.0.1", "http://localhost", {"X-Forwarded-Proto": "https"}, 403),
        ("127.0.0.1", "http://localhost", {"forwarded": "for=127.0.0.1"}, 403),
        ("127.0.0.1", "http://localhost", {"via": "1.1 proxy"}, 403),
        ("127.0.0.1", "http://localhost", {"x-real-ip": "127.0.0.1"}, 403),
        ("127.0.0.1", "http://localhost", {"x-nginx-proxy": "true"}, 403),
        ("127.0.0.1", "http://localhost", {"cf-ray": "1"}, 403),
        # A page of another site.
        ("127.0.0.1", "http://localhost", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}, 403),
        ("127.0.0.1", "http://localhost", {"sec-fetch-site": "same-site"}, 403),
        ("127.0.0.1", "http://localhost", {"origin": "http://evil.example"}, 403),
        ("127.0.0.1", "http://localhost", {"origin": "null"}, 403),
        ("127.0.0.1", "http://localhost", {"origin": "http://[x"}, 403),
        ("127.0.0.1", "http://localhost", {"origin": "http://localhost"}, 200),
        ("127.0.0.1", "http://localhost", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),
        ("127.0.0.1", "http://localhost", {"sec-fetch-site": "same-origin"}, 200),
    ],
)
async def test_dashboard_without_auth_answers_only_direct_requests_to_localhost(
    cache, address, base_url, fields, status
):
    app, _, _ = site(cache)
    async with browser(app, address, base_url) as http:
        response = await http.get("/swr/state", headers=fields)
    assert response.status_code == status
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(("version", "status"), [("1.0", 403), ("1.1", 200), ("2", 200)])
async def test_request_of_http_1_0_is_refused_as_sent_by_a_proxy(cache, version, status):
    """nginx before 1.29.7 sends HTTP/1.0 if it is configured with `proxy_pass` alone."""
    app, sent = swr.dashboard(cache), []
    scope = {
        "type": "http", "http_version": version, "method": "GET", "path": "/docs/http", "root_path": "",
        "query_string": b"", "client": ("127.0.0.1", 1),
        "headers": [(b"host", b"127.0.0.1:8000"), (b"cookie", b"swr-dashboard=" + own_token().encode())],
    }  # fmt: skip

    async def send(message):
        sent.append(message)

    await app(scope, None, send)
    assert sent[0]["status"] == status


def basic(user, password):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


async def is_true(request):
    return request.headers.get("x-user") == "admin"


@pytest.mark.parametrize(
    ("auth", "field", "status"),
    [
        ("tökén", f"Bearer {'tökén'.encode().decode('latin-1')}", 200),
        ("token", "bearer token", 200),
        ("token", basic("anybody", "token"), 200),
        ("token", basic("", "token"), 200),
        ("token", "Bearer toke", 401),
        ("token", basic("token", ""), 401),
        ("token", "Basic ???", 401),
        ("token", "Basic " + base64.b64encode(b"token").decode(), 401),
        ("token", "Digest token", 401),
        ("token", "x" * 5000, 401),
        ("token", None, 401),
        (("ann", "pass:word"), basic("ann", "pass:word"), 200),
        (("ann", "pass"), basic("bob", "pass"), 401),
        (("ann", "pass"), basic("ann", "word"), 401),
        (("ann", "pass"), "Bearer pass", 401),
        (lambda request: True, None, 200),
        (lambda request: False, None, 403),
        (is_true, None, 403),
    ],
)
async def test_dashboard_with_auth_answers_every_address_that_sends_the_secret(cache, auth, field, status):
    app, _, _ = site(cache, auth=auth)
    fields = {} if field is None else {"authorization": field.encode("latin-1")}
    async with browser(app, "10.0.0.1", "http://example.com") as http:
        response = await http.get("/swr/state", headers=fields)
    assert response.status_code == status
    assert ("www-authenticate" in response.headers) == (status == 401)


async def test_auth_function_admits_only_by_returning_true(cache, caplog):
    """A coroutine or the name of a user is not True."""
    for auth in (lambda request: "ann", lambda request: 1):
        app, _, _ = site(Cache(), auth=auth)
        async with browser(app) as http:
            assert [(await http.get("/swr/state")).status_code for _ in range(2)] == [403, 403]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    app, _, _ = site(cache, auth=is_true)
    async with browser(app, None) as http:
        assert (await http.get("/swr/state", headers={"x-user": "admin"})).status_code == 200


@pytest.mark.parametrize(
    "options",
    [
        {"auth": ""},
        {"auth": " "},
        {"auth": ("ann",)},
        {"auth": ("ann", "")},
        {"auth": ("a:n", "x")},
        {"auth": ("", "x")},
        {"auth": 7},
        {"token": ""},
        {"actions": "yes"},
        {"simulate": True},
        {"show_queries": 1},
    ],
)
def test_invalid_options_of_dashboard_are_rejected_at_once(options):
    with pytest.raises(ConfigurationError):
        swr.dashboard(Cache(), **options)
    with pytest.raises(ConfigurationError):
        swr.dashboard(object())


async def test_request_without_the_users_token_is_refused_even_from_localhost(cache, caplog):
    """nginx from 1.29.7 on, tunnels and port forwarding add no field that shows a proxy."""
    app, _, _ = site(cache, actions=True, simulate=True)
    async with browser(app, auth=None) as http:
        for path in ("", "/", "/state", "/history", "/stream", "/key?key=x", "/static/app.js", "/docs/http"):
            answer = await http.get(f"/swr{path}", follow_redirects=True)
            assert (answer.status_code, answer.headers["cache-control"]) == (403, "no-store")
        assert (await http.post("/swr/actions/invalidate", json={"all": True}, headers=ACT)).status_code == 403
        for path in ("/swr/?token=", "/swr/?token=wrong", "/swr/?token=%E2%82%AC", f"/swr/state?token={own_token()}"):
            assert (await http.get(path)).status_code == 403
        assert not http.cookies
        for value in ("", "x", "ä", own_token()[:-1]):
            fields = {"cookie": f"swr-dashboard={value}".encode("latin-1"), "authorization": f"Bearer {value}".encode()}
            assert (await http.get("/swr/state", headers=fields)).status_code == 403
    # Only who started the process reads its log, and a page that is reloaded does not fill it.
    assert [record.getMessage() for record in caplog.records] == [
        f"the dashboard has no auth=, so it lets in everybody who knows this address: {LINK}"
    ]


LINK = f"http://localhost:8000/swr/?token={own_token()}"


async def test_logged_address_admits_a_browser_on_this_machine_only(cache):
    app, _, _ = site(cache, actions=True)
    async with browser(app, auth=None) as http:
        answer = await http.get(LINK.replace("/?", "?"), follow_redirects=True)
        # The token stays in no address, and so in no history and no bookmark.
        assert (answer.status_code, str(answer.url)) == (200, "http://localhost:8000/swr/")
        (cookie,) = answer.history[1].headers.get_list("set-cookie")
        name, *attributes = cookie.split("; ")
        assert name == f"swr-dashboard={own_token()}"
        assert {"HttpOnly", "SameSite=lax", "Path=/swr/"} < {*attributes}
        assert "Secure" not in attributes
        assert (await http.get("/swr/state")).status_code == 200
        assert (await http.get("/swr/state", headers={"sec-fetch-site": "same-site"})).status_code == 403
        assert (await http.post("/swr/actions/invalidate", json={"tag": "a"}, headers=ACT)).status_code == 200
        assert (await http.post("/swr/actions/invalidate", json={"tag": "a"})).status_code == 403
    program = {"authorization": f"Bearer {own_token()}"}
    for address, base_url, status in (
        ("127.0.0.1", "http://localhost", 200),
        ("10.0.0.1", "http://localhost", 403),
        # Its own name leads to this machine.
        ("127.0.0.1", "http://evil.example", 403),
    ):
        async with browser(app, address, base_url, auth=None) as http:
            assert (await http.get("/swr/state", headers=program)).status_code == status
            assert (await http.get(f"/swr/?token={own_token()}")).is_redirect is (status == 200)
    async with browser(app, base_url="https://localhost", auth=None) as http:
        assert "; Secure" in (await http.get(f"/swr/?token={own_token()}")).headers["set-cookie"]


def test_processes_of_one_user_share_a_token_in_a_private_file(tmp_path):
    """The workers may start together, or after a change of the code."""
    folder = tmp_path / "new" / "swr"
    with ThreadPoolExecutor(8) as pool:
        (token,) = set(pool.map(own_token, [folder] * 50))
    assert len(token) >= 22
    (file,) = folder.iterdir()
    # Another process has made it in the meantime.
    assert own_token_module._made(file) == token
    assert [*folder.iterdir()] == [file]
    assert (file.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
    code = "from swr.dashboard.own_token import own_token; print(own_token())"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"XDG_STATE_HOME": str(folder.parent)}
    )
    assert other.stdout.split() == [token]


@pytest.mark.parametrize(
    "fault", ["readable", "empty", "short", "link", "folder", "pipe", "text", "no home", "no folder"]
)
def test_unusable_token_file_makes_process_use_its_own_token_and_log_it(fault, tmp_path, monkeypatch, caplog):
    sound, path = own_token(tmp_path / "sound"), tmp_path / "swr" / "dashboard-token"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    path.parent.mkdir()
    path.touch(0o600)
    if fault == "readable":
        path.write_text(sound)
        path.chmod(0o640)
    elif fault in ("short", "text"):
        path.write_text({"short": sound[:21], "text": "ä" * 30}[fault])
    elif fault in ("link", "folder", "pipe"):
        path.unlink()
        {"link": lambda: path.symlink_to(tmp_path / "sound" / path.name), "folder": path.mkdir, "pipe": lambda: os.mkfifo(path, 0o600)}[fault]()  # fmt: skip
    elif fault == "no folder":
        monkeypatch.setenv("XDG_STATE_HOME", str(path))
    elif fault == "no home":
        monkeypatch.delenv("XDG_STATE_HOME")
        monkeypatch.setattr(own_token_module.Path, "home", _no_home)
    token = own_token()
    assert len(token) >= 22
    assert token != sound
    assert token == own_token()
    assert "a token of this process alone" in caplog.text
    assert sound not in caplog.text


def _no_home():
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("kind", ["password", "token", "job"])
async def test_address_that_sends_ten_wrong_secrets_is_refused_for_a_minute(cache, monkeypatch, caplog, kind):
    now = [1000.0]
    monkeypatch.setattr(guesses, "_clock", lambda: now[0])
    app, _, _ = site(cache, auth=("ann", "pw") if kind == "password" else "pw", token="pw")

    async def status(secret, address="10.0.0.9"):
        field = basic("ann", secret) if kind == "password" else f"Bearer {secret}"
        async with browser(app, address, auth=None) as http:
            if kind == "job":
                answer = await http.post("/swr/invalidate", data={"tag": "a"}, headers={"authorization": field})
            else:
                answer = await http.get("/swr/history", headers={"authorization": field})
        assert ("retry-after" in answer.headers) == (answer.status_code == 429)
        return answer.status_code

    # A page that goes on with an old password guesses nothing.
    assert {await status("old") for _ in range(30)} == {401}
    assert [await status("pw"), await status("none", "")] == [200, 401]
    assert {await status(f"{number}") for number in range(9)} == {401}
    assert [await status("pw"), await status("next")] == [429, 429]
    # Other addresses are none of its own; a client of IPv6 has all of its network.
    assert await status("pw", "10.0.0.8") == 200
    assert {await status(f"{number}", f"2001:db8::{number}") for number in range(10)} == {401}
    assert [await status("pw", "2001:db8::ffff"), await status("pw", "2001:db8:0:1::1")] == [429, 200]
    now[0] += 60
    assert [await status("wrong"), await status("pw")] == [401, 200]
    (line,) = [record.getMessage() for record in caplog.records if "wrong secrets" in record.getMessage()]
    assert "10.0.0.9 has sent 10 wrong secrets" in line
    assert "pw" not in line


def test_wrong_secrets_are_remembered_for_a_bounded_number_of_addresses():
    limit = guesses.Guesses("x")
    for number in range(3000):
        limit.note((f"10.0.{number // 256}.{number % 256}", 1), b"wrong")
    limit.note(None, b"wrong")
    limit.note(("made\nup" * 100, 1), b"wrong")
    assert len(limit._wrong) == guesses.MOST_ADDRESSES
    assert max(map(len, limit._wrong)) < 500


# -- what it answers --------------------------------------------------------------------------------------------------


async def test_every_answer_forbids_caching_and_framing(cache, monkeypatch, tmp_path):
    (tmp_path / "index.html").write_text("<!doctype html>")
    (tmp_path / "app.js").write_text("1")
    (tmp_path / ".hidden.js").write_text("1")
    (tmp_path / "secret.txt").write_text("1")
    monkeypatch.setattr(server, "STATIC", tmp_path)
    app, _, _ = site(cache)
    asked = {
        "/swr/": ("text/html; charset=utf-8", 200),
        "/swr/static/app.js": ("text/javascript; charset=utf-8", 200),
        "/swr/static/.hidden.js": ("application/json", 404),
        "/swr/static/secret.txt": ("application/json", 404),
        "/swr/static/..%2fsecret.txt": (None, 404),
        "/swr/static/x.js": ("application/json", 404),
        "/swr/state": ("application/json", 200),
        "/swr/history?seconds=60": ("application/json", 200),
        "/swr/history?seconds=x": ("application/json", 200),
        "/swr/key?key=x:1": ("application/json", 200),
        "/swr/key": ("application/json", 400),
        "/swr/key?id=~x": ("application/json", 404),
        "/swr/docs/http": ("text/html; charset=utf-8", 200),
        "/swr/docs/..%2fx": (None, 404),
        "/swr/docs/x": (None, 307),
        "/swr/docs/x.y": ("application/json", 404),
        "/swr/nowhere": (None, 404),
        "/swr/actions/invalidate": (None, 405),
    }
    async with browser(app) as http:
        for path, (kind, status) in asked.items():
            response = await http.get(path)
            assert (response.status_code, response.headers["cache-control"]) == (status, "no-store"), path
            policy = response.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert response.headers["x-content-type-options"] == "nosniff"
            if kind is not None:
                assert response.headers["content-type"] == kind, path


async def test_path_without_slash_is_redirected_and_websocket_is_refused(cache):
    app = swr.dashboard(cache)
    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/a/swr",
        "root_path": "/a/swr",
        "headers": [],
        "query_string": b"",
    }
    await app(scope, None, send)
    assert (sent[0]["status"], dict(sent[0]["headers"])[b"location"]) == (307, b"./swr/")
    # Mounted at /{tenant}, that is no way to another site.
    await app({**scope, "path": "/https:evil.example", "root_path": "/https:evil.example"}, None, send)
    assert dict(sent[-2]["headers"])[b"location"] == b"./https%3Aevil.example/"
    await app({"type": "websocket", "path": "/"}, None, send)
    assert sent[-1] == {"type": "websocket.close", "code": 1008}


async def test_dashboard_works_behind_a_proxy_that_strips_a_path_prefix(cache):
    """The proxy may be nginx with `proxy_pass http://app/;` under `/api/`, in front of `FastAPI(root_path="/api")`."""
    app = FastAPI()
    app.add_middleware(SWRMiddleware, cache=cache)
    app.mount("/swr", swr.dashboard(cache, token="of a program"))
    bearer = {"authorization": f"Bearer {own_token()}"}
    for prefix, paths in (("/api", ""), ("/api", "/api"), ("", "")):
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 1), root_path=prefix)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://localhost{paths}") as http:
            page = await http.get("/swr/", params={"token": own_token()})
            assert page.status_code == 303
            assert f"Path={prefix}/swr/;" in page.headers["set-cookie"]
            assert (await http.get("/swr/static/app.js", headers=bearer)).status_code == 200
            state = await http.get("/swr/state", headers=bearer)
            assert state.status_code == 200
            assert "cache-status" not in state.headers
            http.cookies.clear()
            assert (await http.get("/swr/state")).status_code == 403
            given = {"authorization": "Bearer of a program"}
            assert (await http.post("/swr/invalidate", headers=given, data={"tag": "x"})).status_code == 200
            assert (await http.post("/swr/invalidate", headers=bearer, data={"tag": "x"})).status_code == 401
    assert cache.mounted == {"/swr", "/api/swr"}


async def test_dashboard_as_an_app_completes_lifespan_startup_and_shutdown(cache):
    app, sent = swr.dashboard(cache), []
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message["type"])

    await app({"type": "lifespan", "state": {}}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_answers_escape_markup_and_contain_no_secrets(cache):
    app, load, _ = site(cache, middleware=True)
    async with browser(app) as http:
        await http.get("/swr/state")
        await http.get("/x/a", params={"q": "SECRETVALUE", MARKUP: "1", "SECRETALONE": ""})
        await http.get("/x/a?SECRETALONE")
        await http.head("/x/a?SECRETALONE")
        await http.get("/x/a", headers={"authorization": "Bearer SECRETFIELD", "cookie": "a=SECRETCOOKIE"})
        await http.get("/x/a", headers={"range": "bytes=SECRETRANGE"})
        await http.get(f"/x/bad{MARKUP}")
        await load(MARKUP)
        with pytest.raises(ValueError, match="bad"):
            await load(f"bad{MARKUP}\ud800")
        await cache.invalidate_tag(MARKUP)
        await cache.invalidate_url("/x/a?q=SECRETINVALIDATED&SECRETALONE")
        stored = await http.get("/x/b?q=SECRETTAG")
        assert stored.headers["swr-state"] == "missing"
        found = b""
        async with http.stream("GET", "/swr/stream?calls=1") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            async for part in stream.aiter_bytes():
                found += part
        responses = [(await http.get(path)).content for path in ("/swr/state", "/swr/history")]
        responses.append((await http.get("/swr/key", params={"key": f"x:{MARKUP}"})).content)
        life = await http.get("/swr/key", params={"key": "GET http://localhost:8000\n/x/b?q=SECRETTAG"})
        assert any(tag.startswith("url:/x/b?") for tag in life.json()["entry"]["tags"])
        responses.append(life.content)
    for body in (found, *responses):
        assert b"<" not in body
        assert b"\xe2\x80\xa8" not in body
        for secret in (b"VALUE", b"SECRET", b"u:secret", b"password=p", b"token=t"):
            assert secret not in body.replace(b"SECRETALONE=", b"")
    events = [dict(line.split(b": ", 1) for line in event.splitlines()) for event in found.strip().split(b"\n\n")]
    assert {event.get(b"event") for event in events} == {None, b"state", b"events", b"calls"}
    calls = [
        call for event in events if event.get(b"event") == b"calls" for call in json.loads(event[b"data"])["calls"]
    ]
    assert any(MARKUP in call["key"]["text"] for call in calls), [call["key"]["text"] for call in calls]
    whys = {call["what"]: call["why"]["code"] for call in calls if call["why"]}
    assert whys["GET /x/a"] in ("cookie", "authorization")
    assert "l1" in {call["layer"] for call in calls if call["what"].startswith("HEAD /x/a?")}
    happened = [
        one for event in events if event.get(b"event") == b"events" for one in json.loads(event[b"data"])["events"]
    ]
    assert {"LoadFailed", "Invalidated"} <= {one["kind"] for one in happened}
    assert any("<script>" in one["text"] for one in happened)
    assert any(one["row"] == MARKUP for one in happened)


@NAMES_ROUTES
async def test_state_reports_failing_loaders_and_share_of_reads_without_waiting(cache):
    app, load, _ = site(cache, middleware=True)
    async with browser(app) as http:
        state = (await http.get("/swr/state")).json()
        assert (state["problems"], state["rows"], state["totals"]["without_waiting"]) == ([], [], None)
        for _ in range(9):
            await load("a")
        with pytest.raises(ValueError, match="bad"):
            await load("bad")

        async def counted():
            nonlocal state
            state = (await http.get("/swr/state")).json()
            return any(row["failed"] for row in state["rows"])

        await until_async(counted)
    (row,) = state["rows"]
    assert (row["name"], row["kind"], row["fresh"], row["missing"], row["failed"]) == ("x:{name}", "loader", 8, 2, 1)
    assert row["last_error"]["key"]["text"] == "x:bad"
    assert state["totals"]["without_waiting"] == pytest.approx(0.8)
    assert [(problem["level"], problem["kind"], problem["target"]) for problem in state["problems"]] == [
        ("error", "failing", "x:{name}")
    ]
    assert (state["fleet"], state["note"]) == (True, "The cache is in the memory of this process.")
    (process,) = state["processes"]
    assert (process["id"], process["gone"], process["reachable"]) == (state["served_by"], False, True)


async def test_middleware_neither_stores_nor_counts_requests_to_the_dashboard(cache):
    """This holds even with a catch-all rule that overrides Cache-Control."""
    app, _, _ = site(cache, middleware=True, actions=True)
    async with browser(app) as http:
        first = await http.get("/swr/state")
        second = await http.get("/swr/state")
        assert "cache-status" not in second.headers
        assert first.json()["now"] < (await http.get("/swr/state?x")).json()["now"] or first.json() == second.json()
        stats = cache.stats()
        assert not any("/swr" in row["name"] for row in second.json()["rows"] if row["loads"] > 1)
        await http.post("/swr/actions/refresh", json={"tag": "x"}, headers=ACT)
        assert cache.stats().not_stored == stats.not_stored


async def test_stream_ends_by_itself_and_resumes_after_the_last_event_id(cache, monkeypatch):
    monkeypatch.setattr(streams, "_LASTS", 0.3)
    app, load, _ = site(cache)
    async with browser(app) as http:
        await http.get("/swr/state")
        with pytest.raises(ValueError, match="bad"):
            await load("bad")
        first = (await http.get("/swr/stream?calls=1")).text
        last = first.rpartition("id: ")[2].partition("\n")[0]
        assert first.count("event: events") == first.count("event: calls") == 1
        again = (await http.get("/swr/stream?calls=1", headers={"last-event-id": last})).text
        assert again.count("event: events") == again.count("event: calls") == 0
        # The numbers of another process mean nothing here; its clock does.
        other = (await http.get("/swr/stream", headers={"last-event-id": f"other {last.partition(' ')[2]}"})).text
        assert other.count("event: events") == 1
        await http.get("/swr/stream", headers={"last-event-id": "x y z"})


def test_forged_last_event_id_starts_the_stream_from_the_beginning():
    class Empty:
        happenings, calls = Held(), Held()

    for text in (
        "",
        "me",
        "me 1 2",
        "me a b c",
        "me -1 2 3",
        "me 1 2 3 4",
        "me 9e9 1 1",
        "me 1 1.5 1",
        "me . 1 1",
        f"me {'9' * 30} 1 1",
        "me ² 1 1",
    ):
        position = Position(text, "me", Empty())
        assert (position.at, position.happenings, position.calls) == (0.0, 0, 0), text
    position = Position("me 1.5 999 999", "me", Empty())
    assert (position.at, position.happenings, position.calls) == (1.5, 0, 0)


def test_events_beyond_the_last_500_are_counted_as_dropped():
    held = Held()
    for number in range(600):
        held.add(number)
    found, dropped = held.since(0)
    assert (found[0], found[-1], dropped) == (100, 599, 100)
    held.skip(5)
    assert held.since(600) == ([], 5)


# -- keys and reasons -------------------------------------------------------------------------------------------------


def test_shown_key_hides_values_from_requests_and_keeps_their_names():
    keys = Keys()
    digest = "a" * 32
    shown = keys.shown(
        f"GET http://h\n/p?q=1&flag&=x\nroot: /api\nversion: 2\ncookie: {digest}\nkey: ann\nrange\nbytes=0-1"
    )
    assert [text for text, is_hash in shown["parts"] if not is_hash] == [
        "GET http://h/p", "?q=", "&", "&=", " root: /api", " version: 2", " cookie: ", " ", " ", " ",
    ]  # fmt: skip
    assert not any(word in shown["text"] for word in ("q=1&", "flag", "ann", "0-1"))
    assert keys.shown("ranking:ATL") == {"id": "=ranking:ATL", "text": "ranking:ATL", "parts": [("ranking:ATL", False)]}
    assert keys.shown("GET http://h\n/p?")["parts"] == [("GET http://h/p", False)]
    assert Keys(shows_queries=True).shown("GET http://h\n/p?q=1")["text"] == "GET http://h/p?q=1"
    assert len(keys.shown("x" * 9999)["text"]) < 600


def test_id_resolves_to_its_key_only_in_processes_with_the_same_secret():
    one, other, foreign = Keys(), Keys(), Keys()
    other.secret = one.secret
    for key in ("plain", "GET http://h\n/p?q=secret", "half \ud800", "line\nbreak", ""):
        name = one.shown(key)["id"]
        assert other.key_of(name) == key
        assert "secret" not in name
        json.loads(dumps(one.shown(key)))
    sealed = one.shown("GET http://h\n/p?q=secret")["id"]
    assert foreign.key_of(sealed) is None
    assert one.key_of(sealed[:-2] + "A=") is None
    assert one.key_of("?") is None
    assert unseal("ä", one.secret) is None
    assert unseal(seal("x" * 500, one.secret), one.secret) == "x" * 500


def rows_of(table):
    """Return the rows of a table in Markdown, without its head."""
    return table.strip().split("\n")[2:]


def test_every_reason_has_an_explanation_and_a_link_to_an_existing_heading():
    import re
    from pathlib import Path

    root = Path(swr.__file__).parent
    text = "\n".join(
        path.read_text() for folder in ("http", "middleware", "endpoints") for path in (root / folder).rglob("*.py")
    )
    given = {*re.findall(r'Verdict\(None, "([^"]+)"', text), *re.findall(r'detail="([a-z][^"%\\]*)"', text)}
    given |= {*re.findall(r'(?:Refused\(|_pass_through\(|reason=)"([^"]+)"', text), "parameter q"}
    http, login = ((root.parent / "docs" / f"{page}.md").read_text() for page in ("http", "login"))
    # Details that functions return are in the first column of these tables, and in the second one of the last.
    cells = [
        row.split("|")[1]
        for table in re.findall(r"^\| `detail` \|.*?\n\n", http, re.S | re.M)
        for row in rows_of(table)
    ]
    cells += [row.split("|")[2] for row in rows_of(login[login.index("| in the way |") :].split("\n\n")[0])]
    documented = {code.removesuffix(" ...") for cell in cells for code in re.findall("`([^`]+)`", cell)}
    assert len(documented) > 40
    given |= documented
    for code in given - {"after dependencies"}:
        found = explained(code)
        assert "did not come" not in found["text"], code
        page, _, anchor = found["link"].removeprefix("docs/").partition("#")
        assert f'id="{anchor}"' in page_of(page) or not anchor, code
    assert explained("never heard of")["code"] == "never heard of"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("hit; ttl=5", None),
        ('fwd=uri-miss; detail="no freshness"', "no freshness"),
        ('hit; detail="after dependencies"', None),
        ('fwd=bypass; detail="authorization, after dependencies"', "authorization"),
        ("fwd=method", "method"),
        ("fwd=uri-miss; stored", None),
        ('detail="<b>"', "<b>"),
    ],
)
def test_why_not_cached_is_read_from_cache_status(status, code):
    found = why_of(status)
    assert (None if found is None else found["code"]) == code


def test_links_to_missing_local_pages_lead_to_the_published_documentation(tmp_path):
    assert (
        address_of("http#how-long-a-response-is-fresh", tmp_path / "none")
        == "https://swr-cache.github.io/swr/http/#how-long-a-response-is-fresh"
    )
    assert address_of("login", tmp_path / "none") == "https://swr-cache.github.io/swr/login/"
    (tmp_path / "login.md").touch()
    assert address_of("login#x", tmp_path) == "docs/login#x"
    assert address_of("http", tmp_path) == "https://swr-cache.github.io/swr/http/"


def test_documentation_page_escapes_markup(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "_FOLDER", tmp_path)
    (tmp_path / "a.md").write_text(
        "# A `<b>` title\nline <i>\n\n| x |\n```python\nif a < b:\n\n    pass\n```\n[next](b.md#c)\nend"
    )
    text = page_of("a")
    assert "<b>" not in text
    assert "<i>" not in text
    assert '<a href="b#c">next</a>' in text
    assert "<pre>if a &lt; b:" in text
    assert page_of("nowhere") is None


# -- what it does -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (ACT, 200),
        ({"x-swr-action": "1", "origin": "http://localhost:8000"}, 200),
        # A proxy has written the usual port, or has left out another one.
        ({"x-swr-action": "1", "origin": "http://localhost", "host": "localhost:80"}, 200),
        ({"x-swr-action": "1", "origin": "https://localhost", "host": "localhost:443"}, 200),
        ({"x-swr-action": "1", "origin": "https://localhost", "host": "localhost:80"}, 403),
        ({"x-swr-action": "1", "origin": "http://localhost:8000", "host": "localhost"}, 403),
        ({"x-swr-action": "1", "origin": "http://[x", "host": "localhost"}, 403),
        ({"sec-fetch-site": "same-origin"}, 403),
        ({"x-swr-action": "1"}, 403),
        ({"x-swr-action": "1", "sec-fetch-site": "cross-site"}, 403),
        ({"x-swr-action": "1", "sec-fetch-site": "none"}, 403),
        ({"x-swr-action": "1", "origin": "http://evil.example"}, 403),
        ({"x-swr-action": "1", "authorization": "Bearer x"}, 200),
    ],
)
async def test_action_needs_the_dashboards_own_origin_or_a_token(cache, fields, status):
    app, _, _ = site(cache, actions=True)
    async with browser(app) as http:
        response = await http.post("/swr/actions/invalidate", json={"tag": "x"}, headers=fields)
    assert response.status_code == status


async def test_action_behind_a_proxy_that_changes_host_fails_naming_both_hosts(cache):
    """Over plain HTTP a browser sends no Sec-Fetch-Site, and with the scripts of a page it sends Origin."""
    app, _, _ = site(cache, actions=True, auth="secret")
    origin = {"origin": "http://shop.example:8080", "host": "shop.example", "authorization": "Bearer secret"}
    async with browser(app) as http:
        assert (await http.get("/swr/static/app.js", headers=origin)).status_code == 200
        assert (await http.get("/swr/state", headers=origin)).status_code == 403
        # It needs the secret anyway, and goes to no page of another site.
        assert (await http.get("/swr/static/app.js", headers={"origin": origin["origin"]})).status_code == 401
        fields = {**origin, "sec-fetch-site": "cross-site"}
        assert (await http.get("/swr/static/app.js", headers=fields)).status_code == 403
        response = await http.post(
            "/swr/actions/invalidate", json={"tag": "x"}, headers={**origin, "x-swr-action": "1"}
        )
    assert response.status_code == 403
    assert (
        "the browser is at http://shop.example:8080, and the request was for shop.example" in response.json()["error"]
    )


async def test_dashboard_without_actions_refuses_to_invalidate(cache):
    app, load, ran = site(cache)
    async with browser(app) as http:
        await load("a")
        assert (await http.post("/swr/actions/invalidate", json={"all": True}, headers=ACT)).status_code == 403
        assert (await http.post("/swr/invalidate", data={"all": "true"})).status_code == 404
        await load("a")
    assert ran == ["a"]


@pytest.mark.parametrize(
    ("name", "target", "state"),
    [
        ("invalidate", {"key": "x:a"}, None),
        ("invalidate", {"id": "=x:a"}, None),
        ("invalidate", {"tag": "all"}, None),
        ("invalidate", {"loader": "x:{name}"}, None),
        ("invalidate", {"all": True}, None),
        ("invalidate", {"all": True, "soft": True}, "stale"),
        ("mark-stale", {"key": "x:a"}, "stale"),
        ("mark-stale", {"tag": "all"}, "stale"),
        ("mark-stale", {"loader": "x:{name}"}, "stale"),
        ("refresh", {"id": "=x:a"}, "fresh"),
        ("refresh", {"tag": "all"}, "stale"),
        ("refresh", {"loader": "x:{name}"}, "stale"),
        ("invalidate", {"url": "/x/a?q=secret"}, "fresh"),
        ("invalidate", {"url": "https://ann:secret@h/x/a"}, "fresh"),
        ("invalidate", {"tag": "url:/x/a?q=secret"}, "fresh"),
        ("invalidate", {"tag": "a\n2026-11-29 ERROR forged\x1b[2J"}, "fresh"),
    ],
)
async def test_action_changes_the_entry_and_is_logged_with_its_user(cache, caplog, name, target, state):
    app, load, _ = site(cache, actions=True, auth=("ann", "pw"))
    async with browser(app, "10.0.0.9", auth=("ann", "pw")) as http:
        await load("a")
        response = await http.post(f"/swr/actions/{name}", json=target, headers=ACT)
        assert response.status_code == 200, response.text
        outcome = await load.peek("a")
        assert (None if outcome is None else str(outcome.state)) == state
    (record,) = [record.getMessage() for record in caplog.records if "dashboard" in record.getMessage()]
    assert "'ann at 10.0.0.9'" in record
    done = response.json()["done"]
    assert done.replace("\n", "\\n").replace("\x1b", "\\x1b") in record
    assert record.isprintable()
    assert "secret" not in record + done


async def test_refresh_action_loads_at_once_and_keeps_the_entry_if_the_load_fails(cache, caplog):
    app, load, ran = site(cache, actions=True)
    async with browser(app) as http:
        await load("a")
        response = await http.post("/swr/actions/refresh", json={"key": "x:a"}, headers=ACT)
        assert response.json()["done"] == "The key x:a is being loaded."
        await until(lambda: ran == ["a", "a"])
        await load.set("VALUE", "bad")
        await http.post("/swr/actions/refresh", json={"key": "x:bad"}, headers=ACT)
        await until(lambda: "the load of 'x:bad' failed (ValueError" in caplog.text)
        assert await load.peek("bad") is not None


async def test_refresh_action_marks_key_stale_if_its_arguments_are_unknown(cache):
    @cache.cached("y:{name}", fresh_for=60, stale_for=60, ignore=("db",))
    async def load(name: str, db: object = None) -> str:
        return "VALUE"

    app, _, _ = site(cache, actions=True)
    async with browser(app) as http:
        await load("a")
        response = await http.post("/swr/actions/refresh", json={"key": "y:a"}, headers=ACT)
        assert "The next read refreshes it." in response.json()["done"]
        assert str((await load.peek("a")).state) == "stale"


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ({}, 400),
        ({"key": "a", "tag": "b"}, 400),
        ({"key": ""}, 400),
        ({"key": 7}, 400),
        ({"key": "x" * 5000}, 400),
        ({"all": False}, 400),
        ({"all": "perhaps"}, 400),
        ({"keys": "a"}, 400),
        ({"id": "~unknown"}, 400),
        ({"url": "no path"}, 400),
        ([1], 400),
        ("x" * 70_000, 413),
    ],
)
async def test_malformed_action_is_rejected_and_changes_nothing(cache, target, status):
    app, load, ran = site(cache, actions=True)
    async with browser(app) as http:
        await load("a")
        response = await http.post("/swr/actions/invalidate", json=target, headers=ACT)
        assert response.status_code == status
        assert response.json()["error"]
        await load("a")
        assert (await http.post("/swr/actions/explode", json={}, headers=ACT)).status_code == 404
        assert (await http.post("/swr/actions/invalidate", content=b"{", headers=ACT)).status_code == 415
        broken = {**ACT, "content-type": "application/json"}
        twice = b'{"tag": "other", "tag": "all"}'
        assert (await http.post("/swr/actions/invalidate", content=twice, headers=broken)).status_code == 400
        assert (await http.post("/swr/actions/invalidate", content=b"{", headers=broken)).status_code == 400
        for action in ("retry-dead", "purge-dead"):
            assert (await http.post(f"/swr/actions/{action}", json={}, headers=ACT)).status_code == 400
            assert (await http.post(f"/swr/actions/{action}", json={"queue": "x"}, headers=ACT)).status_code == 404
    assert ran == ["a"]


async def test_action_with_incomplete_body_is_rejected_with_400(cache):
    app, sent = swr.dashboard(cache, actions=True), []
    messages = [{"type": "http.request", "body": b'{"all"', "more_body": True}, {"type": "http.disconnect"}]
    fields = {**ACT, "host": "localhost", "content-type": "application/json", "cookie": f"swr-dashboard={own_token()}"}
    scope = {
        "type": "http", "method": "POST", "path": "/actions/invalidate", "root_path": "", "query_string": b"",
        "client": ("127.0.0.1", 1), "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
    }  # fmt: skip

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    assert sent[0]["status"] == 400


async def test_token_of_a_program_permits_invalidation_and_nothing_else(cache, caplog):
    app, load, ran = site(cache, token="job", auth=("ann", "pw"))
    async with browser(app, "10.0.0.9") as http:
        for fields, status in (
            ({}, 401),
            ({"authorization": "Bearer no"}, 401),
            ({"authorization": basic("x", "job")}, 401),
        ):
            assert (await http.post("/swr/invalidate", data={"all": "true"}, headers=fields)).status_code == status
        job = {"authorization": "Bearer job"}
        await load("a")
        response = await http.post("/swr/invalidate", data={"key": "x:a"}, headers=job)
        assert response.json() == {"done": "The key x:a was invalidated."}
        await load("a")
        response = await http.post("/swr/invalidate", json={"tag": "all", "soft": True}, headers=job)
        assert response.json() == {"done": "All that carries the tag all was marked stale."}
        twice = {**job, "content-type": "application/x-www-form-urlencoded"}
        assert (await http.post("/swr/invalidate", content="tag=a&tag=b", headers=twice)).status_code == 400
        assert (await http.get("/swr/state", headers=job)).status_code == 401
    assert ran == ["a", "a"]
    assert sum("a program at 10.0.0.9" in record.getMessage() for record in caplog.records) == 2


async def test_simulated_failure_makes_the_next_load_fall_back_to_the_stale_value(cache, caplog):
    clock = [1000.0]
    async with Cache(clock=lambda: clock[0]) as cache:
        app, load, ran = site(cache, actions=True, simulate=True)
        async with browser(app) as http:
            await load("a")
            clock[0] += 150
            response = await http.post("/swr/actions/fail-next", json={"row": "x:{name}"}, headers=ACT)
            assert response.status_code == 200
            (fault,) = cache.report().faults.told()
            assert fault[:2] == ("fail-next", "x:{name}")
            outcome = await load.outcome("a")
            assert (str(outcome.state), outcome.value) == ("stale", "VALUE")
            assert "simulated" in str(outcome.error)
            # Only the next.
            assert cache.report().faults.told() == ()
            await load("b")
            response = await http.post("/swr/actions/hang", json={"row": "x:{name}", "seconds": 0.05}, headers=ACT)
            assert response.status_code == 200
            await load("c")
            await cache.get_or_load("other", lambda: 1, Policy(60))
            for number in range(21):
                response = await http.post("/swr/actions/fail-next", json={"row": f"x{number}"}, headers=ACT)
            assert (response.status_code, len(cache.report().faults.told())) == (409, 20)
            for target in ({"row": "x", "seconds": 0}, {"row": "x", "seconds": "5"}, {"row": "x", "seconds": True}, {}):
                assert (await http.post("/swr/actions/hang", json=target, headers=ACT)).status_code == 400
        assert ran == ["a", "b", "c"]
    assert sum("simulate" in record.getMessage() for record in caplog.records) >= 2


async def test_fault_is_refused_without_the_option_simulate(cache):
    app, load, _ = site(cache, actions=True)
    async with browser(app) as http:
        assert (await http.post("/swr/actions/fail-next", json={"row": "x:{name}"}, headers=ACT)).status_code == 403
    await load("a")


@NAMES_ROUTES
async def test_simulated_failure_of_a_response_falls_back_to_the_stored_one(cache):
    clock = [1000.0]
    async with Cache(clock=lambda: clock[0]) as cache:
        app, _, _ = site(cache, middleware=True, actions=True, simulate=True)
        path = "/x/a?cc=max-age%3D60, stale-if-error%3D600"
        async with browser(app) as http:
            assert (await http.get(path)).headers["swr-state"] == "missing"
            clock[0] += 3600
            await http.post("/swr/actions/hang", json={"row": "/x/{name}", "seconds": 0.2}, headers=ACT)
            assert (await http.get(path)).headers["swr-state"] == "missing"
            assert cache.report().faults.told() == ()
            clock[0] += 3600
            await http.post("/swr/actions/fail-next", json={"row": "/x/{name}"}, headers=ACT)
            response = await http.get(path)
            assert (response.status_code, response.headers["swr-state"]) == (200, "stale")
            assert (await http.get(path)).status_code == 200


async def test_life_of_a_key_shows_its_entry_lease_and_moments():
    clock = [1000.0]
    async with Cache(clock=lambda: clock[0]) as cache:
        app, load, _ = site(cache)
        async with browser(app) as http:
            await http.get("/swr/state")
            await load("a")
            await load("a")
            await load.mark_stale("a")
            await load("a")
            with pytest.raises(ValueError, match="bad"):
                await load("bad")
            life = (await http.get("/swr/key", params={"key": "x:a"})).json()
            assert (life["row"], life["lease"], life["note"]) == ("x:{name}", None, "")
            assert life["entry"]["layer"] == "l1"
            assert life["entry"]["fresh_until"] == 1060.0
            kinds = [moment["kind"] for moment in life["moments"]]
            assert (kinds[:2], set(kinds[2:])) == (["loaded", "hit"], {"stale", "marked stale"})
            clock[0] += 130
            life = (await http.get("/swr/key", params={"id": "=x:a"})).json()
            assert life["entry"]["state"] == "error"
            gate, begun = anyio.Event(), anyio.Event()

            async def slow() -> int:
                begun.set()
                await gate.wait()
                return 1

            async with anyio.create_task_group() as group:
                group.start_soon(cache.get_or_load, "slow", slow, Policy(60))
                await begun.wait()
                assert (await http.get("/swr/key?key=slow")).json()["lease"]["kind"] == "loading"
                gate.set()
            nothing = (await http.get("/swr/key?key=nothing")).json()
            assert (nothing["entry"], nothing["lease"], nothing["row"], nothing["moments"]) == (None, None, None, [])
            # A load that fails though something may be served is not tried again for a while.
            with pytest.raises(ValueError, match="bad"):
                await load("bad")
            cache.engine.backoffs.begin("x:a", 5.0, ValueError("x"))
            assert (await http.get("/swr/key?key=x:a")).json()["lease"]["kind"] == "backoff"


async def test_life_of_a_key_in_memory_counts_failures_in_a_row(cache):
    app, _, _ = site(cache)
    ends = iter(["value", ValueError("1"), ValueError("2"), ValueError("3")])

    @cache.cached("failing", fresh_for=60, stale_if_error=600)
    async def failing() -> str:
        end = next(ends)
        if isinstance(end, ValueError):
            raise end
        return end

    async with browser(app) as http:
        await failing()
        for count in (1, 2, 3):
            with pytest.raises(ValueError, match=str(count)):
                await failing.refresh()
            lease = (await http.get("/swr/key?key=failing")).json()["lease"]
            assert (lease["kind"], lease["failures"]) == ("backoff", count)


async def test_calls_are_not_collected_while_no_browser_watches(cache, monkeypatch):
    monkeypatch.setattr("swr.reports.reporter._WATCHED_FOR", 0.0)
    app, load, _ = site(cache)
    async with browser(app) as http:
        await http.get("/swr/state")
    reporter = cache.report()
    reporter.turn()
    assert not cache.engine.events.reads
    await load("a")
    assert (reporter.watching.calls(), reporter.watching.hot()) == ((), ())


async def test_failed_digest_is_logged_and_the_next_one_is_made(cache, monkeypatch, caplog):
    monkeypatch.setattr(hub, "_WATCHED_EVERY", 0.01)
    app, _, _ = site(cache)
    broken = [True]
    make = type(cache.report()).digest

    def digest(reporter):
        if broken.pop() if broken else False:
            raise RuntimeError("no digest")
        return make(reporter)

    monkeypatch.setattr(type(cache.report()), "digest", digest)
    with caplog.at_level(logging.ERROR):
        async with browser(app) as http:
            await http.get("/swr/state")

            async def answers():
                return (await http.get("/swr/state")).json() is not None

            await until_async(answers)
    assert "could not look at the fleet" in caplog.text


async def test_dashboard_works_after_its_cache_is_closed_and_reopened():
    cache = Cache()
    app, _, _ = site(cache)
    for _ in range(2):
        async with cache, browser(app) as http:
            assert (await http.get("/swr/state")).json()["fleet"]


@pytest.mark.parametrize("first", ["swr", "swr.dashboard.state", "swr.cli.top"])
def test_swr_dashboard_is_callable_whichever_module_is_imported_first(first):
    code = f"import {first}, swr, swr.dashboard.server; print(callable(swr.dashboard), type(swr.dashboard(swr.Cache())).__name__)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    assert output.split() == ["True", "Server"]
    assert type(sys.modules["swr.dashboard"](Cache())) is server.Server


def test_number_of_remembered_mount_paths_is_bounded(monkeypatch):
    monkeypatch.setattr(server, "_MOST_MOUNTS", 1)
    cache = Cache()
    app = Starlette(routes=[Mount("/{tenant}/swr", swr.dashboard(cache))])

    async def ask():
        async with cache, browser(app) as http:
            await http.post("/stranger/swr/invalidate")
            return [(await http.get(f"/{tenant}/swr/history")).status_code for tenant in "ab"]

    assert anyio.run(ask) == [200, 200]
    assert cache.mounted == {"/a/swr"}


def test_documentation_page_outside_the_folder_is_not_found():
    assert page_of("../secret") is None


async def test_special_characters_break_neither_json_nor_events(cache):
    """Keys, tags and errors contain characters with a meaning in HTML, JSON, events and terminals."""
    alphabet = "<>&\"'/\\\0\x1b\x7f\x85\u2028\u2029\ufeff\ud800\udfff\U0001f600 \t\r\n{}[]:,%a"
    dice = random.Random(7)
    app, load, _ = site(cache)
    texts = ["".join(dice.choice(alphabet) for _ in range(dice.randrange(1, 30))) for _ in range(30)]
    async with browser(app) as http:
        await http.get("/swr/state")
        for text in texts:
            with pytest.raises(ValueError, match="bad"):
                await load(f"bad{text}")
            await cache.invalidate(text)
            await cache.invalidate_tag(text)
            life = await http.get("/swr/key", params={"key": text.encode("utf-8", "replace").decode()})
            assert life.headers["content-type"] == "application/json"
            assert life.json()["key"]["text"]
        last = ""
        for _ in range(2):
            response = await http.get("/swr/stream?calls=1", headers={"last-event-id": last or "x 0 0 0"})
            for event in response.text.split("\n\n")[1:-1]:
                fields = [line.partition(": ")[0] for line in event.split("\n")]
                assert fields == ["event", "id", "data"], event
                json.loads(event.rpartition("data: ")[2])
                assert response.text.isascii()
                assert "<" not in event
            last = response.text.rpartition("id: ")[2].partition("\n")[0]
        state = (await http.get("/swr/state")).json()
        assert "bad" in state["rows"][0]["last_error"]["text"]


async def test_two_dashboards_of_one_process_show_the_same_calls(cache):
    app, load, _ = site(cache)
    other = swr.dashboard(cache, token="job")
    async with browser(app) as one, browser(other) as two:
        await one.get("/swr/state")
        await two.get("/state")
        await load("a")
        for http, path in ((one, "/swr/stream?calls=1"), (two, "/stream?calls=1")):
            text = (await http.get(path)).text
            assert text.count('"what":"x:{name}"') == 1
