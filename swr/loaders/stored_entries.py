"""Operations of a cache on stored entries: set, peek, invalidate, mark stale. `Cache` inherits them."""

import functools
import logging
import re
from typing import Any, Final, TypeVar, overload

import anyio

from swr.engine.engine import Engine
from swr.engine.repeats import Repeats
from swr.entry import Outcome
from swr.errors import ConfigurationError
from swr.http.request import tag_of_url
from swr.lifecycle.default_policy import DefaultPolicy
from swr.loaders.annotations import codec_of
from swr.loaders.calling import value_of
from swr.loaders.context import Fresh
from swr.loaders.turns import parts
from swr.policy import Policy
from swr.stores.tag_versions import ALL, Soft

R = TypeVar("R")

log = logging.getLogger("swr")

_SLOT: Final = re.compile(r"\{[A-Za-z_][\w.]*\}")


class StoredEntries:
    """The stored entries of a cache, by key, by tag, by URL, and all of them."""

    engine: Engine
    default_policy: DefaultPolicy

    # -- by key -----------------------------------------------------------------------------------------------

    async def set(self, key: str, value: R | Fresh[R], policy: Policy | None = None, *, returns: Any = None) -> bool:
        """Store `value` under `key` as if the loader of `get_or_load` had just returned it; see `Cached.set`.

        Parameters:
            key: any text.
            value: the value to store.
            policy: how long the value may be served; None: the policy of the cache.
            returns: the type of the value, for Redis: the same type as in the loader's return annotation.
                A decorated loader with `tags=` has separate entries: use the loader's own `set`.

        Returns:
            Whether every process gets the value from now on.

        Raises:
            CodecError: the value cannot be stored in Redis. The stored entry is gone anyway.
            ConfigurationError: an argument cannot work.
        """
        _check_key(key)
        policy = self.default_policy.of(policy)
        codec = codec_of(Any if returns is None else returns)
        return await self.engine.entries.set(key, codec, value_of(value, policy, repr(key)))

    @overload
    async def peek(self, key: str, *, returns: type[R]) -> Outcome[R] | None: ...
    @overload
    async def peek(self, key: str, *, returns: Any = None) -> Outcome[Any] | None: ...
    async def peek(self, key: str, *, returns: Any = None) -> Outcome[Any] | None:
        """Return what is stored under `key`, fresh or stale, or None. swr does not load or refresh anything.

        Parameters:
            key: any text.
            returns: the type of the value, for Redis: the same type as in the loader's return annotation.
                A decorated loader with `tags=` has separate entries: use the loader's own `peek`.

        Raises:
            ConfigurationError: an argument cannot work.
        """
        _check_key(key)
        return await self.engine.entries.peek(key, codec_of(Any if returns is None else returns))

    async def invalidate(self, key: str) -> None:
        """Remove what is stored under `key` in every process.

        After this returns, no reader in this process gets an older value, not even from a load under way. In another
        process, this holds when the notification has arrived there. While Redis is unreachable, the invalidation takes
        effect here at once, and elsewhere when Redis is reachable again.
        """
        _check_key(key)
        await self.engine.invalidate(key)

    async def mark_stale(self, key: str) -> None:
        """Mark the entry of `key` as stale in every process; see `Cached.mark_stale`."""
        _check_key(key)
        await self.engine.entries.mark_stale(key)

    # -- many at once -----------------------------------------------------------------------------------------

    async def invalidate_tag(self, tag: str) -> None:
        """Outdate every entry that carries `tag`, in one step for any number of entries; otherwise as `invalidate`."""
        await self.engine.invalidate_tag(*_checked_tags((tag,)))

    async def invalidate_tags(self, *tags: str) -> None:
        """Outdate every entry that carries one of `tags`, in one step for all; otherwise as `invalidate`."""
        await self.engine.invalidate_tag(*_checked_tags(tags))

    async def mark_stale_tags(self, *tags: str) -> None:
        """Mark every entry that carries one of `tags` as stale, in one step for all; see `Cached.mark_stale`."""
        await self.engine.invalidate_tag(*map(Soft, _checked_tags(tags)))

    async def invalidate_url(self, url: str) -> None:
        """Outdate the responses to a URL such as "/rankings/ATL?limit=10", for all hosts, schemes and variants.

        Raises:
            ConfigurationError: `url` is not a URL or path.
        """
        await self.engine.invalidate_tag(*await _tags_of((url,)))

    async def invalidate_urls(self, *urls: str) -> None:
        """Outdate the responses to several URLs, in one step for all; otherwise as `invalidate_url`.

        Raises:
            ConfigurationError: one of `urls` is not a URL or path; then nothing is outdated.
        """
        await self.engine.invalidate_tag(*await _tags_of(urls))

    async def mark_stale_urls(self, *urls: str) -> None:
        """Mark the responses to URLs as stale, in one step for all; see `Cached.mark_stale`.

        Raises:
            ConfigurationError: one of `urls` is not a URL or path; then nothing is marked.
        """
        await self.engine.invalidate_tag(*map(Soft, await _tags_of(urls)))

    async def clear(self) -> None:
        """Outdate everything in this cache's namespace."""
        await self.engine.invalidate_tag(ALL)

    async def mark_stale_all(self) -> None:
        """Mark everything in this cache's namespace as stale, in one step; see `Cached.mark_stale`."""
        await self.engine.invalidate_tag(Soft(ALL))

    def until_committed(self) -> Repeats:
        """Return an `async with` block that repeats, at its end, every invalidation inside it.

        Put it around the transaction. Between an invalidation and the commit a reader may load the old value again;
        the second invalidation outdates that value. `SWRMiddleware` does so for each request with an unsafe method.
        """
        return Repeats(self.engine)


async def _tags_of(urls: tuple[str, ...]) -> dict[str, None]:
    """Return the tags of URLs, without duplicates. Other tasks may run in between."""
    tags: dict[str, None] = {}
    for number, some in parts(list(urls)):
        if number:
            await anyio.lowlevel.checkpoint()
        for url in some:
            tags[tag_of_url(url)] = None
            warn_of_slot(url)
    return tags


def _checked_tags(tags: tuple[object, ...]) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for tag in tags:
        if isinstance(tag, (list, tuple, set, frozenset)):
            raise ConfigurationError(f"tag={tag!r} holds several tags: write invalidate_tags(*tags), with an asterisk")
        if not isinstance(tag, str) or not tag:
            raise ConfigurationError(f"tag={tag!r}: give a string that is not empty")
        warn_of_slot(tag)
        names[tag] = None
    return tuple(names)


def _check_key(key: str) -> None:
    if not isinstance(key, str):
        raise ConfigurationError(f"key={key!r} is not a string; for a decorated function, call its own method")
    warn_of_slot(key)


def warn_of_slot(text: str) -> None:
    """Warn, once for each text, of a key, tag or URL with a slot such as {group}: only a decorator fills it."""
    if "{" in text and _SLOT.search(text):
        _warn_once(text)


@functools.lru_cache(100)
def _warn_once(text: str) -> None:
    log.warning(
        "%r is taken as it is, with its braces: to fill in a value write an f-string, f%r, or use .key(...) and "
        ".invalidate(...) of the loader",
        text,
        text,
    )
