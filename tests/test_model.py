"""The whole middleware against a naive model of RFC 9111: random exchanges, and no difference.

`SWR_MODEL_EXAMPLES=20000` runs more than CI does, each time other ones.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from random import Random
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from swr import Cache
from swr.middleware import SWRMiddleware
from swr.testing import FakeClock
from tests.rfc9111 import Fields, NaiveCache, Unsure, combined, lines

START = 1_700_000_000
IMF, RFC850, ASCTIME = "%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"


def date(moment: float, form: str = IMF) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime(form)


@dataclass
class Step:
    wait: tuple[str, int]
    method: str
    path: str
    request: list[tuple[str, Any]]
    status: int
    response: list[tuple[str, Any]]
    new: bool
    etag: str | None
    changed: int | None


# --- What is drawn. A field's value is text, or a function of the time that the step is taken at.


def at(offset: int, form: str = IMF) -> Callable[[float], str]:
    return lambda now: date(now + offset, form)


USUAL = [
    *("max-age=60", "max-age=60", "s-maxage=60", "max-age=10, stale-while-revalidate=60", "max-age=0", "no-cache"),
    *("max-age=60, stale-if-error=600", "max-age=60, must-revalidate", "public, max-age=10, s-maxage=60"),
    *("s-maxage=10, stale-while-revalidate=60", "no-store", "private", "public", "stale-while-revalidate=60"),
    *("max-age=600, stale-while-revalidate=10, stale-if-error=60", "must-revalidate, stale-while-revalidate=60"),
]
POOL = [
    *("no-store", "private", 'private="x-foo"', "no-cache", 'no-cache="X-Foo, x-bar"', "public", "must-revalidate"),
    *("proxy-revalidate", "must-understand", "no-transform", "max-age=60", "s-maxage=10", "stale-while-revalidate=10"),
    *("stale-if-error=60", 'max-age="60"', "max-age=-1", "max-age=6.5", "max-age=99999999999", "MAX-AGE=10"),
    *("max-age = 60", "max-age", "max-age=", "s-maxage=x", "S-MaxAge=60", 'foo="a, max-age=1"', "max-age=10"),
    *('stale-while-revalidate="60"', "stale-if-error=-1", "must-understand, no-store", "immutable", "max-age=060"),
]
STRICT = [
    *(
        "max-age=60",
        "max-age=60, stale-while-revalidate=10",
        "no-store",
        "private",
        "s-maxage=10",
        "public",
        "no-cache",
    ),
    *("MAX-AGE=60", 'max-age="60"', "max-age=6.5", "max-age=-1", "max-age", "max-age=60;a=1;b", "max-age = 60", ""),
    *(
        "max-age=60,",
        "max-age=10, max-age=60",
        "max-age=60, foo=(a b);c",
        "max-age=1, foo=:YQ==:",
        "a b",
        "max-age=60;",
    ),
    *("max-age=10, must-revalidate", "max-age=9999999999999999", "stale-while-revalidate=60", "max-age=60\t,\ta=?0"),
]
RESPONSE = [
    (12, "cache-control", ["max-age=10", "stale-while-revalidate=60", "public"]),
    (5, "expires", [at(60), at(60, RFC850), at(60, ASCTIME), at(0), at(-60), at(600), "0", "-1", ""]),
    (15, "expires", [at(60), at(10), "never"]),
    (2, "date", [at(0), at(0), at(0), at(-30), at(30), at(-4000), at(-7, ASCTIME), at(-7, RFC850), "now"]),
    (6, "age", ["0", "10", "59", "60", "10, 20", "1.5", "-5", "x", "99999999999", ""]),
    (40, "age", ["30"]),
    (10, "set-cookie", ["a=b"]),
    (7, "cdn-cache-control", STRICT),
    (7, "swr-cache-control", STRICT),
]
WANTS = [
    *("no-store", "only-if-cached", "max-stale", "max-stale=10", "max-stale=60", "min-fresh=10", "min-fresh=0"),
    *("min-fresh=60", "max-age=0", "no-cache", "Max-Stale=600, no-cache", "only-if-cached, max-stale=10", "No-Store"),
    *("only-if-cached, min-fresh=10", "max-age=5, max-stale"),
]
REQUEST = [
    (5, "cache-control", WANTS),
    (12, "pragma", ["no-cache"]),
    (15, "authorization", ["Basic eDp5"]),
    (3, "accept-language", ["de", "DE", "de , en", "de,en", ""]),
    (3, "foo", ["a", "A", "a ,b", "a,b", ""]),
    (8, "if-none-match", ['"1-200"', 'W/"1-200"', '"0", W/"2-200"', "*", '"1-404"', '"0"']),
    (10, "if-modified-since", [at(0), at(-10), at(-600, RFC850), at(-60, ASCTIME), "x", at(-36000)]),
    (6, "range", ["bytes=0-0", "bytes=5-", "bytes=-3", "bytes=-0", "bytes=900-", "bytes=5-2", "bytes=0-1,3-4"]),
    (12, "if-range", ['"1-200"', 'W/"1-200"', '"0"']),
]
WAITS = [0, 0, 1, 9, 10, 11, 59, 60, 61, 70, 130, 600, 5000]
VARY = ["", "", "", "", "", "Foo", "accept-language", "Foo, Accept-Language", "foo, *"]
STATUS = [*[200] * 24, 203, 204, 301, 302, 404, 410, 500, 599, 201, 202, 502, 502, 503, 503, 503, 504]


def draw(random: Random) -> Step:
    """Drawn by hand and evenly: hypothesis repeats itself, and takes many times as long."""
    pick = random.choice

    def some(table: list[tuple[int, str, list[Any]]]) -> list[tuple[str, Any]]:
        return [(name, pick(values)) for share, name, values in table if random.randrange(share) == 0]

    drawn = pick([", ", ",", " ,  "]).join(random.sample(POOL, random.randrange(4)))
    return Step(
        wait=pick([("exactly", pick(WAITS)), (pick(["first", "second", "third"]), pick([-1, 0, 0, 1]))]),
        method=pick(["GET"] * 16 + ["HEAD"] * 3 + ["POST"]),
        path=pick(["/a"] * 6 + ["/b"]),
        request=some(REQUEST),
        status=pick(STATUS),
        response=[("cache-control", pick([pick(USUAL), drawn])), *some(RESPONSE)],
        new=random.random() < 0.3,
        etag=pick([None, "", "W/"]),
        changed=pick([None, None, 600, 36000, 0, -100, 10**7]),
    )


def smaller(steps: list[Step]) -> Iterator[list[Step]]:
    for i, step in enumerate(steps):
        yield steps[:i] + steps[i + 1 :]
        for part in ("request", "response"):
            pairs = getattr(step, part)
            for j in range(len(pairs)):
                yield [*steps[:i], replace(step, **{part: pairs[:j] + pairs[j + 1 :]}), *steps[i + 1 :]]


@dataclass
class Origin:
    """What is behind both caches: correct about conditions, and the same for both."""

    step: Step
    number: int
    version: int
    etag: str | None  # of the version: "" strong, "W/" weak
    modified: str | None
    vary: str
    now: float

    def answer(self, method: str, conditions: Fields) -> tuple[int, Fields, bytes]:
        step, status = self.step, self.step.status
        found: Fields = [(name, value(self.now) if callable(value) else value) for name, value in step.response]
        found += [("vary", self.vary)] if self.vary else []
        found += [("x-foo", str(self.number)), ("x-step", str(self.number))]
        etag = f'"{self.version}-{status}"'
        found += [("etag", self.etag + etag)] if self.etag is not None else []
        found += [("last-modified", self.modified)] if self.modified else []
        tags, since = combined(conditions, "if-none-match"), combined(conditions, "if-modified-since")
        matches = tags is not None and (tags == "*" or (self.etag is not None and etag in tags))
        if status == 200 and (matches or (tags is None and since is not None and since == self.modified)):
            return 304, found, b""
        body = (
            b""
            if status == 204
            else f"{step.path} {status} {'.' * self.version}{self.version} {self.number:02}".encode()
        )
        return status, found + ([("content-length", str(len(body)))] if body else []), b"" if method == "HEAD" else body


class App:
    origin: Origin
    asked: list[tuple[str, Fields]]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        # So that it asks for no other field, by whose presence its response would be selected.
        fields = Headers(scope=scope)
        names = ("if-none-match", "if-modified-since")
        conditions = [(name, value) for name in names for value in fields.getlist(name)]
        self.asked.append((scope["method"], sorted(conditions)))
        status, found, body = self.origin.answer(scope["method"], conditions)
        headers = [(name.encode(), value.encode()) for name, value in found]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def settle() -> None:
    for _ in range(50):
        await anyio.lowlevel.checkpoint()


async def compare(steps: list[Step], varies: str, story: list[str]) -> None:
    clock, app, model = FakeClock(START), App(), NaiveCache()
    versions: dict[str, tuple[int, str | None, str | None]] = {}
    async with Cache(clock=clock) as cache:
        transport = httpx.ASGITransport(
            SWRMiddleware(app, cache, cookies="rfc9111", heuristic=0.1, ignore_fields=("foo",))
        )
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            for number, step in enumerate(steps):
                wait = waited(step.wait, model.moments(step.path, clock()))
                if not step.new:  # mostly not within the two minutes that what cannot be stored is left alone
                    wait = max(wait, int(model.alone.get(step.path, 0) - clock()))
                clock.advance(wait)
                now = clock()
                version, etag, modified = versions.get(step.path, (0, None, None))
                if step.new or not version:
                    modified = None if step.changed is None else date(now - step.changed)
                    version, etag = version + 1, step.etag
                versions[step.path] = version, etag, modified
                origin = app.origin = Origin(step, number, version, etag, modified, varies, now)
                request = [(name, value(now) if callable(value) else value) for name, value in step.request]
                if step.method == "POST":
                    request = []
                if max(model.moments(step.path, now), default=0) <= 0:  # ranges on a miss are not compared
                    request = [(name, value) for name, value in request if name != "range"]
                story.append(
                    f"{number}: +{now - START:.0f} {step.method} {step.path} {request}; {origin.answer('GET', [])}"
                )

                app.asked = []
                response = await http.request(step.method, step.path, headers=request)
                await settle()
                try:
                    expected = model.request(step.method, step.path, request, now, origin.answer)
                except Unsure as unsure:
                    event(f"unsure: {unsure}")
                    return
                story.append(f"   {expected}")
                story.append(f"   {response} {response.content!r} {app.asked} {response.headers.multi_items()}")
                state = response.headers.get("swr-state")
                event(f"{expected.state} {expected.status} {len(expected.asked)}")
                assert app.asked == [(method, sorted(found)) for method, found in expected.asked]
                assert response.status_code == expected.status
                if expected.state:
                    assert state == expected.state
                if step.method != "POST":  # what this cache says, and nothing of what it said before
                    assert len(response.headers.get_list("cache-status")) == 1
                if expected.age is not None:
                    assert response.headers.get("age") == str(expected.age)
                if expected.status not in {416, 504}:
                    assert response.content == expected.body
                if expected.fields is not None and expected.status not in {206, 304, 416}:
                    for name in ("etag", "last-modified", "x-step", *(["x-foo"] if expected.age is not None else [])):
                        assert response.headers.get_list(name) == lines(expected.fields, name)
                if expected.last:
                    event(f"end: {expected.last}")
                    return


def waited(wait: tuple[str, int], moments: list[float]) -> int:
    """A number of seconds, or until about when something happens to what is stored."""
    kind, offset = wait
    if kind == "exactly":
        return offset
    ahead = sorted({int(moment) for moment in moments if 0 < moment < 10**5})
    which = ["first", "second", "third"].index(kind)
    return max(0, ahead[which] + offset) if which < len(ahead) else 0


EXAMPLES = os.environ.get("SWR_MODEL_EXAMPLES")


def differs(steps: list[Step], varies: str) -> str:
    story: list[str] = []
    try:
        anyio.run(compare, steps, varies, story)
    except Exception as error:
        return "\n".join([*story, repr(error)])
    return ""


@settings(
    max_examples=int(EXAMPLES or 500), derandomize=not EXAMPLES, database=None, deadline=None, phases=[Phase.generate]
)
@given(st.integers(0, 2**64))
def test_middleware_behaves_like_the_rfc_9111_model(seed: int) -> None:
    random = Random(seed)
    steps, varies = [draw(random) for _ in range(random.randint(2, 6))], random.choice(VARY)
    story = differs(steps, varies)
    while story:
        found = ((less, differs(less, varies)) for less in smaller(steps))
        steps, less = next(((less, told) for less, told in found if told), (steps, ""))
        if not less:
            pytest.fail(f"seed {seed}, Vary: {varies}\n{story}")
        story = less
