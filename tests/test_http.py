"""The middleware as a shared HTTP cache: what RFC 9111 and its companions ask of one, section by section."""

from email.utils import formatdate

import anyio
import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute

from swr import Policy
from swr.entry import stamp
from swr.errors import SWRError
from swr.http.stored_response import Varies
from swr.middleware import Rule, SWRMiddleware
from swr.middleware.capture import Capture
from swr.middleware.request import Request
from tests.fleet import fleet, gather, settle
from tests.web import App, Client, Origin, brief, cache_on, client, http_scope, open_later

pytestmark = pytest.mark.anyio

OLD = "Wed, 01 Jan 2020 00:00:00 GMT"


def state(response):
    return response.headers["swr-state"], response.headers["cache-status"]


class TestStoring:
    """RFC 9111 3."""

    @pytest.mark.uncounted
    @pytest.mark.parametrize("status", [200, 203, 204, 299, 302, 307, 400, 404, 410, 500, 502, 503, 504, 599])
    async def test_response_with_max_age_is_stored_whatever_its_status(self, cache, status):
        origin = Origin((status, {"cache-control": "max-age=60"}, ""))
        async with client(SWRMiddleware(origin, cache)) as http:
            assert [brief(await http.get("/x")) for _ in range(2)] == [(status, "", "missing"), (status, "", "fresh")]

    @pytest.mark.parametrize("status", [206, 304])
    async def test_unrequested_206_or_304_is_not_stored(self, cache, status):
        """RFC 9111 3.3: a part is never taken for the whole."""
        app = App([(b"cache-control", b"max-age=60"), (b"content-range", b"bytes 0-0/9")], status=status)
        async with client(SWRMiddleware(app, cache)) as http:
            await http.get("/x")
            await http.get("/x")
        assert app.runs == 2

    @pytest.mark.parametrize(("status", "runs"), [(200, 1), (404, 1), (403, 2), (502, 2)])
    async def test_heuristic_lifetime_applies_only_to_heuristically_cacheable_statuses(
        self, cache, clock, status, runs
    ):
        """RFC 9111 4.2.2: a tenth of the time since the last change."""
        fields = {
            "last-modified": formatdate(clock.now - 1000, usegmt=True),
            "date": formatdate(clock.now, usegmt=True),
        }
        origin = Origin((status, fields, ""))
        async with client(SWRMiddleware(origin, cache, heuristic=0.1)) as http:
            await http.get("/x")
            clock.advance(99)
            await http.get("/x")
        assert origin.runs == runs

    async def test_heuristic_lifetime_is_off_by_default(self, cache, clock):
        fields = {"last-modified": formatdate(clock.now - 1000, usegmt=True)}
        origin = Origin((200, fields, ""))
        async with client(SWRMiddleware(origin, cache)) as http:
            for _ in range(2):
                assert (await http.get("/x")).headers["swr-state"] == "missing"
        assert origin.runs == 2

    async def test_heuristic_of_0_gives_no_heuristic_lifetime(self, cache):
        origin = Origin((200, {"last-modified": OLD}, ""))
        async with client(SWRMiddleware(origin, cache, heuristic=0)) as http:
            await http.get("/x")
            await http.get("/x")
        assert origin.runs == 2

    async def test_fields_named_by_private_or_no_cache_are_not_stored(self, cache):
        """RFC 9111 5.2.2.4 and 5.2.2.7: `no-cache` and `private` with field names."""
        fields = {"cache-control": 'max-age=60, private="x-me, set-cookie", no-cache=x-too', "x-all": "1"}
        origin = Origin((200, {**fields, "x-me": "2", "x-too": "3", "set-cookie": "a=b"}, "body"))
        async with client(SWRMiddleware(origin, cache)) as http:
            assert (await http.get("/x")).headers["x-me"] == "2"
            http.cookies.clear()
            again = await http.get("/x")
            assert (brief(again), again.headers["x-all"]) == ((200, "body", "fresh"), "1")
            assert {"x-me", "x-too", "set-cookie"}.isdisjoint(again.headers)

    @pytest.mark.parametrize(("status", "runs"), [(200, 1), (599, 2)])
    async def test_must_understand_overrides_no_store_for_understood_statuses(self, cache, status, runs):
        """RFC 9111 5.2.2.3: no-store does not count where the status code is understood."""
        origin = Origin((status, {"cache-control": "max-age=60, no-store, must-understand"}, ""))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            await http.get("/x")
        assert origin.runs == runs

    @pytest.mark.parametrize("directive", ["public", "s-maxage=60", "must-revalidate"])
    async def test_response_to_authorization_is_shared_if_a_directive_allows_it(self, cache, directive):
        """RFC 9111 3.5."""
        origin = Origin((200, {"cache-control": f"max-age=60, {directive}"}, "all"))
        async with client(SWRMiddleware(origin, cache)) as http:
            for headers in ({"authorization": "a"}, {"authorization": "b"}, {}):
                assert (await http.get("/x", headers=headers)).text == "all"
        assert origin.runs == 1

    @pytest.mark.parametrize("vary", [None, "authorization"])
    async def test_background_refresh_drops_credentials_unless_vary_names_them(self, cache, clock, vary):
        """Its response is then for everybody, unless `Vary` names the credentials."""
        shared = {"cache-control": "s-maxage=10, stale-while-revalidate=60", "vary": vary}
        origin = Origin((200, shared, "one"), (200, {"cache-control": "max-age=60", "vary": vary}, "two"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x", headers={"authorization": "me"})
            clock.advance(20)
            assert brief(await http.get("/x", headers={"authorization": "me"})) == (200, "one", "stale")
            await settle()
            answer = await http.get("/x", headers={"authorization": "me"} if vary else {})
            assert brief(answer) == ((200, "one", "stale") if vary else (200, "two", "fresh"))
        assert origin.seen[1][1].get("authorization") == ("me" if vary else None)

    async def test_background_refresh_error_does_not_replace_a_good_response(self, cache, clock):
        """A 503 that may be stored itself is not a reason to give up a good response."""
        good = (200, {"cache-control": "max-age=10, stale-while-revalidate=100"}, "good")
        origin = Origin(good, (503, {"cache-control": "max-age=1000"}, "bad"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            clock.advance(20)
            assert brief(await http.get("/x")) == (200, "good", "stale")
            await settle()
            assert brief(await http.get("/x")) == (200, "good", "stale")

    async def test_body_that_contradicts_content_length_raises_and_is_not_stored(self, cache):
        """RFC 9111 3.3: the body is incomplete, and its client must not take it for the whole."""
        app = App([(b"cache-control", b"max-age=60"), (b"content-length", b"100")])
        async with client(SWRMiddleware(app, cache)) as http:
            for _ in range(2):
                with pytest.raises(SWRError, match=r"'GET http://test\\n/x\?' has 1 bytes, and its .* says 100"):
                    await http.get("/x")
        assert app.runs == 2


class TestAge:
    """RFC 9111 4.2.3 and 5.1."""

    async def test_age_includes_the_age_field_of_the_response(self, cache, clock):
        origin = Origin((200, {"cache-control": "max-age=60", "age": "50"}, ""))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            clock.advance(5)
            assert (await http.get("/x")).headers["age"] == "55"
            clock.advance(5)
            await http.get("/x")
        assert origin.runs == 2

    async def test_age_includes_the_time_since_the_date_field(self, cache, clock):
        fields = {"cache-control": "max-age=60", "date": formatdate(clock.now - 40, usegmt=True)}
        origin = Origin((200, fields, ""))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            assert (await http.get("/x")).headers["age"] == "40"
            clock.advance(20)
            await http.get("/x")
        assert origin.runs == 2

    async def test_age_includes_the_time_the_app_took_to_answer(self, cache, clock):
        app = App([(b"cache-control", b"max-age=60")])
        async with client(SWRMiddleware(app, cache)) as http:

            async def slowly():
                app.gate = anyio.Event()
                await app.begun.wait()
                clock.advance(20)
                app.gate.set()

            await gather(http.get("/x"), slowly())
            assert (await http.get("/x")).headers["age"] == "20"

    async def test_age_is_0_after_the_clock_jumps_back(self, cache, clock):
        origin = Origin((200, {"cache-control": "max-age=60"}, ""))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            clock.now -= 3600
            assert (await http.get("/x")).headers["age"] == "0"

    @pytest.mark.parametrize("said", ["no-cache", "max-age=0, must-revalidate"])
    async def test_response_that_requires_validation_is_revalidated_after_clock_jumps_back(self, cache, clock, said):
        origin = Origin((200, {"cache-control": said, "etag": '"1"'}, ""))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            await http.get("/x", headers={"cache-control": "only-if-cached"})
            clock.now -= 1
            for _ in range(2):
                assert (await http.get("/x")).headers["swr-state"] == "missing"
        assert [asked.get("if-none-match") for _, asked in origin.seen] == [None, '"1"', '"1"']


class TestValidation:
    """RFC 9111 4.3."""

    async def test_stale_response_is_revalidated_and_renewed_by_304(self, cache, clock):
        """4.3.1 and 4.3.4: a 304 renews what is stored, without a body."""
        fields = {"cache-control": "max-age=10", "etag": '"1"', "last-modified": OLD, "x": "old"}
        origin = Origin((200, fields, "body"), (200, {**fields, "x": "new"}, "not sent"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            clock.advance(20)
            answer = await http.get("/x")
            assert (brief(answer), answer.headers["x"]) == ((200, "body", "missing"), "new")
            assert answer.headers["cache-status"] == "swr; fwd=stale; fwd-status=304; stored"
            assert answer.headers["age"] == "0"
            clock.advance(5)
            again = await http.get("/x")
            assert (brief(again), again.headers["x"], again.headers["age"]) == ((200, "body", "fresh"), "new", "5")
        assert origin.seen[1][1]["if-none-match"] == '"1"'
        assert origin.seen[1][1]["if-modified-since"] == OLD

    async def test_background_refresh_revalidates_and_renews_by_304(self, cache, clock):
        fields = {"cache-control": "max-age=10, stale-while-revalidate=60", "etag": '"1"'}
        origin = Origin((200, fields, "body"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            clock.advance(20)
            assert brief(await http.get("/x")) == (200, "body", "stale")
            await settle()
            assert brief(await http.get("/x")) == (200, "body", "fresh")
        assert [asked.get("if-none-match") for _, asked in origin.seen] == [None, '"1"']

    async def test_app_receives_the_stored_etag_instead_of_the_client_condition(self, cache, clock):
        """The app receives the condition of swr; swr then answers the condition of the client."""
        fields = {"cache-control": "max-age=10", "etag": '"1"'}
        origin = Origin((200, fields, "one"), (200, fields, "one"), (200, {**fields, "etag": '"2"'}, "two"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            clock.advance(20)
            assert (await http.get("/x", headers={"if-none-match": '"1"'})).status_code == 304
            clock.advance(20)
            assert brief(await http.get("/x", headers={"if-none-match": '"0"'})) == (200, "two", "missing")
            assert brief(await http.get("/x", headers={"if-none-match": '"2"'}))[0] == 304
        assert [asked.get("if-none-match") for _, asked in origin.seen] == [None, '"1"', '"1"']

    async def test_outer_middleware_sees_scope_changes_of_the_app_and_original_headers(self, cache):
        """Middleware around the cache sees the request as it was, and what the app has left there."""
        origin = Origin((200, {"cache-control": "max-age=60", "etag": '"1"'}, "x"))

        async def inner(scope, receive, send):
            scope["left"] = "here"
            await origin(scope, receive, send)

        cached = SWRMiddleware(inner, cache)
        seen = []

        async def outer(scope, receive, send):
            await cached(scope, receive, send)
            seen.append((scope["left"], dict(scope["headers"])[b"if-none-match"]))

        async with client(outer) as http:
            await http.get("/x", headers={"if-none-match": '"0"'})
        assert seen == [("here", b'"0"')]

    async def test_304_with_another_etag_causes_a_full_load(self, cache, clock):
        """4.3.4: then the whole is asked for."""
        runs = []

        async def app(scope, receive, send):
            condition = dict(scope["headers"]).get(b"if-none-match")
            assert (await receive())["type"] == "http.request"
            runs.append(condition)
            status, tag = (304, b'"other"') if condition else (200, b'"mine"')
            headers = [(b"cache-control", b"max-age=10"), (b"etag", tag)]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": b"%d" % len(runs) if status == 200 else b""})

        async with client(SWRMiddleware(app, cache)) as http:
            await http.get("/x")
            clock.advance(20)
            assert brief(await http.get("/x")) == (200, "3", "missing")
        assert runs == [None, b'"mine"', None]

    async def test_body_of_304_is_ignored(self, cache, clock):
        async def app(scope, receive, send):
            condition = dict(scope["headers"]).get(b"if-none-match")
            headers = [(b"cache-control", b"max-age=10"), (b"etag", b'"1"')]
            await send({"type": "http.response.start", "status": 304 if condition else 200, "headers": headers})
            for _ in range(2):
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
            for _ in range(2 if condition else 1):
                await send({"type": "http.response.body"})

        async with client(SWRMiddleware(app, cache)) as http:
            await http.get("/x")
            clock.advance(20)
            assert brief(await http.get("/x")) == (200, "xx", "missing")

    async def test_304_with_no_store_answers_its_client_and_removes_the_entry(self, cache, clock):
        fields = {"cache-control": "max-age=10", "etag": '"1"'}
        origin = Origin((200, fields, "body"), (200, {**fields, "cache-control": "no-store"}, ""))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            clock.advance(20)
            answer = await http.get("/x")
            assert (brief(answer), answer.headers["cache-control"]) == ((200, "body", "missing"), "no-store")
            assert answer.headers["cache-status"] == "swr; fwd=stale; fwd-status=304"
            assert state(await http.get("/x")) == ("missing", 'swr; fwd=uri-miss; detail="no-store"')

    async def test_background_304_with_no_store_removes_the_entry(self, cache, clock):
        fields = {"cache-control": "max-age=10, stale-while-revalidate=60", "etag": '"1"'}
        origin = Origin((200, fields, "body"), (200, {**fields, "cache-control": "no-store"}, ""))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            clock.advance(20)
            assert brief(await http.get("/x")) == (200, "body", "stale")
            await settle()
            assert (await http.get("/x")).headers["swr-state"] == "missing"

    async def test_no_cache_response_is_revalidated_for_every_request(self, cache):
        """5.2.2.4."""
        origin = Origin((200, {"cache-control": "max-age=60, no-cache", "etag": '"1"'}, "body"))
        async with client(SWRMiddleware(origin, cache)) as http:
            for _ in range(3):
                assert brief(await http.get("/x")) == (200, "body", "missing")
        assert [asked.get("if-none-match") for _, asked in origin.seen] == [None, '"1"', '"1"']

    async def test_concurrent_requests_for_a_no_cache_response_each_run_the_app(self, cache):
        """RFC 9111 4: what must be confirmed before it is reused is not shared among those who wait."""
        app = App([(b"cache-control", b"no-cache"), (b"etag", b'"1"')])
        async with client(SWRMiddleware(app, cache)) as http:
            answers = await gather(*(http.get("/x") for _ in range(5)), open_later(app))
            assert sorted(answer.text for answer in answers[:-1]) == list("12345")
            app.gate = None
            app.begun = anyio.Event()
            answers = await gather(*(http.get("/x") for _ in range(5)), open_later(app))
            assert sorted(answer.text for answer in answers[:-1]) == ["10", "6", "7", "8", "9"]

    async def test_no_cache_response_without_validator_is_not_stored(self, cache):
        origin = Origin((200, {"cache-control": "no-cache"}, "x"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            assert state(await http.get("/x")) == ("missing", 'swr; fwd=uri-miss; detail="no-cache"')

    async def test_stored_404_is_reloaded_without_condition(self, cache, clock):
        """RFC 9110 13.2.1."""
        origin = Origin((404, {"cache-control": "max-age=10", "etag": '"1"'}, "none"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            clock.advance(20)
            assert brief(await http.get("/x")) == (404, "none", "missing")
        assert "if-none-match" not in origin.seen[1][1]

    async def test_if_modified_since_is_answered_from_the_stored_response(self, cache):
        """4.3.2; RFC 9110 13.1.3."""
        origin = Origin((200, {"cache-control": "max-age=60", "last-modified": OLD}, "x"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            answer = await http.get("/x", headers={"if-modified-since": "Thursday, 02-Jan-20 00:00:00 GMT"})
            assert (answer.status_code, answer.headers["last-modified"]) == (304, OLD)
            later = await http.get("/x", headers={"if-modified-since": "Tue, 31 Dec 2019 00:00:00 GMT"})
            assert brief(later) == (200, "x", "fresh")

    async def test_if_match_bypasses_the_cache(self, cache):
        """RFC 9110 13.1.1 and 13.1.4."""
        origin = Origin((200, {"cache-control": "max-age=60", "etag": '"1"'}, "x"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            answer = await http.get("/x", headers={"if-match": '"1"'})
            assert state(answer) == ("missing", 'swr; fwd=bypass; detail="precondition"')

    async def test_no_store_response_is_sent_whole_despite_if_none_match(self, cache):
        origin = Origin((200, {"cache-control": "no-store", "etag": '"1"'}, "x"))
        async with client(SWRMiddleware(origin, cache)) as http:
            assert brief(await http.get("/x", headers={"if-none-match": '"1"'})) == (200, "x", "missing")

    async def test_too_large_body_is_not_sent_to_a_client_that_got_304(self, cache):
        app = App([(b"cache-control", b"max-age=60"), (b"etag", b'"1"')], chunks=[b"a" * 10] * 3)
        async with client(SWRMiddleware(app, cache, max_body_bytes=15)) as http:
            answer = await http.get("/x", headers={"if-none-match": '"1"'})
            assert (answer.status_code, answer.content) == (304, b"")
            assert (await http.get("/x")).status_code == 200
        assert app.runs == 2


class TestHead:
    """RFC 9111 4.3.5."""

    FIELDS = {"cache-control": "max-age=10", "etag": '"1"', "content-length": "4"}

    @pytest.mark.parametrize("known", [{"etag": '"1"'}, {"etag": '"1"', "content-length": "4"}])
    async def test_head_with_matching_validator_renews_the_get_response(self, cache, clock, known):
        origin = Origin((200, self.FIELDS, "body"), (200, {"cache-control": "max-age=100", "x": "new", **known}, ""))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            clock.advance(20)
            assert state(await http.head("/x")) == ("missing", "swr; fwd=stale")
            answer = await http.get("/x")
            assert (brief(answer), answer.headers["x"]) == ((200, "body", "fresh"), "new")
            assert answer.headers.get_list("cache-status") == ["swr; hit; ttl=100"]
        assert [method for method, _ in origin.seen] == ["GET", "HEAD"]

    @pytest.mark.parametrize(
        ("stored", "known", "renews"),
        [
            ({"etag": '"1"'}, {}, False),
            ({"etag": '"1"'}, {"content-length": "4"}, False),
            ({"etag": '"1"'}, {"etag": 'W/"1"'}, False),
            ({"etag": 'W/"1"'}, {"etag": 'W/"1"'}, False),
            ({"etag": '"1"'}, {"etag": '"1"', "content-length": "0"}, False),
            ({"etag": '"1"'}, {"last-modified": OLD}, False),
            ({}, {}, False),
            ({"last-modified": OLD}, {"last-modified": OLD}, True),
            ({"etag": '"1"', "last-modified": OLD}, {"last-modified": OLD}, True),
            ({"etag": 'W/"1"', "last-modified": OLD}, {"etag": 'W/"1"', "last-modified": OLD}, True),
        ],
    )
    async def test_head_renews_the_get_response_only_if_a_usable_validator_matches(
        self, cache, clock, stored, known, renews
    ):
        fields = {"cache-control": "max-age=10, stale-if-error=5000", "content-length": "4", **stored}
        origin = Origin((200, fields, "body"), (200, {"cache-control": "max-age=1000", "x": "new", **known}, ""))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            clock.advance(20)
            await http.head("/x")
            origin.answers((500, {}, ""))
            answer = await http.get("/x")
            assert (brief(answer), "x" in answer.headers) == ((200, "body", "fresh" if renews else "stale"), renews)

    @pytest.mark.parametrize("by", ["rule", "override", "decorator"])
    @pytest.mark.parametrize("other", [{"etag": '"2"'}, {"etag": '"1"', "cache-control": "no-store"}])
    async def test_head_does_not_remove_a_response_stored_by_rule_or_decorator(self, cache, clock, other, by):
        answer = Response("body", headers={"etag": '"1"'})

        async def endpoint(request):
            return Response("", headers=other) if request.method == "HEAD" else answer

        if by == "decorator":
            endpoint = cache.response(fresh_for=10, stale_if_error=5000)(endpoint)
        elif by == "override":
            answer.headers["cache-control"] = "max-age=1"
        options = {"fresh_for": 10, "stale_if_error": 5000, "override": by == "override"}
        rules = [] if by == "decorator" else [Rule("/x", **options)]
        app = Starlette(routes=[StarletteRoute("/x", endpoint)])
        async with client(SWRMiddleware(app, cache, rules=rules)) as http:
            await http.get("/x")
            clock.advance(20)
            assert (await http.head("/x")).headers["swr-state"] == "missing"
            answer.status_code = 500
            assert brief(await http.get("/x")) == (200, "body", "stale")

    @pytest.mark.parametrize("other", [{"etag": '"2"'}, {"etag": '"1"', "cache-control": "no-store"}])
    async def test_head_with_other_etag_or_no_store_removes_the_get_response(self, cache, clock, other):
        origin = Origin((200, self.FIELDS, "body"), (200, {"cache-control": "max-age=100", **other}, ""))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            clock.advance(20)
            await http.head("/x")
            origin.answers((200, self.FIELDS, "body"))
            await http.get("/x")
        assert [method for method, _ in origin.seen] == ["GET", "HEAD", "GET"]
        assert "if-none-match" not in origin.seen[2][1]

    async def test_head_with_vary_removes_a_get_response_stored_without_vary(self, cache, clock):
        """`foo` did not select the stored response, so swr may not serve it to other clients."""
        origin = Origin((200, self.FIELDS, "here"), (200, {**self.FIELDS, "vary": "foo"}, ""))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x", headers={"foo": "1"})
            clock.advance(20)
            await http.head("/x", headers={"foo": "1"})
            origin.answers((200, {**self.FIELDS, "vary": "foo"}, "else"))
            assert brief(await http.get("/x", headers={"foo": "2"})) == (200, "else", "missing")

    async def test_client_that_leaves_during_head_leaves_no_lease(self, clock):
        """The store has granted the lease, and the client leaves before anything is stored."""
        async with fleet(1, clock) as (process,):
            origin = Origin((200, self.FIELDS, "body"), (200, {"cache-control": "max-age=100", "etag": '"1"'}, ""))
            middleware = SWRMiddleware(origin, cache_on(process, clock))
            async with client(middleware) as http:
                await http.get("/x")
                clock.advance(20)
                commit = process.link.commit

                async def never(*_):
                    await anyio.sleep_forever()

                process.link.commit = never
                async with anyio.create_task_group() as group:
                    group.start_soon(http.head, "/x")
                    await settle()
                    group.cancel_scope.cancel()
                process.link.commit = commit
                with anyio.fail_after(60):
                    assert brief(await http.get("/x"))[0] == 200

    async def test_head_with_error_status_keeps_the_get_response(self, cache, clock):
        origin = Origin((200, self.FIELDS, "body"), (500, {}, ""), (200, self.FIELDS, "body"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            clock.advance(20)
            await http.head("/x")
            await http.get("/x")
        assert origin.seen[2][1]["if-none-match"] == '"1"'

    async def test_head_runs_the_app_when_nothing_is_stored(self, cache):
        origin = Origin((200, self.FIELDS, ""))
        async with client(SWRMiddleware(origin, cache)) as http:
            assert state(await http.head("/x")) == ("missing", "swr; fwd=uri-miss")

    async def test_head_with_200_removes_a_stored_404_with_the_same_etag(self, cache, clock):
        origin = Origin((404, self.FIELDS, "none"), (200, {"cache-control": "max-age=100", "etag": '"1"'}, ""))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            clock.advance(20)
            await http.head("/x")
            assert (await http.get("/x")).headers["cache-status"] == "swr; fwd=uri-miss; stored"

    async def test_head_that_renews_keeps_the_tags_of_the_rule(self, cache, clock):
        origin = Origin((200, self.FIELDS, "body"), (200, {"cache-control": "max-age=100", "etag": '"1"'}, ""))
        rules = [Rule("/{name}", tags=("name:{name}",))]
        async with client(SWRMiddleware(origin, cache, rules=rules)) as http:
            await http.get("/x")
            clock.advance(20)
            await http.head("/x")
            assert (await http.get("/x")).headers["swr-state"] == "fresh"
            await cache.invalidate_tag("name:x")
            assert (await http.get("/x")).headers["swr-state"] == "missing"


class TestStale:
    """RFC 9111 4.2.4; RFC 5861."""

    @pytest.mark.parametrize("status", [502, 504])
    async def test_502_or_504_falls_back_on_the_stored_response_for_a_day(self, cache, clock, status):
        origin = Origin((200, {"cache-control": "max-age=10"}, "good"), (status, {}, "bad"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            clock.advance(86000)
            answer = await http.get("/x")
            assert brief(answer) == (200, "good", "stale")
            assert answer.headers["cache-status"] == f"swr; fwd=stale; fwd-status={status}"
            clock.advance(500)
            assert (await http.get("/x")).status_code == status

    @pytest.mark.parametrize("error", [ConnectionRefusedError(), TimeoutError()])
    async def test_connection_error_or_timeout_in_the_app_falls_back_on_the_stored_response(self, cache, clock, error):
        origin = Origin((200, {"cache-control": "max-age=10"}, "good"), error)
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            clock.advance(20)
            assert brief(await http.get("/x")) == (200, "good", "stale")

    async def test_503_or_exception_is_not_replaced_without_stale_if_error(self, cache, clock):
        origin = Origin((200, {"cache-control": "max-age=10"}, "good"), (503, {}, "busy"), ValueError("bug"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            clock.advance(20)
            # Nothing is in, so nobody keeps off either.
            assert (await http.get("/x")).text == "busy"
            with pytest.raises(ValueError, match="bug"):
                await http.get("/x")

    @pytest.mark.parametrize(
        "directives",
        ["must-revalidate", "proxy-revalidate", "no-cache", "s-maxage=10", "stale-if-error=1000, no-cache"],
    )
    async def test_directive_that_requires_validation_forbids_fallback_and_max_stale(self, cache, clock, directives):
        """Neither an error, nor the client's max-stale, nor `stale_if_unreachable` allows a stale response."""
        fields = {"cache-control": f"max-age=10, {directives}", "etag": '"1"'}
        origin = Origin((200, fields, "good"), (504, {}, "bad"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            clock.advance(20)
            assert brief(await http.get("/x")) == (504, "bad", "missing")
            assert (await http.get("/x", headers={"cache-control": "max-stale"})).status_code == 504
            only = await http.get("/x", headers={"cache-control": "max-stale, only-if-cached"})
            assert (only.status_code, only.text) == (504, "")

    async def test_s_maxage_with_stale_while_revalidate_allows_a_stale_hit(self, cache, clock):
        """A deviation from RFC 9111 5.2.2.10: an app that sends both directives means both."""
        origin = Origin((200, {"cache-control": "s-maxage=10, stale-while-revalidate=60"}, "good"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            clock.advance(20)
            assert brief(await http.get("/x")) == (200, "good", "stale")

    async def test_stale_if_unreachable_limits_the_fallback_after_504(self, cache, clock):
        origin = Origin((200, {"cache-control": "max-age=10"}, "good"), (504, {}, "bad"))
        async with client(SWRMiddleware(origin, cache, stale_if_unreachable=5)) as http:
            await http.get("/x")
            clock.advance(20)
            assert (await http.get("/x")).status_code == 504

    @pytest.mark.parametrize("status", [400, 403, 404, 410, 429])
    async def test_4xx_is_never_replaced_by_the_fallback(self, cache, clock, status):
        fields = {"cache-control": "max-age=10, stale-if-error=1000", "etag": '"1"'}
        origin = Origin((200, fields, "good"), (status, {}, "no"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            clock.advance(20)
            assert brief(await http.get("/x")) == (status, "no", "missing")

    async def test_entry_that_lists_variants_is_never_a_fallback(self, cache, clock):
        """The URL may have begun to vary while the load that fails was running."""
        job = Capture(SWRMiddleware(App(), cache).config, Request(http_scope("/x"), []))
        assert not job.may_fall_back(
            stamp(Varies(("foo",), (), (60.0,)), Policy(60), clock.now), ConnectionError(), clock.now
        )

    async def test_stored_503_without_stale_if_error_is_no_fallback_for_502(self, cache, clock):
        origin = Origin((503, {"cache-control": "max-age=10"}, "first"), (502, {}, "second"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            clock.advance(20)
            assert brief(await http.get("/x")) == (502, "second", "missing")


class TestRequestDirectives:
    """RFC 9111 5.2.1."""

    async def test_max_stale_allows_a_stale_hit_up_to_its_limit(self, cache, clock):
        origin = Origin((200, {"cache-control": "max-age=10"}, "x"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            clock.advance(40)
            answer = await http.get("/x", headers={"cache-control": "max-stale=29, only-if-cached"})
            assert answer.status_code == 504
            answer = await http.get("/x", headers={"cache-control": "max-stale=30, only-if-cached"})
            assert state(answer) == ("stale", "swr; hit; ttl=-30")
            await settle()
            assert (await http.get("/x")).headers["swr-state"] == "fresh"

    async def test_max_stale_counts_from_the_end_of_freshness_including_the_age_field(self, cache):
        """The response became stale 50 seconds before swr received it."""
        origin = Origin((200, {"cache-control": "max-age=10", "age": "60", "etag": '"1"'}, "x"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            for accepted, status in ((49, 504), (50, 200)):
                said = {"cache-control": f"max-stale={accepted}, only-if-cached"}
                answer = await http.get("/x", headers=said)
                assert answer.status_code == status
            assert state(answer) == ("stale", "swr; hit; ttl=-50")

    @pytest.mark.parametrize(
        ("honoured", "headers"),
        [
            ("no-cache", {"cache-control": "no-cache"}),
            ("max-age", {"cache-control": "max-age=0"}),
            ("pragma", {"pragma": "no-cache"}),
        ],
    )
    async def test_no_cache_max_age_or_pragma_forces_a_load_only_if_enabled(self, cache, honoured, headers):
        app = App([(b"cache-control", b"max-age=60")])
        async with client(SWRMiddleware(app, cache)) as http:
            await http.get("/x")
            assert brief(await http.get("/x", headers=headers)) == (200, "1", "fresh")
        middleware = SWRMiddleware(app, cache, request_directives=[honoured])
        async with client(middleware) as http:
            app.begun = anyio.Event()
            answers = await gather(*(http.get("/x", headers=headers) for _ in range(5)), open_later(app))
            assert {brief(answer) for answer in answers[:-1]} == {(200, "2", "missing")}
            statuses = sorted(answer.headers["cache-status"] for answer in answers[:-1])
            assert statuses == ["swr; fwd=request; collapsed"] * 4 + ["swr; fwd=request; stored"]
            assert (await http.get("/x", headers={"pragma": "other"})).headers["swr-state"] == "fresh"

    async def test_request_max_age_includes_the_age_field_of_the_response(self, cache):
        origin = Origin((200, {"cache-control": "max-age=60", "age": "30"}, "x"))
        async with client(SWRMiddleware(origin, cache, request_directives=["max-age"])) as http:
            await http.get("/x")
            assert (await http.get("/x", headers={"cache-control": "max-age=31"})).headers["swr-state"] == "fresh"
            assert (await http.get("/x", headers={"cache-control": "max-age=30"})).headers["swr-state"] == "missing"

    async def test_min_fresh_accepts_exactly_the_remaining_lifetime(self, cache):
        """RFC 9111 5.2.1.3: the lifetime must be at least the age plus min-fresh."""
        origin = Origin((200, {"cache-control": "max-age=60"}, "x"))
        async with client(SWRMiddleware(origin, cache, request_directives=["min-fresh"])) as http:
            await http.get("/x")
            assert (await http.get("/x", headers={"cache-control": "min-fresh=60"})).headers["swr-state"] == "fresh"
            assert (await http.get("/x", headers={"cache-control": "min-fresh=61"})).headers["swr-state"] == "missing"

    async def test_min_fresh_0_does_not_accept_a_stale_response(self, cache, clock):
        origin = Origin((200, {"cache-control": "max-age=10, stale-while-revalidate=60"}, "x"))
        async with client(SWRMiddleware(origin, cache, request_directives=["min-fresh"])) as http:
            await http.get("/x")
            clock.advance(20)
            assert (await http.get("/x", headers={"cache-control": "min-fresh=0"})).headers["swr-state"] == "missing"

    async def test_response_below_min_fresh_is_the_fallback_when_the_load_gets_502(self, cache, clock):
        origin = Origin((200, {"cache-control": "max-age=60"}, "x"), (502, {}, ""))
        async with client(SWRMiddleware(origin, cache, request_directives=["min-fresh"])) as http:
            await http.get("/x")
            answer = await http.get("/x", headers={"cache-control": "min-fresh=100"})
            assert (brief(answer), state(answer)[1]) == ((200, "x", "fresh"), "swr; fwd=request; fwd-status=502")

    async def test_request_directives_that_are_off_are_ignored(self, cache):
        origin = Origin((200, {"cache-control": "max-age=60"}, "x"))
        async with client(SWRMiddleware(origin, cache, request_directives=())) as http:
            said = {"cache-control": "no-store, only-if-cached, min-fresh=1000, max-stale=x"}
            assert (await http.get("/x", headers=said)).headers["swr-state"] == "missing"
            assert (await http.get("/x", headers=said)).headers["swr-state"] == "fresh"


class TestRange:
    """RFC 9110 14; RFC 9111 3.3 and 3.4."""

    FIELDS = {"cache-control": "max-age=60", "etag": '"1"', "content-length": "10"}

    async def test_range_requests_are_answered_from_the_stored_whole_response(self, cache):
        origin = Origin((200, self.FIELDS, "0123456789"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            for asked, part, place in (
                ("0-1", "01", "0-1"),
                ("8-", "89", "8-9"),
                ("-3", "789", "7-9"),
                ("5-99", "56789", "5-9"),
            ):
                answer = await http.get("/x", headers={"range": f"bytes={asked}"})
                assert brief(answer) == (206, part, "fresh")
                assert answer.headers["content-range"] == f"bytes {place}/10"
                assert answer.headers.get_list("content-length") == [str(len(part))]
            beyond = await http.get("/x", headers={"range": "bytes=10-"})
            assert (brief(beyond), beyond.headers["content-range"]) == ((416, "", "fresh"), "bytes */10")
            for disregarded in ("bytes=0-1,3-4", "lines=0-1", "bytes=5-3", "bytes=-"):
                assert brief(await http.get("/x", headers={"range": disregarded})) == (200, "0123456789", "fresh")
            head = await http.head("/x", headers={"range": "bytes=0-1"})
            assert (head.status_code, head.headers["content-length"]) == (200, "10")
        assert origin.runs == 1

    async def test_range_is_served_only_if_if_range_matches_strongly(self, cache):
        """RFC 9110 13.1.5."""
        origin = Origin((200, self.FIELDS, "0123456789"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            for condition, status in (('"1"', 206), ('W/"1"', 200), ('"2"', 200), (OLD, 200)):
                answer = await http.get("/x", headers={"range": "bytes=0-1", "if-range": condition})
                assert answer.status_code == status

    async def test_if_none_match_takes_precedence_over_range(self, cache):
        """RFC 9110 13.2.2."""
        origin = Origin((200, self.FIELDS, "0123456789"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            answer = await http.get("/x", headers={"range": "bytes=0-1", "if-none-match": '"1"'})
            assert answer.status_code == 304

    def part(self, first, body, complete=10, **more):
        place = f"bytes {first}-{first + len(body) - 1}/{complete}"
        return 206, {**self.FIELDS, "content-length": str(len(body)), "content-range": place, **more}, body

    async def test_overlapping_parts_are_joined_and_not_served_as_the_whole(self, cache):
        origin = Origin(self.part(2, "2345"))
        async with client(SWRMiddleware(origin, cache)) as http:

            async def get(asked):
                return brief(await http.get("/x", headers={"range": f"bytes={asked}"}))

            assert await get("2-5") == (206, "2345", "missing")
            assert await get("3-4") == (206, "34", "fresh")
            origin.answers(self.part(4, "456789"))
            assert await get("4-9") == (206, "456789", "missing")
            assert await get("3-8") == (206, "345678", "fresh")
            assert await get("-2") == (206, "89", "fresh")
            assert await get("20-") == (416, "", "fresh")
            origin.answers((200, self.FIELDS, "wholewhole"))
            assert brief(await http.get("/x")) == (200, "wholewhole", "missing")

    async def test_stale_part_is_reloaded_before_the_answer_and_without_condition(self, cache, clock):
        """Not in the background: a confirmation there would be taken for the whole response."""
        said = {"cache-control": "max-age=10, stale-while-revalidate=60, stale-if-error=60"}
        origin = Origin(self.part(0, "01", **said), self.part(0, "01", **said), (200, self.FIELDS, "wholewhole"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x", headers={"range": "bytes=0-1"})
            clock.advance(20)
            for expected in ("missing", "fresh"):
                assert brief(await http.get("/x", headers={"range": "bytes=0-1"})) == (206, "01", expected)
                await settle()
            assert brief(await http.get("/x")) == (200, "wholewhole", "missing")
        assert [asked.get("if-none-match") for _, asked in origin.seen] == [None] * 3

    async def test_parts_that_cover_everything_are_served_as_the_whole(self, cache):
        origin = Origin(self.part(0, "01234"), self.part(5, "56789"))
        async with client(SWRMiddleware(origin, cache)) as http:
            for asked in ("0-4", "5-9"):
                await http.get("/x", headers={"range": f"bytes={asked}"})
            whole = await http.get("/x")
            assert (brief(whole), whole.headers["content-length"]) == ((200, "0123456789", "fresh"), "10")
            assert "content-range" not in whole.headers

    @pytest.mark.parametrize(
        "second",
        [
            {"etag": '"2"'},
            {"etag": 'W/"1"'},
            {"etag": None},
        ],
    )
    async def test_parts_without_the_same_strong_etag_are_not_joined(self, cache, second):
        """RFC 9111 3.4: only where a strong validator says that they belong together."""
        origin = Origin(self.part(0, "01234"), self.part(5, "abcde", **second))
        async with client(SWRMiddleware(origin, cache)) as http:
            for asked in ("0-4", "5-9"):
                await http.get("/x", headers={"range": f"bytes={asked}"})
            assert brief(await http.get("/x", headers={"range": "bytes=6-7"})) == (206, "bc", "fresh")
            await http.get("/x", headers={"range": "bytes=0-1"})
        assert origin.runs == 3

    async def test_parts_with_a_gap_are_not_joined(self, cache):
        origin = Origin(self.part(0, "01"), self.part(5, "56"))
        async with client(SWRMiddleware(origin, cache)) as http:
            for asked in ("0-1", "5-6", "0-1"):
                await http.get("/x", headers={"range": f"bytes={asked}"})
        assert origin.runs == 3

    @pytest.mark.parametrize(
        "fields",
        [{"content-range": "bytes 0-1/*"}, {"content-range": "bytes 0-1/2"}, {"vary": "foo"}, {"cache-control": ""}],
    )
    async def test_part_with_unclear_range_or_vary_or_no_lifetime_is_not_stored(self, cache, fields):
        origin = Origin(self.part(0, "01234", **fields))
        async with client(SWRMiddleware(origin, cache)) as http:
            for _ in range(2):
                assert (await http.get("/x", headers={"range": "bytes=0-4"})).text == "01234"
            origin.answers((200, self.FIELDS, "wholewhole"))
            await http.get("/x")
            assert brief(await http.get("/x")) == (200, "wholewhole", "fresh")
        assert origin.runs == 3

    async def test_200_in_answer_to_a_range_request_is_stored_as_the_whole(self, cache):
        """The app does not support ranges."""
        origin = Origin((200, self.FIELDS, "0123456789"))
        async with client(SWRMiddleware(origin, cache)) as http:
            assert brief(await http.get("/x", headers={"range": "bytes=0-1"})) == (200, "0123456789", "missing")
            assert brief(await http.get("/x", headers={"range": "bytes=0-1"})) == (206, "01", "fresh")
        assert origin.seen[0][1]["range"] == "bytes=0-1"

    async def test_varying_200_in_answer_to_a_range_request_is_stored_as_the_whole(self, cache):
        origin = Origin((200, {**self.FIELDS, "vary": "foo"}, "0123456789"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x", headers={"range": "bytes=0-1", "foo": "a"})
            assert brief(await http.get("/x", headers={"range": "bytes=0-1", "foo": "a"})) == (206, "01", "fresh")
            assert (await http.get("/x", headers={"foo": "b"})).headers["swr-state"] == "missing"

    async def test_concurrent_requests_for_one_part_share_one_load(self, cache):
        fields = [(name.encode(), value.encode()) for name, value in self.part(0, "01")[1].items()]
        app = App(fields, status=206, body=b"01")
        async with client(SWRMiddleware(app, cache)) as http:
            calls = [http.get("/x", headers={"range": "bytes=0-1"}) for _ in range(5)]
            answers = await gather(*calls, open_later(app))
            assert {(answer.status_code, answer.text) for answer in answers[:-1]} == {(206, "01")}
        assert app.runs == 1

    async def test_part_is_stored_for_its_variant_only(self, cache):
        """swr learns from a whole response which fields the URL varies by."""
        origin = Origin(
            (200, {"cache-control": "max-age=0", "etag": '"1"', "vary": "foo"}, "x"), self.part(0, "01", vary="foo")
        )
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x", headers={"foo": "a"})
            for _ in range(2):
                answer = await http.get("/x", headers={"foo": "a", "range": "bytes=0-1"})
            assert brief(answer) == (206, "01", "fresh")
            await http.get("/x", headers={"foo": "b", "range": "bytes=0-1"})
        assert origin.runs == 3

    async def test_part_is_stored_and_served_here_while_the_store_is_unreachable(self, clock):
        async with fleet(1, clock) as (process,):
            middleware = SWRMiddleware(Origin(self.part(0, "01")), cache_on(process, clock))
            await process.engine.ready()
            process.link.set_down(True)
            async with client(middleware) as http:
                for expected in ("missing", "fresh"):
                    answer = await http.get("/x", headers={"range": "bytes=0-1"})
                    assert brief(answer) == (206, "01", expected)

    async def test_part_longer_than_its_content_range_is_not_stored(self, cache):
        place = {**self.FIELDS, "content-range": "bytes 0-1/10"}
        del place["content-length"]
        origin = Origin((206, place, "0123"))
        async with client(SWRMiddleware(origin, cache)) as http:
            for _ in range(2):
                assert (await http.get("/x", headers={"range": "bytes=0-1"})).text == "0123"
        assert origin.runs == 2


class TestContent:
    """RFC 9110 9.3.1: content in a GET has no meaning of its own; an app may give it one that no key knows of."""

    @staticmethod
    async def echo(scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=60")]})
        await send({"type": "http.response.body", "body": b"echo:" + body})

    @pytest.mark.parametrize("announced", ["content-length", "transfer-encoding", None])
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    async def test_get_or_head_with_content_is_neither_stored_nor_served_from_cache(self, cache, announced, method):
        middleware = SWRMiddleware(self.echo, cache)
        fields = {"content-length": b"4", "transfer-encoding": b"chunked"}
        headers = [(b"host", b"test")] + ([(announced.encode(), fields[announced])] if announced else [])
        messages = [{"type": "http.request", "body": b"", "more_body": True}] * 2
        messages.append({"type": "http.request", "body": b"evil", "more_body": False})
        http = Client()

        async def receive():
            return messages.pop(0)

        async def pieces():
            yield b"1"

        await middleware(http_scope("/x", headers=headers, method=method), receive, http.send)
        assert http.sent[1]["body"] == b"echo:evil"
        assert dict(http.sent[0]["headers"])[b"cache-status"].startswith(b"swr; fwd=")
        async with client(middleware) as others:
            assert brief(await others.get("/x")) == (200, "echo:", "missing")
            if announced:
                # Nor is it answered with what is stored.
                content = b"1" if announced == "content-length" else pieces()
                answer = await others.request("GET", "/x", content=content)
                assert brief(answer) == (200, "echo:1", "missing")
                assert answer.headers["cache-status"] == 'swr; fwd=bypass; detail="content"'
            assert brief(await others.get("/x", headers={"content-length": "0"})) == (200, "echo:", "fresh")

    async def test_client_that_never_sends_its_content_delays_no_other_client(self, cache):
        middleware = SWRMiddleware(self.echo, cache)
        slow = Client()

        async def receive():
            await anyio.sleep_forever()

        async with anyio.create_task_group() as group:
            for headers in ([(b"host", b"test")], [(b"host", b"test"), (b"content-length", b"9")]):
                group.start_soon(middleware, http_scope("/x", headers=headers), receive, slow.send)
            await settle()
            async with client(middleware) as http:
                assert brief(await http.get("/x")) == (200, "echo:", "missing")
                assert brief(await http.get("/x")) == (200, "echo:", "fresh")
            group.cancel_scope.cancel()
        assert slow.sent == []


class TestVary:
    """RFC 9111 4.1."""

    async def test_accept_language_is_compared_without_case_but_in_order(self, cache):
        origin = Origin((200, {"cache-control": "max-age=60", "vary": "accept-language"}, "x"))
        async with client(SWRMiddleware(origin, cache)) as http:
            for language, expected in (("en, de", "missing"), (" EN ,de", "fresh"), ("de, en", "missing")):
                answer = await http.get("/x", headers={"accept-language": language})
                assert answer.headers["swr-state"] == expected

    async def test_oldest_variant_is_dropped_when_max_variants_is_exceeded(self, cache):
        origin = Origin((200, {"cache-control": "max-age=60", "vary": "foo"}, "x"))
        async with client(SWRMiddleware(origin, cache, max_variants=3)) as http:

            async def get(foo):
                return (await http.get("/x", headers={"foo": foo})).headers["cache-status"].partition("; ttl")[0]

            for foo in "abc":
                await get(foo)
            assert [await get(foo) for foo in "abc"] == ["swr; hit"] * 3
            assert await get("d") == "swr; fwd=vary-miss; stored"
            assert [await get(foo) for foo in "bcd"] == ["swr; hit"] * 3
            assert await get("a") == "swr; fwd=vary-miss; stored"
            assert await get("b") == "swr; fwd=vary-miss; stored"

    async def test_variant_invalidated_during_its_load_is_not_stored(self, cache):
        origin = Origin((200, {"cache-control": "max-age=60", "vary": "foo"}, "old"))
        gate, begun = anyio.Event(), anyio.Event()

        async def app(scope, receive, send):
            answers = origin.responses[0]
            begun.set()
            await gate.wait()
            await Origin(answers)(scope, receive, send)

        async def overtake():
            await begun.wait()
            await cache.invalidate_url("/x")
            origin.answers((200, {"cache-control": "max-age=60", "vary": "foo"}, "new"))
            gate.set()

        async with client(SWRMiddleware(app, cache)) as http:
            await gather(http.get("/x"), overtake())
            assert brief(await http.get("/x"))[1] == "new"

    async def test_reloaded_variant_counts_once_towards_max_variants(self, cache, clock):
        origin = Origin((200, {"cache-control": "max-age=60", "vary": "foo"}, "x"))
        async with client(SWRMiddleware(origin, cache, max_variants=2, stale_if_unreachable=0)) as http:
            for foo in "abababab":
                await http.get("/x", headers={"foo": foo})
                clock.advance(61)
            note = next(slot.value for key, slot in cache.local.slots.items() if "vary:" not in key)
        assert len(note.variants) == 2


class TestInvalidation:
    """RFC 9111 4.4."""

    FRESH = (200, {"cache-control": "max-age=60"}, "x")

    @pytest.mark.uncounted
    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "UNHEARD-OF"])
    @pytest.mark.parametrize(("status", "after"), [(200, "missing"), (303, "missing"), (404, "fresh"), (500, "fresh")])
    async def test_unsafe_method_invalidates_its_url_only_if_it_succeeds(self, cache, method, status, after):
        origin = Origin(self.FRESH)
        rules = [Rule("/{name}", drop_params=("utm_*",))]
        async with client(SWRMiddleware(origin, cache, rules=rules)) as http:
            await http.get("/x?a=1")
            origin.answers((status, {}, ""))
            answer = await http.request(method, "/x?a=1")
            assert answer.headers["cache-status"] == ("swr; fwd=method")
            origin.answers(self.FRESH)
            assert (await http.get("/x?a=1")).headers["swr-state"] == after

    @pytest.mark.parametrize("url", ["/x?a=1&b=2", "/x?b=2&a=1"])
    async def test_invalidation_ignores_parameter_order_when_sort_query_is_on(self, cache, url):
        origin = Origin(self.FRESH)
        async with client(SWRMiddleware(origin, cache, rules=[Rule("/x", sort_query=True)])) as http:
            await http.get("/x?b=2&a=1")
            origin.answers((201, {"location": url}, ""))
            await http.post("/new")
            origin.answers(self.FRESH)
            assert (await http.get("/x?b=2&a=1")).headers["swr-state"] == "missing"
            await cache.invalidate_url(url)
            assert (await http.get("/x?b=2&a=1")).headers["swr-state"] == "missing"

    async def test_invalidation_ignores_parameters_that_a_rule_drops(self, cache):
        origin = Origin(self.FRESH)
        async with client(SWRMiddleware(origin, cache, rules=[Rule("/x", drop_params=("utm_*",))])) as http:
            await http.get("/x?a=1&utm_source=mail")
            origin.answers((201, {"location": "/x?utm_source=web&a=1"}, ""))
            await http.post("/new")
            origin.answers(self.FRESH)
            assert (await http.get("/x?a=1")).headers["swr-state"] == "missing"

    @pytest.mark.parametrize("host", ["[", "a]", "[::1", "x[y]", "\xff", "", "a/b?c#d", "a@b"])
    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
    async def test_malformed_host_does_not_fail_the_request(self, cache, host, method):
        fields = {"cache-groups": '"g"', "cache-group-invalidation": '"g"', "location": "/y", **self.FRESH[1]}
        http = Client()
        scope = http_scope("/x", headers=[(b"host", host.encode("latin-1"))], method=method)
        await SWRMiddleware(Origin((200, fields, "x")), cache)(scope, http.receive, http.send)
        assert http.sent[0]["status"] == 200

    @pytest.mark.uncounted
    @pytest.mark.parametrize("field", ["location", "content-location"])
    @pytest.mark.parametrize(
        ("reference", "after"),
        [
            ("/other?q=1", "missing"),
            ("other?q=1", "missing"),
            ("http://test/other?q=1", "missing"),
            ("HTTP://TEST/other?q=1", "missing"),
            ("http://elsewhere/other?q=1", "fresh"),
            ("https://test/other?q=1", "fresh"),
            ("http://[", "fresh"),
            ("/other", "fresh"),
        ],
    )
    async def test_unsafe_method_invalidates_location_and_content_location_of_its_origin(
        self, cache, field, reference, after
    ):
        origin = Origin(self.FRESH)
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/other?q=1")
            origin.answers((201, {field: reference}, ""))
            await http.post("/x")
            origin.answers(self.FRESH)
            assert (await http.get("/other?q=1")).headers["swr-state"] == after

    async def test_safe_methods_invalidate_nothing(self, cache):
        origin = Origin(
            (200, {"cache-control": "max-age=60", "cache-group-invalidation": '"g"', "cache-groups": '"g"'}, "x")
        )
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            await http.options("/x")
            await http.get("/y")
            assert (await http.get("/x")).headers["swr-state"] == "fresh"

    async def test_unsafe_method_invalidates_before_its_answer_and_again_when_the_app_ends(self, cache):
        """FastAPI's dependencies may commit a transaction after the response."""
        origin = Origin((200, {"cache-control": "max-age=60"}, "old"))
        reads = []

        async def app(scope, receive, send):
            if scope["method"] == "GET":
                await origin(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            reads.append(brief(await http.get("/x")))
            origin.answers((200, {"cache-control": "max-age=60"}, "new"))

        async with client(SWRMiddleware(app, cache)) as http:
            await http.get("/x")
            await http.post("/x")
            assert reads == [(200, "old", "missing")]
            assert brief(await http.get("/x")) == (200, "new", "missing")

    async def test_unsafe_method_invalidates_even_if_the_app_fails_after_its_answer(self, cache):
        origin = Origin(self.FRESH)

        async def app(scope, receive, send):
            await origin(scope, receive, send)
            if scope["method"] == "POST":
                raise ValueError("late")

        async with client(SWRMiddleware(app, cache)) as http:
            await http.get("/x")
            with pytest.raises(ValueError, match="late"):
                await http.post("/x")
            assert (await http.get("/x")).headers["swr-state"] == "missing"

    async def test_cache_group_invalidation_invalidates_the_named_groups_of_its_origin(self, cache):
        """RFC 9875: groups belong to one origin; an unsafe method invalidates the groups that it names."""
        grouped = (200, {"cache-control": "max-age=60", "cache-groups": '"flights", "delta;1";x=1'}, "x")
        origin = Origin(grouped)
        async with client(SWRMiddleware(origin, cache)) as http:
            for path in ("/a", "/b"):
                await http.get(path)
            await http.get("/a", headers={"host": "elsewhere"})
            for group, after in (("flight", "fresh"), ('"other"', "fresh"), ('"delta;1", "other"', "missing")):
                origin.answers((204, {"cache-group-invalidation": group if '"' in group else f'"{group}"'}, ""))
                await http.post("/c")
                origin.answers(grouped)
                assert {(await http.get(path)).headers["swr-state"] for path in ("/a", "/b")} == {after}
            assert (await http.get("/a", headers={"host": "elsewhere"})).headers["swr-state"] == "fresh"


class TestPost:
    """RFC 9110 9.3.3: a response to POST that says for how long it represents a GET of the same URL."""

    FIELDS = {"cache-control": "max-age=60", "content-location": "/x"}

    @pytest.mark.parametrize("where", ["/x", "http://test/x", "x"])
    async def test_post_response_with_its_own_content_location_is_stored_for_get(self, cache, where):
        origin = Origin((200, {"cache-control": "max-age=60"}, "old"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            origin.answers((200, {**self.FIELDS, "content-location": where}, "new"))
            await http.post("/x", content=b"...")
            assert brief(await http.get("/x")) == (200, "new", "fresh")
        assert origin.runs == 2

    @pytest.mark.parametrize(
        ("status", "fields"),
        [
            (201, {}),
            (200, {"content-location": "/y"}),
            (200, {"content-location": None}),
            (200, {"cache-control": "public", "last-modified": OLD}),
            (200, {"cache-control": "max-age=0", "etag": '"1"'}),
            (200, {"cache-control": "no-store, max-age=60"}),
            (200, {"vary": "foo"}),
            (200, {"set-cookie": "a=b"}),
            (200, {"content-length": "100"}),
        ],
    )
    async def test_post_response_that_fails_a_requirement_is_not_stored_for_get(self, cache, status, fields):
        body = "a" * 100
        origin = Origin((status, {**self.FIELDS, **fields}, body))
        async with client(
            SWRMiddleware(origin, cache, max_body_bytes=99 if "content-length" in fields else 100)
        ) as http:
            await http.post("/x")
            origin.answers((200, {}, "get"))
            assert brief(await http.get("/x")) == (200, "get", "missing")

    @pytest.mark.parametrize(
        ("asked", "said", "state"),
        [
            ({"cookie": "session=me"}, {}, "missing"),
            ({"cache-control": "no-store"}, {}, "missing"),
            ({}, {"content-length": "4"}, "missing"),
            ({}, {"content-length": "5"}, "fresh"),
        ],
    )
    async def test_post_response_is_stored_for_get_only_if_a_get_response_would_be(self, cache, asked, said, state):
        origin = Origin((200, {**self.FIELDS, **said}, "to me"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.post("/x", headers=asked)
            origin.answers((200, {}, "to me"))
            assert brief(await http.get("/x")) == (200, "to me", state)

    async def test_named_cookies_select_a_stored_post_response(self, cache):
        origin = Origin((200, self.FIELDS, "deutsch"))
        async with client(SWRMiddleware(origin, cache, rules=[Rule("/x", cookies=("lang",))])) as http:
            await http.post("/x", headers={"cookie": "lang=de"})
            origin.answers((200, {}, "english"))
            assert brief(await http.get("/x", headers={"cookie": "lang=de"})) == (200, "deutsch", "fresh")
            assert brief(await http.get("/x")) == (200, "english", "missing")

    async def test_chunked_post_response_is_stored_whole(self, cache):
        app = App(
            [(name.encode(), value.encode()) for name, value in self.FIELDS.items()], chunks=[b"a", b"b"], body=b"c"
        )
        async with client(SWRMiddleware(app, cache)) as http:
            await http.post("/x")
            assert brief(await http.get("/x")) == (200, "abc", "fresh")

    async def test_put_response_is_not_stored_for_get(self, cache):
        origin = Origin((200, self.FIELDS, "new"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.put("/x")
            await http.get("/x")
        assert origin.runs == 2

    async def test_post_response_is_not_stored_if_its_url_is_invalidated_during_the_run(self, cache):
        async def app(scope, receive, send):
            if scope["method"] == "POST":
                await cache.invalidate_url("/x")
            await Origin((200, self.FIELDS, "post"))(scope, receive, send)

        async with client(SWRMiddleware(app, cache)) as http:
            await http.post("/x")
            assert (await http.get("/x")).headers["swr-state"] == "missing"

    async def test_post_during_a_load_leaves_neither_response_stored(self, cache):
        """The load holds the lease, and the POST supersedes its response."""
        origin = Origin((200, self.FIELDS, "post"))
        app = App([(b"cache-control", b"max-age=60")])

        async def either(scope, receive, send):
            await (origin if scope["method"] == "POST" else app)(scope, receive, send)

        async with client(SWRMiddleware(either, cache)) as http:

            async def post():
                app.gate = anyio.Event()
                await app.begun.wait()
                await http.post("/x")
                app.gate.set()

            await gather(http.get("/x"), post())
            assert (await http.get("/x")).headers["swr-state"] == "missing"


class TestTargeted:
    """RFC 9213."""

    @pytest.mark.uncounted
    @pytest.mark.parametrize(
        ("fields", "after"),
        [
            ({"cdn-cache-control": "max-age=60", "cache-control": "no-store"}, "fresh"),
            ({"cdn-cache-control": "no-store", "cache-control": "max-age=60"}, "missing"),
            ({"cdn-cache-control": "max-age=60", "expires": "0"}, "fresh"),
            ({"swr-cache-control": "max-age=60", "cdn-cache-control": "no-store"}, "fresh"),
            ({"swr-cache-control": "", "cdn-cache-control": "max-age=60", "cache-control": "no-store"}, "fresh"),
            ({"cdn-cache-control": "max-age=60, &&&", "cache-control": "no-store"}, "missing"),
            ({"cdn-cache-control": "max-age=60, &&&", "cache-control": "max-age=60"}, "fresh"),
            ({"cdn-cache-control": 'max-age="60"', "cache-control": "max-age=60"}, "missing"),
            ({"cdn-cache-control": "a", "cache-control": "max-age=60"}, "missing"),
        ],
    )
    async def test_targeted_field_takes_precedence_over_cache_control_and_expires(self, cache, fields, after):
        origin = Origin((200, fields, "x"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x")
            answer = await http.get("/x")
            assert answer.headers["swr-state"] == after
            assert answer.headers.get("cdn-cache-control") == fields.get("cdn-cache-control")

    async def test_targeted_option_names_the_fields_that_count(self, cache):
        origin = Origin((200, {"cdn-cache-control": "max-age=60", "my-cache-control": "no-store"}, "x"))
        async with client(SWRMiddleware(origin, cache, targeted=["My-Cache-Control"])) as http:
            await http.get("/x")
            assert (await http.get("/x")).headers["swr-state"] == "missing"


class TestKeys:
    async def test_rules_choose_the_query_parameters_of_the_key(self, cache):
        app = App([(b"cache-control", b"max-age=60")])
        rules = [
            Rule("/sorted", sort_query=True),
            Rule("/kept", keep_params=("a", "b*")),
            Rule("/dropped", drop_params=("utm_*", "fbclid")),
        ]
        async with client(SWRMiddleware(app, cache, rules=rules)) as http:

            async def same(first, second):
                before = app.runs
                await http.get(first)
                await http.get(second)
                return app.runs == before + 1

            assert await same("/sorted?b=1&a=2&a=1", "/sorted?a=2&a=1&b=1")
            assert not await same("/sorted?b=2&a=2&a=1", "/sorted?a=1&a=2&b=2")
            assert await same("/kept?a=1&x=2&bb=3", "/kept?a=1&bb=3&y")
            assert not await same("/kept?a=4&bb=3", "/kept?a=4")
            assert await same("/dropped?utm_source=x&q=1", "/dropped?q=1&%75tm_x=2&fbclid=3")
            assert not await same("/dropped?q=2", "/dropped?q=3&utm=1")
            assert not await same("/other?b=1&a=1", "/other?a=1&b=1")
            assert await same("/sorted", "/sorted")

    async def test_background_refresh_sends_only_the_query_parameters_of_the_key(self, cache, clock):
        app = App([(b"cache-control", b"max-age=10, stale-while-revalidate=60")])
        async with client(SWRMiddleware(app, cache, rules=[Rule("/x", drop_params=("evil",))])) as http:
            await http.get("/x?q=1&evil=1")
            clock.advance(20)
            await http.get("/x?q=1&evil=2")
            await settle()
        assert [scope["query_string"] for scope in app.scopes] == [b"q=1&evil=1", b"q=1"]

    async def test_writes_and_invalidate_url_drop_the_same_parameters_as_reads(self, cache):
        app = App([(b"cache-control", b"max-age=60")])
        async with client(SWRMiddleware(app, cache, rules=[Rule("/x", drop_params=("utm_*",))])) as http:
            await http.get("/x?q=1")
            await http.post("/x?utm_source=a&q=1")
            assert (await http.get("/x?q=1")).headers["swr-state"] == "missing"
            await http.get("/x?q=1")
            await cache.invalidate_url("/x?q=1")
            assert (await http.get("/x?utm_a&q=1")).headers["swr-state"] == "missing"


class TestCacheStatus:
    """RFC 9211."""

    async def test_cache_status_shows_the_key_when_show_key_is_on(self, cache):
        origin = Origin((200, {"cache-control": "max-age=60", "vary": "foo", "cache-status": "upstream; hit"}, "x"))
        async with client(SWRMiddleware(origin, cache, show_key=True)) as http:
            for expected in ("swr; fwd=uri-miss; stored", "swr; hit; ttl=60"):
                answer = await http.get('/a"\\b', headers={"foo": "1"})
                values = answer.headers.get_list("cache-status")
                assert values == ["upstream; hit", rf'{expected}; key="GET http://test/a%22\\b?"']

    async def test_cache_status_gives_the_reason_for_running_the_app(self, cache, clock):
        origin = Origin((200, {"cache-control": "max-age=10", "vary": "foo"}, "x"))
        async with client(SWRMiddleware(origin, cache, request_directives=["no-cache"])) as http:
            statuses = [
                (await http.get("/x", headers=headers)).headers["cache-status"]
                for headers in ({"foo": "1"}, {"foo": "2"}, {"foo": "2", "cache-control": "no-cache"}, {"cookie": "a"})
            ]
            clock.advance(20)
            statuses.append((await http.get("/x", headers={"foo": "1"})).headers["cache-status"])
        assert statuses == [
            "swr; fwd=uri-miss; stored",
            "swr; fwd=vary-miss; stored",
            "swr; fwd=request; stored",
            'swr; fwd=bypass; detail="cookie"',
            "swr; fwd=stale; stored",
        ]


class TestFaultsOfOtherCaches:
    """Published faults of other caches, tried here."""

    @pytest.mark.parametrize("vary", ["*", "Foo, *", " * ", ["foo", "*"], "*,*", ", *"])
    async def test_response_with_vary_star_is_never_stored(self, cache, vary):
        """CVE-2026-6907."""
        origin = Origin((200, {"cache-control": "max-age=60", "vary": vary}, "x"))
        async with client(SWRMiddleware(origin, cache, cookies="rfc9111")) as http:
            await http.get("/x")
            assert state(await http.get("/x")) == ("missing", 'swr; fwd=uri-miss; detail="vary *"')

    async def test_response_that_sets_or_follows_a_session_cookie_is_not_shared(self, cache):
        """CVE-2026-35192: neither a response that sets the cookie, nor a response to a request with it."""
        origin = Origin((200, {"cache-control": "public, max-age=60", "set-cookie": "session=1"}, "mine"))
        async with client(SWRMiddleware(origin, cache, rules=[Rule("/x", fresh_for=60, override=True)])) as http:
            await http.get("/x")
            http.cookies.clear()
            origin.answers((200, {"cache-control": "max-age=60"}, "yours"))
            await http.get("/x", headers={"cookie": "session=1"})
            assert brief(await http.get("/x")) == (200, "yours", "missing")

    @pytest.mark.parametrize("name", ["authorization", "x-api-key"])
    async def test_response_to_credentials_is_not_shared_even_by_an_override_rule(self, cache, name):
        """CVE-2026-35193."""
        origin = Origin((200, {"cache-control": "max-age=60"}, "secret"))
        async with client(SWRMiddleware(origin, cache, rules=[Rule("/x", fresh_for=60, override=True)])) as http:
            await http.get("/x", headers={name: "me"})
            origin.answers((401, {}, "who?"))
            assert brief(await http.get("/x")) == (401, "who?", "missing")

    @pytest.mark.parametrize("vary", [" cookie", "cookie ", "Accept , \tCookie", "accept,\t cookie\t"])
    async def test_whitespace_in_vary_does_not_hide_a_field_name(self, cache, vary):
        """CVE-2026-48587."""
        origin = Origin((200, {"cache-control": "max-age=60", "vary": vary}, "a"))
        async with client(SWRMiddleware(origin, cache, cookies="rfc9111")) as http:
            await http.get("/x", headers={"cookie": "session=a"})
            origin.answers((200, {"cache-control": "max-age=60", "vary": vary}, "b"))
            assert (await http.get("/x", headers={"cookie": "session=b"})).text == "b"

    @pytest.mark.parametrize("value", ["No-Store", "PRIVATE", "max-age=60, pRiVaTe", "NO-CACHE"])
    async def test_cache_control_directives_are_read_in_any_case(self, cache, value):
        """CVE-2026-8404."""
        origin = Origin((200, {"Cache-Control": value}, "x"))
        async with client(SWRMiddleware(origin, cache, rules=[Rule("/x", fresh_for=60, override=True)])) as http:
            await http.get("/x")
            assert (await http.get("/x")).headers["swr-state"] == "missing"

    @pytest.mark.parametrize("first", [{}, {"range": "bytes=0-"}, {"x-nextjs-data": "1"}, {"rsc": "1"}])
    async def test_response_without_caching_fields_is_not_stored_whatever_the_request(self, cache, first):
        """CVE-2024-46982: a field of the request made another cache store an uncacheable route."""
        origin = Origin((200, {}, "page"))
        async with client(SWRMiddleware(origin, cache)) as http:
            await http.get("/x", headers=first)
            assert (await http.get("/x")).headers["swr-state"] == "missing"
        assert origin.runs == 2

    async def test_page_without_caching_fields_is_not_stored_under_an_asset_like_path(self, cache):
        """Web cache deception: the response decides, not the name in the path."""
        origin = Origin((200, {"content-type": "text/html"}, "my account"))
        async with client(SWRMiddleware(origin, cache)) as http:
            for path in ("/account/x.css", "/account%2fx.css", "/account;.js", "/account/..%2fstatic/x.png"):
                await http.get(path, headers={"cookie": "session=1"})
                assert (await http.get(path)).headers["swr-state"] == "missing"

    async def test_paths_are_neither_decoded_nor_resolved_in_keys(self, cache):
        """Path confusion: nothing is decoded or resolved on the way to the key."""
        app = App([(b"cache-control", b"max-age=60")])
        async with client(SWRMiddleware(app, cache)) as http:
            for path in ("/a/b", "/a%2fb", "/a%2Fb", "/a//b", "/a/b/", "/a/./b", "/A/b", "/a/b?", "/a/b;c"):
                await http.get(path)
        assert app.runs == len({scope["raw_path"] + b"?" + scope["query_string"] for scope in app.scopes})

    async def test_field_outside_the_key_does_not_reach_a_background_refresh(self, cache, clock):
        """Poisoning by X-Forwarded-Host and its like lasts no longer than the first lifetime."""

        async def app(scope, receive, send):
            host = dict(scope["headers"]).get(b"x-forwarded-host", b"good")
            origin = Origin((200, {"cache-control": "max-age=10, stale-while-revalidate=60"}, host.decode()))
            await origin(scope, receive, send)

        async with client(SWRMiddleware(app, cache)) as http:
            await http.get("/x")
            clock.advance(20)
            assert brief(await http.get("/x", headers={"x-forwarded-host": "evil"})) == (200, "evil", "missing")
            assert brief(await http.get("/x")) == (200, "good", "stale")
            await settle()
            assert brief(await http.get("/x")) == (200, "good", "fresh")


class TestBadInput:
    async def test_scope_without_optional_keys_is_cached(self, cache):
        """ASGI: `scheme` is http where nothing is said."""
        app = App([(b"cache-control", b"max-age=60")])
        middleware = SWRMiddleware(app, cache)
        for _ in range(2):
            http = Client()
            scope = {"type": "http", "method": "GET", "path": "/x", "headers": [(b"host", b"test")]}
            await middleware(scope, http.receive, http.send)
        async with client(middleware) as http:
            assert brief(await http.get("/x")) == (200, "1", "fresh")

    @pytest.mark.parametrize(
        "headers",
        [
            {"cache-control": "max-age=" + "9" * 10_000},
            {"cache-control": "," * 50_000},
            {"range": "bytes=" + "9" * 5000 + "-"},
            {"if-none-match": '"' * 50_000},
            {"if-modified-since": "x" * 50_000},
            {"if-range": "\xff" * 1000},
            {"accept-language": "a," * 20_000},
        ],
    )
    async def test_oversized_or_malformed_request_fields_are_answered(self, cache, headers):
        origin = Origin((200, {"cache-control": "max-age=60", "vary": "accept-language"}, "x"))
        headers = {name: value.encode("latin-1") for name, value in headers.items()}
        async with client(SWRMiddleware(origin, cache)) as http:
            for _ in range(2):
                assert (await http.get("/x", headers=headers)).text == "x"

    async def test_oversized_or_undecodable_urls_are_answered_and_cached(self, cache):
        app = App([(b"cache-control", b"max-age=60")])
        middleware = SWRMiddleware(app, cache, rules=[Rule("/x", sort_query=True, drop_params=("utm_*",))])
        query = "&".join(f"p{number % 100}={number}" for number in range(10_000)).encode()
        starts = []

        async def send(message):
            starts.extend([message] if "status" in message else [])

        for _ in range(2):
            await middleware(http_scope("/x", query_string=query), Client().receive, send)
            await middleware(http_scope("/\udcff", raw_path=b"/%ff%fe/%00"), Client().receive, send)
        assert ([message["status"] for message in starts], app.runs) == ([200] * 4, 2)

    async def test_scope_with_lone_surrogates_in_its_path_is_cached(self, cache):
        app = App([(b"cache-control", b"max-age=60")])
        middleware = SWRMiddleware(app, cache)
        sent = []

        async def send(message):
            sent.append(message)

        for _ in range(2):
            scope = {
                "type": "http", "asgi": {}, "method": "GET", "scheme": "http", "path": "/\udcff", "query_string": b"",
                "headers": [(b"host", b"\xff")],
            }  # fmt: skip
            await middleware(scope, Client().receive, send)
        assert (app.runs, len(sent)) == (1, 4)
