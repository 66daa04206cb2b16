"""What happens seldom, at the edges of two events: each leaves everything as it is, or does what it always does."""

import asyncio
from types import SimpleNamespace

import anyio
import pytest

from swr import Cache, Policy, State, StoreUnavailable
from swr.engine.engine import Engine
from swr.engine.flights import Finished, Flight, WaitingForLease
from swr.engine.results import NoValue
from swr.entry import stamp
from swr.middleware.handler import RequestHandler
from swr.middleware.retrying import blames_client
from swr.proxy.slots import Slots
from swr.stores.base import Kind
from swr.stores.local import LocalCache
from swr.stores.memory import MemoryStore
from swr.stores.pending import Pending
from swr.stores.redis.reasons import reason_of
from swr.stores.redis.server_link import ServerLink
from swr.stores.redis.shared_tag_versions import SharedTagVersions
from swr.stores.tag_versions import TagVersions
from swr.testing import FakeClock
from tests.fleet import Job, fleet

pytestmark = pytest.mark.anyio


@pytest.fixture
async def engine():
    engine = Engine(MemoryStore())
    await engine.ready()
    yield engine
    await engine.aclose()


def test_flight_that_waits_for_a_lease_is_under_way_since_its_first_refusal():
    flight = Flight(None, "k", Job(), None, 0)
    assert flight.under_way_since(7.0) == 7.0
    flight.state = WaitingForLease(5.0)
    assert flight.under_way_since(7.0) == 5.0


async def test_lifting_the_limit_of_an_ended_load_starts_no_lease_renewal(engine):
    engine._renewals.lift_limit(Flight(engine, "k", Job(), None, 0))
    assert not engine._renewals._watched


async def test_giving_up_an_ended_load_sets_no_error(engine):
    class Kept(Job):
        async def run(self, load):
            self.load = load
            await super().run(load)

    job = Kept()
    assert (await engine.fetch("k", job)).value == 1
    await job.load._give_up()
    assert job.load.flight.error is None


async def test_closing_leaves_finished_flights_as_they_are(engine):
    flight = Flight(engine, "k", Job(), None, 0)
    flight.state = Finished(NoValue())
    engine.flights.add(flight)
    await engine._path.leave_behind()
    assert flight.state == Finished(NoValue())


async def test_thread_is_freed_when_its_loader_raises():
    async with Cache() as cache:

        @cache.cached("k:{n}", fresh_for=60)
        def load(n: int) -> int:
            raise ValueError(n)

        for n in range(100):
            with pytest.raises(ValueError, match=str(n)):
                await load(n)
        assert not cache.engine.runtime.threads.taken


async def test_batch_reader_gets_the_newer_value_if_its_load_is_invalidated(monkeypatch):
    async with Cache() as cache:
        gate, begun, calls = anyio.Event(), anyio.Event(), []

        @cache.cached_many("top:{n}", fresh_for=60, tags=("t",))
        async def top(numbers: "list[int]") -> "dict[int, Later]":  # noqa: F821  # the name is missing on purpose
            calls.append(numbers)
            if len(calls) == 1:
                begun.set()
                await gate.wait()
            return dict.fromkeys(numbers, len(calls))

        # A type that is defined further down than the loader.
        monkeypatch.setitem(globals(), "Later", int)
        found = []

        async def before():
            found.append(await top([1]))

        async with anyio.create_task_group() as group:
            group.start_soon(before)
            await begun.wait()
            await cache.invalidate_tag("t")
            assert await top([1]) == {1: 2}
            gate.set()
        assert found == [{1: 2}]
        assert len(calls) == 2


def test_failure_of_a_load_without_the_app_is_not_blamed_on_the_client():
    assert not blames_client(None, SimpleNamespace(job=Job()), ValueError())


async def test_entry_dropped_while_its_size_is_measured_stays_dropped():
    local = LocalCache(2**20, 10)
    async with fleet(1, FakeClock()) as (process,):
        entry = (await process.engine.fetch("k", Job()), process.store.peek("k"))[1]
    local.put("k", entry)
    slot = local.slots["k"]
    local.drop("k")
    await local._weigh(slot)
    assert "k" not in local.slots


async def test_subscriber_skips_unsubscribe_replies_but_fails_on_a_new_subscription():
    words = [
        None,
        {"type": "unsubscribe", "channel": b"x", "data": 1},
        {"type": "subscribe", "channel": b"x", "data": 1},
    ]

    async def get_message(timeout):
        return words.pop(0)

    with pytest.raises(StoreUnavailable, match="made again"):
        await ServerLink._receive_messages(SimpleNamespace(), SimpleNamespace(get_message=get_message))
    assert not words


async def test_learning_tag_versions_is_skipped_if_a_newer_run_has_succeeded(anyio_backend_name):
    if anyio_backend_name == "trio":
        pytest.skip("Redis wants asyncio")
    lessons = SimpleNamespace(_begun=0, _succeeded=1, _learning=asyncio.Lock())
    await SharedTagVersions.learn(lessons, None)
    assert (lessons._begun, lessons._succeeded) == (0, 1)


def test_known_minimum_tag_version_is_announced_only_once():
    told = []
    shared = SimpleNamespace(known=TagVersions(), _subscriber=told.append)
    for _ in range(2):
        SharedTagVersions._learn_one(shared, b"!", 5)
    assert [notification.kind for notification in told] == [Kind.TAG_VERSION]


async def test_fallback_is_none_after_its_tag_is_invalidated(engine):
    entry = stamp(1, Policy(60, tags=("t",)), engine.clock(), 1, 1)
    flight = Flight(engine, "k", Job(), entry, 0)
    assert engine.fallback(flight) is entry
    engine.store.tag_versions.raise_to("t", 2)
    assert engine.fallback(flight) is None


@pytest.mark.parametrize("is_joined", [True, False])
async def test_fallback_is_stale_if_its_key_is_marked_stale_during_the_flight(engine, is_joined):
    entry = stamp(1, Policy(60, 60), engine.clock(), 1, 1)
    flight = Flight(engine, "k", Job(), entry, 0)
    engine.flights.add(flight)
    if not is_joined:
        engine.flights.add(Flight(engine, "k", Job(), None, 0))
    engine.flights.mark_stale("k", 1)
    assert engine.given(flight.entry, flight)[1] is State.FRESH
    engine.flights.mark_stale("k", 2)
    assert engine.given(flight.entry, flight)[1] is State.STALE
    engine.flights.clear()


async def test_answering_with_a_fallback_returns_none_if_no_fallback_is_usable():
    handler = SimpleNamespace(_request=None, _send=None, _usable_fallback=lambda flight: None)
    flight = Flight(None, "k", Job(), None, 0)
    assert await RequestHandler._answer_with(handler, flight, b"stale", is_own=False) is None


async def test_proxy_search_for_a_free_slot_is_skipped_right_after_another_search():
    class Behind:
        has_given_way = is_given_up = False

        def behind(self, now):
            return 100.0

        def give_way(self):
            self.has_given_way = True

        def unanswered(self, now):
            return 0.0

    slots, first, second = Slots(1, 1.0), Behind(), Behind()
    slots._taken.add(first)
    slots._queue[object()] = anyio.Event()
    slots._make_room()
    slots._taken.add(second)
    slots._queue[object()] = anyio.Event()
    # Another one has only just searched.
    slots._make_room()
    assert (first.has_given_way, second.has_given_way) == (True, False)


def test_connection_error_without_a_reason_gets_that_of_the_os_error():
    error = ConnectionError("Error 111 connecting to 127.0.0.1:1.")
    error.__cause__ = OSError(111, "Connection refused")
    assert str(reason_of(error)) == "Error 111 connecting to 127.0.0.1:1: Connection refused"


def test_too_many_pending_tag_invalidations_outdate_everything(monkeypatch):
    monkeypatch.setattr("swr.stores.pending._MOST", 2)
    pending, entry = Pending(SimpleNamespace()), stamp(1, Policy(60), 0.0)
    for tag in ("a", "b"):
        pending.add_tag(tag)
    assert not pending.outdates("k", entry)
    pending.add_tag("c")
    assert pending.outdates("k", entry)
