"""What a simulated fleet must and must not do, told from the outside: who asked, loaded and invalidated what, and when.

The oracle knows nothing of entries, leases and flights. A value is the number of the load that made it, and the
database is at every instant another: a value is as old as the moment at which its load read. All times are the
simulation's, in seconds, except `created` and the answers' ages, which are by the clock of one worker.
"""

import math
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from swr.core.keys import loader_digest
from swr.entry import Outcome, State
from swr.errors import LoadTimeout
from swr.policy import Policy
from swr.stores.base import Kind, Notification
from swr.stores.tag_versions import Name, Soft, concerns
from swr.testing.clock import START

# A load that was overtaken is done again twice at most; then its value is answered anyway.
_LOADS: Final = 3
# Within so many seconds a link that died silently is found dead; messages and replies take some more.
_SILENT: Final = 2.0
_ON_THE_WAY: Final = 0.3
# Whoever waits for news that was lost asks again after so many.
_LOST_NEWS: Final = 1.0
# A reader whose patience has ended is answered within so many seconds.
_AT_ONCE: Final = 1.0
# The frames of a loader's exception, and of one caller.
_MOST_FRAMES: Final = 40
# The key template of the loader of some keys.
LOADER: Final = "k{odd}"
# What is tried: how often it happened in a run is counted.
PAUSED: Final = "loads paused past their lease"
LOST: Final = "replies lost"
INVALIDATED: Final = "loads invalidated under way"
MARKED: Final = "loads marked under way"
SET: Final = "values set"
OLDER: Final = "restarts with older data"
HUNG: Final = "loads that hung"
REFUSED: Final = "writes refused"


def loader_of(key: str) -> str:
    """Return what entries carry of the loader of `key`: every second key is one's."""
    return loader_digest(LOADER) if key.endswith(("1", "3")) else ""


class Failed(Exception):
    """What a simulated loader raises; `reading` says which."""

    def __init__(self, reading: "Reading") -> None:
        super().__init__(f"load {reading.number}")
        self.reading = reading


@dataclass(eq=False)
class Reading:
    """One load, or a value that is set: who did it, for which release, when it began, when it read the database, when
    it ended and its value was given away; `created` by its own clock."""

    number: int
    worker: str
    release: str
    key: str
    began: float
    created: float
    read_at: float = math.inf
    ended: float = math.inf
    loaded: float = math.inf
    hangs: bool = False
    is_set: bool = False
    # Of the entry that the store took; 0: it has taken none.
    version: int = 0


@dataclass(eq=False)
class Invalidation:
    """An invalidation as the worker sees it that was asked for it."""

    worker: str
    keys: frozenset[str]
    called: float
    returned: float = math.inf
    # What it takes is stale from then on, instead of gone.
    is_soft: bool = False


@dataclass(eq=False)
class Effect:
    """An invalidation as the store sees it: when it took effect, since when the store has had it without losing it,
    and when each worker heard of it."""

    name: Name
    kind: Kind
    version: int
    keys: frozenset[str]
    at: float
    since: float
    is_soft: bool
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
    # By key, the newest that it has ever answered from what it or the store held.
    best: dict[str, "Answer"] = field(default_factory=dict)
    # Its release, as the fingerprint of the type of its values.
    release: str = ""
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
    patience: float


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
        # What is in the store: the number of the load by key and release.
        self._stored: dict[tuple[str, str], int] = {}
        self._newest: dict[tuple[str, str], tuple[int, float]] = {}
        self._committed: dict[tuple[str, int], float] = {}
        self._raised: list[BaseException] = []
        # When the store last refused a lease or a commit.
        self._refused = -math.inf
        self._disturbances = 0
        self._disturbed = -math.inf

    def blame(self, text: str) -> None:
        """Something was wrong."""
        self.violations.append(f"{self._now():.6f} {text}")
        self.note("oracle", text)

    def note(self, who: str, what: str) -> None:
        """Write a line of the trace."""
        self.trace.append(f"{self._now():10.6f} {who:6} {what}")

    def employs(self, worker: str, release: str) -> None:
        """A worker is of a release."""
        self._workers[worker].release = release

    def keys_of(self, kind: Kind, name: Name) -> frozenset[str]:
        """Return the keys that an invalidation or a mark of a key, of a tag, of a loader or of all takes."""
        if kind in (Kind.INVALIDATED, Kind.MARKED):
            assert isinstance(name, str)
            return frozenset({name})
        return frozenset(key for key, policy in self._policies.items() if concerns(name, policy.tags, loader_of(key)))

    def _marks_of(self, key: str) -> list[Effect]:
        """Return the marks of a key, in their order."""
        return [effect for effect in self._effects if effect.is_soft and key in effect.keys]

    def _marked_since(self, key: str, moment: float) -> bool:
        """Whether a mark has taken effect since, or one that nobody confirmed may have."""
        # A load may begin later than its lease was granted.
        moment -= _ON_THE_WAY
        return any(effect.at >= moment for effect in self._marks_of(key)) or any(
            call.is_soft and key in call.keys and call.returned >= moment for call in self._calls
        )

    def _marked_at(self, reading: Reading) -> list[float]:
        """Return when what a load has made may have been marked, by the clock that stamped it: when its windows begin.

        Where nobody has confirmed a mark, it may be made at any time.
        """
        marks = [effect.at for effect in self._marks_of(reading.key)]
        marks += [
            moment
            for call in self._calls
            if call.is_soft and reading.key in call.keys
            for moment in (call.called, call.returned)
        ]
        # A worker may be paused between its lease, which the version is of, and the load.
        since = min(reading.began, reading.version / 1e6 - START) - _ON_THE_WAY
        # What was loaded without a lease has no version: its marks are at the time of the server, and those of the copy
        # in the store count for it, because nothing says which of the two was first.
        return [
            moment
            for mark in marks
            if mark >= since
            for moment in (reading.created + mark - reading.began, START + mark)
        ]

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
        for effect in self._effects if up else ():
            if effect.since == math.inf and worker in effect.heard:
                # It has told the store again.
                effect.since = self._now()

    def breaks(self, worker: str) -> None:
        """The link of a worker is broken, which it is yet to find out. What it asks for at that moment fails."""
        self._disturbed = self._now()
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

    def restarted(self, saved_at: float | None) -> None:
        """The store has lost its entries and leases, or all that has changed since it was saved."""
        self._forget(self._stored)
        self._disturbed = self._now()
        if saved_at is not None:
            self.trials[OLDER] += 1
            # A load whose lease was ended since may be stored once more.
            self._newest.clear()
            for known in self._workers.values():
                # That there was something newer is not a promise once it is lost.
                known.told.clear()
            for effect in self._effects:
                if effect.at > saved_at:
                    effect.since = math.inf

    def _forget(self, stored: dict[tuple[str, str], int], key: str | None = None) -> None:
        for place in [place for place in stored if key in (None, place[0])]:
            del stored[place]

    def refuses(self) -> None:
        """The store has refused to write something."""
        self._refused = self._now()
        self.trials[REFUSED] += 1

    def evicted(self, key: str) -> None:
        """The store has lost what was stored for a key, and its leases."""
        self._forget(self._stored, key)
        self._disturbed = self._now()

    def told(self, message: Notification, value: int) -> None:
        """The store did something; `value` is what it holds now, for a commit."""
        kind, name, version, _, release = message
        self.note("store", f"{kind.name.lower()} {name} {version}")
        if kind in (Kind.INVALIDATED, Kind.TAG_VERSION, Kind.MARKED):
            is_soft = kind is Kind.MARKED or isinstance(name, Soft)
            effect = Effect(name, kind, version, self.keys_of(kind, name), self._now(), self._now(), is_soft)
            self._effects.append(effect)
            self.trials[MARKED if is_soft else INVALIDATED] += sum(
                reading.key in effect.keys for reading in self._running
            )
            for key in effect.keys if not is_soft else ():
                self._forget(self._stored, key)
        elif kind is Kind.COMMITTED:
            assert isinstance(name, str)
            reading = self.readings[value]
            before, read_at = self._newest.get((name, release), (0, -math.inf))
            if version <= before or reading.read_at < read_at:
                self.blame(f"load {value} of {name} replaced something newer")
            # What a soft tag outdates is stored, and at once stale.
            if any(
                name in effect.keys
                and reading.read_at < effect.at
                and effect.since < math.inf
                and not isinstance(effect.name, Soft)
                for effect in self._effects
            ):
                self.blame(f"load {value} of {name} was stored after an invalidation that it does not know")
            self._newest[name, release] = (version, reading.read_at)
            self._committed[name, version] = reading.read_at
            reading.version = version
            self._stored[name, release] = value

    def heard(self, worker: str, message: Notification) -> None:
        """A message has reached a worker."""
        kind, name, version, _, release = message
        self.note(worker, f"hears {kind.name.lower()} {name} {version}")
        if kind is Kind.COMMITTED and release == self._workers[worker].release:
            assert isinstance(name, str)
            told = self._workers[worker].told
            told[name] = max(told.get(name, -math.inf), self._committed.get((name, version), -math.inf))
        for effect in self._effects:
            if effect.kind is kind and effect.name == name and effect.version <= version:
                effect.heard.setdefault(worker, self._now())

    # -- loads ------------------------------------------------------------------------------------------------

    def load_begins(self, worker: str, key: str, wall: float, *, forced: bool) -> Reading:
        """A load begins, at the time `wall` of its worker; unless `forced`, only because nothing fresh is there."""
        now, release = self._now(), self._workers[worker].release
        reading = Reading(len(self.readings), worker, release, key, now, wall)
        self.readings.append(reading)
        self.note(worker, f"load {reading.number} of {key} begins")
        if not self._workers[worker].gone:
            for other in self._running:
                if (other.key, other.release) == (key, release) and self._undisturbed(key, other.began - _ON_THE_WAY):
                    self.blame(f"load {reading.number} of {key} began while load {other.number} was under way")
            stored = self._stored.get((key, release))
            asked = forced or key in self._workers[worker].unsure
            if stored is not None and not asked and self._undisturbed(key, now - _SILENT):
                fresh_until = self.readings[stored].created + self._policies[key].fresh_for
                if wall < fresh_until and not self._marked_since(key, self.readings[stored].began):
                    self.blame(f"load {reading.number} of {key} began although load {stored} is fresh")
            self._running.add(reading)
        return reading

    def _undisturbed(self, key: str, since: float) -> bool:
        return self._quiet_since(since) and not any(
            key in effect.keys and effect.at >= since for effect in self._effects
        )

    def load_hangs(self, reading: Reading) -> None:
        """A load will not end by itself."""
        reading.hangs = True
        self.trials[HUNG] += 1
        self.note(reading.worker, f"load {reading.number} hangs")

    def load_reads(self, reading: Reading) -> None:
        """A load looks at the database."""
        reading.read_at = self._now()
        self.note(reading.worker, f"load {reading.number} reads")

    def load_ends(self, reading: Reading) -> None:
        """A load has its value, or its failure."""
        reading.ended = self._now()
        self.note(reading.worker, f"load {reading.number} ends")
        self._running.discard(reading)

    def load_ends_stored(self, reading: Reading) -> None:
        """A load's value has been stored, or not, and those who waited have it."""
        reading.loaded = self._now()
        known = self._workers[reading.worker]
        is_unsure = known.up_since > reading.began or self._refused >= reading.began
        (known.unsure.add if is_unsure else known.unsure.discard)(reading.key)

    # -- values that are set ----------------------------------------------------------------------------------

    def sets(self, worker: str, key: str, wall: float) -> Reading:
        """A worker is asked to store a value, at the time `wall` of its clock."""
        now = self._now()
        release = self._workers[worker].release
        reading = Reading(len(self.readings), worker, release, key, now, wall, now, now, is_set=True)
        self.readings.append(reading)
        self.note(worker, f"sets {reading.number} of {key}")
        return reading

    def seizes(self, worker: str, key: str) -> None:
        """The store takes note of a value: it is the newest there is at this moment."""
        for reading in self.readings:
            if reading.is_set and reading.loaded == math.inf and (reading.worker, reading.key) == (worker, key):
                reading.read_at = self._now()

    def has_set(self, reading: Reading, *, is_stored: bool) -> None:
        """The worker says that it is done, and whether the store has the value."""
        self.note(reading.worker, f"has set {reading.number}: {is_stored}")
        self.load_ends_stored(reading)
        self.trials[SET] += is_stored

    # -- invalidations ----------------------------------------------------------------------------------------

    def invalidates(self, worker: str, kind: Kind, name: Name) -> Invalidation:
        """A worker is asked to invalidate, or to mark."""
        self.note(worker, f"invalidates {name}")
        is_soft = kind is Kind.MARKED or isinstance(name, Soft)
        call = Invalidation(worker, self.keys_of(kind, name), self._now(), is_soft=is_soft)
        self._calls.append(call)
        return call

    def invalidated(self, call: Invalidation) -> None:
        """The worker says that it is done."""
        call.returned = self._now()
        self.note(call.worker, f"has invalidated {', '.join(sorted(call.keys))}")

    # -- requests ---------------------------------------------------------------------------------------------

    def asks(self, worker: str, key: str, wall: float, *, forced: bool = False, patience: float = math.inf) -> Request:
        """A reader (or with `forced` a refresher) asks, at the time `wall` of its worker.

        It has so much patience as long as it can be given something else.
        """
        known = self._workers[worker]
        self.note(worker, f"{'refreshes' if forced else 'asks for'} {key}")
        told, stored = known.told.get(key, -math.inf), self._stored.get((key, known.release), -1)
        return Request(worker, key, forced, self._now(), wall, known.up_since, told, stored, patience)

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
        if reading.release != self._workers[request.worker].release:
            self.blame(f"{said} of another release")
        if request.forced and reading.read_at < request.began:
            self.blame(f"{said}, older than the refresh")
        if self._now() > request.began + request.patience + _AT_ONCE and self._could_stand_in(request, wall):
            self.blame(f"{said}, although load {request.stored} could be the fallback since {request.began:.6f}")
        self._judge_mark(said, request, reading, outcome, wall)
        self._judge_age(said, request, reading, outcome)
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
            # Whoever has no more patience with a load is given what a failed one would be replaced by.
            waited = self._now() >= request.began + request.patience
            last = max(stale_until, error_until)
            if fresh_until <= wall:
                right = wall < (last if waited else stale_until)
            else:
                windows = max(policy.stale_for, policy.stale_if_error) if waited else policy.stale_for
                until = max(self._marked_at(reading), default=-math.inf) + windows + _ON_THE_WAY
                # A mark that is pending counts by the worker's own clock, which may have been set.
                right = windows > 0 and (wall < until or self._has_pending_mark(request, reading))
            right = right or (waited and wall < last and request.key in self._workers[request.worker].unsure)
            right = right and wall < self._marked_until(request, reading, is_fallback=waited)
        else:
            right = wall < min(max(stale_until, error_until), self._marked_until(request, reading, is_fallback=True))
        if not right or (outcome.error is not None and outcome.state is not State.STALE):
            self.blame(f"{said} as {outcome.state} ({outcome.error!r}), which is wrong: fresh until {fresh_until:.6f}")

    def _has_pending_mark(self, request: Request, reading: Reading) -> bool:
        """Return whether the worker has marked the key itself, and the store has not confirmed it."""
        marks = [effect for effect in self._marks_of(request.key) if effect.at > reading.read_at]
        return any(
            call.is_soft
            and request.key in call.keys
            and call.returned >= reading.began
            and not any(call.called <= effect.at <= call.returned for effect in marks)
            for call in self._calls_of(request.worker)
        )

    def _marked_until(self, request: Request, reading: Reading, *, is_fallback: bool) -> float:
        """Return until when a worker may serve what a load has made, going by the marks that it has heard of.

        Parameters:
            is_fallback: instead of a load that failed, or lasts too long.
        """
        now, policy = self._now(), self._policies[request.key]
        marks = [effect for effect in self._marks_of(request.key) if effect.at > reading.read_at]
        # It has heard of a mark, or was connected after it; what is given instead of a load is looked at only then.
        learned = self._workers[request.worker].up_since if is_fallback else -math.inf
        if not any(
            effect.heard.get(request.worker, math.inf) < now or effect.since < learned < now for effect in marks
        ):
            return math.inf
        windows = max(policy.stale_for, policy.stale_if_error) if is_fallback else policy.stale_for
        if not windows:
            return -math.inf
        if self._has_pending_mark(request, reading) or not reading.version:
            # A pending mark counts before the store has it, by the worker's own clock. Or the store does not have the value.
            return math.inf
        # Of a tag only the last mark is known.
        last = max(effect.version for effect in marks)
        return reading.created + max(0, last - reading.version) / 1e6 + windows

    def _judge_age(self, said: str, request: Request, reading: Reading, outcome: Outcome[int]) -> None:
        now, worker = self._now(), self._workers[request.worker]
        loads = sum(
            (other.worker, other.key) == (request.worker, request.key) and request.began <= other.loaded <= now
            for other in self.readings
        )
        if loads >= _LOADS:
            return
        # Whoever waits for a load is given what it has read, also if that is marked meanwhile. Who asks after the mark
        # is given it only if it may be served stale.
        may_be_stale = self._policies[request.key].stale_for > 0
        is_stale = outcome.state is State.STALE or (outcome.state is State.MISSING and may_be_stale)
        for call in self._calls:
            mine = call.worker == request.worker and request.key in call.keys
            if call.is_soft and (is_stale or (outcome.state is State.MISSING and request.began < call.returned)):
                continue
            if mine and call.returned < now and reading.read_at < call.called:
                self.blame(f"{said}, older than its own invalidation of {call.called:.6f}")
        # What is given instead of a load is looked at when it fails, or lasts too long.
        in_place = outcome.error is not None or (
            outcome.state is State.STALE and now >= request.began + request.patience
        )
        connected = self._connected(request) or (in_place and worker.up_since < now)
        for effect in self._effects:
            if request.key not in effect.keys or reading.read_at >= effect.at:
                continue
            heard = effect.heard.get(request.worker, math.inf)
            if effect.is_soft and (is_stale or (outcome.state is State.MISSING and request.began < heard)):
                continue
            if heard < now:
                self.blame(f"{said}, older than an invalidation of {effect.at:.6f} that it had heard of")
            elif connected and worker.up_since > effect.since:
                self.blame(f"{said}, older than the invalidation of {effect.at:.6f} before its link came up")
            elif connected and request.began > max(effect.since, worker.paused_until) + _SILENT + _ON_THE_WAY:
                self.blame(f"{said}, older than the invalidation of {effect.at:.6f} that it should know of by now")

    def _judge_order(self, said: str, request: Request, reading: Reading, outcome: Outcome[int]) -> None:
        """While the link is as it was, a worker goes back to nothing older than it has answered or heard of."""
        now, worker = self._now(), self._workers[request.worker]
        best = worker.best.get(request.key)
        # In place of a load that fails, or lasts too long, there may be nothing but the store's.
        if outcome.state is not State.MISSING and outcome.error is None and now < request.began + request.patience:
            if best is not None and best.at < request.began and reading.read_at < best.read_at:
                self.blame(f"{said}, older than what it has served at {best.at:.6f}")
            if best is None or reading.read_at >= best.read_at:
                worker.best[request.key] = Answer(now, reading.read_at)
        if worker.up_since != request.up_since:
            return
        if self._connected(request) and outcome.state is State.FRESH and reading.read_at < request.told:
            self.blame(f"{said} as fresh, older than a commit that it had heard of")
        before = worker.said.get(request.key)
        if before is not None and before.at < request.began and reading.read_at < before.read_at:
            self.blame(f"{said}, older than its answer of {before.at:.6f}")
        if outcome.state is not State.MISSING and (before is None or reading.read_at >= before.read_at):
            # A request that waited may get an older answer. It does not replace the newer one here.
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
        self._judge_raised(said, error)
        if isinstance(error, Failed):
            reading = error.reading
            is_own = (reading.worker, reading.key) == (request.worker, request.key)
            if not is_own or not self._waited(request, reading.ended):
                self.blame(f"{said}, which is another's")
        elif not isinstance(error, LoadTimeout) or not self._hung_for(request):
            self.blame(said)
        if not request.forced and self._could_stand_in(request, wall):
            self.blame(f"{said}, although load {request.stored} could be the fallback")

    def _could_stand_in(self, request: Request, wall: float) -> bool:
        """Whether what is stored has been there since the request came, and may be served if a load fails."""
        stored, known = request.stored, self._workers[request.worker]
        if stored < 0 or self._stored.get((request.key, known.release)) != stored:
            return False
        # It does not go back to what is older than what it has loaded without the store.
        newer = (
            other.read_at > self.readings[stored].read_at and other.loaded < math.inf for other in self._own(request)
        )
        if request.key in known.unsure and any(newer):
            return False
        policy = self._policies[request.key]
        until = self.readings[stored].created + policy.fresh_for + max(policy.stale_for, policy.stale_if_error)
        # What was invalidated over a link that then broke may have to be told once more, and is nothing till then.
        told_again = max(known.up_since, known.paused_until) + _LOST_NEWS + _ON_THE_WAY
        pending = request.began < told_again and any(
            request.key in call.keys and call.called < known.up_since for call in self._calls_of(request.worker)
        )
        # What was marked may be served from then on for as long, and not at all if that is not long.
        windows = max(policy.stale_for, policy.stale_if_error)
        for mark in self._marked_at(self.readings[stored]):
            until = min(until, mark + windows - _ON_THE_WAY) if windows > 0 else -math.inf
        return self._connected(request) and not pending and wall < until

    def _calls_of(self, worker: str) -> list[Invalidation]:
        """Return the invalidations that a worker was asked for."""
        return [call for call in self._calls if call.worker == worker]

    def _own(self, request: Request) -> list[Reading]:
        """Return the loads of the key by the worker that is asked."""
        return [other for other in self.readings if (other.worker, other.key) == (request.worker, request.key)]

    def _judge_raised(self, said: str, error: BaseException) -> None:
        """Each caller has an exception of its own, with the frames of the load and of nobody else."""
        if any(error is other for other in self._raised):
            self.blame(f"{said}, as another caller did: the same object")
        if len(list(traceback.walk_tb(error.__traceback__))) > _MOST_FRAMES:
            self.blame(f"{said}, with the frames of others")
        self._raised.append(error)

    def _hung_for(self, request: Request) -> bool:
        """Whether the request may have waited for a load that hung."""
        return any(
            reading.hangs
            and (reading.worker, reading.key) == (request.worker, request.key)
            and self._waited(request, reading.ended)
            for reading in self.readings
        )

    def hung(self, request: Request) -> None:
        """A request had no end."""
        if not self._workers[request.worker].gone:
            self.blame(f"{request.worker}: {request.key} asked at {request.began:.6f}, never answered")
