"""The link to one server: a connection for commands and one for messages, made again whenever either breaks."""

import asyncio
import contextlib
import random
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import ReadOnlyError, RedisError

from swr.errors import StoreUnavailable
from swr.stores.wire import Closed, Wire

if TYPE_CHECKING:
    from swr.stores.replicas import Replica

# A subscription that dies silently is noticed within 2 s.
_BEAT: Final = 0.45
_SILENT_BEATS: Final = 3
_LONGEST_PAUSE: Final = 0.5


class Keeper(Protocol):
    """Whose links they are."""

    # The messages' channel.
    channel: bytes

    async def greet(self, link: "Link", wire: Wire) -> None:
        """Learn what was missed, before the link counts as whole. Raises StoreUnavailable, RedisError."""

    async def pulse(self, link: "Link", wire: Wire) -> None:
        """Ask the server something, at every beat. Raises StoreUnavailable, RedisError."""

    def hear(self, link: "Link", data: bytes) -> None:
        """Take a message."""

    def link_changed(self) -> None:
        """Take note that a link is whole again, or broken, or that there are others."""


class Link:
    """One server, or whichever server the client names at each connection, a Sentinel's master for one.

    Parameters:
        client: makes the connections; it does not retry.
        timeout: seconds after which an unanswered command counts as failed.
        keeper: whose link this is.
        name: of the server, for errors and logs.
        owned: whether the client is closed with the link.
    """

    def __init__(
        self, client: Redis, timeout: float, keeper: Keeper, name: str = "Redis", *, owned: bool = True
    ) -> None:
        self.name = name
        self.client = client
        # The wire while the link is whole, and why it is not.
        self.wire: Wire | None = None
        self.lost: Exception | None = None
        # Set once it is known whether the server can be reached.
        self.tried = asyncio.Event()
        # Which run of the server greeted last.
        self.run_id = b""
        # Which line of writes it carried on when it was asked last; `INFO` calls that master_replid.
        self.history: bytes | None = None
        # Where values are read from, if not here; whether the server is to be asked at all.
        self.replica: Replica | None = None
        self.retired = False
        # How many commands went over wires that broke.
        self._sent = 0
        self._timeout = timeout
        self._keeper = keeper
        self._owned = owned
        # One that is new may take a moment, too.
        self._lost_at = time.monotonic()
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Keep the link whole until `retire`."""
        delay = 0.0
        try:
            while not self.retired:
                began, self._was_whole = time.monotonic(), False
                try:
                    await self._session()
                except Exception as error:
                    # Whatever it was: the link is what everything hangs on, and is made again.
                    self.lose(StoreUnavailable(first(error)) if isinstance(error, ExceptionGroup) else error)
                self.tried.set()
                # The first try after a loss comes at once; then with growing, random distance.
                lasted = self._was_whole and time.monotonic() - began > 0.1
                delay = 0.0 if lasted else min(_LONGEST_PAUSE, delay * 2 or 0.01)
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(1.0):
                await self._close()

    async def _close(self) -> None:
        if self._owned:
            await self.client.aclose()
            sentinel = getattr(self.client.connection_pool, "sentinel_manager", None)
            if sentinel is not None:
                await sentinel.aclose()

    @property
    def sent(self) -> int:
        """How many commands it has carried."""
        return self._sent + (0 if self.wire is None else self.wire.sent)

    def retire(self) -> None:
        """End at the next beat: this server is not to be asked any more."""
        self.retired = True

    async def _session(self) -> None:
        """One connection for commands and one for messages, while both are well."""
        pool = self.client.connection_pool
        channel = self.client.pubsub()
        connection = wire = None
        try:
            with anyio.fail_after(5 * self._timeout):
                await channel.subscribe(self._keeper.channel)
                await channel.get_message(timeout=None)
                connection = await pool.get_connection()
            if _address(connection) != _address(channel.connection):
                raise StoreUnavailable("the master changed while it was connected to")
            wire = Wire(connection, self._timeout)
            async with anyio.create_task_group() as group:
                group.start_soon(wire.run)
                group.start_soon(self._listen, channel)
                group.start_soon(self._beat, channel, wire)
        except* (RedisError, OSError, TimeoutError, StoreUnavailable) as errors:
            raise StoreUnavailable(first(errors)) from None
        finally:
            self._sent += wire.sent if wire is not None else 0
            self.wire = None
            with anyio.CancelScope(shield=True), anyio.move_on_after(1.0):
                if connection is not None:
                    await connection.disconnect(nowait=True)
                    await pool.release(connection)
                await channel.aclose()

    async def _listen(self, channel: PubSub) -> None:
        """Hear messages."""
        while True:
            message = await channel.get_message(timeout=None)
            self._unanswered = 0
            if message is not None and message["type"] == "message":
                self._keeper.hear(self, message["data"])
            elif message is not None and message["type"] == "subscribe":
                raise StoreUnavailable("the subscription was broken and made anew; messages may be lost")

    async def _beat(self, channel: PubSub, wire: Wire) -> None:
        """Ask for a sign of life at every beat."""
        self._unanswered = 0
        await self._keeper.greet(self, wire)
        self.wire, self.lost, self._was_whole = wire, None, True
        self.tried.set()
        self._changed.set()
        self._keeper.link_changed()
        # Counted, not timed: a pause of this process itself is no silence of the server's.
        while self._unanswered < _SILENT_BEATS and not self.retired:
            await asyncio.sleep(_BEAT)
            self._unanswered += 1
            await channel.ping()
            await self._keeper.pulse(self, wire)
        raise StoreUnavailable("no sign of life from the subscription")

    def lose(self, error: Exception, wire: Wire | None = None) -> None:
        """Count the link as broken, unless it is whole again by another wire than the one that was lost."""
        if self.wire not in (None, wire):
            return
        self.wire = None
        if self.lost is None and not isinstance(error, Closed):
            self.lost, self._lost_at = error, time.monotonic()
            self._changed.clear()
            self._keeper.link_changed()

    async def ready(self) -> Wire:
        """Return the wire; where it was lost only now, wait a moment, for most often it is back at once.

        Raises:
            StoreUnavailable: the link is broken.
        """
        if self.is_away:
            raise self._away()
        if self.wire is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._grace):
                    await self._changed.wait()
        if self.wire is None:
            raise self._away()
        return self.wire

    @property
    def is_away(self) -> bool:
        """Whether the link is broken, and was not lost only now."""
        return self.wire is None and self._grace <= 0

    @property
    def _grace(self) -> float:
        return self._lost_at + self._timeout / 8 - time.monotonic()

    def _away(self) -> StoreUnavailable:
        return StoreUnavailable(f"{self.name} is away ({self.lost})")

    async def ask(self, *command: bytes | str | int) -> Any:
        """Ask once, and once more if the connection broke and is back at once: every command may be repeated.

        Raises:
            StoreUnavailable: no answer.
            ResponseError: the server's answer is an error.
        """
        wire = await self.ready()
        try:
            return await wire.ask(*command)
        except StoreUnavailable as error:
            self.lose(error, wire)
        except ReadOnlyError as error:
            # A master that was demoted: the next connection is to its successor.
            wire.abandon(f"the server is a replica now: {error}")
            self.lose(StoreUnavailable(str(error)), wire)
        return await (await self.ready()).ask(*command)


def _address(connection: Any) -> tuple[Any, Any]:
    return getattr(connection, "host", None), getattr(connection, "port", None)


def first(error: BaseException) -> str:
    """Return what an error says, or the first of a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
