"""Makes the digest of one cache in this process, once a second, even if no dashboard reads it."""

import importlib.metadata
import os
import re
import secrets
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from swr.engine.engine import Engine
from swr.engine.flights import Flight, Loading
from swr.engine.lease import LIVES
from swr.reports.digest import FORMAT, SUMS, Digest, HangingReport, NodeReport, RowReport, cut, encode, longest
from swr.reports.faults import Faults, HasPolicy
from swr.reports.rows import Rows
from swr.reports.watching import Watching
from swr.settings import without_passwords
from swr.stats.snapshot import Counted, Stats
from swr.stores.local import LocalCache

if TYPE_CHECKING:
    from swr.stores.redis.digests import Digests

VERSION: Final = importlib.metadata.version("swr")
_MOST_DETAILS: Final = 20
_MOST_HANGING: Final = 10
_LONGEST_TEXT: Final = 200
# The most characters of a text that are searched for secrets; more than are shown, because passwords may be long.
_MOST_SEARCHED: Final = 1000
_LONGEST_NAME: Final = 200
_LONGEST_KEY: Final = 512
_LONGEST_RELEASE: Final = 100
# A load hangs if it has run for this many seconds, and for this many times the 99th percentile of its loader or route.
_HANGS_AFTER: Final = 1.0
_HANGS_TIMES: Final = 10.0
# Seconds for which the process collects calls after it last heard that a dashboard is open.
_WATCHED_FOR: Final = 5.0
# Matches the query of a URL or a path, and a fragment with fields, which may contain a secret. Error texts may have a
# path without a host, too: "Max retries exceeded with url: /v1?key=...".
_QUERY: Final = re.compile(r"(?<=[^\s'\"])(\?)\S*[^\s'\"]|(?<=[^\s'\"])(#)\S*=\S*[^\s'\"]")
# Matches a URL at the end of a text that was cut, because it may end in the middle of a user name and password.
_CUT_URL: Final = re.compile(r"(\w[\w+.-]*://)\S*\Z")


class Identity(NamedTuple):
    """The identity of a process.

    Parameters:
        id: a random name, new after a fork.
        pid: the process id.
        started: when the process began to report, in seconds since 1970.
    """

    id: str
    pid: int
    started: float


class Reporter:
    """The maker of the digests of one cache.

    Parameters:
        engine: the engine of the cache.
        local: the local cache.
        stats: returns the numbers of the cache.
        release: the release of the application.
        digests: the access to digests in Redis; None: only a dashboard in this process asks for the digest.

    Attributes:
        watching: collects events and calls.
        faults: the simulated faults of this process.
    """

    def __init__(
        self, engine: Engine, local: LocalCache, stats: Callable[[], Stats], release: str, digests: "Digests | None"
    ) -> None:
        self._engine = engine
        self._local = local
        self._stats = stats
        self._release = release
        self._digests = digests
        self._told_rows = Rows()
        self._identity: Identity | None = None
        self._watched_until = 0.0
        self.watching = Watching(engine, self.row_of, cleaned)
        self.faults = Faults(engine, self._row_of_flight, digests)

    def close(self) -> None:
        """Stop collecting, and simulate no more faults."""
        self.watching.close()
        self.faults.close()

    # -- called by the store that writes digests to Redis -----------------------------------------------------

    @property
    def id(self) -> str:
        """The id of this process."""
        return self.identity.id

    @property
    def identity(self) -> Identity:
        """The identity of this process, made again after a fork."""
        pid = os.getpid()
        if self._identity is None or self._identity.pid != pid:
            self._identity = Identity(secrets.token_hex(6), pid, time.time())
        return self._identity

    def make(self, *, is_last: bool = False) -> bytes:
        """Return the current digest as bytes for Redis.

        Parameters:
            is_last: whether this process ends and reports no more.
        """
        data = encode(self.digest(is_last=is_last))
        self.turn()
        return data

    def turn(self) -> None:
        """Begin the next turn of collecting calls, if a dashboard is open; otherwise collect none."""
        self.watching.turn(is_open=time.monotonic() < self._watched_until, reads=self._reads())

    def _reads(self) -> int:
        tallies = self._engine.counts.tallies.values()
        return sum(
            reads.l1 + reads.redis + reads.load for one in tallies for reads in (one.fresh, one.stale, one.missing)
        )

    def on_wanted(self, is_open: bool, faults: bytes) -> None:
        """Note whether a dashboard is open, and the faults to simulate."""
        if is_open:
            self.watch()
        self.faults.on_orders(faults)

    def watch(self) -> None:
        """Note that a dashboard is open, and collect calls for a while."""
        was_watched = time.monotonic() < self._watched_until
        self._watched_until = time.monotonic() + _WATCHED_FOR
        if not was_watched:
            self.turn()

    # -- the digest -------------------------------------------------------------------------------------------

    def digest(self, *, is_last: bool = False) -> Digest:
        """Return the current digest; for the parameter see `make`."""
        stats, identity, watching = self._stats(), self.identity, self.watching
        return Digest(
            FORMAT,
            identity.id,
            cut(socket.gethostname(), _LONGEST_NAME),
            identity.pid,
            cut(self._release, _LONGEST_RELEASE),
            VERSION,
            identity.started,
            stats.at,
            self._rows(stats),
            (stats.local.bytes, stats.local.entries, int(self._local.slots.maxsize), stats.local.evictions),
            self._nodes(),
            () if stats.store.seconds is None else _trimmed(stats.store.seconds.counts),
            sum(stats.invalidations.values()),
            _most({**stats.bypasses, **stats.not_stored}),
            self._hanging(stats),
            watching.hot(),
            watching.happenings(),
            watching.calls(),
            watching.dropped,
            self.faults.told(),
            self._refusal(),
            is_last,
        )

    def _refusal(self) -> tuple[str, float] | None:
        refusal = None if self._digests is None else self._digests.refusal()
        return None if refusal is None else (cleaned(refusal[0]), refusal[1])

    def _rows(self, stats: Stats) -> tuple[RowReport, ...]:
        tally_of, soonest = self._engine.counts.of, self._engine.backoffs.soonest()
        retry_at = {(tally_of(origin).is_route, tally_of(origin).name): left for origin, left in soonest.items()}
        rows = []
        for is_route, counted_by_name in ((False, stats.loaders), (True, stats.routes)):
            for name, counted in counted_by_name.items():
                row = self._row(name, is_route, counted, retry_at.get((is_route, name)))
                # A loader or route may have a name but no numbers, such as the route of the dashboard itself.
                if any(getattr(row, number) for number in SUMS):
                    rows.append(row)
        return self._told_rows.told(rows)

    def _row(self, name: str, is_route: bool, counted: Counted, retry_in: float | None) -> RowReport:
        fresh, stale, missing = counted.fresh, counted.stale, counted.missing
        error, name = counted.error, cut(name, _LONGEST_NAME)
        return RowReport(
            name,
            is_route,
            fresh=fresh.total,
            stale=stale.total,
            missing=missing.total,
            l1=fresh.l1 + stale.l1 + missing.l1,
            redis=fresh.redis + stale.redis + missing.redis,
            load=fresh.load + stale.load + missing.load,
            loads=counted.loads,
            failed=counted.failed,
            in_flight=counted.in_flight,
            backoffs=counted.backoffs,
            bytes=max(0, counted.bytes),
            seconds=_trimmed(counted.seconds.counts),
            retry_at=None if retry_in is None else time.time() + retry_in,
            error=None
            if error is None
            else (cut(error.type, _LONGEST_NAME), cleaned(error.text), error.at, cut(error.key, _LONGEST_KEY) or None),
        )

    def _nodes(self) -> tuple[NodeReport, ...]:
        if self._digests is None:
            return ()
        now = time.time()
        return tuple(
            NodeReport(server.name, None if server.lost_for is None else now - server.lost_for, cleaned(server.reason))
            for server in self._digests.servers()
        )

    def _hanging(self, stats: Stats) -> tuple[HangingReport, ...]:
        runtime = self._engine.runtime
        now = runtime.time() if self._engine.is_open else 0.0
        found = []
        # By row, the seconds after which its loads hang.
        limits: dict[str, float] = {}
        for flight in self._engine.flights.all():
            if not isinstance(flight.state, Loading) or flight.job.is_outer:
                continue
            row, took = self._row_of_flight(flight), now - flight.state.began
            if row not in limits:
                counted = stats.loaders.get(row) or stats.routes.get(row)
                usual = None if counted is None else counted.seconds.quantile(0.99)
                limits[row] = max(_HANGS_AFTER, _HANGS_TIMES * (usual or 0.0))
            if took >= limits[row]:
                found.append((flight, HangingReport("", row, time.time() - took)))
        # Thousands of loads may hang, so only those that are reported get the facts that take long.
        return tuple(
            msgspec.structs.replace(load, key=cut(flight.key, _LONGEST_KEY), timeout=self._timeout(flight))
            for flight, load in longest(found, _MOST_HANGING)
        )

    def _timeout(self, flight: Flight) -> float | None:
        limit = flight.job.policy.hard_timeout if isinstance(flight.job, HasPolicy) else "auto"
        return LIVES * self._engine.runtime.lease_for if isinstance(limit, str) else limit

    # -- names of rows ----------------------------------------------------------------------------------------

    def row_of(self, key: str) -> str:
        """Return the name of the loader or route that stored or loads a key, or "" if it is unknown."""
        slot = self._local.slots.get(key)
        flight = self._engine.flights.get(key)
        if slot is not None:
            return self._name_of(slot.entry.loader)
        if flight is not None:
            return self._row_of_flight(flight)
        # The key may be that of a loader's last failure.
        tallies = self._engine.counts.tallies.values()
        names = (tally.name for tally in tallies if tally.error is not None and tally.error.key == key)
        return cut(next(names, ""), _LONGEST_NAME)

    def _row_of_flight(self, flight: Flight) -> str:
        """Return the name of the loader or route of a flight. The name of a route is "" until the app has chosen it."""
        name = self._name_of(flight.job.loader)
        return name or ("" if flight.entry is None else self._name_of(flight.entry.loader))

    def _name_of(self, origin: str) -> str:
        return cut(self._engine.counts.of(origin).name, _LONGEST_NAME)


def cleaned(text: str) -> str:
    """Return the beginning of a text, without the user names, passwords and queries of URLs in it."""
    text = text[:_MOST_SEARCHED]
    if len(text) >= _LONGEST_TEXT:
        text = _CUT_URL.sub(r"\1…", text)
    return cut(_QUERY.sub(r"\1\2…", without_passwords(text)), _LONGEST_TEXT)


def _trimmed(counts: tuple[int, ...]) -> tuple[int, ...]:
    """Return counts without zeros at the end."""
    last = max((number for number, count in enumerate(counts) if count), default=-1)
    return counts[: last + 1]


def _most(counts: dict[str, int]) -> dict[str, int]:
    """Return the 20 greatest counts."""
    most = sorted(counts.items(), key=lambda pair: -pair[1])[:_MOST_DETAILS]
    return {cut(name, _LONGEST_NAME): count for name, count in most}
