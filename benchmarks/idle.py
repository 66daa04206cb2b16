"""What swr costs before it does anything: how long its import takes, and what an idle process asks of Redis.

    scripts/bench idle [--quick]

An import is measured as the time that a new process is run for (user and system), less that of one that imports
nothing. The files are in the memory of the machine, and compiled.
"""

import argparse
import asyncio
import resource
import statistics
import subprocess
import sys
import time

from benchmarks.measure import print_machine, table, verdict
from swr import Cache
from tests.servers import Server, kinds

_IMPORTS = {
    "swr": ("import swr", 80.0),
    "a cache": ("from swr import Cache, Policy; Cache()", None),
    "a cache with Redis": ("from swr import Cache, Policy; Cache('redis://127.0.0.1:1')", None),
    "a cache and the middleware": ("from swr import Cache; from swr.middleware import SWRMiddleware", None),
    "asyncio": ("import asyncio", None),
    "FastAPI": ("import fastapi", None),
    "FastAPI, a cache and the middleware": (
        "import fastapi; from swr import Cache; from swr.middleware import SWRMiddleware",
        None,
    ),
}


def run_for(code: str) -> float:
    """Return the milliseconds for which a new process is run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1e3 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def imports(rounds: int) -> None:
    """Print the table of imports."""
    taken: dict[str, list[float]] = {name: [] for name in _IMPORTS}
    for _ in range(rounds):
        for name, (code, _) in _IMPORTS.items():
            taken[name].append(run_for(code) - run_for("pass"))
    rows = []
    for name, milliseconds in taken.items():
        median, most = statistics.median(milliseconds), _IMPORTS[name][1]
        rows.append([name, f"{median:.0f}", "" if most is None else verdict(median, at_most=most)])
    table(f"Imports (median of {rounds} rounds)", ["import of", "ms", "goal"], rows)


async def commands(url: str, seconds: float) -> None:
    """Print the table of what an idle process sends."""
    rows = []
    for name, reports in (("idle", False), ("idle, with a digest for dashboards", True)):
        async with Cache(url, reports=reports) as cache:
            await asyncio.sleep(1)
            began, sent = time.perf_counter(), cache.engine.store.sent
            await asyncio.sleep(seconds)
            rate = (cache.engine.store.sent - sent) / (time.perf_counter() - began)
            rows.append([name, f"{rate:.2f}", verdict(rate, at_most=2)])
    table(f"An idle process, {seconds:.0f} s", ["process", "commands a second", "goal"], rows)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds: to see that it runs, not to measure")
    quick = parser.parse_args().quick
    print_machine("swr", "redis", "fastapi")
    imports(1 if quick else 15)
    with Server(kinds()[-1]) as server:
        asyncio.run(commands(server.url, 1 if quick else 20))


if __name__ == "__main__":
    main()
