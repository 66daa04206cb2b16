"""HTTP headers, as RFC 9111, 9110, 5861 and 9211 read them, without I/O."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swr import Policy, State
from swr.semantics import (
    Terms,
    cache_status,
    delta_seconds,
    directives,
    headers_of_304,
    judge,
    limits,
    matches,
    stored_headers,
    vary_of,
)

RULE = Terms(Policy(60, 600, 3600, ("ruled",)))
DATE = (b"date", b"Mon, 01 Jan 2024 00:00:00 GMT")


def verdict(cache_control=None, *more, status=200, terms=None, authorized=False, private=True):
    headers = list(more)
    if cache_control is not None:
        headers.append((b"cache-control", cache_control))
    return judge(status, headers, terms, authorized=authorized, cookies_private=private, tags=("url",))


def windows(policy):
    return None if policy is None else (policy.fresh_for, policy.stale_for, policy.stale_if_error)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([b"max-age=60"], {"max-age": "60"}),
        ([b"MAX-AGE=60, Public"], {"max-age": "60", "public": None}),
        ([b"max-age=60", b"max-age=5, private"], {"max-age": "60", "private": None}),
        ([b' , max-age = "60" ,,s-maxage=1'], {"max-age": "60", "s-maxage": "1"}),
        ([b'private="set-cookie, x", no-store'], {"private": "set-cookie, x", "no-store": None}),
        ([b'ext="a\\"b", public'], {"ext": 'a"b', "public": None}),
        ([b""], {}),
        ([b"max-age=1.5, max-stale"], {"max-age": "1.5", "max-stale": None}),
    ],
)
def test_directives_are_read_as_rfc_9111_5_2_says(values, expected):
    assert directives(values) == expected


@given(
    st.lists(st.binary(max_size=40)),
    st.integers(100, 599),
    st.lists(st.tuples(st.binary(max_size=15), st.binary(max_size=30))),
)
def test_no_header_raises(values, status, headers):
    named = [
        (name, value)
        for name in (b"cache-control", b"expires", b"date", b"vary", b"age", b"etag", b"connection")
        for value in values
    ]
    for terms in (None, RULE):
        judge(status, [*named, *headers], terms, authorized=False, cookies_private=True, tags=())
    stored_headers([*named, *headers])
    headers_of_304([*named, *headers])
    limits(directives(values))
    for value in values:
        matches(value, [*named, *headers])


def test_no_header_takes_long():
    """Linear, whatever a client sends: a quadratic reading of this would take minutes."""
    for value in (
        b"," * 10**6,
        b'"' * 10**6,
        b" " * 10**6,
        b"a," * 10**6,
        b'"\\' * 10**6,
        b'W/"' * 10**6,
        b"=" * 10**6,
    ):
        directives([value])
        matches(value, [(b"etag", b'"a"')])
        vary_of([(b"vary", value)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("60", 60),
        ("0", 0),
        ("99999999999999999999", 2**31),
        ("-1", None),
        ("1.5", None),
        ("", None),
        (None, None),
        ("١", None),
        (" 1", None),
    ],
)
def test_delta_seconds(text, expected):
    """RFC 9111 1.2.2."""
    assert delta_seconds(text) == expected


@pytest.mark.parametrize(
    ("cache_control", "more", "expected"),
    [
        (b"max-age=60", [], (60, 0, 0)),
        (b"max-age=60, s-maxage=10", [], (10, 0, 0)),
        (b"max-age=60, stale-while-revalidate=30, stale-if-error=90", [], (60, 30, 90)),
        (b"s-maxage=60, stale-while-revalidate=30", [], (60, 30, 0)),
        (b"max-age=60, must-revalidate, stale-while-revalidate=30", [], (60, 0, 0)),
        (b"max-age=60, proxy-revalidate, stale-if-error=30", [], (60, 0, 0)),
        (b"max-age=60", [(b"age", b"20")], (40, 0, 0)),
        (b"max-age=60, stale-while-revalidate=5", [(b"age", b"70")], (0, 5, 0)),
        (b"max-age=60", [(b"age", b"70")], None),
        (b"max-age=0", [], None),
        (b"max-age=x", [], None),
        (b"max-age", [], None),
        (None, [], None),
        (b"public", [], None),
        (None, [(b"expires", b"Mon, 01 Jan 2024 00:01:00 GMT"), DATE], (60, 0, 0)),
        (None, [(b"expires", b"Mon, 01 Jan 2024 00:01:00 GMT")], None),
        (None, [(b"expires", b"0"), DATE], None),
        (b"max-age=5", [(b"expires", b"0"), DATE], (5, 0, 0)),
        (None, [(b"expires", b"Sun, 31 Dec 2023 00:00:00 GMT"), DATE], None),
    ],
)
def test_freshness_is_what_the_response_says(cache_control, more, expected):
    """RFC 9111 4.2.1, 4.2.4, RFC 5861."""
    assert windows(verdict(cache_control, *more).policy) == expected


@pytest.mark.parametrize(
    ("cache_control", "override", "expected"),
    [
        (None, False, (60, 600, 3600)),
        (b"public", False, (60, 600, 3600)),
        (b"max-age=5", False, (5, 600, 3600)),
        (b"max-age=5, stale-while-revalidate=1", False, (5, 1, 3600)),
        (b"max-age=5, must-revalidate", False, (5, 0, 0)),
        (b"s-maxage=5", False, (5, 0, 0)),
        (b"max-age=5, stale-while-revalidate=1", True, (60, 600, 3600)),
        (b"max-age=5, must-revalidate", True, (60, 600, 3600)),
    ],
)
def test_a_rule_fills_in_what_the_response_leaves_open_or_overrides_it(cache_control, override, expected):
    found = verdict(cache_control, terms=RULE._replace(override=override))
    assert windows(found.policy) == expected
    assert found.policy.tags == ("url", "ruled")


def test_a_rule_without_times_gives_tags_alone():
    terms = Terms(Policy(0, tags=("ruled",)), timed=False)
    assert verdict(None, terms=terms).policy is None
    found = verdict(b"max-age=5", terms=terms).policy
    assert (windows(found), found.tags) == ((5, 0, 0), ("url", "ruled"))


@pytest.mark.parametrize("override", [False, True])
@pytest.mark.parametrize(
    ("cache_control", "more", "status"),
    [
        (b"no-store", [], 200),
        (b"No-Store, max-age=60", [], 200),
        (b"private, max-age=60", [], 200),
        (b'private="x", max-age=60', [], 200),
        (b"no-cache, max-age=60", [], 200),
        (b"max-age=60", [(b"set-cookie", b"a=b")], 200),
        (b"max-age=60", [(b"Set-Cookie", b"a=b")], 200),
        (b"max-age=60", [(b"vary", b"*")], 200),
        (b"max-age=60", [(b"vary", b"accept , *")], 200),
        (b"max-age=60", [(b"content-type", b"Text/Event-Stream; charset=utf-8")], 200),
        (b"max-age=60", [], 206),
        (b"max-age=60", [], 304),
        (b"max-age=60", [], 500),
        (b"max-age=60", [], 503),
        (b"max-age=60", [], 101),
    ],
)
def test_what_is_never_stored(cache_control, more, status, override):
    """Promise 9, whatever a rule says; RFC 9111 3, 4.1; CVE-2026-6907, CVE-2026-8404."""
    found = verdict(cache_control, *more, status=status, terms=RULE._replace(override=override))
    assert found.policy is None
    assert found.reason


def test_a_rule_is_for_answers_not_for_errors():
    assert verdict(None, status=301, terms=RULE).policy is not None
    assert verdict(None, status=404, terms=RULE).policy is None
    assert verdict(b"max-age=5", status=404, terms=RULE).policy is not None
    assert verdict(None, status=403, terms=RULE).policy is None
    assert verdict(b"max-age=5", status=403, terms=RULE).policy is not None


@pytest.mark.parametrize(
    ("cache_control", "stored"),
    [
        (b"max-age=60", False),
        (b"public, max-age=60", True),
        (b"s-maxage=60", True),
        (b"max-age=60, must-revalidate", True),
    ],
)
def test_credentials(cache_control, stored):
    """RFC 9111 3.5; CVE-2026-35193."""
    assert (verdict(cache_control, authorized=True).policy is not None) is stored
    assert verdict(cache_control).shared is stored
    assert verdict(None, terms=RULE, authorized=True).policy is None


def test_set_cookie_is_stored_where_directives_alone_count():
    assert verdict(b"max-age=60", (b"set-cookie", b"a=b"), private=False).policy is not None


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], ()), ([b"Accept"], ("accept",)), ([b"b, A ,\tb", b"c"], ("a", "b", "c")), ([b""], ()), ([b"a,*"], None)],
)
def test_vary(values, expected):
    """RFC 9111 4.1; CVE-2026-48587."""
    assert vary_of([(b"Vary", value) for value in values]) == expected


def test_what_belongs_to_a_connection_is_not_stored():
    """RFC 9111 3.1."""
    headers = [
        (b"connection", b"close, X-Hop"),
        (b"x-hop", b"1"),
        (b"Keep-Alive", b"1"),
        (b"age", b"1"),
        (b"etag", b"x"),
    ]
    assert stored_headers(headers) == [(b"etag", b"x")]


@pytest.mark.parametrize(
    ("condition", "etag", "expected"),
    [
        (b'"a"', b'"a"', True),
        (b'W/"a"', b'"a"', True),
        (b'"a"', b'W/"a"', True),
        (b'"b", W/"a" , "c"', b'"a"', True),
        (b'"b"', b'"a"', False),
        (b"*", b'"a"', True),
        (b" * ", None, True),
        (b'"a"', None, False),
        (b"a", b"a", False),
        (b"", b'""', False),
        (b'""', b'""', True),
    ],
)
def test_if_none_match(condition, etag, expected):
    """RFC 9110 13.1.2: weak comparison."""
    assert matches(condition, [] if etag is None else [(b"ETag", etag)]) is expected


def test_a_304_repeats_what_rfc_9110_15_4_5_names():
    headers = [(b"ETag", b"x"), (b"content-type", b"y"), (b"vary", b"z"), (b"content-length", b"5")]
    assert headers_of_304(headers) == [(b"ETag", b"x"), (b"vary", b"z")]


def test_limits_of_a_request():
    """RFC 9111 5.2.1: a client that can force loads can hurt, so no-cache and max-age are not honoured."""
    assert limits(directives([b"min-fresh=5"])).min_fresh == 5
    assert limits(directives([b"no-cache, max-age=0"])) == limits({})


def test_cache_status():
    """RFC 9211 2.5: ttl is negative once the response is stale."""
    assert cache_status(State.FRESH, 5) == b"swr; hit; ttl=5"
    assert cache_status(State.STALE, -5) == b"swr; hit; ttl=-5"
    assert cache_status(State.STALE, 0) == b"swr; hit; ttl=0"
