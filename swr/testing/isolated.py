"""An app's own cache in one test: empty, with other options, and afterwards as it was."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Protocol, Unpack

from swr.cache import Cache
from swr.errors import ConfigurationError
from swr.lifecycle.options import Options


class Isolate(Protocol):
    """The type of what the fixture `swr_isolate` gives."""

    def __call__(self, cache: Cache, url: str | None = None, **options: Unpack[Options]) -> Cache: ...


@contextlib.contextmanager
def isolated(cache: Cache, url: str | None = None, **options: Unpack[Options]) -> Iterator[Cache]:
    """Return a `with` block in which `cache` is empty and has other options; it ends with those that it had.

    The cache is closed at both ends, in whatever event loop it is open. An app that the test makes may configure it:
    what you give here stays as it is. Give it to tests that use an app one after the
    other, each in a loop of its own.

    Parameters:
        cache: of the app, made at import or otherwise.
        url: where it is; None: in memory.
        options: those of `Cache`; what you leave out stays as it was, or becomes what `cache.configure` says.

    Raises:
        ConfigurationError: an option cannot work; or this is a coroutine of the loop in which the cache is open.
    """
    if not isinstance(cache, Cache):
        raise ConfigurationError(f"cache={cache!r} is not a swr.Cache")
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
        ConfigurationError: it is open in the event loop that calls this, which cannot wait for itself.
    """
    cache.engine.portal.stop()
    loop = cache.engine.runtime.tasks.loop
    if not isinstance(loop, asyncio.AbstractEventLoop):
        # A run of trio has closed it at its end.
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
