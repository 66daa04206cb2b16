"""The decorator on loaders: functions, methods, plain `def`, types through Redis, and every misuse at decoration."""

import asyncio
import contextvars
import dataclasses
import datetime
import decimal
import functools
import inspect
import math
import sys
import threading
import uuid
from typing import Annotated

import anyio
import pydantic
import pytest
import sqlalchemy.orm
import sqlmodel
from fastapi import Depends, FastAPI, Request, Response
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from starlette.websockets import WebSocket

from swr import Cache, CodecError, ConfigurationError, Fresh, LoadContext, Policy, State
from swr.core.template import Template
from swr.loaders import request_parameters
from tests.fleet import settle, until
from tests.servers import Server

pytestmark = pytest.mark.anyio


class TestCalls:
    async def test_cached_loader_can_be_read_refreshed_and_invalidated(self, cache, clock):
        loads = []

        @cache.cached(
            "ranking:{group}:{limit}", fresh_for=60, stale_for="10m", stale_if_error="1d", tags=("group:{group}",)
        )
        async def top100(group: str, limit: int = 100) -> list[str]:
            """Rank."""
            loads.append(group)
            return [group, str(limit), str(len(loads))]

        assert await top100("ATL") == ["ATL", "100", "1"]
        assert await top100("ATL") is await top100(group="ATL", limit=100)
        assert top100.key("ATL") == "ranking:ATL:100"
        assert (await top100.outcome("ATL")).state is State.FRESH
        assert await top100.refresh("ATL") == ["ATL", "100", "2"]
        await top100.invalidate("ATL")
        assert (await top100.outcome("ATL")).state is State.MISSING
        await cache.invalidate_tag("group:ATL")
        assert (await top100.outcome("ATL")).value == ["ATL", "100", "4"]
        await cache.invalidate("ranking:ATL:100")
        await top100("ATL")
        await cache.clear()
        clock.advance(1)
        outcome = await top100.outcome("ATL")
        assert (outcome.value[2], outcome.state, outcome.age, outcome.error) == ("6", State.MISSING, 0, None)
        assert top100.__name__ == "top100"
        assert top100.__doc__ == "Rank."
        assert list(inspect.signature(top100).parameters) == ["group", "limit"]
        assert inspect.iscoroutinefunction(top100.__call__)

    async def test_failing_loader_falls_back_to_its_old_value_within_stale_if_error(self, cache, clock):
        """RFC 5861 4, for values. The exception may be of any type."""
        fails = []

        @cache.cached("value", fresh_for=10, stale_if_error=60)
        async def value() -> int:
            if fails:
                raise KeyError("gone")
            return 1

        await value()
        fails.append(True)
        clock.advance(20)
        outcome = await value.outcome()
        assert (outcome.value, outcome.state, repr(outcome.error)) == (1, State.STALE, "KeyError('gone')")
        clock.advance(60)
        with pytest.raises(KeyError):
            await value()

    async def test_plain_def_loader_runs_in_a_thread(self, cache):
        @cache.cached("t", fresh_for=60)
        def thread() -> int:
            return threading.get_ident()

        assert await thread() != threading.get_ident()
        assert await thread() == await thread()

    async def test_awaitable_returned_by_plain_def_loader_is_awaited(self, cache):
        async def inner() -> int:
            return 5

        @cache.cached("t", fresh_for=60)
        def outer():
            return inner()

        assert await outer() == 5

    async def test_slow_plain_def_loaders_do_not_block_the_event_loop(self, cache):
        release = threading.Event()

        @cache.cached("t:{n}", fresh_for=60)
        def slow(n: int) -> int:
            release.wait(60)
            return n

        async with anyio.create_task_group() as group:
            for n in range(3):
                group.start_soon(slow, n)
            await settle()
            release.set()
        assert await slow(2) == 2

    async def test_stale_hit_refreshes_with_its_own_arguments_and_context(self, cache, clock):
        tenant = contextvars.ContextVar("tenant", default="nobody")
        seen = []

        @cache.cached("k:{a}", fresh_for=60, stale_for=600, ignore=("extra",))
        async def load(a: int, extra: str) -> int:
            seen.append((extra, tenant.get()))
            return a

        tenant.set("first")
        await load(1, "x")
        clock.advance(61)
        tenant.set("second")
        await load(1, "y")
        await settle()
        assert seen == [("x", "first"), ("y", "second")]

    async def test_cached_methods_are_bound_to_their_object_or_class(self, cache):
        class Service:
            def __init__(self, name: str) -> None:
                self.name = name
                self.loads = 0

            @cache.cached("service:{self.name}:{group}", fresh_for=60)
            async def top(self, group: str) -> str:
                """Of a service."""
                self.loads += 1
                return f"{self.name}/{group}"

            @cache.cached("shared:{group}", fresh_for=60, ignore=("self",))
            def shared(self, group: str) -> str:
                return f"{self.name}/{group}"

            @staticmethod
            @cache.cached("static:{group}", fresh_for=60)
            async def static(group: str) -> str:
                return group

            @classmethod
            @cache.cached("class:{group}", fresh_for=60, ignore=("cls",))
            async def of_class(cls, group: str) -> str:
                return cls.__name__ + group

        a, b = Service("a"), Service("b")
        assert (await a.top("x"), await b.top("x"), await a.top(group="x")) == ("a/x", "b/x", "a/x")
        assert (a.loads, a.top.key("x"), a.top.__name__) == (1, "service:a:x", "top")
        assert (await a.top.outcome("x")).state is State.FRESH
        assert await a.top.refresh("x") == "a/x"
        await a.top.invalidate("x")
        assert (await a.top.outcome("x")).state is State.MISSING
        assert (await a.shared("y"), await b.shared("y")) == ("a/y", "a/y")
        assert (await Service.static("z"), await a.static("z"), await Service.of_class("q")) == ("z", "z", "Serviceq")
        assert Service.top.key(a, "x") == "service:a:x"

    async def test_readers_share_the_value_unless_copy_is_true(self, cache):
        @cache.cached("shared", fresh_for=60)
        async def shared() -> list[int]:
            return [1]

        @cache.cached("copied", fresh_for=60, copy=True)
        async def copied() -> list[int]:
            return [1]

        assert await shared() is await shared()
        (await copied()).append(2)
        (await copied()).append(3)
        (await copied.outcome()).value.append(4)
        (await copied.refresh()).append(5)
        assert await copied() == [1]

    async def test_error_of_loader_reaches_the_caller_unchanged(self, cache):
        error = LookupError("no such group")

        @cache.cached(fresh_for=60)
        async def fail(group: str) -> str:
            raise error

        for call in (fail, fail.outcome, fail.refresh):
            with pytest.raises(LookupError) as caught:
                await call("x")
            assert caught.value is error

    async def test_wrong_arguments_raise_type_error(self, cache):
        @cache.cached("k:{a}", fresh_for=60)
        async def load(a: int) -> int:
            return a

        for bad in (lambda: load(), lambda: load(1, 2), lambda: load(b=1), lambda: load(1, b=2)):
            with pytest.raises(TypeError):
                await bad()
        with pytest.raises(ConfigurationError, match="'a'"):
            await load(object())

    async def test_equal_arguments_of_different_types_have_different_entries(self, cache):
        @cache.cached("k:{a}", fresh_for=60)
        async def kind(a) -> str:
            return type(a).__name__

        for _ in range(3):
            assert [await kind(value) for value in (1, True, 1.0, "1", None)] == [
                "int",
                "bool",
                "float",
                "str",
                "NoneType",
            ]
            assert await kind(a=True) == "bool"

    async def test_unhashable_arguments_are_cached_like_others(self, cache):
        @cache.cached(fresh_for=60)
        async def total(numbers: list[int]) -> int:
            return sum(numbers)

        assert (await total([1, 2]), await total([3]), await total([1, 2])) == (3, 3, 3)
        assert (await total.outcome([1, 2])).state is State.FRESH

    async def test_get_or_load_caches_without_a_decorator(self, cache, clock):
        async def load() -> str:
            return "x"

        outcome = await cache.get_or_load("k", load, Policy(fresh_for=60, stale_for=600))
        assert (outcome.value, outcome.state) == ("x", State.MISSING)
        clock.advance(61)
        assert (await cache.get_or_load("k", lambda: "y", Policy(60, 600))).state is State.STALE
        await until(lambda: cache.engine.store.peek("k").value == "y")
        assert (await cache.get_or_load("k", load, Policy(60, 600))).value == "y"

    async def test_get_or_load_accepts_a_partial_as_loader(self, cache):
        async def load(a: int) -> int:
            return a

        assert (await cache.get_or_load("k", functools.partial(load, 5), Policy(60))).value == 5

    async def test_cache_opens_at_first_call_and_stays_usable_after_nested_exits(self, clock):
        cache = Cache(clock=clock)

        @cache.cached("k", fresh_for=60)
        async def load() -> int:
            return 1

        assert await load() == 1
        async with cache, cache:
            assert await load() == 1
        await cache.aclose()
        assert await load() == 1
        await cache.aclose()


def test_redis_cache_fails_to_open_on_trio_and_stays_closed():
    import trio

    cache = Cache("redis://127.0.0.1:1/0")

    async def enter() -> None:
        async with cache:
            pass

    with pytest.raises(ConfigurationError, match="asyncio"):
        trio.run(enter)
    assert cache._opened == 0


class TestDecoration:
    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            ({"fresh_for": "soon"}, "fresh_for='soon'"),
            ({"fresh_for": 1, "stale_for": -1}, "stale_for=-1"),
            ({"fresh_for": 1, "tags": "x"}, "tags='x'"),
            ({"fresh_for": 1, "ignore": "a"}, "ignore='a'"),
            ({"fresh_for": 1, "ignore": ("z",)}, "'z'"),
            ({"fresh_for": 1, "tags": ("{z}",)}, "'z'"),
            ({"fresh_for": 1, "template": "k"}, "leaves out a"),
        ],
    )
    def test_invalid_options_are_rejected_at_decoration(self, options, complaint):
        with pytest.raises(ConfigurationError, match=complaint):

            @Cache().cached(options.pop("template", None), **options)
            async def load(a): ...

    def test_endpoint_is_rejected_and_error_names_cache_response(self):
        def session(): ...

        def with_request(request: Request): ...
        def with_response(response: Response): ...
        def with_text(request: "Request"): ...
        def with_depends(db=Depends(session)): ...
        def with_annotated(db: Annotated[int, Depends(session)]): ...
        def with_optional(request: Request | None = None): ...
        def with_socket(socket: WebSocket): ...

        for endpoint in (
            with_request,
            with_response,
            with_text,
            with_depends,
            with_annotated,
            with_optional,
            with_socket,
        ):
            with pytest.raises(ConfigurationError, match=r"@cache\.response"):
                Cache().cached(fresh_for=1)(endpoint)

    def test_database_session_as_parameter_is_rejected(self):
        def with_session(db: AsyncSession): ...
        def with_text(db: "AsyncSession"): ...
        def with_optional(db: sqlalchemy.orm.Session | None = None): ...
        def with_annotated(db: Annotated[sqlmodel.Session, "ours"]): ...
        def with_scoped(db: async_scoped_session[AsyncSession]): ...
        def with_connection(db: sqlalchemy.Connection): ...

        for loader in (with_session, with_text, with_optional, with_annotated, with_scoped, with_connection):
            with pytest.raises(ConfigurationError, match="'db', a database session or connection"):
                Cache().cached(fresh_for=1)(loader)

    def test_session_maker_and_engine_are_accepted_as_parameters(self):
        def with_maker(db: async_sessionmaker[AsyncSession], name: "Unknown"): ...  # noqa: F821  # the name is missing on purpose
        def with_engine(db: sqlalchemy.Engine, session: int): ...

        for loader in (with_maker, with_engine):
            Cache().cached(fresh_for=1, ignore=("db",))(loader)

    async def test_each_loader_with_an_ignored_session_logs_one_warning(self, cache, caplog):
        class Rankings:
            def __init__(self, session=None, **more):
                self.session = session
                self.__dict__.update(more)

            @cache.cached("top:{group}", fresh_for=60, ignore=("self",))
            async def top(self, group: str) -> str:
                return group

            @cache.cached_many("many:{group}", fresh_for=60, ignore=("self",))
            async def many(self, groups: list[str]) -> dict[str, str]:
                return {group: group for group in groups}

            @cache.cached("asks:{group}", fresh_for=60, ignore=("self", "db"))
            async def asks(self, context: LoadContext[str], group: str, db=None) -> str:
                return group

        request_parameters._warn.cache_clear()
        without, session = Rankings(maker=async_sessionmaker()), AsyncSession()
        for rankings in (without, Rankings(session)):
            for group in ("a", "b"):
                await rankings.top.refresh(group)
                await rankings.many.refresh([group])
        await without.asks("c", session)
        told = [record.message.partition(",")[0] for record in caplog.records]
        where = f"{__name__}.{Rankings.__qualname__}"
        assert told == [
            f"{where}.top loads with Rankings.session",
            f"{where}.many loads with Rankings.session",
            f"{where}.asks loads with AsyncSession",
        ]

    async def test_ignored_arguments_without_readable_attributes_raise_no_error(self, cache, caplog):
        class Proxy:
            __slots__ = ()

            @property
            def __dict__(self):
                raise RuntimeError("not bound")

        @cache.cached("x", fresh_for=60, ignore=("a", "b"))
        async def load(a, b) -> int:
            return 1

        assert await load(Proxy(), b=5) == 1
        assert not caplog.records

    async def test_session_causes_no_warning_if_sqlalchemy_is_not_imported(self, cache, caplog, monkeypatch):
        @cache.cached("x", fresh_for=60, ignore=("session",))
        async def load(session) -> int:
            return 1

        monkeypatch.delitem(sys.modules, "sqlalchemy")
        assert await load(AsyncSession()) == 1
        assert not caplog.records

    def test_generators_and_objects_that_are_not_functions_are_rejected(self):
        def generator():
            yield

        async def async_generator():
            yield

        for wrong in (generator, async_generator):
            with pytest.raises(ConfigurationError, match="generator"):
                Cache().cached(fresh_for=1)(wrong)
        for wrong in (5, staticmethod(5), classmethod(5), functools.partial(int), type("C", (), {"__call__": len})()):
            with pytest.raises(ConfigurationError, match="function"):
                Cache().cached(fresh_for=1)(wrong)

    async def test_classmethods_and_staticmethods_are_cached_above_and_below_the_decorator(self):
        cache = Cache()

        class Airports:
            region = "us"

            @cache.cached("of:{cls.region}:{code}", fresh_for=60)
            @classmethod
            async def of_class(cls, code: str) -> str:
                return f"{cls.region} {code}"

            @classmethod
            @cache.cached("below:{cls.region}:{code}", fresh_for=60)
            async def below(cls, code: str) -> str:
                return f"{cls.region} {code}"

            @cache.cached(fresh_for=60)
            @staticmethod
            def static(code: str) -> str:
                return code

            @staticmethod
            @cache.cached(fresh_for=60)
            async def static_below(code: str) -> str:
                return code

            @cache.cached_many("many:{cls.region}:{code}", fresh_for=60)
            @classmethod
            async def many(cls, codes: list[str]) -> dict[str, str]:
                return {code: f"{cls.region} {code}" for code in codes}

            @cache.cached_many("static:{code}", fresh_for=60)
            @staticmethod
            async def many_static(codes: list[str]) -> dict[str, str]:
                return {code: code for code in codes}

        class Europe(Airports):
            region = "eu"

        for bound in (Airports, Airports(), Europe, Europe()):
            told = f"{bound.region} ATL"
            assert await bound.of_class("ATL") == await bound.below(code="ATL") == told
            assert (await bound.of_class.outcome("ATL")).state is State.FRESH
            assert bound.of_class.key("ATL") == f"of:{bound.region}:ATL"
            await bound.of_class.invalidate("ATL")
            assert (await bound.of_class.outcome(code="ATL")).state is State.MISSING
            assert await bound.many(["ATL"]) == {"ATL": told}
            assert (await bound.many.outcome(["ATL"]))["ATL"].state is State.FRESH
            assert await bound.static("ATL") == await bound.static_below("ATL") == "ATL"
            assert (await bound.static.outcome("ATL")).state is State.FRESH
            assert (await bound.static_below.outcome(code="ATL")).state is State.FRESH
            assert await bound.many_static(["ATL"]) == {"ATL": "ATL"}
        assert Airports.of_class.__name__ == "of_class"
        with pytest.raises(AttributeError):
            Airports.of_class.outcom("ATL")
        await cache.aclose()

    @pytest.mark.parametrize("many", [False, True])
    def test_loader_defined_again_with_another_captured_constant_is_rejected(self, many):
        cache = Cache()

        def make(tenant, session):
            if many:

                @cache.cached_many("users:{id}", fresh_for=1)
                async def load_all(ids: list[int]) -> dict[int, object]:
                    return dict.fromkeys(ids, (tenant, session, load_all))

            @cache.cached("user:{id}", fresh_for=1)
            async def load(id):
                return tenant, session, load

        make("a", [])
        make("a", [1])
        for _ in range(2):
            assert cache.cached("root:{x}", fresh_for=1)(math.sqrt).key(4) == "root:4"
        for other in ("b", 1, None):
            with pytest.raises(ConfigurationError, match="defined again with another tenant"):
                make(other, [])
        make([], [])

    def test_second_loader_with_the_template_of_another_is_rejected(self):
        cache = Cache()

        def make(template):
            @cache.cached(template, fresh_for=1)
            async def inner(a): ...

            return inner

        make("one:{a}")
        make("one:{a}")
        make(None)
        with pytest.raises(ConfigurationError, match="give each a template"):
            make(None)
        with pytest.raises(ConfigurationError, match="give each a template"):
            [cache.cached(fresh_for=1)(lambda n: n) for _ in range(2)]
        with pytest.raises(ConfigurationError, match=r"is that of .*inner already"):

            @cache.cached("one:{a}", fresh_for=1)
            async def other(a): ...

    @pytest.mark.parametrize("template", ["user:{user_id}", "user:{user.id}", "{kind}:{name}", "user:me"])
    def test_template_that_can_make_a_key_of_another_template_is_rejected(self, template):
        cache = Cache()

        @cache.cached("user:{id}", fresh_for=1)
        async def user(id): ...

        names = ", ".join(name.split(".")[0] for name in Template(template, "key", "f").names)
        other = eval(f"lambda {names}: 0")
        with pytest.raises(
            ConfigurationError, match=r"can make a key of 'user:\{id\}', which is that of .*user already"
        ):
            cache.cached(template, fresh_for=1)(other)

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ({"url": "redis:/127.0.0.1"}, "does not begin with redis://"),
            ({"url": "redis://127.0.0.1/0?nonsense=1"}, "nonsense"),
            ({"url": "http://x"}, "does not begin with redis://"),
            ({"url": "redis://:hunter2@host:port"}, r"redis://…@host:port"),
            ({"url": 5}, "not a URL"),
            ({"redis": 5}, "redis= is a builtins.int"),
            ({"namespace": ""}, "namespace"),
            ({"namespace": "a{b"}, "namespace"),
            ({"l1_max_bytes": -1}, "l1_max_bytes"),
            ({"l1_max_bytes": True}, "l1_max_bytes"),
            ({"lease_for": 0}, "lease_for"),
            ({"drain_for": "x"}, "drain_for"),
            ({"timeout": 0}, "timeout"),
        ],
    )
    def test_invalid_options_of_cache_are_rejected_without_showing_the_password(self, arguments, complaint):
        with pytest.raises(ConfigurationError, match=complaint) as caught:
            Cache(**arguments)
        assert "hunter2" not in str(caught.value)

    def test_unsuitable_redis_client_is_rejected(self):
        from redis.asyncio import Redis

        with pytest.raises(ConfigurationError, match="decode_responses"):
            Cache(redis=Redis(decode_responses=True))
        with pytest.raises(ConfigurationError, match="give one"):
            Cache("redis://x", redis=Redis())

    async def test_calls_with_invalid_arguments_are_rejected(self, cache):
        for call in (
            cache.invalidate(5),
            cache.invalidate_tag(""),
            cache.invalidate_url("no path"),
            cache.invalidate_url("http://[x/"),
            cache.get_or_load(5, None, Policy(1)),
            cache.get_or_load("k", None, 5),
        ):
            with pytest.raises(ConfigurationError):
                await call


@dataclasses.dataclass
class Row:
    tail: str
    delay: decimal.Decimal
    at: datetime.datetime
    id: uuid.UUID


class Model(pydantic.BaseModel):
    rows: list[int]


class TestThroughRedis:
    @pytest.fixture
    def anyio_backend(self):
        return "asyncio"

    @pytest.fixture(params=[0, 2**20], ids=["no L1", "L1"])
    def make(self, request, server: Server):
        return lambda: Cache(server.url, l1_max_bytes=request.param, timeout=2)

    async def test_value_from_redis_has_the_annotated_type(self, make):
        row = Row("N1", decimal.Decimal("1.5"), datetime.datetime.now(datetime.UTC), uuid.uuid4())
        async with make() as one, make() as other:
            for cache in (one, other):

                @cache.cached("rows", fresh_for=60)
                async def rows() -> list[Row]:
                    return [row]

                @cache.cached("model", fresh_for=60)
                async def model() -> Model:
                    return Model(rows=[1])

                @cache.cached("none", fresh_for=60)
                async def none() -> Row | None:
                    return None

                state = State.MISSING if cache is one else State.FRESH
                for load, value in ((rows, [row]), (model, Model(rows=[1])), (none, None)):
                    outcome = await load.outcome()
                    assert (outcome.value, outcome.state) == (value, state)

    async def test_value_that_cannot_be_stored_raises_codec_error_naming_its_type(self, make):
        async with make() as cache:

            @cache.cached("k", fresh_for=60)
            async def bare():
                return {1, 2}

            with pytest.raises(CodecError, match="set"):
                await bare()
            with pytest.raises(CodecError, match="Row"):
                await cache.get_or_load("g", lambda: Row("", decimal.Decimal(0), None, None), Policy(60))
            assert (await cache.get_or_load("g", lambda: {1}, Policy(60), returns=set[int])).value == {1}
            # No lease was left behind.
            with anyio.fail_after(60):
                assert (await cache.get_or_load("k", lambda: 1, Policy(60))).value == 1

    async def test_entry_of_another_type_counts_as_missing(self, make):
        async with make() as cache:
            await cache.get_or_load("k", lambda: 1, Policy(60), returns=int)
        async with make() as cache:
            outcome = await cache.get_or_load("k", lambda: "x", Policy(60), returns=str)
            assert (outcome.value, outcome.state) == ("x", State.MISSING)

    async def test_annotation_of_a_class_defined_later_is_resolved_at_the_first_call(self, make):
        async with make() as cache:

            @cache.cached("later", fresh_for=60)
            async def later() -> "Later":
                return Later(1)

            assert await later() == Later(1)


@dataclasses.dataclass
class Later:
    a: int


def test_memory_cache_works_in_one_event_loop_after_the_other():
    cache = Cache()

    @cache.cached("k", fresh_for=60)
    async def load() -> int:
        return 1

    for _ in range(3):
        assert asyncio.run(load()) == 1


def test_unclosed_redis_cache_serves_the_next_event_loop_from_its_entry(server: Server):
    cache = Cache(server.url, timeout=5)
    runs = []

    @cache.cached("k", fresh_for=60)
    async def load() -> int:
        runs.append(1)
        return 1

    for _ in range(3):
        assert asyncio.run(load()) == 1
    assert runs == [1]


async def test_fastapi_endpoint_can_depend_on_a_cached_loader():
    cache, app = Cache(), FastAPI()

    @cache.cached("top:{group}", fresh_for=60)
    async def top(group: str) -> str:
        return group

    @app.get("/{group}")
    async def endpoint(value: Annotated[str, Depends(top)]) -> str:
        return value

    assert app.openapi()["paths"]["/{group}"]["get"]["parameters"][0]["name"] == "group"


async def numbers():
    yield 1


@pytest.mark.parametrize("made", [lambda: map(str, [1]), lambda: (n for n in [1]), lambda: Fresh(iter([1])), numbers])
async def test_iterator_as_a_value_is_rejected(made):
    async with Cache() as cache:

        @cache.cached("k", fresh_for=60)
        async def one():
            return made()

        @cache.cached_many("m:{n}", fresh_for=60)
        async def many(ns):
            return {n: made() for n in ns}

        for call in (one(), many([1]), one.set(made()), cache.get_or_load("g", one.__wrapped__, Policy(fresh_for=60))):
            with pytest.raises(ConfigurationError, match="its first reader would use up"):
                await call
