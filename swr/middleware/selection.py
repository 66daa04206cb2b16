"""The operator's choices, and who asks: besides the URL and the fields of a request, these select its response."""

from collections.abc import Callable
from typing import NamedTuple

from starlette.types import Scope

from swr.http.caching import Verdict
from swr.http.request import Digest, digest_with, has_certificate


class Selection(NamedTuple):
    """The operator's choices about what selects responses.

    Parameters:
        ignored: the names of fields that no response depends on, lower case.
        digest: turns a value that selects into text that does not reveal the value.
        key: returns what selects besides the request itself, from the scope; None: nothing does.
        version: the version of the app; swr keeps the responses of each version apart.
        outer: returns the names of what middleware around swr has set for a request, as `outer_names` does.
    """

    ignored: frozenset[bytes] = frozenset()
    digest: Digest = digest_with(b"")
    key: Callable[[Scope], object] | None = None
    version: str = ""
    outer: Callable[[Scope], tuple[str, ...]] = lambda scope: ()


def is_personal(scope: Scope) -> bool:
    """Return whether the scope shows a login, or a session that is not empty or was used."""
    session, user = scope.get("session"), scope.get("user")
    # `accessed` misses some uses, so a session with any content counts.
    if session is not None and (bool(session) or getattr(session, "accessed", False)):
        return True
    # A user object without `is_authenticated` counts as logged in.
    if user is not None and getattr(user, "is_authenticated", True) is not False:
        return True
    # `scopes` may differ between clients even without a login. `auth` without them, such as claims, says who asks.
    auth = scope.get("auth")
    has_scopes = bool(getattr(auth, "scopes", auth))
    return has_scopes or has_certificate(scope)


def for_reader(verdict: Verdict, by_field: bool) -> Verdict:
    """Return the verdict; its reason "authorization" becomes "session" for a request without credentials."""
    if by_field or verdict.reason != "authorization":
        return verdict
    return verdict._replace(reason="session")
