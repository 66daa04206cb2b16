"""The reads of libraries do not count, but those of the app's own package of the same name do."""

import asyncio
import importlib
import sys
import zipfile
from contextvars import Context

import asgiref.sync
import litestar
import opentelemetry.context
import pytest
import uvicorn.middleware.proxy_headers
from fastapi import FastAPI
from starlette.routing import Router

from swr import Cache
from swr.endpoints.libraries import _is_beside_metadata, is_of_library
from swr.endpoints.routed_scope import RoutedScope, routed
from swr.middleware import Rule, SWRMiddleware
from tests.distributions import write_metadata, write_package
from tests.web import App, client, http_scope

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """What decides here is the same on every event loop."""
    return "asyncio"


RULE = Rule("/{path:path}", fresh_for=60)
# Names of libraries, none of which these tests have installed.
NAMES = ["channels", "quart", "a2wsgi", "sentry_sdk", "rollbar", "elasticapm"]
ROUTES = """
from contextvars import ContextVar

from fastapi import APIRouter, Request

router = APIRouter()
TENANT = ContextVar("tenant", default="none")


@router.get("/field")
async def by_field(request: Request) -> str:
    return request.headers.get("accept-language", "none")


def address(request):
    return request.client.host


@router.get("/address")
async def by_address(request: Request) -> str:
    return address(request)


@router.get("/state")
async def by_state(request: Request) -> str:
    return getattr(request.state, "tenant", "none")


@router.get("/copy")
async def by_copy(request: Request) -> str:
    return dict(request.headers).get("accept-language", "none")


@router.get("/variable")
async def by_variable() -> str:
    return TENANT.get()
"""
OF_FOLDER = {"url": "file:///app", "dir_info": {}}
OF_FILE = {"url": "file:///wheels/x.whl", "archive_info": {}}


@pytest.fixture(params=NAMES)
def package(request, tmp_path, monkeypatch):
    """Return the name of a package of the app's own, with a module `routes`."""
    write_package(tmp_path, request.param, {"routes": ROUTES})
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield request.param
    for name in [name for name in sys.modules if name.partition(".")[0] == request.param]:
        del sys.modules[name]


@pytest.mark.parametrize("path", ["/field", "/address", "/state", "/copy", "/variable"])
async def test_reads_of_a_package_of_the_app_that_is_named_like_a_library_prevent_sharing(cache, package, path):
    routes = importlib.import_module(f"{package}.routes")
    app = FastAPI()
    app.include_router(routes.router)
    inner = SWRMiddleware(app, cache, rules=[RULE])

    async def outer(scope, receive, send):
        of_client = dict(scope["headers"])[b"accept-language"].decode()
        routes.TENANT.set(of_client)
        await inner({**scope, "state": {"tenant": of_client}, "client": (of_client, 1)}, receive, send)

    # Only one route reads the context variable, but it counts whether the app reads it or not.
    app_of_path = inner if path in ("/field", "/copy") else outer
    async with client(app_of_path) as http:
        for value in ("de", "fr", "de"):
            found = await http.get(path, headers={"accept-language": value})
            assert (found.json(), found.headers["swr-state"]) == (value, "missing")


@pytest.mark.parametrize(
    ("name", "options", "is_library"),
    [
        ("channels", {}, True),
        ("channels", {"origin": OF_FILE}, True),
        ("channels", {"origin": OF_FOLDER}, False),
        ("channels", {"origin": OF_FOLDER, "installer": "conda"}, True),
        ("channels", {"origin": {"url": "https://git.test/app", "vcs_info": {"vcs": "git"}}}, False),
        ("channels", {"kind": "egg-info"}, False),
        ("backend", {}, False),
    ],
)
def test_package_counts_as_a_library_if_its_distribution_lies_beside_it(tmp_path, name, options, is_library):
    package = write_package(tmp_path, "channels", {"routes": ""})
    write_metadata(tmp_path, name, **options)
    for module, file in (("channels.routes", package / "routes.py"), ("channels", package / "__init__.py")):
        assert is_of_library(module, str(file)) is is_library


def test_library_in_an_archive_is_recognized(tmp_path):
    package = write_package(tmp_path / "files", "channels", {"routes": ""})
    write_metadata(tmp_path / "files", "channels")
    archive = tmp_path / "app.pyz"
    with zipfile.ZipFile(archive, "w") as file:
        for path in package.parent.rglob("*.*"):
            file.write(path, path.relative_to(package.parent))
        file.write(package.parent / "channels-1.0.dist-info" / "WHEEL", "channels-1.0.dist-info/WHEEL")
    assert is_of_library("channels.routes", f"{archive}/channels/routes.py")
    assert not is_of_library("quart.routes", f"{archive}/quart/routes.py")


@pytest.mark.parametrize(
    "module", [asgiref.sync, litestar.app, opentelemetry.context, uvicorn.middleware.proxy_headers]
)
def test_installed_library_is_recognized_but_not_a_package_elsewhere_with_its_name(tmp_path, module):
    assert is_of_library(module.__name__, module.__file__)
    package, _, rest = module.__name__.partition(".")
    assert not is_of_library(module.__name__, str(write_package(tmp_path, package, {rest: ""}) / f"{rest}.py"))


@pytest.mark.parametrize("file", [None, [], "", "<string>", "routes.py"])
def test_module_without_a_file_of_its_own_is_of_the_app(file):
    assert not is_of_library("channels.routes", file)


async def test_code_made_by_exec_is_of_the_app_whatever_name_it_gives_itself(cache):
    made = {"__name__": "channels.routes"}
    exec("def look(request):\n    return request.headers.get('accept-language')", made)
    app = FastAPI()
    app.middleware("http")(lambda request, call_next: made["look"](request) and call_next(request))
    app.get("/x")(lambda: "x")
    async with client(SWRMiddleware(app, cache, rules=[RULE])) as http:
        for value in ("de", "fr"):
            assert (await http.get("/x", headers={"accept-language": value})).headers["swr-state"] == "missing"


LIBRARY = """
from contextvars import ContextVar

SPAN = ContextVar("span")


class Context:
    TRANSACTION = ContextVar("transaction")


def observe(request):
    return request.client, request.headers.get("accept-language")
"""


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Return the module of an installed library, which observes requests."""
    write_package(tmp_path, "rollbar", {"contrib": LIBRARY})
    write_metadata(tmp_path, "rollbar")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    module = importlib.import_module("rollbar.contrib")
    yield module
    del sys.modules["rollbar"], sys.modules["rollbar.contrib"]


async def test_reads_of_an_installed_library_do_not_prevent_sharing(cache, library):
    app = FastAPI()
    app.middleware("http")(lambda request, call_next: library.observe(request) and call_next(request))
    app.get("/x")(lambda: "x")
    async with client(SWRMiddleware(app, cache, rules=[RULE])) as http:
        for value, state in (("de", "missing"), ("fr", "fresh")):
            assert (await http.get("/x", headers={"accept-language": value})).headers["swr-state"] == state


async def test_context_variables_of_an_installed_library_do_not_prevent_sharing(cache, library):
    inner = SWRMiddleware(FastAPI(), cache, rules=[RULE])
    inner.app.get("/x")(lambda: "x")

    async def trace(scope, receive, send):
        library.SPAN.set(object())
        library.Context.TRANSACTION.set(object())
        await inner(scope, receive, send)

    async with client(trace) as http:
        for state in ("missing", "fresh"):
            assert (await asyncio.create_task(http.get("/x"), context=Context())).headers["swr-state"] == state


async def test_app_gets_a_plain_scope_beside_a_compiled_framework_unless_it_holds_a_router(tmp_path, monkeypatch):
    """blacksheep fails if the value of a field is of a subclass of `bytes`."""
    write_package(tmp_path, "blacksheep", {})
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    importlib.import_module("blacksheep")
    monkeypatch.delitem(sys.modules, "fastapi")
    scopes = []
    for metadata in (False, True):
        if metadata:
            write_metadata(tmp_path, "blacksheep")
            _is_beside_metadata.cache_clear()
        for app in (App(), Router()):
            middleware = SWRMiddleware(app, Cache(), rules=[RULE])
            scopes.append(isinstance(routed(http_scope("/x"), middleware.config.app), RoutedScope))
    del sys.modules["blacksheep"]
    _is_beside_metadata.cache_clear()
    assert scopes == [True, True, False, True]
