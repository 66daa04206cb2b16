"""The tag versions that all processes share: a sorted set on one server, and what this process has learned of it."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final

from redis.exceptions import ResponseError

from swr.errors import StoreUnavailable
from swr.stores.base import Kind, Notification, Subscriber
from swr.stores.redis import scripts
from swr.stores.redis.commands import Commands
from swr.stores.redis.messages import Messages
from swr.stores.redis.names import Names
from swr.stores.redis.scripts import number
from swr.stores.redis.topology import Servers
from swr.stores.tag_versions import ALL, MINIMUM, TagVersions

_MOST_TAGS: Final = 100_000
_RESTORED_AT_ONCE: Final = 1000

# Sends a command, on one connection or to the server that has one key.
Ask = Callable[..., Awaitable[Any]]


class SharedTagVersions:
    """Learns of tag versions that others have raised, raises them, and restores those that the server has lost.

    Parameters:
        servers: which server has which key.
        names: the keys of the namespace.
        commands: sends commands to the servers.
        messages: writes the messages.

    Attributes:
        known: what this process knows.
        synced: every tag version up to this one is known; those that this process has raised may be far newer.
    """

    def __init__(self, servers: Servers, names: Names, commands: Commands, messages: Messages) -> None:
        self.known = TagVersions(_MOST_TAGS)
        self.synced = 0
        self._servers = servers
        self._names = names
        self._commands = commands
        self._messages = messages
        self._keys = (names.tag_versions, names.newest_tag_version)
        self._ask = functools.partial(commands.ask, names.newest_tag_version)
        self._asked: asyncio.Future[int | None] | None = None

    def open(self, subscriber: Subscriber) -> None:
        """Begin on this event loop; `subscriber` is called with each tag version that was not known."""
        self._subscriber = subscriber
        self._asked = None
        self._learning = asyncio.Lock()

    async def invalidate(self, tag: str) -> None:
        """Raise the version of `tag` (or of ALL) and notify every process.

        Raises:
            StoreUnavailable: no answer.
        """
        before, after = self._messages.around_version(Kind.TAG_VERSION, tag)
        raised = await self._commands.script(
            scripts.RAISE_TAG_VERSION, self._keys, _member(tag), _MOST_TAGS, self._messages.channel, before, after
        )
        self.raise_to(tag, int(raised))

    def raise_to(self, name: str, number: int) -> None:
        """Learn that `name` (a tag, ALL or MINIMUM) was invalidated at `number`."""
        if self.known.raise_to(name, number):
            self._subscriber(Notification(Kind.TAG_VERSION, name, number))

    async def learn(self, ask: Ask) -> None:
        """Learn of what was missed, over one connection to the server that has them."""
        await self._learn(ask, await self._newest_at(ask))

    async def learn_from(self, newest: int | None) -> int:
        """Learn of tag versions up to the newest, None if that cannot be known; return the newest.

        Raises:
            StoreUnavailable: no answer.
        """
        if newest is None:
            if self._servers.is_single:
                raise StoreUnavailable(f"cannot reach Redis ({self._servers.error})")
            # The master that knows cannot be reached, but the one that has the key can: go by what is known here.
            return self.known.newest
        if newest != self.synced:
            await self._learn(self._ask, newest)
        return newest

    def newest_soon(self) -> asyncio.Future[int | None]:
        """Ask for the newest, once for all who ask in one turn of the event loop; None: it cannot be known."""
        if self._asked is None:
            self._asked = asyncio.ensure_future(self._newest())
            asyncio.get_running_loop().call_soon(self._next_turn)
        # A reader that is cancelled does not take the answer from the others.
        return asyncio.shield(self._asked)

    def _next_turn(self) -> None:
        self._asked = None

    async def _newest(self) -> int | None:
        try:
            return await self._newest_at(self._ask)
        except StoreUnavailable:
            return None

    async def _newest_at(self, ask: Ask) -> int:
        # MGET, for which a foreign value of another type is no error.
        (newest,) = await ask("MGET", self._names.newest_tag_version)
        return number(newest)

    async def _learn(self, ask: Ask, newest: int) -> None:
        if self.synced == newest >= self.known.newest:
            return
        async with self._learning:
            # Ask again: another coroutine may have learned and restored meanwhile.
            await self._learn_alone(ask, await self._newest_at(ask))

    async def _learn_alone(self, ask: Ask, newest: int) -> None:
        if newest < self.known.newest:
            await self.restore(ask, self.known.items())
        if newest <= self.synced:
            return
        found = await ask("ZRANGEBYSCORE", self._names.tag_versions, f"({self.synced}", "+inf", "WITHSCORES")
        pairs = found if found and isinstance(found[0], list) else zip(found[::2], found[1::2], strict=True)
        for name, score in sorted(pairs, key=lambda pair: float(pair[1])):
            self.raise_to(_tag(name), int(float(score)))
        # The newest may have been trimmed away; the minimum then covers it.
        self.known.newest = max(self.known.newest, newest)
        self.synced = max(self.synced, newest)

    async def restore(self, ask: Ask, lost: list[tuple[str, int]]) -> None:
        """Give back to the server what it has lost, over one connection to it."""
        for first in range(0, len(lost), _RESTORED_AT_ONCE):
            some = lost[first : first + _RESTORED_AT_ONCE]
            pairs = [part for name, number in some for part in (number, _member(name))]
            try:
                await ask("EVAL", scripts.RESTORE, 2, *self._keys, self.known.newest, *pairs)
            except (ResponseError, StoreUnavailable) as error:
                # For example out of memory. They are known here, and the next look offers them again.
                self._commands.warn_once("restore", f"Redis did not take back tag versions that it had lost: {error}")
                return


def _member(name: str) -> bytes:
    """Return a tag as it stands in the sorted set, where it must not be taken for ALL or MINIMUM."""
    return (name if name in (ALL, MINIMUM) else f"t{name}").encode("utf-8", "surrogatepass")


def _tag(name: bytes) -> str:
    try:
        text = name.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        # Not ours; a tag that nothing carries.
        text = repr(name)
    return text if text in (ALL, MINIMUM) else text[1:]
