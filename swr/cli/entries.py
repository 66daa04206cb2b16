"""`swr inspect` and `swr invalidate`: what lies in Redis for a key, and removing it."""

import argparse
import asyncio
import json
from typing import Final

import msgspec

from swr.cli.shared import Commands, add_store, command, key_of, with_store
from swr.errors import ConfigurationError
from swr.stores.tag_versions import ALL

_INSPECT: Final = """\
examples:
  swr inspect ranking:ATL:100 --redis redis://127.0.0.1:6379/0
      Whether the entry is fresh, stale or missing, why, until when, and who is loading it.
  swr inspect 'GET http://example.com\n/rankings/ATL?' --redis redis+cluster://node1,node2
      The same for a response, in a cluster; \\n stands for the line break in a key.

The key is that of the template with its arguments filled in; a decorated function tells it: top100.key("ATL").
"""
_INVALIDATE: Final = """\
examples:
  swr invalidate ranking:ATL:100 --redis redis://127.0.0.1:6379/0
      One key, in Redis and in the memory of every process.
  swr invalidate --tag group:ATL --redis redis+sentinel://host1,host2/main
      All that carries a tag.
  swr invalidate --all --redis redis://127.0.0.1:6379/0
      Everything of the namespace.
"""


def add(commands: Commands) -> None:
    """Add `inspect` and `invalidate`."""
    inspect = command(
        commands,
        "inspect",
        _inspect,
        "what lies in Redis for one key",
        "What lies in Redis for one key: state, age, deadlines, version, size, tags and lease.",
        _INSPECT,
    )
    inspect.add_argument("key", help="the key, ranking:ATL:100")
    add_store(inspect)
    invalidate = command(
        commands,
        "invalidate",
        _invalidate,
        "remove a key, all that carries a tag, or everything, in every process",
        "Remove what is stored, in Redis and in the memory of every process that uses it.",
        _INVALIDATE,
    )
    what = invalidate.add_mutually_exclusive_group(required=True)
    what.add_argument("key", nargs="?", help="the key, ranking:ATL:100")
    what.add_argument("--tag", help="all that carries this tag")
    what.add_argument("--all", action="store_true", help="everything of the namespace")
    add_store(invalidate)


def _inspect(options: argparse.Namespace) -> int:
    """Say what lies in Redis for a key."""
    from swr.cli.inspection import inspect, told

    key = key_of(options.key)
    found = asyncio.run(with_store(options, lambda store: inspect(store, key)))
    print(json.dumps(msgspec.to_builtins(found)) if options.json else told(found))
    return 0


def _invalidate(options: argparse.Namespace) -> int:
    """Remove what is stored."""
    if options.all:
        asyncio.run(with_store(options, lambda store: store.invalidate_tag(ALL)))
        return _invalidated(options, "all", True, "everything")
    if options.tag is not None:
        if not options.tag:
            raise ConfigurationError(f"--tag {options.tag!r} is no tag; for everything: --all")
        asyncio.run(with_store(options, lambda store: store.invalidate_tag(options.tag)))
        return _invalidated(options, "tag", options.tag, f"all that carries the tag {options.tag!r}")
    key = key_of(options.key)
    asyncio.run(with_store(options, lambda store: store.invalidate(key)))
    return _invalidated(options, "key", key, repr(key))


def _invalidated(options: argparse.Namespace, kind: str, what: str | bool, shown: str) -> int:
    said = json.dumps({"invalidated": {kind: what}, "namespace": options.namespace})
    print(said if options.json else f"invalidated {shown} in the namespace {options.namespace!r}")
    return 0
