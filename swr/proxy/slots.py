"""The limit of concurrent requests to the service, and the choice of those that give way when all slots are taken."""

from collections.abc import Awaitable
from typing import Final, TypeVar

import anyio
import httpx

# Average bytes per second that a client must send or take. A slower client falls behind.
LEAST_RATE: Final = 500
# When all connections are taken, a client gives way if it is behind by this many seconds.
_BEHIND: Final = 1.0
# When all connections are taken, a request gives way if its answer has not begun after `_OVERDUE` seconds, or half of
# the patience if that is shorter. It must also have taken `_TIMES_AS_LONG` times as long as the slowest recent answer.
_OVERDUE: Final = 2.5
_TIMES_AS_LONG: Final = 3
# With each answer, the remembered longest time until an answer began is multiplied by this.
_FORGETTING: Final = 0.999
# Seconds between two searches for exchanges that give way.
_SEARCH_EVERY: Final = 0.25

T = TypeVar("T")


class ClientTooSlow(Exception):
    """Raised when a client keeps the proxy waiting for too long."""


class Exchange:
    """A request and its answer, and a measure of how far the client is behind.

    A client falls behind by the time for which the proxy waits for it, minus the time that its bytes take at
    `LEAST_RATE`.

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
        # Whether the proxy ended the exchange because the client was behind, so that another one gets the connection.
        self.has_given_way = False
        # Whether the proxy gave up waiting for a slow answer, so that another request gets the connection.
        self.is_given_up = False
        # Whether the proxy has begun to send the answer to the client.
        self.is_answered = False

    def begin(self, scope: anyio.CancelScope) -> None:
        """Set the scope that `give_way` cancels."""
        self._scope = scope

    def behind(self, now: float) -> float:
        """Return the seconds by which the client is behind."""
        return self._behind if self._waits_since is None else self._behind + now - self._waits_since

    def give_way(self) -> None:
        """End the exchange, so that another request gets its connection."""
        assert self._scope is not None
        self.has_given_way = True
        self._scope.cancel()

    def ask(self, scope: anyio.CancelScope) -> None:
        """Note that the service has the request, and set the scope that `give_up` cancels."""
        self._asking, self._asked_at = scope, anyio.current_time()

    def unanswered(self, now: float) -> float:
        """Return the seconds for which the service has had the request without beginning its answer."""
        return 0.0 if self._asking is None else now - self._asked_at

    def end_asking(self) -> None:
        """Note that the answer has begun."""
        self._asking = None

    def give_up(self) -> None:
        """Stop waiting for the answer, so that another request gets the connection."""
        assert self._asking is not None
        self.is_given_up = True
        self._asking.cancel()

    async def wait(self, client: Awaitable[T], size: int = 0) -> T:
        """Wait for the client to send or take something, and return the result of `client`.

        Parameters:
            client: a call of ASGI's `receive` or `send`.
            size: bytes that the client takes.

        Raises:
            ClientTooSlow: the client is too far behind.
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
        """Note that the client has sent or taken `size` bytes."""
        self._behind = max(0.0, self._behind - size / LEAST_RATE)


class Slots:
    """The slots of the requests that are at the service. Further requests wait for a slot, in order.

    Parameters:
        number: the number of slots.
        patience: seconds for which a request waits for a slot.
    """

    def __init__(self, number: int, patience: float) -> None:
        self._number = number
        self._patience = patience
        self._taken: set[Exchange] = set()
        self._queue: dict[Exchange, anyio.Event] = {}
        self._next_search = 0.0
        # The longest time that a recent answer took to begin, in seconds.
        self._longest = 0.0

    @property
    def are_taken(self) -> bool:
        """Return whether any slot is taken. Requests wait only while slots are taken."""
        return bool(self._taken)

    async def take(self, exchange: Exchange) -> None:
        """Wait for a slot, and take it until `release`, which the caller must call even if this raises.

        Raises:
            httpx.PoolTimeout: no slot became free in time.
        """
        if len(self._taken) < self._number:
            self._taken.add(exchange)
            return
        granted = self._queue[exchange] = anyio.Event()
        # Search at once for an exchange that gives way to this one.
        self._next_search = 0.0
        with anyio.move_on_after(self._patience):
            while exchange not in self._taken:
                self._make_room()
                with anyio.move_on_after(_SEARCH_EVERY):
                    await granted.wait()
        if exchange not in self._taken:
            raise httpx.PoolTimeout("all connections to the service are in use")

    def release(self, exchange: Exchange) -> None:
        """Give the slot of an exchange to the request that has waited longest; or end the wait of `exchange`."""
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
        """Make one exchange give way for each waiting request, first those whose clients are furthest behind."""
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
        # Half of the patience is early enough for the waiting requests. If all answers are slow, giving one up would
        # not help, because the waiting requests would get slow answers, too.
        limit = max(min(_OVERDUE, self._patience / 2), self._longest * _TIMES_AS_LONG)
        overdue = [exchange for exchange in staying if exchange.unanswered(now) >= limit and exchange not in behind]
        overdue.sort(key=lambda exchange: exchange.unanswered(now), reverse=True)
        for exchange in overdue[: max(0, wanted - len(behind))]:
            exchange.give_up()
