"""What a simulated fleet must and must not do, told from the outside: who asked, loaded and invalidated what, and when.

The oracle knows nothing of entries, leases and flights. A value is the number of the load that made it, and the
database is at every instant another: a value is as old as the moment at which its load read. All times are the
simulation's, in seconds, except `created` and the answers' ages, which are by the clock of one worker.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from swr.entry import Outcome, State
from swr.policy import Policy
from swr.stores.base import Kind, Notification
from swr.stores.tag_versions import ALL

# A load that was overtaken is done again twice at most; then its value is answered all the same.
_LOADS: Final = 3
# Within so many seconds a link that died silently is found dead; messages and replies take some more.
_SILENT: Final = 2.0
_ON_THE_WAY: Final = 0.3
# Whoever waits for news that was lost asks again after so many.
_LOST_NEWS: Final = 1.0
# What is tried: how often it happened in a run is counted.
PAUSED: Final = "loads paused past their lease"
LOST: Final = "replies lost"
INVALIDATED: Final = "loads invalidated under way"


class Failed(Exception):
    """What a simulated loader raises; `reading` says which."""

    def __init__(self, reading: "Reading") -> None:
        super().__init__(f"load {reading.number}")
        self.reading = reading


@dataclass(eq=False)
class Reading:
    """One load: who did it, when it began, when it read the database, when it ended and its value was given
    away; `created` by its own clock."""

    number: int
    worker: str
    key: str
    began: float
    created: float
    read_at: float = math.inf
    ended: float = math.inf
    loaded: float = math.inf


@dataclass(eq=False)
class Invalidation:
    """An invalidation as the worker sees it that was asked for it."""

    worker: str
    keys: frozenset[str]
    called: float
    returned: float = math.inf


@dataclass(eq=False)
class Effect:
    """An invalidation as the store sees it: when it took effect, and when each worker heard of it."""

    name: str
    kind: Kind
    version: int
    keys: frozenset[str]
    at: float
    heard: dict[str, float] = field(default_factory=dict)


@dataclass(eq=False)
class Worker:
    """What is known of one worker: how its link is, and when anything last kept it from hearing."""

    up: bool = False
    up_since: float = math.inf
    paused_at: float = math.inf
    paused_until: float = -math.inf
    # By key, when the newest commit that it has heard of had read the database, and what it last answered from
    # what it holds.
    told: dict[str, float] = field(default_factory=dict)
    said: dict[str, "Answer"] = field(default_factory=dict)
    opened: bool = False
    gone: bool = False
    # The keys that it has loaded without the store: it loads each once more, because it cannot know which value is newer.
    unsure: set[str] = field(default_factory=set)


class Answer(NamedTuple):
    """When a worker answered, and when what it answered had been read."""

    at: float
    read_at: float


@dataclass(eq=False)
class Request:
    """One reader's or refresher's question, and how things were when it was asked."""

    worker: str
    key: str
    forced: bool
    began: float
    wall: float
    up_since: float
    told: float
    stored: int


class Oracle:
    """Judges while the simulation runs; `violations` says what was wrong, `trace` what happened.

    Parameters:
        policies: by key.
        lease_for: seconds that a lease lasts.
        now: the simulation's time, seconds.
    """

    def __init__(self, policies: Mapping[str, Policy], lease_for: float, now: Callable[[], float]) -> None:
        self.violations: list[str] = []
        self.trace: list[str] = []
        self.answers = 0
        self.readings: list[Reading] = []
        self.trials: Counter[str] = Counter()
        self._policies = policies
        self._lease_for = lease_for
        self._now = now
        self._workers: dict[str, Worker] = defaultdict(Worker)
        self._calls: list[Invalidation] = []
        self._effects: list[Effect] = []
        self._running: set[Reading] = set()
        # What lies in the store: the number of the load by key.
        self._stored: dict[str, int] = {}
        self._newest: dict[str, tuple[int, float]] = {}
        self._committed: dict[tuple[str, int], float] = {}
        self._disturbances = 0
        self._disturbed = -math.inf

    def blame(self, text: str) -> None:
        """Something was wrong."""
        self.violations.append(f"{self._now():.6f} {text}")
        self.note("oracle", text)

    def note(self, who: str, what: str) -> None:
        """Write a line of the trace."""
        self.trace.append(f"{self._now():10.6f} {who:6} {what}")

    def keys_of(self, kind: Kind, name: str) -> frozenset[str]:
        """Return the keys that an invalidation of a key, of a tag or of all takes."""
        if kind is Kind.INVALIDATED:
            return frozenset({name})
        return frozenset(key for key, policy in self._policies.items() if name in (ALL, *policy.tags))

    # -- what goes wrong on purpose ---------------------------------------------------------------------------

    def disturb(self) -> None:
        """From now on, until `calm`, one load at a time is not promised."""
        self._disturbances += 1

    def calm(self) -> None:
        """The end of one disturbance."""
        self._disturbances -= 1
        self._disturbed = self._now()

    def _quiet_since(self, moment: float) -> bool:
        return not self._disturbances and self._disturbed < moment

    def link(self, worker: str, *, up: bool) -> None:
        """The link of a worker came or went."""
        known = self._workers[worker]
        if known.gone:
            return
        self.note(worker, "link up" if up else "link down")
        if up:
            self.calm()
        else:
            self.disturb()
        known.up, known.up_since = up, self._now() if up else math.inf
        known.said.clear()

    def breaks(self, worker: str) -> None:
        """The link of a worker is broken, which it is yet to find out."""
        known = self._workers[worker]
        known.up_since = math.inf
        known.said.clear()

    def _connected(self, request: Request) -> bool:
        """Whether the link has been whole since the request came."""
        return self._workers[request.worker].up_since == request.up_since < math.inf

    def begins(self, worker: str) -> None:
        """A worker connects for the first time."""
        self._workers[worker].opened = True
        self.disturb()

    def ends(self, worker: str) -> None:
        """A worker is closed or crashes; its loads end with it, and nobody judges it any more."""
        known = self._workers[worker]
        if known.opened and not known.up:
            self.calm()
        known.gone = True
        self._disturbed = self._now()
        self._running -= {reading for reading in self._running if reading.worker == worker}

    def pauses(self, worker: str) -> None:
        """A worker stops."""
        self.note(worker, "pauses")
        self.disturb()
        self._workers[worker].paused_at = self._now()

    def resumes(self, worker: str) -> None:
        """A paused worker runs again."""
        self.note(worker, "goes on")
        self.calm()
        known = self._workers[worker]
        known.paused_until = self._now()
        if known.paused_until - known.paused_at > self._lease_for:
            self.trials[PAUSED] += sum(reading.worker == worker for reading in self._running)

    # -- the store --------------------------------------------------------------------------------------------

    def restarted(self) -> None:
        """The store has lost its entries and leases."""
        self._stored.clear()
        self._disturbed = self._now()

    def evicted(self, key: str) -> None:
        """The store has lost an entry and its lease."""
        self._stored.pop(key, None)
        self._disturbed = self._now()

    def told(self, message: Notification, value: int) -> None:
        """The store did something; `value` is what it holds now, for a commit."""
        kind, name, version, *_ = message
        self.note("store", f"{kind.name.lower()} {name} {version}")
        if kind in (Kind.INVALIDATED, Kind.TAG_VERSION):
            effect = Effect(name, kind, version, self.keys_of(kind, name), self._now())
            self._effects.append(effect)
            self.trials[INVALIDATED] += sum(reading.key in effect.keys for reading in self._running)
            for key in effect.keys:
                self._stored.pop(key, None)
        elif kind is Kind.COMMITTED:
            reading = self.readings[value]
            before, read_at = self._newest.get(name, (0, -math.inf))
            if version <= before or reading.read_at < read_at:
                self.blame(f"load {value} of {name} replaced something newer")
            if any(name in effect.keys and reading.read_at < effect.at for effect in self._effects):
                self.blame(f"load {value} of {name} was stored after an invalidation that it does not know")
            self._newest[name] = (version, reading.read_at)
            self._committed[name, version] = reading.read_at
            self._stored[name] = value

    def heard(self, worker: str, message: Notification) -> None:
        """A message has reached a worker."""
        kind, name, version, *_ = message
        self.note(worker, f"hears {kind.name.lower()} {name} {version}")
        if kind is Kind.COMMITTED:
            told = self._workers[worker].told
            told[name] = max(told.get(name, -math.inf), self._committed.get((name, version), -math.inf))
        for effect in self._effects:
            if effect.kind is kind and effect.name == name and effect.version <= version:
                effect.heard.setdefault(worker, self._now())

    # -- loads ------------------------------------------------------------------------------------------------

    def load_begins(self, worker: str, key: str, wall: float, *, forced: bool) -> Reading:
        """A load begins, at the time `wall` of its worker; unless `forced`, only because nothing fresh is there."""
        now = self._now()
        reading = Reading(len(self.readings), worker, key, now, wall)
        self.readings.append(reading)
        self.note(worker, f"load {reading.number} of {key} begins")
        if not self._workers[worker].gone:
            for other in self._running:
                if other.key == key and self._undisturbed(key, other.began - _ON_THE_WAY):
                    self.blame(f"load {reading.number} of {key} began while load {other.number} was under way")
            stored = self._stored.get(key)
            asked = forced or key in self._workers[worker].unsure
            if stored is not None and not asked and self._undisturbed(key, now - _SILENT):
                fresh_until = self.readings[stored].created + self._policies[key].fresh_for
                if wall < fresh_until:
                    self.blame(f"load {reading.number} of {key} began although load {stored} is fresh")
            self._running.add(reading)
        return reading

    def _undisturbed(self, key: str, since: float) -> bool:
        return self._quiet_since(since) and not any(
            key in effect.keys and effect.at >= since for effect in self._effects
        )

    def load_reads(self, reading: Reading) -> None:
        """A load looks at the database."""
        reading.read_at = self._now()
        self.note(reading.worker, f"load {reading.number} reads")

    def load_ends(self, reading: Reading) -> None:
        """A load has its value, or its failure."""
        reading.ended = self._now()
        self.note(reading.worker, f"load {reading.number} ends")
        self._running.discard(reading)

    def load_lands(self, reading: Reading) -> None:
        """A load's value has been stored, or not, and those who waited have it."""
        reading.loaded = self._now()
        known = self._workers[reading.worker]
        (known.unsure.add if known.up_since > reading.began else known.unsure.discard)(reading.key)

    # -- invalidations ----------------------------------------------------------------------------------------

    def invalidates(self, worker: str, kind: Kind, name: str) -> Invalidation:
        """A worker is asked to invalidate."""
        self.note(worker, f"invalidates {name}")
        call = Invalidation(worker, self.keys_of(kind, name), self._now())
        self._calls.append(call)
        return call

    def invalidated(self, call: Invalidation) -> None:
        """The worker says that it is done."""
        call.returned = self._now()
        self.note(call.worker, f"has invalidated {', '.join(sorted(call.keys))}")

    # -- requests ---------------------------------------------------------------------------------------------

    def asks(self, worker: str, key: str, wall: float, *, forced: bool = False) -> Request:
        """A reader (or with `forced` a refresher) asks, at the time `wall` of its worker."""
        known = self._workers[worker]
        self.note(worker, f"{'refreshes' if forced else 'asks for'} {key}")
        told = known.told.get(key, -math.inf)
        return Request(worker, key, forced, self._now(), wall, known.up_since, told, self._stored.get(key, -1))

    def answered(self, request: Request, outcome: Outcome[int], wall: float) -> None:
        """A request got an answer, at the time `wall` of its worker."""
        if self._workers[request.worker].gone:
            return
        self.answers += 1
        self.note(request.worker, f"answers {request.key}: load {outcome.value} {outcome.state}")
        reading = self.readings[outcome.value]
        said = f"{request.worker}: {request.key} asked at {request.began:.6f}, answered load {reading.number}"
        if reading.key != request.key:
            self.blame(f"{said} of {reading.key}")
        if request.forced and reading.read_at < request.began:
            self.blame(f"{said}, older than the refresh")
        self._judge_mark(said, request, reading, outcome, wall)
        self._judge_age(said, request, reading)
        self._judge_order(said, request, reading, outcome)

    def _judge_mark(self, said: str, request: Request, reading: Reading, outcome: Outcome[int], wall: float) -> None:
        policy = self._policies[request.key]
        fresh_until = reading.created + policy.fresh_for
        stale_until, error_until = fresh_until + policy.stale_for, fresh_until + policy.stale_if_error
        if outcome.age != max(0.0, wall - reading.created):
            self.blame(f"{said}, its age given as {outcome.age}")
        if outcome.state is State.FRESH:
            right = wall < fresh_until
        elif outcome.state is State.MISSING:
            # It waited for that load; or a second look found what somebody else had loaded meanwhile.
            right = self._waited(request, reading.loaded) or request.wall < fresh_until
        elif outcome.error is None:
            right = fresh_until <= wall < stale_until
        else:
            right = wall < max(stale_until, error_until)
        if not right or (outcome.error is not None and outcome.state is not State.STALE):
            self.blame(f"{said} as {outcome.state} ({outcome.error!r}), which is wrong: fresh until {fresh_until:.6f}")

    def _judge_age(self, said: str, request: Request, reading: Reading) -> None:
        now, worker = self._now(), self._workers[request.worker]
        loads = sum(
            (other.worker, other.key) == (request.worker, request.key) and request.began <= other.loaded <= now
            for other in self.readings
        )
        if loads >= _LOADS:
            return
        for call in self._calls:
            mine = call.worker == request.worker and request.key in call.keys
            if mine and call.returned < now and reading.read_at < call.called:
                self.blame(f"{said}, older than its own invalidation of {call.called:.6f}")
        connected = self._connected(request)
        for effect in self._effects:
            if request.key not in effect.keys or reading.read_at >= effect.at:
                continue
            if effect.heard.get(request.worker, math.inf) < now:
                self.blame(f"{said}, older than an invalidation of {effect.at:.6f} that it had heard of")
            elif connected and worker.up_since > effect.at:
                self.blame(f"{said}, older than the invalidation of {effect.at:.6f} before its link came up")
            elif connected and request.began > max(effect.at, worker.paused_until) + _SILENT + _ON_THE_WAY:
                self.blame(f"{said}, older than the invalidation of {effect.at:.6f} that it should know of by now")

    def _judge_order(self, said: str, request: Request, reading: Reading, outcome: Outcome[int]) -> None:
        """While the link is as it was, a worker goes back to nothing older than it has answered or heard of."""
        now, worker = self._now(), self._workers[request.worker]
        if worker.up_since != request.up_since:
            return
        if self._connected(request) and outcome.state is State.FRESH and reading.read_at < request.told:
            self.blame(f"{said} as fresh, older than a commit that it had heard of")
        before = worker.said.get(request.key)
        if before is not None and before.at < request.began and reading.read_at < before.read_at:
            self.blame(f"{said}, older than its answer of {before.at:.6f}")
        if outcome.state is not State.MISSING and (before is None or reading.read_at >= before.read_at):
            # Whoever waited may have been given what was overtaken, and is not held.
            worker.said[request.key] = Answer(now, reading.read_at)

    def _waited(self, request: Request, moment: float) -> bool:
        """Whether a request may have waited for what was over at `moment`: the news of it takes a while, or is lost."""
        since = request.began - _ON_THE_WAY
        return moment >= since or not self._quiet_since(since - _LOST_NEWS)

    def failed(self, request: Request, error: BaseException, wall: float) -> None:
        """A request came to an exception, at the time `wall` of its worker."""
        known = self._workers[request.worker]
        if known.gone:
            return
        said = f"{request.worker}: {request.key} asked at {request.began:.6f}, raised {error!r}"
        self.note(request.worker, f"answers {request.key}: {error!r}")
        if not isinstance(error, Failed):
            self.blame(said)
            return
        reading = error.reading
        if (reading.worker, reading.key) != (request.worker, request.key) or not self._waited(request, reading.ended):
            self.blame(f"{said}, which is another's")
        stored = request.stored
        if not request.forced and stored >= 0 and self._stored.get(request.key) == stored:
            policy = self._policies[request.key]
            until = self.readings[stored].created + policy.fresh_for + max(policy.stale_for, policy.stale_if_error)
            # What was invalidated over a link that then broke may have to be told once more, and is nothing till then.
            pending = any(
                call.worker == request.worker and request.key in call.keys and call.called < known.up_since
                for call in self._calls
            )
            if self._connected(request) and not pending and wall < until:
                self.blame(f"{said}, although load {stored} could stand in")

    def hung(self, request: Request) -> None:
        """A request had no end."""
        if not self._workers[request.worker].gone:
            self.blame(f"{request.worker}: {request.key} asked at {request.began:.6f}, never answered")
