"""What a cache is made of: configured when it is made or later, opened at its first use, and closed."""

import functools
import weakref
from collections.abc import Callable
from types import EllipsisType, TracebackType
from typing import Any, Final, Self, Unpack

from swr.engine.engine import Engine
from swr.engine.switch import Disabled, Switch
from swr.errors import ConfigurationError
from swr.http.request import digest_with
from swr.lifecycle.options import Options
from swr.settings import checked, redacted
from swr.stores.base import LeasingStore
from swr.stores.clocks import clock_of, wall_clock
from swr.stores.local import LocalCache
from swr.stores.memory import MemoryStore
from swr.stores.tiered import TieredStore

_ENTRIES: Final = 1_000_000


class Configured:
    """The engine and the local cache, which stay the same objects however they are configured.

    Decorators, middleware and refreshers may hold them from the beginning.

    Parameters:
        url, options: see `swr.Cache`.
    """

    namespace: str

    def __init__(self, url: str | None, options: Options) -> None:
        self.local = LocalCache(0, _ENTRIES)
        self.engine = Engine(MemoryStore(local=self.local), switch=Switch(self.local))
        # The first endpoint and app of each identity: another one that is told apart by nothing gets nothing of theirs.
        self.first: dict[str, tuple[weakref.ref[Any], weakref.ref[Any]]] = {}
        self._opened = 0
        self._apply(url, options)

    def configure(self, url: str | EllipsisType | None = ..., **options: Unpack[Options]) -> None:
        """Change options of the cache before it opens, such as those that an app knows only when it is made.

        What is decorated with the cache already goes by them, as does middleware that has it. Whatever is stored in
        this process's memory is forgotten.

        Parameters:
            url: see `Cache`; by default it stays as it is, unless you give `redis`.
            options: those of `Cache`; what you leave out stays as it is.

        Raises:
            ConfigurationError: the cache is open; or an option cannot work, and then nothing has changed.
        """
        unknown = sorted(options.keys() - self._options.keys())
        if unknown:
            raise TypeError(f"configure() got an unexpected keyword argument {unknown[0]!r}")
        whole: Options = {**self._options, **options}
        if url is ...:
            url = None if options.get("redis") is not None else self._url
        elif url is not None and "redis" not in options:
            whole["redis"] = None
        self._apply(url, whole)

    def _apply(self, url: str | None, options: Options) -> None:
        redis, own_clock, enabled = options["redis"], options["clock"], options["enabled"]
        settings = checked(
            options["namespace"],
            options["l1_max_bytes"],
            options["lease_for"],
            options["drain_for"],
            options["timeout"],
            options["connect_timeout"],
            options["secret"],
        )
        if own_clock is not None and not callable(own_clock):
            raise ConfigurationError(f"clock={own_clock!r} is not a function that returns seconds")
        if not isinstance(enabled, bool):
            raise ConfigurationError(f"enabled={enabled!r} is neither True nor False")
        clock = wall_clock if own_clock is None else own_clock
        servers: Any = None
        if url is not None or redis is not None:
            from swr.stores.redis.store import RedisStore
            from swr.stores.redis.urls import servers_of

            servers = servers_of(url, redis, settings.timeout, settings.connect_timeout)
        self.engine.runtime.tasks.leave()
        self.local.configure(settings.l1_max_bytes)
        self.engine.switch.configure(clock_of(own_clock), enabled)
        store: LeasingStore
        if servers is None or not enabled:
            # Switched off, it stays empty, and nobody connects to anything.
            store = MemoryStore(settings.l1_max_bytes, _ENTRIES, clock, self.local)
        else:
            store = TieredStore(self.local, RedisStore(servers, settings.namespace, settings.timeout, clock), clock)
        self.engine.configure(store, settings.lease_for, settings.drain_for, clock)
        self.namespace = settings.namespace
        self._digest = digest_with(settings.secret)
        self._url, self._options = url, options
        self._opened = 0
        # Whoever makes a cache ready for one more app means that app.
        self.first.clear()

    def keep_options(self) -> Callable[[], None]:
        """Return a function that gives the cache, once it is closed, the options that it has now."""
        return functools.partial(self._apply, self._url, self._options)

    def __repr__(self) -> str:
        where = "" if self._url is None else redacted(self._url)
        if self._options["redis"] is not None:
            where = "redis=…"
        return f"Cache({where}{where and ', '}namespace={self.namespace!r})"

    @property
    def is_shared(self) -> bool:
        """Whether other processes share what is stored: with Redis or Valkey they may."""
        return self._options["enabled"] and (self._url is not None or self._options["redis"] is not None)

    def digest(self, value: bytes) -> str:
        """Return a digest of a secret value, which only this secret gives."""
        return self._digest(value)

    def disabled(self) -> Disabled:
        """Return a `with` block in which calls go to their loaders and requests to the app, past the cache.

        Inside it nothing is read from the cache and nothing stored. That concerns the task or thread that enters the
        block, and what it starts there, until the block ends. Others go on using the cache; but as long as any block
        is under way, their fresh hits cost some microseconds. Invalidations count inside it, too.
        """
        return Disabled(self.engine.switch)

    async def __aenter__(self) -> Self:
        """Open; what is opened several times is closed by the last exit."""
        self._opened += 1
        try:
            await self.engine.ready()
        except BaseException:
            self._opened -= 1
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for loads within `drain_for`, cancel the rest, give back leases, disconnect."""
        self._opened = max(0, self._opened - 1)
        if self._opened == 0:
            await self.engine.aclose()

    async def aclose(self) -> None:
        """Close now, however often it was opened; it opens again at its next use."""
        self._opened = 0
        await self.engine.aclose()
