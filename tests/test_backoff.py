"""How long keys are left alone, and why."""

import pytest

from swr.engine.backoff import Backoffs, backoff_after


@pytest.mark.parametrize(("failures", "seconds"), [(0, 1), (1, 2), (2, 4), (5, 32), (6, 60), (10, 60), (10_000, 60)])
def test_backoff_doubles_up_to_a_minute(failures, seconds):
    assert backoff_after(failures, lambda low, high: 1.0) == seconds


def test_backoff_varies_by_a_quarter():
    asked = []
    assert backoff_after(0, lambda low, high: asked.append((low, high)) or low) == 0.75
    assert asked == [(0.75, 1.25)]


def test_key_backs_off_with_its_error_until_time_has_passed():
    now = 100.0
    backoffs, error = Backoffs(lambda: now), ValueError("down")
    assert (backoffs.left("k"), backoffs.error("k"), backoffs.last_error("k")) == (0.0, None, None)
    backoffs.begin("k", 5, error)
    # Each gets an exception of its own.
    assert (backoffs.left("k"), repr(backoffs.error("k")), repr(backoffs.last_error("k"))) == (5.0, *[repr(error)] * 2)
    now = 105.0
    assert (backoffs.left("k"), backoffs.error("k"), repr(backoffs.last_error("k"))) == (0.0, None, repr(error))


def test_backoff_without_failure_has_no_error():
    backoffs = Backoffs(lambda: 0.0)
    backoffs.begin("k", 5, None)
    assert (backoffs.left("k"), backoffs.error("k"), backoffs.last_error("k")) == (5.0, None, None)


@pytest.mark.parametrize("end", [lambda backoffs: backoffs.end("k"), Backoffs.clear])
def test_ended_backoff_leaves_no_time_and_no_error(end):
    backoffs = Backoffs(lambda: 0.0)
    backoffs.begin("k", 5, ValueError("down"))
    end(backoffs)
    assert (backoffs.left("k"), backoffs.last_error("k")) == (0.0, None)


def test_origins_omit_a_backoff_that_ends_while_they_are_listed():
    backoffs = Backoffs(lambda: 0.0)

    class EndsTheNext(str):
        """A key during whose lookup the other backoff ends."""

        ends = False

        def __hash__(self):
            if self.ends:
                backoffs.end("next")
            return super().__hash__()

    first = EndsTheNext("first")
    for key in (first, "next"):
        backoffs.begin(key, 10.0, ValueError(), "prices")
    assert backoffs.origins() == ["prices", "prices"]
    first.ends = True
    assert backoffs.origins() == ["prices"]
