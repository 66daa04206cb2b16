"""Failover: a server that took another's place is told again of the last invalidations, which it may have missed."""

import asyncio
import time
from typing import Final

from cachetools import TTLCache
from redis.exceptions import AskError, ResponseError

from swr.errors import StoreUnavailable
from swr.stores.base import Kind
from swr.stores.redis import scripts
from swr.stores.redis.commands import Commands, explain_redirect
from swr.stores.redis.connection import Connection
from swr.stores.redis.messages import Messages
from swr.stores.redis.names import Names
from swr.stores.redis.scripts import TOMBSTONE_FOR, digits
from swr.stores.redis.server_link import ServerLink
from swr.stores.redis.shared_tag_versions import SharedTagVersions
from swr.stores.redis.topology import Servers
from swr.stores.tag_versions import ALL

# A failover may lose what a master has acknowledged. Its successor gets the invalidations of this many seconds.
_REPLAYED: Final = 60.0
_MOST_REPLAYED: Final = 10_000
# What INFO calls the line of writes that a server carries on, another one after each promotion.
_HISTORY: Final = b"master_replid"


class Failover:
    """Looks whether servers are masters, and replays invalidations to those that became one.

    Parameters:
        servers: which server has which key.
        names: the keys of the namespace.
        commands: sends commands to the servers.
        messages: writes the messages.
        shared: the tag versions.
    """

    def __init__(
        self, servers: Servers, names: Names, commands: Commands, messages: Messages, shared: SharedTagVersions
    ) -> None:
        self._servers = servers
        self._names = names
        self._commands = commands
        self._messages = messages
        self._shared = shared
        # The versions of the last invalidations by this process, by key; when they were last too many to keep.
        self._invalidated: TTLCache[str, int] = TTLCache(_MOST_REPLAYED, _REPLAYED)
        self._forgotten_at = -_REPLAYED

    def remember(self, key: str, version: int) -> None:
        """Keep an invalidation for a while, to be replayed."""
        if len(self._invalidated) == _MOST_REPLAYED and key not in self._invalidated:
            self._forgotten_at = time.monotonic()
        self._invalidated[key] = version

    async def handshake(self, link: ServerLink, connection: Connection) -> None:
        """Learn what was missed, and replay invalidations unless this run of the server has had them.

        Raises:
            StoreUnavailable, RedisError: the server cannot be used.
        """
        info = await _info(connection)
        if info.get(b"role") == b"slave":
            raise StoreUnavailable("the server is a replica: give the URL of its master, or of the sentinels")
        await self._learn_at(link, connection)
        run_id = info.get(b"run_id", b"")
        if run_id != link.run_id or _was_promoted(info, link) or not run_id:
            await self._replay(link, connection)
        link.run_id, link.history = run_id, info.get(_HISTORY)

    async def heartbeat(self, link: ServerLink, connection: Connection) -> None:
        """Ask for the newest tag version, and whether the server was another's replica since the last heartbeat.

        Raises:
            StoreUnavailable, RedisError: no answer.
        """
        await self._learn_at(link, connection)
        info = await _info(connection, b"replication")
        # Between two heartbeats it may have copied another server and become a master again.
        if _was_promoted(info, link):
            await self._replay(link, connection)
        link.history = info.get(_HISTORY)

    async def _learn_at(self, link: ServerLink, connection: Connection) -> None:
        """Learn of tag versions, if this server makes them."""
        if not self._commands.is_at(self._names.newest_tag_version, link):
            return
        try:
            await self._shared.learn(connection.ask)
        except AskError as error:
            if self._servers.is_single:
                raise StoreUnavailable(explain_redirect(error)) from error
            # Their slot is with another master, or on its way there.
            self._servers.refresh_map()

    async def _replay(self, link: ServerLink, connection: Connection) -> None:
        seconds, microseconds = await connection.ask("TIME")
        now = int(seconds) * 1_000_000 + int(microseconds)
        makes_tag_versions = self._commands.is_at(self._names.newest_tag_version, link)
        if time.monotonic() - self._forgotten_at < _REPLAYED:
            # Too many to know them one by one: everything is outdated.
            if makes_tag_versions:
                self._shared.raise_to(ALL, max(now, self._shared.known.newest + 1))
            else:
                await self._shared.invalidate(ALL)
        if makes_tag_versions:
            oldest = now - int(_REPLAYED * 1e6)
            lost = [(name, number) for name, number in self._shared.known.items() if number > oldest]
            await self._shared.restore(connection.ask, lost)
        replies = []
        for key, version in list(self._invalidated.items()):
            keys = self._names.entry_and_lease(key)
            if self._servers.is_single or self._commands.is_at(keys[0], link):
                message = self._messages.write(Kind.INVALIDATED, key, version)
                arguments = (digits(version), TOMBSTONE_FOR, self._messages.channel, message)
                replies.append(connection.ask("EVAL", scripts.REMIND, 2, *keys, *arguments))
        await asyncio.gather(*replies)


async def _info(connection: Connection, *section: bytes) -> dict[bytes, bytes]:
    """Return what a server says of itself by name; nothing where this user may not ask."""
    try:
        info: bytes = await connection.ask("INFO", *section)
    except ResponseError:
        return {}
    return dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)


def _was_promoted(info: dict[bytes, bytes], link: ServerLink) -> bool:
    """Return whether a server has become a master since the last look, going by its INFO."""
    # A master begins another line of writes for its first replica, too; after a promotion it names the last one.
    return (
        info.get(b"role") == b"master"
        and info.get(_HISTORY) != link.history
        and info.get(b"master_replid2", b"").strip(b"0") != b""
    )
