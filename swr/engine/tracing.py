"""The interface by which an engine reports running loads to a tracer."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Protocol

from swr.engine.flights import Flight
from swr.engine.one_shot_event import OneShotEvent

UNTRACED: Final[AbstractContextManager[None]] = nullcontext()


class FirstReader:
    """The reader whose read of the store left together with the lease request of a flight.

    Attributes:
        is_served: whether what the store has was its answer: then the flight runs in the background.
    """

    __slots__ = ("_answered", "is_served")

    def __init__(self) -> None:
        self.is_served = False
        self._answered = OneShotEvent()

    def answer(self, *, is_served: bool) -> None:
        """Note that its read has ended."""
        self.is_served = is_served
        self._answered.set()

    async def wait(self) -> None:
        """Wait until its read has ended."""
        await self._answered.wait()


class Tracing(Protocol):
    """Traces loads. It is called in the task that causes, runs or ends a load, and must not raise."""

    def cause(self) -> Any:
        """Return what causes a load: the request, say, that the caller's context variables name."""

    def load(self, flight: Flight, cause: Any, *, is_behind: bool) -> AbstractContextManager[None]:
        """Return what surrounds the run of a load.

        Parameters:
            is_behind: it is a refresh in the background, without readers that wait.
        """

    def replay(self, key: str, cause: Any) -> AbstractContextManager[None]:
        """Return what surrounds a run of the app in the background, within which `key` is loaded to refresh it.

        Parameters:
            cause: the request that got what was stale.
        """

    def join(self, flight: Flight) -> None:
        """Note that the caller, which the context variables name, waits for a load that another one has caused."""

    def commit(self, flight: Flight) -> AbstractContextManager[None]:
        """Return what surrounds the commit of what was loaded."""
