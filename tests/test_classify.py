"""How the middleware handles a request, and why: each row of the two tables, and that the first row that matches wins."""

import logging
import re

import anyio
import pytest

from swr import Cache
from swr.http import classify as module
from swr.http.caching import SAFE
from swr.http.classify import Action, Handling, Miss, Reason, RequestFacts, classify, classify_miss
from swr.http.request import digest_with
from swr.middleware import Rule, SWRMiddleware
from swr.middleware.config import Config
from swr.middleware.request import Request
from tests.fleet import gather, settle
from tests.web import MAX_AGE, App, client, http_scope, open_later

GET = RequestFacts("GET")
HEAD = RequestFacts("HEAD")
QUERY = RequestFacts("QUERY", is_safe=True)
# A POST of which a rule says that it changes nothing.
POST = RequestFacts("POST", is_safe=True)

# The rows in the order of the table: a request, what it is handled as, and its Cache-Status.
ROWS = [
    (RequestFacts("POST"), Action.INVALIDATE, Reason.UNSAFE_METHOD, b"swr; fwd=method"),
    (RequestFacts("OPTIONS"), Action.PASS_THROUGH, Reason.SAFE_METHOD, b""),
    (GET._replace(is_off=True), Action.BYPASS, Reason.OFF, b'swr; fwd=bypass; detail="off"'),
    (
        GET._replace(is_too_long=True),
        Action.BYPASS,
        Reason.TOO_LONG,
        b'swr; fwd=bypass; detail="header too long"',
    ),
    (
        QUERY._replace(has_long_content=True),
        Action.BYPASS,
        Reason.LONG_CONTENT,
        b'swr; fwd=bypass; detail="content too large"',
    ),
    (
        POST._replace(has_part_of_content=True),
        Action.BYPASS,
        Reason.PART_OF_CONTENT,
        b'swr; fwd=bypass; detail="content incomplete"',
    ),
    (GET._replace(has_override=True), Action.BYPASS, Reason.OVERRIDE, b'swr; fwd=bypass; detail="method override"'),
    (GET._replace(has_cookie=True), Action.BYPASS, Reason.COOKIE, b'swr; fwd=bypass; detail="cookie"'),
    (
        GET._replace(has_precondition=True),
        Action.BYPASS,
        Reason.PRECONDITION,
        b'swr; fwd=bypass; detail="precondition"',
    ),
    (GET._replace(has_content=True), Action.BYPASS, Reason.CONTENT, b'swr; fwd=bypass; detail="content"'),
    (GET._replace(is_apart=True), Action.BYPASS, Reason.PATH, b'swr; fwd=bypass; detail="path"'),
    (GET._replace(only_if_cached=True), Action.LOOK_UP_ONLY, Reason.ONLY_IF_CACHED, b""),
    (GET, Action.LOOK_UP, Reason.CACHEABLE, b""),
]
CACHED = ("GET", "HEAD", "QUERY")
# The same for a lookup whose entry may not answer.
MISS_ROWS = [
    (GET, Miss(False, is_uncacheable=True), Action.BYPASS, Reason.UNCACHEABLE, b""),
    (GET, Miss(False, is_guarded=True), Action.BYPASS, Reason.GUARDED, b""),
    (GET, Miss(False), Action.ASK_STORE, Reason.NOT_LOCAL, b""),
    (
        GET._replace(only_if_cached=True),
        Miss(True),
        Action.GATEWAY_TIMEOUT,
        Reason.ONLY_IF_CACHED,
        b'swr; fwd=request; detail="only-if-cached"',
    ),
    (
        GET._replace(no_store=True),
        Miss(True),
        Action.BYPASS,
        Reason.NO_STORE,
        b'swr; fwd=request; detail="no-store"',
    ),
    (HEAD, Miss(True), Action.FORWARD_HEAD, Reason.HEAD_MISS, b""),
    (GET, Miss(True, is_guarded=True), Action.BYPASS, Reason.GUARDED, b""),
    (GET, Miss(True, is_unsettled=True), Action.BYPASS, Reason.UNSETTLED, b"swr; fwd=vary-miss"),
    (GET, Miss(True, has_unknown_field=True, has_response=True), Action.BYPASS, Reason.UNKNOWN_FIELD, b""),
    (
        GET,
        Miss(True, is_unshared=True),
        Action.BYPASS,
        Reason.AUTHORIZATION,
        b'swr; fwd=bypass; detail="authorization"',
    ),
    (GET, Miss(True, is_confirming=True), Action.BYPASS, Reason.CONFIRMING, b""),
    (GET, Miss(True, has_unknown_field=True), Action.LOAD_APART, Reason.UNKNOWN_FIELD, b""),
    (GET, Miss(True), Action.LOAD, Reason.MISS, b""),
]


def name_of(value):
    return value.name if isinstance(value, Reason) else ""


@pytest.mark.parametrize(("facts", "action", "reason", "status"), ROWS, ids=name_of)
def test_request_gets_action_reason_and_status_of_its_row(facts, action, reason, status):
    assert classify(facts) == Handling(action, reason, status)


@pytest.mark.parametrize(("facts", "miss", "action", "reason", "status"), MISS_ROWS, ids=name_of)
def test_miss_gets_action_reason_and_status_of_its_row(facts, miss, action, reason, status):
    assert classify_miss(facts, miss) == Handling(action, reason, status)


def merged(first, second):
    """Return facts that are true where one of the two is, with the method, or the layer, of the first."""
    return type(first)(first[0], *(a or b for a, b in zip(first[1:], second[1:], strict=True)))


@pytest.mark.parametrize("first", range(2, len(ROWS)))
def test_request_that_matches_two_rows_follows_the_first(first):
    for later in range(first + 1, len(ROWS)):
        facts = merged(ROWS[first][0], ROWS[later][0])
        assert classify(facts).reason is ROWS[first][2]


def test_miss_that_matches_two_rows_follows_the_first():
    for first in range(len(MISS_ROWS)):
        facts, miss, _, reason, _ = MISS_ROWS[first]
        for later in range(first + 1, len(MISS_ROWS)):
            if MISS_ROWS[later][1].asked_store == miss.asked_store:
                both = merged(facts, MISS_ROWS[later][0])
                assert classify_miss(both, merged(miss, MISS_ROWS[later][1])).reason is reason


def test_docstring_tables_list_every_tested_row_in_order():
    text = module.__doc__
    rows = [tuple(row) for row in re.findall(r"\| `([A-Z_]+)` +\| `([A-Z_]+)` +\|$", text, re.MULTILINE)]
    tested = [row[-3:-1] for row in (*ROWS, *MISS_ROWS)]
    assert rows == [(action.name, reason.name) for action, reason in tested]


def test_every_action_and_every_reason_has_a_row():
    tested = [row[-3:-1] for row in (*ROWS, *MISS_ROWS)]
    assert {action for action, _ in tested} == set(Action)
    assert {reason for _, reason in tested} == set(Reason)


@pytest.mark.parametrize("method", sorted(SAFE - {*CACHED}))
def test_uncached_safe_method_passes_through(method):
    assert classify(RequestFacts(method)).action is Action.PASS_THROUGH


@pytest.mark.parametrize("facts", [GET, HEAD, QUERY, POST])
def test_safe_request_is_looked_up_and_its_miss_loads_or_forwards_head(facts):
    assert classify(facts).action is Action.LOOK_UP
    assert classify_miss(facts, Miss(True)).action is (Action.FORWARD_HEAD if facts is HEAD else Action.LOAD)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "WHATEVER", "get"])
def test_unsafe_or_unknown_method_invalidates(method):
    assert classify(RequestFacts(method)).action is Action.INVALIDATE


def test_request_with_cookies_in_its_key_is_looked_up():
    assert classify(GET._replace(has_cookie=True, keys_cookies=True)).action is Action.LOOK_UP


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("headers", "fact"),
    [
        ({}, {}),
        ({b"cookie": b"a=1"}, {"has_cookie": True}),
        ({b"if-match": b'"1"'}, {"has_precondition": True}),
        ({b"if-unmodified-since": b"x"}, {"has_precondition": True}),
        ({b"if-none-match": b'"1"'}, {}),
        ({b"content-length": b"1"}, {"has_content": True}),
        ({b"content-length": b"0"}, {}),
        ({b"transfer-encoding": b"chunked"}, {"has_content": True}),
        ({b"cache-control": b"no-store"}, {"no_store": True}),
        ({b"cache-control": b"only-if-cached"}, {"only_if_cached": True}),
        ({b"cache-control": b"no-cache", b"pragma": b"no-store"}, {}),
        ({b"pragma": b"no-store, only-if-cached"}, {}),
        ({b"authorization": b"Basic x"}, {}),
    ],
)
def test_request_facts_are_read_from_header_fields(method, headers, fact):
    config = config_of()
    facts, _ = Request(scope_with(method, headers), []).read_facts(config.sharing, config.honoured)
    assert facts == RequestFacts(method)._replace(**fact)


def test_request_directives_that_swr_does_not_honour_are_ignored():
    config = config_of(request_directives=())
    request = Request(scope_with("GET", {b"cache-control": b"no-store, only-if-cached"}), [])
    assert request.read_facts(config.sharing, config.honoured)[0] == GET


def test_cookies_are_ignored_with_cookies_rfc9111():
    config = config_of(cookies="rfc9111")
    facts, _ = Request(scope_with("GET", {b"cookie": b"a=1"}), []).read_facts(config.sharing, config.honoured)
    assert facts == GET


def test_cookies_that_a_rule_names_are_part_of_the_key():
    config = config_of()
    request = Request(scope_with("GET", {b"cookie": b"a=1; b=2"}), [Rule("/x", cookies=["b"])])
    facts, _ = request.read_facts(config.sharing, config.honoured)
    assert facts == GET._replace(has_cookie=True, keys_cookies=True)
    assert request.key.endswith(f"\ncookie: {digest_with(b'')(b'b=2')}")


def config_of(**options) -> Config:
    return SWRMiddleware(App(), Cache(), **options).config


def scope_with(method, headers):
    return {**http_scope("/x"), "method": method, "headers": list(headers.items())}


# -- the lines of the log -------------------------------------------------------------------------------------


@pytest.fixture
def lines(caplog):
    """Return the lines that `swr` has written at DEBUG since the last call."""
    caplog.set_level(logging.DEBUG, "swr")

    def take():
        found = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
        caplog.clear()
        return [line for line in found if line.split(" ", 1)[0].isupper()]

    return take


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "headers", "expected"),
    [
        ("GET", {"cookie": "secret=1"}, "GET 'http://test/x?': bypass (cookie)"),
        ("GET", {"if-match": '"secret"'}, "GET 'http://test/x?': bypass (precondition)"),
        ("GET", {"content-length": "1"}, "GET 'http://test/x?': bypass (content)"),
        ("GET", {"cache-control": "no-store"}, "GET 'http://test/x?': bypass (no-store)"),
        ("GET", {"cache-control": "only-if-cached"}, "GET 'http://test/x?': gateway timeout (only-if-cached)"),
        ("HEAD", {}, "HEAD 'http://test/x?': forward HEAD (HEAD)"),
        ("POST", {}, "POST 'http://test/x?': invalidate (the method may change something)"),
        ("OPTIONS", {}, "OPTIONS '/x': pass through (swr does not cache the method)"),
    ],
)
async def test_request_that_the_cache_does_not_answer_logs_the_reason(cache, lines, method, headers, expected):
    async with client(SWRMiddleware(App(MAX_AGE), cache)) as http:
        request = http.build_request(method, "/x", headers=headers)
        await http.send(request)
    assert lines() == [expected]


@pytest.mark.anyio
async def test_request_with_unannounced_content_logs_that_it_bypasses(cache, lines):
    messages = [{"type": "http.request", "body": b"x", "more_body": False}]

    async def receive():
        return messages.pop()

    async def send(message):
        pass

    await SWRMiddleware(App(MAX_AGE), cache)(http_scope("/x"), receive, send)
    assert [line.partition(": ")[2] for line in lines()] == ["bypass (content)"]


@pytest.mark.anyio
async def test_miss_and_stale_hit_log_their_outcome_but_fresh_hit_logs_nothing(cache, clock, lines):
    async with client(SWRMiddleware(App(MAX_AGE), cache)) as http:
        await http.get("/x")
        assert lines() == ["GET 'http://test/x?': load (miss): missing in the store, uri-miss; stored"]
        for headers in ({}, {"cache-control": "max-stale"}, {"if-none-match": '"1"'}):
            await http.get("/x", headers=headers)
        await http.head("/x")
        assert lines() == []
        clock.advance(100)
        await http.get("/x")
        await settle()
        assert lines() == [
            "GET 'http://test/x?': answer (stale) from the local cache; refresh started",
            "GET 'http://test/x?': background refresh: stored",
        ]


@pytest.mark.anyio
@pytest.mark.parametrize("headers", [{}, {"cache-control": "max-stale"}, {"origin": "http://other"}])
async def test_stale_hit_during_backoff_logs_that_no_refresh_starts(cache, clock, lines, headers):
    app = App(MAX_AGE)
    async with client(SWRMiddleware(app, cache)) as http:
        await http.get("http://Test/x%20y?q=1", headers=headers)
        clock.advance(100)
        app.error = ConnectionError("gone")
        await http.get("http://test/x%20y?q=1", headers=headers)
        await settle()
        lines()
        answer = await http.get("http://test/x%20y?q=1", headers=headers)
        assert answer.headers["swr-state"] == "stale"
    assert lines() == [
        "GET 'http://test/x%20y?q=1': answer (stale) from the local cache; "
        "no refresh now: one is under way, or the last one failed"
    ]


@pytest.mark.anyio
async def test_uncacheable_response_logs_why_and_the_next_request_bypasses(cache, lines):
    app = App([(b"cache-control", b"private")])
    async with client(SWRMiddleware(app, cache)) as http:
        await http.get("/x")
        await http.get("/x")
    assert [line.partition(": ")[2] for line in lines()] == [
        "load (miss): missing in the store, uri-miss; passed through, not stored: private",
        "bypass (uncacheable)",
    ]


@pytest.mark.anyio
async def test_request_with_credentials_bypasses_a_response_that_is_not_shared(cache, lines):
    async with client(SWRMiddleware(App(MAX_AGE), cache)) as http:
        await http.get("/x")
        lines()
        await http.get("/x", headers={"authorization": "secret"})
    assert lines() == ["GET 'http://test/x?': bypass (authorization)"]


@pytest.mark.anyio
async def test_request_that_joins_a_load_logs_that_another_request_loaded(cache, lines):
    app = App(MAX_AGE)
    app.gate = anyio.Event()
    async with client(SWRMiddleware(app, cache)) as http:
        await gather(http.get("/x"), http.get("/x"), open_later(app))
    outcomes = sorted(line.rpartition("; ")[2] for line in lines())
    assert outcomes == ["another request's load answered", "stored"]


@pytest.mark.anyio
async def test_stale_fallback_logs_the_failure_that_it_replaces(cache, clock, lines):
    app = App([(b"cache-control", b"max-age=60, stale-if-error=3600")])
    async with client(SWRMiddleware(app, cache)) as http:
        await http.get("/x")
        clock.advance(100)
        lines()
        app.status = 503
        await http.get("/x")
    [line] = lines()
    assert line.partition(": ")[2].endswith("stale; failed (ErrorResponse), answered with the stale fallback")


@pytest.mark.anyio
async def test_no_log_line_contains_a_header_value_of_the_client(cache, clock, lines):
    app = App([*MAX_AGE, (b"vary", b"x-token")])
    headers = {"cookie": "id=secret", "x-token": "secret", "user-agent": "secret"}
    async with client(SWRMiddleware(app, cache, [Rule("/x", cookies=["id"])])) as http:
        for _ in range(2):
            await http.get("/x", headers=headers)
            clock.advance(100)
        await settle()
        await http.get("/y", headers=headers)
    found = lines()
    assert len(found) == 4
    assert not [line for line in found if "secret" in line]
