"""Makes the messages of the dashboard from digests, sums and queues. Pure."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from swr.dashboard.fleet import SILENT_AFTER, Fleet, Seen
from swr.dashboard.history import together_seconds
from swr.dashboard.keys import Keys
from swr.dashboard.moments import CallSeen, Happening
from swr.dashboard.parts import Hanging, Hot, Key, LastError, Node, Process, Queue, Row, Simulated, Totals, Uncached
from swr.dashboard.problems import problems_of
from swr.dashboard.state import State
from swr.dashboard.sums import RowName, Sum, quantile
from swr.dashboard.why import explained, why_of
from swr.reports.digest import CallReport, HappeningReport, RowReport, longest
from swr.reports.reporter import VERSION

_MOST_ROWS: Final = 100
_MOST_HOT: Final = 20
_MOST_HANGING: Final = 20
_MOST_NODES: Final = 100
_MOST_ENDED: Final = 50

_LAYERS: Final = ("l1", "redis", "load", "flight", "app")
_STATES: Final = ("fresh", "stale", "missing", "bypass")


class About(NamedTuple):
    """Further facts for a state, which do not come from the digests of the fleet.

    Parameters:
        namespace, served_by, actions, simulate, fleet, note: see `State`.
        own: the process that answers, for the Redis servers in its digest.
        queues: the queues of refreshers.
        mounted: the mount points of dashboards, whose routes are not shown.
    """

    namespace: str
    served_by: str | None
    actions: bool
    simulate: bool
    fleet: bool
    note: str
    own: Seen
    queues: list[Queue]
    mounted: tuple[str, ...] = ()


def state_of(now: float, fleet: Fleet, keys: Keys, about: About) -> State:
    """Return the present state."""
    # While Redis is unreachable, the last digests of other processes are out of date.
    known = {name: one for name, one in fleet.processes.items() if about.fleet or name == about.served_by}
    live, whole = [one for one in known.values() if not one.gone], fleet.window.whole()
    rows = [row for row in _rows(whole, live, keys) if not row["name"].startswith(about.mounted)]
    state: State = {
        "now": now,
        "namespace": about.namespace,
        "served_by": about.served_by,
        "swr": VERSION,
        "fleet": about.fleet,
        "note": about.note,
        "actions": about.actions,
        "simulate": about.simulate,
        "window": whole.seconds,
        "problems": [],
        "totals": _totals(whole, rows),
        "nodes": _nodes(live, about),
        "processes": _processes(known),
        "rows": [row for row in rows if _says_anything(row)][:_MOST_ROWS],
        "hottest": _hottest(live, keys),
        "hanging": _hanging(now, live, keys),
        "uncached": _uncached(whole),
        "queues": about.queues,
        "simulated": _simulated(live),
    }
    state["problems"] = problems_of(state, fleet)
    return state


def _nodes(live: Iterable[Seen], about: About) -> list[Node]:
    nodes: dict[str, Node] = {}
    for one in (about.own, *live):
        for server in one.digest.nodes:
            node = nodes.setdefault(
                server.name,
                {"name": server.name, "reachable": True, "since": None, "reason": "", "unreachable_from": []},
            )
            if server.lost_at is None:
                continue
            node["reachable"] = False
            node["since"] = min(server.lost_at, node["since"] or server.lost_at)
            node["reason"] = node["reason"] or server.reason
            if one.digest.id not in node["unreachable_from"]:
                node["unreachable_from"].append(one.digest.id)
    return sorted(nodes.values(), key=lambda node: (node["reachable"], node["name"]))[:_MOST_NODES]


def _processes(known: dict[str, Seen]) -> list[Process]:
    """Return the running processes, and those that ended last."""
    ended = sorted((one.seen, name) for name, one in known.items() if one.gone)
    left_out = {name for _, name in ended[:-_MOST_ENDED]}
    return [_process(name, one) for name, one in sorted(known.items()) if name not in left_out]


def _process(name: str, one: Seen) -> Process:
    digest = one.digest
    lost = [node for node in digest.nodes if node.lost_at is not None]
    size, entries, most, evictions = digest.l1
    return {
        "id": name,
        "host": digest.host,
        "pid": digest.pid,
        "version": digest.release,
        "swr": digest.swr,
        "started": digest.started,
        "seen": one.at,
        "gone": one.gone,
        "ended": digest.is_last,
        "silent": one.age if one.age > SILENT_AFTER and not one.gone else None,
        "reachable": not lost,
        "unreachable_since": min((node.lost_at for node in lost if node.lost_at is not None), default=None),
        "reason": lost[0].reason if lost else "",
        "reads_per_s": 0.0 if one.gone else one.reads_per_s,
        "loads_in_flight": 0 if one.gone else sum(row.in_flight for row in digest.rows),
        "backoffs": 0 if one.gone else sum(row.backoffs for row in digest.rows),
        "l1_bytes": size,
        "l1_entries": entries,
        "l1_max_bytes": most,
        "evictions": evictions,
    }


def _rows(whole: Sum, live: Iterable[Seen], keys: Keys) -> list[Row]:
    now: dict[RowName, list[RowReport]] = {}
    for one in live:
        for row in one.digest.rows:
            now.setdefault((row.is_route, row.name), []).append(row)
    rows = [_row(name, whole.rows.get(name), now.get(name, []), whole.seconds, keys) for name in {**whole.rows, **now}]
    rows.sort(key=lambda row: (not _is_failing(row), -row["reads_per_s"], row["name"], row["kind"]))
    return rows


def _says_anything(row: Row) -> bool:
    """Return False for a row without a name that has only a running load, because its route is still unknown."""
    reads = row["fresh"] + row["stale"] + row["missing"]
    return bool(row["name"] or reads or row["loads"] or row["bytes"] or _is_failing(row))


def _is_failing(row: Row) -> bool:
    return bool(row["failed"] or row["backoff_keys"])


def _row(name: RowName, did: RowReport | None, now: list[RowReport], seconds: float, keys: Keys) -> Row:
    is_route, text = name
    did = did or RowReport(text, is_route)
    errors = [row.error for row in now if row.error is not None]
    retries = [row.retry_at for row in now if row.retry_at is not None]
    newest = max(errors, key=lambda error: error[2], default=None)
    error: LastError | None = None
    if newest is not None:
        kind, words, at, key = newest
        error = {"type": kind, "text": words, "at": at, "key": None if key is None else keys.shown(key)}
    reads = did.fresh + did.stale + did.missing
    return {
        "name": text,
        "kind": "route" if is_route else "loader",
        "fresh": did.fresh,
        "stale": did.stale,
        "missing": did.missing,
        "reads_per_s": reads / seconds if seconds else 0.0,
        "l1": did.l1,
        "redis": did.redis,
        "load": did.load,
        "loads": did.loads,
        "failed": did.failed,
        "p50": quantile(did.seconds, 0.5),
        "p99": quantile(did.seconds, 0.99),
        "in_flight": sum(row.in_flight for row in now),
        # A key backs off in each process that has asked for it, so a sum would count the key several times.
        "backoff_keys": max((row.backoffs for row in now), default=0),
        "retry_at": min(retries, default=None),
        "last_error": error,
        "bytes": sum(row.bytes for row in now),
    }


def _totals(whole: Sum, rows: list[Row]) -> Totals:
    seconds = whole.seconds or 1.0
    done = whole.rows.values()
    fresh, stale, missing = (sum(getattr(row, name) for row in done) for name in ("fresh", "stale", "missing"))
    reads = fresh + stale + missing
    loads, failed = sum(row.loads for row in done), sum(row.failed for row in done)
    took = together_seconds(whole)
    return {
        "reads_per_s": reads / seconds,
        "loads_per_s": (loads + failed) / seconds,
        "failed_per_s": failed / seconds,
        "fresh": fresh / reads if reads else None,
        "stale": stale / reads if reads else None,
        "missing": missing / reads if reads else None,
        "without_waiting": 1 - sum(row.load for row in done) / reads if reads else None,
        "p50": quantile(took, 0.5),
        "p99": quantile(took, 0.99),
        "redis_p50": quantile(whole.commands, 0.5, of_commands=True),
        "redis_p99": quantile(whole.commands, 0.99, of_commands=True),
        "in_flight": sum(row["in_flight"] for row in rows),
        "backoffs": sum(row["backoff_keys"] for row in rows),
        "invalidations_per_s": whole.invalidations / seconds,
    }


def _hottest(live: Iterable[Seen], keys: Keys) -> list[Hot]:
    rates: Counter[str] = Counter()
    rows: dict[str, str] = {}
    for one in live:
        for hot in one.digest.hot:
            rates[hot.key] += hot.share * one.reads_per_s  # type: ignore[assignment]  # counts may be fractions
            rows[hot.key] = rows.get(hot.key) or hot.row
    return [
        {"key": keys.shown(key), "row": rows[key], "reads_per_s": float(rate)}
        for key, rate in rates.most_common(_MOST_HOT)
    ]


def _hanging(now: float, live: Iterable[Seen], keys: Keys) -> list[Hanging]:
    found = [(one.digest.id, load) for one in live for load in one.digest.hanging]
    return [
        {
            "key": keys.shown(load.key),
            "row": load.row,
            "process": process,
            "since": load.since,
            "seconds": max(0.0, now - load.since),
            "timeout": load.timeout,
        }
        for process, load in longest(found, _MOST_HANGING)
    ]


def _uncached(whole: Sum) -> list[Uncached]:
    most = sorted(whole.uncached.items(), key=lambda pair: (-pair[1], pair[0]))
    return [{"why": explained(code), "count": count} for code, count in most if count]


def _simulated(live: Iterable[Seen]) -> list[Simulated]:
    found = {fault for one in live for fault in one.digest.faults}
    return [{"kind": kind, "row": row, "until": until} for kind, row, until in sorted(found, key=str)]


# -- events and calls -------------------------------------------------------------------------------------------------


def happening_of(process: str, event: HappeningReport, keys: Keys) -> Happening:
    """Return the message about an event."""
    return {
        "t": event.at,
        "kind": event.kind,
        "process": process,
        "text": event.text,
        "key": None if event.key is None else keys.shown(event.key),
        "row": event.row or None,
        "bad": event.bad,
    }


def call_of(process: str, call: CallReport, keys: Keys) -> CallSeen:
    """Return the message about a request or a call."""
    key: Key = keys.shown(call.key)
    is_request = call.status is not None
    return {
        "t": call.at,
        "kind": "request" if is_request else "call",
        "what": _what(key, call.row) if is_request else call.row or key["text"],
        "state": _known(call.state, _STATES, "missing"),
        "layer": _known(call.layer, _LAYERS, None),
        "seconds": call.seconds,
        "process": process,
        "key": key,
        "why": why_of(call.cache_status) if is_request else None,
        "status": call.status,
    }


def _what(key: Key, method: str) -> str:
    """Return the method and the path of a request, without the rest of its key."""
    url = key["text"].partition("://")[2].partition(" ")[0]
    path = url[url.find("/") :] if "/" in url else url
    return f"{method} {path}"


def _known(value: Any, known: tuple[str, ...], otherwise: Any) -> Any:
    return value if value in known else otherwise
