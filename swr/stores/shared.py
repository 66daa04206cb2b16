"""The barriers that all processes share: a sorted set on one server, and what this process has learned of it."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final

from redis.exceptions import ResponseError

from swr.errors import StoreUnavailable
from swr.stores import scripts
from swr.stores.barriers import ALL, FLOOR, Barriers
from swr.stores.base import Kind, Listener, Message
from swr.stores.servers import Servers
from swr.stores.together import number

_RESTORED_AT_ONCE: Final = 1000

# Sends a command, on one connection or to where one key is.
Ask = Callable[..., Awaitable[Any]]


class SharedBarriers:
    """Learns of barriers that others have raised, and gives back those that the server has lost.

    Parameters:
        prefix: the beginning of every key.
        most_tags: how many tags to remember.
        servers: which server has which key.
        ask: sends a command to the server that has the key that is named first, or to wherever that redirects.
        complain: logs once a kind of trouble.

    Attributes:
        known: what this process knows.
        keys: the sorted set, and the newest number (`head_key`).
        synced: up to here every barrier is known; one's own may be known far beyond.
    """

    def __init__(
        self, prefix: bytes, most_tags: int, servers: Servers, ask: Ask, complain: Callable[[str, str], None]
    ) -> None:
        self.known = Barriers(most_tags)
        self.keys = (b"%b:{!}b" % prefix, b"%b:{!}h" % prefix)
        self.head_key = self.keys[1]
        self.synced = 0
        self._servers = servers
        self._ask = functools.partial(ask, self.head_key)
        self._complain = complain
        self._asked: asyncio.Future[int | None] | None = None

    def open(self, listener: Listener) -> None:
        """Begin on this event loop; `listener` is told of each barrier that was not known."""
        self._listener = listener
        self._asked = None
        self._learning = asyncio.Lock()

    def raise_to(self, name: str, number: int) -> None:
        """Learn that `name` (a tag, ALL or FLOOR) was invalidated at `number`."""
        if self.known.raise_to(name, number):
            self._listener(Message(Kind.BARRIER, name, number))

    async def learn(self, ask: Ask) -> None:
        """Learn of what was missed, over one connection to the server that has them."""
        await self._learn(ask, await self._head(ask))

    async def learn_from(self, newest: int | None) -> int:
        """Learn of barriers up to the newest, None if that cannot be known; return which that is.

        Raises:
            StoreUnavailable: no answer.
        """
        if newest is None:
            if self._servers.one:
                raise StoreUnavailable(f"Redis is away ({self._servers.lost})")
            # Cut off from the one master that knows, but not from the key's: what is known here has to do.
            return self.known.head
        if newest != self.synced:
            await self._learn(self._ask, newest)
        return newest

    def newest_soon(self) -> asyncio.Future[int | None]:
        """Ask for the newest, once for all who ask in one turn of the event loop; None: it cannot be known."""
        if self._asked is None:
            self._asked = asyncio.ensure_future(self._newest())
            asyncio.get_running_loop().call_soon(self._next_turn)
        # Whoever leaves does not take it from the others.
        return asyncio.shield(self._asked)

    def _next_turn(self) -> None:
        self._asked = None

    async def _newest(self) -> int | None:
        try:
            return await self._head(self._ask)
        except StoreUnavailable:
            return None

    async def _head(self, ask: Ask) -> int:
        # MGET, for which a foreign value of another type is no error.
        (head,) = await ask("MGET", self.head_key)
        return number(head)

    async def _learn(self, ask: Ask, newest: int) -> None:
        if self.synced == newest >= self.known.head:
            return
        async with self._learning:
            # Asked again, for whoever was before has learned and restored already.
            await self._learn_alone(ask, await self._head(ask))

    async def _learn_alone(self, ask: Ask, newest: int) -> None:
        if newest < self.known.head:
            await self.restore(ask, self.known.items())
        if newest <= self.synced:
            return
        found = await ask("ZRANGEBYSCORE", self.keys[0], f"({self.synced}", "+inf", "WITHSCORES")
        pairs = found if found and isinstance(found[0], list) else zip(found[::2], found[1::2], strict=True)
        for name, score in sorted(pairs, key=lambda pair: float(pair[1])):
            self.raise_to(_tag(name), int(float(score)))
        # The newest may have been trimmed away; what it said is then in the floor.
        self.known.head = max(self.known.head, newest)
        self.synced = max(self.synced, newest)

    async def restore(self, ask: Ask, lost: list[tuple[str, int]]) -> None:
        """Give back to the server what it has lost, over one connection to it."""
        for first in range(0, len(lost), _RESTORED_AT_ONCE):
            some = lost[first : first + _RESTORED_AT_ONCE]
            pairs = [part for name, number in some for part in (number, member(name))]
            try:
                await ask("EVAL", scripts.RESTORE, 2, *self.keys, self.known.head, *pairs)
            except (ResponseError, StoreUnavailable) as error:
                # Out of memory, for one. They are known here, and are offered again with the next look.
                self._complain("restore", f"Redis did not take back barriers that it had lost: {error}")
                return


def member(name: str) -> bytes:
    """Return a barrier's name as it stands in the sorted set, where a tag must not be taken for ALL or FLOOR."""
    return (name if name in (ALL, FLOOR) else f"t{name}").encode("utf-8", "surrogatepass")


def _tag(name: bytes) -> str:
    try:
        text = name.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        # Not ours; a tag that nothing carries.
        text = repr(name)
    return text if text in (ALL, FLOOR) else text[1:]
