"""Which requests are with the service, and whose client gives way when all connections are taken."""

from collections.abc import Awaitable
from typing import Final, TypeVar

import anyio
import httpx

# Bytes per second that a client must send and take, on average, not to fall behind.
LEAST_RATE: Final = 500
# Where all connections are taken, a client gives way that is behind by this many seconds.
_BEHIND: Final = 1.0
# Seconds between two searches for such a client.
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
        # Whether another request has got its connection.
        self.has_given_way = False
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

    @property
    def are_taken(self) -> bool:
        """Whether a request has a place, and one perhaps waits."""
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

    def _make_room(self) -> None:
        """Have the clients give way that are furthest behind, one for each request that waits."""
        now = anyio.current_time()
        if now < self._next_search:
            return
        self._next_search = now + _SEARCH_EVERY
        leaving = sum(exchange.has_given_way for exchange in self._taken)
        behind = [
            exchange for exchange in self._taken if exchange.behind(now) >= _BEHIND and not exchange.has_given_way
        ]
        behind.sort(key=lambda exchange: exchange.behind(now), reverse=True)
        for exchange in behind[: max(0, len(self._queue) - leaving)]:
            exchange.give_way()
