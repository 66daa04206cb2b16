"""Loaders that ask what is known and answer with more than a value: LoadContext, NOT_MODIFIED, Fresh."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import typing
from typing import Annotated, Any

import anyio
import pytest

from swr import NOT_MODIFIED, Cache, ConfigurationError, Fresh, LoadContext, NotModified, Policy, State, SWRError
from swr.loaders.annotations import codec_for
from swr.loaders.calling import asking
from tests.fleet import settle
from tests.servers import Server

pytestmark = pytest.mark.anyio


class Source:
    """A table with a revision, and how often its rows were read."""

    def __init__(self):
        self.revision = 1
        self.reads = 0
        self.told = []

    def answer(self, context):
        self.told.append((context.value, context.age, context.validator, context.has_value))
        if context.validator == str(self.revision):
            return NOT_MODIFIED
        self.reads += 1
        return Fresh([self.revision], validator=str(self.revision))


class TestContext:
    async def test_not_modified_renews_the_last_value_given_to_the_loader(self, cache, clock):
        source = Source()

        @cache.cached("k:{group}", fresh_for=60, stale_for=600, tags=("t",))
        async def load(context: LoadContext[list[int]], group: str) -> list[int] | Fresh[list[int]] | NotModified:
            return source.answer(context)

        first = await load("ATL")
        before = cache.engine.store.peek("k:ATL")
        clock.advance(70)
        assert (await load.outcome("ATL")).state is State.STALE
        await settle()
        renewed = await load.outcome("ATL")
        assert (renewed.state, renewed.age) == (State.FRESH, 0)
        assert renewed.value is first
        entry = cache.engine.store.peek("k:ATL")
        assert (entry.fresh_until - before.fresh_until, entry.tags, entry.validator) == (70, ("t",), "1")
        assert entry.version > before.version
        source.revision = 2
        assert await load.refresh("ATL") == [2]
        assert source.told == [(None, math.inf, None, False), ([1], 70, "1", True), ([1], 0, "1", True)]
        assert source.reads == 2

    async def test_context_holds_a_value_past_its_deadlines_while_keep_for_lasts(self, cache, clock):
        source = Source()

        async def load(context: LoadContext[list[int]]) -> object:
            return source.answer(context)

        policy = Policy(60, keep_for="1d")
        await cache.get_or_load("k", load, policy)
        clock.advance(3600)
        outcome = await cache.get_or_load("k", load, policy)
        assert (outcome.value, outcome.state, source.reads) == ([1], State.MISSING, 1)

        @cache.cached("kept", fresh_for=60, keep_for="1d")
        async def kept(context: LoadContext[list[int]]) -> object:
            return source.answer(context)

        await kept()
        clock.advance(3600)
        await kept()
        assert source.told[-1] == ([1], 3600, "1", True)

    @pytest.mark.parametrize("how", ["key", "tag"])
    async def test_context_has_no_value_after_an_invalidation(self, cache, clock, how):
        source = Source()

        @cache.cached("k", fresh_for=60, tags=("t",))
        async def load(context: LoadContext[list[int]]) -> object:
            return source.answer(context)

        await load()
        await (cache.invalidate("k") if how == "key" else cache.invalidate_tag("t"))
        await load()
        await load.refresh()
        assert [has_value for *_, has_value in source.told] == [False, False, True]

    async def test_not_modified_does_not_renew_entry_invalidated_before_the_load_begins(self, cache, clock):
        """The tag is invalidated while the flight waits for the lease, so the value that it knows is too old."""
        answers = [Fresh([1], validator="1"), NOT_MODIFIED]

        async def load():
            return answers.pop(0)

        policy = Policy(60, 600, tags=("t",))
        await cache.get_or_load("k", load, policy)
        clock.advance(61)
        acquire = cache.engine.store.acquire

        async def late(*args, **kwargs):
            await cache.invalidate_tag("t")
            return await acquire(*args, **kwargs)

        cache.engine.store.acquire = late
        assert (await cache.get_or_load("k", load, policy)).state is State.STALE
        await settle()
        assert cache.engine.store.peek("k") is None

    async def test_loader_runs_again_when_its_value_is_invalidated_before_not_modified(self, cache, clock):
        told = []

        async def load(context: LoadContext[int]) -> object:
            told.append(context.has_value)
            if context.has_value:
                await cache.invalidate("k")
                return NOT_MODIFIED
            return len(told)

        policy = Policy(60, keep_for=600)
        await cache.get_or_load("k", load, policy)
        clock.advance(61)
        assert (await cache.get_or_load("k", load, policy)).value == 3
        assert told == [False, True, False]

    async def test_context_is_left_out_of_key_and_signature(self, cache):
        @cache.cached(fresh_for=60)
        async def load(a: int, context: LoadContext[int], b: int = 2, *, c: int = 3) -> int:
            return a * 100 + b * 10 + c

        assert list(inspect.signature(load).parameters) == ["a", "b", "c"]
        assert load.key(1).endswith("load:a=1:b=2:c=3")
        assert (await load(1), await load(1, 5), await load(1, b=6, c=7), await load(b=1, a=2)) == (123, 153, 167, 213)
        for wrong in (lambda: load(), lambda: load(1, 2, 3), lambda: load(1, context=None)):
            with pytest.raises(TypeError):
                await wrong()

    async def test_context_is_passed_at_any_position_and_for_every_kind_of_loader(self, cache):
        seen = []

        @cache.cached("a", fresh_for=60)
        def thread(context: LoadContext[int]) -> int:
            seen.append(context.has_value)
            return 1

        @cache.cached("b:{a}", fresh_for=60)
        async def by_name(a: int, *, context: LoadContext[int]) -> int:
            seen.append(context.has_value)
            return a

        @cache.cached("c:{args}:{options}", fresh_for=60)
        async def positional(context: LoadContext[int], /, *args: int, **options: int) -> int:
            seen.append(context.has_value)
            return sum(args) + sum(options.values())

        @cache.cached("f:{a}", fresh_for=60)
        async def defaults(a: int = 7, context: LoadContext[int] = LoadContext(), /) -> int:
            seen.append(context.has_value)
            return a

        class Service:
            @cache.cached("d:{a}", fresh_for=60, ignore=("self",))
            async def method(self, context: LoadContext[int], a: int) -> int:
                seen.append(context.has_value)
                return a

        assert (await thread(), await by_name(2), await positional(1, 2, x=3), await Service().method(4)) == (
            1,
            2,
            6,
            4,
        )
        assert await cache.get_or_load("e", functools.partial(by_name_loader, 5), Policy(60)) is not None
        assert await defaults() == 7
        assert await defaults.refresh() == 7
        assert seen == [False] * 5 + [True]

    async def test_callable_object_gets_a_context(self, cache, clock):
        class Loader:
            async def __call__(self, context: LoadContext[int]) -> int:
                return (context.value or 0) + 1

        assert (await cache.get_or_load("k", Loader(), Policy(10, 60))).value == 1
        clock.advance(20)
        await cache.get_or_load("k", Loader(), Policy(10, 60))
        await settle()
        assert (await cache.get_or_load("k", Loader(), Policy(10, 60))).value == 2

    async def test_context_value_is_a_copy_when_copy_is_on(self, cache, clock):
        @cache.cached("k", fresh_for=10, stale_for=60, copy=True)
        async def load(context: LoadContext[list[int]]) -> list[int]:
            value = context.value or []
            value.append(len(value))
            return value

        await load()
        held = cache.engine.store.peek("k").value
        assert await load.refresh() == [0, 1]
        assert held == [0]

    def test_second_or_variadic_context_parameter_is_refused(self):
        async def twice(a: LoadContext[int], b: LoadContext[int]): ...
        async def many(*contexts: LoadContext[int]): ...
        async def named(**contexts: LoadContext): ...

        for wrong in (twice, many, named):
            with pytest.raises(ConfigurationError, match=r"annotate one plain parameter"):
                Cache().cached(fresh_for=1)(wrong)

    def test_unresolved_context_annotation_is_detected_and_other_functions_have_none(self):
        async def unresolved(context: LoadContext[OnlyForCheckers]): ...  # noqa: F821  # the name is missing on purpose
        async def other(context: OnlyForCheckers): ...  # noqa: F821  # the name is missing on purpose
        async def plain(a: int): ...

        assert asking(unresolved) is not None
        for function in (other, plain, len, lambda: 1, functools.partial(plain, 1), 5):
            assert asking(function) is None


async def by_name_loader(a: int, context: LoadContext[int]) -> int:
    assert not context.has_value
    return a


class TestFreshAndNotModified:
    async def test_fresh_overrides_the_decorator_for_its_entry(self, cache, clock):
        @cache.cached("k:{a}", fresh_for=60, stale_for=600, stale_if_error=3600, tags=("all",))
        async def load(a: str) -> int | Fresh[int]:
            return answers[a]

        answers = {
            "plain": 1,
            "times": Fresh(2, fresh_for="1s", stale_for=2, stale_if_error=3),
            "tags": Fresh(3, tags=("other",)),
            "validator": Fresh(None, validator="\ud800"),
        }
        assert [await load(name) for name in answers] == [1, 2, 3, None]
        now, entries = clock(), [cache.engine.store.peek(f"k:{name}") for name in answers]
        windows = [
            (entry.fresh_until - now, entry.stale_until - now, entry.error_until - now, entry.tags, entry.validator)
            for entry in entries
        ]
        assert windows == [
            (60, 660, 3660, ("all",), None),
            (1, 3, 4, ("all",), None),
            (60, 660, 3660, ("other",), None),
            (60, 660, 3660, ("all",), "\ud800"),
        ]

    @pytest.mark.parametrize(
        ("make", "complaint"),
        [
            (lambda: Fresh(1, fresh_for=-1), "fresh_for=-1"),
            (lambda: Fresh(1, stale_for="x"), "stale_for='x'"),
            (lambda: Fresh(1, tags="t"), "tags='t'"),
            (lambda: Fresh(1, validator=5), "validator=5"),
            (lambda: Fresh(NOT_MODIFIED), "give the value itself"),
            (lambda: Fresh(Fresh(1)), "give the value itself"),
        ],
    )
    def test_fresh_with_invalid_arguments_is_refused(self, make, complaint):
        with pytest.raises(ConfigurationError, match=complaint):
            make()

    @pytest.mark.parametrize("asks", [True, False])
    async def test_not_modified_without_a_last_value_raises(self, cache, asks):
        async def load(context: LoadContext[int]) -> NotModified:
            return NOT_MODIFIED

        async def tells() -> NotModified:
            return NOT_MODIFIED

        with pytest.raises(SWRError, match="'k' answered NOT_MODIFIED, and there is no last value"):
            await cache.get_or_load("k", load if asks else tells, Policy(60))

    async def test_loader_without_context_may_return_not_modified(self, cache, clock):
        answers = [1, NOT_MODIFIED]
        policy = Policy(60, 600)
        await cache.get_or_load("k", lambda: answers.pop(0), policy)
        clock.advance(61)
        await cache.get_or_load("k", lambda: answers.pop(0), policy)
        while cache.engine.flights:
            await anyio.sleep(0.01)
        assert (await cache.get_or_load("k", lambda: 2, policy)).value == 1


@dataclasses.dataclass
class Ranking:
    rows: list[int]


def test_codec_ignores_fresh_and_not_modified_in_the_return_annotation():
    T = typing.Any

    def kind(annotation):
        def function(): ...

        function.__annotations__ = {"return": annotation}
        return codec_for(function).kind

    for annotation in (Ranking | Fresh[Ranking] | NotModified, Ranking | NotModified, Fresh[Ranking], Fresh | Ranking):
        assert kind(annotation) is Ranking
    assert kind(Ranking | None | Fresh[Ranking | None] | NotModified) == Ranking | None
    assert kind(typing.Optional[Ranking]) == typing.Optional[Ranking]  # noqa: UP045  # the old spelling is what is tested
    assert kind(Fresh) is T
    assert kind(list[Ranking]) == list[Ranking]


class TestThroughRedis:
    @pytest.fixture
    def anyio_backend(self):
        return "asyncio"

    @pytest.mark.parametrize("l1", [0, 2**20], ids=["no L1", "L1"])
    async def test_another_process_gets_value_and_validator_of_the_entry_from_redis(self, server: Server, l1):
        told = []

        def define(cache):
            @cache.cached("ranking:{group}", fresh_for=60, stale_for=600, tags=("group:{group}",))
            async def load(context: LoadContext[Ranking], group: str) -> Ranking | Fresh[Ranking] | NotModified:
                told.append((context.value, context.validator))
                if context.validator == '"é1"':
                    return NOT_MODIFIED
                return Fresh(Ranking([1]), validator='"é1"', tags=("own",))

            return load

        one, other = (Cache(server.url, l1_max_bytes=l1, timeout=2) for _ in range(2))
        async with one, other:
            assert await define(one)("ATL") == Ranking([1])
            load = define(other)
            assert await load.refresh("ATL") == Ranking([1])
            entry = await other.engine.store.store.read("ranking:ATL", codec_for(load, tags=("group:{group}",)))
            assert (entry.value, entry.validator, entry.tags) == (Ranking([1]), '"é1"', ("own",))
            await one.invalidate_tag("own")
            await define(one)("ATL")
        assert told == [(None, None), (Ranking([1]), '"é1"'), (None, None)]


@pytest.mark.parametrize("kind", [LoadContext[int] | None, Annotated[LoadContext[int], "x"], "LoadContext | None"])
async def test_context_is_given_when_its_annotation_is_optional_or_annotated(kind):
    seen = []

    async def load(x: int, context: Any = None) -> int:
        seen.append(context)
        return x

    load.__annotations__["context"] = kind
    async with Cache() as cache:
        cached = cache.cached("k:{x}", fresh_for=60)(load)
        await cached(1)
        await cached.refresh(1)
    assert [context.has_value for context in seen] == [False, True]


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_generator_is_refused_as_loader(kind):
    """`cached` refuses a generator at definition, `get_or_load` when it calls it."""

    async def pieces():
        yield 1

    def plain():
        yield 1

    async with Cache() as cache:
        with pytest.raises(ConfigurationError, match="is a generator: a loader returns its whole value"):
            await cache.get_or_load("k", pieces if kind == "async" else plain, Policy(60))
