"""No client and no app makes swr read for long: reading is linear, and what is longer than a bound is not read."""

import anyio
import pytest

from swr import Cache
from swr.http.fields import is_too_long
from swr.middleware import Rule, SWRMiddleware
from tests.linear import READERS, fuzz, is_linear
from tests.web import MAX_AGE, App, Client, client, http_scope

pytestmark = pytest.mark.anyio

# A megabyte of lines, as a server without a limit hands it over.
MANY_LINES = [(b"if-none-match", b'"aaaaaaaaaaaaaa"')] * 30_000
RULES = [Rule("/x", fresh_for=60, cookies=("a",))]


@pytest.fixture
async def cache():
    async with Cache() as cache:
        yield cache


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    ("start", "piece", "end"),
    [
        (b"", b'no-cache="aaaaaaaa",', b""),
        (b"", b"no-cache=a,private=b,", b"!"),
        (b'a="', b"\\", b"x"),
        (b"", b'"', b""),
        (b"a=(", b'"a" ', b"!"),
        (b"", b'"a", ', b""),
        (b"", b"hx-a,", b""),
        (b"a=1", b"; a=1", b""),
        (b"_", b"_", b"_i"),
        (b"", b"a=1&utm_", b""),
        (b"/.", b" ", b"!"),
        (b"", b"../", b"%"),
        (b"for=", b"1", b";"),
        (b"", b"-", b"/"),
        (b"", b"/x", b""),
        (b"", b"redis://", b""),
        (b"", b"url=redis://h ", b""),
    ],
)
def test_parsing_time_grows_linearly_with_input(read, start, piece, end):
    assert is_linear(read, start, piece, end, size=2_000)


@pytest.mark.parametrize(("power", "is_found"), [(2, True), (1, False)])
def test_fuzz_detects_quadratic_but_not_linear_time(monkeypatch, power, is_found):
    """By seconds that are counted, not measured: a busy machine may make any reader look slow, or fast."""
    monkeypatch.setattr("tests.linear._once", lambda read, text: read(text))
    monkeypatch.setattr("tests.linear.READERS", {"power": lambda text: 1e-6 * len(text) ** power})
    assert bool(fuzz(1, seed=0)) is is_found


def test_fuzz_finds_no_quadratic_reader_in_swr():
    assert fuzz(2_000, seed=2) == []


class TestTooLongRequest:
    """Who: a client behind a server without a limit (uvicorn with httptools), any day."""

    @pytest.mark.parametrize(
        ("headers", "query"),
        [
            (MANY_LINES, b""),
            ([(b"cookie", b"a=1; " * 20_000)], b""),
            ([(b"cache-control", b'no-cache="aaaaaaaa",' * 5_000)], b""),
            ([(b"x-%d" % number, b"") for number in range(1_001)], b""),
            ([], b"utm_" * 70_000),
        ],
        ids=["lines", "cookie", "directives", "names", "query"],
    )
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    async def test_too_long_request_bypasses_the_cache(self, cache, headers, query, method):
        app = App([(b"content-type", b"text/plain")])
        middleware = SWRMiddleware(app, cache, rules=RULES)
        for run in (1, 2):
            one = Client()
            await middleware(
                http_scope("/x", method=method, headers=headers, query_string=query), one.receive, one.send
            )
            marks = dict(one.sent[0]["headers"])
            assert marks[b"cache-status"] == b'swr; fwd=bypass; detail="header too long"'
            assert app.runs == run

    async def test_too_long_post_invalidates_its_url(self, cache):
        app = App(MAX_AGE)
        middleware = SWRMiddleware(app, cache)
        async with client(middleware) as http:
            assert (await http.get("/x")).text == "1"
            one = Client()
            scope = http_scope("/x", method="POST", headers=[(b"host", b"test"), *MANY_LINES])
            await middleware(scope, one.receive, one.send)
            assert (await http.get("/x")).text == "3"

    def test_is_too_long_limits_lines_bytes_and_separators(self):
        assert not is_too_long([(b"a", b"")] * 1000)
        assert is_too_long([(b"a", b"")] * 1001)
        assert not is_too_long([(b"a" * 100, b"b" * (2**16 - 100))])
        assert is_too_long([(b"a" * 100, b"b" * (2**16 - 99))])
        assert not is_too_long([(b"a", b"," * 3_855)])
        assert is_too_long([(b"a", b"," * 3_856)])
        assert not is_too_long([], "/" * 2**17, b"a" * 2**17)
        assert is_too_long([], "/" * 2**17, b"a" * 2**17 + b"a")
        assert not is_too_long([], "/", b"a=" + b"&" * 15_000)
        assert is_too_long([], "/", b"a=" + b"&" * 16_000)


class TestTooLongResponse:
    """Who: an app that collects values in a field in a loop, on the day the loop runs away."""

    @pytest.mark.parametrize(
        ("headers", "reason"),
        [
            ([(b"cache-control", b'no-cache="aaaaaaaa",' * 200_000)], "header too long"),
            ([*MAX_AGE, *[(b"x", b"y")] * 1_000], "header too long"),
            ([*MAX_AGE, (b"vary", b",".join(b"x-%d" % number for number in range(65)))], "vary too long"),
            ([*MAX_AGE, (b"vary", b",".join(b"x%d" % number for number in range(10_000)))], "header too long"),
        ],
        ids=["directives", "lines", "vary", "vary of 10,000 names"],
    )
    async def test_too_long_response_is_not_stored(self, cache, headers, reason):
        app = App(headers)
        async with client(SWRMiddleware(app, cache)) as http:
            first, second = await http.get("/x"), await http.get("/x")
        assert (first.text, second.text) == ("1", "2")
        assert first.headers["cache-status"] == f'swr; fwd=uri-miss; detail="{reason}"'

    async def test_response_that_varies_by_64_fields_is_stored(self, cache):
        app = App([*MAX_AGE, (b"vary", b",".join(b"x-%d" % number for number in range(64)))])
        async with client(SWRMiddleware(app, cache)) as http:
            assert [(await http.get("/x", headers={"x-7": "a"})).text for _ in range(2)] == ["1", "1"]


class TestQueryNames:
    """Who: an operator who drops what campaigns add to URLs, and a crawler that sends long names."""

    @pytest.mark.parametrize(
        ("names", "name", "is_dropped"),
        [
            (("utm_*",), "utm_source", True),
            (("utm_*",), "utm_", True),
            (("utm_*",), "autm_x", False),
            (("*_id",), "a_id", True),
            (("*_id",), "a_idx", False),
            (("utm_*_*_id",), "utm_a_b_id", True),
            (("utm_*_*_id",), "utm__id", False),
            (("utm_*_*_id",), "utm___id", True),
            (("ab*ba",), "aba", False),
            (("ab*ba",), "abba", True),
            (("*",), "anything", True),
            (("a*b*a",), "aba", True),
            (("a*b*a",), "aab", False),
            (("a.c",), "abc", False),
            (("a", "b*"), "b\nb", True),
        ],
    )
    def test_query_names_match_patterns_with_stars(self, names, name, is_dropped):
        query = name.replace("\n", "%0A").encode() + b"=1&kept=2"
        rule = Rule("/x", drop_params=(*names, "other"))
        assert (rule.keyed_query(query) == b"kept=2") is (is_dropped and names != ("*",)) or names == ("*",)
        assert (rule.keyed_query(query) == b"") is (names == ("*",))
        kept = Rule("/x", keep_params=names).keyed_query(name.replace("\n", "%0A").encode())
        assert bool(kept) is is_dropped


class TestLongPath:
    """Who: a client that makes a rule with several free parameters try out all ways to part a path."""

    @pytest.mark.parametrize(
        ("path", "length"),
        [
            ("/{a}", 2**16),
            ("/{a}/{b:path}", 2**16),
            ("/{a:path}/x/{b:path}", 1414),
            ("/{a}-{b}", 1414),
            ("/{a}-{b}-{c}", 181),
            ("/{a}-{b}/{c}-{d}", 181),
        ],
    )
    def test_longest_path_of_a_rule_shrinks_with_its_free_parameters(self, path, length):
        rule = Rule(path)
        assert rule.longest_path >= length
        assert rule.longest_path == length or length == 2**16

    async def test_path_is_matched_with_a_rule_once_per_request(self, cache, monkeypatch):
        compared = []
        match = Rule.match
        monkeypatch.setattr(Rule, "match", lambda rule, path: compared.append(path) or match(rule, path))
        rules = [Rule("/{a}-{b}-{c}", fresh_for=60, key=lambda scope: "", cookies=("a",), drop_params=("q",))]
        async with client(SWRMiddleware(App(), cache, rules=rules)) as http:
            headers = {"x-unknown": "1", "cookie": "a=1; b=2"}
            for method, path in (
                ("GET", "/a-b-c"),
                ("GET", "/" + "-" * 150 + "/"),
                ("HEAD", "/a-b"),
                ("POST", "/a-b-d"),
            ):
                await http.request(method, f"{path}?q=1", headers=headers)
        assert compared == ["/a-b-c", "/" + "-" * 150 + "/", "/a-b", "/a-b-d"]

    async def test_path_too_long_for_one_rule_is_not_cached_by_another(self, cache):
        app = App()
        rules = [Rule("/{a}-{b}-{c}", fresh_for=60), Rule("/{rest:path}", fresh_for=60)]
        async with client(SWRMiddleware(app, cache, rules=rules)) as http:
            for path, texts in (("/" + "-" * 150, ["1", "1"]), ("/" + "-" * 30_000, ["2", "3"])):
                assert [(await http.get(path)).text for _ in range(2)] == texts

    async def test_path_too_long_for_a_rule_with_vary_is_not_shared(self, cache):
        app = App(MAX_AGE)
        rules = [Rule("/{a}-{b}-{c}", fresh_for=60, vary=("X-Tenant",))]
        async with client(SWRMiddleware(app, cache, rules=rules)) as http:
            path = "/" + "-" * 1_000
            answers = [await http.get(path, headers={"x-tenant": tenant}) for tenant in ("a", "b")]
        assert [answer.text for answer in answers] == ["1", "2"]
        assert answers[0].headers["cache-status"] == 'swr; fwd=bypass; detail="path"'

    async def test_path_too_long_for_a_rule_keeps_its_whole_query_in_the_key(self, cache):
        app = App(MAX_AGE)
        async with client(SWRMiddleware(app, cache, rules=[Rule("/{a}-{b}-{c}", drop_params=("q",))])) as http:
            path = "/" + "-" * 1_000
            assert [(await http.get(f"{path}?q={query}")).text for query in "ab"] == ["1", "2"]


async def test_long_requests_do_not_block_the_event_loop(cache):
    """A reader of a fresh response is answered while hundreds of long requests are."""
    app = App(MAX_AGE)
    middleware = SWRMiddleware(app, cache, rules=[Rule("/x", drop_params=("utm_*_*_id",))])
    turns = 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(count)
        for _ in range(3):
            one = Client()
            await middleware(http_scope("/x", headers=MANY_LINES, query_string=b"utm_" * 15_000), one.receive, one.send)
            assert one.sent
        group.cancel_scope.cancel()
    assert turns
