"""Server-sent events: the state of the fleet every second, and events and calls as they come."""

import time
from collections.abc import AsyncIterator
from typing import Any, Final

import anyio

from swr.dashboard.hub import Hub
from swr.dashboard.json import dumps
from swr.dashboard.state import State, Tick

# Seconds after which a stream ends, and the browser connects again at once. A server that shuts down waits for open
# streams, but cannot tell them. Servers often have only five seconds to stop, or restart at each change of a file.
_LASTS: Final = 4.0
# Seconds between two checks for something to send.
_EVERY: Final = 0.25
_RETRY: Final = b"retry: 300\n\n"


class Position:
    """The position of a stream, which is the id of each message. A browser that connects again sends the last id.

    Parameters:
        text: the id that the browser sent. If it is empty or invalid, the stream is new.
        process: the id of this process. Numbers of events and calls from another process mean nothing here.
        hub: numbers the events and calls.
    """

    def __init__(self, text: str, process: str, hub: Hub) -> None:
        self._process = process
        # A new stream begins with the last events.
        self.at, self.happenings, self.calls = 0.0, 0, 0
        own, _, rest = text.partition(" ")
        numbers = rest.split(" ")
        if len(numbers) == 3 and _is_number(numbers[0].replace(".", "", 1)) and all(map(_is_number, numbers[1:])):
            self.at = float(numbers[0])
            if own == process:
                self.happenings = min(int(numbers[1]), hub.happenings.number)
                self.calls = min(int(numbers[2]), hub.calls.number)
                return
        self.happenings = max(0, hub.happenings.number - _SHOWN_AT_FIRST)
        self.calls = max(0, hub.calls.number - _SHOWN_AT_FIRST)

    def __str__(self) -> str:
        return f"{self._process} {int(self.at * 1000) / 1000:.3f} {self.happenings} {self.calls}"


_SHOWN_AT_FIRST: Final = 50


def _is_number(text: str) -> bool:
    return len(text) <= 20 and text.isdecimal() and text.isascii()


async def stream(hub: Hub, position: Position, *, calls: bool) -> AsyncIterator[bytes]:
    """Yield the events of one stream.

    Parameters:
        hub: has the state, the events and the calls.
        position: the position at which the stream begins.
        calls: whether to send calls.
    """
    ends, last = time.monotonic() + _LASTS, None
    yield _RETRY
    while time.monotonic() < ends:
        await hub.watch()
        if hub.state is not None and hub.state is not last:
            last = hub.state
            tick, position.at = _tick(hub, last, position.at), last["now"]
            yield _event("state", tick, position)
        found, dropped = hub.happenings.since(position.happenings)
        if found or dropped:
            position.happenings = hub.happenings.number
            yield _event("events", {"events": found, "dropped": dropped}, position)
        found, dropped = hub.calls.since(position.calls) if calls else ([], 0)
        if found or dropped:
            position.calls = hub.calls.number
            yield _event("calls", {"calls": found, "dropped": dropped}, position)
        await anyio.sleep(_EVERY)


def _tick(hub: Hub, state: State, at: float) -> Tick:
    since = hub.fleet.remembered.since(at)
    return {"state": state, "points": since["points"], "marks": since["marks"]}


def _event(name: str, data: Any, position: Position) -> bytes:
    return b"event: %b\nid: %b\ndata: %b\n\n" % (name.encode(), str(position).encode(), dumps(data))
