"""The JSON messages of the dashboard, and its routes. The page, `swr top` and programs read the same.

All paths are relative to where the app is mounted. Moments are seconds since 1970 by the clock of the process that
answers, durations are seconds. A field that cannot be known is null. Text from keys, tags and errors is data: it may
hold any character, markup included.

| method and path | what it takes | what it answers |
| --- | --- | --- |
| GET `./` | | the page |
| GET `./static/NAME` | | its files |
| GET `./state` | | `State` |
| GET `./docs/PAGE` | | a page of the documentation, as HTML; links of `Why` lead there |
| GET `./history` | `?seconds=900` | `History` |
| GET `./stream` | `?calls=1` for `calls` too | server-sent events, see below |
| GET `./key` | `?id=ID`, or `?key=TEXT` | `KeyLife` |
| POST `./actions/NAME` | `Target` as JSON, and the field `X-SWR-Action: 1` | `Done`, or `Refusal` with 4xx or 503 |
| POST `./invalidate` | a form or JSON, and `Authorization: Bearer TOKEN` | `Done`, or `Refusal` |

`State` and `History` are below, their parts in `parts`. `moments` has events, calls and the life of a key, `targets`
what actions take.

NAME of an action: `refresh`, `invalidate`, `mark-stale`, `fail-next`, `hang`, `retry-dead`, `purge-dead`.

The stream has these events; the data of each is one JSON object:

| event | data | when |
| --- | --- | --- |
| `state` | `Tick` | at once, then every second |
| `events` | `Events` | as they come, at most four times a second |
| `calls` | `Calls` | likewise, with `?calls=1` |

A field may be added to any message; readers ignore what they do not know.
"""

from typing import TypedDict

from swr.dashboard.parts import (
    Hanging,
    Hot,
    Mark,
    Node,
    Point,
    Problem,
    Process,
    Queue,
    Row,
    Simulated,
    Totals,
    Uncached,
)


class State(TypedDict):
    """All that is known now: what the page shows.

    Attributes:
        now: the moment.
        namespace: of the cache.
        served_by: the id of the process that answers; null beside the fleet.
        swr: the version of swr that answers.
        fleet: whether the figures are those of all processes that report; false: of the process that answers alone.
        note: why it is alone, or ""; for example "the cache is in the memory of this process".
        actions: whether the routes under `actions/` may be used.
        simulate: whether `fail-next` and `hang` may be.
        window: over how many seconds counts and shares are.
        problems: what is wrong now, the worst first.
        totals: all rows together.
        nodes: servers of Redis; none: everything is in memory.
        processes: those that report, and for 15 minutes those that have ended.
        rows: loaders and routes: first those that fail, of each the busiest first; 100 at most.
        hottest: the keys that are read most, 20 at most.
        hanging: loads that run long, the longest first, 20 at most.
        uncached: why requests were not cached, the most frequent first.
        queues: of refreshers.
        simulated: faults that are simulated now.
    """

    now: float
    namespace: str
    served_by: str | None
    swr: str
    fleet: bool
    note: str
    actions: bool
    simulate: bool
    window: float
    problems: list[Problem]
    totals: Totals
    nodes: list[Node]
    processes: list[Process]
    rows: list[Row]
    hottest: list[Hot]
    hanging: list[Hanging]
    uncached: list[Uncached]
    queues: list[Queue]
    simulated: list[Simulated]


class History(TypedDict):
    """The memory of the process that answers: 15 minutes at most.

    Attributes:
        points: the oldest first; times in which no process counted are missing.
        marks: the oldest first.
    """

    points: list[Point]
    marks: list[Mark]


class Tick(TypedDict):
    """The message that the stream brings every second.

    Attributes:
        state: all that is known now.
        points: those since the last tick.
        marks: likewise.
    """

    state: State
    points: list[Point]
    marks: list[Mark]
