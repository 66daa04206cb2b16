"""`swr keys`: which entries are in Redis, some at a time."""

import argparse
import asyncio
import base64
import json
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote, unquote

import msgspec

from swr.cli.shared import Commands, add_store, command, with_store
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
      Some entries of the namespace, with their state, age and bytes; then how
      to go on.
  swr keys --loader 'ranking:{group}' --limit 20
      Twenty of those of one loader, by its key template; Redis is the one that
      SWR_REDIS_URL names.
  swr keys --route '/rankings/{group}' --tags
      Responses of one route, with their tags.
  swr keys --cursor 0.1408 --json
      The next ones, as one JSON object.

It goes through the keys of each server with SCAN, some at a time: it holds up
nobody. What comes or goes meanwhile may be missing, or be there twice.
"""
# Keys that a server looks at in one step, at most, and entries that one trip reads.
_STEP: Final = 250
_AT_ONCE: Final = 25
_DIGEST: Final = "it cannot be read: the name is a digest of a long key, and the key itself is encrypted"


def add(commands: Commands) -> None:
    """Add `keys`."""
    keys = command(
        commands,
        "keys",
        _keys,
        "which entries are in Redis, by loader or route, some at a time",
        "Which entries are in Redis: key, state, age, bytes and tags of each.",
        _EXAMPLES,
    )
    add = keys.add_argument
    add("--loader", metavar="TEMPLATE", help="those of the loader with this key template, ranking:{group}")
    add("--route", metavar="PATH", help="responses of the route with this path template, /rankings/{group}")
    add("--limit", type=int, default=100, metavar="N", help="end after N keys (%(default)s), or a few more")
    add("--cursor", default="0.0", metavar="CURSOR", help="go on where the last answer ended")
    add("--tags", action="store_true", help="also show the tags of each")
    add_store(keys)


class _Page(NamedTuple):
    """Some entries, and where to go on; None: these were the last."""

    found: "list[Inspection]"
    cursor: str | None


class _Wanted(NamedTuple):
    """Which entries are asked for.

    Parameters:
        origin: what they carry of their loader or route; None: any.
        prefix: how their names in Redis begin, where names are not hidden.
    """

    origin: str | None
    prefix: str


def _keys(options: argparse.Namespace) -> int:
    """Say which entries there are."""
    number, _, cursor = options.cursor.partition(".")
    if not (number.isdecimal() and cursor.isdecimal() and number.isascii() and cursor.isascii()):
        raise ConfigurationError(f"--cursor {options.cursor!r} is not a cursor that swr keys has shown, such as 0.1408")
    if options.limit < 1:
        raise ConfigurationError(f"--limit {options.limit} is not 1 or more")
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
    """Return the entries from a cursor on, until there are enough.

    Parameters:
        number: which server comes next, in the order of their names.
        cursor: of that server.

    Raises:
        StoreUnavailable: a server does not answer.
        ConfigurationError: there is no such server.
    """
    await store.learn_tag_versions()
    links = sorted(store.links, key=lambda link: link.name)
    found: list[Inspection] = []
    # As many keys as are missing: a step finds few more. Where it finds none, the next one is longer.
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
    """Return the next cursor, and the names of entries, without those of leases. The server looks at `count` keys."""
    prefix = "".join(f"\\{char}" if char in "*?[]\\^" else char for char in store.names.prefix.decode())
    step = await link.ask("SCAN", cursor, "MATCH", f"{prefix}:{{*}}", "COUNT", count)
    # A server that moves its keys to another table may say one of them twice.
    return int(step[0]), list(dict.fromkeys(step[1]))


async def _inspected(
    store: "RedisStore", link: "ServerLink", names: list[bytes], wanted: _Wanted
) -> "list[Inspection]":
    """Return what is under names, as far as it is wanted."""
    before = len(store.names.prefix) + 2
    texts = {name: name[before:-1].decode("latin-1") for name in names}
    if store.packing.names is None and wanted.prefix:
        # A long key is a digest there; only the entry says what it is.
        texts = {name: text for name, text in texts.items() if text.startswith((wanted.prefix, "%%"))}
    found: list[Inspection] = []
    for some in _parts(list(texts)):
        values = await asyncio.gather(*(_get(link, name) for name in some))
        for name, data in zip(some, values, strict=True):
            if data is not None and (one := _inspect(store, texts[name], data, wanted)) is not None:
                found.append(one)
    return found


async def _get(link: "ServerLink", name: bytes) -> bytes | None:
    """Return what is under a name; None: it has gone, or moved to another server, or is none of swr's."""
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
    """Return what is under a name; None: no entry, or one that is not wanted."""
    from swr.stores.redis.inspection import of_data

    if not frames.is_entry(data):
        return None
    key = _key_of(store, name, data)
    found = of_data(store, key, data)
    if found is not None and key == name and name.startswith("%%"):
        found = msgspec.structs.replace(found, why=_DIGEST)
    return None if found is None or wanted.origin not in (None, found.loader) else found


def _key_of(store: "RedisStore", name: str, data: bytes) -> str:
    """Return the key that has a name in Redis; the name, if that cannot be told."""
    try:
        if name.startswith("%%"):
            return frames.key_in(data, store.packing) or name
        if store.packing.names is not None:
            return store.names.unhidden(base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)))
    except ValueError:
        return name
    return "" if name == "%" else unquote(name, errors="surrogatepass")


def _told(found: "list[Inspection]", with_tags: bool) -> Iterator[str]:
    """Return them as lines for people."""
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
