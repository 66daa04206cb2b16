"""The interface by which an engine reports running loads to a tracer."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Protocol

from swr.engine.flights import Flight

UNTRACED: Final[AbstractContextManager[None]] = nullcontext()


class Tracing(Protocol):
    """Traces loads. It is called in the task that causes, runs or ends a load, and must not raise."""

    def cause(self) -> Any:
        """Return what causes a load: the request, say, that the caller's context variables name."""

    def load(self, flight: Flight, cause: Any, *, is_behind: bool) -> AbstractContextManager[None]:
        """Return what surrounds the run of a load.

        Parameters:
            is_behind: it is a refresh in the background, without readers that wait.
        """

    def join(self, flight: Flight) -> None:
        """Note that the caller, which the context variables name, waits for a load that another one has caused."""

    def commit(self, flight: Flight) -> AbstractContextManager[None]:
        """Return what surrounds the commit of what was loaded."""
