"""Answers that the proxy gives without the service."""

import logging
from email.utils import formatdate

import httpx
from starlette.types import Message, Scope, Send

from swr.proxy.headers import Fields, members

log = logging.getLogger("swr")


def hops_left(fields: Fields) -> int | None:
    """Return the number in `Max-Forwards` (RFC 9110 7.6.2), or None if the field is missing or invalid."""
    hops = next((value for name, value in fields if name == b"max-forwards"), b"")
    return int(hops) if hops.isdigit() and len(hops) < 10 else None


def refusal(scope: Scope, target: bytes | None, hops: int | None) -> tuple[int, str] | None:
    """Return the status and the text of a request that the proxy answers itself; None for one that it passes on."""
    if scope["method"] in ("CONNECT", "TRACE"):
        return 501, f"{scope['method']} is not supported."
    if target is None:
        return 400, "The target of the request is not a path."
    if members(scope["headers"], b"transfer-encoding") - {b"chunked"}:
        # RFC 9112 6.1: the server decodes only chunked, and the proxy could not pass on the name of another coding.
        return 501, "A transfer coding other than chunked is not supported."
    return (200, "") if hops == 0 else None


def failure(error: httpx.TransportError) -> tuple[int, str]:
    """Return the status and the text for a failure of the service. The text tells clients no internal addresses."""
    if isinstance(error, httpx.PoolTimeout):
        return 504, "The service is busy: no connection to it became free in time."
    if isinstance(error, httpx.ConnectTimeout):
        return 504, "The service could not be reached in time."
    if isinstance(error, httpx.TimeoutException):
        return 504, "The service did not answer in time."
    if isinstance(error, httpx.ConnectError):
        return 502, "The service could not be reached."
    if isinstance(error, httpx.LocalProtocolError):
        return 400, "The request cannot be passed on."
    return 502, "The service gave no valid answer."


def dated(send: Send) -> Send:
    """Return a `send` that adds `Date` to answers without it (RFC 9110 6.6.1): those that the cache gives itself."""

    async def send_dated(message: Message) -> None:
        if message["type"] == "http.response.start":
            for name, _ in message["headers"]:
                if name == b"date":
                    break
            else:
                message = {**message, "headers": [*message["headers"], (b"date", formatdate(usegmt=True).encode())]}
        await send(message)

    return send_dated


async def say(scope: Scope, send: Send, status: int, text: str, *, is_last: bool = False) -> None:
    """Answer with a line of text.

    Parameters:
        is_last: whether to close the connection afterwards.

    The answer has no `Cache-Control`, because caches do not store a 502 or 504 by default. A cache in front of this
    proxy may still give the answer to all clients that wait for the same load.
    """
    if log.isEnabledFor(logging.DEBUG):
        log.debug("%s %r: answered %d here (%s)", scope["method"], scope["path"], status, text or "Max-Forwards is 0")
    content = f"{text}\n".encode() if text else b""
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(content)),
        (b"date", formatdate(usegmt=True).encode()),
    ]
    if is_last and scope["http_version"] < "2":
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else content})
