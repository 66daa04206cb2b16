"""The digest of one process: some 2 kB that say what it does. Pure."""

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Final, TypeVar

import msgspec

# Of digests that other releases of swr read. One that is greater is not understood.
FORMAT: Final = 1
# Bytes. A longer one is foreign.
LONGEST: Final = 524_288

# What swr never exceeds, and what a dashboard has room for. JSON has no other numbers, and sums must stay small.
_NUMBERS: Final = 10**15
_FEW: Final = msgspec.Meta(max_length=100)
_MANY: Final = msgspec.Meta(max_length=1000)
Text = Annotated[str, msgspec.Meta(max_length=1024)]
Count = Annotated[int, msgspec.Meta(ge=0, le=_NUMBERS)]
Moment = Annotated[float, msgspec.Meta(ge=-float(_NUMBERS), le=float(_NUMBERS))]


class RowReport(msgspec.Struct, array_like=True, frozen=True):
    """The numbers of a loader or a route; see `swr.stats.Counted`.

    Parameters:
        name: the key template or the path template.
        is_route: which of them.
        fresh, stale, missing: reads by what the reader was given.
        l1, redis, load: the same reads by the layer that answered.
        loads, failed: loads that ended with a value, and without.
        in_flight, backoffs, bytes: now.
        seconds: how many loads fell in each bucket of `OF_LOADS`; zeros at the end are left out.
        retry_at: when the first key that backs off may be tried again, in seconds since 1970; None: none does.
        error: type, text and moment of the last failure, and its key.
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
    """Return the numbers of two rows as those of the first."""
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
    """Return a row with what it has counted since another moment. Bytes and the like stay as they are."""
    numbers = {name: max(0, getattr(now, name) - getattr(before, name)) for name in GROWING}
    return msgspec.structs.replace(now, **numbers, seconds=less(now.seconds, before.seconds))


def less(now: tuple[int, ...], before: tuple[int, ...]) -> tuple[int, ...]:
    """Return by how much each number has grown."""
    return tuple(max(0, a - b) for a, b in itertools.zip_longest(now, before, fillvalue=0))


class NodeReport(msgspec.Struct, array_like=True, frozen=True):
    """A server that the process has a link to.

    Parameters:
        name: its address.
        lost_at: since when it is unreachable, in seconds since 1970; None: it is reachable.
        reason: why.
    """

    name: Text
    lost_at: Moment | None = None
    reason: Text = ""


class HangingReport(msgspec.Struct, array_like=True, frozen=True):
    """A load that runs long.

    Parameters:
        key: what is loaded.
        row: the name of its loader or route.
        since: when it began, in seconds since 1970.
        timeout: the most that it may take, in seconds; None: as long as it likes.
    """

    key: Text
    row: Text
    since: Moment
    timeout: Moment | None = None


T = TypeVar("T")


def longest(loads: Iterable[tuple[T, HangingReport]], most: int) -> list[tuple[T, HangingReport]]:
    """Return loads that hang, the longest first.

    Of too many, each loader keeps one before another keeps two: the keys of one hide no other.

    Parameters:
        loads: each with something that goes with it.
        most: how many are returned.
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
        key: which.
        row: the name of its loader or route.
        share: of the reads of the process, 0 to 1, by samples.
    """

    key: Text
    row: Text
    share: Moment


class HappeningReport(msgspec.Struct, array_like=True, frozen=True):
    """An event.

    Parameters:
        number: later ones of the same process are greater.
        at: when, in seconds since 1970.
        kind: the name of its class.
        text: the event in a sentence.
        key: what it is about, if it is a key.
        row: the name of a loader, a route, a tag or a queue that it is about.
        bad: whether something is wrong.
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
        number: later ones of the same process are greater.
        at: when it was answered, in seconds since 1970.
        key: what was asked for.
        row: the name of its loader or route; for a request its method.
        state: "fresh", "stale", "missing" or "bypass".
        layer: what answered, if that is known.
        seconds: how long it took, if that was measured.
        status: of the response; None: it is a call.
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
        id: of the process, made again after a fork.
        host, pid: where it runs.
        release: of the application.
        swr: the version of swr.
        started: when it began to report, in seconds since 1970.
        at: when the digest was made, likewise.
        rows: the loaders and routes.
        l1: bytes, entries, most bytes and evictions of the local cache.
        nodes: the servers of Redis.
        commands: how many commands fell in each bucket of `OF_COMMANDS`.
        invalidations: how many so far.
        uncached: requests that bypassed the cache, and responses that were not stored, by the reason.
        hanging: loads that run long, the longest first.
        hot: keys that are read often, while a dashboard is open.
        happenings: the last events.
        calls: the last calls, while a dashboard is open.
        dropped: how many calls were left out so far.
        faults: what is simulated: kind, row, and until when.
        refusal: what Redis refuses this process of late, and since when, in seconds since 1970.
        is_last: whether the process has ended as it should, and reports no more.
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
        id: of its own.
        kind: "fail-next" or "hang".
        row: the name of the loader or route whose loads it strikes.
        seconds: how long a load hangs.
        until: when it ends, in seconds since 1970.
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
    """Return a digest, or faults, as they are in Redis."""
    return _encoder.encode(message)


def shifted(digest: Digest, by: float) -> Digest:
    """Return a digest with its moments as another clock shows them.

    Parameters:
        by: how many seconds the other clock is ahead. `at` stays as it was: it tells two digests apart.
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
    """Return the beginning of a text, without halves of characters, which a key may hold and a digest may not."""
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
    """Return the faults to simulate; none, if another has written them."""
    try:
        return _faults.decode(data) if data else ()
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ()
