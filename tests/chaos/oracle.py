"""Judges a long run by what was written down in it, and by nothing that swr says of itself.

What a reader may be given follows from the rows' history and from who invalidated what, when. All times are those of
one clock, in seconds. A process is *undisturbed* while its link, the server and it itself are as they should be,
and have been for `AFTER` seconds.
"""

import math
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.chaos.rows import GROUPS, HARD_TIMEOUT, KEYS, tags_of, windows_of

# A link that dies silently is found out within 2 s; the rest is for a busy machine.
AFTER: Final = 3.0
# The wall clock, by which entries are stamped, against the clock of the run.
SKEW: Final = 0.05
# How late news of a commit may come where nothing is wrong, and how near the end of freshness a load may begin.
NEWS: Final = 0.3
# A load that has failed is joined until its lease is given back, for which a broken link takes its time.
LATE: Final = 1.0
# What a server has acknowledged may be lost with it for so long; its processes tell its successor again.
LOST: Final = 2.0
# A load that an invalidation overtakes is done again twice at most.
LOADS: Final = 3

Span = tuple[float, float]


@dataclass
class Life:
    """One process: the number of its link, from when to when it lived (None: to the end), and of which release it is."""

    link: int
    began: float
    ended: float | None = None
    release: int = 0


@dataclass
class Story:
    """What the run itself knows.

    Attributes:
        writes: by key, when each row was there, in order; row 1 is the first.
        lives: by name.
        links: by number, when each link was not as it should be.
        server: when the server was not.
        refusals: when it had no memory left. Its invalidations count anyway.
        stops: by name, when a process was stopped.
        healed: from when on every process answers the last rows.
        leases_left: those that stood at the end.
        counts: of what was done.
    """

    writes: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    lives: dict[str, Life] = field(default_factory=dict)
    links: dict[int, list[Span]] = field(default_factory=lambda: defaultdict(list))
    server: list[Span] = field(default_factory=list)
    refusals: list[Span] = field(default_factory=list)
    stops: dict[str, list[Span]] = field(default_factory=lambda: defaultdict(list))
    healed: float | None = None
    leases_left: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class Spans:
    """Spans of time, made longer at their ends by `longer`, and those that touch made one."""

    def __init__(self, spans: Iterable[Span], longer: float = 0.0) -> None:
        self.begins: list[float] = []
        self.ends: list[float] = []
        for begin, end in sorted(spans):
            if self.ends and begin <= self.ends[-1]:
                self.ends[-1] = max(self.ends[-1], end + longer)
            else:
                self.begins.append(begin)
                self.ends.append(end + longer)

    def last(self, begin: float, end: float) -> float | None:
        """Return when the last span ends that has anything in common with this one; None: there is none."""
        at = bisect_right(self.begins, end)
        return self.ends[at - 1] if at and self.ends[at - 1] > begin else None

    def count(self, begin: float, end: float) -> int:
        """Return how many have something in common with this one."""
        return bisect_right(self.begins, end) - bisect_right(self.ends, begin)


class Floor:
    """From when on a row is the oldest that may be answered."""

    def __init__(self) -> None:
        self._pairs: list[tuple[float, int, str]] = []
        self._times: list[float] | None = None

    def add(self, time: float, row: int, why: str) -> None:
        self._pairs.append((time, row, why))
        self._times = None

    def at(self, time: float) -> tuple[int, str]:
        """Return the floor for what is asked at `time`, and what has made it so."""
        if self._times is None:
            self._pairs.sort()
            for i in range(1, len(self._pairs)):
                if self._pairs[i][1] < self._pairs[i - 1][1]:
                    self._pairs[i] = (self._pairs[i][0], *self._pairs[i - 1][1:])
            self._times = [pair[0] for pair in self._pairs]
        before = bisect_left(self._times, time)
        return self._pairs[before - 1][1:] if before else (0, "")


@dataclass
class Load:
    worker: str
    number: int
    row: int
    name: str
    began: float
    ended: float
    failed: bool


class Oracle:
    """Judges.

    Parameters:
        story: what the run knows.
        folder: where the processes' logs are, NAME.log.
    """

    def __init__(self, story: Story, folder: Path) -> None:
        self.story = story
        self.folder = folder
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        self.states: Counter[str] = Counter()
        self._loads: dict[tuple[str, int], Load] = {}
        self._mine: dict[tuple[str, int], Floor] = defaultdict(Floor)
        self._all: dict[int, Floor] = defaultdict(Floor)
        # By key, when something was invalidated and may have been told to the server.
        self._invalidated: dict[int, list[Span]] = defaultdict(list)
        # By process and key, when a load began that did not end.
        self._hung: dict[tuple[str, int], list[float]] = defaultdict(list)
        self._refreshed: dict[tuple[str, int], dict[float, float]] = defaultdict(dict)
        self._disturbed: dict[str, Spans] = {}
        self._anywhere = Spans(())
        self._faults: dict[str, Spans] = {}

    def judge(self) -> list[str]:
        """Read what was written down, and return what was wrong."""
        lines = {name: list(self._lines(name)) for name in self.story.lives}
        everything: list[Span] = []
        for name, life in self.story.lives.items():
            ended = math.inf if life.ended is None else life.ended
            stalls = [(begin, end) for _, (kind, *rest) in lines[name] if kind == "stalled" for begin, end in (rest,)]
            stops = self.story.stops.get(name, [])
            spans = [*self.story.links.get(life.link, []), *self.story.server, *stops, *stalls]
            spans = [(begin, end) for begin, end in spans if begin < ended and end > life.began - AFTER]
            self._faults[name] = Spans([*spans, *self.story.refusals])
            self._disturbed[name] = Spans(spans, AFTER)
            everything += [*spans, (life.began, life.began + 1)]
            everything += [(ended, ended)] if ended < math.inf else []
        self._anywhere = Spans([*everything, *self.story.refusals], AFTER)
        for name in lines:
            self._take_in(name, lines[name])
        for name in lines:
            for where, line in lines[name]:
                if line[0] == "answer":
                    self._judge_answer(name, f"{name}.log:{where}", *line[1:])
                elif line[0] == "refreshed":
                    self._judge_refresh(name, f"{name}.log:{where}", *line[1:])
                elif line[0] == "raised":
                    self._judge_error(name, f"{name}.log:{where}", *line[1:])
        self._judge_loads()
        for lease in self.story.leases_left:
            self._blame("left", f"a lease is left over at the end: {lease}")
        return self.violations

    def _blame(self, about: str, text: str) -> None:
        self.counts["violations"] += 1
        self.violations.append(f"({about}) {text}")

    def _lines(self, name: str) -> Iterator[tuple[int, list[Any]]]:
        path = self.folder / f"{name}.log"
        if not path.exists():
            return
        for where, line in enumerate(path.read_bytes().split(b"\n"), 1):
            try:
                yield where, msgspec.json.decode(line)
            except msgspec.DecodeError:
                # The last of a process that was killed while it wrote.
                continue

    # -- what happened ----------------------------------------------------------------------------------------

    def _take_in(self, name: str, lines: list[tuple[int, list[Any]]]) -> None:
        for where, (kind, *rest) in lines:
            if kind in ("load", "failed"):
                number, row, load, began, ended = rest
                self._loads[load, number] = Load(name, number, row, load, began, ended, kind == "failed")
                self.counts["loads" if kind == "load" else "failed loads"] += 1
                if row > len(self.story.writes.get(number, ())):
                    self._blame("c", f"{name}.log:{where}: row {row} of {number} was never written")
            elif kind == "hung":
                self._hung[name, rest[0]].append(rest[1])
                self.counts["hung loads"] += 1
            elif kind == "shared":
                self._blame("e", f"{name}.log:{where}: of {rest[0]} failures some were one object")
            elif kind == "invalidated":
                self._take_in_invalidation(name, f"{name}.log:{where}", *rest)
            elif kind == "invalidating":
                what, which, began = rest
                # Done or not, it may have been carried out; a command that was held up arrives as it is let go.
                for number in _keys_of(what, which):
                    self._invalidated[number].append((began, began + AFTER))
            elif kind == "refreshing":
                self._refreshed[name, rest[0]][rest[1]] = math.inf
            elif kind == "refreshed":
                self._refreshed[name, rest[0]][rest[2]] = rest[3]
            elif kind == "raised" and rest[4] == "refresh":
                self._refreshed[name, rest[0][0]][rest[2]] = rest[3]

    def _row_at(self, number: int, time: float) -> int:
        return bisect_right(self.story.writes.get(number, ()), time)

    def _take_in_invalidation(self, name: str, where: str, what: str, which: Any, began: float, ended: float) -> None:
        self.counts["invalidations"] += 1
        # What the store could not be told, or may have lost, this process tells it once all is well again, if it lives.
        recovered = self._disturbed[name].last(began, ended + LOST)
        told = ended if recovered is None else max(ended, recovered)
        died = self.story.lives[name].ended
        lost = recovered is not None and died is not None and died < told
        self.counts["invalidations lost with their process"] += lost
        for number in _keys_of(what, which):
            row = self._row_at(number, began)
            why = f"{where}: {what} {which} invalidated {began:.3f} to {ended:.3f}, when the row was {row}"
            self._mine[name, number].add(ended, row, why)
            if not lost:
                self._all[number].add(told + AFTER, row, f"{why}, everywhere by {told + AFTER:.3f}")
            self._invalidated[number].append((began, told))

    # -- answers ----------------------------------------------------------------------------------------------

    def _judge_answer(
        self, name: str, where: str, number: int, value: Any, state: str, age: float, failed: bool, began: float,
        ended: float,
    ) -> None:  # fmt: skip
        self.counts["answers"] += 1
        self.states[state] += 1
        said = f"{where}: key {number} asked {began:.3f}, answered {ended:.3f} {value} {state} aged {age:.3f}"
        load = self._load_of(name, said, number, value)
        if load is None:
            return
        said += f" (load {load.began:.3f} to {load.ended:.3f} in {load.worker})"
        self._judge_row(name, said, number, load.row, began)
        windows = windows_of(number)
        stale_for = max(windows.stale_for, windows.stale_if_error) if failed else windows.stale_for
        # Its age was told some time between question and answer.
        youngest, oldest = began - load.began - SKEW, age - (ended - began) - SKEW
        if state == "fresh" and max(youngest, oldest) >= windows.fresh_for:
            self._blame("c", f"{said}: fresh past {windows.fresh_for} s")
        if state == "stale" and max(youngest, oldest) >= windows.fresh_for + stale_for:
            self._blame("c", f"{said}: stale past {windows.fresh_for} + {stale_for} s")
        if state == "stale" and not failed and age + SKEW < windows.fresh_for:
            self._blame("c", f"{said}: stale before {windows.fresh_for} s")
        if failed and state != "stale":
            self._blame("c", f"{said}: a fallback is stale")
        late = state == "missing" and youngest > windows.fresh_for and began - load.ended > NEWS
        if late and self._anywhere.last(load.began, began) is None:
            self._blame("c", f"{said}: missing, and loaded long before it was asked for")

    def _load_of(self, name: str, said: str, number: int, value: Any) -> Load | None:
        load = self._loads.get((value[2], number))
        if load is None or load.failed or value[:2] != [number, load.row]:
            self._blame("c", f"{said}: no load has brought that")
            return None
        if self._release_of(load.worker) != self._release_of(name):
            self._blame("c", f"{said}: a load of another release has brought that")
        return load

    def _release_of(self, name: str) -> int:
        return self.story.lives[name].release

    def _judge_row(self, name: str, said: str, number: int, row: int, began: float) -> None:
        floor, why = self._mine[name, number].at(began)
        self.counts["answers after an invalidation of their own process"] += floor > 0
        if row < floor:
            self._blame("a", f"{said}: older than row {floor}; {why}")
        if self._disturbed[name].last(began, began) is None:
            floor, why = self._all[number].at(began)
            self.counts["answers after an invalidation of any process"] += floor > 0
            if row < floor:
                self._blame("b", f"{said}: older than row {floor}; {why}")
        if self.story.healed is not None and began > self.story.healed:
            self.counts["answers at the end"] += 1
            if row < self._row_at(number, self.story.healed):
                self._blame("f", f"{said}: not the last row at the end")

    def _judge_refresh(self, name: str, where: str, number: int, value: Any, began: float, ended: float) -> None:
        self.counts["refreshes"] += 1
        said = f"{where}: refresh of {number} asked {began:.3f}, answered {ended:.3f} {value}"
        load = self._load_of(name, said, number, value)
        if load is not None:
            self._judge_row(name, said, number, load.row, began)
            if load.row < self._row_at(number, began):
                self._blame("a", f"{said}: loaded before it was asked for")

    def _judge_error(
        self, name: str, where: str, numbers: list[int], load: str, began: float, ended: float, how: str, text: str
    ) -> None:
        self.counts["errors"] += 1
        hung = [at for number in numbers for at in self._hung[name, number]]
        # A loader's time goes on while its process is stopped.
        stopped = any(span[0] < ended and span[1] > began - LATE for span in self.story.stops.get(name, []))
        late = any(at + HARD_TIMEOUT > began - LATE and at < ended for at in hung)
        if text.startswith("LoadTimeout") and (stopped or late):
            return
        loads = [self._loads[load, number] for number in numbers if (load, number) in self._loads]
        if not any(one.failed and one.worker == name and one.ended > began - LATE for one in loads):
            self._blame("e", f"{where}: {how} of {numbers} asked {began:.3f}, raised {ended:.3f} {text}")

    # -- loads ------------------------------------------------------------------------------------------------

    def _judge_loads(self) -> None:
        by_key: dict[tuple[int, int], list[Load]] = defaultdict(list)
        for load in sorted(self._loads.values(), key=lambda load: load.began):
            if not load.failed:
                by_key[load.number, self._release_of(load.worker)].append(load)
        for (number, _), loads in by_key.items():
            invalidated = sorted(self._invalidated[number])
            for at, load in enumerate(loads):
                window = windows_of(number).fresh_for
                since = load.began - window
                recent = [other for other in loads[max(0, at - 200) : at] if other.began > since]
                mine = 1 + sum(other.worker == load.worker for other in recent)
                self.counts["most loads of a key in its window"] = max(
                    self.counts["most loads of a key in its window"], len(recent) + 1
                )
                struck = sum(begin <= load.began and end >= since for begin, end in invalidated)
                faults = self._faults[load.worker].count(since - AFTER, load.began)
                refreshes = sum(
                    begin <= load.began and end >= since for begin, end in self._refreshed[load.worker, number].items()
                )
                if mine > LOADS * (1 + struck + refreshes) + faults:
                    self._blame("d", f"{load}: load {mine} within {window} s in this process, after {struck}"
                                f" invalidations, {refreshes} refreshes, {faults} faults")  # fmt: skip
                if recent:
                    self._judge_second(load, recent, invalidated)

    def _judge_second(self, load: Load, recent: list[Load], invalidated: list[Span]) -> None:
        """While all is well, a key is loaded again only when its time is over."""
        for other in recent:
            enough = other.began + windows_of(load.number).fresh_for - NEWS > load.began > other.began
            if enough and self._anywhere.last(other.began - AFTER, load.began) is None:
                self.counts["loads that could have been one too many"] += 1
                struck = any(begin <= load.began and end >= other.began for begin, end in invalidated)
                asked = any(
                    begin <= load.began <= end for begin, end in self._refreshed[load.worker, load.number].items()
                )
                if not struck and not asked:
                    self._blame("d", f"{load} although {other} was fresh, or under way")
                return

    # -- the end ----------------------------------------------------------------------------------------------

    def summary(self) -> list[str]:
        """Return the run in figures."""
        done, counts = self.story.counts, self.counts
        return [
            f"{counts['answers']} answers ({', '.join(f'{n} {state}' for state, n in sorted(self.states.items()))}), "
            f"{counts['refreshes']} refreshes, {counts['errors']} loader's errors",
            f"{counts['loads']} loads and {counts['failed loads']} that failed or hung; "
            f"at most {counts['most loads of a key in its window']} of one key while the first was fresh",
            f"{counts['invalidations']} invalidations, {counts['invalidations lost with their process']} of them lost "
            f"with their process",
            f"held to an invalidation: {counts['answers after an invalidation of their own process']} answers by their "
            f"own process's, {counts['answers after an invalidation of any process']} by any; "
            f"{counts['answers at the end']} at the end",
            "; ".join(f"{number} {what}" for what, number in sorted(done.items())),
            f"{counts['violations']} violations",
        ]


def _keys_of(what: str, which: Any) -> Iterable[int]:
    if what == "key":
        return (which,)
    if what == "tag":
        return [number for number in range(KEYS) if which in tags_of(number)]
    return range(KEYS)


def tags() -> list[str]:
    return [f"group:{number}" for number in range(GROUPS)] + ["low", "high"]
