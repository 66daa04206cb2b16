"""Limits how many wrong secrets an address may send, so that a secret cannot be found by trying."""

import ipaddress
import logging
import math
import secrets
import time
from typing import Any, Final

from starlette.types import Scope

from swr.http.fields import values_of
from swr.http.purge import Refused, bearer_of

log = logging.getLogger("swr")

MOST_WRONG: Final = 10
# How long swr remembers wrong secrets, in seconds.
WITHIN: Final = 60.0
MOST_ADDRESSES: Final = 1000
# The prefix length of the IPv6 network that one household or one server usually has.
_IPV6_NETWORK: Final = 64
_clock = time.monotonic
_REALM: Final = b'Bearer realm="swr"'


class _Wrong:
    """The wrong secrets of an address.

    Attributes:
        until: when swr forgets them, in seconds of the monotonic clock.
        seen: the hashes of the secrets. Python salts these with a random value per process.
    """

    __slots__ = ("seen", "until")

    def __init__(self, until: float) -> None:
        self.until = until
        self.seen: set[int] = set()


class Guesses:
    """A counter of different wrong secrets by address. After ten in a minute swr checks no more from that address.

    A page that still uses an old password sends the same one again and again; that counts once.

    Parameters:
        what: the name, for the log, of what the secret protects.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        # By address, the oldest first: all are remembered for the same time.
        self._wrong: dict[str, _Wrong] = {}
        self._logs_from = -math.inf

    def wait(self, client: Any) -> int:
        """Return for how many seconds swr refuses all secrets of a client; 0: it checks them.

        Parameters:
            client: host and port, or None.
        """
        wrong, now = self._wrong.get(_network_of(client)), _clock()
        if wrong is None or len(wrong.seen) < MOST_WRONG or now >= wrong.until:
            return 0
        return math.ceil(wrong.until - now)

    def note(self, client: Any, secret: bytes) -> None:
        """Count a wrong secret of a client; warn when the client reaches the limit."""
        address, now = _network_of(client), _clock()
        while self._wrong and (now >= next(iter(self._wrong.values())).until or len(self._wrong) >= MOST_ADDRESSES):
            del self._wrong[next(iter(self._wrong))]
        wrong = self._wrong.setdefault(address, _Wrong(now + WITHIN))
        wrong.seen.add(hash(secret))
        # At most one warning a minute, even if many addresses guess.
        if len(wrong.seen) == MOST_WRONG and now >= self._logs_from:
            self._logs_from = now + WITHIN
            log.warning(
                "%s: %s has sent %d wrong secrets; swr refuses all secrets from that address for up to %d s",
                self._what,
                address or "a client without an address",
                MOST_WRONG,
                WITHIN,
            )


class Bearer:
    """A token that clients have to send as `Authorization: Bearer`.

    Parameters:
        token: the secret.
        what: the name, for the log, of what the token protects.
    """

    def __init__(self, token: bytes, what: str) -> None:
        self._token = token
        self._guesses = Guesses(what)

    def refuse(self, scope: Scope) -> Refused | None:
        """Return why the request is refused; None: it has sent the token."""
        given = bearer_of(values_of(scope["headers"], b"authorization"))
        if given is None:
            return Refused(401, "send Authorization: Bearer with the token", _REALM)
        wait = self._guesses.wait(scope.get("client"))
        if wait:
            return Refused(429, f"too many wrong tokens came from your address: wait {wait} s", retry_after=wait)
        if secrets.compare_digest(given, self._token):
            return None
        self._guesses.note(scope.get("client"), given)
        return Refused(401, "the token is wrong", _REALM + b', error="invalid_token"')


def _network_of(client: Any) -> str:
    """Return the address of a client; for IPv6 its network, because one client may have all addresses in it."""
    host = str(client[0] or "") if client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        # A client on a Unix socket has no address, and a proxy may have put in any text.
        return host[:100] if host.isprintable() else ascii(host[:100])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    mapped = address.ipv4_mapped
    return str(mapped or ipaddress.ip_network((int(address), _IPV6_NETWORK), strict=False))
