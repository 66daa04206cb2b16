"""The messages about what happens: events, requests and calls as they come, and the life of a key."""

from typing import Literal, TypedDict

from swr.dashboard.parts import Key, Why

ReadState = Literal["fresh", "stale", "missing", "bypass"]
Layer = Literal["l1", "redis", "load", "flight", "app"]


class Happening(TypedDict):
    """An event of a cache.

    Attributes:
        t: when.
        kind: the name of its class in `swr.events`, such as "LoadFailed".
        process: the id of the process.
        text: a sentence that says it.
        key: the key, if it is about one.
        row: the loader, route, tag or queue, if it is about one; else null.
        bad: whether it means that something is wrong.
    """

    t: float
    kind: str
    process: str
    text: str
    key: Key | None
    row: str | None
    bad: bool


class Events(TypedDict):
    """Events, as they came.

    Attributes:
        events: the oldest first.
        dropped: how many were left out since the last message, because too many came.
    """

    events: list[Happening]
    dropped: int


class CallSeen(TypedDict):
    """A request, or a call of a loader.

    Attributes:
        t: when it was answered.
        kind: "request" or "call".
        what: "GET /rankings/ATL", or the loader's template. Values of a query are hidden.
        state: what the reader was given.
        layer: what answered: the local cache, Redis, an own load, the load of another reader, or the app past the
            cache; null if that is not known.
        seconds: how long it took; null if that was not measured.
        process: the id of the process.
        key: null if it has none.
        why: why it was not cached; null if it was.
        status: of the response; null for a call.
    """

    t: float
    kind: Literal["request", "call"]
    what: str
    state: ReadState
    layer: Layer | None
    seconds: float | None
    process: str
    key: Key | None
    why: Why | None
    status: int | None


class Calls(TypedDict):
    """Requests and calls, as they came.

    Attributes:
        calls: the oldest first.
        dropped: how many were left out since the last message, because too many came.
    """

    calls: list[CallSeen]
    dropped: int


class EntryLife(TypedDict):
    """The entry of a key, without its value.

    Attributes:
        state: "fresh", "stale", "error" (served only if a load fails), or "missing" (kept for its validators).
        loaded_at: when its load began.
        fresh_until, stale_until, error_until: until when it is fresh, may be served stale, and after a failed load.
        version: later ones of the same key are greater.
        bytes: how long it is where it is stored; null if that is not known.
        tags: that it carries; those of URLs without their queries.
        marked_stale: whether somebody has marked it stale.
        layer: "l1" or "redis": where it was found.
    """

    state: str
    loaded_at: float
    fresh_until: float
    stale_until: float
    error_until: float
    version: int
    bytes: int | None
    tags: list[str]
    marked_stale: bool
    layer: str


class LeaseLife(TypedDict):
    """The lease of a key: who may load it.

    Attributes:
        kind: "loading", or "backoff" after failures.
        until: when it ends unless it is renewed.
        failures: in a row.
    """

    kind: str
    until: float
    failures: int


class Moment(TypedDict):
    """The life of a key, as far as the process that answers saw it.

    Attributes:
        t: when.
        kind: "loaded", "failed", "hit", "stale", "missing", "invalidated" or "marked stale".
        text: a phrase that says it.
    """

    t: float
    kind: str
    text: str


class KeyLife(TypedDict):
    """The life of one key.

    Attributes:
        now: the moment.
        key: which.
        row: the name of its loader or route; null if that is not known.
        entry: what is stored; null: nothing.
        lease: null: no process loads it, and it does not back off.
        moments: the last 50, the oldest first; only those that happened while somebody watched.
        note: what could not be found out, and why; or "".
    """

    now: float
    key: Key
    row: str | None
    entry: EntryLife | None
    lease: LeaseLife | None
    moments: list[Moment]
    note: str
