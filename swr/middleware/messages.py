"""The ASGI messages that the middleware itself sends and receives."""

from collections.abc import Collection
from typing import Final

from starlette.types import Message, Receive, Scope, Send

from swr.entry import Entry, State
from swr.http.stored_response import StoredResponse, headers_for, marked, marks_of, messages_of
from swr.middleware.request import Request
from swr.middleware.telling import told_to

# Why a stale hit starts no refresh, for the log.
REFRESHES_ALREADY: Final = "no refresh now: one is under way, or the last one failed"


def begin_with(first: Message, receive: Receive) -> Receive:
    """Return a `receive` that gives `first`, and after it the messages of `receive`."""
    messages = [first]

    async def receive_first() -> Message:
        return messages.pop() if messages else await receive()

    return receive_first


def begin_run(request: Request, receive: Receive) -> tuple[Scope, Receive]:
    """Return the scope and the `receive` for a run of the app in which the client waits.

    At first they are the client's own, because the app may leave something in the scope for middleware around swr. A
    second run needs a copy without that: a router has changed the root path, and would not find its route again. The
    first run may have read the content, so the second gets it again.
    """
    if request.has_run:
        request.forget_run()
        session = request.scope.get("session")
        if isinstance(session, dict) and not request.authorized:
            # It was empty before the first run. The session's own method would mark it as changed.
            dict.clear(session)
        receive = begin_with(request.content_message, receive)
    request.has_run = True
    return request.scope, receive


def without_fields(send: Send, names: Collection[bytes]) -> Send:
    """Return a `send` that removes fields from the head of a response.

    Parameters:
        names: the names of the fields, lower case.
    """

    async def send_without(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [(name, value) for name, value in message.get("headers", ()) if name.lower() not in names]
            message = {**message, "headers": headers}
        await send(message)

    return send_without


async def look_ahead(receive: Receive) -> tuple[bool, Receive]:
    """Return whether the request has a body, and a `receive` that gives all of it."""
    message = await receive()
    while message.get("more_body") and not message.get("body"):
        message = await receive()
    return bool(message.get("body")), begin_with(message, receive)


async def send_stored(
    request: Request, send: Send, entry: Entry[StoredResponse], state: State, now: float, status: bytes | None = None
) -> None:
    """Answer with a stored response.

    Parameters:
        now: the time now; wall clock, seconds.
        status: the member of `Cache-Status`; by default that of a hit.
    """
    headers = headers_for(entry, told_to(request, entry.value), state, now)
    for message in messages_of(request.method, request.fields, entry, headers, marks_of(entry, state, now, status)):
        await send(message)


async def send_error(send: Send, response: StoredResponse, why: bytes) -> None:
    """Answer with an error that the app has sent to another request.

    Parameters:
        why: the `fwd` of `Cache-Status`.
    """
    start: Message = {"type": "http.response.start", "status": response.status, "headers": response.headers}
    await send(marked(start, b"swr; fwd=%b; fwd-status=%d; collapsed" % (why, response.status)))
    await send({"type": "http.response.body", "body": response.body})


async def send_empty(send: Send, status: int, cache_status: bytes) -> None:
    """Answer without content: 504 if the app was too slow or swr may not ask it (RFC 9111 5.2.1.7), or 499.

    Parameters:
        status: the status code of the answer.
        cache_status: the member of `Cache-Status`.
    """
    start: Message = {"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]}
    await send(marked(start, cache_status))
    await send({"type": "http.response.body", "body": b""})
