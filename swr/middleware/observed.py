"""The event of each answer, for who watches the requests come in."""

import re
import time
from typing import Final

from starlette.types import Message, Send

from swr.engine.engine import Engine
from swr.events import Answered
from swr.http.fields import values_of
from swr.middleware.request import Request

# The `fwd` of the app's own answers, where no lookup has preceded them.
_PAST: Final = re.compile(r"\bfwd=(?:bypass|method|request)\b")


def observed(engine: Engine, request: Request, send: Send) -> Send:
    """Return a `send` that publishes the event of the answer when it begins."""
    began = time.perf_counter()

    async def send_observed(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message.get("headers", ())
            # Ours is the last: swr appended it to the app's.
            status = (values_of(headers, b"cache-status") or [b""])[-1].decode("latin-1")
            state = (values_of(headers, b"swr-state") or [b"bypass"])[-1].decode("latin-1")
            is_past = _PAST.search(status) is not None
            if "; hit" in status or "fwd=stale" in status:
                layer = None
            else:
                layer = "app" if is_past else "flight" if "; collapsed" in status else "load"
            engine.events.publish(
                Answered,
                request.method,
                request.key,
                "bypass" if is_past else state,
                layer,
                message["status"],
                status.removeprefix("swr; "),
                time.perf_counter() - began,
            )
        await send(message)

    return send_observed
