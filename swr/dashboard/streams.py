"""Server-sent events: the state of the fleet every second, and what happens as it comes."""

import time
from collections.abc import AsyncIterator
from typing import Any, Final

import anyio

from swr.dashboard.hub import Hub
from swr.dashboard.json import dumps
from swr.dashboard.state import State, Tick

# Seconds. A stream ends after a while, and the browser makes another at once. A server that shuts down waits for its
# streams, and no stream learns of that: many are given five seconds to stop, or restart at each change of a file.
_LASTS: Final = 4.0
_EVERY: Final = 0.25
_RETRY: Final = b"retry: 300\n\n"


class Position:
    """The last message of a stream, as the browser repeats it when it connects again.

    Parameters:
        text: what the browser has repeated; empty or foreign: nothing was sent.
        process: the id of this process; the numbers of another mean nothing here.
        hub: whose numbers these are.
    """

    def __init__(self, text: str, process: str, hub: Hub) -> None:
        self._process = process
        # A browser that comes for the first time gets the latest events.
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
        position: what was sent before.
        calls: whether single calls are wanted.
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
