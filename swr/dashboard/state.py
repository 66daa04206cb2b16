"""The JSON messages of the dashboard, and its routes. The page, `swr top` and programs read the same messages.

All paths are relative to the mount point of the app. Times are seconds since 1970 by the clock of the process that
answers, durations are seconds. An unknown field is null. Text from keys, tags and errors may contain any character,
markup included: treat it as data.

| method and path | request | response |
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

`State` and `History` are below, and their parts are in `parts`. `moments` has events, calls and the life of a key.
`targets` has the arguments of actions.

NAME of an action: `refresh`, `invalidate`, `mark-stale`, `fail-next`, `hang`, `retry-dead`, `purge-dead`.

The stream has these events; the data of each is one JSON object:

| event | data | when |
| --- | --- | --- |
| `state` | `Tick` | at once, then every second |
| `events` | `Events` | as they come, at most four times a second |
| `calls` | `Calls` | as they come, at most four times a second, with `?calls=1` |

Future releases may add fields to any message. Readers must ignore unknown fields.
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
    """The present state, as the page shows it.

    Attributes:
        now: the present time.
        namespace: the namespace of the cache.
        served_by: the id of the process that answers; null if that process is not part of the fleet.
        swr: the version of swr in the process that answers.
        fleet: whether the figures cover all processes that report; false: they cover at most the process that answers.
        note: why other processes are not shown, or ""; for example "The cache is in the memory of this process."
        actions: whether the routes under `actions/` may be used.
        simulate: whether the actions `fail-next` and `hang` may be used.
        window: the number of seconds that counts and shares cover.
        problems: the present problems, errors first.
        totals: all rows together.
        nodes: the Redis servers; empty if the cache is in memory.
        processes: the processes that report, and for 15 minutes those that have ended.
        rows: loaders and routes, at most 100: first the failing ones, and in both groups the busiest first.
        hottest: the keys that are read most, at most 20.
        hanging: loads that run unusually long, the longest first, at most 20.
        uncached: why requests were not cached, the most frequent reason first.
        queues: the queues of refreshers.
        simulated: the faults that are simulated now.
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
    """The history that the answering process keeps, at most 15 minutes.

    Attributes:
        points: the points, the oldest first. Times in which no process could be seen have no points.
        marks: the marks, in the order in which they were added.
    """

    points: list[Point]
    marks: list[Mark]


class Tick(TypedDict):
    """The message that the stream sends every second.

    Attributes:
        state: the present state.
        points: the points since the last tick.
        marks: the marks since the last tick.
    """

    state: State
    points: list[Point]
    marks: list[Mark]
