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
    """The engine and the local cache, which stay the same objects however they are configured.

    Decorators, middleware and refreshers may hold them from the beginning.

    Parameters:
        url, options: see `swr.Cache`.
    """

    namespace: str

    def __init__(self, url: str | None, options: Options) -> None:
        self.local = LocalCache(0, _ENTRIES)
        self.engine = Engine(MemoryStore(local=self.local), switch=Switch(self.local), counts=self.local.counts)
        # The first endpoint and app of each identity: another one that is told apart by nothing gets nothing of theirs.
        self.first: dict[str, tuple[weakref.ref[Any], weakref.ref[Any]]] = {}
        self.default_policy = DefaultPolicy()
        # The loaders, see `Entry.loader`, whose values are in Redis alone.
        self.passed_by: set[str] = set()
        self.reporter: Reporter | None = None
        # Where dashboards are mounted, whose requests are no concern of the cache.
        self.mounted: set[str] = set()
        self._opened = 0
        # What `configure` must not change in a test, as its arguments; an ellipsis: it may change all.
        self._fixed: tuple[str | EllipsisType | None, Options] = (..., {})
        self._apply(url, options)

    def configure(self, url: str | EllipsisType | None = ..., **options: Unpack[Options]) -> None:
        """Change options of the cache before it opens, such as those that an app knows only when it is made.

        Functions that are decorated with the cache already use them, as does middleware that has it. Whatever is
        stored in this process's memory is forgotten.

        Parameters:
            url: see `Cache`; by default it stays as it is, unless you give `redis`.
            options: those of `Cache`; what you leave out stays as it is.

        Raises:
            ConfigurationError: the cache is open; or an option cannot work, and then nothing has changed.
        """
        fixed_url, fixed = self._fixed
        self._change(url if fixed_url is ... else fixed_url, {**options, **fixed})

    def fix_options(self, url: str | None, options: Options) -> Callable[[], None]:
        """Change options, and keep `configure` from changing them; return a function that gives back those of before.

        Parameters:
            url: see `Cache`; None: in memory, unless `options` has `redis`.
            options: those of `Cache`; `configure` may change the others.

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
            raise ConfigurationError(f"clock={own_clock!r} is not a function that returns seconds")
        policy = self.default_policy.check(options["policy"])
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
            # Switched off, it stays empty and connects to nothing.
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
        # A call that makes a cache ready for one more app means that app.
        self.first.clear()

    def _report_anew(self, reports: bool, release: str) -> None:
        """Report to the place where the cache is now, if reporting was on before or is turned on."""
        before, self._release = self.reporter, release
        self.reporter = None
        if before is not None:
            before.close()
        if before is not None or reports:
            reporter = self.report()
            reporter.faults.is_allowed = before is not None and before.faults.is_allowed

    def stats(self) -> Stats:
        """Return what has happened in this process since the cache was made, by loader and by route.

        It costs some microseconds for each loader and route, and asks no server.
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
            publishes: whether it reports to other processes, too, if it does not report already.
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
        """Return whether other processes share what is stored: with Redis or Valkey they may."""
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
        """Open the cache. If it was opened several times, the last exit closes it."""
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
