"""The ASGI app of the dashboard: its routes, and the checks of who may use them."""

import json
import logging
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, quote

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from swr.cache import Cache
from swr.dashboard.access import Gate, why_not_acting, why_not_answering
from swr.dashboard.actions import Actions, Refused
from swr.dashboard.answers import JSON, SECURITY, as_json, refused
from swr.dashboard.hub import Hub
from swr.dashboard.keys import Keys
from swr.dashboard.lives import life_of
from swr.dashboard.pages import address_of, page_of
from swr.dashboard.streams import Position, stream
from swr.dashboard.targets import Done
from swr.middleware.guesses import Bearer

log = logging.getLogger("swr")

STATIC: Final = Path(__file__).parent / "static"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".json": "application/json",
    ".woff2": "font/woff2",
}
_FILE: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_MOST_BYTES: Final = 65_536
_MOST_FIELDS: Final = 20
_FORM: Final = "application/x-www-form-urlencoded"
_EVENTS: Final = "text/event-stream"
# The most mount points to remember, because clients may choose the mount point, as in /{tenant}/swr.
_MOST_MOUNTS: Final = 20
_SECONDS: Final = 900.0


class Server:
    """The ASGI app of the dashboard.

    Parameters:
        cache: the cache that it shows.
        gate: decides who may look.
        keys: makes keys presentable.
        actions: whether users who may look may also act.
        simulate: whether they may also simulate faults.
        token: the secret with which programs may invalidate; None: no program may.
        beside: whether this process is not part of the fleet that it shows.
    """

    def __init__(
        self, cache: Cache, gate: Gate, keys: Keys, *, actions: bool, simulate: bool, token: str | None, beside: bool
    ) -> None:
        self._cache = cache
        self._gate = gate
        self._keys = keys
        self._acts = actions
        self._programs = None if token is None else Bearer(token.encode(), "POST invalidate of the dashboard")
        self._hub = Hub(cache, keys, actions=actions, simulate=simulate and actions, beside=beside)
        self._actions = Actions(cache, self._hub, keys, simulates=simulate and actions)
        self._app = Starlette(
            routes=[
                Route("/", self._page),
                Route("/static/{name}", self._static),
                Route("/docs/{name}", self._docs),
                Route("/state", self._state),
                Route("/history", self._history),
                Route("/stream", self._stream),
                Route("/key", self._key),
                Route("/actions/{name}", self._action, methods=["POST"]),
                Route("/invalidate", self._invalidate, methods=["POST"]),
            ]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        scope, place = _whole(scope)
        request = Request(scope, receive)
        # The rest of the path after the mount point.
        if scope["path"].removeprefix(scope.get("root_path", "")) == "":
            # Clients may choose the last segment of the path. Quoting keeps it from redirecting to another site.
            last = quote(scope.get("root_path", "").rpartition("/")[2], safe="")
            query = f"?{request.url.query}" if request.url.query else ""
            await RedirectResponse(f"./{last}/{query}", 307, SECURITY)(scope, receive, send)
            return
        refusal = await self._refusal(request)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        # From now on, the middleware does not cache requests below this mount point. Only requests that the gate has
        # let in can add one.
        if len(self._cache.mounted) < _MOST_MOUNTS and not self._is_for_programs(request):
            self._cache.mounted.add(place)
        await self._app(scope, receive, _secured(send))

    async def _refusal(self, request: Request) -> Response | None:
        """Return the response that refuses a request, or None if the request is let in."""
        if self._is_for_programs(request):
            return None
        why = why_not_answering(request, is_file=_place_of(request).startswith("/static/"))
        if why is not None:
            return refused(why, 403)
        who = await self._gate.admit(request)
        if isinstance(who, Response):
            return who
        request.state.who = who
        return None

    def _is_for_programs(self, request: Request) -> bool:
        return _place_of(request) == "/invalidate"

    # -- the page ---------------------------------------------------------------------------------------------

    async def _page(self, request: Request) -> Response:
        return _file("index.html")

    async def _static(self, request: Request) -> Response:
        return _file(request.path_params["name"])

    async def _docs(self, request: Request) -> Response:
        name = request.path_params["name"]
        text = page_of(name)
        if text is not None:
            return Response(text, media_type=_TYPES[".html"])
        # An installed swr has no pages, so the browser must go to the published ones.
        return RedirectResponse(address_of(name), 307) if name.isalnum() else refused("there is no such page", 404)

    # -- data -------------------------------------------------------------------------------------------------

    async def _state(self, request: Request) -> Response:
        await self._hub.watch()
        return as_json(self._hub.state)

    async def _history(self, request: Request) -> Response:
        await self._hub.watch()
        asked = request.query_params.get("seconds", "")
        seconds = min(_SECONDS, float(asked)) if asked.isdecimal() and len(asked) < 10 else _SECONDS
        state = self._hub.state
        return as_json(self._hub.fleet.remembered.since(0.0 if state is None else state["now"] - seconds))

    async def _stream(self, request: Request) -> Response:
        await self._hub.watch()
        position = Position(request.headers.get("last-event-id", ""), self._cache.report().id, self._hub)
        wanted = request.query_params.get("calls") == "1"
        return StreamingResponse(
            stream(self._hub, position, calls=wanted), media_type=_EVENTS, headers={"x-accel-buffering": "no"}
        )

    async def _key(self, request: Request) -> Response:
        await self._hub.watch()
        name, text = request.query_params.get("id"), request.query_params.get("key")
        key = text if name is None else self._keys.key_of(name)
        if not key:
            return refused("name a key: ?id= of one that was shown, or ?key= with its text", 404 if name else 400)
        return as_json(await life_of(key, self._cache.engine, self._cache.report(), self._hub, self._keys))

    # -- actions ----------------------------------------------------------------------------------------------

    async def _action(self, request: Request) -> Response:
        if not self._acts:
            return refused("this dashboard only shows: swr.dashboard(..., actions=True) lets it act", 403)
        why = why_not_acting(request)
        if why is not None:
            return refused(why, 403)
        name, client = request.path_params["name"], _client(request)
        return await self._done(
            request, lambda target: self._actions.run(name, target, f"{request.state.who} {client}")
        )

    async def _invalidate(self, request: Request) -> Response:
        if self._programs is None:
            return refused("this dashboard does not invalidate: swr.dashboard(..., token=...) lets programs do it", 404)
        why = self._programs.refuse(request.scope)
        if why is not None:
            fields = {"www-authenticate": why.challenge.decode()} if why.challenge else {}
            return refused(
                why.error, why.status, fields | ({"retry-after": str(why.retry_after)} if why.retry_after else {})
            )
        who = f"a program {_client(request)}"
        return await self._done(
            request, lambda target: self._actions.logged("invalidate", self._actions.invalidate, target, who)
        )

    async def _done(self, request: Request, run: Callable[[dict[str, Any]], Awaitable[str]]) -> Response:
        try:
            done: Done = {"done": await run(await _target(request))}
            return as_json(done)
        except Refused as error:
            return refused(str(error), error.status)


def _whole(scope: Scope) -> tuple[Scope, str]:
    """Return a scope with the whole path, and the mount point of the dashboard in the path that the server received.

    A proxy may have removed a prefix from the path. Then only `root_path` still contains the prefix, and Starlette
    would find no route.
    """
    path, root, prefix = scope["path"], scope.get("root_path", ""), scope.get("app_root_path", "")
    place = root.removeprefix(prefix)
    if f"{path}/".startswith(f"{root}/") or not f"{path}/".startswith(f"{place}/"):
        return scope, root
    return {**scope, "path": prefix + path}, place


def _client(request: Request) -> str:
    return "" if request.client is None else f"at {request.client.host}"


async def _target(request: Request) -> dict[str, Any]:
    """Return the target in the body of a request.

    Raises:
        Refused: the body is too long, or cannot be read.
    """
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > _MOST_BYTES:
                raise Refused(f"the request has more than {_MOST_BYTES} bytes", 413)
    except ClientDisconnect:
        raise Refused("the client has left") from None
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == JSON:
            target = json.loads(body, object_pairs_hook=_once)
        elif kind == _FORM:
            target = _once(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_MOST_FIELDS))
        else:
            raise Refused(f"send a form or {JSON}", 415)
    except (ValueError, RecursionError):
        raise Refused(f"the request is not a {kind}") from None
    if not isinstance(target, dict):
        raise Refused("send one JSON object")
    return target


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of a form or an object.

    Raises:
        Refused: a field occurs twice, which is ambiguous.
    """
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise Refused("a field comes twice: send one request for each")
    return fields


def _place_of(request: Request) -> str:
    """Return the path of a request, without the dashboard's mount point."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", ""))


def _file(name: str) -> Response:
    path = STATIC / name
    kind = _TYPES.get(path.suffix)
    if kind is None or not _FILE.fullmatch(name) or not path.is_file():
        return refused("there is no such file", 404)
    return Response(path.read_bytes(), media_type=kind)


def _secured(send: Send) -> Send:
    async def send_secured(message: Any) -> None:
        if message["type"] == "http.response.start":
            # These replace fields of the same name that a route or Starlette has set.
            own = [(name, value) for name, value in message["headers"] if name.decode() not in SECURITY]
            added = [(name.encode(), value.encode()) for name, value in SECURITY.items()]
            message = {**message, "headers": [*own, *added]}
        await send(message)

    return send_secured
