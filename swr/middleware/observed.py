"""The event that swr publishes for each answer, for subscribers that watch requests live."""

import re
import time
from typing import Final

from starlette.types import Message, Send

from swr.engine.engine import Engine
from swr.events import Answered
from swr.http.fields import values_of
from swr.middleware.request import Request

# The `fwd` values of an answer that bypassed the cache.
_PAST: Final = frozenset({"fwd=bypass", "fwd=method"})
# Details and keys may contain anything, because clients choose URLs.
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"')


def observed(engine: Engine, request: Request, send: Send) -> Send:
    """Return a `send` that publishes the event of the answer when it begins."""
    began = time.perf_counter()

    async def send_observed(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message.get("headers", ())
            # swr has appended its own line after the app's.
            status = (values_of(headers, b"cache-status") or [b""])[-1].decode("latin-1")
            state = (values_of(headers, b"swr-state") or [b"bypass"])[-1].decode("latin-1")
            parameters = {part.strip() for part in _QUOTED.sub("", status).split(";")}
            state = "bypass" if parameters & _PAST else state
            layer: str | None = "flight" if "collapsed" in parameters else "load"
            if state != "missing":
                layer = "app" if state == "bypass" else None
            engine.events.publish(
                Answered,
                request.method,
                request.key,
                state,
                layer,
                message["status"],
                status.removeprefix("swr; "),
                time.perf_counter() - began,
            )
        await send(message)

    return send_observed
