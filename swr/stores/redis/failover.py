"""Failover: swr replays the last invalidations to a server that replaced another, because it may have missed them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Final

from redis.exceptions import AskError, RedisError, ResponseError

from swr.errors import StoreUnavailable
from swr.stores.redis import scripts
from swr.stores.redis.commands import Commands
from swr.stores.redis.connection import Connection
from swr.stores.redis.heartbeat import Heartbeat, OtherHistory, Report
from swr.stores.redis.invalidations import Invalidations
from swr.stores.redis.messages import Messages
from swr.stores.redis.names import Names
from swr.stores.redis.reasons import check_kind, explain_redirect
from swr.stores.redis.server_link import ServerLink
from swr.stores.redis.shared_tag_versions import Ask, SharedTagVersions
from swr.stores.redis.tag_scripts import STAMP
from swr.stores.redis.topology import Servers
from swr.stores.tag_versions import ALL

# Microseconds by which the clocks of servers may differ, and by which a replica may be behind.
_MARGIN: Final = 60_000_000
# The most keys of one script.
_MOST_AT_ONCE: Final = 500
# The field of INFO with the ID of the server's replication history, which changes at each promotion.
_HISTORY: Final = b"master_replid"


class Failover:
    """Checks whether servers are masters, and replays invalidations to those that became one.

    Parameters:
        servers: knows which server has each key.
        names: the keys of the namespace.
        commands: sends commands to the servers.
        messages: writes the messages.
        shared: the tag versions.
        invalidations: the last invalidations of keys.
    """

    def __init__(
        self,
        servers: Servers,
        names: Names,
        commands: Commands,
        messages: Messages,
        shared: SharedTagVersions,
        invalidations: Invalidations,
    ) -> None:
        self._servers = servers
        self._names = names
        self._commands = commands
        self._messages = messages
        self._shared = shared
        self._invalidations = invalidations
        # When every key could last be reached, by the monotonic clock.
        self._whole_at = time.monotonic()

    async def handshake(self, link: ServerLink, connection: Connection) -> None:
        """Learn of missed changes, and replay invalidations unless this run of the server has them.

        Raises:
            StoreUnavailable, RedisError: the server cannot be used.
        """
        info = await _info(connection)
        check_kind(info, is_single=self._servers.is_single)
        run_id = info.get(b"run_id", b"")
        if run_id != link.run_id or _was_promoted(info, link) or not run_id:
            has_restarted = link.run_id not in (b"", run_id)
            await self._replay(link, connection, has_restarted=has_restarted)
        # Learn after the replay: versions that the server still lacks then were lost for good.
        await self._learn_at(link, connection.ask, run_id)
        link.run_id, link.history = run_id, info.get(_HISTORY)

    async def heartbeat(
        self, link: ServerLink, connection: Connection, probe: tuple[bytes, int], report: Report | None
    ) -> RedisError | None:
        """Ask for the newest tag version, and whether the server was another's replica since the last heartbeat.

        Parameters:
            probe: the channel and the message that the heartbeat publishes.
            report: the report of this process that the heartbeat writes, or None.

        Returns:
            Why the probe was refused, or None.

        Raises:
            StoreUnavailable, RedisError: the server did not answer, or answered with an error.
        """
        if self._servers.is_reachable:
            self._whole_at = time.monotonic()
        heartbeat, has_learned = Heartbeat(connection, probe, link.history, report), False
        with contextlib.suppress(OtherHistory):
            await self._learn_at(link, heartbeat.ask, link.run_id)
            has_learned = heartbeat.info is not None
        if heartbeat.info is None:
            # This server does not have the tag versions, or another call has just learned them.
            await heartbeat.send()
        info = _fields(heartbeat.info or b"")
        # Between two heartbeats the server may have copied another one and become a master again.
        if _was_promoted(info, link):
            await self._replay(link, connection, has_restarted=False)
            has_learned = False
        if not has_learned:
            await self._learn_at(link, connection.ask, link.run_id)
        link.history = info.get(_HISTORY)
        return heartbeat.refused

    async def _learn_at(self, link: ServerLink, ask: Ask, run_id: bytes) -> None:
        """Learn tag versions, if this server has them."""
        if self._commands.is_at(self._names.newest_tag_version, link):
            self._shared.stamp = STAMP + run_id
            async with self._redirected():
                await self._shared.learn(ask)

    @contextlib.asynccontextmanager
    async def _redirected(self) -> AsyncIterator[None]:
        try:
            yield
        except AskError as error:
            if self._servers.is_single:
                raise StoreUnavailable(explain_redirect(error)) from error
            # The slot of the tag versions is at another master, or is being moved there.
            self._servers.refresh_map()

    async def _replay(self, link: ServerLink, connection: Connection, *, has_restarted: bool) -> None:
        """Repeat every invalidation that the server may have lost."""
        horizon = await self._horizon(link, connection, has_restarted=has_restarted)
        makes_tag_versions = self._commands.is_at(self._names.newest_tag_version, link)
        if self._invalidations.forgotten > horizon:
            # This process has forgotten some of these invalidations, so it invalidates everything.
            await self._shared.invalidate(ALL, ask=connection.ask if makes_tag_versions else None)
        if makes_tag_versions:
            async with self._redirected():
                await self._shared.raise_again(connection.ask, horizon)
                await self._shared.announce_again(connection.ask, horizon)
        commands = [command async for command in self._reminders(link, horizon)]
        await asyncio.gather(*(connection.ask(*command) for command in commands))

    async def _horizon(self, link: ServerLink, connection: Connection, *, has_restarted: bool) -> int:
        """Return a version before which the server has lost no invalidation."""
        seconds, microseconds = await connection.ask("TIME")
        now = int(seconds) * 1_000_000 + int(microseconds)
        if self._commands.is_at(self._names.newest_tag_version, link):
            with contextlib.suppress(ResponseError):
                # A server loses only its last writes: it has every write before the last stamp that it has. Only the
                # stamp of the run that this process knows helps: other processes may have stamped the new run already.
                stamp = await connection.ask("ZSCORE", self._names.tag_versions, self._shared.stamp)
                # The last clear helps, too: nothing from before it is valid.
                cleared = await connection.ask("ZSCORE", self._names.tag_versions, b"*")
                return max(0, int(min(now, max(-float(stamp or 0), float(cleared or 0)))) - _MARGIN)
            return 0
        if has_restarted:
            # Nothing tells how old its data are.
            return 0
        # A promoted replica lacks the last writes of its master. It was behind by less than the margin.
        return now - int((time.monotonic() - self._whole_at) * 1e6) - _MARGIN

    async def _reminders(self, link: ServerLink, horizon: int) -> AsyncIterator[tuple[bytes | str | int, ...]]:
        """Yield the commands that repeat the invalidations of a link's keys after the horizon."""
        known = self._invalidations.since(horizon)
        for first in range(0, len(known), _MOST_AT_ONCE):
            some = known[first : first + _MOST_AT_ONCE]
            parts = [some]
            if not self._servers.is_single:
                parts = [[one] for one in some if self._commands.is_at(self._names.entry(one.key), link)]
            for part in parts:
                keys = [name for one in part for name in self._names.entry_and_lease(one.key)]
                yield "EVAL", scripts.REMIND, len(keys), *keys, *self._messages.reminders(part)
            # Let other tasks run in between, because hiding a name takes some microseconds.
            await asyncio.sleep(0)


async def _info(connection: Connection) -> dict[bytes, bytes]:
    """Return the fields of a server's INFO; none if this user may not run INFO."""
    try:
        info: bytes = await connection.ask("INFO")
    except ResponseError:
        return {}
    return _fields(info)


def _fields(info: bytes) -> dict[bytes, bytes]:
    return dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)


def _was_promoted(info: dict[bytes, bytes], link: ServerLink) -> bool:
    """Return whether INFO shows that a server has become a master since the last check."""
    # A master begins a new history for its first replica, too. Only after a promotion, INFO names the previous history.
    return (
        info.get(b"role") == b"master"
        and info.get(_HISTORY) != link.history
        and info.get(b"master_replid2", b"").strip(b"0") != b""
    )
