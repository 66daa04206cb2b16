"""The simulation finds nothing wrong with swr, and what is wrong with an swr that was broken on purpose.

The counts here are reduced; SWR_SIMULATION_SEEDS=10000 is how many seeds each scenario runs, and SWR_FULL=1
(scripts/chaos) is the same as that.
"""

import inspect
import os
import re
import runpy
import subprocess
import sys
import textwrap
from random import Random
from typing import NamedTuple

import anyio
import pytest

from swr import StoreUnavailable
from swr.engine.endings import Endings
from swr.engine.engine import Engine
from swr.engine.entries import _Overtaken as Overtaken
from swr.engine.flights import Flight, Flights
from swr.engine.lease import Renewals
from swr.engine.load import Load
from swr.engine.notifications import Notifications
from swr.engine.refresh_path import RefreshPath
from swr.stores.invalidations import SharedInvalidations
from swr.stores.memory import MemoryStore
from swr.stores.redis.invalidations import Invalidations
from swr.stores.served import Served
from swr.stores.tag_versions import TagVersions
from swr.stores.tiered import TieredStore
from tests.simulation import simulate as simulation
from tests.simulation.oracle import HUNG, INVALIDATED, LOST, MARKED, OLDER, PAUSED, REFUSED, Failed, Oracle
from tests.simulation.simulate import SCENARIOS, main, simulate
from tests.simulation.world import Gate, Link, Server, Weather

FULL = os.environ.get("SWR_FULL") == "1"
SEEDS = int(os.environ.get("SWR_SIMULATION_SEEDS", 10_000 if FULL else 0))
REDUCED = {"mixed": 25, "paused-holder": 30, "lost-reply": 30, "invalidation": 30, "loss": 30}
REDUCED |= {"older-data": 10, "releases": 10, "no-memory": 10, "stalls": 10, "hung-loaders": 10, "failing-crowds": 8}
REDUCED |= {"fallbacks": 10}
TRIED = {"paused-holder": PAUSED, "lost-reply": LOST, "invalidation": INVALIDATED}
TRIED |= {"older-data": OLDER, "no-memory": REFUSED, "hung-loaders": HUNG, "fallbacks": MARKED}


# Which scenario, which seed, and what swr did wrong in it.
RARE = {
    "readers whose loads fail are taken back to what this process held before": ("fallbacks", 1_080_688),
    "readers whose loads fail get what was invalidated while the link was down": ("fallbacks", 1_081_224),
    "a stale entry that the process kept during an outage outlives it": ("stalls", 1_081_272),
}


@pytest.mark.parametrize(("scenario", "seed"), RARE.values(), ids=RARE)
def test_seeds_that_once_found_a_violation_find_none_now(scenario, seed):
    assert not simulate(seed, scenario).violations


@pytest.mark.promise
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_seed_finds_a_violation(scenario, capsys):
    seeds = SEEDS or REDUCED[scenario]
    assert main(["--seeds", f"0:{seeds}", "--scenario", scenario]) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert re.fullmatch(rf"{scenario}: {seeds} seeds, \d+ answers.*; 0 seeds failed\n", said)
    if scenario in TRIED:
        # What the scenario is about does happen, once in a run and more.
        tried = re.search(rf"(\d+) {TRIED[scenario]}", said)
        assert tried is not None
        assert int(tried[1]) >= seeds


def test_seed_gives_the_same_run_in_every_process():
    code = "from tests.simulation.simulate import simulate; print(*simulate(5).trace, sep='\\n')"
    traces = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": salt},
            capture_output=True,
            check=True,
            text=True,
        ).stdout.splitlines()
        for salt in ("1", "2")
    ]
    assert traces[0] == traces[1] == simulate(5).trace
    assert len(traces[0]) > 100
    assert simulate(6).trace != traces[0]


class Sabotage(NamedTuple):
    """What is broken: `old` in the source of a function becomes `new`; and what a scenario's seeds find from `first` on."""

    owner: type
    function: str
    old: str
    new: str
    scenario: str
    found: str
    first: int = 0

    def commit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        function = getattr(self.owner, self.function)
        source = textwrap.dedent(inspect.getsource(function))
        assert source.count(self.old) == 1
        names: dict[str, object] = {}
        exec(source.replace(self.old, self.new), function.__globals__, names)
        monkeypatch.setattr(self.owner, self.function, names[self.function])


MOST = 20
SABOTAGES = {
    "a commit does not check its lease": Sabotage(
        MemoryStore,
        "commit",
        "raise LeaseLost(f\"the lease on {lease.key!r} had expired or was deleted\")\n    del self._holds[lease.key]",
        "pass\n    self._holds.pop(lease.key, None)",
        "paused-holder",
        "replaced something newer",
    ),
    "the lease outlives an invalidation": Sabotage(
        MemoryStore, "invalidate", "self._holds.pop(key, None)", "pass", "invalidation",
        "was stored after an invalidation that it does not know",
    ),
    "an entry gets the tag version of the end of its load": Sabotage(
        Load, "store", "self.began, version, self.tag_version,",
        "self.began, version, runtime.store.tag_versions.newest,", "invalidation",
        "was stored after an invalidation that it does not know", 30,
    ),
    "an entry is stamped at the end of its load": Sabotage(
        Load, "store", "policy, self.began,", "policy, runtime.clock(),", "mixed", "its age given as",
    ),
    "a rejected commit counts as done": Sabotage(
        Load, "_commit", "except LeaseLost:\n            flight.superseded = True",
        "except LeaseLost:\n            pass", "invalidation", "that it had heard of", 10,
    ),
    "a value loaded without a lease is always kept": Sabotage(
        Load, "_commit", "if flight.fence != flights.fence or not flights.is_current(flight)", "if False",
        "invalidation", "older than", 100,
    ),
    "an invalidation supersedes no flight": Sabotage(
        Notifications, "_on_key", "outdate(key, notification.version or NEWEST)", "pass", "mixed", "older than", 50,
    ),
    "a superseded load falls back on an invalidated entry": Sabotage(
        Flights, "invalidate", "one.entry = None", "pass", "hung-loaders", "that it had heard of", 92,
    ),
    "a lease request takes no entry that came meanwhile": Sabotage(
        RefreshPath, "_get_lease", "known = flight.entry.version if flight.entry is not None else 0", "known = NEWEST",
        "lost-reply", "is fresh",
    ),
    "a forced refresh takes a stored entry instead of loading": Sabotage(
        RefreshPath, "_get_lease", "known = NEWEST", "pass", "invalidation", "older than the refresh",
    ),
    "no lease is renewed": Sabotage(
        Renewals, "_renew", "await self._runtime.store.renew(lease, self._runtime.lease_for)", "pass", "mixed",
        "was under way", 10,
    ),
    "a failed load keeps its lease": Sabotage(
        Endings, "fail", "await runtime.store.release(lease, pause)", "pass", "lost-reply", "never answered",
    ),
    "a backoff refuses readers who have nothing to fall back on": Sabotage(
        RefreshPath, "_ask", "force=flight.forced or (not flight.is_unasked and self._endings.fallback(flight) is None)",
        "force=False", "mixed", "raised SWRError", 55,
    ),
    "any entry is a fallback for a failed load": Sabotage(
        Endings, "fallback", "if entry is None or not (decision.serve or decision.fallback)", "if entry is None",
        "lost-reply", "as stale (Failed('load", 26,
    ),
    "closing gives no lease back": Sabotage(
        RefreshPath, "_ask_and_load", "await self.runtime.store.release(lease)", "pass", "paused-holder", "a lease is left over",
    ),
    "local entries are served although the link was lost since": Sabotage(
        TieredStore, "_trust", "slot.origin.epoch != self._epoch", "False", "invalidation", "before its link came up",
    ),
    "superseded entries are served as fresh": Sabotage(
        TieredStore, "_trust", "if slot.is_superseded", "if False", "lost-reply", "older than a commit that it had heard of",
    ),
    "a read returns an entry that a notification outdated meanwhile": Sabotage(
        TieredStore, "read", "or entry.version < watch.minimum", "", "mixed", "older than", 221,
    ),
    "a commit keeps an entry that a notification outdated meanwhile": Sabotage(
        TieredStore, "commit", "entry.version < watch.minimum or ", "", "invalidation", "older than", 47,
    ),
    "tag versions are not checked": Sabotage(
        TagVersions, "admits", "if tag_version < self._hard.all", "if False", "invalidation", "that it had heard of", 29,
    ),
    "a pending invalidation is forgotten": Sabotage(
        SharedInvalidations, "keep_pending", "self.pending.add_tag(name)", "pass", "mixed",
        "older than its own invalidation", 100,
    ),
    "pending invalidations are not replayed": Sabotage(
        TieredStore, "_on_notification", "self._invalidations.replay()", "pass", "lost-reply", "still keeps",
    ),
    "closing ends no task": Sabotage(
        Engine, "aclose", "await self._tasks.aclose()", "pass", "mixed", "tasks are left over",
    ),
    "a silent link is never detected": Sabotage(
        Link, "_found_out", "if broken is self._broken", "if False", "invalidation", "that it should know of by now", 90,
    ),
    "missed tag versions are not learned": Sabotage(
        Link, "_learn", "if self._learned == head and head[1]", "if True", "invalidation", "before its link came up", 128,
    ),
    "evicted tag versions are never detected": Sabotage(
        Server, "lacks", "return not mine.cleared or mine.newest < known.newest or", "return False and", "loss",
        "before its link came up", 1375,
    ),
    "the version served last is forgotten": Sabotage(
        Served, "is_older", "served is not None and self._may_be_older(entry, served)", "False", "older-data",
        "older than what it has served", 16,
    ),
    "invalidations of keys are forgotten": Sabotage(
        Invalidations, "remember", "versions[key] = max(version, versions.pop(key, 0))", "pass", "older-data",
        "older than its own invalidation", 80,
    ),
    "a commit of one release counts for all releases": Sabotage(
        TieredStore, "_on_commit", "own = self._watches.get(key, {}).get(fingerprint)",
        "own = next(iter(self._watches.get(key, {}).values()), None)", "releases", "is fresh", 23,
    ),
    "a value kept without a lease is not remembered as served": Sabotage(
        TieredStore, "keep", "self._served.note(key, codec.fingerprint, version)", "pass", "no-memory",
        "older than what it has served", 215,
    ),
    "a lease whose grant did not arrive is kept": Sabotage(
        TieredStore, "acquire", "self._invalidations.give_back_later(Lease(key, token, 0, 0))", "pass", "stalls",
        "never answered", 15,
    ),
    "a reader whose wait has ended falls back on the entry it had found": Sabotage(
        Engine, "_wait_for", "entry = patience = None", "patience = None", "hung-loaders",
        "older than", 161,
    ),
    "callers of a failed load raise one exception": Sabotage(
        Flight, "failure", "return for_caller(result.error, result.traceback, is_last=not self.waiters)",
        "return result.error", "failing-crowds", "the same object",
    ),
    "a set value leaves loads their leases": Sabotage(
        MemoryStore, "seize", "self._holds[key] = _Hold(token, version, self._clock() + ttl, 0)", "pass", "invalidation",
        "was stored after an invalidation that it does not know", 6,
    ),
    "a set value that Redis refuses is forgotten": Sabotage(
        SharedInvalidations, "seize", "self._invalidate_later(Kind.PENDING_KEY, key, error)", "pass", "lost-reply",
        "older than its own invalidation", 95,
    ),
    "a mark supersedes no load under way": Sabotage(
        MemoryStore, "mark_stale", "self._holds.pop(key, None)", "pass", "invalidation", "that it does not know",
    ),
    "a mark of a key does not reach the local copy": Sabotage(
        TieredStore, "_on_mark", "slot.mark_stale(version)", "pass", "mixed", "that it had heard of",
    ),
    "soft tag versions are not checked": Sabotage(
        TagVersions, "marked_at", "return number if number > entry.tag_version else 0", "return 0", "mixed",
        "that it had heard of",
    ),
    "an entry that was marked on its way is fresh": Sabotage(
        TieredStore, "_marked", "if entry.version < watch.marked_at", "if False", "invalidation", "that it had heard of", 101,
    ),
    "a reader gets a value that a soft tag outdated during its load": Sabotage(
        Load, "_commit", "flight.superseded = True\n            return True", "pass\n            return True",
        "invalidation", "that it had heard of", 350,
    ),
    "a marked entry is not a fallback": Sabotage(
        Endings, "fallback", "if entry is None or not (decision.serve or decision.fallback)",
        "if entry is None or entry.is_marked or not (decision.serve or decision.fallback)", "no-memory",
        "could be the fallback", 5,
    ),
    "the fallback of a flight is not marked": Sabotage(
        Flights, "mark_stale", "one.entry = marked_stale(one.entry, version)", "pass", "fallbacks", "which is wrong", 260,
    ),
    "the fallback of a flight outlives a gap": Sabotage(
        Flights, "on_gap", "flight.entry = None", "pass", "fallbacks", "before its link came up", 755,
    ),
    "a value that is set and not stored outlives a gap": Sabotage(
        Overtaken, "_note", "self._has_gap = True", "pass", "fallbacks", "that it had heard of", 20,
    ),
    "a tag fences no load without a lease": Sabotage(
        Notifications, "handle", "self._flights.fence += 1", "pass", "fallbacks", "older than its own invalidation", 36,
    ),
    "a reader who joins a flight brings it no fallback": Sabotage(
        RefreshPath, "join", "self._flights.fall_back(flight, entry)", "pass", "fallbacks", "older than its answer", 208,
    ),
    "a read returns an entry that a commit outdated meanwhile": Sabotage(
        TieredStore, "_on_commit", "own.minimum = max(own.minimum, version)", "pass", "lost-reply",
        "older than a commit that it had heard of", 29,
    ),
    "a local copy is not marked by a soft tag": Sabotage(
        TieredStore, "_trust", "slot.mark_stale(self.tag_versions.marked_at(entry))", "pass", "mixed", "that it had heard of",
    ),
    "a loader is not invalidated": Sabotage(
        TagVersions, "admits_entry", "entry.loader", "\"\"", "invalidation", "that it had heard of", 10,
    ),
}  # fmt: skip


@pytest.mark.parametrize("sabotage", SABOTAGES.values(), ids=SABOTAGES)
def test_sabotage_is_found(sabotage, monkeypatch):
    sabotage.commit(monkeypatch)
    found = (
        text
        for seed in range(sabotage.first, sabotage.first + MOST)
        for text in simulate(seed, sabotage.scenario).violations
    )
    assert any(sabotage.found in text for text in found)


def test_foreign_values_foreign_failures_and_logged_errors_are_found(monkeypatch):
    """A value of another key, a failure of another's, and what swr calls an error."""
    run = simulation.Job.run

    async def other(self, load):
        if self._worker.name == "w0":
            self._key = "k0"
        await run(self, load)

    with monkeypatch.context() as patch:
        patch.setattr(simulation.Job, "run", other)
        assert any(text.endswith("of k0") for seed in range(20) for text in simulate(seed).violations)

    async def fails(self, load):
        reading = self._worker.world.oracle.load_begins("elsewhere", self._key, 0.0, forced=True)
        raise Failed(reading)

    with monkeypatch.context() as patch:
        patch.setattr(simulation.Job, "run", fails)
        assert "which is another's" in simulate(0).violations[0]

    async def boom():
        raise RuntimeError("boom")

    async def starts(self, load):
        load._runtime.tasks.start(boom)
        await run(self, load)

    with monkeypatch.context() as patch:
        patch.setattr(simulation.Job, "run", starts)
        assert "logged: a background task failed RuntimeError('boom')" in simulate(0).violations[0]


def test_failing_seed_is_printed_with_a_command_that_replays_it(monkeypatch, capsys):
    SABOTAGES["local entries are served although the link was lost since"].commit(monkeypatch)
    assert main(["--seeds", "0:8", "--scenario", "invalidation"]) == 1
    *failing, summary = capsys.readouterr().out.splitlines()
    seed = re.search(
        r"; replay: python -m tests\.simulation\.simulate (--seed \d+ --scenario invalidation --trace)$", failing[0]
    )
    assert seed is not None
    assert summary.endswith(f"; {len(failing)} seeds failed")
    assert main(seed[1].split()) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-2] == failing[0]
    assert any("oracle w" in line for line in said[:-2])
    monkeypatch.undo()
    assert main(seed[1].split()) == 0


def test_module_runs_as_a_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["simulate", "--seed", "3"])
    monkeypatch.delitem(sys.modules, "tests.simulation.simulate")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("tests.simulation.simulate", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("mixed: 1 seeds, ")


@pytest.mark.parametrize("seeds", ["5", "a:b", "3:3", "-1:4"])
def test_invalid_seed_ranges_are_refused(seeds, capsys):
    with pytest.raises(SystemExit) as ended:
        main([f"--seeds={seeds}"])
    assert ended.value.code == 2
    assert f"{seeds!r} is not FIRST:LAST" in capsys.readouterr().err


def test_simulated_link_holds_no_entry():
    oracle = Oracle({}, 1.0, lambda: 0.0)
    server = Server(lambda: 0.0, oracle, lenient=False)
    link = Link(server, "w0", Gate(), Random(0), Weather(0.0, 0.0), oracle, lambda function: None)
    assert (link.peek("k"), link.sent) == (None, 0)


def test_now_of_a_simulated_link_that_is_down_raises_store_unavailable():
    oracle = Oracle({}, 1.0, lambda: 0.0)

    async def ask():
        server = Server(lambda: 0.0, oracle, lenient=False)
        await Link(server, "w0", Gate(), Random(0), Weather(0.0, 0.0), oracle, lambda function: None).now()

    with pytest.raises(StoreUnavailable, match="down"):
        anyio.run(ask, backend="trio")
