"""Inputs that select a response beside the request's URL and fields: the operator's choices, and who asks."""

from collections.abc import Callable
from typing import NamedTuple

from starlette.types import Scope

from swr.http.request import Digest, digest_with


class Selection(NamedTuple):
    """Inputs that select responses, by the operator's choice.

    Parameters:
        ignored: names of fields that no response depends on, lower case.
        digest: turns a value that selects into text that does not show it.
        key: returns what selects beside the request itself, from the scope; None: nothing does.
        version: of the app; swr keeps the responses of each version apart.
        outer: returns what middleware around swr has set for a request, as `outer_names` does.
    """

    ignored: frozenset[bytes] = frozenset()
    digest: Digest = digest_with(b"")
    key: Callable[[Scope], object] | None = None
    version: str = ""
    outer: Callable[[Scope], tuple[str, ...]] = lambda scope: ()


def is_personal(scope: Scope) -> bool:
    """Return whether somebody has logged in, or the session was used, as far as the scope shows."""
    session, user = scope.get("session"), scope.get("user")
    # `accessed` does not see every use of a session that holds something.
    if session is not None and (bool(session) or getattr(session, "accessed", False)):
        return True
    # A user of another kind than Starlette's counts, unless it says that nobody has logged in.
    if user is not None and getattr(user, "is_authenticated", True) is not False:
        return True
    certificate = scope.get("extensions", {}).get("tls", {})
    # Scopes may be for some who have not logged in, too. `auth` of another kind, such as claims, tells who asks.
    auth = scope.get("auth")
    has_scopes = bool(getattr(auth, "scopes", auth))
    return has_scopes or bool(certificate.get("client_cert_name") or certificate.get("client_cert_chain"))
