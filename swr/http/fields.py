"""The syntax of header fields, without their meaning. No parser raises, whatever a server hands over."""

import calendar
import re
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Final

Headers = list[tuple[bytes, bytes]]
Directives = dict[str, str | None]

# RFC 9111 1.2.2: greater numbers of seconds count as this number.
LONGEST: Final = 2**31

# swr does not read longer fields: it does not answer such a request from the cache, nor store such a response. Servers
# have similar limits, and parsing takes time in the event loop.
_MOST_BYTES: Final = 2**16
_MOST_LINES: Final = 1000
_LONGEST_TARGET: Final = 2**18
# One member of a list or of a query takes as long to parse as this many more bytes.
_PER_MEMBER: Final = 16

# Directives whose argument, if there is one, names fields.
_NAMING: Final = frozenset({"no-cache", "private"})
# Directives that allow more than their absence does. A malformed one allows nothing.
_PERMITTING: Final = frozenset({"must-revalidate", "must-understand", "public"})
# Words that forbid something, wherever they are in a malformed directive.
_FORBIDDING: Final = re.compile(
    r"(?<![\w-])(?:(?P<word>no-store|no-cache|private|must-revalidate|proxy-revalidate)(?![\w-])"
    r"|(?P<lifetime>s-maxage|max-age)[ \t]{0,9}=[ \t]{0,9}\"?(?P<zero>0)(?![.\w]))",
    re.ASCII | re.IGNORECASE,
)
# Stricter than a token of RFC 9110: a quote or a bar in a directive is also a mistake.
_WELL_FORMED: Final = re.compile(
    r"""[a-z0-9_-]+(?:[ \t]*=[ \t]*(?:[a-z0-9._-]+|"(?:[^"\\]|\\.)*")?)?""", re.DOTALL | re.IGNORECASE
)

# These patterns run in linear time on any input, because no two alternatives begin with the same character.
_MEMBER: Final = re.compile(r'(?:[^",]|"(?:[^"\\]|\\.)*"?)+', re.DOTALL)
_MEMBER_OR_COMMA: Final = re.compile(r',|(?:[^",]|"(?:[^"\\]|\\.)*"?)+', re.DOTALL)
_ETAG: Final = re.compile(rb'(W/)?"[\x21\x23-\x7e\x80-\xff]*"')
_RANGE: Final = re.compile(rb"bytes[ \t]*=[ \t]*(\d{0,18})-(\d{0,18})", re.IGNORECASE)
_CONTENT_RANGE: Final = re.compile(rb"bytes[ \t]+(\d{1,18})-(\d{1,18})/(\d{1,18})", re.IGNORECASE)
# RFC 9110 5.1 and 5.5: the names and values that every server can send.
_NAMES: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]*")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_WORD: Final = re.compile(r"[a-z0-9](?:[_a-z0-9-]*[a-z0-9])?")

_FIFTY: Final = 50
_MONTHS: Final = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_MONTH: Final = "(?P<month>" + "|".join(_MONTHS) + ")"
_TIME: Final = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
_DATES: Final = [
    re.compile(pattern, re.IGNORECASE | re.ASCII)
    for pattern in (
        rf"(?:mon|tue|wed|thu|fri|sat|sun), (?P<day>\d\d) {_MONTH} (?P<year>\d{{4}}) {_TIME} GMT",
        rf"(?:mon|tues|wednes|thurs|fri|satur|sun)day, (?P<day>\d\d)-{_MONTH}-(?P<year>\d\d) {_TIME} GMT",
        rf"(?:mon|tue|wed|thu|fri|sat|sun) {_MONTH} (?P<day>[ \d]\d) {_TIME} (?P<year>\d{{4}})",
    )
]

# The items of RFC 9651 3.3. The pattern must try a decimal before an integer.
_KEY: Final = re.compile(r"[a-z*][a-z0-9_\-.*]*")
_ITEM: Final = re.compile(
    r"""(?P<decimal>-?\d{1,12}\.\d{1,3})(?![\d.])|(?P<integer>-?\d{1,15})(?![\d.])"""
    r"""|"(?P<string>(?:[ !#-\[\]-~]|\\["\\])*)"|(?P<token>[A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:/\-]*)"""
    r"""|\?(?P<boolean>[01])|(?P<binary>:[A-Za-z0-9+/=]*:)|(?P<date>@-?\d{1,15})(?![\d.])"""
    r"""|(?P<display>%"(?:[ !#$&-~]|%[0-9a-f]{2})*")""",
    re.ASCII,
)


def is_too_long(headers: Headers, path: str = "", query: bytes = b"") -> bool:
    """Return whether the fields of a message, or its path and query, are too long for swr to read."""
    if len(headers) > _MOST_LINES or len(path) + len(query) + _PER_MEMBER * query.count(b"&") > _LONGEST_TARGET:
        return True
    length = 0
    for name, value in headers:
        length += len(name) + len(value) + _PER_MEMBER * value.count(b",")
    return length > _MOST_BYTES


def are_well_formed(headers: Headers) -> bool:
    """Return whether a server can send these fields: names are words, and no value has a control character."""
    if not all(name for name, _ in headers) or _NAMES.fullmatch(b"".join([name for name, _ in headers])) is None:
        return False
    return _CONTROL.search(b"".join([value for _, value in headers])) is None


def values_of(headers: Headers, name: bytes) -> list[bytes]:
    """Return the values of all fields called `name` (lower case)."""
    return [value for field, value in headers if field.lower() == name]


def parse_directives(values: Iterable[bytes]) -> Directives:
    """Return the directives of `Cache-Control` fields: lower-case names, arguments unquoted, the first of a name.

    RFC 9111 5.2. swr ignores malformed directives, except for the words in them that forbid something.
    """
    found: Directives = {}
    # The arguments of directives that name fields. If such a directive comes twice, the field names of both count.
    named: dict[str, list[str]] = {}
    for member in _MEMBER.findall(b",".join(values).decode("latin-1")):
        name, equals, argument = member.partition("=")
        name, argument = name.strip(" \t").lower(), argument.strip(" \t")
        if _WELL_FORMED.fullmatch(member.strip(" \t")) is None:
            forbid(found, forbidding_words(member))
            if name in _PERMITTING or name in _NAMING:
                continue
        if argument.startswith('"'):
            argument = re.sub(r"\\(.)", r"\1", argument[1:].removesuffix('"'))
        if name in _NAMING and name in found:
            # A directive without field names is the strictest (4.2.1).
            if found[name] and equals and argument:
                named[name].append(argument)
            else:
                found[name] = None
        elif name:
            found.setdefault(name, argument if equals else None)
            named[name] = [argument]
    return found | {name: ",".join(named[name]) for name in _NAMING if found.get(name)}


def forbidding_words(text: str) -> Directives:
    """Return the directives in malformed text that forbid storing, sharing or serving stale.

    `must-revalidate` comes back as `proxy-revalidate`, which does not also allow answers to requests with credentials.
    """
    found: Directives = {}
    for match in _FORBIDDING.finditer(text):
        word = (match["word"] or match["lifetime"]).lower()
        found["proxy-revalidate" if word == "must-revalidate" else word] = match["zero"]
    return found


def forbid(directives: Directives, words: Directives) -> None:
    """Add the result of `forbidding_words` to `directives`; it counts whichever field it was found in."""
    for word, argument in words.items():
        directives[word] = argument


def parse_targeted_directives(values: Iterable[bytes]) -> Directives | None:
    """Return the directives of a targeted field (RFC 9213 2.1); None if it is empty or not a dictionary (RFC 9651).

    An argument of the wrong type gets a form that no reader of it accepts: `max-age="60"` is not a number of seconds.
    RFC 9213 gives parameters no meaning. Parameters that forbid something count anyway: the author of
    `no-cache; no-store` meant both.
    """
    text = b",".join(values).decode("latin-1").lstrip(" ").rstrip(" \t")
    found: Directives = {}
    words: Directives = {}
    at = 0
    while True:
        key = _KEY.match(text, at)
        if key is None:
            return None
        name, at = key[0], key.end()
        value: str | None = None
        absent = False
        if text[at : at + 1] == "=":
            item = _ITEM.match(text, at + 1)
            if item is not None:
                kind, at = item.lastgroup, item.end()
                value = item[kind or 0]
                if kind == "boolean":
                    value, absent = None, value == "0"
                elif name in _NAMING:
                    # An argument that names no fields makes the directive apply to the whole response.
                    value = value if kind == "string" else None
                elif kind == "string":
                    value = f'"{value}"'
            else:
                inner = _inner_list(text, at + 1)
                if inner is None:
                    return None
                value, at = None if name in _NAMING else "()", inner
        end = _parameters(text, at)
        if end is None:
            return None
        # If a name comes twice, the last one counts (RFC 9651 3.2).
        found.pop(name, None)
        if not absent:
            found[name] = value
        words |= forbidding_words(text[at:end])
        next_at = _separator(text, end)
        if next_at is None:
            forbid(found, words)
            return found if end == len(text) else None
        at = next_at


def strings(values: Iterable[bytes]) -> list[str]:
    """Return the strings of a list of RFC 9651 (`Cache-Groups`: RFC 9875 2); [] if it is malformed."""
    text = b",".join(values).decode("latin-1").lstrip(" ").rstrip(" \t")
    found: list[str] = []
    at = 0
    while True:
        item = _ITEM.match(text, at)
        if item is None or item.lastgroup != "string":
            return []
        found.append(re.sub(r"\\(.)", r"\1", item["string"]))
        end = _parameters(text, item.end())
        if end is None:
            return []
        next_at = _separator(text, end)
        if next_at is None:
            return found if end == len(text) else []
        at = next_at


def _parameters(text: str, at: int) -> int | None:
    """Return the end of the parameters (RFC 9651 3.1.2) that begin at `at`; None if they are malformed."""
    while text[at : at + 1] == ";":
        at += 1
        while text[at : at + 1] == " ":
            at += 1
        key = _KEY.match(text, at)
        if key is None:
            return None
        at = key.end()
        if text[at : at + 1] == "=":
            item = _ITEM.match(text, at + 1)
            if item is None:
                return None
            at = item.end()
    return at


def _inner_list(text: str, at: int) -> int | None:
    """Return the end of the inner list (RFC 9651 3.1.1) that begins at `at`; None if it is malformed."""
    if text[at : at + 1] != "(":
        return None
    at += 1
    while True:
        spaced = text[at : at + 1] == " " or text[at - 1] == "("
        while text[at : at + 1] == " ":
            at += 1
        if text[at : at + 1] == ")":
            return at + 1
        item = _ITEM.match(text, at) if spaced else None
        end = None if item is None else _parameters(text, item.end())
        if end is None:
            return None
        at = end


def _separator(text: str, at: int) -> int | None:
    """Return where the next member begins, after a comma; None if there is no comma."""
    length = len(text)
    while at < length and text[at] in " \t":
        at += 1
    if text[at : at + 1] != ",":
        return None
    at += 1
    while at < length and text[at] in " \t":
        at += 1
    return at


def unspaced(values: Iterable[bytes]) -> str:
    """Return the lines of a field as one line, without the white space around commas outside of quotes."""
    return "".join(part.strip(" \t") for part in _MEMBER_OR_COMMA.findall(b",".join(values).decode("latin-1")))


def delta_seconds(argument: str | None) -> int | None:
    """Return the seconds in a directive's argument; None if it is not a number (RFC 9111 1.2.2)."""
    if argument is None or not argument.isascii() or not argument.isdigit():
        return None
    return min(int(argument.lstrip("0")[:11] or "0"), LONGEST)


def vary_of(headers: Headers) -> tuple[str, ...] | None:
    """Return the request fields that `Vary` names, lower case, sorted, each once; None for `*`.

    A `Content-Range` in another unit than bytes names `Range`. Of a malformed member of `Vary`, everything counts that
    it could mean: `Cookie; Accept` and `Cookie|Accept` name two fields, `User Agent` also names `User-Agent`, and
    `Accept-*` counts as `*`.
    """
    names: set[str] = set()
    for member in b",".join(values_of(headers, b"vary")).decode("latin-1").lower().split(","):
        if "*" in member:
            return None
        words = _WORD.findall(member)
        names.update(words, _NAME.findall(member), ["-".join(words)] if words else ())
    if values_of(headers, b"content-range") and content_range(headers) is None:
        # The response is a slice in another unit than bytes, whatever its status says.
        names.add("range")
    return tuple(sorted(names))


def content_length(headers: Headers) -> int | None:
    """Return the `Content-Length` of a response, in bytes; None if it is missing, malformed or contradictory."""
    values = set(values_of(headers, b"content-length"))
    return delta_seconds(values.pop().decode("latin-1").strip()) if len(values) == 1 else None


def http_date(value: bytes, now: float) -> int | None:
    """Return the seconds since 1970 of a date in one of the three formats of RFC 9110 5.6.7; None for any other.

    Parameters:
        now: the current time in seconds since 1970; a year of two digits is at most 50 years later.
    """
    text = value.decode("latin-1")
    for form in _DATES:
        found = form.fullmatch(text)
        if found is not None:
            break
    else:
        return None
    year = int(found["year"])
    latest = 0
    if len(found["year"]) == 2:
        latest = time.gmtime(now).tm_year + _FIFTY
        year = latest - (latest - year) % 100
    # A leap second counts as the second before it.
    second = min(int(found["second"]), 59) if found["second"] == "60" else int(found["second"])
    month, day = _MONTHS.index(found["month"].lower()) + 1, int(found["day"])
    hour, minute = int(found["hour"]), int(found["minute"])
    try:
        at = calendar.timegm(datetime(year, month, day, hour, minute, second).timetuple())
        if year == latest and at > _in_fifty_years(now):
            at = calendar.timegm(datetime(year - 100, month, day, hour, minute, second).timetuple())
    except ValueError:
        return None
    return at


def _in_fifty_years(now: float) -> int:
    year, *rest = time.gmtime(now)
    return calendar.timegm((year + _FIFTY, *rest))


def etag_of(headers: Headers) -> bytes | None:
    """Return the entity tag of a response, with its `W/`; None if it has none, or one that is malformed."""
    for value in values_of(headers, b"etag"):
        return value if _ETAG.fullmatch(value) else None
    return None


def etags(values: bytes) -> list[bytes]:
    """Return the entity tags of a list without their `W/`, for the weak comparison of RFC 9110 8.8.3.2."""
    return [match[0].removeprefix(b"W/") for match in _ETAG.finditer(values)]


def byte_range(value: bytes, complete: int) -> tuple[int, int] | None:
    """Return the first and the last position that a `Range` asks for; None if the field must be ignored.

    RFC 9110 14.1.2, a single range of bytes. A range that the body cannot satisfy comes back as (0, -1).

    Parameters:
        complete: the length of the whole body, in bytes.
    """
    found = _RANGE.fullmatch(value.strip(b" \t"))
    if found is None or found[1] == found[2] == b"":
        return None
    if not found[1]:
        wanted = min(int(found[2]), complete)
        if not wanted and int(found[2]):
            # The last bytes of an empty body are the whole body.
            return None
        return (complete - wanted, complete - 1) if wanted else (0, -1)
    first = int(found[1])
    if found[2] and int(found[2]) < first:
        return None
    last = min(int(found[2]), complete - 1) if found[2] else complete - 1
    return (first, last) if first < complete else (0, -1)


def content_range(headers: Headers) -> tuple[int, int, int] | None:
    """Return the first position, last position and complete length of a `Content-Range` (RFC 9110 14.4), or None."""
    values = values_of(headers, b"content-range")
    found = _CONTENT_RANGE.fullmatch(values[0].strip(b" \t")) if len(values) == 1 else None
    if found is None:
        return None
    first, last, complete = int(found[1]), int(found[2]), int(found[3])
    return (first, last, complete) if first <= last < complete else None
