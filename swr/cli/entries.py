"""`swr inspect` shows what is in Redis for a key; `swr invalidate` removes entries, or marks them stale."""

import argparse
import asyncio
import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any, Final

import msgspec

from swr.cli.shared import (
    FAILURE,
    Commands,
    Failure,
    add_json,
    add_store,
    add_watch,
    arguments_of,
    command,
    key_of,
    key_with,
    loader_of,
    quiet,
    redis_of,
    watched,
    with_store,
)
from swr.errors import ConfigurationError
from swr.http.request import tag_of_url
from swr.settings import without_passwords
from swr.stores.tag_versions import ALL, Name, OfLoader, Soft

if TYPE_CHECKING:
    from swr.stores.redis.store import RedisStore

_INSPECT: Final = """\
examples:
  swr inspect ranking:ATL:100 --redis redis://127.0.0.1:6379/0
      Shows whether the entry is fresh, stale or missing, why, until when, and
      who is loading it.
  swr inspect ranking:ATL:100 --watch
      Shows the same every two seconds, in the Redis of SWR_REDIS_URL.
  swr inspect 'GET http://example.com\\n/rankings/ATL?'
      Shows the same for a response; \\n represents the line break in its key.

The key is the key template with the arguments filled in. A decorated function
returns it: top100.key("ATL").
"""
_INVALIDATE: Final = """\
examples:
  swr invalidate --key ranking:ATL:100 --redis redis://127.0.0.1:6379/0
      Removes one key, in Redis and in the memory of every process.
  swr invalidate --url '/rankings/ATL?limit=10'
      Removes the responses to a URL with its query, of all hosts, in the Redis of
      SWR_REDIS_URL.
  swr invalidate --tag group:ATL
      Removes all entries with a tag.
  swr invalidate --loader ranking:top100 ATL '["JFK", 10]'
      Removes the entries of top100("ATL") and top100("JFK", 10). It uses the
      loader's own cache.
  swr invalidate --loader ranking:top100 --all
      Removes all entries of a loader.
  swr invalidate --tag group:ATL --soft
      Makes all entries with a tag stale: the next reader still gets the old value
      at once, and swr refreshes it.
  swr invalidate --all
      Removes all entries of the namespace.
"""


def add(commands: Commands) -> None:
    """Add `inspect` and `invalidate`."""
    inspect = command(
        commands,
        "inspect",
        _inspect,
        "show what is in Redis for one key",
        "Show what is in Redis for one key: state, age, deadlines, version, size, tags and lease.",
        _INSPECT,
    )
    inspect.add_argument("key", help="the key, such as ranking:ATL:100")
    add_store(inspect)
    add_json(inspect)
    add_watch(inspect)
    invalidate = command(
        commands,
        "invalidate",
        _invalidate,
        "remove the entries of a key, a URL, a tag or a loader, or all, in every process",
        "Remove entries, in Redis and in the memory of every process.",
        _INVALIDATE,
    )
    add = invalidate.add_argument
    add("what", nargs="*", metavar="KEY", help="a key, such as ranking:ATL:100; with --loader, the arguments of a call")
    add("--key", help="the same as KEY")
    add("--url", help="the responses to a path or URL with its query, such as /rankings/ATL?limit=10")
    add("--tag", help="all entries with this tag")
    help_of_loader = "the entries of this loader: those of the calls KEY, or all with --all"
    add("--loader", metavar="MODULE:FUNCTION", help=help_of_loader)
    add("--all", action="store_true", help="all entries of the namespace; with --loader, all entries of the loader")
    add("--soft", action="store_true", help="mark entries stale instead of removing them")
    add_store(invalidate)
    add_json(invalidate)


def _inspect(options: argparse.Namespace) -> int:
    """Print what is in Redis for a key."""
    return watched(options, lambda: _show(options))


def _show(options: argparse.Namespace) -> int:
    from swr.stores.redis.inspection import inspect, is_nothing, told

    key = key_of(options.key)
    found = asyncio.run(with_store(options, lambda store: inspect(store, key)))
    if options.json:
        print(json.dumps(msgspec.to_builtins(found)))
    elif is_nothing(found):
        raise Failure(f"nothing stored under {key!r} in the namespace {options.namespace!r}{_hint(key)}")
    else:
        print(told(found))
    return FAILURE if is_nothing(found) else 0


def _hint(key: str) -> str:
    """Return a hint for a key that is a path or a URL, because the user may have meant a response."""
    is_url = key.startswith(("/", "http://", "https://"))
    hint = "; the key of a response is like 'GET http://host\\n/path?': show_key=True puts it into Cache-Status"
    return hint if is_url else ""


def _invalidate(options: argparse.Namespace) -> int:
    """Remove entries, or mark them stale."""
    given = {name: getattr(options, name) for name in ("key", "url", "tag", "loader", "all") if getattr(options, name)}
    empty = [name for name in ("key", "url", "tag", "loader") if getattr(options, name) == ""]
    if "" in options.what and not options.loader:
        # A shell variable may be empty, for example.
        raise ConfigurationError("KEY is empty: give a key, or --all for everything")
    if empty:
        raise ConfigurationError(f"--{empty[0]} is empty: give it a value, or --all for everything")
    if options.loader and options.all and not options.what:
        del given["all"]
    elif options.what and not {*given} <= {"loader"}:
        raise ConfigurationError(f"{options.what[0]!r} and --{next(iter(given))} say different things: give one")
    if len(given) + (bool(options.what) and not options.loader) != 1 or (len(options.what) > 1 and not options.loader):
        raise ConfigurationError("give one of KEY, --url, --tag, --loader and --all")
    if options.loader:
        return _invalidate_calls(options)
    if options.all:
        asyncio.run(with_store(options, lambda store: store.invalidate_tag(_named(options, ALL))))
        return _invalidated(options, "all", True, "everything")
    if options.tag is not None:
        asyncio.run(with_store(options, lambda store: store.invalidate_tag(_named(options, options.tag))))
        return _invalidated(options, "tag", options.tag, f"all that carries the tag {options.tag!r}")
    if options.url is not None:
        tag = tag_of_url(options.url)
        asyncio.run(with_store(options, lambda store: store.invalidate_tag(_named(options, tag))))
        return _invalidated(options, "url", options.url, f"the responses to {without_passwords(options.url)!r}")
    key = key_of(options.key or options.what[0])
    if key.startswith(("/", "http://", "https://")):
        raise ConfigurationError(f"{without_passwords(key)!r} is a URL, not a key: swr invalidate --url {key!r}")
    found = asyncio.run(with_store(options, lambda store: _remove(store, key, options.soft)))
    return _invalidated(options, "key", key, f"{key!r}{'' if found else ', under which nothing was stored,'}")


def _named(options: argparse.Namespace, name: str | OfLoader) -> Name:
    """Return a tag or a loader in the form that the store invalidates, or with --soft marks stale."""
    return Soft(name) if options.soft else name


async def _remove(store: "RedisStore", key: str, is_soft: bool) -> bool:
    """Invalidate a key, or mark it stale; return whether it had an entry."""
    from swr.stores.redis.inspection import inspect, is_nothing

    found = await inspect(store, key)
    await (store.mark_stale(key) if is_soft else store.invalidate(key))
    return not is_nothing(found)


def _invalidate_calls(options: argparse.Namespace) -> int:
    """Remove entries of a loader, in the loader's own cache."""
    if not options.what and not options.all:
        raise ConfigurationError(
            f"for which calls of {options.loader!r}? Give the arguments of each, ATL or '[\"ATL\", 10]'; or --all for "
            f"everything that it has stored"
        )
    if options.redis is not None or options.namespace is not None:
        raise ConfigurationError("--loader works where the loader's own cache is: leave out --redis and --namespace")
    out = sys.stdout
    # Anything that the module prints goes to stderr: stdout is for the answer alone.
    with contextlib.redirect_stdout(sys.stderr), quiet():
        loader = loader_of(options.loader)
        keys = [key_with(loader, arguments_of(loader, text)) for text in options.what]
        asyncio.run(_remove_calls(loader, options, keys))
    shown = ", ".join(map(repr, keys)) or f"all that the loader of {loader.template!r} has stored"
    what = {"loader": loader.template} if options.all else {"keys": keys}
    said = json.dumps({_done(options).replace(" ", "_"): what})
    print(said if options.json else f"{_done(options)} {shown}", file=out)
    return 0


async def _remove_calls(loader: Any, options: argparse.Namespace, keys: list[str]) -> None:
    try:
        await loader.engine.ready()
        store = redis_of(loader.engine, options.loader)
        if options.all:
            await store.invalidate_tag(_named(options, OfLoader(loader.template)))
        for key in keys:
            await (store.mark_stale(key) if options.soft else store.invalidate(key))
    finally:
        await loader.engine.aclose()


def _done(options: argparse.Namespace) -> str:
    return "marked stale" if options.soft else "invalidated"


def _invalidated(options: argparse.Namespace, kind: str, what: str | bool, shown: str) -> int:
    said = json.dumps({_done(options).replace(" ", "_"): {kind: what}, "namespace": options.namespace})
    print(said if options.json else f"{_done(options)} {shown} in the namespace {options.namespace!r}")
    return 0
