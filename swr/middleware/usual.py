"""The usual shape of a request's scope if middleware around swr sets nothing; a hit compares each scope with it."""

from collections.abc import Callable
from contextvars import Context
from typing import Any

from starlette.types import Scope

from swr.endpoints.outer import names_left_in
from swr.endpoints.reads import IDENTIFIERS
from swr.endpoints.routed_scope import unnoticed


class Usual:
    """The usual shape of a scope, learnt from requests; see `swr.http.request.Usual`.

    Parameters:
        outer: returns the names of what middleware around swr has set for a request.
        context: the context variables that are set for all requests.
    """

    __slots__ = ("_outer", "context", "size", "size_without_state", "state")

    def __init__(self, outer: Callable[[Scope], tuple[str, ...]], context: Context) -> None:
        self._outer = outer
        self.context = context
        self.size = self.size_without_state = 0
        # The state of the app's lifespan.
        self.state: dict[str, Any] = {}

    def names_beside(self, scope: Scope) -> tuple[str, ...]:
        """Return the names of what middleware around swr has set; learn the size of a scope without such names."""
        plain = unnoticed(scope)
        if IDENTIFIERS.isdisjoint(plain) and not names_left_in(plain):
            if "state" in plain:
                self.size = len(plain)
            else:
                self.size_without_state = len(plain)
        return self._outer(plain)
