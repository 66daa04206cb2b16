"""The seed of all this, measured: no cache, refresh on read, sharded locks, queue-based pre-caching.

    scripts/bench architectures [--quick] [--plots DIR] [--save FILE]

Worker processes over one server; the rankings are those of the flights in SQLite, and in PostgreSQL where that is on
the path: the 105 airports, or so many made groups, the ranking of one airport on one day. What is read is drawn from
the real trace: the k-th group is read as often as the trace asks for its k-th hottest key. Between two runs that
differ in strategy, one word differs.

`every` is short, so that rounds can be waited for, and all time-outs are to it as the defaults are to a minute: a lease
lasts half of it, silent consumers are reclaimed after a sixth, a leader is replaced after a twelfth (but a second at
least). One run is:

1. reads at a steady pace for some whole rounds, when every group is warm;
2. a round in which nobody reads: the idle cost;
3. a worker is killed (-9) when a round has begun, of a queue the leader: the longest age that any entry reaches then.
   (With `read`, of the first groups: they are asked for all the time.) It counts what the others take over, not
   the groups that nobody asks for.
"""

import argparse
import asyncio
import io
import json
import logging
import math
import os
import re
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import anyio.to_thread
from redis import Redis

from benchmarks.databases import has_postgresql, index_days, postgresql, querying
from benchmarks.measure import percentile, print_machine, table, verdict
from benchmarks.processes import Worker
from examples.demo.trace import keys as trace
from examples.flights import Aircraft, build
from swr import Cache
from swr.events import Loaded
from swr.refreshers import Refresher
from tests.servers import Server, kinds, until

_NAMESPACE = "architectures"
STRATEGIES = ("no cache", "read", "locks", "queue")
SQLITE, POSTGRESQL = "SQLite", "PostgreSQL"
# A window begins so much of a round before the round does.
_AHEAD = 0.04
# A worker is killed so much of a round after it has begun.
_KILLED_AT = 0.03
# Digits of the version in front of an entry: microseconds of the server's clock.
_VERSION = 16
# Groups that are asked for all the time while a worker is killed.
_HOT = 105


class Run(NamedTuple):
    """One run.

    Parameters:
        strategy: one of `STRATEGIES`.
        workers: how many.
        groups: how many.
        every: seconds between rounds.
        reads: a second, by all workers together.
        rounds: of reading.
        kill: whether a worker is killed at the end.
        memory: whether workers hold values in their own memory, too.
        database: where the rankings come from.
    """

    strategy: str
    workers: int
    groups: int
    every: float
    reads: float
    rounds: int
    kill: bool
    memory: bool = True
    database: str = SQLITE


def runs(quick: bool) -> list[Run]:
    """Return what is run; in PostgreSQL if there is one."""
    if quick:
        return [Run(strategy, 2, 6, 1.0, 20, 1, strategy != "no cache") for strategy in STRATEGIES]
    # The two that are ten times apart have as many reads a round.
    sizes = [(number, 105, 3.0, 100, 2, number == 8) for number in (1, 2, 4, 8)]
    sizes += [(8, 1_000, 5.0, 400, 2, False), (8, 10_000, 20.0, 100, 1, True)]
    found = [
        Run(strategy, number, groups, every, reads, rounds, kill and strategy != "no cache")
        for number, groups, every, reads, rounds, kill in sizes
        for strategy in STRATEGIES
    ]
    found += [Run(strategy, 8, 105, 3.0, 100, 2, False, False) for strategy in STRATEGIES[2:]]
    if has_postgresql():
        found += [Run(strategy, 8, 105, 3.0, 100, 2, False, database=POSTGRESQL) for strategy in STRATEGIES]
    return found


# -- a worker -------------------------------------------------------------------------------------------------


def groups_of(path: Path, number: int) -> list[str]:
    """Return the groups, those with the most flights first: airports, or airports on a day."""
    with closing(sqlite3.connect(path)) as connection:
        airports = [
            row[0] for row in connection.execute("SELECT dest FROM flights GROUP BY 1 ORDER BY COUNT(*) DESC, 1")
        ]
        if number <= len(airports):
            return airports[:number]
        days = connection.execute(
            "SELECT dest || ' ' || month || ' ' || day FROM flights GROUP BY dest, month, day "
            "ORDER BY COUNT(*) DESC, 1 LIMIT ?",
            (number,),
        )
        return [row[0] for row in days]


class Reader:
    """One worker's part: reads at a pace, and counts."""

    def __init__(self, ask: Callable[[str], Awaitable[float]], groups: Sequence[str], index: int, of: int) -> None:
        self._ask = ask
        self._groups = groups
        hottest = {key: group for group, (key, _) in zip(groups, Counter(trace()).most_common(), strict=False)}
        asked = [hottest[key] for key in trace() if key in hottest]
        # Every worker is given its part of the requests, as a balancer would.
        self._asked = list(islice(asked, index, None, of)) or asked
        self._next = 0
        self.waits: list[float] = []
        self.ages: list[float] = []

    async def run(self, each: float, hot: int) -> None:
        """Read every so many seconds; the first groups in turn, or as the trace does."""
        at = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while True:
                asked = self._groups[self._next % hot] if hot else self._asked[self._next % len(self._asked)]
                self._next += 1
                group.create_task(self._read(asked))
                at += each
                await asyncio.sleep(max(0.0, at - time.monotonic()))

    async def _read(self, group: str) -> None:
        began = time.perf_counter()
        age = await self._ask(group)
        self.waits.append(time.perf_counter() - began)
        self.ages.append(age)


async def work(run: Run, url: str, path: Path, where: str, index: int) -> None:
    """Be a worker: do as the lines of standard input say."""
    loads = 0
    groups = groups_of(path, run.groups)
    ended: list[float] = []
    async with AsyncExitStack() as stack:
        ranking = stack.enter_context(querying(where))

        def query(group: str) -> list[Aircraft]:
            nonlocal loads
            loads += 1
            return ranking(group)

        memory = {} if run.memory else {"l1_max_bytes": 0}
        cache = Cache(url, namespace=_NAMESPACE, lease_for=run.every / 2, **memory)
        await stack.enter_async_context(cache)

        @cache.cached("ranking:{group}", fresh_for=run.every, stale_for=100 * run.every)
        def top100(group: str) -> list[Aircraft]:
            return query(group)

        async def cached(group: str) -> float:
            return (await top100.outcome(group)).age

        async def uncached(group: str) -> float:
            await anyio.to_thread.run_sync(query, group)
            return 0.0

        await cache.engine.ready()
        cache.subscribe(lambda event: ended.append(time.time()), Loaded)
        reader = Reader(uncached if run.strategy == "no cache" else cached, groups, index, run.workers)
        if run.strategy != "no cache":
            strategy: Any = run.strategy
            refresher = Refresher(
                top100,
                groups,
                run.every,
                strategy=strategy,
                reclaim_after=max(1.0, run.every / 6),
                lead_for=max(1.0, run.every / 12),
            )
            await stack.enter_async_context(refresher)
        print("ready", flush=True)
        reading: asyncio.Task[None] | None = None
        while line := await asyncio.to_thread(sys.stdin.readline):
            word, *rest = line.split()
            if word == "read":
                reading = asyncio.create_task(reader.run(float(rest[0]), int(rest[1])))
            elif word == "rest" and reading is not None:
                reading.cancel()
                await asyncio.wait((reading,))
            elif word == "mark":
                used = os.times()
                said = Mark(
                    loads, cache.engine.store.sent, used.user + used.system, reader.waits, reader.ages, ended[:]
                )
                print(json.dumps(asdict(said)), flush=True)
                loads, reader.waits, reader.ages = 0, [], []
                ended.clear()
        if reading is not None:
            reading.cancel()
            await asyncio.wait((reading,))


@dataclass
class Mark:
    """What a worker says of itself: loads since the last mark; requests sent and seconds of CPU in all; waits and ages
    of its readers, and when its loads ended (seconds since 1970), since the last mark."""

    loads: int
    sent: int
    cpu: float
    waits: list[float]
    ages: list[float]
    ended: list[float]


# -- a run ----------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """What the server and the workers say at one moment."""

    at: float
    commands: int
    bytes: int
    cpu: float
    marks: list[Mark]


class Window(NamedTuple):
    """What happened between two moments.

    Parameters:
        seconds: between them.
        loads: by worker.
        requests: that all workers sent.
        commands: of the server, those inside scripts included.
        bytes: in and out of the server.
        server: its seconds of CPU.
        cpu: seconds of CPU of all workers.
        waits: of the readers, in seconds.
        ages: of what they were given, in seconds.
        ended: when loads ended.
    """

    seconds: float
    loads: list[int]
    requests: int
    commands: int
    bytes: int
    server: float
    cpu: float
    waits: list[float]
    ages: list[float]
    ended: list[float]


class Result(NamedTuple):
    """What came of a run; `late` is the longest age after a kill, less `every`, in seconds."""

    run: Run
    busy: Window
    idle: Window | None
    late: float | None

    @property
    def round_took(self) -> float:
        """Seconds from the beginning of a round to its last load, while nobody reads."""
        if self.idle is None or not self.idle.ended:
            return 0.0
        return max(at % self.run.every for at in self.idle.ended)

    def per_round(self, window: Window) -> float:
        """Return how many groups there are times how many rounds there were."""
        return self.run.groups * window.seconds / self.run.every


def measure(run: Run, kind: str, path: Path) -> Result:
    """Run it, with the flights that SQLite has at `path`."""
    with ExitStack() as stack:
        where = stack.enter_context(postgresql(path)) if run.database == POSTGRESQL else str(path)
        server = stack.enter_context(Server(kind))
        fleet = []
        for index in range(run.workers):
            said = (json.dumps(run), server.url, str(path), where, str(index))
            worker = Worker("benchmarks.architectures", "--work", *said)
            stack.callback(worker.close)
            fleet.append(worker)
        for worker in fleet:
            worker.answer()
        return measured(run, Redis.from_url(server.url), fleet, groups_of(path, run.groups))


def measured(run: Run, client: "Redis", fleet: list[Worker], groups: list[str]) -> Result:
    """Measure a fleet that has just begun."""
    names = [f"{_NAMESPACE}:{{ranking:{group}}}" for group in groups]
    if run.strategy in ("locks", "queue"):
        until(lambda: all(versions(client, names)), seconds=120)
    # They have read for a round when it begins to count.
    at_phase(run.every, 1 - _AHEAD)
    read(fleet, run.reads)
    at_phase(run.every, 1 - _AHEAD, 1)
    before = look(client, fleet)
    at_phase(run.every, 1 - _AHEAD, run.rounds)
    busy = window(before, look(client, fleet))
    if run.strategy == "no cache":
        return Result(run, busy, None, None)
    for worker in fleet:
        worker.tell("rest")
    before = look(client, fleet)
    at_phase(run.every, 1 - _AHEAD, 1)
    idle = window(before, look(client, fleet))
    return Result(run, busy, idle, killed(run, client, fleet, names) if run.kill else None)


def killed(run: Run, client: "Redis", fleet: list[Worker], names: list[str]) -> float:
    """Kill a worker when a round has begun; return the longest age from then on, less `every`."""
    watched = names[:_HOT] if run.strategy == "read" else names
    # Twice a second each of the first groups, whatever the strategy.
    read(fleet, 2 * min(_HOT, run.groups), min(_HOT, run.groups))
    if run.strategy == "read":
        time.sleep(1 + run.every)
    at_phase(run.every, _KILLED_AT)
    # Who leads says so in the lease, with the number of the process.
    leader: Any = client.get(f"{_NAMESPACE}:{{ranking:group:0}}:l") or b""
    victim = next((worker for worker in fleet if f":{worker.pid}:".encode() in leader), fleet[0])
    victim.kill()
    # Its leases end after half a round.
    end = time.time() + max(2.0, 1.25 * run.every)
    longest = 0.0
    while (now := time.time()) < end:
        longest = max(longest, now - min(versions(client, watched)) / 1e6)
        time.sleep(min(0.5, run.every / 20))
    return longest - run.every


def versions(client: "Redis", names: Sequence[str]) -> list[int]:
    """Return when each entry's load began, in microseconds since 1970; 0: there is none."""
    pipeline = client.pipeline(transaction=False)
    for name in names:
        pipeline.getrange(name, 0, _VERSION - 1)
    return [int(digits or 0) for digits in pipeline.execute()]


def read(fleet: list[Worker], reads: float, hot: int = 0) -> None:
    """Have all of them read, together so many times a second."""
    for worker in fleet:
        worker.tell(f"read {len(fleet) / reads} {hot}")


def at_phase(every: float, phase: float, rounds: int = 0) -> None:
    """Wait until so much of a round is over; of the one so many rounds after one where that has just been so."""
    now = time.time() + (rounds - 0.5) * every if rounds else time.time()
    number = math.ceil(now / every - phase)
    time.sleep(max(0.0, (number + phase) * every - time.time()))


def look(client: "Redis", fleet: list[Worker]) -> Seen:
    """Ask the server and the workers."""
    for worker in fleet:
        worker.tell("mark")
    marks = [Mark(**json.loads(worker.answer())) for worker in fleet]
    info: Any = client.info("stats")
    used: Any = client.info("cpu")
    return Seen(
        time.time(),
        info["total_commands_processed"],
        info["total_net_input_bytes"] + info["total_net_output_bytes"],
        used["used_cpu_user"] + used["used_cpu_sys"],
        marks,
    )


def window(before: Seen, after: Seen) -> Window:
    """Return what happened in between."""
    pairs = list(zip(before.marks, after.marks, strict=True))
    return Window(
        after.at - before.at,
        [mark.loads for mark in after.marks],
        sum(new.sent - old.sent for old, new in pairs),
        after.commands - before.commands,
        after.bytes - before.bytes,
        after.cpu - before.cpu,
        sum(new.cpu - old.cpu for old, new in pairs),
        [wait for mark in after.marks for wait in mark.waits],
        [age for mark in after.marks for age in mark.ages],
        [at for mark in after.marks for at in mark.ended],
    )


# -- tables and plots -----------------------------------------------------------------------------------------


def milliseconds(seconds: Sequence[float], percent: float) -> str:
    """Return a percentile as text."""
    return f"{1000 * percentile(seconds, percent):.1f}" if seconds else ""


def spread(loads: Sequence[int]) -> str:
    """Return the fewest and the most loads of a worker, to the mean."""
    mean = sum(loads) / len(loads)
    return f"{min(loads) / mean:.2f} to {max(loads) / mean:.2f}" if mean and len(loads) > 1 else ""


def print_reads(results: Sequence[Result]) -> None:
    """Print what readers see, and what that costs."""
    rows = []
    for run, busy, _, late in results:
        groups = (busy.seconds / run.every) * run.groups
        ages = [f"{percentile(busy.ages, percent):.1f}" if busy.ages else "" for percent in (50, 99, 100)]
        rows.append(
            [
                name_of(run),
                f"{sum(busy.loads) / busy.seconds:.1f}",
                f"{sum(busy.loads) / groups:.2f}",
                f"{sum(busy.loads) / run.groups / busy.seconds * 60:.1f}",
                f"{busy.requests / busy.seconds:.0f}",
                f"{busy.commands / busy.seconds:.0f}",
                f"{busy.bytes / busy.seconds / 1000:.0f}",
                milliseconds(busy.waits, 50),
                milliseconds(busy.waits, 99),
                *ages,
                "" if late is None else f"{max(0.0, late):.1f}",
            ]
        )
    columns = ["while it is read", "queries/s", "a group and round", "a group and minute", "requests/s", "commands/s"]
    columns += ["kB/s", "p50 ms", "p99 ms", "age p50 s", "p99", "most", "kill -9: late by s"]
    table("While groups are read as the trace asks for its keys", columns, rows)


def print_idle(results: Sequence[Result]) -> None:
    """Print what it costs when nobody reads."""
    rows = []
    for result in results:
        run, _, idle, _ = result
        if idle is None:
            continue
        groups = result.per_round(idle)
        loads = max(1, sum(idle.loads))
        rows.append(
            [
                name_of(run),
                f"{60 * sum(idle.loads) / idle.seconds:,.0f}",
                f"{60 * idle.requests / idle.seconds:,.0f}",
                f"{60 * idle.commands / idle.seconds:,.0f}",
                f"{sum(idle.loads) / groups:.2f}",
                f"{idle.requests / groups:.2f}",
                f"{idle.bytes / groups / 1000:.1f}",
                spread(idle.loads),
                f"{1000 * idle.server / loads:.2f}" if sum(idle.loads) else "",
                f"{1000 * idle.cpu / loads:.2f}" if sum(idle.loads) else "",
                f"{result.round_took:.1f}" if run.strategy in ("locks", "queue") else "",
            ]
        )
    columns = ["while nobody reads", "loads/min", "requests/min", "commands/min", "loads a group and round", "requests"]
    columns += ["kB", "loads, least and most", "server ms a load", "worker ms a load", "round s"]
    table("While nobody reads", columns, rows)


def print_growth(results: Sequence[Result]) -> None:
    """Print what becomes of it when there are ten times the groups, or eight times the workers."""
    results = that_grow(results)
    found = {(run.strategy, run.workers, run.groups): result for result in results for run in (result.run,)}
    rows = []
    for name, few, many in (("workers x 8, 105 groups", (1, 105), (8, 105)), ("groups x 10", (8, 1_000), (8, 10_000))):
        for strategy in STRATEGIES:
            pair = [found.get((strategy, *size)) for size in (few, many)]
            if pair[0] is None or pair[1] is None:
                continue
            cells = []
            for figure in FIGURES:
                before, after = (figure(result) for result in pair if result is not None)
                cells.append(f"{after / before:.1f}" if before else "")
            rows.append([f"{strategy}, {name}", *cells])
    if rows:
        columns = ["x", "queries a round", "requests a round", "commands a round", "bytes a round", "p99 ms", "age p99"]
        table("So many times as much", columns, rows)


def a_round(figure: Callable[[Window], float]) -> Callable[[Result], float]:
    """Return a figure of a round."""
    return lambda result: figure(result.busy) / result.busy.seconds * result.run.every


FIGURES: Sequence[Callable[[Result], float]] = (
    a_round(lambda busy: sum(busy.loads)),
    a_round(lambda busy: busy.requests),
    a_round(lambda busy: busy.commands),
    a_round(lambda busy: busy.bytes),
    lambda result: percentile(result.busy.waits, 99) if result.busy.waits else 0.0,
    lambda result: percentile(result.busy.ages, 99) / result.run.every if result.busy.ages else 0.0,
)


def print_goal(results: Sequence[Result]) -> None:
    """Print what is asked of the locks, for the largest run of them."""
    result = max((each for each in results if each.run.strategy == "locks"), key=lambda each: each.run[1:3])
    run, _, idle, _ = result
    if idle is None:
        return
    requests = idle.requests / result.per_round(idle)
    mean = statistics.mean(idle.loads)
    apart = max(abs(loads / mean - 1) for loads in idle.loads) if mean else 1.0
    rows = [
        ["requests a group and round, all workers", f"{requests:.2f}", verdict(requests, at_most=2)],
        ["loads of a worker, farthest from the mean", f"{apart:.2f}", verdict(apart, at_most=0.2)],
    ]
    table(f"Goals: {name_of(run)}, while nobody reads", ["what", "measured", "goal"], rows)


def name_of(run: Run) -> str:
    """Return what a row is called."""
    name = f"{run.strategy}, {run.groups:,} groups, {run.workers} worker{'s' if run.workers > 1 else ''}"
    name = name if run.memory else f"{name}, no L1"
    return name if run.database == SQLITE else f"{name}, {run.database}"


def that_grow(results: Sequence[Result]) -> list[Result]:
    """Return the runs of which there are more and fewer workers, and groups."""
    return [result for result in results if result.run.memory and result.run.database == SQLITE]


def save(results: Sequence[Result], path: Path) -> None:
    """Write what `benchmarks.sizes` compares with."""
    saved = []
    for result in results:
        run, busy, idle, _ = result
        if idle is None or run.database != SQLITE:
            continue
        loads = max(1, sum(idle.loads))
        saved.append(
            run._asdict()
            | {
                "requests": idle.requests / idle.seconds * run.every,
                "took": result.round_took,
                "age": percentile(busy.ages, 99) if busy.ages else 0.0,
                "requests_read": busy.requests / busy.seconds * run.every,
                "worker": idle.cpu / loads,
                "server": idle.server / loads,
            }
        )
    path.write_text(json.dumps(saved, indent=1))


# Of each strategy: its marker, and a colour that is seen on white and on slate.
_MARKS: Final = {
    "no cache": ("x", "#808080"),
    "read": ("o", "#d98a00"),
    "locks": ("^", "#4a7fd6"),
    "queue": ("s", "#2e9e5b"),
}


def plot(results: Sequence[Result], folder: Path) -> None:
    """Draw what the tables say, in the colours of the page that shows it."""
    import matplotlib

    matplotlib.use("svg")
    # Text stays text, in the font of the page; the same figures make the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "swr", "svg.fonttype": "none", "font.size": 11, "axes.titlesize": 12})
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    results = that_grow(results)
    fewest = min(result.run.groups for result in results)
    most = max(result.run.workers for result in results)
    by_workers = [result for result in results if result.run.groups == fewest]
    by_groups = [result for result in results if result.run.workers == most]
    panels: list[tuple[str, str, Callable[[Result], float]]] = [
        ("database queries", "a round", FIGURES[0]),
        ("requests to Redis", "a round", FIGURES[1]),
        ("age of what readers got, p99", "rounds", FIGURES[5]),
        ("read latency, p99", "ms", lambda result: 1000 * FIGURES[4](result)),
    ]
    sides: tuple[tuple[str, str, list[Result], Literal["workers", "groups"]], ...] = (
        ("What more workers cost", f"{fewest} groups", by_workers, "workers"),
        ("What more groups cost", f"{most} workers", by_groups, "groups"),
    )
    for title, of, some, across in sides:
        figure, grid = pyplot.subplots(2, 2, figsize=(7.2, 6.2), layout="constrained")
        for axis, (name, unit, value) in zip(grid.flat, panels, strict=True):
            for strategy in STRATEGIES:
                marker, colour = _MARKS[strategy]
                mine = [result for result in some if result.run.strategy == strategy]
                where = [getattr(result.run, across) for result in mine]
                axis.plot(where, [value(result) for result in mine], marker=marker, color=colour, label=strategy)
            axis.set(title=name, xlabel=across, ylabel=unit, xscale="log", ylim=(0, None))
            if name != panels[2][0]:
                axis.set_yscale("symlog")
                axis.yaxis.set_major_formatter("{x:,.0f}")
            axis.set_xticks(sorted({getattr(result.run, across) for result in some}))
            axis.xaxis.set_major_formatter("{x:,.0f}")
            axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        grid.flat[0].legend(framealpha=0)
        figure.suptitle(of)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
        pyplot.close(figure)
        (folder / f"architectures-{across}.svg").write_text(
            inlined(text.getvalue(), f"plot-{across}", f"{title}: {of}")
        )


def inlined(svg: str, name: str, title: str) -> str:
    """Return a drawing of matplotlib as a part of a page, whose font and colours it takes, light or dark.

    Parameters:
        name: begins the ids in it, which are the page's.
        title: read to those who do not see it.
    """
    svg = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    # A `<style>` would hold for the whole page.
    elements = r"<svg[^>]*>|<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>"
    svg = re.sub(rf'{elements}|font-family: [^;"]*; ?', "", svg, flags=re.DOTALL)
    svg = re.sub(r"\bfont: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}-", svg).replace("#000000", "currentColor")
    # Markdown ends what is inlined at a blank line.
    svg = re.sub(r"\n\s*(?=\n)", "", svg)
    return (
        f'<svg class="diagram plot" {box[0]} role="img" aria-labelledby="{name}-title" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" font-family="inherit" '
        f'fill="currentColor" stroke-linejoin="round">\n<title id="{name}-title">{title}</title>\n{svg.strip()}\n'
    )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small, once: to see that it runs, not to measure")
    parser.add_argument("--plots", metavar="DIR", type=Path, help="where plots go, as SVG")
    parser.add_argument("--save", metavar="FILE", type=Path, help="where to write what `scripts/bench sizes` asks for")
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    # A round that takes too long, or nobody who takes over, is in the figures.
    logging.getLogger("swr").setLevel(logging.ERROR)
    if options.work:
        run, url, path, where, index = options.work
        asyncio.run(work(Run(*json.loads(run)), url, Path(path), where, int(index)))
        return
    print_machine("swr", "redis", "hiredis")
    kind = kinds()[-1]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flights.db"
        build(path)
        index_days(path)
        for number, run in enumerate(all_runs := runs(options.quick), start=1):
            print(f"{number} of {len(all_runs)}: {name_of(run)}", file=sys.stderr, flush=True)
            results.append(measure(run, kind, path))
    print_reads(results)
    print_idle(results)
    print_growth(results)
    print_goal(results)
    if options.save:
        save(results, options.save)
    if options.plots:
        plot(results, options.plots)


if __name__ == "__main__":
    main()
