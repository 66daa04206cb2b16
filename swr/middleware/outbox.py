"""The client's side of a run of the app: the messages for one client, and whether it still reads them."""

from collections import deque
from collections.abc import Callable
from typing import Final

import anyio
from starlette.types import Message, Receive, Send

from swr.engine.one_shot_event import OneShotEvent
from swr.middleware.messages import begin_with
from swr.middleware.pieces import joined

_LEFT: Final[Message] = {"type": "http.disconnect"}
_BODY: Final = "http.response.body"
# swr joins pieces up to this many bytes. For a longer piece, the overhead of its message is small.
_SHORT: Final = 256
# The last message of a response has one of these types.
_LAST: Final = frozenset({_BODY, "http.response.pathsend", "http.response.zerocopysend"})


class Outbox:
    """A queue of messages for one client.

    The app does not wait for the client of a stored response, because a slow client must not delay the others. It does
    wait if the response passes through.

    Parameters:
        receive: the client's `receive`; None: a background run, which has no client.
        is_holding: whether to hold all messages until `release`. If the response passes through instead, the client
            gets none of them.
    """

    __slots__ = (
        "_held",
        "_is_closed",
        "_is_listening",
        "_lock",
        "_may_hear",
        "_messages",
        "_receive",
        "_released",
        "_send",
        "_taken",
        "_unread",
        "_woken",
        "error",
        "has_left",
        "is_attached",
        "is_begun",
        "is_complete",
        "is_passing",
    )

    def __init__(self, receive: Receive | None = None, *, is_holding: bool = False) -> None:
        self._receive = receive
        self._send: Send | None = None
        # The client's messages that `watch` has read for the app.
        self._unread: deque[Message] = deque()
        # Servers allow one call of `receive` at a time.
        self._lock: anyio.Lock | None = None
        self._messages: deque[Message] = deque()
        # The held messages, and whether messages go out at once.
        self._held: list[Message] = []
        self._released = OneShotEvent()
        if not is_holding:
            self._released.set()
        self._woken, self._taken = OneShotEvent(), OneShotEvent()
        # Set when the app may learn that its client has left, because no other request waits for the run.
        self._may_hear = OneShotEvent()
        # Whether the response only passes through, and nothing of it will be stored.
        self.is_passing = False
        self._is_closed = False
        # Whether the app waits for a message of the client, or has received its disconnect.
        self._is_listening = False
        # Whether messages of the run still go to the client.
        self.is_attached = receive is not None
        # Whether a response to the client has begun, and whether its last message was added.
        self.is_begun = self.is_complete = False
        # Whether the client has disconnected.
        self.has_left = False
        # The exception that `send` raised.
        self.error: Exception | None = None

    @property
    def is_needed(self) -> bool:
        """Return whether the client still waits for messages of the run."""
        return self.is_attached and not self._is_closed

    @property
    def is_holding(self) -> bool:
        """Return whether the client gets the response only once it is stored."""
        return not self._released.is_set()

    def pass_through(self) -> None:
        """Note that the response is for this client only, from now on."""
        self.is_passing = True
        if self.is_holding:
            self.hold_back()
        self.let_hear()

    def let_hear(self) -> None:
        """Let the app learn that its client has left or has its whole answer: no other request waits for the run."""
        self._may_hear.set()

    def release(self) -> None:
        """Send the held messages, and let the app learn that its client has left: the response is stored."""
        self._released.set()
        for message in self._held:
            self._add(message)
        self._held.clear()
        self.let_hear()

    async def put_whole(self, start: Message) -> None:
        """Add an answer without a body, and drop all later messages: the rest of the run is for the store."""
        await self.put(start)
        await self.put({"type": "http.response.body", "body": b""})
        self._is_closed = True

    def hold_back(self) -> None:
        """Drop the held and all later messages, because the client will get another answer."""
        self.is_attached = False
        self._held.clear()

    def detach(self) -> None:
        """Note that the client waits for the run no longer."""
        self.is_attached = False
        self._taken.set()

    async def deliver(self, send: Send, is_over: Callable[[], bool]) -> None:
        """Send the messages in the client's own task, so that a slow client delays no other.

        Parameters:
            is_over: returns whether no more messages come; code that changes its result calls `wake`.
        """
        self._send = send
        while True:
            while self._messages:
                try:
                    await send(_as_sent(self._messages[0]))
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
        """Wait until a message is added, or until something else calls `wake`."""
        self._woken = OneShotEvent()
        await self._woken.wait()

    def wake(self, _flight: object = None) -> None:
        """Wake the client's task, so that it checks again."""
        self._woken.set()

    async def put(self, message: Message, *, wait: bool = False) -> None:
        """Add a message.

        Parameters:
            wait: wait until the client has taken it. A response that passes through always waits.

        Raises:
            Exception: the exception that `send` raised, once, if the response passes through.
        """
        if self.is_attached and self.error is None and not self._is_closed:
            if self.is_holding:
                self._held.append(message)
                return
            if self.is_passing and not self._messages and self._send is not None:
                self._note(message)
                await self._send_now(self._send, message)
                return
            self._add(message)
            if wait or self.is_passing:
                await self.drain()
        if self.is_passing and self.error is not None:
            # The app gets the exception once, as it would without the cache.
            error, self.error, self.is_attached = self.error, None, False
            try:
                raise error
            finally:
                # The traceback refers to this frame and so to the whole run. A reference cycle would keep it in memory.
                del error

    def _note(self, message: Message) -> None:
        self.is_begun = self.is_begun or message["type"] == "http.response.start"
        self.is_complete = self.is_complete or (message["type"] in _LAST and not message.get("more_body", False))

    def _add(self, message: Message) -> None:
        self._note(message)
        if not self._join(message):
            self._messages.append(message)
        self._woken.set()

    def _join(self, message: Message) -> bool:
        """Join a short piece to the last one and return True; not to the first one, which `deliver` may be sending."""
        if message["type"] != _BODY or len(self._messages) < 2 or self._messages[-1]["type"] != _BODY:
            return False
        if len(message["body"]) > _SHORT:
            return False
        whole = joined(self._messages[-1]["body"], message["body"])
        if whole is None:
            return False
        self._messages[-1] = {**message, "body": whole}
        return True

    async def _send_now(self, send: Send, message: Message) -> None:
        """Send a message in the app's own task, as without swr: no other client waits for the run."""
        try:
            await send(message)
        except Exception:
            self.has_left, self.is_attached = True, False
            raise

    async def drain(self) -> None:
        """Wait until the client has taken all messages, or has left."""
        while self._messages and self.is_attached:
            self._taken = OneShotEvent()
            await self._taken.wait()

    async def receive(self) -> Message:
        """Return the client's next message, as the app's `receive`.

        It holds the client's disconnect back until the response is stored or passes through. An app that learns of the
        disconnect would stop, but other requests may wait for the response.
        """
        if self._receive is not None and self.is_attached:
            self._is_listening = True
            message = await self._next()
            if message["type"] != "http.disconnect":
                self._is_listening = False
                return message
        elif self.is_passing:
            # The client has left a response that passes through, so this run is about to be cancelled.
            await anyio.sleep_forever()
        # `Request.is_disconnected` of Starlette polls: it gets the message only if this does not wait.
        if not self._may_hear.is_set():
            await self._may_hear.wait()
        return _LEFT

    async def watch(self, scope: anyio.CancelScope) -> None:
        """Cancel `scope` when the client leaves before it has all of its answer.

        If the response passes through and the app waits for messages, the app gets the disconnect and ends by itself.
        Watching ends at a message with more to come, so that swr does not collect the content of a request.
        """
        message: Message = {}
        while not self.has_left and not message.get("more_body"):
            message = await self._next(for_app=False)
        is_heard = self.is_passing and self._is_listening
        if self.has_left and not self.is_complete and not is_heard:
            scope.cancel()

    def unread_before(self, receive: Receive) -> Receive:
        """Return a `receive` that gives the messages that `watch` has read, and then those of `receive`."""
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
            # These messages came before the client's disconnect.
            return self._unread.popleft()
        if self.has_left:
            return _LEFT
        lock = self._lock = self._lock or anyio.Lock(fast_acquire=True)
        try:
            lock.acquire_nowait()
        except anyio.WouldBlock:
            await lock.acquire()
        try:
            message = _LEFT if self.has_left else await self._receive()
            if message["type"] == "http.disconnect":
                self.has_left = True
            elif not for_app:
                self._unread.append(message)
            return message
        finally:
            lock.release()


def _as_sent(message: Message) -> Message:
    """Return a message with its body as bytes, because servers may refuse a bytearray."""
    body = message.get("body")
    return {**message, "body": bytes(body)} if isinstance(body, bytearray) else message
