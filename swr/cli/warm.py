"""`swr warm`: load what is missing before anybody asks for it."""

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
      Loads the three rankings unless they are fresh, before anybody asks for them.
  swr warm examples.ranking:load_by_delay --keys-from examples.ranking:flights.airports --at-once 8
      What a list holds, or a function returns; eight at a time.
  swr warm examples.ranking:load_by_delay --keys '["ATL"]' --force
      The arguments as a JSON array, which several of them want; loaded whether it is fresh or not.
  swr warm examples.ranking:load_by_delay --keys-file groups.txt
      One a line; - is the standard input.

A batch loader is called for many at once; a key is one item of its list.
"""
_WIDTH: Final = 30


def add(commands: Commands) -> None:
    """Add `warm`."""
    warm = command(
        commands,
        "warm",
        _warm,
        "load what is missing before anybody asks for it",
        "Load what is not fresh by a loader behind @cache.cached or @cache.cached_many, and store it.",
        _EXAMPLES,
    )
    warm.add_argument("loader", metavar="MODULE:FUNCTION", help="where the loader is, from the current directory")
    keys = warm.add_mutually_exclusive_group(required=True)
    keys.add_argument("--keys", nargs="+", metavar="KEY", help="one argument each, or a JSON array of several")
    keys.add_argument("--keys-from", metavar="NAME", help="MODULE:NAME of a list, or of a function that returns one")
    keys.add_argument("--keys-file", metavar="FILE", help="a file with one a line")
    warm.add_argument("--at-once", type=int, default=32, metavar="N", help="how many loads at a time (%(default)s)")
    warm.add_argument("--force", action="store_true", help="also load what is fresh")
    add_json(warm)


def _warm(options: argparse.Namespace) -> int:
    """Load, and say what came of it."""
    if options.at_once < 1:
        raise ConfigurationError(f"--at-once {options.at_once} is not 1 or more")
    out = sys.stdout
    # A module or a loader may print; that is not the answer.
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
    """Loads what is not fresh.

    Parameters:
        loader: by which.
        name: its name as the user gave it.
        at_once: how many loads run at a time.
        force: whether what is fresh is loaded, too.

    Raises:
        ConfigurationError: what it loads is not stored in Redis.
    """

    def __init__(self, loader: Loader, name: str, at_once: int, force: bool) -> None:
        self.loader = loader
        self.total = 0
        self.loaded = 0
        self.fresh = 0
        self.failed: dict[str, BaseException | None] = {}
        self._store = redis_of(loader.engine, name)
        if loader.stays_here:
            raise ConfigurationError(f"{name!r} has shared=False: what is loaded here would help no other process")
        self._limiter = LoadLimiter(loader, at_once)
        self._force = force
        self._todo: deque[Task] = deque()
        self._shown = -1

    async def run(self, calls: Sequence[tuple[Any, ...]]) -> None:
        """Load.

        Parameters:
            calls: the arguments of each.

        Raises:
            ConfigurationError: arguments that the loader does not take.
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
                # All in one turn of the event loop: their commands leave in one write.
                await asyncio.gather(*(self._look(key, args) for key, args in some))
            elif free_slots and ready:
                self._limiter.begin([self._todo.popleft() for _ in range(min(free_slots, ready))], self._ended)
            else:
                await self._limiter.wait()

    @property
    def _done(self) -> int:
        return self.loaded + self.fresh + len(self.failed)

    async def _look(self, key: str, args: tuple[Any, ...]) -> None:
        """Find out whether it is to be loaded."""
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
            # Somebody else is loading it.
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
