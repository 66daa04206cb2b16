"""The interface by which an engine reports running loads to a tracer."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Protocol

from swr.engine.flights import Flight
from swr.engine.one_shot_event import OneShotEvent

UNTRACED: Final[AbstractContextManager[None]] = nullcontext()


class FirstReader:
    """The reader whose read of the store was sent together with the lease request of a flight.

    Attributes:
        is_served: whether the read brought an entry that the reader gets; then the flight runs in the background.
    """

    __slots__ = ("_answered", "is_served")

    def __init__(self) -> None:
        self.is_served = False
        self._answered = OneShotEvent()

    def answer(self, *, is_served: bool) -> None:
        """Note that the read has ended."""
        self.is_served = is_served
        self._answered.set()

    async def wait(self) -> None:
        """Wait until the read has ended."""
        await self._answered.wait()


class Tracing(Protocol):
    """A tracer of loads. The task that causes, runs or ends a load calls it, so it must not raise an exception."""

    def cause(self) -> Any:
        """Return the cause of a load that the caller begins, such as the request in its context variables."""

    def load(self, flight: Flight, cause: Any, *, is_behind: bool) -> AbstractContextManager[None]:
        """Return a context manager for the run of a load.

        Parameters:
            is_behind: whether the load is a refresh in the background, without readers that wait.
        """

    def replay(self, key: str, cause: Any) -> AbstractContextManager[None]:
        """Return a context manager for a run of the app in the background, which refreshes `key`.

        Parameters:
            cause: the request that got the stale response.
        """

    def join(self, flight: Flight) -> None:
        """Note that the caller, found in its context variables, waits for a load that another caller has caused."""

    def commit(self, flight: Flight) -> AbstractContextManager[None]:
        """Return a context manager for the commit of a loaded value."""
