"""What header fields mean to a shared cache: RFC 9111, 5861, 9213 and 9211, without I/O."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swr import Policy, State
from swr.http.caching import (
    HONOURED,
    REQUEST_DIRECTIVES,
    SharingRules,
    Terms,
    cache_status,
    control,
    judge,
    limits,
    stored_headers,
)
from swr.http.fields import parse_directives, vary_of
from swr.http.request_fields import normalised
from swr.http.statuses import NEVER_STORED, REFUSALS
from swr.policy import NO_LIMITS, Limits
from tests.test_fields import FIELD, hostile

# Mon, 01 Jan 2024 00:00:00 GMT
NOW = 1704067200.0
DATE = (b"date", b"Mon, 01 Jan 2024 00:00:00 GMT")
ETAG = (b"etag", b'"a"')
OLD = (b"last-modified", b"Sun, 31 Dec 2023 22:20:00 GMT")
MODIFIED = [OLD, DATE]
# What represents lost origins is tested by itself.
BARE = SharingRules(heuristic=0.1, unreachable_for=0)
LOST = 86400
RULE = Terms(Policy(60, 600, 3600, ("ruled",)))


def verdict(
    cache_control=None, *more, status=200, terms=None, sharing=BARE, authorized=False, began=NOW, tags=("url",)
):
    headers = list(more)
    if cache_control is not None:
        headers.append((b"Cache-Control", cache_control))
    return judge(status, headers, terms, sharing, began=began, authorized=authorized, tags=tags)


def windows(found):
    policy = found.policy
    return None if policy is None else (policy.fresh_for, policy.stale_for, policy.stale_if_error)


# -- may it be stored ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("override", [False, True])
@pytest.mark.parametrize(
    ("cache_control", "more", "status", "reason"),
    [
        (b"max-age=60", [], 100, "status 100"),
        (b"max-age=60", [], 199, "status 199"),
        (b"max-age=60", [ETAG], 304, "status 304"),
        (b"no-store", [], 200, "no-store"),
        (b"No-Store, max-age=60", [], 200, "no-store"),
        (b"no-store=x, max-age=60", [], 200, "no-store"),
        (b"private, max-age=60", [], 200, "private"),
        (b'private="", max-age=60', [], 200, "private"),
        (b'private=" , ", max-age=60', [], 200, "private"),
        (b"max-age=60", [(b"set-cookie", b"a=b")], 200, "set-cookie"),
        (b"public, max-age=60", [(b"Set-Cookie", b"a=b")], 200, "set-cookie"),
        (b'private="x", max-age=60', [(b"set-cookie", b"a=b")], 200, "set-cookie"),
        (b"max-age=60", [(b"vary", b"*")], 200, "vary *"),
        (b"max-age=60", [(b"vary", b"accept , *")], 200, "vary *"),
        (b"max-age=60", [(b"vary", b"accept"), (b"vary", b"*")], 200, "vary *"),
        (b"max-age=60", [(b"content-type", b"Text/Event-Stream; charset=utf-8")], 200, "event-stream"),
        (b"max-age=60, must-understand", [], 299, "must-understand"),
        (b"max-age=60, must-understand", [], 599, "must-understand"),
    ],
)
def test_response_that_forbids_storing_is_not_stored_even_under_a_rule(cache_control, more, status, reason, override):
    """Promise 9, whatever a rule says; RFC 9111 3, 4.1, 5.2.2; CVE-2026-6907, CVE-2026-8404."""
    found = verdict(cache_control, *more, status=status, terms=RULE._replace(override=override))
    assert (found.policy, found.reason) == (None, reason)


@pytest.mark.parametrize(
    "status", [200, 201, 203, 204, 299, 300, 301, 302, 307, 308, 400, 404, 410, 422, 499, 500, 503]
)
def test_explicit_lifetime_suffices_to_store_a_status_that_is_no_refusal(status):
    """RFC 9111 3."""
    found = verdict(b"max-age=60", status=status)
    assert (windows(found), found.reason) == ((60, 0, 0), "")


@pytest.mark.parametrize("status", sorted(REFUSALS))
def test_refusal_is_stored_only_with_public_or_s_maxage(status):
    """A refusal is about one client, and RFC 6585 forbids caches to store some."""
    for text in (b"max-age=60", b"max-age=60, must-revalidate", b"no-cache", b"max-age=0, stale-if-error=60"):
        found = verdict(text, (b"etag", b'"a"'), status=status)
        assert (found.policy, found.reason) == (None, f"status {status}")
    for text in (b"public, max-age=60", b"s-maxage=60"):
        assert (verdict(text, status=status).policy is None) == (status in NEVER_STORED)


@pytest.mark.parametrize(
    ("cache_control", "status", "stored"),
    [
        (b"must-understand, no-store, max-age=60", 200, True),
        (b"must-understand, no-store, max-age=60", 404, True),
        (b"must-understand, no-store, max-age=60", 503, True),
        (b"must-understand, no-store, max-age=60", 418, False),
        (b"must-understand, max-age=60", 200, True),
        (b"must-understand, max-age=60", 418, False),
        (b"no-store, max-age=60", 200, False),
        (b"max-age=60", 418, True),
        (b"must-understand, no-store, private, max-age=60", 200, False),
    ],
)
def test_must_understand_overrides_no_store_only_for_known_statuses(cache_control, status, stored):
    """RFC 9111 5.2.2.3: it overrides no-store for a status that swr knows, and forbids storing another."""
    assert (verdict(cache_control, status=status).policy is not None) is stored


@pytest.mark.parametrize(
    ("cache_control", "hidden"),
    [
        (b'private="X-User", max-age=60', {b"x-user"}),
        (b'private=" X-User ,,y", max-age=60', {b"x-user", b"y"}),
        (b"private=x-user, max-age=60", {b"x-user"}),
        (b'no-cache="x-user", max-age=60', {b"x-user"}),
        (b'private="x", no-cache="y", max-age=60', {b"x", b"y"}),
        (b"max-age=60", set()),
    ],
)
def test_fields_named_by_private_or_no_cache_are_hidden_and_the_rest_is_stored(cache_control, hidden):
    """RFC 9111 5.2.2.4, 5.2.2.7: with field names, private and no-cache are about these fields alone."""
    found = verdict(cache_control)
    assert (windows(found), found.hidden) == ((60, 0, 0), hidden)
    assert not found.validate
    assert not found.strict


def test_set_cookie_named_by_private_is_hidden_and_the_rest_is_stored():
    """RFC 9111 5.2.2.7, and the note on Set-Cookie in 7.3."""
    found = verdict(b'private="Set-Cookie", max-age=60', (b"set-cookie", b"a=b"))
    assert (windows(found), found.hidden) == ((60, 0, 0), {b"set-cookie"})


def test_set_cookie_is_stored_if_cookies_are_not_private():
    """RFC 9111 7.3: Set-Cookie does not inhibit caching; an operator may say so."""
    found = verdict(b"max-age=60", (b"set-cookie", b"a=b"), sharing=BARE._replace(cookies_private=False))
    assert windows(found) == (60, 0, 0)


@pytest.mark.parametrize(
    ("cache_control", "shared"),
    [
        (b"max-age=60", False),
        (b"max-age=60, proxy-revalidate", False),
        (b"public, max-age=60", True),
        (b"s-maxage=60", True),
        (b"max-age=60, must-revalidate", True),
    ],
)
def test_response_to_credentials_is_stored_only_if_a_directive_shares_it(cache_control, shared):
    """RFC 9111 3.5: only what public, s-maxage or must-revalidate allow; CVE-2026-35193."""
    found = verdict(cache_control, authorized=True)
    assert (windows(found), found.reason) == (((60, 0, 0), "") if shared else (None, "authorization"))
    assert verdict(cache_control).shared is shared
    assert windows(verdict(cache_control)) == (60, 0, 0)


@pytest.mark.parametrize("override", [False, True])
def test_rule_does_not_store_a_response_to_credentials(override):
    """RFC 9111 3.5."""
    found = verdict(None, terms=RULE._replace(override=override), authorized=True)
    assert (found.policy, found.reason) == (None, "authorization")


# -- for how long -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cache_control", "more", "fresh_for"),
    [
        (b"max-age=60", [], 60),
        (b"max-age=60, s-maxage=10", [], 10),
        (b"max-age=10, s-maxage=60", [], 60),
        (b"max-age=5", [(b"expires", b"Mon, 01 Jan 2024 00:01:00 GMT"), DATE], 5),
        (b"max-age=5", [(b"expires", b"0"), DATE], 5),
        (b"s-maxage=5", [(b"expires", b"Mon, 01 Jan 2024 00:01:00 GMT"), DATE], 5),
        (b"max-age=60, max-age=5", [], 60),
        (b'max-age="60"', [], 60),
        (b"max-age=99999999999999999999", [], 2**31),
        (None, [(b"expires", b"Mon, 01 Jan 2024 00:01:00 GMT"), DATE], 60),
        (b"public", [(b"Expires", b"Mon, 01 Jan 2024 00:01:00 GMT"), DATE], 60),
        (None, [(b"expires", b"Monday, 01-Jan-24 00:01:00 GMT"), DATE], 60),
        (None, [(b"expires", b"Fri, 31 Dec 9999 23:59:59 GMT"), DATE], 2**31),
        # By the response's own clock, where it has one.
        (None, [(b"expires", b"Mon, 01 Jan 2024 01:01:00 GMT"), (b"date", b"Mon, 01 Jan 2024 01:00:00 GMT")], 60),
        (None, [(b"expires", b"Mon, 01 Jan 2024 00:01:00 GMT")], 60),
        (None, [(b"expires", b"Mon, 01 Jan 2024 00:01:00 GMT"), (b"date", b"x")], 60),
        # The same twice is not a contradiction.
        (None, [(b"expires", b"Mon, 01 Jan 2024 00:01:00 GMT")] * 2 + [DATE], 60),
        # Explicit goes before guessed.
        (b"max-age=5", MODIFIED, 5),
        # Malformed, in the past or contradictory: stale, not guessed.
        (b"max-age=0", MODIFIED, 0),
        (b"max-age=x", MODIFIED, 0),
        (b"max-age=-5", MODIFIED, 0),
        (b"max-age=1.5", MODIFIED, 0),
        (b"max-age", MODIFIED, 0),
        (b"s-maxage=x, max-age=60", MODIFIED, 0),
        (b"max-age=x, max-age=60", MODIFIED, 0),
        (b"max-age=x", [*MODIFIED, (b"expires", b"Mon, 01 Jan 2024 00:01:00 GMT")], 0),
        (None, [(b"expires", b"0"), *MODIFIED], 0),
        (None, [(b"expires", b""), *MODIFIED], 0),
        (None, [(b"expires", b"Mon, 01 Jan 2024 00:01:00 UTC"), *MODIFIED], 0),
        (None, [(b"expires", b"Sun, 31 Dec 2023 00:00:00 GMT"), *MODIFIED], 0),
        (None, [(b"expires", b"Mon, 01 Jan 2024 00:00:00 GMT"), *MODIFIED], 0),
        (
            None,
            [
                (b"expires", b"Mon, 01 Jan 2024 00:01:00 GMT"),
                (b"expires", b"Mon, 01 Jan 2024 00:02:00 GMT"),
                *MODIFIED,
            ],
            0,
        ),
        (None, [(b"expires", b"Mon, 01 Jan 2024 00:01:00 GMT"), (b"expires", b"0"), *MODIFIED], 0),
    ],
)
def test_lifetime_comes_from_s_maxage_then_max_age_then_expires(cache_control, more, fresh_for):
    """RFC 9111 4.2.1, 5.3: s-maxage, max-age, Expires less Date; 4.2: what is malformed or differs is stale."""
    found = verdict(cache_control, *more)
    assert found.policy.fresh_for == fresh_for
    assert found.validate is (fresh_for == 0)


@pytest.mark.parametrize(
    ("cache_control", "more"),
    [
        (b"max-age=0", []),
        (b"max-age=x", []),
        (b"max-age=60", [(b"age", b"60")]),
        (b"max-age=60", [(b"age", b"70")]),
        (b"no-cache, max-age=60", []),
        (b"max-age=0, must-revalidate, stale-while-revalidate=60", []),
        (None, [(b"expires", b"0"), DATE]),
        (None, []),
        (b"public", []),
        (b"no-cache", [(b"etag", b"malformed")]),
    ],
)
def test_response_that_is_stale_at_once_without_validator_is_not_stored(cache_control, more):
    found = verdict(cache_control, *more, sharing=SharingRules(heuristic=0.1))
    reason = "no-cache" if b"no-cache" in (cache_control or b"") else "no freshness"
    assert (found.policy, found.reason) == (None, reason)


@pytest.mark.parametrize("validator", [ETAG, (b"etag", b'W/"a"'), OLD])
@pytest.mark.parametrize("cache_control", [b"max-age=0", b"no-cache", b"no-cache, max-age=60", b"no-cache, public"])
def test_response_that_is_stale_at_once_with_a_validator_is_kept_for_revalidation(cache_control, validator):
    """RFC 9111 4.3, 5.2.2.4: swr serves it only after the origin has confirmed it."""
    found = verdict(cache_control, validator, sharing=SharingRules(heuristic=0))
    lost = 0 if b"no-cache" in cache_control else LOST
    assert (windows(found), found.policy.keep_for) == ((0, 0, lost), LOST)
    assert found.validate
    assert found.strict is (b"no-cache" in cache_control)


@pytest.mark.parametrize("override", [False, True])
def test_rule_does_not_override_no_cache(override):
    """RFC 9111 5.2.2.4."""
    terms = RULE._replace(override=override)
    found = verdict(
        b"no-cache, stale-while-revalidate=5, stale-if-error=5", ETAG, terms=terms, sharing=SharingRules(heuristic=0.1)
    )
    assert windows(found) == (0, 0, 0)
    assert found.strict
    assert found.validate
    assert found.policy.tags == ("url", "ruled")
    assert verdict(b"no-cache", terms=terms).policy is None


@pytest.mark.parametrize(
    ("modified", "date", "heuristic", "fresh_for"),
    [
        # 6000 seconds before.
        (b"Sun, 31 Dec 2023 22:20:00 GMT", DATE, 0.1, 600),
        (b"Sun, 31 Dec 2023 22:20:00 GMT", DATE, 0.5, 3000),
        (b"Sun, 31 Dec 2023 22:20:00 GMT", DATE, 1, 6000),
        # A day at most: ten days before, and years before.
        (b"Fri, 22 Dec 2023 00:00:00 GMT", DATE, 0.1, 86400),
        (b"Fri, 22 Dec 2023 00:00:10 GMT", DATE, 0.1, 86399),
        (b"Thu, 01 Jan 2015 00:00:00 GMT", DATE, 0.1, 86400),
        (b"Sunday, 31-Dec-23 22:20:00 GMT", DATE, 0.1, 600),
        # By the response's own clock; without it, from when it came.
        (b"Mon, 01 Jan 2024 00:00:00 GMT", (b"date", b"Mon, 01 Jan 2024 01:40:00 GMT"), 0.1, 600),
        (b"Sun, 31 Dec 2023 22:20:00 GMT", (b"x", b""), 0.1, 600),
        # None: switched off, just changed, no date.
        (b"Sun, 31 Dec 2023 22:20:00 GMT", DATE, 0, None),
        (b"Mon, 01 Jan 2024 00:00:00 GMT", DATE, 0.1, None),
        (b"Sun, 31 Dec 2023 23:59:55 GMT", DATE, 0.1, None),
        (b"yesterday", DATE, 0.1, None),
    ],
)
def test_heuristic_lifetime_is_a_fraction_of_the_time_since_the_last_change(modified, date, heuristic, fresh_for):
    """RFC 9111 4.2.2: a tenth of the time since the last change, here a day at most."""
    found = verdict(None, (b"last-modified", modified), date, sharing=BARE._replace(heuristic=heuristic))
    assert (None if found.policy is None else found.policy.fresh_for) == fresh_for


@pytest.mark.parametrize("status", [200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501])
def test_heuristic_lifetime_applies_to_statuses_cacheable_by_default(status):
    """RFC 9110 15.1."""
    assert windows(verdict(None, *MODIFIED, status=status)) == (600, 0, 0)


@pytest.mark.parametrize("status", [201, 202, 302, 303, 307, 400, 409, 418])
def test_heuristic_lifetime_needs_public_for_other_statuses(status):
    """RFC 9111 4.2.2, RFC 9110 15.1."""
    assert verdict(None, *MODIFIED, status=status).reason == "no freshness"
    assert windows(verdict(b"public", *MODIFIED, status=status)) == (600, 0, 0)


def test_age_reduces_the_heuristic_lifetime():
    """RFC 9111 4.2.2, 4.2.3."""
    assert windows(verdict(None, *MODIFIED, (b"age", b"100"))) == (500, 0, 0)
    found = verdict(None, *MODIFIED, (b"age", b"1000"))
    assert (windows(found), found.validate) == ((0, 0, 0), True)


@pytest.mark.parametrize(
    ("more", "began", "age"),
    [
        ([], NOW, 0),
        ([(b"age", b"20")], NOW, 20),
        ([(b"Age", b"020")], NOW, 20),
        ([(b"age", b" 20 ")], NOW, 20),
        # The first of several counts, and what is not a number does not (5.1).
        ([(b"age", b"20"), (b"age", b"30")], NOW, 20),
        ([(b"age", b"20, 30")], NOW, 20),
        ([(b"age", b"x")], NOW, 0),
        ([(b"age", b"-20")], NOW, 0),
        ([(b"age", b"1.5")], NOW, 0),
        ([(b"age", b"")], NOW, 0),
        ([(b"age", b"99999999999999999999")], NOW, 2**31),
        # Apparent age: the greater one counts.
        ([DATE], NOW + 30, 30),
        ([DATE], NOW + 30.9, 30),
        ([DATE, (b"age", b"20")], NOW + 30, 30),
        ([DATE, (b"age", b"40")], NOW + 30, 40),
        # A clock that is ahead of ours is not an age.
        ([DATE], NOW - 30, 0),
        ([DATE, (b"age", b"20")], NOW - 30, 20),
        ([(b"date", b"x"), (b"age", b"20")], NOW + 30, 20),
        ([DATE, (b"date", b"Mon, 01 Jan 2024 00:00:30 GMT")], NOW + 30, 30),
    ],
)
def test_initial_age_comes_from_age_and_date_and_reduces_the_lifetime(more, began, age):
    """RFC 9111 4.2.3, 5.1: the age on arrival reduces the lifetime."""
    found = verdict(b"max-age=50", *more, ETAG, began=began)
    assert found.initial_age == age
    assert found.policy.fresh_for == max(0, 50 - age)


@pytest.mark.parametrize(
    ("cache_control", "age", "expected"),
    [
        (b"max-age=60, stale-while-revalidate=30", b"70", (0, 20, 0)),
        (b"max-age=60, stale-while-revalidate=30", b"90", None),
        (b"max-age=60, stale-if-error=30", b"70", (0, 0, 20)),
        (b"max-age=60, stale-if-error=30", b"60", (0, 0, 30)),
        (b"max-age=60, stale-if-error=30", b"100", None),
    ],
)
def test_age_beyond_the_lifetime_reduces_the_stale_windows(cache_control, age, expected):
    """RFC 5861 3 and 4: the windows begin when the response becomes stale, here before it arrives."""
    assert windows(verdict(cache_control, (b"age", age))) == expected


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([b'max-age=60, private="x"'], ""),
        ([b'max-age=60, private="x", private'], "private"),
        ([b'private, max-age=60, private="x"'], "private"),
        ([b'max-age=60, private="x"', b'private="y"'], ""),
        ([b'max-age=60, private=""'], "private"),
    ],
)
def test_stricter_of_repeated_private_directives_counts(values, reason):
    """RFC 9111 4.2.1."""
    found = verdict(None, *((b"cache-control", value) for value in values))
    assert found.reason == reason
    if len(values) == 2:
        assert found.hidden == {b"x", b"y"}


@pytest.mark.parametrize("value", [b'private=("x")', b"private=1", b"private=x", b"private", b"private=?1"])
def test_private_without_valid_field_names_forbids_storing(value):
    """RFC 9213 2.1; RFC 9111 5.2.2.7."""
    assert verdict(None, (b"swr-cache-control", b"max-age=60, " + value)).reason in ("private", "no freshness")


@pytest.mark.parametrize("value", [b'no-cache=("x")', b"no-cache=1", b"no-cache"])
def test_no_cache_without_valid_field_names_requires_validation(value):
    """RFC 9213 2.1; RFC 9111 5.2.2.4."""
    assert verdict(None, ETAG, (b"swr-cache-control", b"max-age=60, " + value)).validate


def test_error_without_a_lifetime_is_not_stored_even_if_public():
    """swr guesses no lifetime for a failure."""
    assert verdict(b"public", (b"last-modified", b"Mon, 01 Jan 2020 00:00:00 GMT"), status=500).policy is None


def test_last_modified_after_date_gives_no_heuristic_lifetime():
    """RFC 9111 4.2.2."""
    found = verdict(
        None, DATE, (b"last-modified", b"Mon, 01 Jan 2029 00:00:00 GMT"), sharing=SharingRules(heuristic=0.1)
    )
    assert (found.policy, found.reason) == (None, "no freshness")


def test_etag_named_by_no_cache_does_not_count_as_a_validator():
    """RFC 9111 5.2.2.4: a field that `no-cache` names is not stored."""
    assert verdict(b'max-age=0, no-cache="etag"', ETAG).policy is None


@pytest.mark.parametrize(
    ("cache_control", "expected", "strict"),
    [
        (b"max-age=60", (60, 0, 0), False),
        (b"max-age=60, stale-while-revalidate=30", (60, 30, 0), False),
        (b"max-age=60, stale-if-error=90", (60, 0, 90), False),
        (b"max-age=60, Stale-While-Revalidate=30, stale-if-error=90", (60, 30, 90), False),
        (b"max-age=0, stale-while-revalidate=30", (0, 30, 0), False),
        (b"max-age=0, stale-if-error=30", (0, 0, 30), False),
        (b"max-age=60, stale-while-revalidate=x, stale-if-error", (60, 0, 0), False),
        (b"max-age=60, stale-while-revalidate=99999999999", (60, 2**31, 0), False),
        # Forbidden.
        (b"max-age=60, must-revalidate", (60, 0, 0), True),
        (b"max-age=60, must-revalidate, stale-while-revalidate=30, stale-if-error=90", (60, 0, 0), True),
        (b"max-age=60, proxy-revalidate", (60, 0, 0), True),
        (b"max-age=60, proxy-revalidate, stale-while-revalidate=30, stale-if-error=90", (60, 0, 0), True),
        (b"s-maxage=60", (60, 0, 0), True),
        # s-maxage together with a stale window means both.
        (b"s-maxage=60, stale-while-revalidate=30", (60, 30, 0), False),
        (b"s-maxage=60, stale-if-error=30", (60, 0, 30), False),
        (b"s-maxage=60, must-revalidate, stale-if-error=30", (60, 0, 0), True),
    ],
)
def test_stale_windows_come_from_directives_unless_revalidation_is_required(cache_control, expected, strict):
    """RFC 5861 3 and 4; RFC 9111 4.2.4, 5.2.2.2, 5.2.2.8, 5.2.2.10: which directives forbid serving stale."""
    found = verdict(cache_control)
    assert (windows(found), found.strict, found.stale_if_error) == (expected, strict, expected[2])
    # Nor does it stand in for an origin that is lost.
    lost = verdict(cache_control, sharing=SharingRules(heuristic=0.1))
    assert windows(lost) == (*expected[:2], 0 if strict else max(LOST, expected[2]))
    assert lost.stale_if_error == expected[2]


def test_response_without_fresh_or_stale_time_must_be_validated_first():
    assert not verdict(b"max-age=60").validate
    assert not verdict(b"max-age=0, stale-while-revalidate=30").validate
    assert verdict(b"max-age=0, stale-if-error=30").validate
    assert verdict(b"max-age=0", ETAG).validate


@pytest.mark.parametrize(
    ("cache_control", "more", "unreachable", "expected"),
    [
        (b"max-age=60", [], 300, (60, 0, 300)),
        (b"max-age=60, stale-if-error=90", [], 300, (60, 0, 300)),
        (b"max-age=60, stale-if-error=900", [], 300, (60, 0, 900)),
        (b"max-age=60, stale-while-revalidate=900", [], 300, (60, 900, 300)),
        (b"max-age=0", [ETAG], 300, (0, 0, 300)),
        (None, MODIFIED, 300, (600, 0, 300)),
        (b"max-age=60", [], 0, (60, 0, 0)),
    ],
)
def test_unreachable_for_extends_the_fallback_time(cache_control, more, unreachable, expected):
    """RFC 9111 4.2.4: a cache that is disconnected may serve stale, unless a directive forbids it."""
    found = verdict(cache_control, *more, sharing=SharingRules(heuristic=0.1, unreachable_for=unreachable))
    assert windows(found) == expected


@pytest.mark.parametrize(
    ("cache_control", "more", "expected"),
    [
        (b"max-age=60", [], 300),
        (b"max-age=60", [ETAG], 300),
        (b"max-age=60, must-revalidate", [ETAG], 300),
        (b"max-age=60, must-revalidate", [OLD], 300),
        (b"no-cache", [ETAG], 300),
        (b"max-age=60, must-revalidate", [], 0),
        (b"s-maxage=60", [], 0),
    ],
)
def test_response_is_kept_past_its_lifetime_only_for_fallback_or_revalidation(cache_control, more, expected):
    """It is kept while it is of use, as a fallback for a lost origin or for revalidation (RFC 9111 4.3)."""
    assert (
        verdict(cache_control, *more, sharing=SharingRules(heuristic=0.1, unreachable_for=300)).policy.keep_for
        == expected
    )


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_error_is_stored_only_for_its_own_lifetime(status):
    """RFC 9111 3; and it is no fallback afterwards."""
    lost = SharingRules(heuristic=0.1)
    assert windows(verdict(b"max-age=60", status=status, sharing=lost)) == (60, 0, 0)
    assert windows(verdict(None, (b"expires", b"Mon, 01 Jan 2024 00:01:00 GMT"), DATE, status=status)) == (60, 0, 0)
    for cache_control, more in [
        (None, []),
        (None, MODIFIED),
        (b"max-age=0", [ETAG]),
        (b"max-age=x", [ETAG]),
        (b"no-cache", [ETAG]),
        (b"max-age=60", [(b"age", b"60"), ETAG]),
        (b"max-age=0, stale-while-revalidate=60", [ETAG]),
    ]:
        for terms in (None, RULE, RULE._replace(override=True)):
            found = verdict(cache_control, *more, status=status, terms=terms)
            assert (found.policy, found.reason) == (None, f"status {status}" if terms else "no freshness")


def test_error_with_one_second_left_is_stored_for_that_second():
    assert windows(verdict(b"max-age=60", (b"age", b"59"), status=503)) == (1, 0, 0)


# -- rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cache_control", "more", "override", "expected"),
    [
        (None, [], False, (60, 600, 3600)),
        (b"public", [], False, (60, 600, 3600)),
        # It goes before a guess.
        (None, MODIFIED, False, (60, 600, 3600)),
        (b"max-age=5", [], False, (5, 600, 3600)),
        (b"max-age=x", [], False, (0, 600, 3600)),
        (None, [(b"expires", b"0")], False, (0, 600, 3600)),
        (b"stale-while-revalidate=1", [], False, (60, 1, 3600)),
        (b"max-age=5, stale-while-revalidate=1", [], False, (5, 1, 3600)),
        (b"max-age=5, stale-if-error=1", [], False, (5, 600, 1)),
        (b"max-age=5, stale-if-error=x", [], False, (5, 600, 0)),
        (b"max-age=5, must-revalidate", [], False, (5, 0, 0)),
        (b"must-revalidate", [], False, (60, 0, 0)),
        (b"proxy-revalidate", [], False, (60, 0, 0)),
        (b"s-maxage=5", [], False, (5, 0, 0)),
        (b"s-maxage=5, stale-if-error=1", [], False, (5, 600, 1)),
        (b"max-age=5, stale-while-revalidate=1", [], True, (60, 600, 3600)),
        (b"max-age=5, stale-if-error=1", [], True, (60, 600, 3600)),
        (b"max-age=5, must-revalidate", [], True, (60, 600, 3600)),
        (b"max-age=5, proxy-revalidate", [], True, (60, 600, 3600)),
        (b"s-maxage=5", [], True, (60, 600, 3600)),
        (b"max-age=0", [], True, (60, 600, 3600)),
        (None, MODIFIED, True, (60, 600, 3600)),
    ],
)
def test_rule_fills_in_missing_times_or_overrides_those_of_the_response(cache_control, more, override, expected):
    found = verdict(cache_control, *more, terms=RULE._replace(override=override))
    assert windows(found) == expected
    assert found.stale_if_error == expected[2]
    assert found.policy.tags == ("url", "ruled")
    assert found.strict is (expected[1:] == (0, 0))


@pytest.mark.parametrize("status", [200, 203, 204, 300, 301, 308])
def test_rule_applies_to_successful_and_permanent_statuses(status):
    assert windows(verdict(None, status=status, terms=RULE)) == (60, 600, 3600)


@pytest.mark.parametrize("override", [False, True])
@pytest.mark.parametrize("status", [201, 302, 307, 400, 404, 409, 410, 501])
def test_rule_gives_no_lifetime_to_errors_and_temporary_statuses(status, override):
    """A response that something is missing, or is elsewhere for now, is stored only if it gives a lifetime itself."""
    terms = RULE._replace(override=override)
    assert verdict(None, status=status, terms=terms).policy is None
    found = verdict(b"max-age=5", status=status, terms=terms)
    assert (windows(found), found.policy.tags) == ((5, 0, 0), ("url", "ruled"))


def test_overriding_rule_without_any_time_stores_nothing():
    assert verdict(b"max-age=5", terms=Terms(Policy(0), override=True)).reason == "no freshness"


def test_rule_without_times_adds_only_tags():
    for override in (False, True):
        terms = Terms(Policy(70, 80, 90, tags=("ruled",)), timed=False, override=override)
        assert verdict(None, terms=terms).policy is None
        found = verdict(b"max-age=5", terms=terms)
        assert (windows(found), found.policy.tags) == ((5, 0, 0), ("url", "ruled"))


def test_vary_of_a_rule_is_added_to_vary_of_the_response():
    terms = RULE._replace(vary=("b", "x"))
    assert verdict(None, (b"vary", b"C, b"), terms=terms).vary == ("b", "c", "x")
    assert verdict(None, (b"vary", b"C, b"), terms=RULE).vary == ("b", "c")
    assert verdict(b"max-age=5").vary == ()
    # One without times names them anyway.
    assert verdict(b"max-age=5", terms=terms._replace(timed=False)).vary == ("b", "x")


def test_response_without_a_rule_gets_the_given_tags():
    assert verdict(b"max-age=5").policy.tags == ("url",)
    assert verdict(b"max-age=5", tags=("a", "b")).policy.tags == ("a", "b")


# -- targeted fields ----------------------------------------------------------------------------------------------

TARGETED = (b"swr-cache-control", b"cdn-cache-control")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], ({}, False)),
        ([(b"cache-control", b"max-age=1")], ({"max-age": "1"}, False)),
        ([(b"cache-control", b"max-age=1"), (b"CDN-Cache-Control", b"max-age=2")], ({"max-age": "2"}, True)),
        ([(b"cdn-cache-control", b"a"), (b"swr-cache-control", b"b")], ({"b": None}, True)),
        ([(b"cdn-cache-control", b"a"), (b"swr-cache-control", b"")], ({"a": None}, True)),
        ([(b"cdn-cache-control", b"a"), (b"swr-cache-control", b"b, C")], ({"a": None}, True)),
        ([(b"cdn-cache-control", b"a"), (b"cdn-cache-control", b"b=1")], ({"a": None, "b": "1"}, True)),
        ([(b"cdn-cache-control", b"max-age"), (b"cache-control", b"no-store")], ({"max-age": None}, True)),
        ([(b"cdn-cache-control", b"max-age 5"), (b"cache-control", b"no-store")], ({"no-store": None}, False)),
        ([(b"other-cache-control", b"max-age=5")], ({}, False)),
    ],
)
def test_first_valid_targeted_field_controls_the_response(headers, expected):
    """RFC 9213 2.2: the first targeted field that is there and well-formed, in the order of the list."""
    assert control(headers, TARGETED) == expected


@pytest.mark.uncounted
@pytest.mark.parametrize("override", [False, True])
@pytest.mark.parametrize(
    "value",
    [
        b"private, max-age=", b"Private", b"NO-STORE", b"no-store,", b"max-age=60,, no-store", b"private max-age=60",
        b'max-age=60, x="a, private', b"no-cache; No-Store", b"max-age=60; private", b"private ;max-age=60",
    ],
)  # fmt: skip
@pytest.mark.parametrize("field", [b"Cache-Control", b"CDN-Cache-Control", b"SWR-Cache-Control"])
def test_rule_does_not_override_private_or_no_store_in_a_malformed_field(field, value, override):
    """A deviation from RFC 9213 2.1: swr ignores a malformed targeted field, except for these words."""
    terms = RULE._replace(override=override)
    for fields in ([(field, value)], [(b"CDN-Cache-Control", b"max-age=60"), (field, value)]):
        found = verdict(b"public, max-age=60" if field != b"Cache-Control" else None, *fields, terms=terms)
        if field == b"Cache-Control" and len(fields) == 2:
            continue
        assert found.policy is None or found.validate
        assert found.reason in ("private", "no-store", "no-cache")


@pytest.mark.parametrize("field", [b"Cache-Control", b"CDN-Cache-Control"])
def test_malformed_must_revalidate_forbids_stale_and_shares_nothing(field):
    found = verdict(None, (field, b"max-age=60, must-revalidate; x=(, A"), terms=RULE)
    assert (found.strict, found.shared) == (True, False)


def test_only_cache_control_counts_without_targeted_fields():
    """RFC 9213 2.2."""
    headers = [(b"cdn-cache-control", b"no-store"), (b"cache-control", b"max-age=1")]
    assert control(headers, ()) == ({"max-age": "1"}, False)


@pytest.mark.parametrize(
    ("targeted", "cache_control", "more", "expected"),
    [
        (b"max-age=60", b"max-age=5, no-store", [], (60, 0, 0)),
        (b"max-age=60", b"private", [], (60, 0, 0)),
        (b"max-age=60, stale-while-revalidate=5", b"must-revalidate", [], (60, 5, 0)),
        (b"no-store", b"max-age=60", [], None),
        (b"private", b"max-age=60", [], None),
        (b"s-maxage=10, max-age=60", b"max-age=5", [], (10, 0, 0)),
        (b'max-age="60"', b"max-age=60", [], None),
        (b"max-age=60.0", b"max-age=60", [], None),
        # Neither Cache-Control nor Expires counts beside it.
        (b"public", b"max-age=60", [], None),
        (b"public", None, [(b"expires", b"Mon, 01 Jan 2024 00:01:00 GMT"), DATE], None),
        (b"max-age=60", None, [(b"expires", b"0"), DATE], (60, 0, 0)),
        # A guess is still one.
        (b"public", None, [*MODIFIED, (b"expires", b"0")], (600, 0, 0)),
        # Malformed or empty: as if it were missing.
        (b"Max-Age=60", b"max-age=5", [], (5, 0, 0)),
        (b"max-age=60,", b"max-age=5", [], (5, 0, 0)),
        (b"", None, [(b"expires", b"Mon, 01 Jan 2024 00:01:00 GMT"), DATE], (60, 0, 0)),
        (b"max-age=", b"no-store", [], None),
    ],
)
def test_targeted_field_wins_over_cache_control_and_expires(targeted, cache_control, more, expected):
    """RFC 9213 2.1, 2.2."""
    assert windows(verdict(cache_control, (b"CDN-Cache-Control", targeted), *more)) == expected


# -- what is stored, and what selects it --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], ()),
        ([b"Accept"], ("accept",)),
        ([b"b, A ,\tb", b"c"], ("a", "b", "c")),
        ([b""], ()),
        ([b" ,, "], ()),
        ([b"a,*"], None),
        ([b"*"], None),
        ([b"a", b"*"], None),
        # Said badly: all that could be meant counts.
        ([b"Accept-*"], None),
        ([b"Cookie; Accept"], ("accept", "cookie", "cookie-accept")),
        ([b"User Agent"], ("agent", "user", "user-agent")),
        ([b"'Accept-Language'"], ("'accept-language'", "accept-language")),
        ([b"`Accept-Language`, Accept-."], ("`accept-language`", "accept", "accept-.", "accept-language")),
        ([b"Accept-Language|X.Y"], ("accept-language", "accept-language-x-y", "accept-language|x.y", "x", "y")),
        ([b"-, _x_, a_b-c"], ("-", "_x_", "a_b-c", "x")),
        ([b'"Cookie, X-User'], ("cookie", "x-user")),
        ([b"a, * ;"], None),
        ([b'"*"'], None),
        ([b"'*'"], None),
    ],
)
def test_vary_is_read_as_sorted_names_or_as_none_if_it_has_a_star(values, expected):
    """RFC 9111 4.1, RFC 9110 12.5.5; CVE-2026-48587."""
    assert vary_of([(b"Vary", value) for value in values]) == expected


@pytest.mark.parametrize(
    ("name", "one", "other", "same"),
    [
        ("x", [b"a"], [b"a"], True),
        ("x", [b"a, b"], [b"a,b"], True),
        ("x", [b"a", b"b"], [b"a , b"], True),
        ("x", [b" a\t,b "], [b"a,b"], True),
        ("x", [b"a"], [b"b"], False),
        ("x", [b"a"], [b"A"], False),
        ("x", [b"a b"], [b"ab"], False),
        ("x", [b"a", b"b"], [b"b", b"a"], False),
        ("x", [b"a"], [b"a", b"a"], False),
        ("x", [b"\xe9"], [b"\xe8"], False),
        ("accept-encoding", [b"GZIP, br"], [b"gzip,BR"], True),
        ("accept-language", [b"de-CH"], [b"de-ch"], True),
        ("accept-charset", [b"UTF-8"], [b"utf-8"], True),
        ("accept-encoding", [b"GZip"], [b"gzip"], True),
        ("accept", [b"text/html, text/plain"], [b"text/plain, text/html"], False),
        ("cookie", [b"A=b"], [b"a=b"], False),
    ],
)
def test_selecting_fields_ignore_white_space_but_not_the_order_of_values(name, one, other, same):
    """RFC 9111 4.1: lines and white space do not matter; case where the field's own definition says so."""
    assert (normalised(name, one) == normalised(name, other)) is same


def test_hop_by_hop_fields_and_age_are_not_stored():
    """RFC 9111 3.1, RFC 9110 7.6.1."""
    dropped = [
        (b"Connection", b"close, X-Hop ,,y"),
        (b"connection", b"z"),
        (b"x-hop", b"1"),
        (b"Y", b"1"),
        (b"z", b"1"),
        (b"Keep-Alive", b"1"),
        (b"age", b"1"),
        (b"proxy-authenticate", b"1"),
        (b"Proxy-Authentication-Info", b"1"),
        (b"proxy-authorization", b"1"),
        (b"proxy-connection", b"1"),
        (b"swr-state", b"fresh"),
        (b"te", b"1"),
        (b"trailer", b"1"),
        (b"Transfer-Encoding", b"chunked"),
        (b"upgrade", b"1"),
    ]
    kept = [(b"ETag", b"x"), (b"x", b"1"), (b"x", b"1"), (b"date", b"1"), (b"cache-control", b"max-age=1")]
    assert stored_headers([*kept[:2], *dropped, *kept[2:]]) == kept


def test_hidden_fields_are_not_stored():
    """RFC 9111 5.2.2.4, 5.2.2.7."""
    headers = [(b"Set-Cookie", b"a=b"), (b"x-user", b"1"), (b"x", b"2")]
    assert stored_headers(headers, {b"set-cookie", b"x-user"}) == [(b"x", b"2")]
    assert stored_headers(headers) == headers


# -- what a request accepts, and is told ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("directives", "expected"),
    [
        (b"", NO_LIMITS),
        (b"no-store, only-if-cached, no-transform, x", NO_LIMITS),
        (b"max-age=5", Limits(max_age=5)),
        (b"max-age=0", Limits(max_age=0)),
        (b"max-age=x", Limits(max_age=0)),
        (b"min-fresh=5", Limits(min_fresh=5)),
        (b"min-fresh=0", Limits(min_fresh=0.0)),
        (b"max-stale", Limits(max_stale=math.inf)),
        (b"max-stale=5", Limits(max_stale=5)),
        (b"max-stale=0", Limits(max_stale=0)),
        (b"max-stale=x", Limits(max_stale=0)),
        (b"max-stale=", Limits(max_stale=0)),
        (b"no-cache", Limits(no_cache=True)),
        (b"no-cache, max-age=1, min-fresh=2, max-stale=3", Limits(1, 2, 3, True)),
    ],
)
def test_request_directives_become_limits(directives, expected):
    """RFC 9111 5.2.1.1 to 5.2.1.4."""
    assert limits(parse_directives([directives]), REQUEST_DIRECTIVES) == expected


def test_only_honoured_request_directives_become_limits():
    """By default no client can force a load: neither no-cache nor max-age count."""
    directives = parse_directives([b"no-cache, max-age=1, min-fresh=2, max-stale=3"])
    assert limits(directives, HONOURED) == Limits(max_stale=3)
    assert limits(directives, ()) == NO_LIMITS
    assert limits(directives, {"no-cache"}) == Limits(no_cache=True)
    assert limits(directives, {"max-age"}) == Limits(max_age=1)
    assert limits(parse_directives([b"no-cache, max-age=0, min-fresh=60"]), HONOURED) == NO_LIMITS


@pytest.mark.parametrize(
    ("state", "ttl", "expected"),
    [
        (State.FRESH, 5, b"swr; hit; ttl=5"),
        (State.FRESH, 0, b"swr; hit; ttl=0"),
        (State.STALE, -5, b"swr; hit; ttl=-5"),
        (State.STALE, 0, b"swr; hit; ttl=0"),
        # Stale is what an invalidation made so, too.
        (State.STALE, 5, b"swr; hit; ttl=0"),
    ],
)
def test_cache_status_of_a_stale_hit_has_no_positive_ttl(state, ttl, expected):
    """RFC 9211 2.1, 2.4: ttl is negative once the response is stale."""
    assert cache_status(state, ttl) == expected


# -- whatever comes -----------------------------------------------------------------------------------------------

NAMES = [
    b"cache-control",
    b"Cache-Control",
    b"cdn-cache-control",
    b"swr-cache-control",
    b"expires",
    b"date",
    b"last-modified",
    b"vary",
    b"age",
    b"etag",
    b"connection",
    b"set-cookie",
    b"content-type",
]
HEADERS = st.lists(st.tuples(st.one_of(st.sampled_from(NAMES), st.binary(max_size=15)), FIELD), max_size=12)


@pytest.mark.uncounted
@given(
    HEADERS,
    st.integers(100, 599),
    st.sampled_from([None, RULE, RULE._replace(override=True), RULE._replace(timed=False)]),
    st.sampled_from([SharingRules(), BARE, SharingRules(False, (), 1.0, 1e6), SharingRules(heuristic=0)]),
    st.floats(0, 1e11),
    st.booleans(),
)
def test_arbitrary_headers_raise_nothing_and_give_a_consistent_verdict(
    headers, status, terms, sharing, began, authorized
):
    found = judge(status, headers, terms, sharing, began=began, authorized=authorized, tags=("url",))
    assert found.initial_age >= 0
    assert (found.policy is None) is bool(found.reason)
    if found.policy is not None:
        assert min(windows(found)) >= 0
        assert not found.strict or windows(found)[1:] == (0, 0)
        assert not authorized or found.shared
    stored_headers(headers, found.hidden)
    vary_of(headers)
    values = [value for _, value in headers]
    for name in ("accept", "x"):
        normalised(name, values)
    limits(parse_directives(values), REQUEST_DIRECTIVES)


@given(HEADERS, st.floats(0, 1e11))
def test_response_without_lifetime_or_last_modified_is_never_fresh(headers, began):
    """RFC 9111 4.2.1, 4.2.2: without a lifetime and a date of change nothing is stored."""
    times = {b"expires", b"last-modified"}
    fields = [(name, value) for name, value in headers if name.lower() not in times and b"age" not in value.lower()]
    found = judge(200, fields, None, BARE, began=began, authorized=False, tags=())
    assert found.policy is None or (windows(found)[0] == 0 and found.validate)


@pytest.mark.parametrize(
    "read",
    [
        lambda value: verdict(
            None, *((name, value) for name in NAMES if name not in (b"Cache-Control", b"set-cookie"))
        ),
        lambda value: verdict(b'private="%b"' % value),
        lambda value: stored_headers([(b"connection", value), *((name, value) for name in NAMES)]),
        lambda value: vary_of([(b"vary", value)]),
        lambda value: normalised("accept", [value]),
        lambda value: limits({"max-age": value.decode("latin-1")}, REQUEST_DIRECTIVES),
    ],
)
def test_hostile_headers_do_not_hang_any_parser(read):
    """The time is linear in the length; a quadratic parser would take minutes."""
    for value in hostile():
        read(value)


@pytest.mark.parametrize(
    ("cache_control", "status", "reason"),
    [(None, 404, "status 404"), (None, 200, ""), (b"no-cache", 200, "no-cache"), (b"max-age=0", 404, "no freshness")],
)
def test_reason_says_why_a_response_under_a_rule_is_not_stored(cache_control, status, reason):
    """RFC 9211 2.8: the reason explains why a response under a rule is not stored."""
    assert verdict(cache_control, status=status, terms=Terms(Policy(60))).reason == reason
