"""What the benchmarks share: interleaved rounds, medians, ratios of one run, and tables in Markdown."""

import asyncio
import importlib.metadata
import importlib.util
import os
import platform
import selectors
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

# Runs a contestant so many times and returns the seconds that took.
Run = Callable[[int], Awaitable[float]]


def installed(*modules: str) -> bool:
    """Whether all of these modules can be imported; contestants that are not installed are left out."""
    try:
        return all(importlib.util.find_spec(module) is not None for module in modules)
    except ModuleNotFoundError:  # the package that a module would be in
        return False


async def interleave(contestants: Mapping[str, Run], counts: Mapping[str, int], rounds: int) -> dict[str, list[float]]:
    """Return, by contestant, the seconds per call of each round.

    Every round runs all of them, each time in another order: what else the machine does then hits all alike, and
    the quotient of two of them in one round means something where either figure alone does not.
    """
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for name in names:
        await contestants[name](max(1, counts[name] // 10))
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            taken[name].append(await contestants[name](counts[name]) / counts[name])
    return taken


def ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """Return the median over the rounds of one contestant's figure over another's."""
    return statistics.median(a / b for a, b in zip(of, to, strict=True))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that so many percent of the values do not exceed."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(len(ranked) * percent / 100))]


class OwnTime(selectors.DefaultSelector):
    """The selector of an event loop, and a clock that stands still while the machine does not run that loop.

    While it waits, time goes on as it does on the wall. While it has something to do, only the time counts that its
    thread was run for: not that of another process, nor, where the kernel knows of it, of another guest of the host.
    """

    def __init__(self) -> None:
        super().__init__()
        # Seconds: in `select`, and what the thread was run for in there.
        self._waited = 0.0
        self._ran = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout == 0:
            # Somebody is ready to run.
            return super().select(timeout)
        wall, run = time.perf_counter(), time.thread_time()
        ready = super().select(timeout)
        self._waited += time.perf_counter() - wall
        self._ran += time.thread_time() - run
        return ready

    def now(self) -> float:
        """Return seconds since some beginning."""
        return self._waited + time.thread_time() - self._ran


def share(value: float) -> str:
    """Return a ratio as text: 0.87, or 1/75 where it is small."""
    return f"1/{1 / value:.0f}" if value < 0.1 else f"{value:.2f}"


def verdict(value: float, *, at_most: float | None = None, at_least: float | None = None) -> str:
    """Return a goal, and whether `value` reaches it."""
    if at_most is not None:
        return f"≤ {share(at_most)} {'reached' if value <= at_most else 'MISSED'}"
    if at_least is not None:
        return f"≥ {share(at_least)} {'reached' if value >= at_least else 'MISSED'}"
    return ""


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table in Markdown, aligned so that it reads in a terminal too."""
    lines = [list(columns), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    print(f"\n{title}\n")
    for number, line in enumerate(lines):
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        print(f"| {' | '.join(cells)} |")
        if number == 0:
            print(f"| {'-' * widths[0]} | {' | '.join('-' * (width - 1) + ':' for width in widths[1:])} |")
    sys.stdout.flush()


def print_machine(*packages: str) -> None:
    """Print what the figures were made on."""
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} is not installed and left out")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {cores} cores"
    print(f"{machine}; {', '.join(versions)}")


def run_with_loop(main: Callable[[], Awaitable[Any]], loop: str) -> Any:
    """Run `main` on "asyncio"'s own event loop or on "uvloop"."""

    async def start() -> Any:
        return await main()

    if loop == "asyncio":
        return asyncio.run(start())
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(start())
