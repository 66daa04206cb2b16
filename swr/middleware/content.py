"""Requests whose content selects their responses: QUERY (RFC 10008), and POST where a rule says that it is safe."""

import re
from typing import Final
from urllib.parse import unquote_to_bytes

import anyio
from starlette.types import Message, Receive, Scope

from swr.http.content import Content
from swr.http.fields import content_length
from swr.http.request_fields import names_method
from swr.middleware.config import Config
from swr.middleware.messages import begin_with
from swr.middleware.request import Request
from swr.middleware.result import Problem

_OVERRIDE: Final = b"_method"
# Matches only the whole name, because a query may mention a `payment_method`.
_NAMED_OVERRIDE: Final = re.compile(rb"(?<![\w-])_method(?!\w)")
_FORMS: Final = frozenset({b"application/x-www-form-urlencoded", b"multipart/form-data"})


async def read_request(config: Config, scope: Scope, receive: Receive) -> tuple[Request, Receive]:
    """Return the request, and a `receive` that gives the app all messages of the client.

    swr reads the content here if it is part of the key, unless the app will answer the request anyway.
    """
    if scope["method"] in ("GET", "HEAD"):
        return Request(scope, config.rules.of_get, config.selection), receive
    if scope["method"] == "QUERY":
        request = _by_content(config, scope)
        if not config.engine.switch.is_off and not request.is_too_long:
            receive = await _take_content(config, request, receive)
        return request, receive
    of_get = config.rules.of_get
    unsafe = Request(scope, of_get, config.selection, others=config.rules.others(of_get))
    if scope["method"] != "POST" or not config.rules.by_content("POST"):
        return unsafe, receive
    request = _by_content(config, scope)
    rule = request.find_rule()
    if rule is None or config.engine.switch.is_off or request.is_too_long or _may_override(scope):
        return unsafe, receive
    receive = await _take_content(config, request, receive)
    is_form = _is_form(scope)
    if request.content is None:
        # swr has not read all of the content, so a form may still name another method.
        return (request if rule.is_always_safe and not is_form else unsafe), receive
    if _content_names_method(request.content, is_form) or not rule.says_safe(request.content):
        return unsafe, receive
    return request, receive


def _by_content(config: Config, scope: Scope) -> Request:
    rules = config.rules.by_content(scope["method"])
    return Request(scope, rules, config.selection, by_content=True, others=config.rules.others(rules))


def _may_override(scope: Scope) -> bool:
    """Return whether a field or the query names another method, by which the app may handle the request."""
    fields = any(names_method(name.decode("latin-1")) for name, _ in scope["headers"])
    return fields or _names_method(scope.get("query_string", b""))


def _names_method(form: bytes) -> bool:
    """Return whether a form or a query string names another method."""
    return _OVERRIDE in unquote_to_bytes(form)


def _is_form(scope: Scope) -> bool:
    """Return whether any `Content-Type` line of a request says that its content is a form."""
    types = [value for name, value in scope["headers"] if name == b"content-type"]
    return any(value.partition(b";")[0].strip().lower() in _FORMS for value in types)


def _content_names_method(content: Content, is_form: bool) -> bool:
    """Return whether the content names another method: as a form, JSON, or text that an app may take for a form."""
    if is_form:
        return _names_method(content.body)
    try:
        value = content.json()
    except ValueError:
        return _NAMED_OVERRIDE.search(unquote_to_bytes(content.body)) is not None
    return isinstance(value, dict) and _OVERRIDE.decode() in value


async def _take_content(config: Config, request: Request, receive: Receive) -> Receive:
    """Make the content of a request part of its key, or note why not; return a `receive` for the app.

    swr holds at most `max_content_bytes` and one message in memory.
    """
    most = config.max_content_bytes
    if (content_length(request.scope["headers"]) or 0) > most:
        request.content_problem = Problem.TOO_LARGE
        return receive
    body = bytearray()
    message: Message = {"more_body": True}
    with anyio.move_on_after(config.max_content_time):
        while message.get("more_body") and len(body) <= most:
            message = await receive()
            body += message.get("body", b"")
    is_over = message.get("type") == "http.request" and not message.get("more_body")
    if is_over and len(body) <= most:
        rule = request.find_rule()
        request.take_content(bytes(body), canonical=rule is not None and rule.canonical_json)
        return begin_with(request.content_message, receive)
    request.content_problem = Problem.TOO_LARGE if len(body) > most else Problem.INCOMPLETE
    if message.get("type") == "http.disconnect":
        receive = begin_with(message, receive)
    if not body:
        return receive
    return begin_with({"type": "http.request", "body": bytes(body), "more_body": not is_over}, receive)
