"""One connection to Redis on which the commands of many coroutines are pipelined.

The event loop reads the replies, not the coroutine that sent a command. So the connection stays in order if a waiting
coroutine is cancelled. All commands of one turn of the event loop are sent in one write.
"""

import asyncio
import functools
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError, InvalidResponse

from swr.errors import ConfigurationError, StoreUnavailable
from swr.stores.redis.reasons import CLOSED
from swr.stores.redis.replies import error_of

# Ticks of a timer in one time-out. swr notices a silence at most two ticks late.
_TICKS: Final = 25
# The reader returns this while the bytes so far are not a complete reply.
_MORE: Final = object()
# The most bytes that one read of the socket brings.
_AT_ONCE: Final = 131_072
# A longer argument is given to the transport as it is, because copying it would block the event loop.
_LARGE: Final = 131_072
_packed: Final[Callable[[tuple[bytes | str | int, ...]], bytes]] = cast(Any, hiredis.pack_command)


def _pieces(command: tuple[bytes | str | int, ...]) -> list[bytes]:
    """Return the bytes of a command, with each large argument as a piece of its own."""
    if all(len(part) <= _LARGE for part in command if type(part) is bytes):
        return [_packed(command)]
    pieces, small = [], b"*%d\r\n" % len(command)
    for part in command:
        data = part if isinstance(part, bytes) else str(part).encode()
        small += b"$%d\r\n" % len(data)
        if len(data) > _LARGE:
            pieces += [small, data]
            small = b"\r\n"
        else:
            small += data + b"\r\n"
    return [*pieces, small]


def _is_large(piece: bytes) -> bool:
    return len(piece) > _LARGE


class Closed(StoreUnavailable):
    """The connection was closed on this side, because the cache is closing or its event loop ends."""


class Silent(StoreUnavailable):
    """The server has been silent for longer than the time-out."""


def settle(future: "asyncio.Future[Any]", reply: Any) -> None:
    """Give a reply to the coroutine that waits for it, unless it was cancelled."""
    if future.done():
        return
    if isinstance(reply, Exception):
        future.set_exception(reply)
    else:
        future.set_result(reply)


class Connection(asyncio.BufferedProtocol):
    """Sends commands and passes on the replies, in order.

    redis-py connects and makes its handshake. Then this protocol takes over the transport, because redis-py spends more
    time on a command and its reply than all the rest of a read takes.

    Parameters:
        raw: redis-py's connection, connected and not used by any other code.
        timeout: seconds after which the server counts as hung if commands wait and it neither sends nor takes any data.
        on_answer: called with the seconds from a command to its reply; one command at a time is measured.

    Attributes:
        patience: the time-out from now on, in seconds.
        sent: how many commands were sent so far.
        broken: why no more commands can be sent, or None.

    Raises:
        ConfigurationError: `raw` is an imitation without a server.
    """

    def __init__(self, raw: AbstractConnection, timeout: float, on_answer: Callable[[float], object] = float) -> None:
        self.sent = 0
        self._on_answer = on_answer
        self.broken: StoreUnavailable | None = None
        self.patience = timeout
        self._tick_for = timeout / _TICKS
        self._pending: deque[Callable[[Any], None]] = deque()
        self._outbox: list[bytes] = []
        self._ticking = False
        # How many times data came from the server.
        self._heard = 0
        # The command whose time is measured: how many commands were sent up to and with it, and when that was.
        self._measured: tuple[int, float] | None = None
        # How many bytes were given to the transport.
        self._given = 0
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._buffer = memoryview(bytearray(_AT_ONCE))
        client: Any = raw
        transport: Any = getattr(client._writer, "transport", None)
        # Imitations of redis-py have no transport, or one without this method.
        if not hasattr(transport, "set_protocol"):
            raise ConfigurationError(
                f"redis= makes a {type(raw).__module__}.{type(raw).__name__}, which leads to no server: use Cache() in "
                f"tests, or a real server"
            )
        self._replies: Any = hiredis.Reader(protocolError=InvalidResponse, replyError=error_of, notEnoughData=_MORE)
        self._transport: asyncio.Transport = transport
        self._before = transport.get_protocol()
        transport.set_protocol(self)

    # -- commands ---------------------------------------------------------------------------------------------

    def send(self, command: tuple[bytes | str | int, ...], on_reply: Callable[[Any], None]) -> None:
        """Send a command, and call `on_reply` with its reply, or with the exception that replaces it.

        If `on_reply` raises an exception, the reply does not fit the command. Then `on_reply` is called again, with an
        exception that says so.
        """
        if self.broken is not None:
            self._refuse(on_reply)
            return
        if not self._outbox:
            self._loop.call_soon(self._leave)
        self._outbox += _pieces(command)
        self._pending.append(on_reply)
        self.sent += 1
        if not self._ticking:
            self._ticking = True
            self._tick(self._heard, 0, 0, 0)

    def ask(self, *command: bytes | str | int) -> asyncio.Future[Any]:
        """Send a command; the future gets its reply, or the exception that replaces it."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self.send(command, functools.partial(settle, future))
        return future

    def _leave(self) -> None:
        """Write all commands of this turn of the event loop."""
        outbox, self._outbox = self._outbox, []
        if self._measured is None:
            self._measured = self.sent, self._loop.time()
        if self.broken is None:
            for is_large, pieces in itertools.groupby(outbox, _is_large):
                for data in pieces if is_large else (b"".join(pieces),):
                    self._given += len(data)
                    self._transport.write(data)

    def _tick(self, heard: int, taken: int, left: int, stuck: int) -> None:
        """Count the ticks in which the server sent nothing and took no data, and give up after enough of them.

        Ticks are counted, not timed. So after a pause of this process, it first reads the data that came meanwhile.

        Parameters:
            heard, taken, left: at the last tick, `_heard`, the bytes that the server had taken, and those left to take.
            stuck: how many ticks in a row the server has been silent.
        """
        if not self._pending:
            self._ticking = False
            return
        left_now = self._transport.get_write_buffer_size()
        taken_now = self._given - left_now
        is_alive = heard != self._heard or (left and taken != taken_now)
        stuck = 0 if is_alive else stuck + 1
        # The first tick was counted when the command was sent.
        if (stuck - 0.5) * self._tick_for > self.patience:
            self._abandon(Silent(f"Redis has not answered for {self.patience:g} s"))
            return
        self._loop.call_later(self._tick_for, self._tick, self._heard, taken_now, left_now, stuck)

    # -- replies ----------------------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        """See `asyncio.BufferedProtocol`."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """See `asyncio.BufferedProtocol`."""
        self._heard += 1
        replies, pending, came_at = self._replies, self._pending, self._loop.time()
        try:
            replies.feed(self._buffer, 0, nbytes)
            while (reply := replies.gets(False)) is not _MORE:
                if isinstance(reply, hiredis.PushNotification):
                    # The user's client has asked the server for push messages, which answer no command.
                    continue
                if isinstance(reply, ConnectionError):
                    # This error concerns the connection, not the command.
                    raise reply
                if not pending:
                    raise InvalidResponse(f"a reply that no command has asked for: {reply!r}")
                on_reply = pending.popleft()
                try:
                    on_reply(reply)
                except Exception as error:
                    on_reply(InvalidResponse(f"the reply does not fit the command ({type(error).__name__}: {error})"))
            if self._measured is not None and self.sent - len(pending) >= self._measured[0]:
                self._on_answer(came_at - self._measured[1])
                self._measured = None
        except Exception as error:
            # An error reply may be unreadable, too: redis-py parses a number in errors such as MOVED.
            self.abandon(str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""
        # When redis-py closes its end of the connection, it waits for this call.
        self._before.connection_lost(exc)
        self.abandon(str(exc or CLOSED))

    # -- the end ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Wait until the connection breaks or this call is cancelled, then close the connection.

        Raises:
            StoreUnavailable: why it broke.
        """
        try:
            await self._ended.wait()
        finally:
            self._break(Closed("the connection to Redis was closed"))
            # `close` would wait until a hung server has taken the written data.
            self._transport.abort()
        assert self.broken is not None
        raise type(self.broken)(str(self.broken))

    def abandon(self, reason: str) -> None:
        """End the connection, and give `reason` as an error to every waiting command."""
        self._abandon(StoreUnavailable(reason))

    def _abandon(self, error: StoreUnavailable) -> None:
        self._break(error)
        self._ended.set()

    def _break(self, error: StoreUnavailable) -> None:
        if self.broken is None:
            self.broken = error
        while self._pending:
            self._refuse(self._pending.popleft())

    def _refuse(self, on_reply: Callable[[Any], None]) -> None:
        """Tell a command why it gets no reply."""
        assert self.broken is not None
        on_reply(type(self.broken)(str(self.broken)))
