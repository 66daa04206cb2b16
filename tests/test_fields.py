"""How header fields are written: RFC 9111, 9110 and 9651, without what they mean."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swr.http.fields import (
    byte_range,
    content_length,
    content_range,
    delta_seconds,
    etag_of,
    etags,
    http_date,
    parse_directives,
    parse_targeted_directives,
    strings,
    unspaced,
    values_of,
)

# 2024-01-01T00:00:00Z, and half a year later.
NEW_YEAR = 1704067200
JULY = NEW_YEAR + 182 * 86400

# Pieces of what these functions read: text made of them comes nearer to the grammar than random bytes.
PIECES = [
    *(bytes([char]) for char in b' \t,;=()"\\:@?%*-./0159aZ\x00\x7f\x80\xff'),
    b'W/"',
    b'""',
    b"bytes",
    b"max-age=",
    b"s-maxage",
    b"private",
    b"no-cache",
    b"stale-if-error=5",
    b"public",
    b"99999999999999999999",
    b"Mon, 01 Jan 2024 00:00:00 GMT",
    b"Monday, 01-Jan-24 00:00:00 GMT",
    b"Mon Jan  1 00:00:00 2024",
    b"0001",
    b"Sun, 31 Feb 0000 99:99:99 GMT",
]
FIELD = st.one_of(st.binary(max_size=40), st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join))


def hostile(size=50_000):
    """Values of `size` bytes that a reading which goes back to where it began would take minutes for."""
    for start, repeated in [
        (b"", b","),
        (b"", b'"'),
        (b"", b" "),
        (b"", b"a,"),
        (b"", b'"\\'),
        (b"", b'W/"'),
        (b"", b"="),
        (b"", b"0"),
        (b'"', b"a"),
        (b'"', b'\\"'),
        (b'W/"', b"a "),
        (b"a=(", b"a "),
        (b"a=(", b"("),
        (b"a;b", b";b"),
        (b'"a";b=', b'"" '),
        (b"a=:", b"a"),
        (b'a=%"', b"%00"),
        (b"bytes", b" "),
        (b"bytes=1", b"1"),
        (b"bytes 1-2", b"0"),
    ]:
        yield (start + repeated * (size // len(repeated)))[:size]


def test_values_of_returns_all_lines_of_a_field_in_order():
    """RFC 9110 5.1, 5.3: names are compared without regard to case, the order of lines counts."""
    headers = [(b"Vary", b"b"), (b"age", b"1"), (b"vary", b"a"), (b"VARY", b""), (b"vary2", b"c")]
    assert values_of(headers, b"vary") == [b"b", b"a", b""]
    assert values_of(headers, b"etag") == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], {}),
        ([b""], {}),
        ([b" , ,,"], {}),
        ([b"max-age=60"], {"max-age": "60"}),
        ([b"MAX-AGE=60, Public"], {"max-age": "60", "public": None}),
        ([b"max-age=60", b"max-age=5, public"], {"max-age": "60", "public": None}),
        ([b"max-age", b"max-age=5"], {"max-age": None}),
        ([b'max-age="60"'], {"max-age": "60"}),
        ([b' , max-age = "60" ,,s-maxage=1\t'], {"max-age": "60", "s-maxage": "1"}),
        ([b'private="set-cookie, x", no-store'], {"private": "set-cookie, x", "no-store": None}),
        ([b'ext="no-store, a=b", public'], {"ext": "no-store, a=b", "public": None}),
        ([b'ext="a\\"b, c", public'], {"ext": 'a"b, c', "public": None}),
        ([b'ext="a\\\\", public'], {"ext": "a\\", "public": None}),
        ([b'ext="a\\,b", public'], {"ext": "a,b", "public": None}),
        ([b'ext="a, b', b"c"], {"ext": "a, b,c"}),
        ([b'ext="", public='], {"ext": "", "public": ""}),
        ([b"ext=a=b"], {"ext": "a=b"}),
        ([b"=5, public"], {"public": None}),
        ([b"max-age=1.5, max-stale"], {"max-age": "1.5", "max-stale": None}),
        ([b"ext=\xe9"], {"ext": "\xe9"}),
    ],
)
def test_parse_directives_keeps_the_first_argument_of_each_name(values, expected):
    """RFC 9111 5.2: a list of names, each with or without an argument, a token or quoted; the first of a name."""
    assert parse_directives(values) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([b"max-age=60"], {"max-age": "60"}),
        ([b"max-age=60, no-store"], {"max-age": "60", "no-store": None}),
        ([b" max-age=60 ,\t no-store "], {"max-age": "60", "no-store": None}),
        ([b"max-age=60", b"no-store"], {"max-age": "60", "no-store": None}),
        ([b'private="x, y"'], {"private": "x, y"}),
        ([b'no-cache="x"'], {"no-cache": "x"}),
        ([b"private"], {"private": None}),
        # Of a name that comes twice the last counts, in its place.
        ([b"max-age=60, a, max-age=5"], {"a": None, "max-age": "5"}),
        # Booleans.
        ([b"no-store=?1, public=?0"], {"no-store": None}),
        ([b"public, public=?0"], {}),
        # Parameters are ignored.
        ([b'max-age=60;a;b=1; c=?0;  d="x";*e=tok, no-store;a=1'], {"max-age": "60", "no-store": None}),
        ([b"a=b;c"], {"a": "b"}),
        # All types are read.
        (
            [b"a=-5, b=1.5, c=tok/en:x, d=:YQ==:, e=@1, *f=*t, g.h_i-j*=1"],
            {"a": "-5", "b": "1.5", "c": "tok/en:x", "d": ":YQ==:", "e": "@1", "*f": "*t", "g.h_i-j*": "1"},
        ),
        ([b"max-age=999999999999999"], {"max-age": "999999999999999"}),
        ([b'a=%"%c3%a9 x"'], {"a": '%"%c3%a9 x"'}),
    ],
)
def test_parse_targeted_directives_reads_a_dictionary_and_ignores_parameters(values, expected):
    """RFC 9213 2.1: a dictionary of RFC 9651 3.2; parameters do not matter."""
    assert parse_targeted_directives(values) == expected
    assert list(parse_targeted_directives(values)) == list(expected)


@pytest.mark.parametrize(
    "value",
    [
        b'max-age="60"',
        b"max-age=60.0",
        b"max-age=-60",
        b"max-age",
        b"max-age=a",
        b"max-age=@60",
        b"max-age=:YQ==:",
        b"max-age=(60)",
        b'max-age=("60" 5;a)',
        b"max-age=( 60  70 )",
        b"max-age=()",
        b'max-age=%"60"',
        b"max-age=?1",
    ],
)
def test_targeted_max_age_that_is_not_an_integer_has_no_delta_seconds(value):
    """RFC 9213 2.1: what is of another type is not to be taken for the right one."""
    found = parse_targeted_directives([value])
    assert found is not None
    assert "max-age" in found
    assert delta_seconds(found["max-age"]) is None


@pytest.mark.parametrize(
    "values",
    [
        [],
        [b""],
        [b"  "],
        [b","],
        [b"max-age=60,"],
        [b"max-age=60, "],
        [b",max-age=60"],
        [b"max-age=60,,no-store"],
        [b"max-age=60", b""],
        [b"\tmax-age=60"],
        [b"Max-Age=60"],
        [b"1=60"],
        [b'"a"'],
        [b"max-age= 60"],
        [b"max-age =60"],
        [b"max-age="],
        [b"max-age=60 no-store"],
        [b"max-age=60 x"],
        [b"max-age=+60"],
        [b"max-age=-"],
        [b"max-age=9999999999999999"],
        [b"max-age=60."],
        [b"max-age=1.5555"],
        [b"max-age=1.5.5"],
        [b"max-age=1234567890123.5"],
        [b"max-age=?2"],
        [b"max-age=?"],
        [b'a="b'],
        [b'a="b\\c"'],
        [b'a="\x80"'],
        [b'a="\t"'],
        [b"a=:b"],
        [b"a=:b!:"],
        [b"a=@x"],
        [b"a=@1.5"],
        [b'a=%"%C3"'],
        [b'a=%"x'],
        [b"a=\xe9"],
        [b"a=(b"],
        [b"a=(b,c)"],
        [b'a=("b""c")'],
        [b"a=(b;)"],
        [b"a=(b;C)"],
        [b"a=((b))"],
        [b"a=(b)x"],
        [b"a=()()"],
        [b"a;"],
        [b"a;B"],
        [b"a;b="],
        [b"a;b=()"],
        [b"a ;b"],
        [b"a=1;b=+"],
    ],
)
def test_targeted_field_that_is_not_a_valid_dictionary_counts_as_missing(values):
    """RFC 9213 2.1: an empty field, or one that cannot be parsed (RFC 9651 4.2), counts as missing."""
    assert parse_targeted_directives(values) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([b'"a"'], ["a"]),
        ([b'"a", "b"'], ["a", "b"]),
        ([b' "a" ,\t"b" '], ["a", "b"]),
        ([b'"a"', b'"b"'], ["a", "b"]),
        ([b'"a";x;y=1, "B c"'], ["a", "B c"]),
        ([b'"a, b"'], ["a, b"]),
        ([b'"\\"\\\\"'], ['"\\']),
        ([b'""'], [""]),
        ([], []),
        ([b""], []),
        ([b"a"], []),
        ([b"1"], []),
        ([b':YQ==:, "a"'], []),
        ([b'"a", b'], []),
        ([b'("a")'], []),
        ([b'"a", ("b")'], []),
        ([b'"a",'], []),
        ([b'"a" "b"'], []),
        ([b'"a"x'], []),
        ([b'"a";'], []),
        ([b'"a";x='], []),
        ([b'"a'], []),
        ([b'"\\a"'], []),
        ([b'"\xe9"'], []),
    ],
)
def test_strings_returns_an_empty_list_unless_every_member_is_a_string(values, expected):
    """RFC 9875 2: a list of strings of RFC 9651 3.1, all or none."""
    assert strings(values) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("60", 60),
        ("0", 0),
        ("007", 7),
        ("2147483647", 2**31 - 1),
        ("2147483648", 2**31),
        ("2147483649", 2**31),
        ("99999999999999999999", 2**31),
        ("9" * 10_000, 2**31),
        ("0" * 10_000, 0),
        ("0" * 10_000 + "60", 60),
        ("-1", None),
        ("+1", None),
        ("1.5", None),
        ("1_0", None),
        ("0x1", None),
        ("60s", None),
        ("", None),
        (None, None),
        ("١", None),
        ("²", None),
        (" 1", None),
        ("1 ", None),
    ],
)
def test_delta_seconds_reads_only_digits_and_is_at_most_2_to_the_31(text, expected):
    """RFC 9111 1.2.2: digits; what is greater than 2**31 counts as that."""
    assert delta_seconds(text) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"Mon, 01 Jan 2024 00:00:00 GMT", NEW_YEAR),
        (b"Monday, 01-Jan-24 00:00:00 GMT", NEW_YEAR),
        (b"Mon Jan  1 00:00:00 2024", NEW_YEAR),
        (b"Mon Jan 01 00:00:00 2024", NEW_YEAR),
        (b"Sun, 06 Nov 1994 08:49:37 GMT", 784111777),
        (b"Sunday, 06-Nov-94 08:49:37 GMT", 784111777),
        (b"Sun Nov  6 08:49:37 1994", 784111777),
        # Case does not matter to a cache (RFC 9111 4.2).
        (b"mon, 01 JAN 2024 00:00:00 gmt", NEW_YEAR),
        (b"MONDAY, 01-jan-24 00:00:00 GMT", NEW_YEAR),
        # A leap second.
        (b"Sat, 31 Dec 2016 23:59:60 GMT", 1483228799),
        (b"Thu, 01 Jan 1970 00:00:00 GMT", 0),
        (b"Wed, 31 Dec 1969 23:59:59 GMT", -1),
        (b"Fri, 31 Dec 9999 23:59:59 GMT", 253402300799),
        (b"Thu, 29 Feb 2024 00:00:00 GMT", NEW_YEAR + 59 * 86400),
        (b"Wed, 29 Feb 2023 00:00:00 GMT", None),
        (b"Mon, 32 Jan 2024 00:00:00 GMT", None),
        (b"Mon, 00 Jan 2024 00:00:00 GMT", None),
        (b"Mon, 01 Jan 0000 00:00:00 GMT", None),
        (b"Mon, 01 Jan 2024 24:00:00 GMT", None),
        (b"Mon, 01 Jan 2024 00:60:00 GMT", None),
        (b"Mon, 01 Jan 2024 00:00:61 GMT", None),
        (b"Mon, 01 Jan 2024 00:00:00 UTC", None),
        (b"Mon, 01 Jan 2024 00:00:00 EST", None),
        (b"Mon, 01 Jan 2024 00:00:00 +0000", None),
        (b"Mon, 01 Jan 2024 00:00:00", None),
        (b"Mon, 01 Jan 2024 00:00:00 GMT;", None),
        (b"Mon, 01 Jan 2024 00:00:00 GMT\n", None),
        (b"Mon, 01 Jan 2024 00:00 GMT", None),
        (b"Mon, 1 Jan 2024 00:00:00 GMT", None),
        (b"Mon, 01 Jan 24 00:00:00 GMT", None),
        (b"Mon,01 Jan 2024 00:00:00 GMT", None),
        (b"Mon  01 Jan 2024 00:00:00 GMT", None),
        (b"Moo, 01 Jan 2024 00:00:00 GMT", None),
        (b"Mon, 01 Foo 2024 00:00:00 GMT", None),
        (b"01 Jan 2024 00:00:00 GMT", None),
        (b"Monday, 01-Jan-2024 00:00:00 GMT", None),
        (b"Mon, 01-Jan-24 00:00:00 GMT", None),
        (b"Mon Jan 1 00:00:00 2024", None),
        (b"Mon Jan  1 00:00:00 2024 GMT", None),
        (b"Mon, 0\xb2 Jan 2024 00:00:00 GMT", None),
        (b"2024-01-01T00:00:00Z", None),
        (b"1704067200", None),
        (b"0", None),
        (b"-1", None),
        (b"", None),
    ],
)
def test_http_date_reads_three_formats_in_gmt_and_no_other(value, expected):
    """RFC 9110 5.6.7: three formats, in GMT, and no other."""
    assert http_date(value, JULY) == expected


@pytest.mark.parametrize(
    ("year", "now", "expected"),
    [
        (b"24", JULY, 2024),
        (b"25", JULY, 2025),
        (b"00", JULY, 2000),
        (b"70", JULY, 2070),
        (b"73", JULY, 2073),
        (b"75", JULY, 1975),
        (b"99", JULY, 1999),
        (b"94", 784111777, 1994),
        (b"10", 784111777, 2010),
    ],
)
def test_two_digit_year_more_than_50_years_ahead_is_in_the_past(year, now, expected):
    """RFC 9110 5.6.7: what would be more than 50 years ahead is the century before."""
    found = http_date(b"Friday, 15-Mar-%b 00:00:00 GMT" % year, now)
    assert datetime.fromtimestamp(found, UTC).year == expected


@given(st.integers(-62135596800, 253402300799))
def test_http_date_reads_every_second_in_all_three_formats(second):
    """RFC 9110 5.6.7."""
    moment = datetime.fromtimestamp(second, UTC)
    month, day = moment.strftime("%b"), moment.strftime("%a")
    year, clock = f"{moment.year:04}", moment.strftime("%H:%M:%S")
    assert http_date(f"{day}, {moment.day:02} {month} {year} {clock} GMT".encode(), 0) == second
    assert http_date(f"{day} {month} {moment.day:2} {clock} {year}".encode(), 0) == second
    if 2 < moment.month < 11:
        # Far from where the century of two digits could be another one.
        short = f"{moment.strftime('%A')}, {moment.day:02}-{month}-{year[2:]} {clock} GMT"
        assert http_date(short.encode(), second) == second


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([b'"a"'], b'"a"'),
        ([b'W/"a"'], b'W/"a"'),
        ([b'""'], b'""'),
        ([b'"!#,;\\~\x80\xff"'], b'"!#,;\\~\x80\xff"'),
        ([b'"a"', b'"b"'], b'"a"'),
        ([b"a", b'"b"'], None),
        ([b"a"], None),
        ([b'w/"a"'], None),
        ([b'"a'], None),
        ([b'"a b"'], None),
        ([b'"a"b"'], None),
        ([b'"a\x7f"'], None),
        ([b'"a", "b"'], None),
        ([b'"a"\n'], None),
        ([b""], None),
        ([], None),
    ],
)
def test_etag_of_returns_a_strong_or_weak_tag_and_none_if_malformed(values, expected):
    """RFC 9110 8.8.3: opaque, in quotes, with or without `W/`; what is written otherwise identifies nothing."""
    assert etag_of([(b"ETag", value) for value in values]) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b'"a"', [b'"a"']),
        (b'W/"a"', [b'"a"']),
        (b'"a", W/"b" ,"c"', [b'"a"', b'"b"', b'"c"']),
        (b', "a",, "b" ,', [b'"a"', b'"b"']),
        (b'"a,b", "c"', [b'"a,b"', b'"c"']),
        (b'"W/"', [b'"W/"']),
        (b'""', [b'""']),
        (b"a, b", []),
        (b'"a', []),
        (b"*", []),
        (b"", []),
    ],
)
def test_etags_returns_all_tags_of_a_list_and_weak_ones_as_strong(value, expected):
    """RFC 9110 8.8.3.2, 13.1.2: a list, weak tags as strong ones."""
    assert etags(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"bytes=0-4", (0, 4)),
        (b"bytes=0-0", (0, 0)),
        (b"bytes=9-9", (9, 9)),
        (b"bytes=2-", (2, 9)),
        (b"bytes=0-", (0, 9)),
        (b"bytes=2-100", (2, 9)),
        (b"bytes=-3", (7, 9)),
        (b"bytes=-10", (0, 9)),
        (b"bytes=-100", (0, 9)),
        (b"Bytes=0-4", (0, 4)),
        (b" bytes=0-4\t", (0, 4)),
        (b"bytes=00-04", (0, 4)),
        # Nothing that there is.
        (b"bytes=10-", (0, -1)),
        (b"bytes=10-20", (0, -1)),
        (b"bytes=-0", (0, -1)),
        # No range, or several: to be disregarded.
        (b"", None),
        (b"bytes", None),
        (b"bytes=", None),
        (b"bytes=-", None),
        (b"bytes=4-2", None),
        (b"bytes=20-10", None),
        (b"bytes=a-b", None),
        (b"bytes=1-2-3", None),
        (b"bytes=--1", None),
        (b"bytes=+1-2", None),
        (b"bytes=1 - 2", None),
        (b"bytes=0-1,3-4", None),
        (b"bytes=0-1, 0-1", None),
        (b"bytes: 0-4", None),
        (b"bytes 0-4", None),
        (b"lines=0-4", None),
        (b"0-4", None),
        (b"bytes=" + b"9" * 5000 + b"-", None),
    ],
)
def test_byte_range_reads_one_range_and_disregards_anything_else(value, expected):
    """RFC 9110 14.1.2: one range of bytes, from a position, between two, or of the last so many."""
    assert byte_range(value, 10) == expected


def test_byte_range_from_a_position_is_unsatisfiable_in_an_empty_body():
    """RFC 9110 14.1.2."""
    assert byte_range(b"bytes=0-", 0) == byte_range(b"bytes=0-0", 0) == (0, -1)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 20))
def test_byte_range_selects_the_requested_bytes_of_any_body(first, last, complete):
    """RFC 9110 14.1.2."""
    whole = list(range(complete))
    for value, wanted in [
        (b"bytes=%d-%d" % (first, last), whole[first : last + 1] if first <= last else None),
        (b"bytes=%d-" % first, whole[first:]),
        (b"bytes=-%d" % last, whole[-last:] if last else []),
    ]:
        found = byte_range(value, complete)
        assert (None if found is None else whole[found[0] : found[1] + 1]) == wanted
        assert found is None or found == (0, -1) or 0 <= found[0] <= found[1] < complete


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([b"bytes 0-4/10"], (0, 4, 10)),
        ([b"bytes 9-9/10"], (9, 9, 10)),
        ([b" Bytes 0-9/10\t"], (0, 9, 10)),
        ([b"bytes 0-4/*"], None),
        ([b"bytes */10"], None),
        ([b"bytes 0-10/10"], None),
        ([b"bytes 4-0/10"], None),
        ([b"bytes 0-4"], None),
        ([b"bytes=0-4/10"], None),
        ([b"bytes0-4/10"], None),
        ([b"bytes 0-/10"], None),
        ([b"bytes -4/10"], None),
        ([b"bytes 0-4/10 x"], None),
        ([b"bytes +0-4/10"], None),
        ([b"lines 0-4/10"], None),
        ([b"bytes 0-4/" + b"9" * 5000], None),
        ([b"bytes 0-4/10", b"bytes 0-4/10"], None),
        ([b""], None),
        ([], None),
    ],
)
def test_content_range_reads_a_range_of_known_length_and_nothing_else(values, expected):
    """RFC 9110 14.4: a place in a whole of known length; anything else is not a place."""
    assert content_range([(b"Content-Range", value) for value in values]) == expected


@pytest.mark.uncounted
@given(st.lists(FIELD, max_size=4), st.integers(0, 2**40), st.floats(0, 1e11))
def test_parsers_never_raise_for_any_field_value(values, complete, now):
    for read in (parse_directives, parse_targeted_directives, strings):
        read(values)
    for name, argument in (parse_targeted_directives(values) or {}).items():
        assert name
        delta_seconds(argument)
    for argument in parse_directives(values).values():
        delta_seconds(argument)
    headers = [(name, value) for value in values for name in (b"ETag", b"content-range")]
    etag_of(headers)
    content_range(headers)
    for value in values:
        http_date(value, now)
        etags(value)
        byte_range(value, complete)
        delta_seconds(value.decode("latin-1"))


@pytest.mark.uncounted
@pytest.mark.parametrize(
    "read",
    [
        lambda value: parse_directives([value]),
        lambda value: parse_directives(value[at : at + 1] for at in range(len(value) // 4)),
        lambda value: parse_targeted_directives([value]),
        lambda value: strings([value]),
        lambda value: delta_seconds(value.decode("latin-1")),
        lambda value: http_date(value, NEW_YEAR),
        lambda value: etag_of([(b"etag", value)]),
        etags,
        lambda value: byte_range(value, 10),
        lambda value: content_range([(b"content-range", value)]),
        lambda value: values_of([(value, b"")] * 10, b"etag"),
    ],
)
def test_parsers_finish_on_hostile_values_of_50_kb(read):
    """Linear, whatever anybody sends: a quadratic reading of this would take minutes."""
    for value in hostile():
        read(value)


@pytest.mark.parametrize(
    ("date", "now", "expected"),
    [
        ("01-Jan-74 00:00:00", "2024-01-01", "2074-01-01"),
        ("02-Jan-74 23:00:00", "2024-01-01", "1974-01-02"),
        ("01-Jan-00 00:00:00", "2000-01-01", "2000-01-01"),
        ("01-Jan-00 00:00:00", "2099-06-01", "2100-01-01"),
        ("29-Feb-00 00:00:00", "2050-01-01", None),
    ],
)
def test_two_digit_year_takes_the_latest_century_within_50_years(date, now, expected):
    """RFC 9110 5.6.7. (1 January 2050 is less than fifty years before 29 February 2100, which there never is.)"""
    found = http_date(f"Monday, {date} GMT".encode(), datetime.fromisoformat(f"{now}T00:00:00+00:00").timestamp())
    assert (found and datetime.fromtimestamp(found, UTC).date().isoformat()) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([b"a, b", b"c"], "a,b,c"),
        ([b'"a, b" ,c'], '"a, b",c'),
        ([b",, a b\t,"], ",,a b,"),
        ([b""], ""),
    ],
)
def test_unspaced_drops_white_space_around_commas_outside_quotes(values, expected):
    """RFC 9110 5.6.1: it means nothing, but inside quotes; in a field that is not a list, an empty member may."""
    assert unspaced(values) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [(["7"], 7), (["7", "7"], 7), (["7", "8"], None), (["-7"], None), (["7, 7"], None), ([], None)],
)
def test_content_length_is_none_unless_all_lines_are_the_same_number(values, expected):
    """RFC 9110 8.6."""
    assert content_length([(b"Content-Length", value.encode()) for value in values]) == expected


def test_white_space_around_a_targeted_field_is_ignored():
    """RFC 9651 4.2."""
    assert parse_targeted_directives([b" max-age=60 \t"]) == {"max-age": "60"}


def test_suffix_range_of_empty_body_is_disregarded_but_zero_suffix_is_unsatisfiable():
    """RFC 9110 14.1.2: a suffix of some length is satisfiable."""
    assert byte_range(b"bytes=-5", 0) is None
    assert byte_range(b"bytes=-0", 0) == (0, -1)


# Each is said badly, and each contains a word that forbids.
MALFORMED = [
    ("no-cache; no-store; must-revalidate", {"no-cache", "no-store", "proxy-revalidate"}),
    ("private; max-age=0", {"private", "max-age"}),
    ("private ;max-age=60", {"private"}),
    ("private max-age=0", {"private", "max-age"}),
    ("private\tmax-age=60", {"private"}),
    ("max-age=60 private", {"private"}),
    ("max-age=60; NO-STORE", {"no-store"}),
    ("no-store;", {"no-store"}),
    (";no-store", {"no-store"}),
    ("'no-store'", {"no-store"}),
    ('"no-store"', {"no-store"}),
    ("\xa0no-store\x85", {"no-store"}),
    ("\x0bPrivate", {"private"}),
    ("no-store.", {"no-store"}),
    ("Cache-Control: private", {"private"}),
    ('ext="a, private', {"private"}),
    ('ext="a, public, no-store, max-age=60', {"no-store"}),
    ('ext="a\\", private', {"private"}),
    ('max-age="60, private', {"private"}),
    ('private="set-cookie', {"private"}),
    ('private="set-cookie"x', {"private"}),
    ("no-cache=a b", {"no-cache"}),
    ("max-age=60|no-cache", {"no-cache"}),
    ("public; max-age=0", {"max-age"}),
    ('public; S-MaxAge = "0"', {"s-maxage"}),
]


@pytest.mark.parametrize(("text", "words"), MALFORMED)
def test_malformed_directive_forbids_by_each_restrictive_word_in_it(text, words):
    """What the author wanted is plain enough; nginx and Varnish take these words in any place, too."""
    for values in ([text], ["max-age=60", text], [text, "max-age=60"], ["a=1", text, 'x="y"']):
        found = parse_directives([value.encode("latin-1") for value in values])
        assert words <= found.keys()
        assert all(not found[word] for word in words - {"max-age", "s-maxage"})
        assert found.keys().isdisjoint(("public", "must-revalidate"))


@pytest.mark.parametrize(
    "text",
    [
        'ext="no-store, private"', "x-private", "no-store-x", "x_private", "private2", 'a="b", ext="no-cache; x"',
        "ext=max-age", "max-age=05;", "max-age=0.5;", "mmax-age=0;", "public; max-age=60",
    ],
)  # fmt: skip
def test_text_that_only_resembles_a_restrictive_directive_forbids_nothing(text):
    found = parse_directives([text.encode()])
    assert found.keys().isdisjoint(("no-store", "no-cache", "private", "proxy-revalidate", "must-revalidate"))
    assert found.get("max-age") != "0"


@pytest.mark.parametrize("text", ["public;", "must-understand;", "must-revalidate;", 'public="', "public=a b"])
def test_malformed_permissive_directive_is_ignored(text):
    found = parse_directives([text.encode()])
    assert found.keys().isdisjoint(("public", "must-understand", "must-revalidate"))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"no-cache; no-store; must-revalidate", {"no-cache", "no-store", "proxy-revalidate"}),
        (b"max-age=60;private", {"max-age", "private"}),
        (b"max-age=60; x=no-store, public", {"max-age", "no-store", "public"}),
        (b"public;max-age=0", {"public", "max-age"}),
        (b"private=?0;no-store", {"no-store"}),
    ],
)
def test_restrictive_parameter_of_a_targeted_directive_counts_as_a_directive(value, words):
    """A deviation from RFC 9213 2.1, by which parameters mean nothing."""
    found = parse_targeted_directives([value])
    assert found.keys() == words
