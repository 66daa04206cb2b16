"""At DEBUG level the logger `swr` explains each decision of the engine, and a fresh hit writes nothing."""

import logging

import pytest

from swr import Policy
from swr.engine.endings import _description as describe_result
from swr.engine.next_step import AskAgain, BackOff, GiveUp, LoadNow, Take, Wait
from swr.engine.refresh_path import _description as describe_step
from swr.engine.results import HeldElsewhere, LocalOnly, NoValue, Stored, Unstored
from swr.errors import StoreUnavailable
from swr.stores.base import Held, Lease
from tests.fleet import fleet, settle
from tests.test_next_step import FRESH
from tests.web import cache_on

POLICY = Policy(fresh_for=60, stale_for=600)

pytestmark = pytest.mark.anyio


def lines(caplog) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
    caplog.clear()
    return found


async def load() -> str:
    return "value"


async def fail() -> str:
    raise ValueError("down")


async def test_miss_logs_its_lease_its_load_result_and_the_read(cache, caplog):
    caplog.set_level(logging.DEBUG, "swr")
    await cache.get_or_load("k", load, POLICY)
    lease, result, read = lines(caplog)
    assert lease.startswith("lease of 'k': taken; loading version ")
    assert result.startswith("load of 'k': stored as version ")
    assert read == "read of 'k': missing, from a load"


async def test_fresh_hit_logs_nothing(cache, caplog):
    await cache.get_or_load("k", load, POLICY)
    caplog.set_level(logging.DEBUG, "swr")
    await cache.get_or_load("k", load, POLICY)
    assert lines(caplog) == []


async def test_stale_hit_logs_its_layer_and_the_refresh(cache, clock, caplog):
    await cache.get_or_load("k", load, POLICY)
    clock.advance(61)
    caplog.set_level(logging.DEBUG, "swr")
    await cache.get_or_load("k", load, POLICY)
    await settle()
    read, lease, result = lines(caplog)
    assert read == "read of 'k': stale, from the local cache"
    assert lease.startswith("lease of 'k': taken")
    assert result.startswith("load of 'k': stored")


async def test_batch_logs_each_item_that_is_no_fresh_hit(cache, clock, caplog):
    fails = []

    @cache.cached_many("k:{item}", fresh_for=60, stale_for=60, stale_if_error=600, absent_for=60)
    async def load_many(items: list[int]) -> dict[int, int]:
        if fails:
            raise ValueError("down")
        return {item: item for item in items if item < 9}

    await load_many([1, 2])
    clock.advance(40)
    caplog.set_level(logging.DEBUG, "swr")
    await load_many([1, 2, 3, 9])
    assert reads(caplog) == ["read of 'k:3': missing, from a load"]
    await load_many([1, 2, 3, 9])
    assert reads(caplog) == []
    clock.advance(40)
    await load_many([1, 3])
    await settle()
    assert reads(caplog) == ["read of 'k:1': stale, from the local cache"]
    clock.advance(200)
    fails.append(True)
    await load_many([2])
    first, second = reads(caplog)
    assert first == "read of 'k:2': stale, from the stored entry"
    assert second.startswith("read of 'k:2': the load failed (ValueError: down); backing off for ")


async def test_batch_logs_the_store_as_the_layer_of_an_item_found_there(clock, caplog):
    async with fleet(2, clock) as processes:
        one, other = (cache_on(process, clock) for process in processes)
        for cache in (one, other):

            @cache.cached_many("k:{item}", fresh_for=60)
            async def load_many(items: list[int]) -> dict[int, int]:
                return {item: item for item in items}

            with caplog.at_level(logging.DEBUG, "swr"):
                await load_many([1])
        assert reads(caplog) == ["read of 'k:1': missing, from a load", "read of 'k:1': fresh, from the store"]


def reads(caplog) -> list[str]:
    return [line for line in lines(caplog) if line.startswith("read of")]


async def test_failed_load_logs_the_error_and_the_backoff(cache, clock, caplog):
    policy = Policy(fresh_for=60, stale_if_error=600)
    await cache.get_or_load("k", load, policy)
    clock.advance(61)
    caplog.set_level(logging.DEBUG, "swr")
    await cache.get_or_load("k", fail, policy)
    _, result, read, why = lines(caplog)
    assert result == "load of 'k': failed (ValueError: down)"
    assert read == "read of 'k': stale, from the stored entry"
    assert why.startswith("read of 'k': the load failed (ValueError: down); backing off for ")


async def test_nothing_is_logged_at_info_level(cache, caplog):
    caplog.set_level(logging.INFO, "swr")
    await cache.get_or_load("k", load, POLICY)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (Stored(FRESH), "stored as version 5"),
        (LocalOnly(FRESH), "kept in this process alone, version 5"),
        (Unstored(FRESH), "not stored, because store_if says so"),
        (NoValue(), "there is no value to store"),
        (HeldElsewhere(), "left to the process that holds the lease"),
    ],
)
def test_each_load_result_has_its_own_description(result, text):
    assert describe_result(result) == text


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (LoadNow(Lease("k", "token", 7, 3)), "taken; loading version 7"),
        (LoadNow(None), "the store gave none; loading without it"),
        (Take(FRESH), "not needed; another load stored version 5"),
        (AskAgain(), "asking again"),
        (BackOff(Held(2.0, 9, 3)), "refused for 2.000 s, because 3 loads in a row failed; backing off"),
        (BackOff(Held(2.0, 9)), "refused for 2.000 s, because another load holds it; backing off"),
        (Wait(Held(2.0, 9)), "held by another load for 2.000 s at most; waiting"),
        (GiveUp(StoreUnavailable("refused")), "the store gave none (refused); giving up, because no reader waits"),
    ],
)
def test_each_step_after_a_lease_request_has_its_own_description(step, text):
    assert describe_step(step) == text
