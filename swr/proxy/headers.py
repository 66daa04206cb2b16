"""The header fields of messages that the proxy passes on (RFC 9110 7.6, RFC 7239)."""

import ipaddress
import re
from collections.abc import Callable, Sequence
from email.utils import formatdate
from typing import Final, NamedTuple

from starlette.types import Scope

from swr.http.request_fields import INTERPRETED, FieldClass, field_class

Fields = list[tuple[bytes, bytes]]

# Fields about one connection, not about the message (RFC 9110 7.6.1 and 11.7, RFC 9112 C.2.2, RFC 7540 3.2.1).
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
# `Connection` cannot remove these fields of an answer: every recipient needs them, caches above all (RFC 9110 7.6.1).
_FOR_ALL: Final = re.compile(
    rb"age|allow|date|etag|expires|last-modified|link|location|pragma|server|set-cookie|surrogate-control|vary|via|warning"
    rb"|www-authenticate|(?:[\w-]+-)?cache-control|(?:accept|cache|content)-.+"
)
# Fields by which proxies tell the scheme of the client's request: by its name, or in `_SECURE` by "on".
_SCHEMES: Final = (
    b"x-forwarded-proto",
    b"x-forwarded-scheme",
    b"x-scheme",
    b"x-forwarded-protocol",
    b"x-url-scheme",
    b"cloudfront-forwarded-proto",
)
_SECURE: Final = (b"x-forwarded-ssl", b"front-end-https")
_PROTO: Final = re.compile(rb'(?:^|;)[ \t]*proto="?([a-z]+)')
_WITHOUT_CONTENT: Final = frozenset({204, 304})


class FieldRules(NamedTuple):
    """The operator's choices about the fields of requests and answers; see `Proxy`.

    Parameters:
        host: the service's value of `Host`.
        preserve_host, forwarded, trust_forwarded: see `Proxy`.
        pseudonym: the name of this proxy in `Via`.
        identity: a random comment in `Via`, which distinguishes this proxy from others with the same pseudonym.
    """

    host: bytes
    preserve_host: bool
    forwarded: bool
    trust_forwarded: bool
    pseudonym: bytes
    identity: bytes

    def has_passed(self, via: bytes) -> bool:
        """Return whether the `Via` of a request names this proxy.

        Other proxies may remove comments from `Via` (RFC 9110 7.6.3). Without a comment, the pseudonym alone counts.
        """
        name = re.escape(self.pseudonym)
        member = rb"(?:^|,)[ \t]*[^ \t,()]+[ \t]+%b(?:[ \t]+\(%b\))?[ \t]*(?:,|$)" % (name, self.identity)
        return re.search(member, via, re.IGNORECASE) is not None


def _is_known(name: bytes) -> bool:
    """Return whether swr knows the meaning of a request field, so that it may share answers to such requests."""
    return name in INTERPRETED or field_class(name) is not FieldClass.UNKNOWN


def request_fields(scope: Scope, fields: Fields, rules: FieldRules) -> Fields:
    """Return the fields of a request that the proxy sends to the service."""
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
            element += b';host="%b"' % hosts[0]
        said = _forwarded_scheme(fields) if rules.trust_forwarded else None
        scheme = said or scope["scheme"].encode()
        element += b";proto=%b" % scheme
        fields = appended(fields, b"forwarded", element)
        if address is not None:
            fields = appended(fields, b"x-forwarded-for", address)
        present = {name for name, _ in fields}
        if b"x-forwarded-proto" not in present:
            fields.append((b"x-forwarded-proto", scheme))
        if b"x-forwarded-host" not in present and hosts:
            fields.append((b"x-forwarded-host", hosts[0]))
    member = b"%b %b (%b)" % (scope["http_version"].encode(), rules.pseudonym, rules.identity)
    return appended(fields, b"via", member)


def response_fields(status: int, received: Fields, version: bytes, rules: FieldRules, *, unshared: bool) -> Fields:
    """Return the fields of an answer that the proxy sends to the client.

    Parameters:
        status: the status of the answer.
        received: the fields that the service sent.
        version: the HTTP version of the answer, such as "HTTP/1.1".
        rules: the operator's choices.
        unshared: whether the proxy removed request fields that a cache in front of it sees, so that caches must not
            share the answer.
    """
    received = [(name.lower(), value) for name, value in received]
    fields, _ = end_to_end(received, is_for_all=_is_for_all)
    names = {name for name, _ in received}
    if status in _WITHOUT_CONTENT or b"transfer-encoding" in names:
        # RFC 9110 8.6, RFC 9112 6.3
        fields = without(fields, b"content-length")
    if b"date" not in names:
        # RFC 9110 6.6.1
        fields.append((b"date", formatdate(usegmt=True).encode()))
    if unshared or (rules.forwarded and _varies_by_address(fields)):
        # The answer depends on more or fewer request fields than a cache in front of this proxy sees.
        fields.append((b"vary", b"*"))
    return appended(fields, b"via", b"%b %b" % (version.removeprefix(b"HTTP/"), rules.pseudonym))


def _is_for_all(name: bytes) -> bool:
    """Return whether every recipient needs a field of an answer."""
    return _FOR_ALL.fullmatch(name) is not None


def _forwarded_scheme(fields: Fields) -> bytes | None:
    """Return the scheme of the client's request according to a trusted proxy, or None if no field tells it.

    The proxy must tell the service this same scheme: a service that sees two different schemes may redirect forever.
    """
    said: dict[bytes, bytes] = {}
    for name, value in fields:
        said.setdefault(name, value.partition(b",")[0].strip().lower())
    forwarded = _PROTO.search(said.get(b"forwarded", b""))
    schemes = [said[name] for name in _SCHEMES if name in said]
    schemes += [b"https" if said[name] == b"on" else b"http" for name in _SECURE if name in said]
    found = [forwarded[1]] if forwarded else []
    return next((scheme for scheme in [*schemes, *found] if scheme in (b"http", b"https")), None)


def _varies_by_address(fields: Fields) -> bool:
    return not {b"forwarded", b"x-forwarded-for"}.isdisjoint(members(fields, b"vary"))


def end_to_end(
    headers: Sequence[tuple[bytes, bytes]], is_for_all: Callable[[bytes], bool] = _is_known
) -> tuple[Fields, set[bytes]]:
    """Return the fields that are not about one connection (RFC 9110 7.6.1), and the result of `named_in`.

    Parameters:
        headers: the fields of the message, with names in lower case.
        is_for_all: returns whether `Connection` cannot remove the field of a name, because every recipient needs it.
    """
    named = named_in(headers, is_for_all)
    return [(name, value) for name, value in headers if name not in HOP_BY_HOP and name not in named], named


def named_in(headers: Sequence[tuple[bytes, bytes]], is_for_all: Callable[[bytes], bool] = _is_known) -> set[bytes]:
    """Return the fields outside `HOP_BY_HOP` that `Connection` removes; for the parameters see `end_to_end`."""
    for name, _ in headers:
        if name == b"connection":
            names = {name for name, _ in headers}
            return {name for name in members(headers, b"connection") & names - HOP_BY_HOP if not is_for_all(name)}
    return set()


def members(headers: Sequence[tuple[bytes, bytes]], field: bytes) -> set[bytes]:
    """Return the members of a field that is a list of words, in lower case."""
    lines = [value for name, value in headers if name == field]
    return {member.strip(b" \t").lower() for line in lines for member in line.split(b",")}


def without(fields: Fields, field: bytes) -> Fields:
    return [(name, value) for name, value in fields if name != field]


def appended(fields: Fields, field: bytes, member: bytes) -> Fields:
    """Return the fields with a member added to a list field, whose lines are joined into one."""
    values = [value for name, value in fields if name == field]
    return [*without(fields, field), (field, b", ".join([*values, member]))]


def _is_about_the_client(name: bytes) -> bool:
    """Return whether proxies describe the client in a field. In the name, `_` counts as `-`, as it does for CGI."""
    name = name.replace(b"_", b"-")
    return name in (b"forwarded", b"x-real-ip") or name.startswith(b"x-forwarded-")


def _address(scope: Scope) -> bytes | None:
    """Return the client's IP address, or None if the server does not tell it (RFC 7239 6)."""
    client = scope.get("client")
    try:
        return str(ipaddress.ip_address(client[0].partition("%")[0])).encode() if client else None
    except ValueError:
        return None
