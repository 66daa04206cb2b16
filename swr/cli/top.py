"""`swr top`: shows in a terminal what a fleet does now."""

import argparse
import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Final

from swr.cli.shared import FAILURE, Commands, add_json, add_store, cache_of, command, quiet, say
from swr.dashboard.hub import Hub
from swr.dashboard.keys import Keys
from swr.dashboard.parts import Queue, Row
from swr.dashboard.state import State

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

_EXAMPLES: Final = """\
examples:
  swr top --redis redis://127.0.0.1:6379/0
      Shows problems, the number of processes, and each loader and route, until Ctrl-C.
  swr top --once --json
      Prints the same once, as the JSON that GET state of a dashboard returns.

The command shows the processes that report: those with Cache(reports=True),
SWR_REPORTS=1, or a dashboard of their own.
"""
_MOST_ROWS: Final = 12
_MOST_PROBLEMS: Final = 5


def add(commands: Commands) -> None:
    """Add `top`."""
    top = command(
        commands,
        "top",
        _top,
        "show in a terminal what a fleet does now",
        "Show what the processes of a namespace do now, and what is wrong.",
        _EXAMPLES,
    )
    top.add_argument("--once", action="store_true", help="watch for two seconds, show the result, and exit")
    add_store(top)
    add_json(top)


def _top(options: argparse.Namespace) -> int:
    """Show the fleet until Ctrl-C, or once."""
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError as error:
        return say(f"top needs rich ({error}): pip install 'swr[dashboard]'", FAILURE)
    cache = cache_of(options)
    console = Console()

    async def show() -> int:
        hub = Hub(cache, Keys(), actions=False, simulate=False, beside=True)
        async with cache:
            # A rate is the difference of two looks.
            for _ in range(3):
                state = await _looked(hub)
            if options.once:
                print(json.dumps(state)) if options.json else console.print(_told(state, console.width))
                # A script that checks the fleet's health needs an exit code other than 0 if Redis does not answer.
                return 0 if state["fleet"] else FAILURE
            with contextlib.nullcontext() if options.json else Live(console=console, auto_refresh=False) as live:
                while True:
                    state = await _looked(hub)
                    if live is None:
                        print(json.dumps(state), flush=True)
                    else:
                        live.update(_told(state, console.width), refresh=True)

    with quiet():
        return asyncio.run(show())


async def _looked(hub: Hub) -> State:
    """Return the state after the next look."""
    await hub.watch()
    await hub.next()
    assert hub.state is not None
    return hub.state


def _told(state: State, width: int) -> "Group":
    """Return the content of the screen: a line of totals, the problems, a table, and the queues."""
    from rich.console import Group

    return Group(*_lines(state), _table(state["rows"][:_MOST_ROWS], width), *map(_queue, state["queues"]))


def _lines(state: State) -> "list[Text]":
    totals, alive = state["totals"], [one for one in state["processes"] if not one["gone"]]
    waited, silent = totals["without_waiting"], sum(one["silent"] is not None for one in alive)
    numbers = [
        f"{len(alive)} process{'es' * (len(alive) != 1)}{f' ({silent} silent)' if silent else ''}",
        f"{totals['reads_per_s']:,.0f} reads/s",
        f"{totals['loads_per_s']:,.1f} loads/s",
        *([] if waited is None else [f"{waited:.1%} without waiting"]),
    ]
    if not state["fleet"]:
        numbers = ["no process can be seen"]
    lines = [_text(f"swr {state['namespace']}: {', '.join(numbers)}", "bold")]
    if state["note"]:
        lines.append(_text(state["note"], "yellow"))
    for problem in state["problems"][:_MOST_PROBLEMS]:
        word, style = ("ERROR", "bold red") if problem["level"] == "error" else ("warning", "yellow")
        text = f"{word}: {problem['text'].removesuffix('.')}. "
        lines.append(_text(text, style).append(problem["remedy"], "default"))
    more = len(state["problems"]) - _MOST_PROBLEMS
    if more > 0:
        lines.append(_text(f"and {more} more", "yellow"))
    if not alive and state["fleet"]:
        lines.append(_text("No process reports: give Cache(reports=True), or set SWR_REPORTS=1 for Cache.from_env()."))
    return lines


def _queue(queue: Queue) -> "Text":
    counts = f"{queue['backlog']:,} to do, {queue['in_hand']:,} in hand, {queue['dead']:,} dead"
    is_well = queue["leader"] and not queue["dead"]
    leader = "led" if queue["leader"] else "no leader"
    return _text(f"queue {queue['name']}: {counts}, {leader}", "" if is_well else "yellow")


def _text(text: str, style: str = "") -> "Text":
    """Return text in which no control character can reach the terminal."""
    from rich.text import Text

    return Text("".join(char if char.isprintable() else "\ufffd" for char in text), style)


def _table(rows: list[Row], width: int) -> "Table":
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), width=min(width, 120))
    table.add_column("loader or route", overflow="ellipsis", no_wrap=True, ratio=1)
    for name in ("reads/s", "fresh", "stale", "missing", "loads", "failed", "p99 ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        reads = row["fresh"] + row["stale"] + row["missing"]
        shares = (f"{row[state] / reads:.0%}" if reads else "-" for state in ("fresh", "stale", "missing"))
        slowest = "-" if row["p99"] is None else f"{row['p99'] * 1000:,.0f}"
        style = "red" if row["failed"] or row["backoff_keys"] else ""
        name, rate = row["name"] or "(no name)", f"{row['reads_per_s']:,.1f}"
        cells = (name, rate, *shares, str(row["loads"]), str(row["failed"]), slowest)
        table.add_row(*map(_text, cells), style=style)
    return table
