"""`swr refresh`: runs a refresher, in this process or in several worker processes."""

import argparse
import asyncio
import contextlib
import logging
import reprlib
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, TextIO

from swr.cli.rounds import Lines, Rounds, written
from swr.cli.shared import FAILURE, Commands, add_json, command, imported, redis_of, say
from swr.cli.workers import Workers
from swr.errors import ConfigurationError
from swr.events import RoundEnded, RoundQueued
from swr.refreshers import Refresher

# Seconds that a worker may need to end after its loads: for its last commands to Redis, and the interpreter's exit.
_LEAVING: Final = 5.0
_EXAMPLES: Final = """\
examples:
  export REDIS_URL=redis://127.0.0.1:6379/0 STRATEGY=queue; python -m examples.flights flights.db
  swr refresh examples.ranking:refresher
      Runs the Refresher that examples/ranking.py calls `refresher`, in this process, until SIGTERM or Ctrl-C.
  swr refresh examples.ranking:refresher --workers 4
      Runs it in four processes, and starts another process if one dies.
  swr refresh examples.ranking:refresher --workers 4 --json | jq .loaded
      Does the same, and prints each round as a line with a JSON object.

The command prints one line for each round: the number of groups (with a queue: of those taken from it), and how many
were loaded, were already current, were held by another process, or failed. Then come the time of the slowest worker,
the number of Redis commands, and the number of workers that have reported. At the end, the command waits for running
loads up to the refresher's `drain_for`.
"""


def add(commands: Commands) -> None:
    """Add `refresh`."""
    refresh = command(
        commands,
        "refresh",
        _refresh,
        "keep groups warm: run a Refresher",
        "Run a swr.Refresher, and print the results of each round.",
        _EXAMPLES,
    )
    refresh.add_argument(
        "refresher", metavar="MODULE:REFRESHER", help="the refresher; the module is found from the current directory"
    )
    refresh.add_argument("--workers", type=int, default=1, metavar="N", help="how many processes (%(default)s)")
    add_json(refresh, "one JSON object a line")
    # With this internal option, a worker process reports its rounds to the process that started it.
    refresh.add_argument("--events", action="store_true", help=argparse.SUPPRESS)


def _refresh(options: argparse.Namespace) -> int:
    """Run a refresher until a signal ends it."""
    if options.workers < 1:
        raise ConfigurationError(f"--workers {options.workers} is too low: give 1 or more")
    out = sys.stdout
    # Anything that the module or a loader prints goes to stderr: stdout is for the lines of rounds alone.
    with contextlib.redirect_stdout(sys.stderr):
        refresher = imported(options.refresher)
        if not isinstance(refresher, Refresher):
            raise ConfigurationError(f"{options.refresher!r} is {reprlib.repr(refresher)}, not a swr.Refresher")
        if refresher.strategy == "read":
            raise ConfigurationError(
                f'{options.refresher!r} has strategy="read", with which only readers cause refreshes and there is '
                f'nothing to run: give it "locks" or "queue"'
            )
        redis_of(refresher.loader.engine, options.refresher)
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s[%(process)d]: %(message)s")
        return asyncio.run(_run(options, refresher, out))


async def _run(options: argparse.Namespace, refresher: Refresher, out: TextIO) -> int:
    stop = asyncio.Event()
    lines = Lines(out, stop.set)
    rounds = Rounds(refresher.name, refresher.every, refresher.strategy, lines.show, options.json)
    failed = 0
    with _until_a_signal(stop):
        if not (options.json or options.events):
            lines.show(
                f"swr: refreshing {refresher.name!r} every {refresher.every:g} s, strategy {refresher.strategy!r}, "
                f"in {options.workers} process{'es' * (options.workers > 1)}"
            )
        if options.workers > 1:
            worker = (sys.executable, "-m", "swr", "refresh", options.refresher, "--events")
            grace = refresher.drain_for + refresher.loader.engine.runtime.tasks.drain_for + _LEAVING
            failed = await Workers(worker, options.workers, rounds).run(stop, grace)
        elif options.events:
            await _work(refresher, lambda event: lines.show(written(event)), stop)
        else:
            rounds.begin(0)
            await _work(refresher, partial(rounds.on_event, 0), stop)
    if not lines.are_read:
        return say("the program that read the rounds has ended", FAILURE)
    return FAILURE if failed else 0


async def _work(refresher: Refresher, on_event: Callable[[Any], None], stop: asyncio.Event) -> None:
    """Refresh in this process."""
    engine = refresher.loader.engine
    engine.events.subscribe(on_event, (RoundQueued, RoundEnded))
    try:
        async with refresher:
            await stop.wait()
    finally:
        await engine.aclose()


@contextlib.contextmanager
def _until_a_signal(stop: asyncio.Event) -> Iterator[None]:
    """Return a context manager in which SIGTERM and SIGINT only set `stop`."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
