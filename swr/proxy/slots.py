"""Which requests are with the service, and which give way when all connections are taken."""

from collections.abc import Awaitable
from typing import Final, TypeVar

import anyio
import httpx

# Bytes per second that a client must send and take, on average, not to fall behind.
LEAST_RATE: Final = 500
# Where all connections are taken, a client gives way that is behind by this many seconds.
_BEHIND: Final = 1.0
# Where all connections are taken, a request gives way if its answer has not begun after this many seconds. It may also
# take this many times as long as others took of late.
_OVERDUE: Final = 2.5
_TIMES_AS_LONG: Final = 3
# How much of the longest time that an answer took to begin counts after one more answer.
_FORGETTING: Final = 0.999
# Seconds between two searches for what gives way.
_SEARCH_EVERY: Final = 0.25

T = TypeVar("T")


class ClientTooSlow(Exception):
    """The client kept the proxy waiting for longer than it may."""


class Exchange:
    """A request and its answer, and by how much the client is behind.

    A client falls behind by the time for which the proxy waits for it, less what its bytes take at `LEAST_RATE`.

    Parameters:
        limit: seconds by which the client may be behind.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._behind = 0.0
        self._waits_since: float | None = None
        self._scope: anyio.CancelScope | None = None
        self._asking: anyio.CancelScope | None = None
        self._asked_at = 0.0
        # Whether another request has got its connection.
        self.has_given_way = False
        # Whether it has given way because the service does not answer.
        self.is_given_up = False
        # Whether the client has got the beginning of the answer.
        self.is_answered = False

    def begin(self, scope: anyio.CancelScope) -> None:
        """Cancel `scope` if the client has to give way."""
        self._scope = scope

    def behind(self, now: float) -> float:
        """Return by how many seconds the client is behind."""
        return self._behind if self._waits_since is None else self._behind + now - self._waits_since

    def give_way(self) -> None:
        """End the exchange: another request gets its connection."""
        assert self._scope is not None
        self.has_given_way = True
        self._scope.cancel()

    def ask(self, scope: anyio.CancelScope) -> None:
        """Note that the service has the request. Cancelling `scope` gives up waiting for its answer."""
        self._asking, self._asked_at = scope, anyio.current_time()

    def unanswered(self, now: float) -> float:
        """Return for how many seconds the service has not begun its answer."""
        return 0.0 if self._asking is None else now - self._asked_at

    def end_asking(self) -> None:
        """Note that the answer has begun."""
        self._asking = None

    def give_up(self) -> None:
        """Wait for the service no longer: another request gets the connection."""
        assert self._asking is not None
        self.is_given_up = True
        self._asking.cancel()

    async def wait(self, client: Awaitable[T], size: int = 0) -> T:
        """Return what the client sends or takes.

        Parameters:
            client: sends or takes it.
            size: bytes that the client takes.

        Raises:
            ClientTooSlow: it does so too slowly.
        """
        began = self._waits_since = anyio.current_time()
        try:
            with anyio.move_on_after(self._limit - self._behind) as scope:
                result = await client
        finally:
            self._waits_since = None
            self._behind += anyio.current_time() - began
        if scope.cancelled_caught:
            raise ClientTooSlow
        self.credit(size)
        return result

    def credit(self, size: int) -> None:
        """The client has sent or taken this many bytes."""
        self._behind = max(0.0, self._behind - size / LEAST_RATE)


class Slots:
    """The places of the requests that are with the service at one time. The others wait, in order.

    Parameters:
        number: of places.
        patience: seconds that a request waits for one.
    """

    def __init__(self, number: int, patience: float) -> None:
        self._number = number
        self._patience = patience
        self._taken: set[Exchange] = set()
        self._queue: dict[Exchange, anyio.Event] = {}
        self._next_search = 0.0
        # Seconds that an answer took to begin, the longest of late.
        self._longest = 0.0

    @property
    def are_taken(self) -> bool:
        """Return whether a request has a place, and one perhaps waits."""
        return bool(self._taken)

    async def take(self, exchange: Exchange) -> None:
        """Wait for a place. It is the caller's until `release`, to be called in any case.

        Raises:
            httpx.PoolTimeout: none became free in time.
        """
        if len(self._taken) < self._number:
            self._taken.add(exchange)
            return
        granted = self._queue[exchange] = anyio.Event()
        # The newcomer does not wait for the next search.
        self._next_search = 0.0
        with anyio.move_on_after(self._patience):
            while exchange not in self._taken:
                self._make_room()
                with anyio.move_on_after(_SEARCH_EVERY):
                    await granted.wait()
        if exchange not in self._taken:
            raise httpx.PoolTimeout("all connections to the service are in use")

    def release(self, exchange: Exchange) -> None:
        """Give the place to the request that has waited longest, or stop waiting for one."""
        self._queue.pop(exchange, None)
        self._taken.discard(exchange)
        while self._queue and len(self._taken) < self._number:
            following = next(iter(self._queue))
            self._taken.add(following)
            self._queue.pop(following).set()

    def answered(self, exchange: Exchange) -> None:
        """Note that the service has begun its answer."""
        self._longest = max(self._longest * _FORGETTING, exchange.unanswered(anyio.current_time()))
        exchange.end_asking()

    def _make_room(self) -> None:
        """Make one request give way for each that waits, first those whose clients are furthest behind."""
        now = anyio.current_time()
        if now < self._next_search:
            return
        self._next_search = now + _SEARCH_EVERY
        staying = [exchange for exchange in self._taken if not (exchange.has_given_way or exchange.is_given_up)]
        wanted = max(0, len(self._queue) - (len(self._taken) - len(staying)))
        behind = [exchange for exchange in staying if exchange.behind(now) >= _BEHIND]
        behind.sort(key=lambda exchange: exchange.behind(now), reverse=True)
        for exchange in behind[:wanted]:
            exchange.give_way()
        # Early enough for those who wait. Where all answers take long, none is given up for others that would, too.
        limit = max(min(_OVERDUE, self._patience / 2), self._longest * _TIMES_AS_LONG)
        overdue = [exchange for exchange in staying if exchange.unanswered(now) >= limit and exchange not in behind]
        overdue.sort(key=lambda exchange: exchange.unanswered(now), reverse=True)
        for exchange in overdue[: max(0, wanted - len(behind))]:
            exchange.give_up()
