"""`swr queue`: shows the numbers of refreshers' queues, and shows, retries and deletes dead letters."""

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from swr.cli.shared import Commands, Failure, add_json, add_store, add_watch, command, key_of, watched, with_store
from swr.core.keys import one_line
from swr.errors import ConfigurationError
from swr.stores.redis.inspection import moment

if TYPE_CHECKING:
    from swr.refreshers.queue.queue import Queue
    from swr.refreshers.queue.status import QueueStatus
    from swr.refreshers.queue.tasks import DeadLetter
    from swr.stores.redis.store import RedisStore

T = TypeVar("T")

_EXAMPLES: Final = """\
examples:
  swr queue status --redis redis://127.0.0.1:6379/0
      Shows how many tasks of each queue of the namespace are queued, are running, or wait for another try.
  swr queue dead ranking:group --redis redis://127.0.0.1:6379/0
      Shows the dead letters: the groups that the queue gave up, and why.
  swr queue retry ranking:group ranking:ATL ranking:JFK --redis redis://127.0.0.1:6379/0
      Turns two dead letters back into tasks. For all of them, give --all.
  swr queue purge ranking:group --all --redis redis+cluster://node1,node2
      Deletes all dead letters of the queue, in a cluster.

A queue has the name of its Refresher: its name= or else its key template without the braces.
"""


def add(commands: Commands) -> None:
    """Add `queue`."""
    queue = command(
        commands,
        "queue",
        None,
        "show the queues of refreshers, and manage their dead letters",
        "Show the queues of refreshers, and manage their dead letters.",
        _EXAMPLES,
    )
    actions = queue.add_subparsers(title="commands", metavar="command", required=True)
    for name, run, about in (
        ("status", _status, "the numbers of tasks, the consumers, and the leader"),
        ("dead", _dead, "the groups that a queue gave up, and why"),
    ):
        action = command(actions, name, run, about, f"Show {about}.", _EXAMPLES)
        action.add_argument("name", nargs="?", help="the name of the queue (all queues of the namespace)")
        add_store(action)
        add_json(action)
        add_watch(action)
    for name, run, about in (
        ("retry", _retry, "turn dead letters back into tasks"),
        ("purge", _purge, "delete dead letters"),
    ):
        action = command(actions, name, run, about, f"{about.capitalize()}.", _EXAMPLES)
        action.add_argument("name", help="the name of the queue")
        action.add_argument("keys", nargs="*", default=[], metavar="key", help="a key, as `swr queue dead` shows it")
        action.add_argument("--all", action="store_true", help="every dead letter of the queue")
        add_store(action)
        add_json(action)


def _status(options: argparse.Namespace) -> int:
    """Print the numbers of queues."""
    return watched(options, lambda: _show_status(options))


def _show_status(options: argparse.Namespace) -> int:
    found = _of_each(options, lambda queue: queue.status())
    if options.json:
        print(json.dumps({"queues": [msgspec.to_builtins(status) for _, status in found]}))
    else:
        print("\n\n".join(_told(status) for _, status in found) or _none(options))
    return 0


def _told(status: "QueueStatus") -> str:
    consumers = [f"{name} ({silent:.1f} s ago)" for name, silent in sorted(status.consumers.items())]
    lines = [
        ("queue", f"{status.name} ({status.backend})"),
        *((name, f"{getattr(status, name):,}") for name in ("queued", "running", "waiting", "dirty", "dead")),
        ("consumers", ", ".join(consumers) or "none"),
        ("leader", f"for {status.leads_for:.1f} s unless it renews its lease" if status.leads_for else "none"),
        ("round", "none" if status.round is None else moment(status.round)),
        ("so far", ", ".join(f"{count:,} {name}" for name, count in sorted(status.counts.items())) or "nothing"),
    ]
    return "\n".join(f"{name:<12} {text}" for name, text in lines)


def _dead(options: argparse.Namespace) -> int:
    """Print the dead letters."""
    return watched(options, lambda: _show_dead(options))


def _show_dead(options: argparse.Namespace) -> int:
    found = [(name, letter) for name, letters in _of_each(options, lambda queue: queue.dead()) for letter in letters]
    if options.json:
        print(json.dumps({"dead": [{"queue": name, **msgspec.to_builtins(letter)} for name, letter in found]}))
    else:
        print("\n".join(_given_up(name, letter) for name, letter in found) or "no dead letters")
    return 0


def _given_up(name: str, letter: "DeadLetter") -> str:
    key, why = one_line(letter.key), one_line(" ".join(letter.why.split()))
    return f"{name}  {key}  tries {letter.tries}, {max(0.0, time.time() - letter.at):.0f} s ago: {why}"


def _retry(options: argparse.Namespace) -> int:
    """Turn dead letters back into tasks."""
    return _settle(options, "retried", lambda queue, keys: queue.retry(keys))


def _purge(options: argparse.Namespace) -> int:
    """Delete dead letters."""
    return _settle(options, "purged", lambda queue, keys: queue.purge(keys))


def _settle(options: argparse.Namespace, done: str, do: "Callable[[Queue, list[str]], Awaitable[int]]") -> int:
    keys = [key_of(key) for key in options.keys]
    if bool(keys) == options.all:
        raise ConfigurationError("name the keys of dead letters, or give --all, and not both")

    async def settle(store: "RedisStore") -> int:
        (queue,) = (await _queues(store, options)).values()
        there = {letter.key for letter in await queue.dead()}
        strange = [key for key in keys if key not in there]
        if strange:
            raise Failure(
                f"{strange[0]!r} is not a dead letter of {options.name!r}: nothing was {done}. `swr queue dead` "
                f"lists the dead letters"
            )
        return await do(queue, keys)

    count = asyncio.run(with_store(options, settle))
    said = json.dumps({done: count, "queue": options.name})
    print(said if options.json else f"{done} {count:,} dead letter{'s' * (count != 1)} of {options.name!r}")
    return 0


def _of_each(options: argparse.Namespace, ask: "Callable[[Queue], Awaitable[T]]") -> list[tuple[str, T]]:
    """Return the name and the answer of the queue that the user names, or of each queue."""

    async def every(store: "RedisStore") -> list[tuple[str, T]]:
        return [(name, await ask(queue)) for name, queue in sorted((await _queues(store, options)).items())]

    return asyncio.run(with_store(options, every))


async def _queues(store: "RedisStore", options: argparse.Namespace) -> "dict[str, Queue]":
    """Return the queue that the user names, or all queues, by name.

    Raises:
        ConfigurationError: there is no queue of this name.
    """
    from swr.refreshers.queue.queue import known

    queues = await known(store)
    if options.name is None:
        return queues
    if options.name not in queues:
        names = ", ".join(map(repr, sorted(queues)))
        raise ConfigurationError(
            f"there is no queue {options.name!r} in the namespace {options.namespace!r}; "
            f"{f'there are {names}' if names else 'there is none at all'}"
        )
    return {options.name: queues[options.name]}


def _none(options: argparse.Namespace) -> str:
    return f"no queues in the namespace {options.namespace!r}"
