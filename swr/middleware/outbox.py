"""The client's side of a run of the app: the messages for one client, and whether it still reads them."""

from collections import deque
from collections.abc import Callable
from typing import Final

import anyio
from starlette.types import Message, Receive, Send

from swr.engine.one_shot_event import OneShotEvent
from swr.middleware.messages import begin_with

_LEFT: Final[Message] = {"type": "http.disconnect"}
# The last message of a response has one of these types.
_LAST: Final = frozenset({"http.response.body", "http.response.pathsend", "http.response.zerocopysend"})


class Outbox:
    """Holds the messages for one client until the client has taken them.

    A stored response does not wait for its client: a slow reader must not delay the others. A response that
    passes through does.

    Parameters:
        receive: of the client; None: a background run, which has no client.
    """

    __slots__ = (
        "_is_closed",
        "_is_listening",
        "_lock",
        "_messages",
        "_passes",
        "_receive",
        "_send",
        "_taken",
        "_unread",
        "_woken",
        "error",
        "has_left",
        "is_attached",
        "is_begun",
        "is_complete",
    )

    def __init__(self, receive: Receive | None = None) -> None:
        self._receive = receive
        self._send: Send | None = None
        # The client's messages that `watch` has read for the app.
        self._unread: deque[Message] = deque()
        # Servers allow one call of `receive` at a time.
        self._lock: anyio.Lock | None = None
        self._messages: deque[Message] = deque()
        self._woken, self._taken = OneShotEvent(), OneShotEvent()
        # Set when nothing will be stored: then the client alone needs the run.
        self._passes = OneShotEvent()
        self._is_closed = False
        # Whether the app waits for a message, or has got the last one.
        self._is_listening = False
        # Whether the client still reads.
        self.is_attached = receive is not None
        # Whether the client was given the beginning of a response, and all of it.
        self.is_begun = self.is_complete = False
        # Whether the client has disconnected.
        self.has_left = False
        # What `send` raised.
        self.error: Exception | None = None

    @property
    def is_passing(self) -> bool:
        """Whether the response only passes through, and nothing of it will be stored."""
        return self._passes.is_set()

    @property
    def is_needed(self) -> bool:
        """Whether the client still waits for messages of the run."""
        return self.is_attached and not self._is_closed

    def pass_through(self) -> None:
        """From now on the response is for this client only."""
        self._passes.set()

    def close(self) -> None:
        """Take no more messages: the client has its answer, and the rest is for the store."""
        self._is_closed = True

    def hold_back(self) -> None:
        """Take no more messages: the client will be answered in another way."""
        self.is_attached = False

    def detach(self) -> None:
        """The client is gone."""
        self.is_attached = False
        self._taken.set()

    async def deliver(self, send: Send, is_over: Callable[[], bool]) -> None:
        """Send the messages in the client's own task, so that a slow client delays no other.

        Parameters:
            is_over: whether no more messages come; whatever changes that calls `wake`.
        """
        self._send = send
        while True:
            while self._messages:
                try:
                    await send(self._messages[0])
                except Exception as error:
                    self.error = error
                    self.has_left = True
                    self.is_attached = self.is_passing
                    self._messages.clear()
                else:
                    self._messages.popleft()
                self._taken.set()
            if is_over():
                return
            await self.wait()

    async def wait(self) -> None:
        """Wait until a message is added, or something else happens that the client's task has to look at."""
        self._woken = OneShotEvent()
        await self._woken.wait()

    def wake(self, _flight: object = None) -> None:
        """Have the client's task look again."""
        self._woken.set()

    async def put(self, message: Message, *, wait: bool = False) -> None:
        """Add a message.

        Parameters:
            wait: wait until the client has taken it. A response that passes through always waits.

        Raises:
            Exception: what `send` raised, once, if the response passes through.
        """
        if self.is_attached and self.error is None and not self._is_closed:
            self.is_begun = self.is_begun or message["type"] == "http.response.start"
            self.is_complete = self.is_complete or (message["type"] in _LAST and not message.get("more_body", False))
            if self.is_passing and not self._messages and self._send is not None:
                await self._send_now(self._send, message)
                return
            self._messages.append(message)
            self._woken.set()
            if wait or self.is_passing:
                await self.drain()
        if self.is_passing and self.error is not None:
            # The app learns of it once, as it would without the cache.
            error, self.error, self.is_attached = self.error, None, False
            try:
                raise error
            finally:
                # Its traceback leads to this frame, and to all that the run uses. In a circle none would be freed soon.
                del error

    async def _send_now(self, send: Send, message: Message) -> None:
        """Send a message in the app's task: nobody else waits for the run, and the app is as near as without swr."""
        try:
            await send(message)
        except Exception:
            self.has_left, self.is_attached = True, False
            raise

    async def drain(self) -> None:
        """Wait until the client has taken all messages, or is gone."""
        while self._messages and self.is_attached:
            self._taken = OneShotEvent()
            await self._taken.wait()

    async def receive(self) -> Message:
        """Return the client's next message, as the app's `receive`.

        The client's disconnect is held back until the response passes through: an app that hears of it would stop,
        and others wait for the response.
        """
        while self._receive is None or not self.is_attached:
            await anyio.sleep_forever()
        self._is_listening = True
        message = await self._next()
        if message["type"] == "http.disconnect":
            await self._passes.wait()
        else:
            self._is_listening = False
        return message

    async def watch(self, scope: anyio.CancelScope) -> None:
        """Cancel `scope` when the client leaves before it has all of its answer.

        If the response passes through and its app listens, the app hears of it and ends in its own way.
        """
        message: Message = {}
        while not self.has_left and not message.get("more_body"):
            message = await self._next(for_app=False)
        is_heard = self.is_passing and self._is_listening
        if self.has_left and not self.is_complete and not is_heard:
            scope.cancel()

    def unread_before(self, receive: Receive) -> Receive:
        """Return a `receive` that gives what `watch` has read, and after it the messages of `receive`."""
        while self._unread:
            receive = begin_with(self._unread.pop(), receive)
        return receive

    async def _next(self, *, for_app: bool = True) -> Message:
        """Return the client's next message.

        Parameters:
            for_app: whether the app gets it; otherwise it stays the app's next message.
        """
        assert self._receive is not None
        if for_app and self._unread:
            # All that came before the client's disconnect: the handler has waited for the end of the request.
            return self._unread.popleft()
        self._lock = self._lock or anyio.Lock(fast_acquire=True)
        async with self._lock:
            message = _LEFT if self.has_left else await self._receive()
            if message["type"] == "http.disconnect":
                self.has_left = True
            elif not for_app:
                self._unread.append(message)
            return message
