"""`swr keys`: lists the entries in Redis, page by page."""

import argparse
import asyncio
import base64
import json
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote, unquote

import msgspec

from swr.cli.shared import Commands, add_json, add_store, command, with_store
from swr.core import frames
from swr.core.keys import loader_digest, one_line
from swr.errors import ConfigurationError
from swr.stats.counts import ROUTE

if TYPE_CHECKING:
    from swr.stores.redis.inspection import Inspection
    from swr.stores.redis.server_link import ServerLink
    from swr.stores.redis.store import RedisStore

_EXAMPLES: Final = """\
examples:
  swr keys --redis redis://127.0.0.1:6379/0
      Lists some entries of the namespace, with their state, age and size, and then
      the option for the next ones.
  swr keys --loader 'ranking:{group}' --limit 20
      Lists twenty entries of the loader with this key template, in the Redis of
      SWR_REDIS_URL.
  swr keys --route '/rankings/{group}' --tags
      Lists responses of one route, with their tags.
  swr keys --cursor 0.1408 --json
      Lists the next ones, as one JSON object.

The command goes through the keys of each server with SCAN, in small steps that do
not block other clients. The list may lack entries that are stored or removed
meanwhile, or have them twice.
"""
# The most keys that a server looks at in one step.
_STEP: Final = 250
# The most entries that are read concurrently.
_AT_ONCE: Final = 25
_DIGEST: Final = "it cannot be read: the name is a digest of a long key, and the key itself is encrypted"


def add(commands: Commands) -> None:
    """Add `keys`."""
    keys = command(
        commands,
        "keys",
        _keys,
        "list the entries in Redis, by loader or route, page by page",
        "List the entries in Redis: key, state, age, bytes and tags of each.",
        _EXAMPLES,
    )
    add = keys.add_argument
    add("--loader", metavar="TEMPLATE", help="entries of the loader with this key template, such as ranking:{group}")
    add("--route", metavar="PATH", help="responses of the route with this path template, such as /rankings/{group}")
    add("--limit", type=int, default=100, metavar="N", help="end after N keys (%(default)s), or a few more")
    add("--cursor", default="0.0", metavar="CURSOR", help="continue where the last answer ended")
    add("--tags", action="store_true", help="also show the tags of each entry")
    add_store(keys)
    add_json(keys)


class _Page(NamedTuple):
    """Some entries, and the cursor of the next ones; None: there are no more."""

    found: "list[Inspection]"
    cursor: str | None


class _Wanted(NamedTuple):
    """The entries that the user asks for.

    Parameters:
        origin: the loader or route that the entries name; None: any.
        prefix: the beginning of their names in Redis, if the codec does not hide names.
    """

    origin: str | None
    prefix: str


def _keys(options: argparse.Namespace) -> int:
    """Print a page of entries."""
    number, _, cursor = options.cursor.partition(".")
    if not (number.isdecimal() and cursor.isdecimal() and number.isascii() and cursor.isascii()):
        raise ConfigurationError(f"--cursor {options.cursor!r} must be a cursor that swr keys showed, such as 0.1408")
    if options.limit < 1:
        raise ConfigurationError(f"--limit {options.limit} is too low: give 1 or more")
    if options.loader is not None and options.route is not None:
        raise ConfigurationError("give one of --loader and --route")
    wanted = _wanted(options)
    page = asyncio.run(with_store(options, lambda store: _page(store, wanted, int(number), int(cursor), options.limit)))
    if options.json:
        print(json.dumps({"keys": msgspec.to_builtins(page.found), "cursor": page.cursor}))
        return 0
    for line in _told(page.found, options.tags):
        print(line)
    if page.cursor is not None:
        print(f"more: --cursor {page.cursor}")
    elif not page.found and options.cursor == "0.0":
        print(f"no such entries in the namespace {options.namespace!r}")
    return 0


def _wanted(options: argparse.Namespace) -> _Wanted:
    if options.loader is not None:
        literal = options.loader.partition("{")[0]
        return _Wanted(loader_digest(options.loader), quote(literal, safe="!\"#$&'()*+,/:;<=>?@[]^`|~\\ "))
    return _Wanted(None if options.route is None else ROUTE + options.route, "")


async def _page(store: "RedisStore", wanted: _Wanted, number: int, cursor: int, limit: int) -> _Page:
    """Return the entries from a cursor on, at least `limit` of them if there are enough.

    Parameters:
        store: the store in Redis.
        wanted: the entries to return.
        number: the index of the server to continue with, in the order of the servers' names.
        cursor: the cursor of SCAN on that server.
        limit: the number of entries after which the page ends.

    Raises:
        StoreUnavailable: a server does not answer.
        ConfigurationError: there is no such server.
    """
    await store.learn_tag_versions()
    links = sorted(store.links, key=lambda link: link.name)
    found: list[Inspection] = []
    # A step looks at as many keys as are still missing, so that it finds few too many. After a step without a hit, the
    # next step is longer.
    step = limit
    if number >= len(links):
        raise ConfigurationError(f"--cursor {number}.{cursor} belongs to a server that is gone: begin without --cursor")
    while number < len(links):
        cursor, names = await _scan(store, links[number], cursor, min(step, _STEP))
        more = await _inspected(store, links[number], names, wanted)
        found += more
        number += not cursor
        if len(found) >= limit:
            break
        step = limit - len(found) if more else step * 2
    return _Page(found, f"{number}.{cursor}" if number < len(links) else None)


async def _scan(store: "RedisStore", link: "ServerLink", cursor: int, count: int) -> tuple[int, list[bytes]]:
    """Return the next cursor, and the Redis names of entries, not of leases. The server looks at about `count` keys."""
    prefix = "".join(f"\\{char}" if char in "*?[]\\^" else char for char in store.names.prefix.decode())
    step = await link.ask("SCAN", cursor, "MATCH", f"{prefix}:{{*}}", "COUNT", count)
    # While a server resizes its hash table, SCAN may return a key twice.
    return int(step[0]), list(dict.fromkeys(step[1]))


async def _inspected(
    store: "RedisStore", link: "ServerLink", names: list[bytes], wanted: _Wanted
) -> "list[Inspection]":
    """Return the wanted entries among those with the given Redis names."""
    before = len(store.names.prefix) + 2
    texts = {name: name[before:-1].decode("latin-1") for name in names}
    if store.packing.names is None and wanted.prefix:
        # The name of a long key is a digest ("%%…"). Only the entry itself tells the key.
        texts = {name: text for name, text in texts.items() if text.startswith((wanted.prefix, "%%"))}
    found: list[Inspection] = []
    for some in _parts(list(texts)):
        values = await asyncio.gather(*(_get(link, name) for name in some))
        for name, data in zip(some, values, strict=True):
            if data is not None and (one := _inspect(store, texts[name], data, wanted)) is not None:
                found.append(one)
    return found


async def _get(link: "ServerLink", name: bytes) -> bytes | None:
    """Return the value of a Redis key; None: it is gone, has moved to another server, or belongs to another program."""
    from redis.exceptions import ResponseError

    try:
        data: bytes | None = await link.ask("GET", name)
    except ResponseError:
        return None
    return data


def _parts(names: list[bytes]) -> Iterator[list[bytes]]:
    for first in range(0, len(names), _AT_ONCE):
        yield names[first : first + _AT_ONCE]


def _inspect(store: "RedisStore", name: str, data: bytes, wanted: _Wanted) -> "Inspection | None":
    """Return the inspected entry, or None if the value is not an entry or not wanted."""
    from swr.stores.redis.inspection import of_data

    if not frames.is_entry(data):
        return None
    key = _key_of(store, name, data)
    found = of_data(store, key, data)
    if found is not None and key == name and name.startswith("%%"):
        found = msgspec.structs.replace(found, why=_DIGEST)
    return None if found is None or wanted.origin not in (None, found.loader) else found


def _key_of(store: "RedisStore", name: str, data: bytes) -> str:
    """Return the cache key of an entry by its name in Redis, or the name if the key cannot be found out."""
    try:
        if name.startswith("%%"):
            return frames.key_in(data, store.packing) or name
        if store.packing.names is not None:
            return store.names.unhidden(base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)))
    except ValueError:
        return name
    return "" if name == "%" else unquote(name, errors="surrogatepass")


def _told(found: "list[Inspection]", with_tags: bool) -> Iterator[str]:
    """Yield the lines of a table of entries."""
    if found:
        yield f"{'state':<8}{'age':>9}{'bytes':>12}  key"
    for one in found:
        age = "" if one.age is None else _short(one.age)
        size = "" if one.bytes is None else f"{one.bytes:,}"
        yield f"{one.state:<8}{age:>9}{size:>12}  {one_line(one.key)}"
        if with_tags and one.tags:
            yield f"{'':<31}{one_line(', '.join(one.tags))}"
    for why, count in Counter(one.why for one in found if one.created_at is None).items():
        yield f"{count} of them: {why}"


def _short(seconds: float) -> str:
    for most, unit, many in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < most:
            return f"{seconds / many:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"
