"""The digest of one process: about 2 kB of numbers and events for dashboards. Pure."""

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Final, TypeVar

import msgspec

# Version of the format of digests. A release of swr ignores digests in another format.
FORMAT: Final = 1
# The most bytes of a digest. Longer data was written by another program.
LONGEST: Final = 524_288

# Limits that swr itself never exceeds. They protect dashboards from data of other programs: sums must stay exact in
# JSON, and lists short.
_NUMBERS: Final = 10**15
_FEW: Final = msgspec.Meta(max_length=100)
_MANY: Final = msgspec.Meta(max_length=1000)
Text = Annotated[str, msgspec.Meta(max_length=1024)]
Count = Annotated[int, msgspec.Meta(ge=0, le=_NUMBERS)]
Moment = Annotated[float, msgspec.Meta(ge=-float(_NUMBERS), le=float(_NUMBERS))]


class RowReport(msgspec.Struct, array_like=True, frozen=True):
    """The numbers of a loader or a route; see `swr.stats.Counted`.

    Parameters:
        name: the key template of a loader, or the path template of a route.
        is_route: whether it is a route.
        fresh, stale, missing: numbers of reads, by the state that the reader got.
        l1, redis, load: the same reads, by the layer that answered.
        loads, failed: numbers of loads that ended with a value, and without.
        in_flight, backoffs, bytes: the present numbers of flights, of keys that back off, and of bytes in L1.
        seconds: the number of loads in each bucket of `OF_LOADS`, without zeros at the end.
        retry_at: when the first backoff of a key ends, in seconds since 1970; None: no key backs off.
        error: the last failure: its type, its text, its time in seconds since 1970, and its key.
    """

    name: Text
    is_route: bool
    fresh: Count = 0
    stale: Count = 0
    missing: Count = 0
    l1: Count = 0
    redis: Count = 0
    load: Count = 0
    loads: Count = 0
    failed: Count = 0
    in_flight: Count = 0
    backoffs: Count = 0
    bytes: Count = 0
    seconds: Annotated[tuple[Count, ...], _FEW] = ()
    retry_at: Moment | None = None
    error: tuple[Text, Text, Moment, Text | None] | None = None


SUMS: Final = (
    "fresh",
    "stale",
    "missing",
    "l1",
    "redis",
    "load",
    "loads",
    "failed",
    "in_flight",
    "backoffs",
    "bytes",
)


def added(one: RowReport, other: RowReport) -> RowReport:
    """Return the first row with the numbers of both rows added."""
    seconds = tuple(map(sum, itertools.zip_longest(one.seconds, other.seconds, fillvalue=0)))
    moments = [moment for moment in (one.retry_at, other.retry_at) if moment is not None]
    errors = [error for error in (one.error, other.error) if error is not None]
    return msgspec.structs.replace(
        one,
        **{name: getattr(one, name) + getattr(other, name) for name in SUMS},
        seconds=seconds,
        retry_at=min(moments, default=None),
        error=max(errors, key=lambda error: error[2], default=None),
    )


GROWING: Final = ("fresh", "stale", "missing", "l1", "redis", "load", "loads", "failed")


def growth(before: RowReport, now: RowReport) -> RowReport:
    """Return the row `now` with the growth of its counts since `before`. Present numbers stay, bytes for example."""
    numbers = {name: max(0, getattr(now, name) - getattr(before, name)) for name in GROWING}
    return msgspec.structs.replace(now, **numbers, seconds=less(now.seconds, before.seconds))


def less(now: tuple[int, ...], before: tuple[int, ...]) -> tuple[int, ...]:
    """Return the growth of each number, at least 0."""
    return tuple(max(0, a - b) for a, b in itertools.zip_longest(now, before, fillvalue=0))


class NodeReport(msgspec.Struct, array_like=True, frozen=True):
    """A Redis server that the process uses.

    Parameters:
        name: the address of the server.
        lost_at: when it became unreachable, in seconds since 1970; None: it is reachable.
        reason: why it is unreachable.
    """

    name: Text
    lost_at: Moment | None = None
    reason: Text = ""


class HangingReport(msgspec.Struct, array_like=True, frozen=True):
    """A load that runs unusually long.

    Parameters:
        key: the key that it loads.
        row: the name of its loader or route.
        since: when it began, in seconds since 1970.
        timeout: the most seconds that it may take; None: it has no limit.
    """

    key: Text
    row: Text
    since: Moment
    timeout: Moment | None = None


T = TypeVar("T")


def longest(loads: Iterable[tuple[T, HangingReport]], most: int) -> list[tuple[T, HangingReport]]:
    """Return at most `most` loads, those that run longest first.

    If there are more, each loader keeps one before any loader keeps two, so that one loader cannot hide the others.

    Parameters:
        loads: pairs of any value and a load. The result has the same pairs.
        most: the most pairs to return.
    """
    times: Counter[str] = Counter()
    ranked = []
    for pair in sorted(loads, key=lambda pair: pair[1].since):
        ranked.append((times[pair[1].row], pair))
        times[pair[1].row] += 1
    kept = sorted(ranked, key=lambda one: one[0])[:most]
    return sorted((pair for _, pair in kept), key=lambda pair: pair[1].since)


class HotReport(msgspec.Struct, array_like=True, frozen=True):
    """A key that is read often.

    Parameters:
        key: the key.
        row: the name of its loader or route.
        share: its share of the reads of the process, from 0 to 1, according to a sample.
    """

    key: Text
    row: Text
    share: Moment


class HappeningReport(msgspec.Struct, array_like=True, frozen=True):
    """An event.

    Parameters:
        number: grows with each event or call of the process.
        at: the time of the event, in seconds since 1970.
        kind: the name of the event's class.
        text: a sentence about the event.
        key: the key that it is about, if any.
        row: the name of the loader, route, tag or queue that it is about, if any.
        bad: whether the event means a problem.
    """

    number: Count
    at: Moment
    kind: Text
    text: Text
    key: Text | None = None
    row: Text | None = None
    bad: bool = False


class CallReport(msgspec.Struct, array_like=True, frozen=True):
    """A request, or a call of a loader.

    Parameters:
        number: grows with each event or call of the process.
        at: when it was answered, in seconds since 1970.
        key: the key of the call, or the key of the request's URL.
        row: the name of the loader or route of a call; the method of a request.
        state: "fresh", "stale", "missing" or "bypass".
        layer: the layer that answered, if known.
        seconds: how long it took, if measured.
        status: the status of the response; None for a call.
        cache_status: swr's member of `Cache-Status`; empty for a call.
    """

    number: Count
    at: Moment
    key: Text
    row: Text
    state: Text
    layer: Text | None = None
    seconds: Moment | None = None
    status: Count | None = None
    cache_status: Text = ""


class Digest(msgspec.Struct, array_like=True, frozen=True):
    """The report of one process.

    Parameters:
        format: `FORMAT`.
        id: identifies the process; new after a fork.
        host, pid: the host name and the process id.
        release: the release of the application.
        swr: the version of swr.
        started: when the process began to report, in seconds since 1970.
        at: when the digest was made, in seconds since 1970.
        rows: the numbers of loaders and routes.
        l1: bytes, entries, most bytes and evictions of the local cache.
        nodes: the Redis servers.
        commands: the number of Redis commands in each bucket of `OF_COMMANDS`.
        invalidations: the number of invalidations so far.
        uncached: numbers of requests that bypassed the cache and of responses that were not stored, by reason.
        hanging: loads that run unusually long, the longest first.
        hot: keys that are read often, while a dashboard is open.
        happenings: the last events.
        calls: the last calls, while a dashboard is open.
        dropped: the number of calls that digests have left out so far.
        faults: the simulated faults: kind, row, and end in seconds since 1970.
        refusal: a recent refusal of this process's commands by Redis: its reason, and when refusals began, in seconds
            since 1970.
        is_last: whether the process has ended properly and reports no more.
    """

    format: Count
    id: Text
    host: Text
    pid: Count
    release: Text
    swr: Text
    started: Moment
    at: Moment
    rows: Annotated[tuple[RowReport, ...], _FEW] = ()
    l1: tuple[Count, Count, Count, Count] = (0, 0, 0, 0)
    nodes: Annotated[tuple[NodeReport, ...], _MANY] = ()
    commands: Annotated[tuple[Count, ...], _FEW] = ()
    invalidations: Count = 0
    uncached: Annotated[dict[Text, Count], _FEW] = {}
    hanging: Annotated[tuple[HangingReport, ...], _FEW] = ()
    hot: Annotated[tuple[HotReport, ...], _FEW] = ()
    happenings: Annotated[tuple[HappeningReport, ...], _FEW] = ()
    calls: Annotated[tuple[CallReport, ...], _FEW] = ()
    dropped: Count = 0
    faults: Annotated[tuple[tuple[Text, Text, Moment | None], ...], _FEW] = ()
    refusal: tuple[Text, Moment] | None = None
    is_last: bool = False


class Fault(msgspec.Struct, array_like=True, frozen=True):
    """A fault that processes simulate.

    Parameters:
        id: identifies the fault.
        kind: "fail-next" or "hang".
        row: the name of the loader or route whose loads it affects.
        seconds: how long a load hangs.
        until: when the fault ends, in seconds since 1970.
    """

    id: Text
    kind: Text
    row: Text
    seconds: Moment
    until: Moment


_encoder: Final = msgspec.msgpack.Encoder()
_digests: Final = msgspec.msgpack.Decoder(Digest)
_faults: Final = msgspec.msgpack.Decoder(tuple[Fault, ...])


def encode(message: Digest | tuple[Fault, ...]) -> bytes:
    """Return the bytes of a digest or of faults for Redis."""
    return _encoder.encode(message)


def shifted(digest: Digest, by: float) -> Digest:
    """Return a digest with its times converted to another clock. `at` stays unchanged, because it identifies a digest.

    Parameters:
        digest: the digest.
        by: the seconds by which the other clock is ahead.
    """
    replace = msgspec.structs.replace
    return replace(
        digest,
        started=digest.started + by,
        rows=tuple(_shifted_row(row, by) for row in digest.rows),
        nodes=tuple(replace(one, lost_at=_plus(one.lost_at, by)) for one in digest.nodes),
        hanging=tuple(replace(one, since=one.since + by) for one in digest.hanging),
        happenings=tuple(replace(one, at=one.at + by) for one in digest.happenings),
        calls=tuple(replace(one, at=one.at + by) for one in digest.calls),
        faults=tuple((kind, row, _plus(until, by)) for kind, row, until in digest.faults),
        refusal=digest.refusal and (digest.refusal[0], digest.refusal[1] + by),
    )


def _shifted_row(row: RowReport, by: float) -> RowReport:
    error = row.error and (*row.error[:2], row.error[2] + by, row.error[3])
    return msgspec.structs.replace(row, retry_at=_plus(row.retry_at, by), error=error)


def _plus(moment: float | None, by: float) -> float | None:
    return None if moment is None else moment + by


def cut(text: str, most: int) -> str:
    """Return the beginning of a text, without lone surrogates, which a key may contain but a digest may not."""
    return text[:most].encode("utf-8", "replace").decode()


def decode(data: bytes) -> Digest | None:
    """Return a digest, or None if another program or another release of swr has written it."""
    if len(data) > LONGEST:
        return None
    try:
        digest = _digests.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return digest if digest.format == FORMAT else None


def decode_faults(data: bytes) -> tuple[Fault, ...]:
    """Return the faults to simulate, or no faults if another program has written the data."""
    try:
        return _faults.decode(data) if data else ()
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ()
