"""The client's side of a run of the app: the messages for one client, and whether it still reads them."""

from collections import deque
from typing import Final

import anyio
from starlette.types import Message, Receive, Send

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
        "_added",
        "_is_closed",
        "_messages",
        "_passes",
        "_receive",
        "_taken",
        "error",
        "has_left",
        "is_attached",
        "is_begun",
        "is_complete",
    )

    def __init__(self, receive: Receive | None = None) -> None:
        self._receive = receive
        self._messages: deque[Message] = deque()
        self._added, self._taken = anyio.Event(), anyio.Event()
        # Set when nothing will be stored: then the client alone needs the run.
        self._passes = anyio.Event()
        self._is_closed = False
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

    async def deliver(self, send: Send) -> None:
        """Send the messages in the client's own task, so that a slow client delays no other."""
        while True:
            while self._messages:
                try:
                    await send(self._messages[0])
                except Exception as error:
                    self.error = error
                    self.has_left = True
                    self.is_attached = self.is_passing
                    self._messages.clear()
                    self._taken.set()
                    return
                self._messages.popleft()
                self._taken.set()
            self._added = anyio.Event()
            await self._added.wait()

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
            self._messages.append(message)
            self._added.set()
            if wait or self.is_passing:
                await self.drain()
        if self.is_passing and self.error is not None:
            # The app learns of it once, as it would without the cache.
            error, self.error, self.is_attached = self.error, None, False
            raise error

    async def drain(self) -> None:
        """Wait until the client has taken all messages, or is gone."""
        while self._messages and self.is_attached:
            self._taken = anyio.Event()
            await self._taken.wait()

    async def receive(self) -> Message:
        """Return the client's next message, as the app's `receive`.

        The client's disconnect is held back until the response passes through: an app that hears of it would stop,
        and others wait for the response.
        """
        while self._receive is None or not self.is_attached:
            await anyio.sleep_forever()
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.has_left = True
            await self._passes.wait()
        return message
