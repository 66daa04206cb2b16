"""A fleet as its digests tell: processes on one server and on a cluster, faults that reach them, and what is wrong."""

import asyncio
import io
import itertools
import json
import math
import os
import re
import signal
import threading
import time
import urllib.request

import anyio
import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

import swr
from examples.demo.servers import free_port
from swr import Cache, ConfigurationError, Policy, Refresher, StoreUnavailable
from swr.cli import top
from swr.cli.main import main
from swr.dashboard import fleet as fleet_module
from swr.dashboard import hub as hub_module
from swr.dashboard import streams
from swr.dashboard.fleet import GONE_AFTER, Fleet, Seen
from swr.dashboard.history import REMEMBERED_FOR
from swr.dashboard.keys import Keys
from swr.dashboard.own_token import own_token
from swr.dashboard.sums import WINDOW
from swr.dashboard.telling import About, call_of, state_of
from swr.events import CommandRefused, CommitRejected, Invalidated, RenewalRejected, RoundEnded, RoundQueued
from swr.http.request import host_tag, url_tag
from swr.refreshers.queue.queue import Queue
from swr.reports.digest import (
    FORMAT,
    LONGEST,
    CallReport,
    Digest,
    Fault,
    HangingReport,
    HappeningReport,
    HotReport,
    NodeReport,
    RowReport,
    added,
    decode,
    decode_faults,
    encode,
    longest,
)
from swr.reports.reporter import cleaned
from swr.reports.rows import Rows
from swr.stats.counts import OTHER
from swr.stores.redis import digests as digests_module
from swr.stores.redis.replies import error_of
from tests.servers import kinds
from tests.test_refusals import without_memory
from tests.test_topologies import ClusterOfSix

pytestmark = pytest.mark.anyio
ACT = {"x-swr-action": "1", "sec-fetch-site": "same-origin"}
JSON_ACT = {**ACT, "content-type": "application/json"}


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def quick(monkeypatch):
    """Look and report often: no test waits for a second to go by."""
    monkeypatch.setattr(hub_module, "_WATCHED_EVERY", 0.05)
    monkeypatch.setattr(streams, "_LASTS", 0.4)
    monkeypatch.setattr(digests_module, "_EVERY", 0.0)
    monkeypatch.setattr("swr.stores.redis.server_link._HEARTBEAT", 0.05)
    # Three that are late would count the server as unreachable, 0.15 s after a busy machine has stood still.
    monkeypatch.setattr("swr.stores.redis.server_link._MISSED_HEARTBEATS", 1200)


def page_of(cache, **options):
    """Return a client of the dashboard of a cache."""
    app = Starlette(routes=[Mount("/swr", swr.dashboard(cache, **options))])
    transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
    cookies = {"swr-dashboard": own_token()}
    return httpx.AsyncClient(transport=transport, base_url="http://localhost/swr", cookies=cookies)


async def state_when(http, is_so):
    """Return the state as soon as something is so in it."""
    with anyio.fail_after(60):
        while True:
            state = (await http.get("/state")).json()
            if is_so(state):
                return state
            await anyio.sleep(0.02)


# -- pure: what digests add up to -------------------------------------------------------------------------------------


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def digest_of(name, at, rows=(), **options):
    """Return a digest that a process makes at a moment; a small one is that many seconds after 999."""
    at = at + 999 if at < 999 else at
    options = {"release": "", "started": 0.0, "host": "h", "pid": 1, **options}
    return Digest(FORMAT, name, options.pop("host"), options.pop("pid"), options.pop("release"), "0",
                  options.pop("started"), at, rows=tuple(rows), **options)  # fmt: skip


def about(**options):
    nobody = digest_of("own", 0.0, nodes=options.pop("nodes", ()))
    known = {"queues": [], "fleet": True, "note": "", **options}
    return About("swr", None, False, False, known["fleet"], known["note"], Seen(nobody, 0.0, 0.0), known["queues"])


def told(fleet, clock, **options):
    return state_of(clock(), fleet, Keys(), about(**options))


def test_counts_are_differences_of_digests_and_whole_for_a_new_process():
    clock = Clock()
    fleet = Fleet(clock, clock)
    fleet.look({"a": digest_of("a", 1.0, [RowReport("x", False, fresh=1000)], started=1.0)}, is_whole=True)
    assert told(fleet, clock)["rows"][0]["fresh"] == 0
    clock.now += 1
    rows = [RowReport("x", False, fresh=1010, missing=10, load=10, loads=10, seconds=(0, 10))]
    new = [RowReport("x", False, fresh=5), RowReport("/r", True, stale=4)]
    fleet.look({"a": digest_of("a", 2.0, rows), "b": digest_of("b", 2.0, new, started=1000.5)}, is_whole=True)
    state = told(fleet, clock)
    assert [(row["name"], row["kind"], row["fresh"]) for row in state["rows"]] == [
        ("x", "loader", 15),
        ("/r", "route", 0),
    ]
    assert state["totals"]["without_waiting"] == 1 - 10 / 29
    assert 0.001 < state["totals"]["p99"] <= 0.0025
    assert state["processes"][0]["reads_per_s"] == 20
    # A digest that has not changed is not counted again; one that went back counts for nothing.
    clock.now += 1
    fleet.look({"a": digest_of("a", 2.0, rows), "b": digest_of("b", 3.0, [RowReport("x", False)])}, is_whole=True)
    assert told(fleet, clock)["rows"][0]["fresh"] == 15
    clock.now += WINDOW + 1
    fleet.look({}, is_whole=False)
    assert told(fleet, clock)["totals"]["fresh"] is None
    points = fleet.remembered.since(0.0)["points"]
    assert [(point["fresh"], point["seconds"]) for point in points] == [(15, 1), (0, 1)]
    assert points[0]["waited"] == 10


def test_process_with_an_old_digest_is_gone_at_the_first_look():
    clock = Clock()
    fleet = Fleet(clock, clock)
    digests = {"a": digest_of("a", clock() - 20), "b": digest_of("b", clock() - 1, pid=2)}
    fleet.look(digests, is_whole=True, ages={"a": 20.0, "b": 1.0})
    assert [seen.digest.id for seen in fleet.live()] == ["b"]
    problems = told(fleet, clock)["problems"]
    assert [(problem["kind"], problem["target"], problem["since"]) for problem in problems] == [
        ("process", "a", clock() - 20)
    ]
    assert fleet.remembered.since(0.0)["marks"] == []


def test_hanging_loads_of_one_loader_are_one_problem():
    clock = Clock()
    fleet = Fleet(clock, clock)
    hanging = [HangingReport(f"x:{n}", "x", clock() - 10 - n, 300.0) for n in range(3)]
    hanging += [HangingReport(f"{n}", "", clock() - 10 - n, 300.0) for n in range(2)]
    fleet.look({"a": digest_of("a", clock(), hanging=tuple(hanging))}, is_whole=True)
    assert sorted(problem["text"] for problem in told(fleet, clock)["problems"]) == [
        "A load of 1 has run for 11 s, and 1 more of an unknown route hangs.",
        "A load of x:2 has run for 12 s, and 2 more of x hang.",
    ]


def test_late_report_of_a_process_makes_no_peak_in_plots_and_rates():
    """Redis was unreachable for thirty seconds: what the process did then is not what it does now."""
    clock = Clock()
    fleet = Fleet(clock, clock)
    fleet.look({"a": digest_of("a", clock(), [RowReport("x", False)])}, is_whole=True)
    for _ in range(29):
        clock.now += 1
        fleet.look({}, is_whole=False)
    clock.now += 1
    row = RowReport("x", False, fresh=300, loads=31, failed=1, seconds=(30, 1))
    new = RowReport("y", False, fresh=300)
    digests = {
        "a": digest_of("a", clock(), [row, new], invalidations=60, uncached={"cookie": 90}),
        # It began during the outage. Its clock is wrong.
        "b": digest_of("b", clock() + 3600, [row], started=clock() + 3580),
    }
    fleet.look(digests, is_whole=True)
    last = fleet.remembered.since(0.0)["points"][-1]
    assert (last["seconds"], last["fresh"], last["loads"], last["failed"], last["processes"]) == (1, 35, 4, 2, 2)
    state = told(fleet, clock)
    assert {row["name"]: row["reads_per_s"] for row in state["rows"]} == {"x": 25.0, "y": 10.0}
    assert state["totals"]["reads_per_s"] == 35.0
    assert state["totals"]["invalidations_per_s"] == 2.0
    assert [reason["count"] for reason in state["uncached"]] == [3]
    # A failure is shown, however long the outage was.
    assert state["rows"][0]["failed"] == 2


def test_plots_mark_deploys_processes_outages_and_invalidations():
    clock = Clock()
    fleet = Fleet(clock, clock)
    old = HappeningReport(3, 1.0, "Invalidated", "before anybody looked")
    fleet.look({"a": digest_of("a", 1.0, release="1", happenings=(old,))}, is_whole=True)
    clock.now += 1
    events = (
        HappeningReport(4, 1001.0, "Invalidated", "A tag was invalidated.", None, "t"),
        HappeningReport(5, 1001.0, "StoreUnreachable", "Redis is unreachable: x", bad=True),
        HappeningReport(6, 1001.0, "LoadFailed", "failed", "k", "x", True),
    )
    digests = {
        "a": digest_of("a", 2.0, release="1", happenings=(old, *events)),
        "b": digest_of("b", 2.0, release="2", started=1000.5, pid=2),
        "c": digest_of("c", 2.0, release="2", started=1000.6, pid=3),
    }
    happenings, _, _ = fleet.look(digests, is_whole=True)
    assert [event.number for _, event in happenings] == [4, 5, 6]
    many = tuple(HappeningReport(n, 1002.0, "Invalidated", "A key was invalidated.", "k") for n in (7, 8))
    reachable = HappeningReport(9, 1002.0, "StoreReachable", "Redis is reachable again, after 1.0 s.")
    clock.now += 1
    fleet.look({"a": digest_of("a", 3.0, release="1", happenings=(*many, reachable))}, is_whole=True)
    marks = [(mark["kind"], mark["text"]) for mark in fleet.remembered.since(0.0)["marks"]]
    assert marks == [
        ("deploy", "release 2 (process 2 on h)"),
        ("process", "process 3 on h began"),
        ("invalidation", "A tag was invalidated. (t)"),
        ("outage", "Redis is unreachable: x"),
        ("invalidation", "2 invalidations"),
        ("reachable", "Redis is reachable again, after 1.0 s."),
    ]
    # A page that is open gets what a process tells late: it told nobody while Redis was unreachable.
    late = HappeningReport(10, clock() - 90, "StoreUnreachable", "Redis is unreachable: y")
    seen, clock.now = clock(), clock() + 1
    fleet.look({"a": digest_of("a", 4.0, release="1", happenings=(late,))}, is_whole=True)
    assert [(mark["kind"], mark["t"]) for mark in fleet.remembered.since(seen)["marks"]] == [("outage", late.at)]
    # One that has missed a digest is shown as silent before it counts as ended.
    fleet.look({}, is_whole=True, ages={"a": 0.3, "b": 1.8})
    assert [one["silent"] for one in told(fleet, clock)["processes"]] == [None, 1.8, None]
    # Where Redis cannot be asked nothing is known of the others.
    clock.now += GONE_AFTER + 1
    fleet.look({}, is_whole=False)
    assert len(fleet.live()) == 3
    assert state_of(clock(), fleet, Keys(), about(fleet=False))["processes"] == []
    # Once it is back, they have time to report again; what lay there all the time is not a sign of a wrong clock.
    old = digest_of("c", clock() - GONE_AFTER, release="2", pid=3)
    fleet.look({"a": digest_of("a", clock(), release="1"), "c": old}, is_whole=True)
    assert [one["gone"] for one in told(fleet, clock)["processes"]] == [False, False, False]
    assert [problem["kind"] for problem in told(fleet, clock)["problems"]] == ["version"]
    clock.now += GONE_AFTER + 1
    fleet.look({"a": digest_of("a", clock(), release="1")}, is_whole=True)
    assert [one["gone"] for one in told(fleet, clock)["processes"]] == [False, True, True]
    problems = {(problem["kind"], problem["target"]) for problem in told(fleet, clock)["problems"]}
    assert ("process", "b") in problems
    # It was only paused.
    fleet.look({"b": digest_of("b", clock(), release="2", pid=2)}, is_whole=True)
    assert not fleet.processes["b"].gone
    # One that says that it ends is no fault, and is marked once.
    seen, clock.now = clock(), clock() + 1
    ends = {"b": digest_of("b", clock(), release="2", pid=2, is_last=True)}
    ends["d"] = digest_of("d", clock(), release="2", pid=4, started=clock() - 0.5, is_last=True)
    for _ in range(2):
        fleet.look(ends, is_whole=True)
    state = told(fleet, clock)
    assert [one["id"] for one in state["processes"] if one["ended"]] == ["b", "d"]
    assert {problem["target"] for problem in state["problems"] if problem["kind"] == "process"} == {"c"}
    marks = [mark["text"] for mark in fleet.remembered.since(seen)["marks"]]
    assert marks == ["process 2 on h ended", "process 4 on h began", "process 4 on h ended"]
    # It was there when nobody looked.
    Fleet(clock, clock).look(ends, is_whole=True)
    clock.now += REMEMBERED_FOR + 1
    fleet.look({}, is_whole=True)
    assert fleet.processes == {}


def test_problems_are_listed_worst_first():
    clock = Clock()
    fleet = Fleet(clock, clock)
    failing = RowReport("x", False, failed=1, backoffs=2, retry_at=1001.0, error=("ValueError", "no", 999.0, "x:1"))
    unnamed = RowReport("", False, backoffs=1, error=("E", "t", 1.0, None))
    lost = NodeReport("r:1", 990.0, "refused")
    digests = {
        "a": digest_of("a", 1.0, [failing, unnamed], release="1", nodes=(lost, NodeReport("r:2")), uncached={"cookie": 3},
                       hanging=(HangingReport("x:2", "x", 960.0, 300.0),), hot=(HotReport("x:1", "x", 0.5),),
                       faults=(("hang", "x", 2000.0), ("fail-next", "{y}", None), ("odd", "z", None)), dropped=4),
        "b": digest_of("b", 1.0, [RowReport("x", False, error=("E", "old", 1.0, None))], release="2", pid=2,
                       nodes=(NodeReport("r:1", 995.0),)),
    }  # fmt: skip
    _, _, dropped = fleet.look(digests, is_whole=True)
    assert dropped == 0
    queue = {
        "name": "q", "strategy": "list", "leader": False, "leads_for": 0.0, "consumers": 0, "round_at": None,
        "backlog": 1, "in_hand": 0, "waiting": 0, "dead": 2, "letters": [],
    }  # fmt: skip
    state = told(fleet, clock, queues=[queue, {**queue, "name": "w", "leader": True, "dead": 1}])
    assert [(problem["level"], problem["kind"], problem["target"]) for problem in state["problems"]] == [
        ("error", "redis", "r:1"),
        ("error", "failing", ""),
        ("error", "failing", "x"),
        ("error", "queue", "q"),
        ("warning", "hanging", "x"),
        ("warning", "dead", "q"),
        ("warning", "dead", "w"),
        ("warning", "version", None),
        ("warning", "simulated", "{y}"),
        ("warning", "simulated", "x"),
        ("warning", "simulated", "z"),
    ]
    assert {problem["remedy"][-1] for problem in state["problems"]} == {"."}
    texts = "\n".join(problem["text"] for problem in state["problems"])
    assert "2 processes cannot reach Redis at r:1: refused" in texts
    assert "Loads of x fail: ValueError: no; 2 keys back off" in texts
    assert "Loads of an unknown route fail: E: t; 1 key backs off" in texts
    assert "The next load of {y} fails" in texts
    node = state["nodes"][0]
    assert (node["name"], node["since"], node["unreachable_from"]) == ("r:1", 990.0, ["a", "b"])
    assert state["processes"][0]["unreachable_since"] == 990.0
    assert state["hanging"][0]["seconds"] == 40.0
    clock.now += 1
    more = msgspec.structs.replace(digests["a"], at=2.0, dropped=9, uncached={"cookie": 5, "private": 1})
    calls = (CallReport(1, 1.0, "GET http://h\n/p?", "GET", "weird", "odd", 0.1, 200, 'fwd=bypass; detail="cookie"'),)
    _, found, dropped = fleet.look({"a": msgspec.structs.replace(more, calls=calls)}, is_whole=True)
    assert (len(found), dropped) == (1, 5)
    assert [(one["why"]["code"], one["count"]) for one in told(fleet, clock)["uncached"]] == [
        ("cookie", 2),
        ("private", 1),
    ]
    seen = call_of("a", calls[0], Keys())
    assert (seen["what"], seen["state"], seen["layer"], seen["why"]["code"]) == ("GET /p", "missing", None, "cookie")
    assert call_of("a", CallReport(1, 1.0, "GET http://h\n", "GET", "fresh", status=200), Keys())["what"] == "GET h"
    assert call_of("a", CallReport(1, 1.0, "k", "", "fresh"), Keys())["what"] == "k"


def test_failing_loader_or_route_is_a_problem_since_its_first_failure():
    clock = Clock()
    fleet = Fleet(clock, clock)
    rows = [RowReport("x", False), RowReport("/r", True)]
    fleet.look({"a": digest_of("a", clock(), rows)}, is_whole=True)
    began = clock.now + 1
    for failed in range(1, 40):
        clock.now += 1
        errors = ("ValueError", "no", clock.now, "x:1"), ("ValueError", "no", clock.now, None)
        rows = [
            RowReport("x", False, failed=failed, error=errors[0]),
            RowReport("/r", True, backoffs=1, error=errors[1]),
        ]
        fleet.look({"a": digest_of("a", clock(), rows)}, is_whole=True)
    assert [problem["since"] for problem in told(fleet, clock)["problems"]] == [began, began]
    clock.now += WINDOW
    fleet.look({"a": digest_of("a", clock(), [rows[0]])}, is_whole=True)
    assert told(fleet, clock)["problems"] == []
    assert fleet.failing == {}


@pytest.mark.parametrize("ahead", [-3600.0, 3600.0])
def test_times_of_a_host_with_a_wrong_clock_are_corrected_and_the_host_is_named(ahead):
    """Its process runs for a day; a load of its has just begun to hang."""
    clock = Clock()
    clock.now = 1e6
    fleet = Fleet(clock, clock)
    fleet.look({}, is_whole=True)
    for reads in (10**6, 10**6 + 5):
        clock.now += 1
        theirs = clock() + ahead
        error = ("E", "no", theirs, None)
        row = RowReport("x", False, fresh=reads, backoffs=1, retry_at=theirs + 9, error=error)
        digest = digest_of(
            "a", theirs, [row], host="wrong", started=theirs - 86_400, hanging=(HangingReport("x:1", "x", theirs - 5),),
            nodes=(NodeReport("r:1", theirs - 2), NodeReport("r:2")), faults=(("hang", "x", theirs), ("hang", "y", None)),
            happenings=(HappeningReport(reads, theirs, "LoadFailed", "no"),),
            calls=(CallReport(reads, theirs, "k", "x", "fresh"),),
        )  # fmt: skip
        happenings, calls, _ = fleet.look({"a": digest, "b": digest_of("b", clock() - 1)}, is_whole=True)
    state = told(fleet, clock)
    assert state["hanging"][0]["seconds"] == 5
    assert state["rows"][0]["fresh"] == 5
    assert (state["rows"][0]["retry_at"], state["rows"][0]["last_error"]["at"]) == (clock() + 9, clock())
    assert state["nodes"][0]["since"] == clock() - 2
    assert [one.at for _, one in (*happenings, *calls)] == [clock(), clock()]
    assert {one["until"] for one in state["simulated"]} == {clock(), None}
    assert [problem["text"] for problem in state["problems"] if problem["kind"] == "clock"] == [
        f"The clock of wrong is 3600 s {'behind' if ahead < 0 else 'ahead of'} the dashboard's."
    ]
    clock.now += 1
    more = {name: digest_of(name, clock() - 60, host="worse") for name in ("a", "b")}
    fleet.look(more, is_whole=True)
    (problem,) = told(fleet, clock)["problems"]
    assert problem["text"] == "The clock of worse is 60 s behind the dashboard's, and those of 1 more differ."


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"\xc1" * 50,
        b"x" * (LONGEST + 1),
        encode(msgspec.structs.replace(digest_of("a", 1.0), format=FORMAT + 1)),
        encode(digest_of("a", float("nan"))),
        encode(digest_of("a", 1.0, [RowReport("x", False, fresh=-1)])),
        encode(digest_of("a", 1.0, [RowReport("x", False, fresh=10**16)])),
        encode(digest_of("a", 1.0, [RowReport("x", False, seconds=(-1,))])),
        encode(digest_of("a", 1.0, nodes=(NodeReport("r", float("inf")),))),
        encode(digest_of("a", 1.0, [RowReport("x" * 2000, False)])),
        encode(digest_of("a", 1.0, [RowReport(f"x{number}", False) for number in range(200)])),
        encode(digest_of("a", 1.0, uncached={str(number): 1 for number in range(200)})),
        encode(digest_of("a", 1.0, hot=(HotReport("k", "x", float("nan")),))),
    ],
)
def test_invalid_digest_decodes_to_none(data):
    assert decode(data) is None
    assert decode_faults(data[:100]) == ()


def test_digest_of_21_loaders_takes_1_to_2_kb():
    """Twenty loaders at work, and one that fails."""
    error = ("ValueError", "x" * 200, 1e9, "ranking:" + "x" * 50)
    rows = [RowReport(f"ranking-{n}:{{group}}", False, 10**6, 10**4, 10**3, 10**6, 10**4, 10**3, 10**4, seconds=(9,) * 12)
            for n in range(20)]  # fmt: skip
    data = encode(digest_of("a" * 12, 1e9, [*rows, RowReport("x", False, error=error)]))
    assert 1000 < len(data) < 2048
    assert decode(data).rows[0] == rows[0]


def test_failing_loader_has_its_own_row_among_more_than_40_loaders(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("swr.reports.rows.time.time", clock)
    rows, late = Rows(), (False, "late")
    others = [RowReport(f"x{number}", False, fresh=10) for number in range(41)]

    def told(**counts):
        found = {(row.is_route, row.name): row for row in rows.told([*others, RowReport("late", False, **counts)])}
        assert len(found) <= 42
        return found

    found = told(fresh=100, bytes=5, seconds=(100,))
    assert (late in found, found[False, "other"].fresh, found[False, "other"].bytes) == (False, 110, 5)
    # What it does from then on counts in its row, and what it has done stays where it was.
    error = ("E", "text", clock(), "late:1")
    found = told(fresh=104, failed=1, backoffs=1, error=error, bytes=5, seconds=(103,))
    assert found[late] == RowReport("late", False, fresh=4, failed=1, backoffs=1, error=error, bytes=5, seconds=(3,))
    assert found[False, "other"] == RowReport("other", False, fresh=110, seconds=(100,))
    clock.now += 30
    assert told(fresh=105, failed=1, error=error)[late].fresh == 5
    # It is well again, and goes back.
    clock.now += 31
    found = told(fresh=107, failed=1, error=error, bytes=7)
    assert (late in found, found[False, "other"].fresh, found[False, "other"].bytes) == (False, 112, 7)
    assert told(fresh=108, failed=2, backoffs=1, error=error)[late].fresh == 1
    assert told(fresh=108, failed=2, backoffs=1, error=error)[False, "other"].fresh == 112


def test_loaders_that_failed_last_have_rows_when_too_many_fail():
    many = [RowReport(f"x{number}", False, backoffs=1, error=("E", "t", number, None)) for number in range(200)]
    named = {row.name for row in Rows().told([RowReport(OTHER, False, fresh=1), *many])}
    assert named == {*(f"x{number}" for number in (*range(40), *range(180, 200))), OTHER}


def test_load_of_an_unknown_route_counts_in_totals_but_has_no_row():
    clock = Clock()
    fleet = Fleet(clock, clock)
    rows = [RowReport("", True, in_flight=2), RowReport("x", True, in_flight=1)]
    fleet.look({"a": digest_of("a", 1.0, rows)}, is_whole=True)
    state = told(fleet, clock)
    assert [row["name"] for row in state["rows"]] == ["x"]
    assert state["totals"]["in_flight"] == 3


def test_longest_keeps_a_hanging_load_of_every_loader():
    loads = [(at, HangingReport(f"{row}:{at}", row, float(at))) for row, at in zip("aaaabc", range(6), strict=True)]
    assert [load.key for _, load in longest(loads, 4)] == ["a:0", "a:1", "b:4", "c:5"]


def test_failing_loaders_come_first_and_excess_failures_are_one_problem():
    clock = Clock()
    fleet = Fleet(clock, clock)
    busy = [RowReport(f"busy{number}", False, fresh=100, in_flight=1) for number in range(60)]
    quiet = RowReport("quiet", True, missing=1, failed=1, error=("E", "t", 999.0, "k"))
    own = RowReport(OTHER, False, fresh=1, backoffs=1, error=("E", "t", 999.0, "late:1"))
    digests = {
        "a": digest_of("a", 1.0, [own, *busy], refusal=("no memory", 990.0)),
        "b": digest_of("b", 1.0, [msgspec.structs.replace(row, name=f"b{row.name}") for row in busy]),
        "c": digest_of("c", 1.0, [quiet], refusal=("no right", 995.0)),
    }
    fleet.look({name: msgspec.structs.replace(one, rows=()) for name, one in digests.items()}, is_whole=True)
    clock.now += 1
    fleet.look({name: msgspec.structs.replace(one, at=one.at + 1) for name, one in digests.items()}, is_whole=True)
    state = told(fleet, clock)
    assert len(state["rows"]) == 100
    assert [row["name"] for row in state["rows"][:3]] == [OTHER, "quiet", "bbusy0"]
    assert (state["totals"]["in_flight"], state["totals"]["backoffs"]) == (120, 1)
    texts = [problem["text"] for problem in state["problems"]]
    assert texts[0] == "Redis refuses commands of 2 processes: no right."
    assert state["problems"][0]["since"] == 990.0
    assert "Loads of other loaders and routes, such as that of late:1, fail: E: t; 1 key backs off" in texts
    many = [RowReport(f"x{number}", False, failed=1, error=("E", "t", 999.0, "k")) for number in range(20)]
    clock.now += 1
    fleet.look({"d": digest_of("d", clock.now, many, started=clock.now, pid=4)}, is_whole=True)
    texts = [problem["text"] for problem in told(fleet, clock)["problems"]]
    assert [text for text in texts if text[0].isdigit()] == [
        "14 more loaders and routes fail: the table below has them first."
    ]


def test_added_row_has_summed_counts_and_the_latest_error():
    one = RowReport("x", False, fresh=1, seconds=(1,), retry_at=5.0, error=("A", "a", 1.0, None))
    other = RowReport("y", False, fresh=2, seconds=(1, 2), error=("B", "b", 2.0, None))
    both = added(one, other)
    assert (both.name, both.fresh, both.seconds, both.retry_at, both.error[0]) == ("x", 3, (2, 2), 5.0, "B")


def test_cleaned_error_text_contains_no_credentials_and_no_query():
    assert (
        cleaned("GET https://ann:pw@h/p?token=t failed 'redis://h/0?password=p'")
        == "GET https://…@h/p?… failed 'redis://h/0?…'"
    )
    assert cleaned("retries exceeded with url: /v1/x?api_key=k (x)") == "retries exceeded with url: /v1/x?… (x)"
    assert cleaned("'https://h/p#access_token=t' of #12, h/p?q='a'&key=k") == "'https://h/p#…' of #12, h/p?…"
    # What is cut may end in the middle of an account.
    assert cleaned(f"{'x' * 179} redis://ann:password"[:200]).endswith(" redis://…")
    assert cleaned(f"redis://ann:{'p' * 2000}@h") == "redis://…"
    assert len(cleaned("x" * 999)) == 200


# -- one process ------------------------------------------------------------------------------------------------------


async def test_loaders_beyond_forty_share_one_row_of_the_digest():
    async with Cache(reports=True) as cache:
        for number in range(50):

            @cache.cached(f"loader-{number}:{{n}}", fresh_for=60)
            async def load(n: int) -> int:
                return n

            await load(1)
        rows = cache.report().digest().rows
    assert len(rows) == 41
    (other,) = (row for row in rows if row.name == "other")
    assert other.missing == 10


async def test_watched_calls_are_collected_up_to_64_and_the_rest_is_counted():
    async with Cache(reports=True) as cache:

        @cache.cached("x:{n}", fresh_for=60)
        async def load(n: int) -> int:
            return n

        reporter = cache.report()
        reporter.watch()
        reporter.watch()
        for _ in range(100):
            await load(1)
        calls = reporter.watching.calls()
        assert (len(calls), calls[0].layer, calls[0].state) == (64, "load", "missing")
        assert (calls[1].layer, calls[1].state, calls[1].row) == ("l1", "fresh", "x:{n}")
        assert not cache.engine.events.reads
        reporter.make()
        digest = reporter.digest()
        assert digest.dropped == 36
        assert digest.hot == (HotReport("x:1", "x:{n}", 1.0),)
        assert cache.engine.events.reads
        await load(2)
        reporter.make()
        assert reporter.watching.dropped == 36
        reporter.close()
        assert not cache.engine.events.reads


async def test_backoff_without_an_error_is_not_among_the_soonest_retries():
    async with Cache(reports=True) as cache:
        backoffs = cache.engine.backoffs
        backoffs.begin("k", 5.0, None)
        backoffs.begin("x", 5.0, ValueError("x"))
        backoffs.begin("y", 3.0, ValueError("y"))
        (left,) = backoffs.soonest().values()
        assert 0 < left <= 3.0


async def test_rare_events_are_reported_as_sentences():
    async with Cache(reports=True) as cache:
        publish = cache.engine.events.publish
        publish(CommandRefused, "OOM at redis://u:p@h")
        publish(RenewalRejected, "k")
        publish(CommitRejected, "k")
        publish(RoundQueued, "q", 1, 2, 3, 0)
        publish(RoundQueued, "q", 1, 2, 3, 4)
        publish(RoundEnded, "q", 1, 2.0, 3, 3, 0, 0, 1, 0, 0)
        publish(RoundEnded, "q", 1, 2.0, 3, 3, 0, 0, 0, 1, 0)
        publish(Invalidated, "k", None, True)
        publish(Invalidated, None, "t", False, None, True)
        publish(Invalidated, None, host_tag(b"shop.example:443", url_tag("/flights/ATL", "token=x")), False)
        publish(Invalidated, None, host_tag(b"shop.example", f"path:{url_tag('/flights', '')}"), False)
        publish(Invalidated, None, None, False, "x:{n}")
        publish(Invalidated, None, None, False)
        events = cache.report().watching.happenings()
    assert [(event.kind, event.key, event.row, event.bad) for event in events] == [
        ("CommandRefused", None, None, True),
        ("RenewalRejected", "k", "", True),
        ("CommitRejected", "k", None, False),
        ("RoundQueued", None, "q", False),
        ("RoundQueued", None, "q", True),
        ("RoundEnded", None, "q", True),
        ("RoundEnded", None, "q", True),
        ("Invalidated", None, "t", False),
        ("Invalidated", None, "shop.example/flights/ATL?…", False),
        ("Invalidated", None, "shop.example/flights", False),
        ("Invalidated", None, "x:{n}", False),
        ("Invalidated", None, None, False),
    ]
    assert events[0].text == "Redis refused a command: OOM at redis://…@h"
    assert events[4].text == "A round was enqueued: 2 new, 3 still there; before it 4 rounds were left out."
    assert events[6].text == "A round took 2.0 s: 3 loaded, 0 failed; before it 1 round was left out."
    assert [event.text for event in events[7:]] == [
        "A tag was marked stale.", "A URL was invalidated.", "A URL was invalidated.", "All entries of a loader were invalidated.", "Everything was invalidated."
    ]  # fmt: skip


async def test_long_running_load_is_reported_as_hanging(monkeypatch):
    async with Cache(reports=True, lease_for=7) as cache:
        gate, begun = asyncio.Event(), asyncio.Event()

        @cache.cached("slow:{n}", fresh_for=60, hard_timeout=50)
        async def slow(n: int) -> int:
            begun.set()
            await gate.wait()
            return n

        async def plain() -> int:
            return await slow(1)

        tasks = [asyncio.create_task(slow(1)), asyncio.create_task(cache.get_or_load("k", plain, Policy(60)))]
        await begun.wait()
        await asyncio.sleep(0)
        monkeypatch.setattr("swr.reports.reporter._HANGS_AFTER", math.inf)
        assert cache.report().digest().hanging == ()
        monkeypatch.setattr("swr.reports.reporter._HANGS_AFTER", 0.0)
        hanging = cache.report().digest().hanging
        gate.set()
        await asyncio.gather(*tasks)
    assert {(one.key, one.row, one.timeout) for one in hanging} == {("slow:1", "slow:{n}", 50.0), ("k", "", 70.0)}


async def test_timeouts_are_computed_only_for_the_ten_reported_hanging_loads(monkeypatch):
    """A digest is made once a second on the event loop, and a database that hangs may have thousands of loads hang."""
    monkeypatch.setattr("swr.reports.reporter._HANGS_AFTER", 0.0)
    asked, gate = [], anyio.Event()
    async with Cache(reports=True) as cache:
        reporter = cache.report()
        timeout = reporter._timeout
        monkeypatch.setattr(reporter, "_timeout", lambda flight: asked.append(flight.key) or timeout(flight))

        async def load() -> int:
            await gate.wait()
            return 1

        async with anyio.create_task_group() as group:
            for number in range(40):
                group.start_soon(cache.get_or_load, f"k{number}", load, Policy(60))
            await anyio.wait_all_tasks_blocked()
            hanging = reporter.digest().hanging
            gate.set()
    assert asked == [one.key for one in hanging]
    assert len(asked) == 10


def test_forked_process_gets_a_new_id(monkeypatch):
    reporter = Cache(reports=True).report()
    before = reporter.id
    assert reporter.id == before
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert reporter.id != before


async def test_cache_keeps_its_reporter_when_it_is_configured_later(server):
    cache = Cache(reports=True)
    cache.report().faults.is_allowed = True
    cache.configure(server.url, release="2")
    async with cache:
        assert cache.engine.store.store.digests.reports is cache.report()
        assert cache.report().digest().release == "2"
        assert cache.report().faults.is_allowed
    for options in ({"reports": 1}, {"release": 2}):
        with pytest.raises(ConfigurationError):
            Cache(**options)


def test_environment_variables_set_reports_and_release(monkeypatch):
    monkeypatch.setenv("SWR_REPORTS", "yes")
    monkeypatch.setenv("SWR_RELEASE", "abc")
    assert Cache.from_env().reporter.digest().release == "abc"
    monkeypatch.setenv("SWR_REPORTS", "perhaps")
    with pytest.raises(ConfigurationError, match="SWR_REPORTS"):
        Cache.from_env()


def test_dashboard_works_on_trio_without_redis():
    async def look():
        async with Cache() as cache:
            page = page_of(cache)
            async with page as http:
                assert (await http.get("/state")).json()["fleet"]
                assert "event: state" in (await http.get("/stream")).text

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "_LASTS", 0.1)
        anyio.run(look, backend="trio")


# -- a fleet ----------------------------------------------------------------------------------------------------------


async def test_dashboard_shows_every_process_and_marks_ended_ones(server, quick, monkeypatch):
    monkeypatch.setattr(fleet_module, "GONE_AFTER", 1.0)
    async with Cache(server.url) as own, page_of(own, actions=True, simulate=True) as http:
        # What was there before the first look is no deploy.
        await state_when(http, lambda state: len(state["processes"]) == 1)
        other = Cache(server.url, reports=True, release="2")

        @other.cached("x:{n}", fresh_for=60, stale_if_error=60)
        async def load(n: int) -> int:
            return n

        async with other:
            # Its digest is read and its calls are shown, though the page is another process's.
            state = await state_when(http, lambda state: len(state["processes"]) == 2)
            assert state["served_by"] == own.report().id
            assert state["nodes"] == [
                {
                    "name": f"127.0.0.1:{server.port}",
                    "reachable": True,
                    "since": None,
                    "reason": "",
                    "unreachable_from": [],
                }
            ]
            for n in range(5):
                await load(n)
            state = await state_when(http, lambda state: any(row["missing"] == 5 for row in state["rows"]))
            await state_when(http, lambda state: other.report().watching.dropped == 0 and other.engine.events.reads)
            with anyio.fail_after(60):
                # They are those of the last digest, which may come and go between two looks.
                while [hot["row"] for hot in state["hottest"]] != ["x:{n}"]:
                    await load(1)
                    await anyio.sleep(0.01)
                    state = (await http.get("/state")).json()
            await other.invalidate_tag("t")
            calls = ""
            with anyio.fail_after(60):
                while "call" not in calls or "Invalidated" not in calls:
                    calls += (
                        await http.get("/stream?calls=1", headers={"last-event-id": f"{own.report().id} 0 0 0"})
                    ).text
            # A fault reaches the process that loads.
            other.report().faults.is_allowed = True
            await http.post("/actions/fail-next", json={"row": "x:{n}"}, headers=ACT)
            with anyio.fail_after(60):
                while not other.report().faults.told():
                    await anyio.sleep(0.01)
            state = await state_when(http, lambda state: state["simulated"])
            (fault,) = other.report().faults.orders
            assert state["simulated"][0]["row"] == "x:{n}"
            with pytest.raises(ConnectionError, match="simulated"):
                await load(99)
            assert await load(98) == 98
            await state_when(http, lambda state: not state["simulated"])
            assert not await own.engine.store.store.digests.claim(fault.id, "another")
            life = (await http.get("/key?key=x:1")).json()
            assert (life["entry"]["layer"], life["entry"]["state"], life["lease"]) == ("redis", "fresh", None)
            await other.mark_stale("x:1")
            life = (await http.get("/key?key=x:1")).json()
            assert (life["entry"]["marked_stale"], life["entry"]["state"]) == (True, "error")
            gate, begun = asyncio.Event(), asyncio.Event()

            async def slow() -> int:
                begun.set()
                await gate.wait()
                return 1

            loading = asyncio.create_task(other.get_or_load("slow", slow, Policy(60)))
            await begun.wait()
            life = (await http.get("/key?key=slow")).json()
            assert (life["entry"], life["lease"]["kind"]) == (None, "loading")
            gate.set()
            await loading
        # It has ended as it should: that is no fault, and its last reads count.
        state = await state_when(http, lambda state: any(one["gone"] for one in state["processes"]))
        assert [one["ended"] for one in state["processes"] if one["gone"]] == [True]
        assert state["problems"] == []
        assert sum(row["missing"] for row in state["rows"]) >= 8
        kinds = [mark["kind"] for mark in (await http.get("/history")).json()["marks"]]
        assert kinds[0] == "deploy"
        assert ("ended" in kinds, "gone" in kinds) == (True, False)
        assert "invalidation" in kinds
        # A cache that opens again, as for another task of a worker, is there again.
        async with other:
            await state_when(http, lambda state: not any(one["gone"] for one in state["processes"]))


async def test_simulated_failure_happens_in_only_one_process(server, quick):
    async with Cache(server.url, reports=True, timeout=60) as one, Cache(server.url, reports=True, timeout=60) as other:
        fault = Fault("f", "fail-next", "x:{n}", 0.0, time.time() + 60)
        odd = Fault("o", "odd", "x:{n}", 0.0, time.time() + 60)
        for cache in (one, other):
            cache.report().faults.is_allowed = True

        @one.cached("x:{n}", fresh_for=60)
        async def load(n: int) -> int:
            return n

        elsewhere = Fault("e", "fail-next", "y", 0.0, time.time() + 60)
        await one.engine.store.store.digests.simulate(encode((odd, elsewhere, fault)), 60)
        with anyio.fail_after(60):
            while not (one.report().faults.orders and other.report().faults.orders):
                await anyio.sleep(0.01)
        with pytest.raises(ConnectionError):
            await load(1)
        assert not await other.report().faults._claim(fault)
        # As after an answer that was lost on the way.
        assert await one.report().faults._claim(fault)
        assert await load(2) == 2


async def test_failure_is_simulated_locally_while_redis_is_unreachable(own_server):
    async with Cache(own_server.url, timeout=0.2, reports=True) as cache:

        @cache.cached("x:{n}", fresh_for=60)
        async def load(n: int) -> int:
            return n

        own_server.pause()
        with anyio.fail_after(60):
            while cache.engine.is_store_up:
                await anyio.sleep(0.01)
        cache.report().faults.is_allowed = True
        cache.report().faults.order((Fault("f", "fail-next", "x:{n}", 0.0, time.time() + 60),))
        with pytest.raises(ConnectionError, match="simulated"):
            await load(1)
        own_server.resume()


async def test_large_fleet_is_shown_with_at_most_100_calls_and_100_events(server, quick):
    """Two hundred processes with forty loaders each would hold the event loop for a tenth of a second."""
    rows = [RowReport(f"x{number}", False, fresh=number) for number in range(40)]
    async with Cache(server.url, namespace="n") as cache, page_of(cache) as http:
        await http.get("/state")
        digests = cache.engine.store.store.digests
        calls = tuple(CallReport(number, 1.0, "k", "x", "fresh") for number in range(1, 65))
        events = tuple(HappeningReport(number, 1.0, "LoadFailed", "no") for number in range(1, 21))
        now = time.time()
        fleet = [
            digest_of(f"p{number}", now, rows, calls=calls, happenings=events, started=now + 60) for number in range(20)
        ]
        await digests._ask("HSET", digests._keys[0], *(part for one in fleet for part in (one.id, encode(one))))
        state = await state_when(http, lambda state: len(state["processes"]) == 21)
        assert len(state["rows"]) == 40
        stream = (await http.get("/stream?calls=1", headers={"last-event-id": f"{cache.report().id} 0 0 0"})).text
        (told,) = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith('data: {"calls"')]
        assert (len(told["calls"]), told["dropped"]) == (100, 20 * 64 - 100)
        (told,) = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith('data: {"events"')]
        assert (len(told["events"]), told["dropped"]) == (100, 20 * 20 - 100)


def test_known_processes_are_limited_in_memory_and_on_the_page(monkeypatch):
    """A deploy that restarts over and over, or a program that writes what it likes into Redis."""
    monkeypatch.setattr(fleet_module, "_MOST_KNOWN", 80)
    clock = Clock()
    fleet = Fleet(clock, clock)
    for start in range(0, 100, 10):
        digests = {f"p{start + n:03}": digest_of(f"p{start + n:03}", clock()) for n in range(10)}
        fleet.look(digests, is_whole=True)
        clock.now += GONE_AFTER + 1
    fleet.look({}, is_whole=True)
    assert len(fleet.processes) == 80
    assert [one["id"] for one in told(fleet, clock)["processes"]] == [f"p{n:03}" for n in range(30, 80)]


async def test_foreign_digests_are_limited_in_number_and_size(server, quick, monkeypatch):
    """More and longer ones than the processes of a fleet write: a dashboard asks for the newest."""
    monkeypatch.setattr(digests_module, "_LIMITS", (5, 20, 5000, 9000))
    async with Cache(server.url, namespace="n", reports=True) as cache:
        digests = cache.engine.store.store.digests
        with anyio.fail_after(60):
            while not await digests.read():
                await anyio.sleep(0.01)
        server.command("HSET", "n:{!}d", "late", "x")
        server.command("ZADD", "n:{!}dt", str(time.time() - 30), "late")
        await digests.read()
        assert digests.ages[cache.report().id] < 29 < digests.ages["late"]
        server.command("HDEL", "n:{!}d", "late")
        for name, size in (("a", 4000), ("b", 4000), ("c", 4000), ("long", 6000), ("l" * 30, 10)):
            server.command("HSET", "n:{!}d", name, "x" * size)
            server.command("ZADD", "n:{!}dt", "99999999999", name)
        # Five names are the most; of these one is too long, one has a digest that is, and the third is one too many.
        assert {*await digests.read()} == {"c", "b"}
        # What is short in Redis may be long.
        await digests._ask("HSET", digests._keys[0], "c", digests._packing.encoded(b"x" * 60_000, b"digest", b"c"))
        assert {*await digests.read()} == {"b", "a"}


async def test_lone_surrogate_in_a_key_does_not_stop_the_reports(server, quick, caplog):
    """A client can write one in JSON, and a key may hold it."""
    async with Cache(server.url, release="\udcff") as cache, page_of(cache, actions=True, simulate=True) as http:

        @cache.cached("x:{name}", fresh_for=60)
        async def load(name: str) -> str:
            raise ValueError(name)

        await http.get("/state")
        with pytest.raises(ValueError, match="half"):
            await load("half \ud800")
        await cache.invalidate_tag("\ud800")
        await state_when(http, lambda state: any(row["failed"] for row in state["rows"]))
        digests = cache.engine.store.store.digests
        with anyio.fail_after(60):
            while b"half" not in (await digests.read()).get(cache.report().id, b""):
                await anyio.sleep(0.01)
        for row in ("\ud800", "x" * 300):
            response = await http.post("/actions/hang", content=json.dumps({"row": row}), headers=JSON_ACT)
            assert response.status_code == 400
    assert "could not make the digest" not in caplog.text


async def test_dashboards_of_one_namespace_accept_key_ids_of_each_other(server, quick):
    async with Cache(server.url) as one, Cache(server.url) as other, page_of(one) as first, page_of(other) as second:
        await first.get("/state")
        await second.get("/state")
        name = (await first.get("/key", params={"key": "GET http://h\n/p?q=secret"})).json()["key"]["id"]
        shown = (await second.get("/key", params={"id": name})).json()
    assert shown["key"]["id"] == name
    assert "secret" not in json.dumps(shown)


async def test_foreign_data_in_redis_does_not_break_the_dashboard(server, quick):
    server.command("SET", "n:{!}ds", "short")
    async with Cache(server.url, namespace="n") as cache, page_of(cache) as http:
        server.command("HSET", "n:{!}d", "x", "junk")
        server.command("SET", "n:{!}df", "junk")
        state = await state_when(http, lambda state: state["fleet"] and state["problems"])
        assert len(state["processes"]) == 1
        assert "1 process reports data that this dashboard cannot read" in state["problems"][0]["text"]
        server.command("HSET", "n:{!}d", "y", "junk")
        await state_when(http, lambda state: "2 processes report" in state["problems"][0]["text"])
        # Queues that are none hide no process.
        for junk in ("junk", "other:1", "streams:x", "streams:0", "streams:999999999"):
            server.command("HSET", "n:{!}q", junk, junk)
        own = Queue(cache.engine.store.store, "mine")
        await own.register()
        state = await state_when(http, lambda state: state["queues"])
        assert [queue["name"] for queue in state["queues"]] == ["mine"]
        server.command("DEL", "n:{!}q")
        server.command("SET", "n:{!}q", "no hash")
        state = await state_when(http, lambda state: not state["queues"])
        assert (state["fleet"], state["problems"][0]["text"][:26]) == (True, "The queues cannot be seen:")
        server.command("DEL", "n:{!}d", "n:{!}q")
        server.command("SET", "n:{!}d", "no hash")
        state = await state_when(http, lambda state: not state["fleet"])
        assert state["note"].startswith("Only this process is shown")
        # The page does not say that nothing is wrong.
        assert [one["kind"] for one in state["problems"] if one["level"] == "error"] == ["fleet", "refused"]
        assert cache.engine.is_store_up


async def test_refused_digest_is_logged_once_and_the_store_stays_reachable(server, quick, caplog):
    server.command("SET", "n:{!}d", "no hash")
    async with Cache(server.url, namespace="n", reports=True) as cache:
        with anyio.fail_after(60):
            while "refuses the digest" not in caplog.text:
                await anyio.sleep(0.01)
        await cache.get_or_load("k", lambda: 1, Policy(60))
        assert cache.engine.is_store_up
    assert caplog.text.count("refuses the digest") == 1


@pytest.mark.parametrize(
    ("reply", "remedy"),
    [
        ("OOM command not allowed", "raise maxmemory, or set maxmemory-policy to volatile-lru"),
        ("NOPERM no permissions", "give its user the rights that docs/redis.md lists"),
        ("WRONGTYPE Operation against", "another program writes to these keys, so give swr a namespace of its own"),
        ("NOREPLICAS Not enough good replicas to write.", "no dashboard shows it"),
    ],
)
async def test_refused_digest_is_logged_with_the_remedy(server, caplog, reply, remedy):
    async with Cache(server.url, reports=True) as cache:
        cache.engine.store.store.digests._on_reply(error_of(reply))
    assert caplog.messages[0].endswith(remedy)


async def test_lost_reply_to_a_digest_is_not_logged(server, caplog):
    async with Cache(server.url, reports=True) as cache:
        digests = cache.engine.store.store.digests
        digests._on_reply(StoreUnavailable("the connection broke"))
        digests.reports = None
        digests._on_reply([None, None])
    assert caplog.text == ""


async def test_error_in_making_a_digest_is_logged_and_the_connection_stays_up(server, quick, caplog, monkeypatch):
    async with Cache(server.url, reports=True) as cache:
        monkeypatch.setattr(cache.report(), "digest", lambda: 1 / 0)
        with anyio.fail_after(60):
            while "could not make the digest" not in caplog.text:
                await anyio.sleep(0.01)
        assert cache.engine.is_store_up
        assert cache.engine.store.store.digests.reports is None


async def test_digests_lost_by_redis_return_with_the_next_report(server, quick):
    async with Cache(server.url, namespace="n", reports=True) as cache, Cache(server.url, namespace="n") as watching:
        digests = watching.engine.store.store.digests
        for _ in range(2):
            with anyio.fail_after(60):
                while cache.report().id not in await digests.read():
                    await anyio.sleep(0.01)
            server.command("DEL", "n:{!}d", "n:{!}dt")


async def test_digests_of_ended_processes_are_removed_from_redis(server, quick, monkeypatch):
    async with Cache(server.url, namespace="n", reports=True) as cache:
        server.command("HSET", "n:{!}d", "old", "x")
        server.command("ZADD", "n:{!}dt", "1", "old")
        digests = cache.engine.store.store.digests
        with anyio.fail_after(60):
            while set(await digests.read()) != {cache.report().id}:
                await anyio.sleep(0.01)
        assert 0 < int(server.command("PTTL", "n:{!}d")[1:]) <= 60_000


async def test_page_shows_only_this_process_while_redis_is_unreachable(own_server, quick):
    async with Cache(own_server.url, timeout=0.3) as cache, page_of(cache, actions=True, simulate=True) as http:

        @cache.cached("x:{n}", fresh_for=60)
        async def load(n: int) -> int:
            return n

        await state_when(http, lambda state: state["fleet"])
        own_server.pause()
        state = await state_when(http, lambda state: not state["fleet"] and not state["nodes"][0]["reachable"])
        assert state["problems"][0]["kind"] == "redis"
        assert state["problems"][0]["since"] is not None
        assert [one["id"] for one in state["processes"]] == [cache.report().id]
        await load(1)
        state = await state_when(http, lambda state: any(row["missing"] for row in state["rows"]))
        life = (await http.get("/key?key=x:1")).json()
        assert (life["entry"]["layer"], life["note"][:4]) == ("l1", "Only")
        response = await http.post("/actions/retry-dead", json={"queue": "q"}, headers=ACT)
        assert response.status_code == 503
        cache.report().faults.order(())
        own_server.resume()
        await state_when(http, lambda state: state["fleet"] and state["nodes"][0]["reachable"])
        kinds = [mark["kind"] for mark in (await http.get("/history")).json()["marks"]]
        assert kinds[-2:] == ["outage", "reachable"]


async def test_standalone_dashboard_shows_no_process_while_redis_is_unreachable(own_server, quick):
    async with Cache(own_server.url, timeout=0.3) as cache:
        hub = hub_module.Hub(cache, Keys(), actions=False, simulate=False, beside=True)
        await hub.begin()

        async def marked(kind):
            with anyio.fail_after(60):
                while kind not in [mark["kind"] for mark in hub.fleet.remembered.since(0.0)["marks"]]:
                    await hub.next()

        own_server.pause()
        await marked("outage")
        with anyio.fail_after(60):
            while hub.state["fleet"]:
                await hub.next()
        assert hub.state["note"].startswith("No process is shown: ")
        assert hub.state["processes"] == []
        own_server.resume()
        await marked("reachable")


async def test_page_shows_every_process_and_a_problem_while_redis_has_no_memory(server, quick):
    async with (
        Cache(server.url, namespace="n", reports=True) as other,
        Cache(server.url, namespace="n") as cache,
        page_of(cache) as http,
    ):
        with without_memory(server):
            # Nothing of it lay in Redis before: neither a digest nor what dashboards share.
            server.command("FLUSHALL")
            now = time.time()
            with anyio.fail_after(60):
                for number in itertools.count():
                    await other.get_or_load(f"k{number}", lambda: 1, Policy(60))
                    state = (await http.get("/state")).json()
                    problems = [one["text"] for one in state["problems"] if one["kind"] == "refused"]
                    # What both report goes on to arrive.
                    shown = sum(one["seen"] > now and not one["gone"] for one in state["processes"]) == 2
                    if shown and state["fleet"] and problems:
                        break
                    await anyio.sleep(0.02)
            assert problems[0].startswith("Redis refuses commands of ")
            assert problems[0].endswith("raise maxmemory, or set maxmemory-policy to volatile-lru.")


async def test_page_shows_only_this_process_and_why_if_redis_refuses_digests(server, quick):
    async with Cache(server.url, namespace="n") as cache, page_of(cache) as http:
        await state_when(http, lambda state: state["fleet"])
        server.command("ACL", "SETUSER", "default", "-zadd")
        try:
            state = await state_when(http, lambda state: not state["fleet"])
            assert state["note"].startswith("Only this process is shown: Redis refuses what processes report (")
            assert [one["id"] for one in state["processes"]] == [cache.report().id]
        finally:
            server.command("ACL", "SETUSER", "default", "+zadd")
        await state_when(http, lambda state: state["fleet"])


async def test_dead_letters_are_shown_retried_and_purged(server, quick):
    async with Cache(server.url, namespace="n") as cache, page_of(cache, actions=True) as http:

        @cache.cached("rank:{group}", fresh_for=60)
        async def rank(group: str) -> str:
            raise ValueError(f"no {group}")

        refresher = Refresher(rank, lambda: [("a",), ("b",)], every=3600, strategy="queue", deliveries=1)
        async with refresher:
            state = await state_when(http, lambda state: state["queues"] and state["queues"][0]["dead"] == 2)
            (queue,) = state["queues"]
            assert queue["leader"]
            assert {letter["key"]["text"] for letter in queue["letters"]} == {"rank:a", "rank:b"}
            assert "ValueError" in queue["letters"][0]["error"]
            assert ("dead", queue["name"]) in [(one["kind"], one["target"]) for one in state["problems"]]
            name = queue["letters"][0]["key"]["id"]
            response = await http.post("/actions/purge-dead", json={"queue": queue["name"], "id": name}, headers=ACT)
            assert response.json()["done"] == f"The dashboard threw away 1 dead letter of {queue['name']}."
            await state_when(http, lambda state: state["queues"][0]["dead"] == 1)
            response = await http.post("/actions/retry-dead", json={"queue": queue["name"]}, headers=ACT)
            assert response.json()["done"] == f"1 dead letter of {queue['name']} went back into it."
            response = await http.post(
                "/actions/purge-dead", json={"queue": queue["name"], "key": "x", "tag": "y"}, headers=ACT
            )
            assert response.status_code == 400


async def test_dashboard_shows_the_fleet_on_a_cluster(quick):
    with ClusterOfSix(kinds()[0]) as cluster:
        async with (
            Cache(cluster.url, timeout=2) as own,
            Cache(cluster.url, reports=True, timeout=2),
            page_of(own) as http,
        ):
            state = await state_when(http, lambda state: len(state["processes"]) == 2 and len(state["nodes"]) == 3)
            assert all(node["reachable"] for node in state["nodes"])


# -- the commands -----------------------------------------------------------------------------------------------------


def interrupt_after(look):
    """Interrupt this process, as Ctrl-C does, when a function that runs beside it has ended."""
    seen = []

    def run():
        try:
            seen.append(look())
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=run)
    thread.start()
    return seen, thread


def test_swr_dashboard_command_serves_the_page_without_reporting_itself(server, monkeypatch, capsys):
    monkeypatch.setenv("SWR_DASHBOARD_AUTH", "ann:pw")
    monkeypatch.setenv("SWR_DASHBOARD_TOKEN", "job")
    port = free_port()
    manager = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    manager.add_password(None, f"http://127.0.0.1:{port}/", "ann", "pw")
    opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(manager))

    def look():
        until = time.monotonic() + 60
        while True:
            try:
                with opener.open(f"http://127.0.0.1:{port}/state", timeout=30) as response:
                    return json.load(response)
            except OSError:
                assert time.monotonic() < until
                time.sleep(0.05)

    seen, thread = interrupt_after(look)
    code = main(["dashboard", "--redis", server.url, "--listen", f"127.0.0.1:{port}", "--actions"])
    thread.join()
    assert code == 128 + signal.SIGINT
    assert (seen[0]["served_by"], seen[0]["processes"], seen[0]["actions"]) == (None, [], True)
    assert f"http://127.0.0.1:{port}/" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["dashboard", "--listen", ":8010", "--redis", "redis://x"], {}, "SWR_DASHBOARD_AUTH"),
        (["dashboard", "--listen", "example.com:1", "--redis", "redis://x"], {}, "SWR_DASHBOARD_AUTH"),
        (["dashboard", "--redis", "redis://x"], {"SWR_DASHBOARD_AUTH": ""}, "empty"),
        (["dashboard", "--redis", "redis://x"], {"SWR_DASHBOARD_AUTH": "ann:"}, "empty"),
        (["dashboard", "--redis", "redis://x"], {"SWR_DASHBOARD_TOKEN": " "}, "empty"),
        (["dashboard"], {}, "where is Redis"),
        (["top"], {}, "where is Redis"),
    ],
)
def test_dashboard_or_top_with_invalid_configuration_exits_2(monkeypatch, capsys, arguments, environment, said):
    for name in ("SWR_DASHBOARD_AUTH", "SWR_DASHBOARD_TOKEN", "SWR_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_swr_dashboard_exits_0_when_its_server_ends_by_itself(server, monkeypatch, capsys):
    import uvicorn

    async def serve(self, sockets):
        for one in sockets:
            one.close()

    monkeypatch.setattr(uvicorn.Server, "serve", serve)
    monkeypatch.delenv("SWR_DASHBOARD_AUTH", raising=False)
    assert main(["dashboard", "--redis", server.url, "--listen", "127.0.0.1:0"]) == 0
    assert re.match(rf"swr: http://127\.0\.0\.1:\d+/\?token={own_token()} shows", capsys.readouterr().out)


@pytest.mark.parametrize(("command", "module"), [("dashboard", "uvicorn"), ("top", "rich.console")])
def test_missing_package_is_reported_with_the_install_command(monkeypatch, capsys, command, module):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    assert main([command, "--redis", "redis://x"]) == 1
    assert "pip install 'swr[dashboard]'" in capsys.readouterr().err


def test_swr_top_shows_the_fleet_once_or_until_interrupted(server, quick, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    ready, done = threading.Event(), threading.Event()

    async def process():
        async with Cache(server.url, reports=True) as cache:

            @cache.cached("x:{n}", fresh_for=0.01, stale_for=60)
            async def load(n: int) -> int:
                return n

            while not done.is_set():
                await load(1)
                ready.set()
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: asyncio.run(process()))
    thread.start()
    try:
        assert ready.wait(60)
        for _ in range(100):
            assert main(["top", "--redis", server.url, "--once"]) == 0
            shown = capsys.readouterr().out
            if "1 process," in shown and "x:{n}" in shown:
                break
        assert "x:{n}" in shown
        assert max(map(len, shown.splitlines())) <= 80
        assert main(["top", "--redis", server.url, "--once", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["fleet"]
        for options in ([], ["--json"]):
            seen, looked = [], top._looked

            async def look(hub, looked=looked, seen=seen):
                state = await looked(hub)
                seen.append(state)
                # Two looks come before the first that is shown.
                if len(seen) > 3:
                    os.kill(os.getpid(), signal.SIGINT)
                return state

            monkeypatch.setattr(top, "_looked", look)
            assert main(["top", "--redis", server.url, *options]) == 130
            monkeypatch.setattr(top, "_looked", looked)
    finally:
        done.set()
        thread.join()


def test_figures_exclude_processes_that_cannot_be_seen_while_redis_is_unreachable():
    clock = Clock()
    fleet, beside = Fleet(clock, clock), Fleet(clock, clock)
    for reads in (100, 160):
        clock.now += 1
        digests = {name: digest_of(name, clock(), [RowReport("x", False, fresh=reads)]) for name in ("a", "own")}
        fleet.look(digests, is_whole=True)
        beside.look(digests, is_whole=True)
    # A first look has nothing to compare with: it is no second without reads.
    assert told(fleet, clock)["totals"]["reads_per_s"] == 120
    clock.now += 1
    fleet.look({"own": digest_of("own", clock(), [RowReport("x", False, fresh=190)])}, is_whole=False)
    assert state_of(clock(), fleet, Keys(), about(fleet=False))["totals"]["reads_per_s"] == 30
    # Beside the fleet nothing is seen, and nothing is said to have been read.
    beside.look({}, is_whole=False)
    state = state_of(clock(), beside, Keys(), about(fleet=False))
    assert (state["rows"], state["totals"]["fresh"]) == ([], None)
    assert [point["fresh"] for point in beside.remembered.since(0.0)["points"]] == [120]


def test_swr_top_counts_silent_processes():
    clock = Clock()
    fleet = Fleet(clock, clock)
    digests = {"a": digest_of("a", clock()), "b": digest_of("b", clock(), pid=2)}
    fleet.look(digests, is_whole=True, ages={"a": 0.3, "b": 1.8})
    assert "2 processes (1 silent), 0 reads/s" in top._lines(told(fleet, clock))[0].plain
    fleet.look({}, is_whole=True, ages={"a": 0.3, "b": 0.2})
    assert "2 processes, 0 reads/s" in top._lines(told(fleet, clock))[0].plain


def test_swr_top_once_exits_1_if_redis_is_unreachable(capsys):
    """A check of a deploy must not take silence for health."""
    where = ("--redis", f"redis://127.0.0.1:{free_port()}/0")
    assert main(["top", "--once", *where]) == 1
    shown = capsys.readouterr().out
    assert "ERROR: 1 process cannot reach Redis" in shown
    assert "No process reports" not in shown
    assert "swr swr: no process can be seen\n" in shown
    assert main(["top", "--once", "--json", *where]) == 1
    assert json.loads(capsys.readouterr().out)["fleet"] is False


def test_swr_top_lists_problems_and_escapes_control_characters_in_names():
    clock = Clock()
    fleet = Fleet(clock, clock)
    fleet.look(
        {"a": digest_of("a", 1.0, [RowReport("\x1b[2J", False, failed=1, error=("E", "\x1b]0;x\x07", 1.0, None))])},
        is_whole=True,
    )
    problem = {"level": "warning", "kind": "x", "text": "t", "remedy": "mend it", "since": None, "target": None}
    queue = {
        "name": "q", "strategy": "list", "leader": False, "leads_for": 0.0, "consumers": 0, "round_at": None,
        "backlog": 1, "in_hand": 0, "waiting": 0, "dead": 2, "letters": [],
    }  # fmt: skip
    state = told(fleet, clock, note="alone", queues=[queue])
    state["problems"] = [{**problem, "level": "error"}, *[problem] * 6]
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    console.print(top._told(state, 80))
    state["processes"] = []
    console.print(top._told(state, 80))
    text = console.export_text()
    assert "\x1b" not in text
    for words in (
        "ERROR: t. mend it",
        "warning: t. mend it",
        "and 2 more",
        "alone",
        "no leader",
        "No process reports",
        "�[2J",
    ):
        assert words in text


async def test_hub_asks_processes_for_details_only_while_it_is_watched(server):
    async with Cache(server.url, namespace="unwatched") as cache:
        hub = hub_module.Hub(cache, Keys(), actions=False, simulate=False, beside=True)
        await hub.begin()
        await hub.next()
        assert hub.state is not None
        assert server.command("EXISTS", "unwatched:{!}dw") == b":0\r\n"
        await hub.watch()
        await hub.next()
        assert server.command("EXISTS", "unwatched:{!}dw") == b":1\r\n"
