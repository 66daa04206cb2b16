"""The usual shape of a request if middleware around swr sets nothing; a hit compares each request with it."""

from collections.abc import Callable
from contextvars import Context
from typing import Any, Final

from starlette.types import Scope

from swr.endpoints.outer import names_left_in, selecting_values
from swr.endpoints.reads import IDENTIFIERS
from swr.endpoints.routed_scope import unnoticed
from swr.http.request_fields import IGNORED, INTERPRETED, FieldClass, field_class

# Clients choose the names of fields, so swr remembers a limited number of them.
_MOST_IGNORED: Final = 1000

# The names that servers put into a scope, and the app of which swr is a middleware.
_OF_SERVERS: Final = frozenset(
    {
        "type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path",
        "headers", "server", "client", "extensions", "state", "app",
    }
)  # fmt: skip
# One app can be mounted in several places, each with a shape of its own.
_MOST_ROUTED: Final = 64


class Usual:
    """The usual shape of a request, learnt from requests; see `swr.http.request.Usual`.

    Parameters:
        outer: returns the names of what middleware around swr has set for a request.
        context: the context variables that are set for all requests.
        by_option: the names of fields that no response depends on, beyond those that swr knows as harmless.
    """

    __slots__ = ("_by_option", "_outer", "context", "ignored", "routed", "size", "size_without_state", "state")

    def __init__(
        self, outer: Callable[[Scope], tuple[str, ...]], context: Context, by_option: frozenset[bytes] = frozenset()
    ) -> None:
        self._outer = outer
        self._by_option = by_option
        self.ignored = {*IGNORED}
        self.context = context
        self.size = self.size_without_state = 0
        self.routed: set[tuple[str, ...]] = set()
        # The state of the app's lifespan.
        self.state: dict[str, Any] = {}

    def ignores(self, name: bytes) -> bool:
        """Return whether no response depends on a request field, and remember that."""
        if name in INTERPRETED:
            return False
        kind = field_class(name)
        if kind is not FieldClass.IGNORED and (kind is not FieldClass.UNKNOWN or name not in self._by_option):
            return False
        if len(self.ignored) < _MOST_IGNORED:
            self.ignored.add(name)
        return True

    def names_beside(self, scope: Scope) -> tuple[str, ...]:
        """Return the names of what middleware around swr has set; learn the shape of a scope without such names."""
        plain = unnoticed(scope)
        values = selecting_values(plain)
        if not values and IDENTIFIERS.isdisjoint(plain) and not names_left_in(plain):
            if not plain.keys() <= _OF_SERVERS:
                if len(self.routed) < _MOST_ROUTED:
                    self.routed.add(tuple(plain))
            elif "state" in plain:
                self.size = len(plain)
            else:
                self.size_without_state = len(plain)
        return (*self._outer(plain), *values)
