"""The decision as a table: just before, at and just after each deadline."""

import pytest

from swr.core import decision
from swr.core.decision import FALLBACK, FRESH, MISSING, STALE, Decision, Revalidate, decide
from swr.entry import stamp
from swr.policy import Limits, Policy
from tests.snippets import ROOT

BEGAN = 1000.0
TICK = 0.001
SWR = Policy(60, 600, 3600)
NO_GRACE = Policy(60)
ERROR_ONLY = Policy(60, 0, 3600)
SHORT_ERROR = Policy(60, 600, 30)


@pytest.mark.parametrize(
    ("policy", "age", "expected"),
    [
        (SWR, -5, FRESH),
        (SWR, 0, FRESH),
        (SWR, 60 - TICK, FRESH),
        (SWR, 60, STALE),
        (SWR, 60 + TICK, STALE),
        (SWR, 660 - TICK, STALE),
        (SWR, 660, FALLBACK),
        (SWR, 660 + TICK, FALLBACK),
        (SWR, 3660 - TICK, FALLBACK),
        (SWR, 3660, MISSING),
        (SWR, 3660 + TICK, MISSING),
        (NO_GRACE, 60 - TICK, FRESH),
        (NO_GRACE, 60, MISSING),
        (ERROR_ONLY, 60, FALLBACK),
        (ERROR_ONLY, 3660, MISSING),
        (SHORT_ERROR, 90, STALE),
        (SHORT_ERROR, 660 - TICK, STALE),
        (SHORT_ERROR, 660, MISSING),
        (Policy(0), 0, MISSING),
    ],
)
def test_decide_returns_the_decision_for_policy_and_age(policy, age, expected):
    assert decide(stamp(1, policy, BEGAN), BEGAN + age) == expected


_WAITS = {Revalidate.NO: "no", Revalidate.BACKGROUND: "in the background", Revalidate.WAIT: "the reader waits"}
_YES = {True: "yes", False: "no"}


def drawn() -> list[list[str]]:
    """Return the rows of the table as `decide` has them, under its heading."""
    entry = stamp(1, SWR, BEGAN)
    # Each deadline with the time before which its row holds; each row holds from the deadline before.
    deadlines = [("fresh_until", BEGAN + 60), ("stale_until", BEGAN + 660), ("error_until", BEGAN + 3660)]
    assert [getattr(entry, name) for name, _ in deadlines] == [time for _, time in deadlines]

    def row(when: str, *decisions: Decision) -> list[str]:
        assert len(set(decisions)) == 1, when
        state, serve, revalidate, fallback = decisions[0]
        # Without a load there is nothing to fall back from.
        told = "" if revalidate is Revalidate.NO else _YES[fallback]
        return [when, state.value, _YES[serve], _WAITS[revalidate], told]

    rows = [["when", "state", "serve", "revalidate", "fallback"]]
    rows.append(row("no entry, or too old", decide(None, BEGAN), decide(entry, BEGAN + 3660), decide(entry, 1e12)))
    begin = BEGAN
    for name, end in deadlines:
        rows.append(row(f"`now < {name}`", decide(entry, begin), decide(entry, end - TICK)))
        begin = end
    return rows


def test_table_in_the_documentation_matches_decide():
    """docs/design.md shows the docstring of the module, as a page of the reference does."""
    assert "::: swr.core.decision" in (ROOT / "docs" / "design.md").read_text()
    lines = [line for line in decision.__doc__.splitlines() if line.startswith("|") and "---" not in line]
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines] == drawn()


def test_decide_without_entry_returns_missing():
    assert decide(None, BEGAN) == MISSING


def test_stored_none_counts_as_fresh_value():
    assert decide(stamp(None, SWR, BEGAN), BEGAN) == FRESH


@pytest.mark.parametrize(
    ("limits", "age", "expected"),
    [
        (Limits(), 0, FRESH),
        (Limits(), 60, STALE),
        (Limits(max_age=30), 30 - TICK, FRESH),
        (Limits(max_age=30), 30, FALLBACK),
        (Limits(max_age=100), 60, STALE),
        # At the second itself it still is what was asked for (RFC 9111 5.2.1).
        (Limits(min_fresh=10), 50, FRESH),
        (Limits(min_fresh=10), 50 + TICK, FALLBACK),
        (Limits(min_fresh=10), 61, FALLBACK),
        (Limits(no_cache=True), 0, FALLBACK),
        (Limits(no_cache=True), 3660, MISSING),
        (Limits(max_stale=5), 60, STALE),
        (Limits(max_stale=5), 65, STALE),
        (Limits(max_stale=5), 65 + TICK, FALLBACK),
        (Limits(max_stale=5000), 5000, STALE),
        (Limits(max_age=30, max_stale=5), 34, STALE),
        (Limits(max_age=30, max_stale=5), 35 + TICK, FALLBACK),
    ],
)
def test_limits_of_request_narrow_or_widen_the_decision(limits, age, expected):
    assert decide(stamp(1, SWR, BEGAN), BEGAN + age, limits) == expected


def test_deadlines_of_entry_count_from_the_start_of_its_load():
    entry = stamp("v", SWR, BEGAN, version=7, tag_version=3)
    assert (entry.fresh_until, entry.stale_until, entry.error_until) == (1060, 1660, 4660)
    assert (entry.keep_until, entry.servable_until) == (4660, 4660)
    assert (entry.version, entry.tag_version, entry.created_at) == (7, 3, BEGAN)
