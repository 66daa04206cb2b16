# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""The types of loaders as users see them, checked by mypy and pyright in strict mode; never run."""

import re
import uuid
from collections.abc import Awaitable, Hashable, Mapping
from typing import Any, NamedTuple, assert_type

from swr import NOT_MODIFIED, Cache, Cached, CachedMany, Fresh, LoadContext, NotModified, Outcome, Policy, State

cache = Cache()


class Row(NamedTuple):
    tail: str


# -- functions ----------------------------------------------------------------------------------------------------


@cache.cached("a:{group}:{limit}", fresh_for=60)
async def coroutine(group: str, limit: int = 100) -> list[int]:
    return [limit]


@cache.cached(fresh_for="1m")
def plain(group: str) -> dict[str, int]:
    return {group: 1}


@cache.cached("f:{group}", fresh_for=60)
async def fresh(group: str) -> bytes | Fresh[bytes]:
    return Fresh(b"")


@cache.cached(fresh_for=60)
async def optional(group: uuid.UUID) -> Row | None:
    return None


@cache.cached(fresh_for=60)
async def nothing() -> tuple[Row, ...]:
    return ()


@cache.cached(fresh_for=60)
async def by_keyword(*, group: str, limit: int = 5) -> int:
    return limit


@cache.cached(fresh_for=60)
async def by_object(value: object) -> int:
    return 1


@cache.cached(fresh_for=60)
async def by_hashable(value: Hashable, limit: int = 1) -> int:
    return limit


@cache.cached(fresh_for=60)
def by_object_in_a_thread(value: object, second: object = None) -> list[str]:
    return []


@cache.cached(fresh_for=60)
async def by_object_second(group: str, value: object) -> int:
    return 1


@cache.cached(fresh_for=60)
async def of_any_number(*groups: object, **options: object) -> int:
    return 1


@cache.cached(fresh_for=60)
def returns_any(group: str) -> Any:
    return group


async def functions() -> None:
    assert_type(await coroutine("x"), list[int])
    assert_type(await coroutine(group="x", limit=1), list[int])
    assert_type(await coroutine.outcome("x", limit=5), Outcome[list[int]])
    assert_type((await coroutine.outcome("x")).state, State)
    assert_type((await coroutine.outcome("x")).value, list[int])
    assert_type((await coroutine.outcome("x")).age, float)
    assert_type((await coroutine.outcome("x")).error, BaseException | None)
    assert_type(await coroutine.refresh("x"), list[int])
    assert_type(coroutine.key("x"), str)
    await coroutine.invalidate("x", 5)
    await coroutine(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await coroutine.outcome(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await coroutine.invalidate()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    coroutine.outcom("x")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    assert_type(await plain("x"), dict[str, int])
    assert_type(await plain.refresh(group="x"), dict[str, int])
    assert_type(await fresh("x"), bytes)
    assert_type(await optional(uuid.uuid4()), Row | None)
    assert_type(await optional.outcome(uuid.uuid4()), Outcome[Row | None])
    assert_type(await nothing(), tuple[Row, ...])
    await nothing(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    assert_type(await by_keyword(group="x"), int)
    await by_keyword("x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    assert_type(await by_object(1), int)
    assert_type(await by_object(value="x"), int)
    await by_object()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    assert_type(await by_hashable("x", limit=5), int)
    assert_type(await by_hashable.outcome(value=("x", 1)), Outcome[int])
    await by_hashable(["x"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(await by_object_in_a_thread(1), list[str])
    assert_type(await by_object_in_a_thread(value=1, second=2), list[str])
    assert_type(await by_object_second("x", 1), int)
    assert_type(await by_object_second(group="x", value=1), int)
    assert_type(await of_any_number(1, "x", b=None), int)
    assert_type(await returns_any("x"), Any)
    assert_type(await coroutine.uncached("x", limit=5), list[int])
    assert_type(await plain.uncached("x"), dict[str, int])
    with cache.disabled():
        assert_type((await coroutine.outcome("x")).bypassed, bool)
    loader: Cached[[str, int], list[int]] = coroutine
    awaitable: Awaitable[list[int]] = coroutine("x")
    del loader, awaitable


# -- key functions -------------------------------------------------------------------------------------------------


class User:
    id: int = 1


@cache.cached(key=lambda user, page: f"user:{user.id}:{page}", fresh_for=60)
async def keyed(user: User, page: int = 1) -> list[int]:
    return [page]


@cache.cached(key=lambda user: user.id, fresh_for=60, ignore=("page",))
def keyed_in_a_thread(user: User, page: int = 1) -> dict[str, int]:
    return {}


def key_of(*, user: User, page: int = 1) -> str:
    return f"{user.id}:{page}"


@cache.cached(key=key_of, fresh_for=60)
async def keyed_by_function(user: User, page: int = 1) -> bytes:
    return b""


@cache.cached_many(key=lambda item, limit: f"{item}:{limit}", fresh_for=60)
async def keyed_many(groups: list[str], limit: int = 5) -> dict[str, bytes]:
    return {}


with_policy = Cache(policy=Policy(60, "10m"))


@with_policy.cached("p:{user.id}", store_if=lambda row: row is not None)
async def by_default(user: User) -> Row | None:
    return None


@with_policy.cached_many("q:{item}", store_if=bool)
async def many_by_default(items: list[str]) -> dict[str, int]:
    return {}


@with_policy.cached("r:{name}", shared=False)
def pattern(name: str) -> re.Pattern[str]:
    return re.compile(name)


async def defaults() -> None:
    assert_type(await pattern("x"), re.Pattern[str])
    assert_type(await by_default(User()), Row | None)
    assert_type(await many_by_default([]), dict[str, int])
    assert_type(await with_policy.get_or_load("k", lambda: 1), Outcome[int])
    assert_type(await with_policy.set("k", 1), bool)
    with_policy.cached(fresh_for=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def number_of(user: User) -> str:
    return "1"


async def key_functions() -> None:
    assert_type(await keyed(User(), 2), list[int])
    assert_type(await keyed.outcome(user=User()), Outcome[list[int]])
    assert_type(await keyed.peek(User()), Outcome[list[int]] | None)
    await keyed(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(await keyed_in_a_thread(User()), dict[str, int])
    assert_type(await keyed_by_function(User()), bytes)
    assert_type(await keyed_many(["x"], limit=5), dict[str, bytes])
    cache.cached(key="user:{user.id}", fresh_for=60)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    cache.cached(key=number_of, fresh_for=60)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# -- loaders that ask for a LoadContext ----------------------------------------------------------------------------


@cache.cached("c:{group}", fresh_for=60)
async def conditional(context: LoadContext[list[int]], group: str) -> list[int] | Fresh[list[int]] | NotModified:
    return NOT_MODIFIED if context.has_value else Fresh([1], fresh_for=5, validator="1")


@cache.cached("d:{group}", fresh_for=60)
def conditional_def(context: LoadContext[dict[str, int]], group: str) -> dict[str, int] | NotModified:
    return NOT_MODIFIED


@cache.cached("e:{value}", fresh_for=60)
async def conditional_by_object(context: LoadContext[int], value: object) -> int | NotModified:
    return 1


async def conditions() -> None:
    assert_type(await conditional("x"), list[int])
    assert_type(await conditional.uncached("x"), list[int])
    assert_type(await conditional.outcome(group="x"), Outcome[list[int]])
    assert_type(await conditional_def("x"), dict[str, int])
    assert_type(await conditional_by_object(value=5), int)
    await conditional(LoadContext(), "x")  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportCallIssue]
    assert_type(LoadContext[int]().value, int | None)


# -- methods -------------------------------------------------------------------------------------------------------


class Service:
    @cache.cached("b:{group}", fresh_for=60, ignore=("self",))
    async def method(self, group: str) -> bytes:
        return group.encode()

    @cache.cached(fresh_for=60, ignore=("self",))
    async def method_by_object(self, value: object) -> bytes:
        return b""

    @cache.cached("g:{group}", fresh_for=60, ignore=("self",))
    async def asks(self, context: LoadContext[bytes], group: str) -> bytes | NotModified:
        return context.value or b""

    @cache.cached(fresh_for=60, ignore=("self",))
    def plain(self, group: str) -> bytes:
        return b""

    @cache.cached(fresh_for=60, ignore=("cls",))
    @classmethod
    async def of_class(cls, group: str, limit: int = 1) -> bytes:
        return b""

    @classmethod
    @cache.cached(fresh_for=60, ignore=("cls",))
    async def of_class_below(cls, group: str) -> bytes:
        return b""

    @cache.cached(fresh_for=60)
    @staticmethod
    async def static(group: str) -> bytes:
        return b""

    @staticmethod
    @cache.cached(fresh_for=60)
    def static_below(group: str) -> bytes:
        return b""

    @cache.cached_many("i:{group}", fresh_for=60, ignore=("self",))
    async def several(self, groups: list[int]) -> dict[int, bytes]:
        return {}

    @cache.cached_many("k:{group}", fresh_for=60, ignore=("cls",))
    @classmethod
    async def several_of_class(cls, groups: list[int]) -> dict[int, bytes]:
        return {}

    @cache.cached_many("j:{group}", fresh_for=60)
    @staticmethod
    def several_static(groups: list[int]) -> dict[int, bytes]:
        return {}


class Derived(Service): ...


async def methods() -> None:
    service = Service()
    assert_type(await service.method("x"), bytes)
    assert_type(await service.method.outcome(group="x"), Outcome[bytes])
    assert_type(await service.method.refresh("x"), bytes)
    assert_type(service.method.key("x"), str)
    assert_type(await Derived().method("x"), bytes)
    assert_type(await Service.method(service, "x"), bytes)
    await service.method.invalidate("x")
    await service.method.refresh(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    service.method.outcom("x")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    assert_type(await service.method_by_object(5), bytes)
    assert_type(await service.method_by_object.outcome(value=5), Outcome[bytes])
    await service.method_by_object()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    assert_type(await service.asks("x"), bytes)
    assert_type(await service.asks.outcome("x"), Outcome[bytes])
    assert_type(await service.plain(group="x"), bytes)
    assert_type(await Service.of_class("x"), bytes)
    assert_type(await Service.of_class.outcome("x", limit=2), Outcome[bytes])
    assert_type(await service.of_class.refresh(group="x"), bytes)
    assert_type(await Derived.of_class("x"), bytes)
    await Service.of_class(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(await Service.of_class_below("x"), bytes)
    assert_type(await Service.static("x"), bytes)
    assert_type(await Service.static.outcome(group="x"), Outcome[bytes])
    assert_type(await service.static.refresh("x"), bytes)
    await Service.static(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(await service.static_below("x"), bytes)
    assert_type(await Service.static_below.outcome("x"), Outcome[bytes])
    assert_type(await service.several([1]), dict[int, bytes])
    assert_type(await service.several.outcome([1]), dict[int, Outcome[bytes]])
    assert_type(await Service.several_of_class([1]), dict[int, bytes])
    assert_type(await Service.several_of_class.outcome(groups=[1]), dict[int, Outcome[bytes]])
    assert_type(await service.several_static([1]), dict[int, bytes])
    assert_type(await Service.several_static.refresh([1]), dict[int, bytes])


# -- batch loaders -------------------------------------------------------------------------------------------------


@cache.cached_many("a:{group}:{limit}", fresh_for=60)
async def many(groups: list[str], limit: int = 100) -> dict[str, list[int]]:
    return {group: [limit] for group in groups}


@cache.cached_many("h:{group}", fresh_for=60, absent_for=5)
def many_def(groups: list[str]) -> dict[str, bytes | Fresh[bytes]]:
    return {group: Fresh(b"") for group in groups}


@cache.cached_many("l:{group}", fresh_for=60)
async def many_mapping(groups: list[str]) -> Mapping[str, int]:
    return {}


async def batches() -> None:
    assert_type(await many(["x"]), dict[str, list[int]])
    assert_type(await many.outcome(["x"], limit=5), dict[str, Outcome[list[int]]])
    assert_type(await many.refresh(["x"]), dict[str, list[int]])
    assert_type(many.key("x"), str)
    assert_type(await many_def(["x"]), dict[str, bytes])
    assert_type(await many_mapping(["x"]), dict[str, int])
    await many.invalidate(["x"])
    await many("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    batch: CachedMany[[list[str], int], str, list[int]] = many
    del batch


# -- without a decorator -------------------------------------------------------------------------------------------


async def ask(context: LoadContext[int]) -> int | Fresh[int] | NotModified:
    return 1


def ask_def(context: LoadContext[int]) -> int:
    return 1


async def load() -> list[str]:
    return []


async def keys() -> None:
    outcome = await cache.get_or_load("k", lambda: 1, Policy(60))
    assert_type(outcome.age, float)
    assert_type(outcome, Outcome[int])
    assert_type(await cache.get_or_load("k", load, Policy(60)), Outcome[list[str]])
    assert_type(await cache.get_or_load("k", ask, Policy(60)), Outcome[int])
    assert_type(await cache.get_or_load("k", ask_def, Policy(60)), Outcome[int])


# -- what is done to stored values ---------------------------------------------------------------------------------


def tags_of(rows: list[int], group: str) -> list[str]:
    return [group, *map(str, rows)]


async def no_tags(rows: list[int], group: str) -> list[str]:
    return []


@cache.cached(fresh_for=60, tags=tags_of)
async def tagged(group: str) -> list[int]:
    return []


def tags_of_one(row: int, group: str) -> tuple[str, ...]:
    return (f"row:{row}",)


@cache.cached_many("t:{group}", fresh_for=60, tags=tags_of_one)
async def tagged_many(groups: list[str]) -> dict[str, int]:
    return {}


async def stored_values() -> None:
    cache.cached(fresh_for=60, tags=no_tags)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    assert_type(await tagged("a"), list[int])
    assert_type(await tagged_many(["a"]), dict[str, int])
    assert_type(await coroutine.set([1], "a", limit=5), bool)
    assert_type(await coroutine.set(Fresh([1], tags=("t",)), "a"), bool)
    assert_type(await coroutine.peek("a"), Outcome[list[int]] | None)
    assert_type(await fresh.set(b"", "a"), bool)
    assert_type(await tagged_many.set({"a": 1, "b": Fresh(2)}, ["a", "b"]), bool)
    assert_type(await tagged_many.peek(["a"]), dict[str, Outcome[int]])
    await coroutine.mark_stale("a")
    await coroutine.invalidate_all()
    await coroutine.mark_stale_all()
    await tagged_many.mark_stale(["a"])
    await tagged_many.invalidate_all()
    assert_type(await cache.set("k", 1, Policy(60)), bool)
    assert_type(await cache.peek("k", returns=Row), Outcome[Row] | None)
    assert_type(await cache.peek("k"), Outcome[Any] | None)
    await cache.mark_stale("k")
    await cache.invalidate_tags("a", "b")
    await cache.mark_stale_tags("a", "b")
    await cache.invalidate_urls("/a")
    await cache.mark_stale_urls("/a")
    await cache.mark_stale_all()
    await coroutine.set("a", "a")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await coroutine.set([1], 5)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await coroutine.peek()  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    await tagged_many.set({"a": "b"}, ["a"])  # type: ignore[dict-item] # pyright: ignore[reportArgumentType]
