"""The parts of a cache: configured when it is made or later, opened at its first use, and closed."""

import functools
import weakref
from collections.abc import Callable
from types import EllipsisType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, Unpack

from swr.core.packing import Packing
from swr.engine.counting import stats_of
from swr.engine.engine import Engine
from swr.engine.switch import Disabled, Switch
from swr.errors import ConfigurationError
from swr.http.request import digest_with
from swr.lifecycle.default_policy import DefaultPolicy
from swr.lifecycle.options import Options
from swr.settings import checked, checked_reports, redacted
from swr.stats.snapshot import Stats
from swr.stores.base import LeasingStore
from swr.stores.clocks import clock_of, wall_clock
from swr.stores.local import LocalCache
from swr.stores.memory import MemoryStore
from swr.stores.tiered import TieredStore

if TYPE_CHECKING:
    from swr.reports.reporter import Reporter

_ENTRIES: Final = 1_000_000


class Configured:
    """The engine and the local cache of a `Cache`, which stay the same objects when it is configured again.

    Decorators, middleware and refreshers may therefore keep references to them.

    Parameters:
        url, options: see `swr.Cache`.
    """

    namespace: str

    def __init__(self, url: str | None, options: Options) -> None:
        self.local = LocalCache(0, _ENTRIES)
        self.engine = Engine(MemoryStore(local=self.local), switch=Switch(self.local), counts=self.local.counts)
        # The first endpoint and app with each identity. Others with the same identity must not get their responses.
        self.first: dict[str, tuple[weakref.ref[Any], weakref.ref[Any]]] = {}
        self.default_policy = DefaultPolicy()
        # The digests (`Entry.loader`) of the loaders whose values are only in Redis, not in the local cache.
        self.passed_by: set[str] = set()
        self.reporter: Reporter | None = None
        # The paths where dashboards are mounted. The cache ignores requests to them.
        self.mounted: set[str] = set()
        self._opened = 0
        # The URL and the options that `configure` must not change in a test; an ellipsis: it may change the URL.
        self._fixed: tuple[str | EllipsisType | None, Options] = (..., {})
        self._apply(url, options)

    def configure(self, url: str | EllipsisType | None = ..., **options: Unpack[Options]) -> None:
        """Change options of the cache before it opens, such as options that an app knows only when it is created.

        They also apply to functions that are already decorated with the cache, and to middleware that already has it.
        swr drops all entries in this process's memory.

        Parameters:
            url: see `Cache`; by default it does not change, unless you give `redis`.
            options: options of `Cache`; an option that you omit does not change.

        Raises:
            ConfigurationError: the cache is open; or an option cannot work, and then nothing has changed.
        """
        fixed_url, fixed = self._fixed
        self._change(url if fixed_url is ... else fixed_url, {**options, **fixed})

    def fix_options(self, url: str | None, options: Options) -> Callable[[], None]:
        """Change options and protect them from `configure`; return a function that restores the previous options.

        Parameters:
            url: see `Cache`; None: in memory, unless `options` has `redis`.
            options: options of `Cache`; `configure` may change only those that are not among them.

        Raises:
            ConfigurationError: the cache is open; or an option cannot work, and then nothing has changed.
        """
        restore, fixed = functools.partial(self._apply, self._url, self._options), self._fixed

        def give_back() -> None:
            restore()
            self._fixed = fixed

        self._change(url, options)
        self._fixed = url, options
        return give_back

    def _change(self, url: str | EllipsisType | None, options: Options) -> None:
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
        reports, release = checked_reports(options["reports"], options["release"])
        settings = checked(
            options["namespace"],
            options["l1_max_bytes"],
            options["lease_for"],
            options["drain_for"],
            options["timeout"],
            options["connect_timeout"],
            options["secret"],
        )
        packing = Packing(settings.namespace, options["compress_above"], options["codec"])
        if own_clock is not None and not callable(own_clock):
            raise ConfigurationError(f"clock={own_clock!r}: give a function that returns seconds")
        policy = self.default_policy.check(options["policy"])
        if not isinstance(enabled, bool):
            raise ConfigurationError(f"enabled={enabled!r}: give True or False")
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
            # If the cache is off, this store stays empty, and swr connects to nothing.
            store = MemoryStore(settings.l1_max_bytes, _ENTRIES, clock, self.local)
        else:
            shared = RedisStore(
                servers, settings.namespace, settings.timeout, clock, packing, self.local.counts.commands.add
            )
            store = TieredStore(self.local, shared, clock, self.passed_by)
        self.engine.configure(store, settings.lease_for, settings.drain_for, clock)
        self.namespace = settings.namespace
        self.default_policy.policy = policy
        self._report_anew(reports, release)
        self._digest = digest_with(settings.secret)
        self._url, self._options = url, options
        self._opened = 0
        # `configure` may run for each new app. Its endpoints may have the identities of endpoints of an earlier app.
        self.first.clear()

    def _report_anew(self, reports: bool, release: str) -> None:
        """Begin to report to the current store, if reporting was on before or is turned on now."""
        before, self._release = self.reporter, release
        self.reporter = None
        if before is not None:
            before.close()
        if before is not None or reports:
            reporter = self.report()
            reporter.faults.is_allowed = before is not None and before.faults.is_allowed

    def stats(self) -> Stats:
        """Return the numbers of this process since the cache was created, by loader and by route.

        A call takes some microseconds for each loader and route, and sends no command to Redis.
        """
        engine, slots = self.engine, self.local.slots
        return stats_of(
            engine.counts,
            engine.flights,
            engine.backoffs,
            engine.notifications,
            (int(slots.currsize), len(slots)),
            at=engine.clock(),
            is_shared=self.is_shared,
        )

    def report(self, *, publishes: bool = True) -> "Reporter":
        """Begin to report to dashboards; return the reporter, which makes the digests.

        Parameters:
            publishes: whether to report to other processes, too; without effect if the cache already reports.
        """
        if self.reporter is None:
            from swr.reports.reporter import Reporter

            digests: Any = None
            if isinstance(self.engine.store, TieredStore):
                digests = getattr(self.engine.store.store, "digests", None)
            self.reporter = Reporter(self.engine, self.local, self.stats, self._release, digests)
            if digests is not None and publishes:
                digests.reports = self.reporter
        return self.reporter

    def __repr__(self) -> str:
        where = "" if self._url is None else redacted(self._url)
        if self._options["redis"] is not None:
            where = "redis=…"
        return f"Cache({where}{where and ', '}namespace={self.namespace!r})"

    @property
    def is_shared(self) -> bool:
        """Return whether other processes may share the entries: with Redis or Valkey, unless the cache is off."""
        return self._options["enabled"] and (self._url is not None or self._options["redis"] is not None)

    def digest(self, value: bytes) -> str:
        """Return the digest of a value, made with the cache's secret."""
        return self._digest(value)

    def disabled(self) -> Disabled:
        """Return a context manager: in its `with` block, calls run their loaders and requests reach the app.

        Inside the block, swr reads nothing from the cache and stores nothing; invalidations work as usual. Until the
        block ends, it applies to the task or thread that enters it, and to tasks and threads that are started in it.
        Others go on using the cache. As long as any block is active, their fresh hits take some microseconds longer.
        """
        return Disabled(self.engine.switch)

    async def __aenter__(self) -> Self:
        """Open the cache. If it is opened several times, the last exit closes it."""
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
        """Wait for loads for `drain_for` at most, cancel the others, release leases and disconnect."""
        self._opened = max(0, self._opened - 1)
        if self._opened == 0:
            await self.engine.aclose()

    async def aclose(self) -> None:
        """Close the cache now, however often it was opened; it opens again at its next use."""
        self._opened = 0
        await self.engine.aclose()
