"""Checks of a request's destination: its host, its target, and the proxies that it has passed."""

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote

from starlette.types import Scope

from swr.proxy.headers import FieldRules, Fields

# RFC 9112 3.2.2. A target with a user before the host does not match.
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#@]*)([/?].*)?", re.IGNORECASE | re.DOTALL)
# RFC 3986 3.2.2 and 3.2.3. The host must not be empty (RFC 9110 4.2.1).
_HOST: Final = re.compile(rb"(?:\[[\da-fA-Fv:.]+\]|(?:[\w.~!$&'()*+,;=-]|%[\da-fA-F]{2})+)(?::\d{0,5})?", re.ASCII)


def split_absolute(target: bytes) -> tuple[bytes, bytes] | None:
    """Return the host and the rest of a target such as `http://host/path`, or None for others (RFC 9112 3.2.2)."""
    match = _ABSOLUTE.fullmatch(target) if target[:1] != b"/" else None
    if match is None:
        return None
    rest = match[2] or b"/"
    return match[1], rest if rest.startswith(b"/") else b"/" + rest


def with_host(fields: Sequence[tuple[bytes, bytes]], host: bytes, version: str) -> Fields:
    """Return the fields of a request with the host of its target as the value of `Host` (RFC 9112 3.2.2).

    An HTTP/1.1 request with two `Host` fields, or none, stays invalid (RFC 9112 3.2).
    """
    replaced = [(name, host if name == b"host" else value) for name, value in fields]
    if version != "1.1" and all(name != b"host" for name, _ in fields):
        replaced.append((b"host", host))
    return replaced


def origin_form(scope: Scope) -> Scope:
    """Return the scope of `GET http://host/path` as that of `GET /path` with this host (RFC 9112 3.2.2).

    The host in the target has precedence over the field `Host`. Servers may put such a target into the scope unchanged,
    and the cache must not take it for another resource.
    """
    absolute = split_absolute(scope.get("raw_path") or b"")
    if absolute is None:
        return scope
    host, path = absolute
    headers = with_host(scope["headers"], host, scope["http_version"])
    return {**scope, "raw_path": path, "path": unquote(path.decode("latin-1")), "headers": headers}


def misdirected(scope: Scope, rules: FieldRules) -> tuple[int, str] | None:
    """Return the status and the text for a request without a valid destination, or None for other requests."""
    hosts, passed = [], []
    for name, value in scope["headers"]:
        if name == b"host":
            hosts.append(value)
        elif name == b"via":
            passed.append(value)
    if len(hosts) > 1 or not all(map(_HOST.fullmatch, hosts)) or not (hosts or scope["http_version"] != "1.1"):
        # RFC 9112 3.2
        return 400, "The request needs one valid Host."
    if passed and rules.has_passed(b",".join(passed)):
        # RFC 5842 7.2, RFC 9110 7.6.3
        return 508, "The request has been here before: the service leads back to this proxy."
    return None
