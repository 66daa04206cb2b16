"""Finds the present problems of a fleet and describes them in sentences, the worst first. Pure."""

from collections.abc import Iterable
from typing import Final, Literal

from swr.dashboard.fleet import Fleet
from swr.dashboard.parts import Hanging, Problem, Row
from swr.dashboard.state import State
from swr.stats.counts import OTHER

# Seconds for which a process that died is a problem, unless a new process has its host and process id.
_GONE_FOR: Final = 60.0
# The most problems of one kind. Without this limit, a broken database with a hundred loaders would hide other problems.
_MOST: Final = 8
_REMEDIES: Final = {
    "redis": "Look at the server and the network. Meanwhile memory and the loaders answer.",
    "refused": "Meanwhile memory and the loaders answer.",
    "fleet": "Repair the connection from the dashboard to Redis. The caches of the processes work on.",
    "failing": "Look at what it loads from; swr tries again by itself.",
    "queue": "Start a process that runs its refresher.",
    "hanging": "Look at what its loader waits for; hard_timeout= bounds it.",
    "dead": "Fix the causes in their errors, then retry them: swr queue retry.",
    "process": "If no deploy or restart explains it, read its log.",
    "unreadable": "Give all processes the same release of swr and the same secret.",
    "version": "This is normal during a deploy. Afterwards, restart the processes that still run an old release.",
    "clock": "Synchronise it, by NTP for example.",
    "simulated": "It ends by itself.",
}
# The other kinds never have more than one problem.
_MORE: Final = {
    "redis": "{} more nodes of Redis cannot be reached.",
    "failing": "{} more loaders and routes fail: the table below has them first.",
    "queue": "{} more queues have no leader.",
    "hanging": "Loads of {} more loaders and routes hang.",
    "dead": "{} more queues have dead letters.",
    "process": "{} more processes do not report any more.",
    "simulated": "{} more faults are simulated here.",
}


def problems_of(state: State, fleet: Fleet) -> list[Problem]:
    """Return the present problems, errors first.

    Parameters:
        state: the state of the fleet, still without problems.
        fleet: the processes.
    """
    found = [
        *(_unreachable(state) or _unseen(state, fleet)),
        *_refused(fleet),
        *_failing(state, fleet),
        *_without_leader(state),
        *_hanging(state),
        *_dead(state),
        *_gone(state, fleet),
        *_unreadable(fleet),
        *_versions(state),
        *_clocks(fleet),
        *_simulated(state),
    ]
    bounded = [problem for those in _by_kind(found) for problem in _bounded(those)]
    return sorted(bounded, key=lambda problem: problem["level"] != "error")


def _by_kind(found: list[Problem]) -> Iterable[list[Problem]]:
    kinds: dict[str, list[Problem]] = {}
    for problem in found:
        kinds.setdefault(problem["kind"], []).append(problem)
    return kinds.values()


def _bounded(those: list[Problem]) -> list[Problem]:
    """Return the first problems of a kind, and one more that counts the others."""
    left_out = len(those) - _MOST
    if left_out <= 0:
        return those
    first = those[0]
    return [*those[:_MOST], _problem(first["level"], first["kind"], _MORE[first["kind"]].format(left_out))]


def _problem(
    level: Literal["error", "warning"], kind: str, text: str, since: float | None = None, target: str | None = None
) -> Problem:
    remedy = _REMEDIES[kind]
    return {"level": level, "kind": kind, "text": text, "remedy": remedy, "since": since, "target": target}


def _unreachable(state: State) -> list[Problem]:
    found = []
    for node in state["nodes"]:
        if not node["reachable"]:
            count, reason = len(node["unreachable_from"]), node["reason"] or "no connection"
            where = "1 process" if count == 1 else f"{count} processes"
            text = f"{where} cannot reach Redis at {node['name']}: {reason}"
            found.append(_problem("error", "redis", text, node["since"], node["name"]))
    return found


def _unseen(state: State, fleet: Fleet) -> list[Problem]:
    """Return a problem if the dashboard cannot see the fleet or its queues, although no server is unreachable."""
    text = fleet.unseen if state["fleet"] else f"The fleet cannot be seen. {state['note']}"
    return [_problem("error", "fleet", text)] if text else []


def _refused(fleet: Fleet) -> list[Problem]:
    refusals = [one.digest.refusal for one in fleet.live() if one.digest.refusal is not None]
    if not refusals:
        return []
    (text, _), count = max(refusals, key=lambda refusal: refusal[1]), len(refusals)
    whose = "1 process" if count == 1 else f"{count} processes"
    since = min(since for _, since in refusals)
    return [_problem("error", "refused", f"Redis refuses commands of {whose}: {text}.", since)]


def _unreadable(fleet: Fleet) -> list[Problem]:
    count = fleet.unreadable
    if not count:
        return []
    who = "1 process reports" if count == 1 else f"{count} processes report"
    text = f"{who} data that this dashboard cannot read: another release of swr, or another secret, may be the cause."
    return [_problem("warning", "unreadable", text)]


def _failing(state: State, fleet: Fleet) -> list[Problem]:
    found = []
    for row in state["rows"]:
        error = row["last_error"]
        if error is None or not (row["failed"] or row["backoff_keys"]):
            continue
        waits = row["backoff_keys"]
        since, _ = fleet.failing.get((row["kind"] == "route", row["name"]), (error["at"], 0.0))
        backs_off = f"; {waits} key{'s' * (waits != 1)} back{'s' * (waits == 1)} off" if waits else ""
        text = f"Loads of {_named(row)} fail: {error['type']}: {error['text']}{backs_off}"
        found.append(_problem("error", "failing", text, since, row["name"]))
    return found


def _named(row: Row) -> str:
    error = row["last_error"]
    if row["name"] == OTHER and error is not None and error["key"] is not None:
        return f"{OTHER} loaders and routes, such as that of {error['key']['text']},"
    return row["name"] or "an unknown route"


def _without_leader(state: State) -> list[Problem]:
    return [
        _problem("error", "queue", f"No process leads the queue {queue['name']}.", None, queue["name"])
        for queue in state["queues"]
        if not queue["leader"]
    ]


def _hanging(state: State) -> list[Problem]:
    """Return one problem for each loader or route, because a service that hangs delays the loads of many keys."""
    loads: dict[str, list[Hanging]] = {}
    for load in state["hanging"]:
        loads.setdefault(load["row"], []).append(load)
    found = []
    for row, those in loads.items():
        longest = max(those, key=lambda load: load["seconds"])
        text = f"A load of {longest['key']['text']} has run for {longest['seconds']:.0f} s"
        more = f", and {len(those) - 1} more of {row or 'an unknown route'} hang{'s' * (len(those) == 2)}"
        whole = f"{text}{more if len(those) > 1 else ''}."
        found.append(_problem("warning", "hanging", whole, longest["since"], row))
    return found


def _dead(state: State) -> list[Problem]:
    return [
        _problem(
            "warning",
            "dead",
            f"The queue {queue['name']} has {queue['dead']} dead letter{'s' * (queue['dead'] != 1)}.",
            min((letter["at"] for letter in queue["letters"]), default=None),
            queue["name"],
        )
        for queue in state["queues"]
        if queue["dead"]
    ]


def _gone(state: State, fleet: Fleet) -> list[Problem]:
    successors = {(one.digest.host, one.digest.pid) for one in fleet.live()}
    return [
        _problem(
            "warning",
            "process",
            f"Process {one['pid']} on {one['host']} does not report any more.",
            one["seen"],
            one["id"],
        )
        for one in state["processes"]
        if one["gone"]
        and not one["ended"]
        and state["now"] - one["seen"] < _GONE_FOR
        and (one["host"], one["pid"]) not in successors
    ]


def _versions(state: State) -> list[Problem]:
    found = []
    for name, versions in (
        ("releases", {one["version"] for one in state["processes"] if not one["gone"]}),
        ("versions of swr", {one["swr"] for one in state["processes"] if not one["gone"]}),
    ):
        if len(versions) > 1:
            shown = ", ".join(sorted(version or "one without a name" for version in versions)[:5])
            found.append(_problem("warning", "version", f"Processes run several {name}: {shown}."))
    return found


def _clocks(fleet: Fleet) -> list[Problem]:
    wrong = [one for one in fleet.live() if one.ahead]
    if not wrong:
        return []
    worst = max(wrong, key=lambda one: abs(one.ahead))
    how = f"{abs(worst.ahead):.0f} s {'behind' if worst.ahead > 0 else 'ahead of'}"
    more = "" if len(wrong) == 1 else f", and those of {len(wrong) - 1} more differ"
    return [_problem("warning", "clock", f"The clock of {worst.digest.host} is {how} the dashboard's{more}.")]


def _simulated(state: State) -> list[Problem]:
    # Only these fixed texts are formatted: the name of a row may contain braces itself.
    words = {"fail-next": "The next load of {} fails", "hang": "Loads of {} hang"}
    return [
        _problem(
            "warning",
            "simulated",
            words.get(fault["kind"], "{} is disturbed").format(fault["row"])
            + ", because a user of the dashboard simulates that.",
            None,
            fault["row"],
        )
        for fault in state["simulated"]
    ]
