"""Sizes that no machine here can run: a deterministic simulation of rounds, and where it agrees with what was measured.

    scripts/bench sizes [--quick] [--measured FILE]

`scripts/bench architectures --save FILE` writes what was measured; with it, the simulation first predicts the larger of
the measured sizes from what a load cost in the smallest, on as many cores as there were.

What is simulated is one round, batch by batch, as events in time: workers with two half-full windows each, a server
that does one thing at a time, cores that do one thing at a time each, requests that take their time. Groups are
counted, not named: which of those that are not done a worker asks for next is drawn, as rendezvous hashing would. Reads
are drawn from the trace; for more groups than it has keys, each key represents as many groups as are needed, alike.
Everything follows from the seed. Of a cluster's masters each has its part of the entries and one shard of the queue,
and each passes every message on to every worker. What is not simulated: failures, readers who refresh what a round is
late with, the network's bandwidth.
"""

import argparse
import heapq
import itertools
import json
import math
import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measure import percentile, table, verdict
from examples.demo.trace import keys as trace

_SEED = 1
_AT_ONCE = 32
_HALF = _AT_ONCE // 2
_IN_ONE_COMMAND = 500
# Of those that begin together so many end in one turn of the event loop, on average, and are stored by one request.
_TOGETHER = 8
# Requests of a worker in a second, whatever it does: signs of life.
_BEATS = 1.8
# Of the server's time for a refreshed group: what its lease, its entry, its task cost.
_CLAIM, _COMMIT = 0.3, 0.7
# Looks of an idle consumer at each shard in a second, in case that a message was lost.
_LOOKS_AGAIN = 0.2
_EVERY = 60.0
# Masters of a cluster, and its slots.
_MASTERS = 6
_SLOTS = 16_384
_READS = 10_000


class Costs(NamedTuple):
    """What things cost, in seconds: a round trip; a load, waiting; a refreshed group, CPU of worker and of server.

    The next three are for a queue: what a task costs the server besides, and an empty look at it; and, in seconds of
    the leader, a group that it enqueues. Then, in seconds of a worker, what it takes to list a group, with locks to
    find its place in the worker's order, and to hear of the commit of one. The last two are what the server spends on a
    message to each worker: one that is sent by itself, and one that is sent with others, as under a backlog.
    """

    trip: float
    load: float
    worker: float
    server: float
    task: float
    look: float
    enqueue: float
    listed: float = 0.000011
    ordered: float = 0.0000033
    heard: float = 0.0000054
    tell: float = 0.000006
    tell_more: float = 0.0000006


# Of `scripts/bench architectures`, "While nobody reads", 10,000 groups, without what SQLite takes of the worker's; the
# load is that of the busiest real group, in a database that others run.
MEASURED = Costs(trip=0.0005, load=0.02, worker=0.0012, server=0.00007, task=0.00007, look=0.00003, enqueue=0.00001)


class Simulated(NamedTuple):
    """What came of a round: requests, seconds until its last load, and when loads ended (seconds, how many)."""

    requests: int
    took: float
    ended: list[tuple[float, int]]


class Machine:
    """Masters and cores, each of which does one thing at a time.

    Parameters:
        cores: how many.
        masters: how many.
        workers: who hear every message.
        costs: of which those of messages count.
    """

    def __init__(self, cores: int, masters: int, workers: int, costs: Costs) -> None:
        self._masters = [0.0] * masters
        self._cores = [0.0] * cores
        self._told = workers * costs.tell, workers * costs.tell_more

    def serve(self, at: float, seconds: float, master: int | None = None) -> float:
        """Return when a master is done with what arrives at a time, or all of them with a part each."""
        of_all = len(self._masters)
        for one in range(of_all) if master is None else (master,):
            self._masters[one] = max(self._masters[one], at) + (seconds / of_all if master is None else seconds)
        return max(self._masters) if master is None else self._masters[master]

    def tell(self, at: float, messages: int) -> None:
        """Have every master pass messages on, behind what it does already."""
        for one, until in enumerate(self._masters):
            self._masters[one] = max(until, at) + messages * self._told[until > at]

    def compute(self, at: float, seconds: float) -> float:
        """Return when the first core that is free is done with it."""
        done = max(at, self._cores[0]) + seconds
        heapq.heapreplace(self._cores, done)
        return done

    def commands(self, keys: int, together: int, in_a_row: float = 1.0) -> int:
        """Return how many commands some keys are. On a cluster a script gets the keys of one slot.

        Parameters:
            together: how many keys share a command on one server.
            in_a_row: how many of them lie in one slot.
        """
        batches = math.ceil(keys / together)
        return round(batches + (keys - batches) / in_a_row) if len(self._masters) > 1 else batches

    def hearing(self, workers: int, costs: Costs) -> float:
        """Return what a worker's share of all groups' commits takes it to hear, for each group that it refreshes."""
        # What another master has passed on already is only looked up.
        return workers * costs.heard * (1 + 0.1 * (len(self._masters) - 1))


def locks(groups: int, workers: int, cores: int, costs: Costs, masters: int = 1) -> Simulated:
    """One round of sharded locks."""
    chance, machine = random.Random(_SEED), Machine(cores, masters, workers, costs)
    free, busy, requests, took = groups, 0, 0, 0.0
    ended: list[tuple[float, int]] = []
    hearing = machine.hearing(workers, costs)
    # When what arrives at the server, of which lane; two lanes are a worker: claims (0), or commits of so many.
    events: list[tuple[float, int, int]] = []
    for worker in range(workers):
        listed = machine.compute(0.0, groups * (costs.listed + costs.ordered)) + costs.trip / 2
        events += [(listed, 2 * worker, 0), (listed, 2 * worker + 1, 0)]
    heapq.heapify(events)
    # Each asks for the server's clock first.
    requests += workers
    while events:
        at, lane, commits = heapq.heappop(events)
        if commits:
            done = machine.serve(at, commits * _COMMIT * costs.server) + costs.trip / 2
            commands = machine.commands(commits, _TOGETHER)
            machine.tell(at, commands)
            busy -= commits
            requests += commands
            ended.append((done, commits))
            took = max(took, done)
            if free or busy:
                heapq.heappush(events, (done + costs.trip / 2, lane, 0))
            continue
        asked = min(_HALF, free + busy)
        if not asked:
            continue
        requests += machine.commands(asked, _HALF)
        # What somebody else has is refused, and not asked for again: his commit will be heard.
        won = min(free, sum(chance.random() * (free + busy) < free for _ in range(asked)))
        free, busy = free - won, busy + won
        back = machine.serve(at, asked * _CLAIM * costs.server) + costs.trip / 2
        if won:
            ready = machine.compute(back, won * (costs.worker + hearing)) + costs.load
            heapq.heappush(events, (ready + costs.trip / 2, lane, won))
        elif free:
            heapq.heappush(events, (back + costs.trip / 2, lane, 0))
    return Simulated(requests, took, ended)


def queue(groups: int, workers: int, cores: int, costs: Costs, masters: int = 1) -> Simulated:
    """One round of a queue: a leader enqueues, and his commands wake as many of the idle as there are tasks for."""
    chance, machine = random.Random(_SEED), Machine(cores, masters, workers, costs)
    queued, left, requests, took = [0] * masters, groups, 0, 0.0
    ended: list[tuple[float, int]] = []
    hearing = machine.hearing(workers, costs)
    in_one_step = 2 * _IN_ONE_COMMAND if masters > 1 else _IN_ONE_COMMAND
    # The groups are enqueued in the order of their slots: so many lie in a slot that has any.
    in_a_row = groups / _SLOTS / (1 - math.exp(-groups / _SLOTS))
    idle = list(range(2 * workers))
    # Arrivals at the server: of the leader (-1), or of a lane: a look (0), or so many commits; and at which shard.
    first_at = machine.compute(0.0, groups * costs.listed) + costs.trip
    events: list[tuple[float, int, int, int]] = [(first_at, -1, 0, 0)]
    while events:
        at, lane, commits, shard = heapq.heappop(events)
        if lane < 0:
            some = min(in_one_step, left)
            left -= some
            for one in range(masters):
                queued[one] += some // masters + (one < some % masters)
            # The lease is renewed with every thousand.
            requests += masters + (left % (2 * _IN_ONE_COMMAND) == 0)
            told = machine.serve(at, some * costs.task / 2) + costs.trip
            if left:
                next_at = told + min(in_one_step, left) * costs.enqueue
                heapq.heappush(events, (next_at + costs.trip / 2, -1, 0, 0))
            machine.tell(at, masters if idle else 0)
            for number in range(min(len(idle), masters * math.ceil(some / masters / _HALF))):
                heapq.heappush(events, (told, idle.pop(), 0, number % masters))
            continue
        if commits:
            # The entries, and then what became of the tasks.
            stored = machine.serve(at, commits * costs.server)
            done = max(stored, machine.serve(at, commits * costs.task / 2, shard)) + 3 * costs.trip / 2
            commands = machine.commands(commits, _TOGETHER, in_a_row)
            machine.tell(at, commands)
            requests += commands + math.ceil(commits / _TOGETHER)
            ended.append((done, commits))
            took = max(took, done)
            heapq.heappush(events, (done + costs.trip / 2, lane, 0, chance.randrange(masters)))
            continue
        # It looks at one shard after the other until it has found as much as it can take, and is idle then.
        taken, from_shard, back = 0, shard, at
        for other in (*range(shard, masters), *range(shard)):
            requests += 1
            back = max(back, machine.serve(at, costs.look, other) + costs.trip / 2)
            if queued[other]:
                taken, from_shard = min(_HALF, queued[other]), other
                queued[other] -= taken
                break
        if taken:
            # Their leases.
            requests += machine.commands(taken, _HALF, in_a_row)
            ready = machine.compute(back + costs.trip, taken * (costs.worker + hearing)) + costs.load
            heapq.heappush(events, (ready + costs.trip / 2, lane, taken, from_shard))
        else:
            idle.append(lane)
    return Simulated(requests, took, ended)


class Read(NamedTuple):
    """What came of refresh on read: loads and requests a second, and the ages that were read."""

    loads: float
    requests: float
    ages: list[float]


class Fleet(NamedTuple):
    """Who reads.

    Parameters:
        groups: how many.
        workers: how many.
        every: seconds between rounds.
        reads: a second, by all workers together.
        rounds: that count, after a first one that does not.
        memory: whether workers hold values in their own memory, too.
    """

    groups: int
    workers: int
    every: float
    reads: float
    rounds: int = 2
    memory: bool = True


def asked_by(fleet: Fleet, chance: random.Random) -> Iterator[tuple[float, int, int]]:
    """Yield who reads what and when (seconds, group, worker), round after round."""
    asked = trace()
    rank = {key: number for number, (key, _) in enumerate(Counter(asked).most_common())}
    # Of fewer groups the first are read, as in the measurement.
    asked = tuple(key for key in asked if rank[key] < fleet.groups)
    alike = max(1, fleet.groups // len(rank))
    for number in range(int((1 + fleet.rounds) * fleet.every * fleet.reads)):
        group = rank[asked[number % len(asked)]] * alike + (chance.randrange(alike) if alike > 1 else 0)
        yield number / fleet.reads, group, chance.randrange(fleet.workers)


def requests_of(strategy: str, one: Simulated, workers: int, every: float, masters: int = 1) -> int:
    """Return how many requests there are from the beginning of a round to that of the next."""
    # A consumer of a queue says four times in `reclaim_after`, which is a sixth of `every`, that it lives.
    beats = _BEATS * masters
    if strategy == "queue":
        beats += (4 / max(1, every / 6) + _LOOKS_AGAIN) * masters
    return one.requests + int(beats * workers * max(every, one.took))


def read(fleet: Fleet, costs: Costs) -> Read:
    """Refresh on read."""
    chance = random.Random(_SEED)
    # group -> when its last load began; who has which in memory
    loaded: dict[int, float] = {}
    held: dict[tuple[int, int], float] = {}
    ages: list[float] = []
    loads = requests = 0
    for at, group, worker in asked_by(fleet, chance):
        counts = at >= fleet.every
        stored = loaded.get(group)
        mine = held.get((group, worker)) if fleet.memory else None
        given = mine if mine is not None and at - mine > fleet.every else stored
        if counts:
            # Of what nobody has read yet the reader waits for the load.
            ages.append(0.0 if given is None else at - given)
        if stored is None or at - stored > fleet.every + costs.load:
            loaded[group] = stored = at
            loads += counts
            # The lease and the entry.
            requests += 2 * counts
        elif mine != stored:
            requests += counts
        held[group, worker] = stored
    seconds = fleet.rounds * fleet.every
    return Read(loads / seconds, requests / seconds + _BEATS * fleet.workers, ages)


def ages_of(rounds: Simulated, fleet: Fleet, same_order: bool) -> list[float]:
    """Return the ages that readers are given.

    What a worker holds, and has heard to be replaced, it serves once more if it is stale, as it does with `read`; what
    is stale and has not been replaced, its reader refreshes.
    """
    chance = random.Random(_SEED)
    times = [at for at, _ in rounds.ended]
    total = list(itertools.accumulate(number for _, number in rounds.ended))
    # A round that takes longer than `every` overlaps nothing.
    period = fleet.every * max(1, math.ceil(rounds.took / fleet.every))
    turns: dict[tuple[int, int], float] = {}
    refreshed: dict[int, float] = {}
    held: dict[tuple[int, int], float] = {}
    ages: list[float] = []

    def turn_of(group: int, number: int) -> float:
        """When a group is loaded in a round."""
        place = (group, 0 if same_order else number)
        if place not in turns:
            (turns[place],) = chance.choices(times, cum_weights=total)
        return number * period + turns[place]

    for at, group, worker in asked_by(fleet._replace(every=period), chance):
        number = int(at / period)
        due = turn_of(group, number)
        stored = max(due if due <= at else turn_of(group, number - 1), refreshed.get(group, -math.inf))
        mine = held.get((group, worker)) if fleet.memory else None
        given = mine if mine is not None and at - mine > fleet.every else stored
        held[group, worker] = stored
        if at - stored > fleet.every:
            refreshed[group] = at
        if at >= period:
            ages.append(at - given)
    return ages


# -- tables ---------------------------------------------------------------------------------------------------


def print_sizes(sizes: Sequence[tuple[int, int]], reads: int) -> None:
    """Print what larger sizes would cost."""
    rows = []
    for groups, workers in sizes:
        name = f"{groups:,} groups, {workers:,} workers"
        fleet = Fleet(groups, workers, _EVERY, reads)
        for strategy, simulate in (("locks", locks), ("queue", queue)):
            one = simulate(groups, workers, workers, MEASURED)
            lasts, requests = max(_EVERY, one.took), requests_of(strategy, one, workers, _EVERY)
            # What does not fit is as old as a round is long, and no reader has to be asked.
            fits = one.took <= _EVERY
            rows.append(
                [
                    f"{strategy}, {name}",
                    f"{requests:,}",
                    f"{requests / groups:.2f}",
                    f"{one.requests / groups:.2f}",
                    f"{one.took:,.1f}",
                    f"{percentile(ages_of(one, fleet, strategy == 'queue'), 99):.0f}" if fits else f"> {one.took:,.0f}",
                    f"{groups / lasts:,.0f}",
                    f"{groups / lasts * MEASURED.load:,.1f}",
                ]
            )
        lazy = read(fleet, MEASURED)
        rows.append(
            [
                f"read, {name}",
                f"{lazy.requests * _EVERY:,.0f}",
                f"{lazy.requests * _EVERY / groups:.2f}",
                f"{(lazy.requests - _BEATS * workers) * _EVERY / groups:.2f}",
                "",
                f"{percentile(lazy.ages, 99):.0f}",
                f"{lazy.loads:,.0f}",
                f"{lazy.loads * MEASURED.load:,.1f}",
            ]
        )
    columns = [f"simulated, every {_EVERY:g} s", "requests a round", "a group", "without signs of life", "round s"]
    columns += ["age p99 s", "queries/s", "queries at once"]
    table(f"One server of Redis, a core for each worker, {reads:,} reads/s", columns, rows)


def print_workers(groups: int, fleets: Sequence[int], masters: int) -> None:
    """Print what a round of the same groups asks of Redis, by the number of workers."""
    rows = []
    for workers in fleets:
        for strategy, simulate in (("locks", locks), ("queue", queue)):
            one = simulate(groups, workers, workers, MEASURED, masters)
            alive = requests_of(strategy, one, workers, _EVERY, masters)
            rows.append(
                [
                    f"{strategy}, {workers:,} workers",
                    f"{one.requests / groups:.2f}",
                    verdict(one.requests / groups, at_most=2),
                    f"{alive / groups:.2f}",
                    f"{one.took:,.1f}",
                    verdict(one.took, at_most=_EVERY),
                ]
            )
    where = "one server" if masters == 1 else f"a cluster of {masters} masters, as many shards"
    columns = [f"{groups:,} groups", "requests a group", "goal", "signs of life included", "round s", "goal (s)"]
    table(f"Simulated: {where}, a core for each worker", columns, rows)


def print_agreement(path: Path) -> None:
    """Print what was measured beside what is predicted from the smallest run of the same groups."""
    seen: list[dict[str, Any]] = json.loads(path.read_text())
    rows = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for strategy, simulate in (("locks", locks), ("queue", queue)):
        for real in (True, False):
            mine = [one for one in seen if one["strategy"] == strategy and (one["groups"] <= 105) is real]
            mine.sort(key=lambda one: (one["groups"], one["workers"], not one["memory"]))
            for one in mine[1:]:
                # The loader's time is in the worker's, and the server has no core of its own.
                costs = MEASURED._replace(load=0.0, worker=mine[0]["worker"] + mine[0]["server"])
                predicted = simulate(one["groups"], one["workers"], min(cores, one["workers"]), costs)
                age = percentile(ages_of(predicted, fleet_of(one), strategy == "queue"), 99)
                rows.append(
                    [
                        name_of(one),
                        f"{requests_of(strategy, predicted, one['workers'], one['every']):,}",
                        f"{one['requests']:,.0f}",
                        f"{predicted.took:.1f}",
                        f"{one['took']:.1f}",
                        f"{age:.1f}",
                        f"{one['age']:.1f}",
                    ]
                )
    for one in seen:
        if one["strategy"] == "read":
            lazy = read(fleet_of(one), MEASURED)
            cells = [f"{lazy.requests * one['every']:,.0f}", f"{one['requests_read']:,.0f}", "", ""]
            cells += [f"{percentile(lazy.ages, 99):.1f}", f"{one['age']:.1f}"]
            rows.append([name_of(one), *cells])
    columns = ["simulated, measured", "requests a round", "measured", "round s", "measured", "age p99 s", "measured"]
    table("What is predicted, and what was measured", columns, rows)


def name_of(one: dict[str, Any]) -> str:
    """Return what a row is called."""
    name = f"{one['strategy']}, {one['groups']:,} groups, {one['workers']} workers"
    return name if one["memory"] else f"{name}, no L1"


def fleet_of(one: dict[str, Any]) -> Fleet:
    """Return who read in a run that was measured."""
    return Fleet(*(one[name] for name in Fleet._fields))


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it runs")
    parser.add_argument("--measured", metavar="FILE", type=Path, help="what architectures --save has written")
    options = parser.parse_args()
    if options.measured:
        print_agreement(options.measured)
    sizes = [(100_000, 10), (100_000, 100), (1_000_000, 100), (1_000_000, 1_000), (10_000_000, 1_000)]
    sizes += [(10_000_000, 10_000)]
    for masters in (1, _MASTERS):
        for groups in (2_000,) if options.quick else (100_000, 1_000_000):
            print_workers(groups, (4,) if options.quick else (16, 48, 100, 1_000, 10_000), masters)
    print_sizes([(1_000, 4)] if options.quick else sizes, 100 if options.quick else _READS)


if __name__ == "__main__":
    main()
