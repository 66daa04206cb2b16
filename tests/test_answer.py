"""How a stored response goes out: whole, as 304, as a range, without a body (RFC 9110 13.2.2, RFC 9111 3.3, 3.4)."""

import math
from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swr import Policy, State
from swr.entry import stamp
from swr.http.caching import Verdict
from swr.http.stored_response import (
    StoredResponse,
    Varies,
    answers_range,
    as_stored,
    combined,
    is_response,
    make_ready,
    marked,
    marks_of,
    messages_of,
    part_of,
    validated,
)
from swr.middleware.request import Request
from tests.test_fields import FIELD

NOW = 1704067200.0
BEFORE = b"Sun, 31 Dec 2023 23:59:59 GMT"
NEW_YEAR = b"Mon, 01 Jan 2024 00:00:00 GMT"
BODY = b"0123456789"
HEADERS = [
    (b"ETag", b'"a"'),
    (b"Content-Length", b"10"),
    (b"content-type", b"text/plain"),
    (b"last-modified", BEFORE),
    (b"date", NEW_YEAR),
]
MARKS = [(b"age", b"7")]


def asking(method="GET", **fields):
    headers = [(name.replace("_", "-").encode(), value) for name, value in fields.items()]
    scope = {"type": "http", "method": method, "scheme": "http", "path": "/a", "query_string": b"", "headers": headers}
    return Request(scope, [])


def entry_of(stored, policy=Policy(60), created_at=NOW):
    return stamp(stored, policy, created_at)


def answer(request, stored):
    start, body = messages_of(request.method, request.fields, entry_of(stored), stored.headers, MARKS)
    assert (start["type"], body["type"]) == ("http.response.start", "http.response.body")
    assert not body.get("more_body")
    assert start["headers"][-1:] == MARKS
    return start["status"], start["headers"][:-1], body["body"]


def part(first, body, complete=10, etag=b'"a"', **more):
    """A stored part, its place as `part_of` finds it."""
    place = b"bytes %d-%d/%d" % (first, first + len(body) - 1, complete)
    headers = [(b"ETag", etag), (b"content-length", b"%d" % len(body)), (b"content-range", place)]
    return StoredResponse(206, headers, body, first=first, complete=complete, **more)


WHOLE = StoredResponse(200, HEADERS, BODY)


def test_stored_response_leaves_out_fields_that_must_not_be_stored():
    """RFC 9111 3.1, 5.2.2.4, 5.2.2.7."""
    verdict = Verdict(
        Policy(60), "", True, 7, ("x",), strict=True, validate=True, stale_if_error=5.0, hidden=frozenset({b"x-user"})
    )
    headers = [(b"ETag", b'"a"'), (b"Connection", b"x"), (b"x", b"1"), (b"X-User", b"1"), (b"Age", b"7")]
    found = as_stored(203, headers, BODY, verdict)
    assert found == StoredResponse(203, [(b"ETag", b'"a"')], BODY, True, 7, True, True, 5.0, names=("x",))
    assert as_stored(200, [], b"", Verdict(Policy(1))) == StoredResponse(200, [], b"")


# -- messages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 203, 301, 404, 503])
def test_get_receives_whole_stored_response_with_its_status(status):
    stored = StoredResponse(status, HEADERS, BODY)
    assert answer(asking(), stored) == (status, HEADERS, BODY)


@pytest.mark.parametrize("status", [200, 404])
def test_head_receives_fields_of_get_without_body(status):
    """RFC 9110 9.3.2: the fields are those of GET, Content-Length too; a range is for GET alone (14.2)."""
    stored = StoredResponse(status, HEADERS, BODY)
    assert answer(asking("HEAD"), stored) == (status, HEADERS, b"")
    assert answer(asking("HEAD", range=b"bytes=2-4"), stored) == (status, HEADERS, b"")


IN_304 = [(b"ETag", b'"a"'), (b"date", NEW_YEAR)]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "fields",
    [
        {"if_none_match": b'"a"'},
        {"if_none_match": b'"b", W/"a"'},
        {"if_none_match": b"*"},
        {"if_modified_since": BEFORE},
        {"if_modified_since": NEW_YEAR},
        # The condition first: of what has not been modified no range is wanted.
        {"if_none_match": b'"a"', "range": b"bytes=2-4"},
        {"if_none_match": b'"a"', "range": b"bytes=10-"},
        {"if_none_match": b'"a"', "range": b"bytes=2-4", "if_range": b'"b"'},
        {"if_modified_since": NEW_YEAR, "range": b"bytes=2-4"},
    ],
)
def test_matching_condition_is_answered_with_304(method, fields):
    """RFC 9110 13.1.2, 13.1.3, 13.2.2, 15.4.5."""
    assert answer(asking(method, **fields), WHOLE) == (304, IN_304, b"")


@pytest.mark.parametrize(
    "fields",
    [
        {"if_none_match": b'"b"'},
        {"if_none_match": b'"b"', "if_modified_since": NEW_YEAR},
        {"if_modified_since": b"Sun, 31 Dec 2023 23:59:58 GMT"},
        {"if_modified_since": b"yesterday"},
        {"if_range": b'"a"'},
    ],
)
def test_condition_that_does_not_match_is_answered_with_whole_response(fields):
    """RFC 9110 13.1.2, 13.1.3, 13.1.5."""
    assert answer(asking(**fields), WHOLE) == (200, HEADERS, BODY)


def test_if_modified_since_uses_creation_time_without_last_modified_and_date():
    """RFC 9111 4.3.2: swr takes the creation time if a response has neither Last-Modified nor Date."""
    stored = StoredResponse(200, [], BODY)
    assert answer(asking(if_modified_since=NEW_YEAR), stored) == (304, [], b"")
    assert answer(asking(if_modified_since=BEFORE), stored) == (200, [], BODY)


@pytest.mark.parametrize("status", [203, 301, 404, 503])
def test_status_other_than_200_ignores_conditions_and_ranges(status):
    """RFC 9110 13.2.1, 14.2."""
    stored = StoredResponse(status, HEADERS, BODY)
    for fields in ({"if_none_match": b'"a"'}, {"if_modified_since": NEW_YEAR}, {"range": b"bytes=2-4"}):
        assert answer(asking(**fields), stored) == (status, HEADERS, BODY)


@pytest.mark.parametrize(
    ("fields", "place", "body"),
    [
        ({"range": b"bytes=2-4"}, b"bytes 2-4/10", b"234"),
        ({"range": b"bytes=0-0"}, b"bytes 0-0/10", b"0"),
        ({"range": b"bytes=-3"}, b"bytes 7-9/10", b"789"),
        ({"range": b"bytes=7-"}, b"bytes 7-9/10", b"789"),
        ({"range": b"bytes=0-99"}, b"bytes 0-9/10", BODY),
        ({"range": b"bytes=2-4", "if_range": b'"a"'}, b"bytes 2-4/10", b"234"),
        ({"range": b"bytes=2-4", "if_range": BEFORE}, b"bytes 2-4/10", b"234"),
        # A condition that asks for what there is: then the range.
        ({"range": b"bytes=2-4", "if_none_match": b'"b"'}, b"bytes 2-4/10", b"234"),
        ({"range": b"bytes=2-4", "if_modified_since": b"yesterday"}, b"bytes 2-4/10", b"234"),
    ],
)
def test_range_of_whole_response_is_answered_with_206(fields, place, body):
    """RFC 9110 14.2, 15.3.7: the answer has all fields of the 200, and its own Content-Range and Content-Length."""
    status, headers, found = answer(asking(**fields), WHOLE)
    kept = [pair for pair in HEADERS if pair[0] != b"Content-Length"]
    assert (status, found) == (206, body)
    assert headers == [*kept, (b"content-range", place), (b"content-length", b"%d" % len(body))]
    assert WHOLE.headers == HEADERS


@pytest.mark.parametrize(
    "fields",
    [
        {"range": b"bytes=4-2"},
        {"range": b"bytes=0-1,3-4"},
        {"range": b"lines=0-1"},
        {"range": b""},
        {"range": b"bytes=2-4", "if_range": b'"b"'},
        {"range": b"bytes=2-4", "if_range": b'W/"a"'},
        {"range": b"bytes=2-4", "if_range": NEW_YEAR},
        {"range": b"bytes=10-", "if_range": b'"b"'},
    ],
)
def test_invalid_or_outdated_range_is_answered_with_whole_response(fields):
    """RFC 9110 13.1.5, 14.2."""
    assert answer(asking(**fields), WHOLE) == (200, HEADERS, BODY)


@pytest.mark.parametrize("fields", [{"range": b"bytes=10-"}, {"range": b"bytes=-0"}])
@pytest.mark.parametrize("stored", [WHOLE, part(2, b"234")])
def test_range_beyond_the_end_is_answered_with_416_and_complete_length(fields, stored):
    """RFC 9110 15.5.17: the answer gives the complete length and has no body."""
    expected = [(b"content-range", b"bytes */10"), (b"content-length", b"0")]
    assert answer(asking(**fields), stored) == (416, expected, b"")
    assert answer(asking(**fields, if_range=b'"a"'), stored) == (416, expected, b"")


@pytest.mark.parametrize(
    ("value", "place", "body"),
    [
        (b"bytes=2-6", b"bytes 2-6/10", b"23456"),
        (b"bytes=3-4", b"bytes 3-4/10", b"34"),
        (b"bytes=6-6", b"bytes 6-6/10", b"6"),
    ],
)
def test_range_within_stored_part_counts_from_beginning_of_whole(value, place, body):
    """RFC 9111 3.3: positions count from the beginning of the whole."""
    status, headers, found = answer(asking(range=value), part(2, b"23456"))
    assert (status, found) == (206, body)
    assert headers == [(b"ETag", b'"a"'), (b"content-range", place), (b"content-length", b"%d" % len(body))]


@pytest.mark.parametrize("status", [None, b"swr; fwd=stale"])
def test_answer_carries_age_state_and_cache_status(status):
    """RFC 9111 5.1, RFC 9211 2."""
    sent = []
    stored = StoredResponse(200, HEADERS, BODY, initial_age=100)
    for now, state in [(NOW + 7.5, State.FRESH), (NOW - 5, State.FRESH), (NOW + 60.5, State.STALE)]:
        sent += messages_of("GET", {}, entry_of(stored), stored.headers, marks_of(entry_of(stored), state, now, status))
    marks = [message["headers"][len(HEADERS) :] for message in sent[::2]]
    assert [body["body"] for body in sent[1::2]] == [BODY] * 3
    assert marks == [
        [(b"age", b"107"), (b"swr-state", b"fresh"), (b"cache-status", status or b"swr; hit; ttl=52")],
        # A clock that was set back makes nothing younger than it was.
        [(b"age", b"100"), (b"swr-state", b"fresh"), (b"cache-status", status or b"swr; hit; ttl=65")],
        [(b"age", b"160"), (b"swr-state", b"stale"), (b"cache-status", status or b"swr; hit; ttl=-1")],
    ]


def test_confirmed_response_carries_its_age_and_the_state_missing():
    found = validated(entry_of(StoredResponse(200, [], b"", initial_age=3)), NOW + 1, b"swr; fwd=stale; fwd-status=304")
    expected = [(b"age", b"4"), (b"swr-state", b"missing"), (b"cache-status", b"swr; fwd=stale; fwd-status=304")]
    assert found == expected


def test_passed_through_response_keeps_cache_status_of_others_and_not_their_state():
    """RFC 9211 2: each cache appends itself to Cache-Status, but there is one SWR-State."""
    message = {"type": "x", "status": 200, "headers": [(b"SWR-State", b"fresh"), (b"Cache-Status", b"up; hit")]}
    mine = [(b"swr-state", b"missing"), (b"cache-status", b"swr; fwd=uri-miss")]
    found = marked(message, b"swr; fwd=uri-miss")
    assert found == {"type": "x", "status": 200, "headers": [(b"Cache-Status", b"up; hit"), *mine]}
    assert marked({"type": "x"}, b"swr; fwd=uri-miss") == {"type": "x", "headers": mine}


def test_is_response_rejects_list_of_variants_and_none():
    assert is_response(entry_of(WHOLE))
    assert not is_response(entry_of(Varies(("a",))))
    assert not is_response(None)


# -- the fresh hit ------------------------------------------------------------------------------------------------


def test_ready_fresh_hit_holds_headers_of_200_and_304():
    """RFC 9111 5.1, RFC 9211 2.4, RFC 9110 15.4.5."""
    stored = StoredResponse(200, HEADERS, BODY, initial_age=100)
    ready = make_ready(entry_of(stored), NOW + 7.25, None, None)
    marks = [(b"age", b"107"), (b"swr-state", b"fresh"), (b"cache-status", b"swr; hit; ttl=52")]
    assert astuple(ready)[:4] == (NOW + 8, [*HEADERS, *marks], [*IN_304, *marks], b'"a"')


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (200, HEADERS, b'"a"'),
        (200, [(b"etag", b'W/"a"')], b'W/"a"'),
        (200, [], None),
        (200, [(b"etag", b"a")], None),
        (203, HEADERS, None),
        (404, HEADERS, None),
    ],
)
def test_only_200_with_valid_entity_tag_prepares_a_304(status, headers, expected):
    """RFC 9110 13.2.1: only a 200 with an entity tag is answered with a 304 to clients that hold the same tag."""
    assert make_ready(entry_of(StoredResponse(status, headers, BODY)), NOW, None, None).etag == expected


@pytest.mark.parametrize(
    ("created_at", "fresh_for", "now", "until"),
    [
        (NOW, 60, NOW, NOW),
        (NOW, 60, NOW + 0.25, NOW + 1),
        (NOW, 60, NOW + 59.5, NOW + 60),
        # The seconds of the age and of the lifetime need not begin together.
        (NOW + 0.5, 60.25, NOW + 0.5, NOW + 0.75),
        (NOW + 0.5, 60.25, NOW + 1, NOW + 1.5),
        (NOW + 0.5, 60.25, NOW + 1.5, NOW + 1.75),
        (NOW + 0.5, 0.25, NOW + 0.5, NOW + 0.75),
    ],
)
def test_ready_headers_expire_when_age_or_ttl_changes(created_at, fresh_for, now, until):
    """`Age` and `ttl` count whole seconds, so the ready fields hold until either changes."""
    assert make_ready(entry_of(WHOLE, Policy(fresh_for), created_at), now, None, None).until == until


@given(st.integers(0, 8), st.integers(1, 40), st.integers(0, 39), st.integers(0, 16))
def test_ready_headers_equal_new_ones_until_they_expire(begun, fresh, at, later):
    """The times are quarters of a second, which floats represent exactly."""
    entry = entry_of(WHOLE, Policy(fresh / 4), NOW + begun / 4)
    now = entry.created_at + min(at, fresh - 1) / 4
    ready = make_ready(entry, now, None, None)
    then = now + later / 4
    assert now <= ready.until <= entry.fresh_until
    assert math.floor(ready.until - now) <= 1
    if then < ready.until:
        assert astuple(make_ready(entry, then, None, None))[1:] == astuple(ready)[1:]
    if now < ready.until < entry.fresh_until:
        assert astuple(make_ready(entry, ready.until + 1 / 8, None, None))[1:] != astuple(ready)[1:]


# -- parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "body", "expected"),
    [
        (b"bytes 2-4/10", b"234", (2, 10)),
        (b"bytes 0-9/10", BODY, (0, 10)),
        # As much as came of it.
        (b"bytes 2-4/10", b"23", (2, 10)),
        (b"bytes 2-4/10", b"2345", None),
        (b"bytes 2-4/10", b"", None),
        (b"bytes 2-4/*", b"234", None),
        (b"bytes */10", b"234", None),
        (b"bytes 4-2/10", b"234", None),
        (b"x", b"234", None),
    ],
)
def test_part_is_stored_only_with_valid_content_range(place, body, expected):
    """RFC 9111 3.3, RFC 9110 14.4: a part without a valid place cannot be used."""
    stored = StoredResponse(206, [(b"Content-Range", place)], body, shared=True, initial_age=3)
    found = part_of(stored)
    assert (None if found is None else (found.first, found.complete)) == expected
    if found is not None:
        assert found == StoredResponse(206, stored.headers, body, True, 3, first=expected[0], complete=expected[1])


def test_response_without_exactly_one_content_range_is_no_part():
    """RFC 9110 15.3.7.2: a response with several ranges has their places in its body."""
    assert part_of(StoredResponse(206, [], b"234")) is None
    assert part_of(StoredResponse(206, [(b"content-range", b"bytes 2-4/10")] * 2, b"234")) is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"range": b"bytes=2-4"}, True),
        ({"range": b"bytes=2-6"}, True),
        ({"range": b"bytes=6-6"}, True),
        ({"range": b"bytes=1-4"}, False),
        ({"range": b"bytes=2-7"}, False),
        ({"range": b"bytes=2-"}, False),
        ({"range": b"bytes=-4"}, False),
        ({"range": b"bytes=7-9"}, False),
        ({"range": b"bytes=0-1"}, False),
        # That there is nothing it shows, too.
        ({"range": b"bytes=10-"}, True),
        # The whole is not there.
        ({}, False),
        ({"range": b"bytes=4-2"}, False),
        ({"range": b"bytes=2-4,6-6"}, False),
        ({"range": b"bytes=2-4", "if_range": b'"a"'}, True),
        ({"range": b"bytes=2-4", "if_range": b'"b"'}, False),
        ({"range": b"bytes=10-", "if_range": b'"b"'}, False),
    ],
)
def test_stored_part_answers_only_ranges_within_it(fields, expected):
    """RFC 9111 3.3: a stored part answers only requests for bytes within it."""
    assert answers_range(asking(**fields).fields, part(2, b"23456"), 0) is expected


def test_stored_part_at_the_end_answers_suffix_ranges_within_it():
    assert answers_range(asking(range=b"bytes=-3").fields, part(7, b"789"), 0)
    assert answers_range(asking(range=b"bytes=8-").fields, part(7, b"789"), 0)
    assert not answers_range(asking(range=b"bytes=-4").fields, part(7, b"789"), 0)


def test_whole_response_is_not_treated_as_part():
    assert not answers_range(asking(range=b"bytes=2-4").fields, WHOLE, 0)


@pytest.mark.parametrize(
    ("known", "new", "first", "body"),
    [
        ((0, b"012"), (3, b"345"), 0, b"012345"),
        ((3, b"345"), (0, b"012"), 0, b"012345"),
        ((0, b"0123"), (2, b"2345"), 0, b"012345"),
        ((2, b"2345"), (0, b"0123"), 0, b"012345"),
        ((1, b"12345"), (2, b"23"), 1, b"12345"),
        ((2, b"23"), (1, b"12345"), 1, b"12345"),
        ((2, b"23"), (2, b"23"), 2, b"23"),
        ((4, b"4"), (5, b"56789"), 4, b"456789"),
    ],
)
def test_adjacent_or_overlapping_parts_are_joined(known, new, first, body):
    """RFC 9111 3.4, RFC 9110 15.3.7.3."""
    found = combined(part(*known), part(*new))
    assert (found.status, found.first, found.body, found.complete) == (206, first, body, 10)
    assert type(found.body) is bytes
    for at in range(first, first + len(body)):
        assert answer(asking(range=b"bytes=%d-%d" % (at, at)), found)[2] == BODY[at : at + 1]


@pytest.mark.parametrize(
    ("known", "new"),
    [((0, b"01234"), (5, b"56789")), ((5, b"56789"), (0, b"01234")), ((0, BODY), (3, b"345")), ((3, b"3"), (0, BODY))],
)
def test_parts_that_cover_everything_are_joined_to_a_200(known, new):
    """RFC 9111 3.4: then it is a complete response, without Content-Range."""
    found = combined(part(*known), part(*new))
    expected = [(b"ETag", b'"a"'), (b"content-length", b"10")]
    assert found == StoredResponse(200, expected, BODY)
    assert answer(asking(), found) == (200, expected, BODY)


def test_new_part_overrides_fields_and_bytes_of_known_part():
    """RFC 9111 3.4, 3.2: the new part decides on fields, bytes and directives."""
    known = part(0, b"0123", shared=False, initial_age=9, strict=True)
    known.headers += [(b"x", b"old"), (b"y", b"old")]
    new = part(2, b"XX45", shared=True, initial_age=1, validate=True, stale_if_error=3.0)
    new.headers += [(b"X", b"new")]
    found = combined(known, new)
    assert found.body == b"01XX45"
    assert (b"X", b"new") in found.headers
    assert (b"y", b"old") in found.headers
    assert (b"x", b"old") not in found.headers
    said = (found.shared, found.initial_age, found.strict, found.validate, found.stale_if_error)
    assert said == (True, 1, False, True, 3.0)


@pytest.mark.parametrize(
    ("known", "new"),
    [
        # A gap, on either side.
        (part(0, b"01"), part(3, b"345")),
        (part(3, b"345"), part(0, b"01")),
        # Not the same strong tag.
        (part(0, b"012", etag=b'"b"'), part(3, b"345")),
        (part(0, b"012", etag=b'W/"a"'), part(3, b"345")),
        (part(0, b"012"), part(3, b"345", etag=b'W/"a"')),
        (part(0, b"012", etag=b'W/"a"'), part(3, b"345", etag=b'W/"a"')),
        (part(0, b"012", etag=b"a"), part(3, b"345", etag=b"a")),
        # Not of one length.
        (part(0, b"012", complete=11), part(3, b"345")),
    ],
)
def test_new_part_replaces_known_part_that_cannot_be_joined(known, new):
    """RFC 9111 3.4: parts are joined only if they share a strong validator and leave no gap."""
    assert combined(known, new) is new


@given(st.integers(0, 9), st.integers(1, 10), st.integers(0, 9), st.integers(1, 10))
def test_joined_part_holds_every_byte_of_both_parts(one, length, other, size):
    """RFC 9111 3.4."""
    known, new = part(one, BODY[one : one + length]), part(other, BODY[other : other + size])
    found = combined(known, new)
    covered = {*range(one, min(10, one + length)), *range(other, min(10, other + size))}
    if found is not new:
        assert found.body == BODY[found.first : found.first + len(found.body)]
        assert covered == set(range(found.first, found.first + len(found.body)))
        assert (found.complete is None) is (len(found.body) == 10) is (found.status == 200)
    else:
        assert len(covered) < max(covered) - min(covered) + 1


ASKED = st.dictionaries(st.sampled_from(["range", "if_range", "if_none_match", "if_modified_since"]), FIELD, max_size=4)
NAMES = [b"etag", b"last-modified", b"date", b"content-range", b"content-length"]
FIELDS = st.lists(st.tuples(st.sampled_from(NAMES), FIELD), max_size=6)


@pytest.mark.uncounted
@given(ASKED, FIELDS, FIELDS, st.binary(max_size=20), st.sampled_from(["GET", "HEAD"]))
def test_arbitrary_fields_and_bodies_raise_no_error(asked, headers, others, body, method):
    request, stored = asking(method, **asked), as_stored(200, headers, body, Verdict(Policy(1)))
    status, sent, content = answer(request, stored)
    assert status in (200, 206, 304, 416)
    assert content in body
    assert status != 206 or dict(sent)[b"content-length"] == b"%d" % len(content)
    ready = make_ready(entry_of(stored), NOW, None, None)
    assert ready.headers[: len(headers)] == headers
    for place in (b"bytes 0-%d/30" % max(0, len(body) - 1), b"bytes 1-%d/30" % len(body), b"bytes 0-0/1"):
        new = part_of(as_stored(206, [*others, (b"content-range", place)], body, Verdict(Policy(1))))
        old = part_of(as_stored(206, [(b"content-range", place)], body, Verdict(Policy(1))))
        if new is not None and old is not None:
            combined(old, new)
            if answers_range(request.fields, new, 0):
                answer(request, new)
