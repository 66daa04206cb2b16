"""What a flight does with the store's answer to its lease request, row by row."""

import pytest

from swr import Policy, StoreUnavailable
from swr.engine.next_step import AskAgain, Asker, BackOff, GiveUp, LoadNow, Take, Wait, next_step
from swr.entry import absence, stamp
from swr.stores.base import Held, Lease

NOW = 1_000.0
LEASE = Lease("k", "token", 7, 3)
FRESH = stamp("value", Policy(60, 600), NOW, 5, 0)
STALE = stamp("value", Policy(60, 600), NOW - 100, 5, 0)
ABSENT = absence(FRESH)
HELD = Held(2.0, 9)
FAILING = Held(2.0, 9, failures=3)
DOWN = StoreUnavailable("refused")


@pytest.mark.parametrize(
    ("answer", "asker", "step"),
    [
        (LEASE, Asker(), LoadNow(LEASE)),
        (LEASE, Asker(is_unasked=True), LoadNow(LEASE)),
        (ABSENT, Asker(), AskAgain(5)),
        (ABSENT, Asker(has_waited=True, has_readers=True), AskAgain(5)),
        (ABSENT, Asker(forced=True), AskAgain(5)),
        (FRESH, Asker(has_readers=True), Take(FRESH)),
        (STALE, Asker(has_readers=True), AskAgain(5)),
        (STALE, Asker(has_readers=True, has_waited=True), Take(STALE)),
        (STALE, Asker(forced=True), Take(STALE)),
        (STALE, Asker(is_unasked=True), Take(STALE)),
        (FAILING, Asker(has_readers=True), AskAgain()),
        (FAILING, Asker(has_readers=True, can_fall_back=True), BackOff(FAILING)),
        (FAILING, Asker(has_readers=True, can_fall_back=True, is_notified=True), AskAgain(held=FAILING)),
        (FAILING, Asker(can_fall_back=True), BackOff(FAILING)),
        (FAILING, Asker(), BackOff(FAILING)),
        (FAILING, Asker(is_unasked=True), BackOff(FAILING)),
        (FAILING, Asker(is_unasked=True, is_notified=True), AskAgain(held=FAILING)),
        (HELD, Asker(has_readers=True), Wait(HELD)),
        (HELD, Asker(has_readers=True, can_fall_back=True), Wait(HELD)),
        (HELD, Asker(has_readers=True, is_notified=True), Wait(HELD)),
        (HELD, Asker(forced=True), Wait(HELD)),
        (HELD, Asker(), BackOff(HELD)),
        (HELD, Asker(is_notified=True), AskAgain(held=HELD)),
        (HELD, Asker(is_unasked=True), BackOff(HELD)),
        (DOWN, Asker(has_readers=True), LoadNow(None)),
        (DOWN, Asker(), LoadNow(None)),
        (DOWN, Asker(forced=True), LoadNow(None)),
        (DOWN, Asker(is_unasked=True), GiveUp(DOWN)),
    ],
)
def test_answer_to_lease_request_determines_the_next_step(answer, asker, step):
    assert next_step(answer, asker, NOW) == step
