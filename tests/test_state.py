"""Caches over one store against a naive model: any sequence of reads, refreshes, invalidations, failures and losses.

`SWR_STATE_EXAMPLES=5000` runs more than CI does, each time other ones. The event loop's time stands still until a
rule moves it, so nothing here depends on how fast the machine is.
"""

import asyncio
import os
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from swr import Cache, Fresh, Outcome, State
from swr.stores.memory import MemoryStore
from swr.testing import FakeClock
from tests.fleet import Process, settle

EXAMPLES = os.environ.get("SWR_STATE_EXAMPLES")
# A load that was overtaken is done again twice at most; then its value is answered anyway.
LOADS = 3


class Windows(NamedTuple):
    fresh_for: float
    stale_for: float
    stale_if_error: float
    tags: tuple[str, ...]


WINDOWS = {
    "a": Windows(10, 20, 0, ("x",)),
    "b": Windows(5, 0, 60, ("x", "y")),
    "c": Windows(30, 30, 100, ()),
}
# Not evenly: most meet at the same key.
PROCESSES = st.sampled_from([0, 0, 1, 1, 2])
KEYS = st.sampled_from(["a", "a", "b", "b", "c"])
# What is read right after something else has happened.
THEN = st.lists(st.tuples(PROCESSES, KEYS), max_size=4)


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose time is a clock that is moved by hand."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock

    def time(self) -> float:
        return self._clock()


class Failed(Exception):
    """What a loader raises; its argument is the loads of that call."""


@dataclass(eq=False)
class Load:
    """One load of one key: it reads the database as it begins, and that is how old its value is."""

    process: int
    key: str
    row: int
    began: int
    wall: float
    losses: int
    ended: int | None = None
    failed: bool = False


@dataclass(eq=False)
class Invalidation:
    """What was invalidated, when, and which processes know; `told` once the store knows, or `paid` to it later."""

    keys: frozenset[str]
    at: int
    process: int
    told: bool
    heard: set[int]
    paid: int = 0


_NONE = Invalidation(frozenset(WINDOWS), 0, 0, told=True, heard=set())


class Question(NamedTuple):
    """A reader's question, and what its process had heard by then."""

    process: int
    key: str
    asked: int
    wall: float
    floor: int
    news: int
    losses: int


class Fleet(RuleBasedStateMachine):
    """Three processes, three keys, and what a naive observer knows of them."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.loop = Loop(self.clock)
        self.shared = MemoryStore(clock=self.clock)
        self.processes: list[Process] = []
        self.loaders: list[tuple[Any, Any, Cache]] = []
        # Nothing happens twice at one moment.
        self.moment = 0
        self.rows = dict.fromkeys(WINDOWS, 0)
        self.loads: list[Load] = []
        self.invalidations: list[Invalidation] = []
        self.up = [True] * 3
        self.losses = [0] * 3
        self.news = [0] * 3
        self.gates: dict[tuple[int, str], asyncio.Event] = {}
        self.failing: set[tuple[int, str]] = set()
        self.pending: set[asyncio.Task[None]] = set()
        self.refreshing: dict[tuple[int, str], int] = defaultdict(int)
        # What a process has refreshed, and when it last answered from what it holds.
        self.refreshed: dict[tuple[int, str], tuple[Load, bool]] = {}
        self.given: dict[tuple[int, str], tuple[Load, int]] = {}
        self.wrong: list[str] = []
        self.do(self.open)

    async def open(self) -> None:
        for number in range(3):
            process = Process(self.shared, self.clock)
            cache = Cache(clock=self.clock)
            cache.engine, cache.local = process.engine, process.local
            one = cache.cached("row:{key}", fresh_for=1)(self.loader(number))
            many = cache.cached_many("row:{key}", fresh_for=1)(self.batch_loader(number))
            await cache.engine.ready()
            self.processes.append(process)
            self.loaders.append((one, many, cache))

    async def close(self) -> None:
        for process in self.processes:
            asyncio.ensure_future(process.engine.aclose())  # noqa: RUF006  # the loop of the process keeps it

    def do(self, function: Callable[..., Awaitable[object]], *arguments: Any) -> None:
        """Do something, and let all that can run do so."""

        async def all_that() -> None:
            await function(*arguments)
            await settle()
            await settle()

        self.loop.run_until_complete(all_that())

    def next(self) -> int:
        self.moment += 1
        return self.moment

    # -- loaders ----------------------------------------------------------------------------------------------

    def loader(self, process: int) -> Callable[[str], Awaitable[Any]]:
        async def one(key: str) -> Any:
            return (await self.load(process, [key]))[key]

        return one

    def batch_loader(self, process: int) -> Callable[[list[str]], Awaitable[dict[str, Any]]]:
        async def many(keys: list[str]) -> dict[str, Any]:
            return await self.load(process, keys)

        return many

    async def load(self, process: int, keys: list[str]) -> dict[str, Any]:
        loads = {key: self.begin(process, key) for key in keys}
        for key in keys:
            if (process, key) in self.gates:
                await self.gates[process, key].wait()
        failed = {(process, key) for key in keys} & self.failing
        self.failing -= failed
        for load in loads.values():
            load.ended, load.failed = self.next(), bool(failed)
        if failed:
            raise Failed(list(loads.values()))
        return {
            key: Fresh((load.row, load), **WINDOWS[key]._asdict())  # the value is the load itself
            for key, load in loads.items()
        }

    def begin(self, process: int, key: str) -> Load:
        load = Load(process, key, self.rows[key], self.next(), self.clock(), self.losses[process])
        for other in self.loads:
            if other.key != key or other.ended is not None or other.process == process:
                continue
            whole = self.up[process] and self.up[other.process] and other.losses == self.losses[other.process]
            outdated = any(
                key in known.keys and max(known.at, known.paid) > other.began for known in self.invalidations
            )
            if whole and not outdated and not any(self.refreshing[number, key] for number in range(3)):
                self.blame(f"two loads at once: {other} and {load}")
        self.loads.append(load)
        return load

    # -- what is judged ---------------------------------------------------------------------------------------

    def blame(self, text: str) -> None:
        self.wrong.append(text)

    @invariant()
    def nothing_is_wrong(self) -> None:
        assert not self.wrong, "\n".join(self.wrong)

    def ask(self, process: int, key: str) -> Question:
        floor = self.minimum(process, key)
        return Question(process, key, self.next(), self.clock(), floor, self.news[process], self.losses[process])

    def floor(self, process: int, key: str) -> int:
        """The last invalidation of `key` that a process has heard of."""
        return max((it.at for it in self.invalidations if key in it.keys and process in it.heard), default=0)

    def judge(self, question: Question, outcome: Outcome[Any], *, refresh: bool = False, waited: bool = False) -> None:
        """Judge one answer; `waited`: it may have waited for those to other keys."""
        process, key, asked, _, _, news, _ = question
        row, load = outcome.value
        said = f"{question}: {outcome}"
        event(f"{'refresh' if refresh else outcome.state}{'' if outcome.error is None else ' for an error'}")
        if load.key != key or load.row != row or load.ended is None or load.failed:
            self.blame(f"{said}: no load has brought that")
            return
        overtaken = self.news[process] - news >= LOADS
        floor = self.minimum(process, key)
        if load.began < floor and not overtaken:
            self.blame(f"{said}: loaded before an invalidation at {floor} that its process has heard of")
        if refresh:
            if load.began < asked:
                self.blame(f"{said}: loaded before the refresh")
            if not overtaken:
                self.refreshed[process, key] = load, self.up[process]
            return
        before = self.refreshed.get((process, key))
        if before is not None and before[0].ended < asked and load.began < before[0].began and not overtaken:
            self.blame(f"{said}: older than what its own refresh brought, {before[0]}")
        self.judge_state(said, question, load, outcome, self.clock())
        if outcome.state is not State.MISSING and not waited:
            self.given[process, key] = load, self.losses[process]

    def judge_state(self, said: str, question: Question, load: Load, outcome: Outcome[Any], decided: float) -> None:
        windows, age = WINDOWS[question.key], outcome.age - (self.clock() - decided)
        # A batch may have waited for others' leases before it called its loader, which is a step of the clock here.
        if not 0 <= outcome.age - (self.clock() - load.wall) <= 1:
            self.blame(f"{said}: it is {self.clock() - load.wall} old")
        if outcome.state is State.FRESH:
            right = age < windows.fresh_for and outcome.error is None
        elif outcome.state is State.MISSING:
            assert load.ended is not None
            # Or the store had it all the time, and could not be asked.
            unseen = question.losses != self.losses[question.process]
            right = (load.ended > question.asked or unseen) and outcome.error is None
        elif outcome.error is None:
            right = windows.fresh_for <= age < windows.fresh_for + windows.stale_for
        else:
            right = age < windows.fresh_for + max(windows.stale_for, windows.stale_if_error)
        if not right:
            self.blame(f"{said}: {outcome.state} is wrong")

    def judge_failure(self, question: Question, keys: list[str], error: Exception, *, refresh: bool = False) -> None:
        process, asked = question.process, question.asked
        event("raised")
        loads = error.args[0] if isinstance(error, Failed) else []
        mine = [load for load in loads if load.process == process and load.key in keys and load.ended > asked]
        if not mine:
            self.blame(f"{question}: raised {error!r}, which is not a failure of its own")
        # Of several keys it is not known for which nothing stood in.
        if refresh or len(keys) > 1:
            return
        key = keys[0]
        held, losses = self.given.get((process, key), (None, 0))
        # The store's tag_versions are seen by all here, even by those whose link is broken.
        known = max(max(it.at, it.paid) for it in (_NONE, *self.invalidations) if key in it.keys)
        if held is not None and losses == self.losses[process] and held.began > known:
            windows = WINDOWS[key]
            if self.clock() - held.wall + 1 < windows.fresh_for + max(windows.stale_for, windows.stale_if_error):
                self.blame(f"{question}: raised {error!r}, although {held} could be the fallback")

    # -- readers ----------------------------------------------------------------------------------------------

    def start(self, coroutine: Any) -> None:
        async def begin() -> None:
            task = asyncio.ensure_future(coroutine)
            self.pending.add(task)
            task.add_done_callback(self.pending.discard)

        self.do(begin)

    @rule(reads=st.lists(st.tuples(PROCESSES, KEYS), min_size=1, max_size=4))
    def reads(self, reads: list[tuple[int, str]]) -> None:
        for process, key in reads:
            self.read(process, key)

    def read(self, process: int, key: str) -> None:
        async def reader() -> None:
            question = self.ask(process, key)
            try:
                outcome = await self.loaders[process][0].outcome(key)
            except Exception as error:
                self.judge_failure(question, [key], error)
            else:
                self.judge(question, outcome)

        self.start(reader())

    @rule(process=PROCESSES, keys=st.lists(KEYS, min_size=1, max_size=3, unique=True))
    def read_many(self, process: int, keys: list[str]) -> None:
        async def reader() -> None:
            questions = {key: self.ask(process, key) for key in keys}
            try:
                outcomes = await self.loaders[process][1].outcome(keys)
            except Exception as error:
                self.judge_failure(questions[keys[0]], keys, error)
                return
            if list(outcomes) != keys:
                self.blame(f"{questions}: answers for {list(outcomes)}")
            # Answered together, once the last one is there.
            for key, outcome in outcomes.items():
                self.judge(questions[key], outcome, waited=len(keys) > 1)

        self.start(reader())

    @rule(process=PROCESSES, key=KEYS)
    def refresh(self, process: int, key: str) -> None:
        async def refresher() -> None:
            question = self.ask(process, key)
            self.refreshing[process, key] += 1
            try:
                value = await self.loaders[process][0].refresh(key)
            except Exception as error:
                self.judge_failure(question, [key], error, refresh=True)
            else:
                self.judge(question, Outcome(value, State.MISSING, 0.0), refresh=True)
            finally:
                self.refreshing[process, key] -= 1

        self.start(refresher())

    # -- the database, and who says that it has changed -------------------------------------------------------

    @rule(key=KEYS)
    def write(self, key: str) -> None:
        self.rows[key] += 1

    def invalidated(self, process: int, keys: frozenset[str]) -> None:
        for key in keys:
            self.rows[key] += 1
        self.invalidations.append(Invalidation(keys, self.next(), process, self.up[process], {process}))
        self.news[process] += 1

    def spread(self) -> None:
        """What the store knows, every process knows whose link is whole."""
        for it in self.invalidations:
            it.told = it.told or self.up[it.process]
            if it.told:
                for number in range(3):
                    if self.up[number] and number not in it.heard:
                        it.heard.add(number)
                        self.news[number] += 1

    def invalidate(self, process: int, keys: frozenset[str], how: Callable[..., Awaitable[None]], *what: str) -> None:
        # What begins to load as it is carried out is newer.
        self.invalidated(process, keys)
        self.spread()
        self.do(how, *what)

    @rule(process=PROCESSES, key=KEYS, then=THEN)
    def invalidate_key(self, process: int, key: str, then: list[tuple[int, str]]) -> None:
        self.invalidate(process, frozenset({key}), self.loaders[process][0].invalidate, key)
        self.reads(then)

    @rule(process=PROCESSES, tag=st.sampled_from(["x", "y"]), then=THEN)
    def invalidate_tag(self, process: int, tag: str, then: list[tuple[int, str]]) -> None:
        keys = frozenset(key for key, windows in WINDOWS.items() if tag in windows.tags)
        self.invalidate(process, keys, self.loaders[process][2].invalidate_tag, tag)
        self.reads(then)

    @rule(process=PROCESSES, then=THEN)
    def clear(self, process: int, then: list[tuple[int, str]]) -> None:
        self.invalidate(process, frozenset(WINDOWS), self.loaders[process][2].clear)
        self.reads(then)

    # -- what goes wrong, and time ----------------------------------------------------------------------------

    @rule(process=PROCESSES, then=THEN)
    def link(self, process: int, then: list[tuple[int, str]]) -> None:
        self.change_link(process)
        self.reads(then)

    def change_link(self, process: int) -> None:
        up = self.up[process] = not self.up[process]
        self.losses[process] += 1
        self.news[process] += 1
        for it in self.invalidations:
            if it.process == process and not it.told:
                it.paid = self.next()
        for (number, key), (_, stored) in list(self.refreshed.items()):
            # What the store did not take is checked when the store is back, and is then nobody's.
            if number == process and up and not stored:
                del self.refreshed[number, key]

        async def change() -> None:
            self.processes[process].link.set_down(not up)

        self.do(change)
        self.spread()

    @rule(process=PROCESSES, key=KEYS, then=THEN)
    def fail(self, process: int, key: str, then: list[tuple[int, str]]) -> None:
        """The next load fails."""
        self.failing.add((process, key))
        self.reads(then)

    @rule(process=PROCESSES, key=KEYS, then=THEN)
    def hold(self, process: int, key: str, then: list[tuple[int, str]]) -> None:
        """Loads from now on wait."""
        self.gates.setdefault((process, key), asyncio.Event())
        self.reads(then)

    @precondition(lambda self: self.gates)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        """Loads that wait go on."""
        self.open_gate(data.draw(st.sampled_from(sorted(self.gates))))

    def open_gate(self, which: tuple[int, str]) -> None:
        async def let() -> None:
            self.gates.pop(which).set()

        self.do(let)

    @rule(seconds=st.sampled_from([1, 4, 6, 11, 25, 70]), then=THEN)
    def later(self, seconds: int, then: list[tuple[int, str]]) -> None:
        self.wait(seconds)
        self.reads(then)

    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1)
            self.do(settle)

    @initialize(seconds=st.integers(0, 3))
    def begin_some_time(self, seconds: int) -> None:
        self.clock.advance(seconds)

    # -- the end ----------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            for process in range(3):
                if not self.up[process]:
                    self.change_link(process)
            while self.gates:
                self.open_gate(min(self.gates))
            self.wait(5)
            for task in self.pending:
                self.blame(f"never answered: {task}")
            held = [key for key, hold in dict(self.shared._holds).items() if hold.token is not None]
            if held:
                self.blame(f"leases are left over: {held}")
            self.nothing_is_wrong()
        finally:
            for task in list(self.pending):
                task.cancel()
            self.do(self.close)
            self.wait(3)
            self.loop.close()


TestFleet = Fleet.TestCase
TestFleet.settings = settings(
    max_examples=int(EXAMPLES or 60),
    stateful_step_count=40,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
