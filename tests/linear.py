"""A check that swr parses input of clients and apps in linear time: it compares costs of longer and shorter texts.

    python -m tests.linear --inputs 1000000 --seed 1

tries random texts, made of pieces that mean something to some parser.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable
from typing import Final

from swr.http.caching import REQUEST_DIRECTIVES, control, limits, stored_headers
from swr.http.conditional import not_modified, wanted_range
from swr.http.fields import (
    content_length,
    content_range,
    etags,
    http_date,
    parse_directives,
    parse_targeted_directives,
    strings,
    unspaced,
    vary_of,
)
from swr.http.request import chained, digest_with, host_tag, is_ambiguous, url_key, url_tag
from swr.http.request_fields import normalised, selecting_value
from swr.middleware import Rule
from swr.middleware.request import Request
from swr.middleware.rules import first_match
from swr.proxy.headers import FieldRules, end_to_end, request_fields, response_fields
from swr.proxy.targets import misdirected, origin_form
from swr.reports.reporter import cleaned
from swr.settings import without_passwords

RULE: Final = Rule("/x", cookies=("a", "aa"), sort_query=True, drop_params=("utm_*_*_id", "*a*a*a*", "a*"))
KEEPING: Final = Rule("/x", keep_params=("a", "*_*_*", "p*"))
PATHS: Final = [
    Rule("/{a}-{b}-{c}/x"),
    Rule("/{a:path}/x/{b:path}/y"),
    Rule("/{a:path}{b:path}{c:path}!"),
    Rule("/{a}/{b}"),
]
PROXY: Final = FieldRules(b"x", True, True, True, b"swr", b"x")
DIGEST: Final = digest_with(b"")
STORED: Final = [(b"etag", b'"other"'), (b"last-modified", b"Mon, 01 Jan 2024 00:00:00 GMT")]


def request_with(*headers: tuple[bytes, bytes], query: bytes = b"", path: str = "/x") -> Request:
    """Return a GET."""
    scope = {"type": "http", "method": "GET", "path": path, "query_string": query, "headers": list(headers)}
    request = Request(scope, [RULE])
    request.key_cookies()
    request.withhold_cookies(list(headers))
    request.unknown_beyond(())
    assert request.variant(("accept", "x"))
    assert request.tags
    assert request.private_key
    return request


def _lines(text: bytes) -> None:
    lines = [(b"if-none-match", part) for part in text.split(b",")]
    fields = request_with(*lines).fields
    not_modified(fields, STORED, 0.0)


def _names(text: bytes) -> None:
    # Names in lower case, as a server hands them over.
    lines = [(b"hx-" + part.strip().lower(), b"1") for part in text.split(b",")]
    request_with(*lines)
    stored_headers([*lines, (b"connection", text)])
    request_with(*((name[3:], value) for name, value in lines))


def _fields_of_url(text: bytes) -> None:
    fields = chained((name, b"1") for name in text.split(b","))
    url_key(("http", text, text, text.decode("latin-1"), text.decode("latin-1"), text, fields), DIGEST)


def _paths(text: bytes) -> None:
    path = "/" + text.decode("latin-1")
    for rule in PATHS:
        first_match([rule], path, text)
    is_ambiguous(path, text)


def _proxied(text: bytes) -> None:
    """Parse a request and an answer as the proxy does, with this text in every place where it may be."""
    lines = [(part.strip().lower(), b"1") for part in text.split(b",")]
    named = [*lines, (b"connection", text), (b"x-forwarded-proto", text), (b"host", text), (b"max-forwards", text)]
    scope = {"type": "http", "method": "GET", "scheme": "http", "http_version": "1.1", "headers": [*named]}
    fields, _ = end_to_end(named)
    request_fields(scope, [*fields, (b"forwarded", text), (b"via", text)], PROXY)
    response_fields(200, [*named, (b"vary", text), (b"via", text)], b"HTTP/1.1", PROXY, unshared=False)


def _directed(text: bytes) -> None:
    """Parse the target of a request as the proxy does."""
    for target in (text, b"http://" + text):
        origin_form({"raw_path": target, "path": "/", "http_version": "1.1", "headers": [(b"host", text)]})
    for name in (b"host", b"via"):
        misdirected({"http_version": "1.0", "headers": [(name, text)]}, PROXY)
    misdirected({"http_version": "1.0", "headers": [(b"via", part) for part in text.split(b",")]}, PROXY)


def _shown(text: bytes) -> None:
    """Remove the secrets from a text, as before it is shown: the text of a loader's error for example."""
    without_passwords(text.decode("latin-1"))
    cleaned(text.decode("latin-1"))


# Functions that parse a field, a part of a URL, or a text that is shown.
READERS: Final[dict[str, Callable[[bytes], object]]] = {
    "cache-control": lambda text: control([(b"Cache-Control", text)], (b"cdn-cache-control",)),
    "lines of cache-control": lambda text: parse_directives(text.split(b",")),
    "targeted": lambda text: parse_targeted_directives([text]),
    "targeted and malformed": lambda text: control([(b"cdn-cache-control", text)], (b"cdn-cache-control",)),
    "a request's cache-control": lambda text: limits(parse_directives([text]), REQUEST_DIRECTIVES),
    "groups": lambda text: strings([text]),
    "vary": lambda text: vary_of([(b"Vary", text)]),
    "a varying field": lambda text: (unspaced([text]), normalised("accept-encoding", [text])),
    "etags": etags,
    "lines of if-none-match": _lines,
    "dates": lambda text: http_date(text, 0.0),
    "range": lambda text: wanted_range({b"range": text, b"if-range": text}, STORED, 100, 0.0),
    "content-range": lambda text: content_range([(b"content-range", text)]),
    "content-length": lambda text: content_length([(b"content-length", part) for part in text.split(b",")]),
    "forwarded": lambda text: selecting_value(b"forwarded", text),
    "names of fields": _names,
    "url and fields": _fields_of_url,
    "host": lambda text: host_tag(text, "url:/x"),
    "url": lambda text: url_tag(text.decode("latin-1"), text.decode("latin-1")),
    "query": lambda text: (RULE.keyed_query(text), KEEPING.keyed_query(text)),
    "name in a query": lambda text: (RULE.keyed_query(b"utm" + text), KEEPING.keyed_query(text + b"=1")),
    "paths": _paths,
    "cookie": lambda text: request_with((b"cookie", text)),
    "lines of cookie": lambda text: request_with(*((b"cookie", part) for part in text.split(b","))),
    "location": lambda text: request_with((b"host", b"test")).tag_of(b"/" + text),
    "proxied": _proxied,
    "target": _directed,
    "request": lambda text: request_with((b"accept", text), (b"x", text), query=text, path="/x"),
    "shown": _shown,
}

# Texts that some parser knows, or stops at.
PIECES: Final = [
    *(b" ", b"\t", b",", b";", b"=", b'"', b"\\", b"/", b"-", b"_", b".", b"&", b"%", b"(", b")", b"*", b"?", b":"),
    *(b"a", b"0", b"\x80", b"W/", b"%2", b"%2f", b"..", b"no-cache", b"private", b"max-age", b"no-store", b"s-maxage"),
    *(b'no-cache="aaaaaaaa",', b'"\\"', b'""', b"a=1", b"a;", b"a,", b'W/"a",', b"utm_", b"_id", b"bytes=", b"0-0,"),
    *(b"for=1.1.1.1;", b"for=", b"Mon, 01 Jan 2024 00:00:00 GMT", b"gzip;q=1,", b"a=1; ", b"/x", b"/../", b"//"),
    *(b"1.1 swr", b" swr (x)", b"close, ", b"proto=", b"-cache-control", b"cache-", b"[::", b"http://"),
    *(b"@1", b"1.5", b'%"', b":a:", b"?1", b"(a", b"a=(", b"https://", b"test", b"aa", b"a" * 50, b"0" * 50),
    *(b"redis://", b"url=redis://h ", b"'", b"@"),
]


# Sizes of the shorter texts of the fuzz, in bytes.
_SIZES: Final = (500, 500, 500, 500, 500, 500, 500, 500, 500, 5_000)


def cost(read: Callable[[bytes], object], text: bytes, tries: int = 3) -> float:
    """Return the processor time that reading takes, in seconds: the least of several tries."""
    return min(_once(read, text) for _ in range(tries))


def _once(read: Callable[[bytes], object], text: bytes) -> float:
    began = time.thread_time()
    read(text)
    return time.thread_time() - began


def is_linear(read: Callable[[bytes], object], start: bytes, piece: bytes, end: bytes, size: int = 1_000) -> bool:
    """Return whether sixteen times as much of `piece` costs less than forty-eight times as much.

    In quadratic time, sixteen times as much costs 256 times as much.

    Parameters:
        size: of the shorter text, in bytes.
    """
    times = max(1, size // len(piece))
    for tries in (1, 3, 9):
        short = cost(read, start + piece * times + end, tries)
        if cost(read, start + piece * times * 16 + end, tries) < 48 * short + 0.002:
            return True
    return False


def is_suspicious(read: Callable[[bytes], object], start: bytes, piece: bytes, end: bytes, size: int) -> bool:
    """Return whether twice as much of `piece` costs more than three times as much.

    Parameters:
        size: of the shorter text, in bytes.
    """
    times = max(1, size // len(piece))
    short, long = start + piece * times + end, start + piece * times * 2 + end
    return all(cost(read, long, tries) > 3 * cost(read, short, tries) + 2e-5 for tries in (1, 3))


def fuzz(inputs: int, seed: int) -> list[str]:
    """Try this many random texts; return those that take more than linear time to parse."""
    chance = random.Random(seed)
    found = []
    names = list(READERS)
    for _ in range(inputs):
        name = chance.choice(names)
        start, piece, end = (b"".join(chance.choices(PIECES, k=chance.randint(low, 4))) for low in (0, 1, 0))
        read = READERS[name]
        size = chance.choice(_SIZES)
        if is_suspicious(read, start, piece, end, size) and not is_linear(read, start, piece, end):
            found.append(f"{name}: {start!r} + {piece!r} * n + {end!r}")
    return found


def main() -> int:
    """Run the fuzz from the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    found = fuzz(options.inputs, options.seed)
    print("\n".join(found))
    print(f"{options.inputs} inputs, seed {options.seed}, {time.monotonic() - began:.0f} s: {len(found)} not linear")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
