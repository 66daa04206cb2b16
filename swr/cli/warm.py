"""`swr warm`: loads missing and stale entries before a reader asks for them."""

import argparse
import asyncio
import contextlib
import json
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from swr.cli.shared import (
    FAILURE,
    Commands,
    Failure,
    add_json,
    arguments_of,
    command,
    described,
    imported,
    key_with,
    loader_of,
    quiet,
    redis_of,
    say,
)
from swr.entry import State
from swr.errors import ConfigurationError, StoreUnavailable
from swr.refreshers.rounds.groups import checked, groups_of
from swr.refreshers.rounds.load_limiter import Ended, Loader, LoadLimiter, Result, Task

_EXAMPLES: Final = """\
examples:
  export REDIS_URL=redis://127.0.0.1:6379/0; python -m examples.flights flights.db
  swr warm examples.ranking:load_by_delay --keys ATL LAX ORD
      Loads the three rankings unless they are fresh.
  swr warm examples.ranking:load_by_delay --keys-from examples.ranking:flights.airports --at-once 8
      Takes the keys from a list, or from a function that returns one, and loads eight at a time.
  swr warm examples.ranking:load_by_delay --keys '["ATL"]' --force
      Loads the ranking even if it is fresh. A loader with several arguments needs a JSON array, as here.
  swr warm examples.ranking:load_by_delay --keys-file groups.txt
      Takes the keys from a file, one in each line; - is the standard input.

The key of a batch loader is one item of its list. The command calls it with many items at once.
"""
# Width of the progress bar, in characters.
_WIDTH: Final = 30


def add(commands: Commands) -> None:
    """Add `warm`."""
    warm = command(
        commands,
        "warm",
        _warm,
        "load missing and stale entries before a reader asks for them",
        "Load and store the entries of a cached loader that are not fresh.",
        _EXAMPLES,
    )
    warm.add_argument(
        "loader", metavar="MODULE:FUNCTION", help="the cached loader; the module is found from the current directory"
    )
    keys = warm.add_mutually_exclusive_group(required=True)
    keys.add_argument("--keys", nargs="+", metavar="KEY", help="the argument of a call, or a JSON array of several")
    keys.add_argument("--keys-from", metavar="NAME", help="MODULE:NAME of a list, or of a function that returns one")
    keys.add_argument("--keys-file", metavar="FILE", help="a file with one KEY in each line")
    warm.add_argument("--at-once", type=int, default=32, metavar="N", help="how many loads at a time (%(default)s)")
    warm.add_argument("--force", action="store_true", help="also load fresh entries")
    add_json(warm)


def _warm(options: argparse.Namespace) -> int:
    """Load entries, and print how many were loaded, were fresh, or failed."""
    if options.at_once < 1:
        raise ConfigurationError(f"--at-once {options.at_once} is too low: give 1 or more")
    out = sys.stdout
    # Anything that the module or the loader prints goes to stderr: stdout is for the answer alone.
    with contextlib.redirect_stdout(sys.stderr), quiet():
        loader = loader_of(options.loader)
        warming = Warming(loader, options.loader, options.at_once, options.force)
        asyncio.run(_run(warming, options))
    counts = {"loaded": warming.loaded, "fresh": warming.fresh, "failed": len(warming.failed)}
    errors = {key: described(error) for key, error in warming.failed.items()}
    if options.json:
        print(json.dumps({**counts, "errors": errors}), file=out)
    else:
        print(", ".join(f"{name} {count:,}" for name, count in counts.items()), file=out)
    if not errors:
        return 0
    key, error = next(iter(errors.items()))
    return say(f"{len(errors):,} of {warming.total:,} could not be loaded; the first, {key!r}: {error}", FAILURE)


async def _run(warming: "Warming", options: argparse.Namespace) -> None:
    try:
        await warming.run(await _calls(warming.loader, options))
    finally:
        await warming.loader.engine.aclose()


async def _calls(loader: Any, options: argparse.Namespace) -> list[tuple[Any, ...]]:
    """Return the arguments of each call."""
    if options.keys_from is not None:
        keys = checked(imported(options.keys_from), "--keys-from")
        try:
            return await groups_of(keys)
        except Exception as error:
            raise Failure(f"{options.keys_from!r} gave no keys: {described(error)}") from error
    return [arguments_of(loader, text) for text in options.keys or _lines(options.keys_file)]


def _lines(name: str) -> list[str]:
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise Failure(f"--keys-file {name!r} cannot be read: {described(error)}") from error
    return [line for line in text.splitlines() if line.strip()]


class Warming:
    """One run of `swr warm`, which loads the entries that are not fresh.

    Parameters:
        loader: the cached loader.
        name: the loader's name as the user gave it.
        at_once: how many loads run at a time.
        force: whether to load fresh entries, too.

    Raises:
        ConfigurationError: the cache of the loader does not store its entries in Redis.
    """

    def __init__(self, loader: Loader, name: str, at_once: int, force: bool) -> None:
        self.loader = loader
        self.total = 0
        self.loaded = 0
        self.fresh = 0
        self.failed: dict[str, BaseException | None] = {}
        self._store = redis_of(loader.engine, name)
        if loader.stays_here:
            raise ConfigurationError(
                f"{name!r} has shared=False: leave that out, because no other process could use what is loaded here"
            )
        self._limiter = LoadLimiter(loader, at_once)
        self._force = force
        self._todo: deque[Task] = deque()
        self._shown = -1

    async def run(self, calls: Sequence[tuple[Any, ...]]) -> None:
        """Load the entries of calls.

        Parameters:
            calls: the arguments of each call.

        Raises:
            ConfigurationError: the loader does not take the arguments of a call.
            StoreUnavailable: Redis is unreachable.
        """
        keys = {}
        for args in calls:
            keys[key_with(self.loader, args)] = args
        self.total = len(keys)
        await self.loader.engine.ready()
        waiting = deque(keys.items())
        self._show()
        while self._done < self.total:
            free_slots, ready = self._limiter.free_slots, len(self._todo)
            if free_slots > ready and waiting:
                some = [waiting.popleft() for _ in range(min(free_slots - ready, len(waiting)))]
                # These run in one turn of the event loop, so that their Redis commands share a write.
                await asyncio.gather(*(self._look(key, args) for key, args in some))
            elif free_slots and ready:
                self._limiter.begin([self._todo.popleft() for _ in range(min(free_slots, ready))], self._ended)
            else:
                await self._limiter.wait()

    @property
    def _done(self) -> int:
        return self.loaded + self.fresh + len(self.failed)

    async def _look(self, key: str, args: tuple[Any, ...]) -> None:
        """Look up the entry of a call, and add the call to the loads unless the entry is fresh."""
        from swr.stores.redis.inspection import inspect

        if self._force:
            self._todo.append(Task(key, args, (await self._store.newest([key]))[key]))
            return
        found = await inspect(self._store, key, self.loader.codec.fingerprint)
        if found.state is State.FRESH:
            self.fresh += 1
            self._show()
        else:
            self._todo.append(Task(key, args, found.version or 0))

    def _ended(self, task: Task, end: Ended) -> None:
        if end.result is Result.LOADED:
            self.loaded += 1
        elif end.result is Result.CURRENT:
            self.fresh += 1
        elif end.result is Result.HELD and end.error is None:
            # Another process is loading it.
            asyncio.get_running_loop().call_later(min(end.again_in, 1.0), self._again, task)
            return
        else:
            self.failed[task.key] = end.error or StoreUnavailable("Redis is unreachable")
        self._show()

    def _again(self, task: Task) -> None:
        self._todo.append(task)
        self._limiter.change()

    def _show(self) -> None:
        """Show the progress, if stderr is a terminal."""
        done = self._done
        share = done * 100 // self.total if self.total else 100
        if share == self._shown or not sys.stderr.isatty():
            return
        self._shown = share
        bar = "#" * (share * _WIDTH // 100)
        end = "\n" if done == self.total else ""
        print(f"\r[{bar:<{_WIDTH}}] {done:,} of {self.total:,}", end=end, file=sys.stderr, flush=True)
