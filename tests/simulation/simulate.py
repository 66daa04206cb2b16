"""Real engines on a clock that is not, over a store, links and workers that fail as a seed says.

    python -m tests.simulation.simulate --seed 7 --trace
    python -m tests.simulation.simulate --seeds 0:1000 --scenario lost-reply

Each run is a small fleet in a few seconds of simulated time: `tests.simulation.world` is what it runs on, and
`tests.simulation.oracle` judges it. One seed is one run, down to the order in which tasks are scheduled.
"""

import argparse
import contextlib
import functools
import logging
import math
import re
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextvars import Context
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import anyio
import trio
import trio.testing
from trio._core import _run as scheduler

from swr.engine.engine import Engine
from swr.engine.entries import Value
from swr.engine.load import Load
from swr.entry import Entry
from swr.policy import Policy
from swr.stores import hearing
from swr.stores.base import Kind
from swr.stores.local import LocalCache
from swr.stores.tag_versions import ALL, Name, OfLoader, Soft
from swr.stores.tiered import TieredStore
from swr.testing.clock import START
from tests.simulation.oracle import LOADER, Failed, Oracle, loader_of
from tests.simulation.world import CODECS, Gate, Link, Server, Weather

_TAGS: Final = ("t1", "t2")
# Seconds in which every request must have an end, and in which all that goes on behind the scenes must.
_PATIENCE: Final = 20.0
_LONG: Final = 8.0


@dataclass(frozen=True)
class Scenario:
    """What happens in a run, at random moments within the first `horizon` seconds.

    Parameters:
        workers, keys: the most there are.
        horizon: seconds.
        reads, refreshes, invalidations, sets: how many.
        soft: the share of invalidations that mark stale.
        cancelled: the share of reads whose client leaves before it has an answer.
        loads: the most seconds that a load takes.
        failing, least_failing: the share of loads that fail, at most and at least.
        leases: of which one is chosen, seconds.
        fresh: of which one is the most that values are fresh for, seconds.
        stale, stale_if_error: the most seconds that values are served for after that.
        latency, lost: see `Weather`, at most.
        skew: the most seconds by which a worker's clock is wrong.
        holds: the share of loads during which their worker is paused.
        faults: how many happen at most, each one of `kinds`.
        releases: of how many the workers are.
        hung: the share of loads that hang, until their time is over.
        patience: the seconds that a reader waits for a load if it can be given something else; None: to its end.
        crowd: how many ask at once.
        held: of which one is the most bytes that a worker's memory holds.
    """

    workers: int = 4
    keys: int = 2
    horizon: float = 8.0
    reads: int = 40
    refreshes: int = 4
    invalidations: int = 4
    sets: int = 2
    soft: float = 0.3
    cancelled: float = 0.1
    loads: float = 1.5
    failing: float = 0.5
    least_failing: float = 0.0
    leases: tuple[float, ...] = (1.0, 3.0)
    fresh: tuple[float, ...] = (1.0, 6.0, 20.0)
    stale: float = 3.0
    stale_if_error: float = 6.0
    latency: float = 0.08
    lost: float = 0.05
    skew: float = 2.0
    holds: float = 0.0
    faults: int = 4
    kinds: tuple[str, ...] = ("pause", "crash", "cut", "silence", "restart", "evict", "jump")
    releases: int = 1
    hung: float = 0.0
    patience: float | None = None
    crowd: int = 1
    held: tuple[int, ...] = (2**20,)


SCENARIOS: Final = {
    "mixed": Scenario(),
    "paused-holder": Scenario(
        workers=3, keys=1, horizon=4, reads=16, refreshes=2, invalidations=1, leases=(0.5, 1.0), fresh=(1.0, 6.0),
        lost=0, holds=0.5, faults=0,
    ),
    "lost-reply": Scenario(
        workers=3, keys=1, horizon=4, reads=16, refreshes=2, invalidations=1, loads=0.3, leases=(30.0,),
        fresh=(1.0, 6.0), lost=0.4, faults=0,
    ),
    "invalidation": Scenario(
        workers=3, keys=2, horizon=3, reads=24, refreshes=2, invalidations=8, loads=0.5, leases=(3.0,), lost=0.02,
        faults=3, kinds=("cut", "silence"),
    ),
    "loss": Scenario(
        workers=3, keys=2, horizon=4, reads=24, refreshes=1, invalidations=8, loads=0.3, leases=(3.0,), lost=0.02,
        faults=8, kinds=("evict", "evict", "cut", "silence", "crash"),
    ),
    "older-data": Scenario(
        workers=3, keys=2, horizon=6, reads=30, refreshes=4, invalidations=8, loads=0.3, leases=(3.0,), lost=0.02,
        faults=5, kinds=("older", "older", "cut", "silence", "pause"), held=(0, 2**20),
    ),
    "releases": Scenario(
        workers=4, keys=2, horizon=5, reads=40, refreshes=3, invalidations=6, loads=0.4, leases=(3.0,), lost=0.02,
        faults=3, kinds=("crash", "cut", "evict", "pause"), releases=2,
    ),
    "no-memory": Scenario(
        workers=3, keys=2, horizon=6, reads=40, refreshes=4, invalidations=8, loads=0.3, leases=(1.0, 3.0), lost=0.02,
        failing=1.0, faults=5, kinds=("full", "full", "cut", "silence", "crash"), held=(0, 2**20, 2**20),
    ),
    "stalls": Scenario(
        workers=3, keys=2, horizon=6, reads=40, refreshes=3, invalidations=6, loads=0.3, leases=(30.0,), lost=0.02,
        faults=5, kinds=("stall", "stall", "cut", "pause"),
    ),
    "hung-loaders": Scenario(
        workers=3, keys=2, horizon=6, reads=40, refreshes=2, invalidations=2, loads=0.3, leases=(1.0, 3.0),
        fresh=(1.0, 2.0), lost=0.0, faults=1, kinds=("cut", "crash"), hung=0.3, patience=0.5,
    ),
    "failing-crowds": Scenario(
        workers=3, keys=2, horizon=4, reads=6, refreshes=2, invalidations=2, loads=0.5, failing=1.0, leases=(3.0,),
        fresh=(1.0, 2.0), lost=0.02, faults=2, kinds=("cut", "crash"), crowd=30,
    ),
    "fallbacks": Scenario(
        workers=3, keys=1, horizon=3, reads=80, refreshes=10, invalidations=16, soft=0.6, loads=1.0, least_failing=0.4,
        leases=(3.0,), fresh=(1.0, 20.0), stale=0.0, stale_if_error=4.0, lost=0.02, faults=6,
        kinds=("cut", "cut", "silence", "crash"),
    ),
}  # fmt: skip


class Job:
    """Loads one key in one worker: it takes its time, reads the database somewhere in between, and may fail."""

    context: Context | None = None
    new_seat = None
    is_outer = False

    def __init__(self, worker: "Worker", key: str, *, forced: bool = False) -> None:
        self.codec = worker.codec
        self._worker = worker
        self._key = key
        self.loader = loader_of(key)
        self._forced = forced

    async def run(self, load: Load) -> None:
        """Load."""
        worker, world = self._worker, self._worker.world
        random, oracle = world.random, world.oracle
        reading = oracle.load_begins(worker.name, self._key, worker.clock(), forced=self._forced)
        hangs = bool(world.scenario.hung) and random.random() < world.scenario.hung and not world.is_over
        # What does not hang takes no time, but its process may be paused for longer than a load may run.
        load.limit(random.uniform(1, 4) if hangs else None)
        if random.random() < world.scenario.holds and not world.is_over:
            world.nursery.start_soon(world.pause, worker, random.uniform(0, world.longest))
        seconds, fraction = random.uniform(0, world.longest), random.random()
        try:
            if hangs:
                oracle.load_hangs(reading)
                await anyio.sleep_forever()
            await worker.sleep(seconds * fraction)
            oracle.load_reads(reading)
            await worker.sleep(seconds * (1 - fraction))
        finally:
            oracle.load_ends(reading)
        if random.random() < world.failing:
            raise Failed(reading)
        await load.store(reading.number, world.policies[self._key])
        oracle.load_ends_stored(reading)

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of the key's policy; those of one key are known only when its value is there."""
        return () if self._key == "k0" else self._worker.world.policies[self._key].tags

    def may_fall_back(self, entry: Entry[Any], error: BaseException, now: float) -> bool:
        """Every failure has a fallback."""
        return True


class Worker:
    """One process: a real engine over a real tiered store with a local cache of its own, on a simulated link.

    Parameters:
        world: where it lives.
        name: which it is; one that takes a crashed worker's place has another.
    """

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.skew = world.random.uniform(-1, 1) * world.scenario.skew
        self.gate = Gate()
        self.clients: list[anyio.CancelScope] = []
        releases, held = world.scenario.releases, world.scenario.held
        # Nothing is drawn where there is no choice, so that the runs of other scenarios stay what they were.
        self.codec = CODECS[world.random.randrange(releases) if releases > 1 else 0]
        world.oracle.employs(name, self.codec.fingerprint)
        self.link = Link(
            world.server,
            name,
            self.gate,
            world.random,
            world.weather,
            world.oracle,
            world.nursery.start_soon,
            self.codec,
        )
        local = LocalCache(world.random.choice(held) if len(held) > 1 else held[0], 100)
        self.store = TieredStore(local, self.link, self.clock)
        drain_for = world.random.choice((0.2, 2.0))
        self.engine = Engine(self.store, world.lease_for, drain_for, self.clock, world.random.uniform)

    def clock(self) -> float:
        """Return what this worker believes the time is."""
        return START + anyio.current_time() + self.skew

    async def sleep(self, seconds: float) -> None:
        """Sleep as a stopped process does: until the time is over and it runs."""
        await self.gate.passed()
        await anyio.sleep(seconds)
        await self.gate.passed()


@dataclass
class World:
    """One run.

    Parameters:
        scenario: what happens.
        seed: all that is left to chance.
    """

    scenario: Scenario
    seed: int

    def __post_init__(self) -> None:
        scenario = self.scenario
        self.random = random = Random(self.seed)
        self.policies = {
            f"k{number}": Policy(
                random.uniform(0.2, random.choice(scenario.fresh)),
                random.choice((0, random.uniform(0, scenario.stale))),
                random.choice((0, random.uniform(0, scenario.stale_if_error))),
                tags=random.sample(_TAGS, random.randrange(3)),
            )
            for number in range(random.randint(1, scenario.keys))
        }
        self.keys = list(self.policies)
        self.is_over = False
        self.lease_for = random.choice(scenario.leases)
        self.oracle = Oracle(self.policies, self.lease_for, anyio.current_time)
        self.longest = random.uniform(0, scenario.loads)
        self.failing = max(scenario.least_failing, random.choice((0, 0, random.uniform(0, scenario.failing))))
        self.weather = Weather(
            random.uniform(0, scenario.latency), random.choice((0, random.uniform(0, scenario.lost)))
        )

    async def run(self) -> None:
        """Run to the end, and judge."""
        before = trio.lowlevel.current_statistics().tasks_living
        async with trio.open_nursery() as self.nursery:
            self.server = Server(lambda: START + anyio.current_time(), self.oracle, lenient=self.random.random() < 0.5)
            await self.server.start(self.nursery.start_soon)
            self.born = self.random.randint(2, self.scenario.workers)
            self.workers = [Worker(self, f"w{number}") for number in range(self.born)]
            async with trio.open_nursery() as nursery:
                for action, number in (
                    (self.read, self.scenario.reads),
                    (self.refresh, self.scenario.refreshes),
                    (self.invalidate, self.scenario.invalidations),
                    (self.set, self.scenario.sets),
                    (self.fail, self.random.randint(0, self.scenario.faults)),
                ):
                    for _ in range(number):
                        nursery.start_soon(self._at, self.random.uniform(0, self.scenario.horizon), action)
            await self._end()
        after = trio.lowlevel.current_statistics().tasks_living
        if after != before:
            self.oracle.blame(f"{after - before} tasks are left over")

    async def _at(self, moment: float, action: Callable[[Worker], Awaitable[None]]) -> None:
        await anyio.sleep(moment)
        worker = self.random.choice(self.workers)
        await worker.gate.passed()
        # If the worker was killed meanwhile, another one acts.
        await action(self.random.choice(self.workers) if worker.link.dead else worker)

    # -- actors -----------------------------------------------------------------------------------------------

    async def read(self, worker: Worker) -> None:
        """Ask for a key; some leave before they are answered."""
        key = self.random.choice(self.keys)
        patience = self.random.uniform(0, 1) if self.random.random() < self.scenario.cancelled else _PATIENCE
        async with trio.open_nursery() as nursery:
            for _ in range(self.scenario.crowd):
                nursery.start_soon(functools.partial(self._ask, worker, key, patience, forced=False))

    async def refresh(self, worker: Worker) -> None:
        """Have a key loaded again."""
        await self._ask(worker, self.random.choice(self.keys), _PATIENCE, forced=True)

    async def _ask(self, worker: Worker, key: str, patience: float, *, forced: bool) -> None:
        engine, job = worker.engine, Job(worker, key, forced=forced)
        soft = self.scenario.patience
        patient = math.inf if soft is None else soft
        request = self.oracle.asks(worker.name, key, worker.clock(), forced=forced, patience=patient)
        with anyio.move_on_after(patience) as scope:
            worker.clients.append(scope)
            try:
                outcome = await (engine.refresh(key, job) if forced else engine.fetch(key, job, patience=soft))
                # Not later than this: no time must go by between the answer and the judgement.
                self.oracle.answered(request, outcome, worker.clock())
            except Exception as error:
                self.oracle.failed(request, error, worker.clock())
        if scope.cancelled_caught and patience == _PATIENCE:
            self.oracle.hung(request)

    async def set(self, worker: Worker) -> None:
        """Store a value that is known already."""
        key = self.random.choice(self.keys)
        with anyio.CancelScope() as scope:
            worker.clients.append(scope)
            await worker.engine.ready()
            reading = self.oracle.sets(worker.name, key, worker.clock())
            call = self.oracle.invalidates(worker.name, Kind.INVALIDATED, key)
            value = Value(reading.number, self.policies[key], loader=loader_of(key))
            is_stored = await worker.engine.entries.set(key, worker.codec, value)
            self.oracle.has_set(reading, is_stored=is_stored)
            self.oracle.invalidated(call)

    async def invalidate(self, worker: Worker) -> None:
        """Invalidate or mark a key, a tag, a loader or everything."""
        is_soft, engine = self.random.random() < self.scenario.soft, worker.engine
        invalidate: Callable[[Any], Awaitable[None]]
        name: Name
        if self.random.random() < 0.5:
            kind, name = Kind.MARKED if is_soft else Kind.INVALIDATED, self.random.choice(self.keys)
            invalidate = engine.entries.mark_stale if is_soft else engine.invalidate
        else:
            of = self.random.choice((*_TAGS, ALL, OfLoader(LOADER)))
            kind, name, invalidate = Kind.TAG_VERSION, Soft(of) if is_soft else of, engine.invalidate_tag
        with anyio.CancelScope() as scope:
            worker.clients.append(scope)
            call = self.oracle.invalidates(worker.name, kind, name)
            await invalidate(name)
            self.oracle.invalidated(call)

    # -- faults -----------------------------------------------------------------------------------------------

    async def fail(self, worker: Worker) -> None:
        """Have something go wrong."""
        kind = self.random.choice(self.scenario.kinds)
        self.oracle.note(worker.name, f"fault: {kind}")
        if kind == "pause":
            await self.pause(worker)
        elif kind == "crash":
            self.crash(worker)
        elif kind == "cut":
            worker.link.fall(self.random.uniform(0, self.random.choice((0.5, 3))))
        elif kind == "silence":
            worker.link.silence()
        elif kind == "evict":
            key = self.random.choice((None, None, *self.keys))
            self.server.evict(key, newest=self.random.random() < 0.5)
        elif kind == "older":
            saved = self.server.save(anyio.current_time())
            await anyio.sleep(self.random.uniform(0, 2))
            await self.server.start(self.nursery.start_soon, saved=saved)
        elif kind == "stall":
            await self.stall(self.random.uniform(0.1, 2))
        elif kind == "full":
            await self.fill(self.random.uniform(0, 3))
        elif kind == "restart":
            await self.server.start(self.nursery.start_soon, tag_versions=self.random.random() < 0.5)
        else:
            self.oracle.disturb()
            worker.skew += self.random.uniform(-1, 1) * self.scenario.skew
            self.oracle.calm()

    async def stall(self, seconds: float) -> None:
        """Have the server answer nothing for a while: a slow script, a fork, a large key."""
        self.oracle.disturb()
        self.server.stalled_until = max(self.server.stalled_until, anyio.current_time() + seconds)
        await anyio.sleep(seconds)
        self.oracle.calm()

    async def fill(self, seconds: float) -> None:
        """Have the server refuse for a while what needs memory."""
        self.oracle.disturb()
        self.server.full += 1
        await anyio.sleep(seconds)
        self.server.full -= 1
        self.oracle.calm()

    async def pause(self, worker: Worker, after: float = 0.0) -> None:
        """Stop a worker, as SIGSTOP does, and have it go on a while later."""
        await anyio.sleep(after)
        if worker.gate.is_open:
            self.oracle.pauses(worker.name)
            worker.gate.shut()
            await anyio.sleep(self.random.uniform(0, 3))
            worker.gate.open()
            self.oracle.resumes(worker.name)

    def crash(self, worker: Worker) -> None:
        """Kill a worker, as SIGKILL does: nothing of it reaches the store any more. Another takes its place."""
        self.oracle.ends(worker.name)
        worker.link.die()
        for scope in worker.clients:
            scope.cancel()
        self.nursery.start_soon(_bury, worker)
        self.workers[self.workers.index(worker)] = Worker(self, f"w{self.born}")
        self.born += 1

    # -- the end ----------------------------------------------------------------------------------------------

    async def _end(self) -> None:
        """Mend everything, have a last look, close, and see what is left."""
        self.is_over = True
        for worker in self.workers:
            worker.link.weather = Weather(self.weather.latency, 0.0)
        await anyio.sleep(_LONG)
        await self._ask_all()
        await anyio.sleep(_LONG)
        for worker in self.workers:
            engine, store = worker.engine, worker.store
            for kept in (
                (engine.flights,),
                (store._watches, not store._pending.is_empty),
            ):
                if any(kept):
                    self.oracle.blame(f"{worker.name} still keeps {kept}")
        self._no_leases()
        # Closed in the middle of what they do.
        self.nursery.start_soon(self._ask_all)
        await anyio.sleep(self.random.uniform(0, self.longest))
        async with trio.open_nursery() as nursery:
            for worker in self.workers:
                self.oracle.ends(worker.name)
                nursery.start_soon(worker.engine.aclose)
        self._no_leases()

    async def _ask_all(self) -> None:
        async with trio.open_nursery() as nursery:
            for worker in self.workers:
                for key in self.keys:
                    nursery.start_soon(functools.partial(self._ask, worker, key, _PATIENCE, forced=False))

    def _no_leases(self) -> None:
        for token in self.server.leased():
            self.oracle.blame(f"a lease is left over: {token}")


async def _bury(worker: Worker) -> None:
    # Opened first, in case it was just opening: only what is open can be closed.
    worker.gate.open()
    await worker.engine.ready()
    await worker.engine.aclose()


class _Errors(logging.Handler):
    """Tells the oracle of what swr itself calls an error."""

    def __init__(self, oracle: Oracle) -> None:
        super().__init__(logging.ERROR)
        self._oracle = oracle

    def emit(self, record: logging.LogRecord) -> None:
        """Hear of it."""
        self._oracle.blame(f"logged: {record.getMessage()} {record.exc_info and record.exc_info[1]!r}")


@contextlib.contextmanager
def _ordered(seed: int) -> Iterator[None]:
    """Have trio run its tasks in an order that is random, but for one seed always the same.

    trio shuffles what can run, by a generator of its own, and has a switch, made for hypothesis, that puts the tasks
    into the order of their making first. Neither is public; nothing public would do.
    """
    before = scheduler._r, scheduler._ALLOW_DETERMINISTIC_SCHEDULING
    vars(scheduler).update(_r=Random(seed), _ALLOW_DETERMINISTIC_SCHEDULING=True)
    try:
        yield
    finally:
        vars(scheduler).update(_r=before[0], _ALLOW_DETERMINISTIC_SCHEDULING=before[1])


def simulate(seed: int, scenario: str = "mixed") -> Oracle:
    """Run one seed; return the oracle, with what was wrong and what happened.

    Parameters:
        seed: which run.
        scenario: the name of one of `SCENARIOS`.
    """
    world = World(SCENARIOS[scenario], seed)
    log, handler = logging.getLogger("swr"), _Errors(world.oracle)
    propagate, log.propagate = log.propagate, False
    log.addHandler(handler)
    # No clock but the simulation's: how fast this machine is must change nothing.
    clocks, hearing.machine_clocks = hearing.machine_clocks, lambda: (anyio.current_time(),) * 2
    try:
        with _ordered(seed):
            trio.run(world.run, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        hearing.machine_clocks = clocks
        log.removeHandler(handler)
        log.propagate = propagate
    return world.oracle


def _seeds(text: str) -> range:
    match = re.fullmatch(r"(\d+):(\d+)", text, re.ASCII)
    seeds = range(int(match[1]), int(match[2])) if match else range(0)
    if not seeds:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST:LAST, two numbers, the first the smaller: 0:100")
    return seeds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run seeds as the command line says; return 1 if one of them fails."""
    parser = argparse.ArgumentParser("python -m tests.simulation.simulate", description="Simulates fleets of caches.")
    parser.add_argument("--seed", type=int, help="run this one")
    parser.add_argument(
        "--seeds", type=_seeds, default="0:100", metavar="FIRST:LAST", help="run these, LAST not among them"
    )
    parser.add_argument("--scenario", choices=SCENARIOS, default="mixed")
    parser.add_argument("--trace", action="store_true", help="print all that happens, in simulated seconds")
    options = parser.parse_args(arguments)
    seeds = options.seeds if options.seed is None else range(options.seed, options.seed + 1)
    failed = answers = 0
    trials: Counter[str] = Counter()
    for seed in seeds:
        oracle = simulate(seed, options.scenario)
        answers += oracle.answers
        trials += oracle.trials
        if options.trace:
            print(*oracle.trace, sep="\n")
        if oracle.violations:
            failed += 1
            print(
                f"{oracle.violations[0]}; replay: "
                f"python -m tests.simulation.simulate --seed {seed} --scenario {options.scenario} --trace"
            )
    tried = "".join(f", {number} {what}" for what, number in sorted(trials.items()))
    print(f"{options.scenario}: {len(seeds)} seeds, {answers} answers{tried}; {failed} seeds failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
