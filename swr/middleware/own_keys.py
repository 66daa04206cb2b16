"""The user's `key=` functions for one request: those of the middleware and of the rule that applies."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from starlette.types import Scope

from swr.endpoints.covering import Coverage, coverage, outer_coverage
from swr.http.request import Digest
from swr.middleware.rules import text_of_key


class OwnKeys:
    """The functions, and what they cover of a request.

    Parameters:
        functions: the functions.
        asked: the scope as the client's request had it.

    Attributes:
        functions: the functions.
        state: the state of the request, which a background run gets, because the functions may read it; None: there are
            no functions.
        parts: the names of parts of the scope that middleware around swr has set and the functions read. A background
            run gets these, too.
    """

    __slots__ = ("_asked", "_covered", "functions", "parts", "state")

    def __init__(self, functions: Sequence[Callable[[Scope], object]], asked: Scope) -> None:
        self.functions = functions
        self.state: dict[str, Any] | None = dict(asked.get("state") or {}) if functions else None
        self.parts: tuple[str, ...] = ()
        # The app may change its state.
        self._asked = {**asked, "state": self.state} if functions else asked
        # Known once it is needed.
        self._covered: Coverage | None = None

    def beyond(self, outer: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of what middleware around swr has set, without what the functions read.

        Call this before the app runs: later, context variables may have other values than the functions have seen.

        Parameters:
            outer: see `outer_names`.
        """
        if not (self.functions and outer):
            return outer
        covered = outer_coverage(self.functions, self._asked, outer)
        self.parts = tuple(
            name.removeprefix("scope ") for name in outer if name.startswith("scope ") and name in covered
        )
        return tuple(name for name in outer if name not in covered)

    def uncovered(self, names: Collection[str]) -> Collection[str]:
        """Return the names of what the app has read, without what the functions read; see `Reads`."""
        if not (self.functions and names):
            return names
        if self._covered is None:
            self._covered = coverage(self.functions, self._asked)
        return [name for name in names if name not in self._covered]

    def text(self, scope: Scope, digest: Digest) -> str:
        """Return what the functions say selects, as a part of a key; empty: there are none."""
        return "".join(f"\nkey: {digest(text_of_key(function, scope))}" for function in self.functions)
