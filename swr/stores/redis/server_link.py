"""The link to one server: a connection for commands and one for messages, both replaced whenever either breaks."""

import asyncio
import contextlib
import random
import secrets
import time
from typing import Any, Final, NamedTuple, Protocol

import anyio
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import ReadOnlyError, RedisError

from swr.errors import StoreUnavailable
from swr.stores.redis.connection import Closed, Connection, Silent
from swr.stores.redis.patience import patience
from swr.stores.redis.reasons import reason_of
from swr.stores.redis.releases import close_sentinels, connection_of, has_sentinels

# Seconds between two heartbeats, so that swr notices within 2 s that a subscription has died silently.
_HEARTBEAT: Final = 0.55
# Readers that waited in vain for a silent server wait this share of the time-out for the next connection.
_SHARE_AFTER_SILENCE: Final = 1 / 8
_MISSED_HEARTBEATS: Final = 3
# The longest pause between two attempts to connect, in seconds.
_LONGEST_PAUSE: Final = 0.5
# The defaults that `Cache` documents, in seconds.
REPLY_TIMEOUT: Final = 1.0
CONNECT_TIMEOUT: Final = 3.0


class Timeouts(NamedTuple):
    """Limits of waiting for a server, in seconds.

    Parameters:
        reply: how long the server may be silent while commands wait for replies.
        connect: how long connecting may take, and how long the server may be silent during the first handshake.
    """

    reply: float
    connect: float


class LinkOwner(Protocol):
    """The store that a link belongs to and reports to."""

    @property
    def channel(self) -> bytes:
        """The channel that every link subscribes to."""

    async def handshake(self, link: "ServerLink", connection: Connection) -> None:
        """Learn of changes that this process missed, before any command uses the connection.

        Raises StoreUnavailable, RedisError.
        """

    async def heartbeat(
        self, link: "ServerLink", connection: Connection, probe: tuple[bytes, int]
    ) -> RedisError | None:
        """Publish `probe` (a channel and a message), and ask the server what the owner wants to know.

        The link calls this a little less than twice a second. Returns why the user may not publish the probe, or None.
        Raises StoreUnavailable, RedisError.
        """

    def on_message(self, link: "ServerLink", data: bytes) -> None:
        """Take a message, or several that were sent as one."""

    def on_answer(self, seconds: float) -> None:
        """Note how long a command has waited for its reply."""

    def on_publish_refused(self, error: RedisError) -> None:
        """Note that the Redis user may not publish, so that no other process is notified."""

    def on_link_changed(self) -> None:
        """Note that a link was connected or broken, or that the set of links has changed."""


class ServerLink:
    """A link to one server, or to whichever server the client names, such as the master that Sentinel knows.

    Parameters:
        client: makes the connections; it does not retry.
        timeouts: how long connecting may take, and each reply.
        owner: the store that the link reports to.
        name: the address of the server, for errors.
        owned: whether the link closes the client at its end.
    """

    def __init__(self, client: Redis, timeouts: Timeouts, owner: LinkOwner, name: str, *, owned: bool = True) -> None:
        self.name = name
        self.client = client
        # The connection; while it is None, `error` says why.
        self.connection: Connection | None = None
        self.error: Exception | None = None
        # Set once it is known whether the server can be reached.
        self.tried = asyncio.Event()
        # The ID of the server's run at the last handshake.
        self.run_id = b""
        # The server's replication ID (`master_replid` in INFO) when last seen; a promotion changes it.
        self.history: bytes | None = None
        # Whether the link must end, because the server is no longer a master.
        self.retired = False
        # How many commands went over earlier connections.
        self._sent = 0
        self._timeouts = timeouts
        self._owner = owner
        self._owned = owned
        # When the connection was lost, by the monotonic clock.
        self.lost_at = time.monotonic()
        # Until when commands wait for a connection: a new link, or one just lost, is most often connected soon.
        self._waits_until = time.monotonic() + timeouts.connect
        # Set when the next attempt to connect is over.
        self._tried_again = asyncio.Event()

    async def run(self) -> None:
        """Connect again and again until `retire`."""
        delay = 0.0
        try:
            while not self.retired:
                began, self._was_whole = time.monotonic(), False
                try:
                    # Each session has its own task. Before Python 3.11.3, a task in which a task group has failed
                    # counts as cancelled for good: the next time limit in it, also one of redis-py, would cancel it.
                    async with anyio.create_task_group() as group:
                        group.start_soon(self._session)
                except Exception as error:
                    # Connect again after any error, because the store is useless without the link.
                    self.lose(reason_of(error))
                    if not self._was_whole:
                        # This attempt did not connect, so commands do not wait for the next one.
                        self._waits_until = 0.0
                        self._tried_again.set()
                self.tried.set()
                # The first attempt after a loss comes at once, the next ones after growing, random pauses.
                lasted = self._was_whole and time.monotonic() - began > 0.1
                delay = 0.0 if lasted else min(_LONGEST_PAUSE, delay * 2 or 0.01)
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))
        finally:
            self._end()
            with anyio.CancelScope(shield=True), anyio.move_on_after(1.0):
                await self._close()

    def _end(self) -> None:
        """Let no command wait for another connection."""
        self.retired = True
        self._waits_until = 0.0
        self._tried_again.set()

    async def _close(self) -> None:
        if self._owned:
            await self.client.aclose()
            await close_sentinels(self.client.connection_pool)

    @property
    def sent(self) -> int:
        """Return how many commands went over this link."""
        return self._sent + (0 if self.connection is None else self.connection.sent)

    @property
    def server_run(self) -> str:
        """The IDs of the server's run and of its replication history."""
        return f"{self.run_id!r} {self.history!r}"

    def retire(self) -> None:
        """End the link at its next heartbeat, because the server is no longer a master."""
        self.retired = True

    async def _session(self) -> None:
        """Run one connection for commands and one for messages until either breaks."""
        pool = self.client.connection_pool
        channel = self.client.pubsub()
        raw = connection = None
        # The channel of probes. A probe that is published there comes back over the subscription if messages arrive.
        self._probe = b"%b:%b" % (self._owner.channel, secrets.token_hex(8).encode())
        try:
            with patience(self._timeouts.connect, "no connection"):
                async with asyncio.TaskGroup() as group:
                    subscribing = group.create_task(self._subscribe(channel))
                    if has_sentinels(pool):
                        # One after the other: redis-py loses sentinels if two connections look for the master at once.
                        await subscribing
                    # Without sentinels both connect at once: DNS, TLS and a distant server make each of them slow.
                    raw = await connection_of(pool)
            if _address(raw) != _address(channel.connection):
                raise StoreUnavailable("the master changed while swr connected to it")
            connection = Connection(raw, self._timeouts.reply, self._owner.on_answer)
            async with asyncio.TaskGroup() as group:
                group.create_task(connection.run())
                group.create_task(self._receive_messages(channel))
                group.create_task(self._send_heartbeats(channel, connection))
        finally:
            self._sent += connection.sent if connection is not None else 0
            self.connection = None
            with anyio.CancelScope(shield=True), anyio.move_on_after(1.0):
                if raw is not None:
                    await raw.disconnect(nowait=True)
                    await pool.release(raw)
                await channel.aclose()
                await self._forget_connections()

    async def _subscribe(self, channel: PubSub) -> None:
        await channel.subscribe(self._owner.channel, self._probe)
        for _ in range(2):
            await channel.get_message(timeout=None)

    async def _forget_connections(self) -> None:
        """Make the next connections read the certificate files again, which may have been renewed."""
        if self._owned:
            pool = self.client.connection_pool
            with contextlib.suppress(RedisError):
                await pool.disconnect()
            pool.reset()

    async def _receive_messages(self, channel: PubSub) -> None:
        """Pass on every message of the subscription, except the probes, which show that it works."""
        while True:
            message = await channel.get_message(timeout=None)
            if message is not None and message["type"] == "message":
                if message["channel"] == self._probe:
                    self._on_probe(message["data"])
                else:
                    self._owner.on_message(self, message["data"])
            elif message is not None and message["type"] == "pong":
                # The answer to a ping, which replaces the probe if the user may not publish.
                self._unanswered = 0
            elif message is not None and message["type"] == "subscribe":
                raise StoreUnavailable("the subscription broke and was made again; messages may be lost")

    def _on_probe(self, number: bytes) -> None:
        self._returned += 1
        if number != b"%d" % self._returned:
            # Messages come in order. If probes are missing, other messages may have been lost with them.
            raise StoreUnavailable("messages were lost on the way")
        self._unanswered = 0

    async def _send_heartbeats(self, channel: PubSub, connection: Connection) -> None:
        """Make the handshake, then test both connections with a heartbeat at regular intervals."""
        self._unanswered = self._returned = sent = 0
        if not self.tried.is_set():
            # The opening of the cache waits for the first handshake. Later, a silent connection is replaced sooner.
            connection.patience = max(self._timeouts)
        await self._owner.handshake(self, connection)
        connection.patience = self._timeouts.reply
        self.connection, self.error, self._was_whole = connection, None, True
        self.tried.set()
        self._tried_again.set()
        self._owner.on_link_changed()
        # Heartbeats are counted, not timed, so that a pause of this process does not count as a silence of the server.
        while self._unanswered < _MISSED_HEARTBEATS and not self.retired:
            await asyncio.sleep(_HEARTBEAT)
            self._unanswered += 1
            # A heartbeat publishes a probe. A pong would show that the connection works, not that messages arrive.
            refused = await self._owner.heartbeat(self, connection, (self._probe, sent + 1))
            if refused is None:
                sent += 1
            else:
                self._owner.on_publish_refused(refused)
                await channel.ping()
        raise StoreUnavailable("the subscription does not answer")

    def lose(self, error: Exception, connection: Connection | None = None) -> None:
        """Mark the link as broken, unless it already has another connection than the lost one."""
        if self.connection not in (None, connection):
            return
        self.connection = None
        if self.error is None and not self.retired:
            self.lost_at = time.monotonic()
            share = _SHARE_AFTER_SILENCE if isinstance(error, Silent) else 1
            self._waits_until = self.lost_at + self._timeouts.reply * share
            self._tried_again.clear()
        if isinstance(error, Closed):
            # This side closed the connection because the subscription broke. That error is the reason.
            return
        self.error = error
        self._owner.on_link_changed()

    async def ready(self) -> Connection:
        """Return the connection; if it was just lost, wait for the next one, which most often comes soon.

        Raises:
            StoreUnavailable: the link is broken.
        """
        if self.connection is None and not self.is_unreachable:
            with anyio.move_on_after(self._waits_until - time.monotonic()):
                await self._tried_again.wait()
        if self.connection is None:
            raise self._unreachable()
        return self.connection

    @property
    def is_unreachable(self) -> bool:
        """Return whether the link is broken, and commands do not wait for its next connection."""
        return self.connection is None and self._waits_until <= time.monotonic()

    def _unreachable(self) -> StoreUnavailable:
        return StoreUnavailable(f"cannot reach Redis at {self.name} ({self.error or 'the connection was lost'})")

    async def ask(self, *command: bytes | str | int) -> Any:
        """Return the reply to a command; if the connection breaks, repeat the command on the next connection.

        This is safe, because every command of swr may be repeated.

        Raises:
            StoreUnavailable: the server did not answer.
            ResponseError: the server's answer is an error.
        """
        connection = await self.ready()
        try:
            return await connection.ask(*command)
        except StoreUnavailable as error:
            self.lose(error, connection)
        except ReadOnlyError as error:
            # The master was demoted: the next connection leads to its successor.
            reason = f"the server is a replica now: {error}"
            connection.abandon(reason)
            self.lose(StoreUnavailable(reason), connection)
        return await (await self.ready()).ask(*command)


def _address(raw: Any) -> tuple[Any, Any]:
    return getattr(raw, "host", None), getattr(raw, "port", None)
