"""The header fields of a message that the proxy passes on (RFC 9110 7.6, RFC 7239)."""

import ipaddress
import re
from collections.abc import Sequence
from email.utils import formatdate
from typing import Final, NamedTuple

from starlette.types import Scope

Fields = list[tuple[bytes, bytes]]

# What is about one connection and not about the message (RFC 9110 7.6.1 and 11.7, RFC 9112 C.2.2, RFC 7540 3.2.1).
HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# `Connection` cannot take these away: they are for every recipient, or say where the message ends (RFC 9110 7.6.1).
_KEPT: Final = frozenset({b"cache-control", b"content-length", b"host"})
_WITHOUT_CONTENT: Final = frozenset({204, 304})


class FieldRules(NamedTuple):
    """The operator's choices about the fields of requests and answers; see `Proxy`.

    Parameters:
        host: of the service.
        preserve_host, forwarded, trust_forwarded: see `Proxy`.
        pseudonym: the name of this proxy in `Via`.
    """

    host: bytes
    preserve_host: bool
    forwarded: bool
    trust_forwarded: bool
    pseudonym: bytes


def request_fields(scope: Scope, fields: Fields, rules: FieldRules) -> Fields:
    """Return the fields of a request as the service is to see them."""
    hosts = [value for name, value in fields if name == b"host"]
    if not rules.preserve_host or not hosts:
        fields = [(b"host", rules.host), *without(fields, b"host")]
    if not rules.trust_forwarded:
        fields = [(name, value) for name, value in fields if not _is_about_the_client(name)]
    if rules.forwarded:
        address = _address(scope)
        node = b"unknown" if address is None else b'"[%b]"' % address if b":" in address else address
        element = b"for=%b" % node
        if hosts:
            element += b';host="%b"' % re.sub(rb'(["\\])', rb"\\\1", hosts[0])
        element += b";proto=%b" % scope["scheme"].encode()
        fields = appended(fields, b"forwarded", element)
        if address is not None:
            fields = appended(fields, b"x-forwarded-for", address)
        present = {name for name, _ in fields}
        if b"x-forwarded-proto" not in present:
            fields.append((b"x-forwarded-proto", scope["scheme"].encode()))
        if b"x-forwarded-host" not in present and hosts:
            fields.append((b"x-forwarded-host", hosts[0]))
    return appended(fields, b"via", b"%b %b" % (scope["http_version"].encode(), rules.pseudonym))


def response_fields(status: int, received: Fields, version: bytes, rules: FieldRules, *, unshared: bool) -> Fields:
    """Return the fields of an answer as the client is to see them.

    Parameters:
        status: of the answer.
        received: its fields as they came.
        version: of HTTP, "HTTP/1.1".
        rules: the operator's choices.
        unshared: whether the service did not see all that the client sent.
    """
    received = [(name.lower(), value) for name, value in received]
    fields, _ = end_to_end(received)
    names = {name for name, _ in received}
    if status in _WITHOUT_CONTENT or b"transfer-encoding" in names:
        # RFC 9110 8.6, RFC 9112 6.3
        fields = without(fields, b"content-length")
    if b"date" not in names:
        # RFC 9110 6.6.1
        fields.append((b"date", formatdate(usegmt=True).encode()))
    if unshared or (rules.forwarded and _varies_by_address(fields)):
        # What selected the answer is not in the request as a cache in front of this proxy sees it.
        fields.append((b"vary", b"*"))
    return appended(fields, b"via", b"%b %b" % (version.removeprefix(b"HTTP/"), rules.pseudonym))


def _varies_by_address(fields: Fields) -> bool:
    return not {b"forwarded", b"x-forwarded-for"}.isdisjoint(members(fields, b"vary"))


def end_to_end(headers: Sequence[tuple[bytes, bytes]]) -> tuple[Fields, set[bytes]]:
    """Return the fields that are not about the connection (RFC 9110 7.6.1), and which it named beyond the usual."""
    named = members(headers, b"connection") - HOP_BY_HOP - _KEPT
    fields = [(name, value) for name, value in headers if name not in HOP_BY_HOP and name not in named]
    return fields, named & {name for name, _ in headers}


def members(headers: Sequence[tuple[bytes, bytes]], field: bytes) -> set[bytes]:
    """The members of a field that is a list of words, lower case."""
    lines = [value for name, value in headers if name == field]
    return {member.strip(b" \t").lower() for line in lines for member in line.split(b",")}


def without(fields: Fields, field: bytes) -> Fields:
    return [(name, value) for name, value in fields if name != field]


def appended(fields: Fields, field: bytes, member: bytes) -> Fields:
    """Return the fields with a member added to one that is a list, which is then one line."""
    values = [value for name, value in fields if name == field]
    return [*without(fields, field), (field, b", ".join([*values, member]))]


def _is_about_the_client(name: bytes) -> bool:
    """Whether a field is one that proxies speak of the client by; for CGI `_` is the same as `-`."""
    name = name.replace(b"_", b"-")
    return name in (b"forwarded", b"x-real-ip") or name.startswith(b"x-forwarded-")


def _address(scope: Scope) -> bytes | None:
    """The client's address, if it has one that is an address (RFC 7239 6)."""
    client = scope.get("client")
    try:
        return str(ipaddress.ip_address(client[0].partition("%")[0])).encode() if client else None
    except ValueError:
        return None
