"""Isolates an app's cache for one test: the cache is empty and has other options, and later gets its own back."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Protocol, Unpack

from swr.cache import Cache
from swr.errors import ConfigurationError
from swr.lifecycle.options import Options


class Isolate(Protocol):
    """The type of the function that the fixture `swr_isolate` returns."""

    def __call__(self, cache: Cache, url: str | None = None, **options: Unpack[Options]) -> Cache: ...


@contextlib.contextmanager
def isolated(cache: Cache, url: str | None = None, **options: Unpack[Options]) -> Iterator[Cache]:
    """Return a context manager: in its `with` block `cache` is empty and has other options, afterwards its own again.

    swr closes the cache at both ends of the block, in whatever event loop it is open. If the test creates an app that
    configures the cache, the options that you give here do not change. The block is meant for tests that use an app one
    after the other, each in an event loop of its own.

    Parameters:
        cache: the cache of the app, created at import or elsewhere.
        url: the URL of Redis; None: in memory.
        options: options of `Cache`; an option that you omit stays as it is, or becomes what `cache.configure` sets.

    Raises:
        ConfigurationError: an option cannot work, or the caller is a coroutine of the event loop in which the cache is
            open.
    """
    if not isinstance(cache, Cache):
        raise ConfigurationError(f"cache={cache!r}: give a swr.Cache")
    close(cache)
    options.setdefault("redis", None)
    restore = cache.fix_options(url, options)
    try:
        yield cache
    finally:
        close(cache)
        restore()


def close(cache: Cache) -> None:
    """Close a cache from code that is not async, wherever it is open.

    Raises:
        ConfigurationError: the cache is open in the event loop of the caller, which cannot wait for itself.
    """
    cache.engine.portal.stop()
    loop = cache.engine.runtime.tasks.loop
    if not isinstance(loop, asyncio.AbstractEventLoop):
        # If trio ran it, the cache was closed at the end of that run.
        return
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if here is loop:
        raise ConfigurationError("the cache is open in the event loop that runs this: await cache.aclose() first")
    if loop.is_running():
        asyncio.run_coroutine_threadsafe(cache.aclose(), loop).result()
    elif here is None and not loop.is_closed():
        loop.run_until_complete(cache.aclose())
