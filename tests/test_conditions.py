"""A request's conditions and ranges, and how a stored response is confirmed: RFC 9110 13 and 14, RFC 9111 4.3."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swr.http.conditional import (
    describes,
    headers_of_304,
    not_modified,
    selects,
    strong_etag,
    updated,
    validators,
    wanted_range,
)
from tests.test_fields import FIELD, hostile

# Mon, 01 Jan 2024 00:00:00 GMT
NOW = 1704067200.0
BEFORE = b"Sun, 31 Dec 2023 23:59:59 GMT"
NEW_YEAR = b"Mon, 01 Jan 2024 00:00:00 GMT"
AFTER = b"Mon, 01 Jan 2024 00:00:01 GMT"


def tagged(*values):
    return [(b"ETag", value) for value in values]


def changed(*values):
    return [(b"Last-Modified", value) for value in values]


def test_304_with_etag_keeps_only_the_fields_that_rfc_9110_15_4_5_names():
    kept = [
        (b"ETag", b'"a"'),
        (b"Vary", b"z"),
        (b"cache-control", b"max-age=5"),
        (b"cdn-cache-control", b"max-age=9"),
        (b"content-location", b"/a"),
        (b"date", NEW_YEAR),
        (b"expires", b"0"),
        (b"set-cookie", b"a=b"),
    ]
    dropped = [
        (b"content-type", b"y"),
        (b"content-length", b"5"),
        (b"content-encoding", b"gzip"),
        (b"x", b"1"),
        *changed(BEFORE),
    ]
    assert headers_of_304([*dropped[:2], *kept, *dropped[2:]]) == kept


@pytest.mark.parametrize("tags", [[], [b"malformed"]])
def test_304_without_valid_etag_keeps_last_modified(tags):
    """RFC 9110 15.4.5: other metadata is for guiding updates, where the response has no ETag."""
    found = headers_of_304([*tagged(*tags), *changed(BEFORE), (b"x", b"1")])
    assert found == [*tagged(*tags), (b"last-modified", BEFORE)]


@pytest.mark.parametrize(
    ("condition", "etag", "expected"),
    [
        (b'"a"', b'"a"', True),
        (b'W/"a"', b'"a"', True),
        (b'"a"', b'W/"a"', True),
        (b'W/"a"', b'W/"a"', True),
        (b'"b", W/"a" , "c"', b'"a"', True),
        (b'"b"', b'"a"', False),
        (b'"A"', b'"a"', False),
        (b'"b", "c"', b'"a"', False),
        (b'"a,b"', b'"a"', False),
        (b"*", b'"a"', True),
        (b" * ", None, True),
        (b'"a"', None, False),
        (b"a", b"a", False),
        (b"", b'""', False),
        (b'""', b'""', True),
        (b'"*"', b'"a"', False),
    ],
)
def test_if_none_match_compares_weakly_and_accepts_lists_and_star(condition, etag, expected):
    """RFC 9110 13.1.2: weak comparison, lists, `*`."""
    headers = [] if etag is None else tagged(etag)
    assert not_modified({b"if-none-match": condition}, headers, NOW) is expected


@pytest.mark.parametrize(
    ("since", "headers", "expected"),
    [
        (NEW_YEAR, changed(NEW_YEAR), True),
        (AFTER, changed(NEW_YEAR), True),
        (BEFORE, changed(NEW_YEAR), False),
        (b" " + NEW_YEAR + b" ", changed(NEW_YEAR), True),
        (b"Monday, 01-Jan-24 00:00:00 GMT", changed(NEW_YEAR), True),
        (NEW_YEAR, changed(b"Mon Jan  1 00:00:00 2024"), True),
        # Without Last-Modified: Date, and without that the time that it came.
        (NEW_YEAR, [(b"date", NEW_YEAR)], True),
        (NEW_YEAR, [(b"date", AFTER)], False),
        (NEW_YEAR, [], True),
        (BEFORE, [], False),
        # Last-Modified goes before Date.
        (NEW_YEAR, [(b"date", AFTER), *changed(BEFORE)], True),
        (BEFORE, [*changed(NEW_YEAR), (b"date", BEFORE)], False),
        (NEW_YEAR, changed(BEFORE, AFTER), True),
        # What is not a date is disregarded; what cannot be compared is sent.
        (b"yesterday", changed(BEFORE), False),
        (b"", changed(BEFORE), False),
        (NEW_YEAR + b", " + NEW_YEAR, changed(BEFORE), False),
        # What cannot be read counts as if it were not there.
        (NEW_YEAR, changed(b"yesterday"), True),
        (NEW_YEAR, [(b"date", b"x")], True),
    ],
)
def test_if_modified_since_compares_last_modified_then_date_then_time_of_receipt(since, headers, expected):
    """RFC 9110 13.1.3, RFC 9111 4.3.2."""
    assert not_modified({b"if-modified-since": since}, headers, NOW) is expected


def test_if_none_match_takes_precedence_over_if_modified_since():
    """RFC 9110 13.1.3: with If-None-Match, If-Modified-Since is disregarded, whatever it says."""
    headers = [*tagged(b'"a"'), *changed(NEW_YEAR)]
    assert not not_modified({b"if-none-match": b'"b"', b"if-modified-since": AFTER}, headers, NOW)
    assert not_modified({b"if-none-match": b'"a"', b"if-modified-since": BEFORE}, headers, NOW)
    assert not not_modified({b"if-none-match": b'"a"', b"if-modified-since": AFTER}, changed(BEFORE), NOW)


def test_request_without_if_none_match_or_if_modified_since_never_gets_304():
    assert not not_modified({}, [*tagged(b'"a"'), *changed(BEFORE)], NOW)
    assert not not_modified({b"if-match": b'"a"', b"if-range": b'"a"'}, tagged(b'"a"'), NOW)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], []),
        (tagged(b'"a"'), [(b"if-none-match", b'"a"')]),
        (tagged(b'W/"a"'), [(b"if-none-match", b'W/"a"')]),
        (tagged(b"a"), []),
        (changed(BEFORE), [(b"if-modified-since", BEFORE)]),
        (changed(BEFORE, AFTER), [(b"if-modified-since", BEFORE)]),
        ([*changed(BEFORE), *tagged(b'"a"')], [(b"if-none-match", b'"a"'), (b"if-modified-since", BEFORE)]),
    ],
)
def test_conditional_request_carries_every_usable_stored_validator(headers, expected):
    """RFC 9111 4.3.1: both validators if there are both; dates are sent byte for byte."""
    assert validators(headers) == expected


@pytest.mark.parametrize(
    ("news", "stored", "expected"),
    [
        # A strong tag has to be the same one.
        (tagged(b'"a"'), tagged(b'"a"'), True),
        (tagged(b'"a"'), tagged(b'"b"'), False),
        (tagged(b'"a"'), tagged(b'W/"a"'), False),
        (tagged(b'"a"'), [], False),
        (tagged(b'"a"'), changed(BEFORE), False),
        ([*tagged(b'"b"'), *changed(BEFORE)], [*tagged(b'"a"'), *changed(BEFORE)], False),
        # A weak one has to match.
        (tagged(b'W/"a"'), tagged(b'W/"a"'), True),
        (tagged(b'W/"a"'), tagged(b'"a"'), True),
        (tagged(b'W/"a"'), tagged(b'W/"b"'), False),
        (tagged(b'W/"a"'), [], False),
        (changed(BEFORE), changed(BEFORE), True),
        (changed(AFTER), changed(BEFORE), False),
        (changed(AFTER), [], False),
        # Of what neither has nothing speaks against it.
        ([], [], True),
        ([(b"x", b"1")], [(b"x", b"2")], True),
    ],
)
def test_304_selects_the_stored_response_only_if_no_validator_differs(news, stored, expected):
    """RFC 9111 4.3.4."""
    assert selects(news, stored) is expected


@pytest.mark.parametrize(
    ("news", "expected"),
    [
        ([], None),
        (tagged(b'"a"'), True),
        (changed(BEFORE), True),
        ([*changed(BEFORE), (b"content-length", b"0")], None),
        ([*tagged(b'"a"'), *changed(BEFORE), (b"content-length", b"5")], True),
        ([(b"x", b"1"), (b"content-type", b"other")], None),
        (tagged(b'"b"'), False),
        (tagged(b'W/"a"'), None),
        (tagged(b'W/"b"'), False),
        (changed(AFTER), False),
        ([*tagged(b'"a"'), *changed(AFTER)], False),
        ([*tagged(b'"b"'), *changed(BEFORE), (b"content-length", b"6")], False),
        ([*tagged(b'"a"'), (b"content-length", b"6")], None),
    ],
)
def test_head_confirms_or_contradicts_the_stored_response_by_validators_and_length(news, expected):
    """RFC 9111 4.3.5, except that an answer without a validator decides nothing."""
    stored = [*tagged(b'"a"'), *changed(BEFORE), (b"Content-Length", b"5")]
    assert describes(news, stored) is expected


@pytest.mark.parametrize("fields", [tagged(b'"a"'), changed(BEFORE), [(b"content-length", b"1")]])
def test_head_neither_confirms_nor_contradicts_a_stored_response_without_fields(fields):
    assert describes(fields, []) is None


def test_304_replaces_stored_fields_except_connection_and_content_fields():
    """RFC 9111 3.2: fields are replaced by name, all lines; fields about the connection or the stored bytes stay."""
    stored = [
        (b"Content-Type", b"a"),
        (b"X", b"1"),
        (b"x", b"2"),
        (b"Y", b"1"),
        (b"content-length", b"5"),
        (b"content-encoding", b"gzip"),
        (b"content-range", b"bytes 0-4/10"),
        (b"date", BEFORE),
    ]
    news = [
        (b"x", b"3"),
        (b"X", b"4"),
        (b"New", b"1"),
        (b"Content-Length", b"0"),
        (b"Content-Encoding", b"br"),
        (b"Content-Range", b"bytes 1-1/2"),
        (b"Connection", b"y, close"),
        (b"y", b"2"),
        (b"Age", b"7"),
        (b"transfer-encoding", b"chunked"),
        (b"Date", AFTER),
    ]
    assert updated(stored, news) == [
        (b"Content-Type", b"a"),
        (b"Y", b"1"),
        (b"content-length", b"5"),
        (b"content-encoding", b"gzip"),
        (b"content-range", b"bytes 0-4/10"),
        (b"x", b"3"),
        (b"X", b"4"),
        (b"New", b"1"),
        (b"Date", AFTER),
    ]


def test_confirmation_without_date_removes_the_stored_date():
    """RFC 9110 6.6.1: a response without Date dates from when it was received."""
    assert updated([(b"Date", BEFORE), (b"x", b"1")], []) == [(b"x", b"1")]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(b'"a"', b'"a"'), (b'W/"a"', None), (b"a", None), (b'""', b'""')],
)
def test_strong_etag_accepts_only_valid_strong_tags(value, expected):
    """RFC 9110 8.8.3."""
    assert strong_etag(tagged(value)) == expected
    assert strong_etag([]) is None


@pytest.mark.parametrize(
    ("value", "expected"), [(b"bytes=2-4", (2, 4)), (b"bytes=-3", (7, 9)), (b"bytes=10-", (0, -1)), (b"x=1-2", None)]
)
def test_range_is_read_unless_unit_is_unknown_or_if_range_fails(value, expected):
    """RFC 9110 14.2."""
    assert wanted_range({b"range": value}, [], 10, 1.7e9) == expected
    assert wanted_range({b"range": value, b"if-range": b'"a"'}, tagged(b'"a"'), 10, 1.7e9) == expected
    assert wanted_range({b"range": value, b"if-range": b'"b"'}, tagged(b'"a"'), 10, 1.7e9) is None


def test_request_without_range_wants_the_whole_response():
    """RFC 9110 13.1.5: If-Range without Range has no effect."""
    assert wanted_range({}, tagged(b'"a"'), 10, 1.7e9) is None
    assert wanted_range({b"if-range": b'"a"'}, tagged(b'"a"'), 10, 1.7e9) is None


SENT = [(b"Date", NEW_YEAR)]


@pytest.mark.parametrize(
    ("condition", "headers", "holds"),
    [
        (b'"a"', tagged(b'"a"'), True),
        (b' "a" ', tagged(b'"a"'), True),
        (b'"b"', tagged(b'"a"'), False),
        (b'"a"', [], False),
        # By the strong comparison.
        (b'W/"a"', tagged(b'W/"a"'), False),
        (b'W/"a"', tagged(b'"a"'), False),
        (b'"a"', tagged(b'W/"a"'), False),
        # One tag, no list.
        (b'"a", "b"', tagged(b'"a"'), False),
        (b"*", tagged(b'"a"'), False),
        # A date has to be the very same, and at least a second before that of the response.
        (BEFORE, [*changed(BEFORE), *SENT], True),
        (BEFORE, [*changed(NEW_YEAR), *SENT], False),
        (AFTER, [*changed(BEFORE), *SENT], False),
        (NEW_YEAR, [*changed(BEFORE), *SENT], False),
        (NEW_YEAR, [*changed(NEW_YEAR), *SENT], False),
        (AFTER, [*changed(AFTER), *SENT], False),
        (BEFORE, changed(BEFORE), False),
        (BEFORE, SENT, False),
        (BEFORE, [*changed(BEFORE), (b"date", b"x")], False),
        (b"yesterday", [*changed(b"yesterday"), *SENT], False),
        (b"a", tagged(b"a"), False),
        # Nothing is no condition.
        (b"", [], True),
        (b" ", [], True),
    ],
)
def test_if_range_holds_for_equal_strong_tag_or_strong_date_only(condition, headers, holds):
    """RFC 9110 13.1.5, 8.8.2.2: strong comparison; where it does not hold, the whole is wanted."""
    assert wanted_range({b"range": b"bytes=2-4", b"if-range": condition}, headers, 10, 1.7e9) == (
        (2, 4) if holds else None
    )


NAMES = [b"etag", b"last-modified", b"date", b"content-length", b"connection", b"content-range", b"vary", b"X"]
HEADERS = st.lists(st.tuples(st.one_of(st.sampled_from(NAMES), st.binary(max_size=15)), FIELD), max_size=10)
ASKED = st.dictionaries(
    st.sampled_from([b"if-none-match", b"if-modified-since", b"if-range", b"range"]), FIELD, max_size=4
)


@given(ASKED, HEADERS, HEADERS, st.floats(0, 1e11), st.integers(0, 2**40))
def test_arbitrary_fields_never_raise(asked, news, stored, received, complete):
    not_modified(asked, stored, received)
    wanted = wanted_range(asked, stored, complete, received)
    assert wanted in (None, (0, -1)) or 0 <= wanted[0] <= wanted[1] < complete
    selects(news, stored)
    describes(news, stored)
    validators(stored)
    strong_etag(stored)
    # Confirming twice changes nothing more.
    once = updated(stored, news)
    assert sorted(updated(once, news)) == sorted(once)
    assert describes(stored, stored) is not False
    assert {name for name, _ in headers_of_304(stored)} <= {name for name, _ in stored} | {b"last-modified"}


@pytest.mark.parametrize(
    "read",
    [
        lambda value: not_modified({b"if-none-match": value}, tagged(b'"b"'), NOW),
        lambda value: not_modified({b"if-modified-since": value}, changed(value), NOW),
        lambda value: wanted_range({b"range": value, b"if-range": value}, [], 10, 1.7e9),
        lambda value: wanted_range({b"range": b"bytes=0-1", b"if-range": value}, [*changed(value), *SENT], 10, 1.7e9),
        lambda value: selects([*tagged(value), *changed(value)], [*tagged(value), *changed(value)]),
        lambda value: updated([(b"connection", value), (b"x", value)], [(b"connection", value), (value, b"")]),
    ],
)
def test_hostile_fields_are_read_in_linear_time(read):
    """Linear, whatever a client sends: a quadratic reading of this would take minutes."""
    for value in hostile():
        read(value)


@pytest.mark.parametrize(
    ("news", "selected"), [([], True), ([(b"last-modified", b"y")], False), ([(b"last-modified", b"x")], True)]
)
def test_304_without_etag_selects_the_response_unless_last_modified_differs(news, selected):
    """RFC 9111 4.3.4; a 304 without any validator can only confirm the response that was asked about."""
    stored = [(b"etag", b'"a"'), (b"last-modified", b"x")]
    assert selects(news, stored) is selected


def test_if_range_fails_for_two_digit_year_date_that_equals_the_response_date():
    """RFC 9110 8.8.2.2, 5.6.7: a Last-Modified in the same second as the Date is not a strong validator."""
    changed = b"Monday, 01-Jan-24 00:00:00 GMT"
    headers = [(b"last-modified", changed), (b"date", b"Mon, 01 Jan 2024 00:00:00 GMT")]
    assert wanted_range({b"range": b"bytes=0-1", b"if-range": changed}, headers, 10, 1.8e9) is None
