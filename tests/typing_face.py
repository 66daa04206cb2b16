"""The types that users see, checked by mypy in strict mode; never run."""

from collections.abc import Awaitable, Callable
from typing import assert_type

from swr import NOT_MODIFIED, Cache, Cached, Fresh, LoadContext, NotModified, Outcome, Policy, State
from swr.events import Event, Hit, Stale

cache = Cache()


@cache.cached("a:{group}:{limit}", fresh_for=60)
async def coroutine(group: str, limit: int = 100) -> list[int]:
    return [limit]


@cache.cached(fresh_for="1m")
def plain(group: str) -> dict[str, int]:
    return {group: 1}


@cache.cached("c:{group}", fresh_for=60)
async def conditional(context: LoadContext[list[int]], group: str) -> list[int] | Fresh[list[int]] | NotModified:
    return NOT_MODIFIED if context.has_value else Fresh([1], fresh_for=5, validator="1")


@cache.cached("d:{group}", fresh_for=60)
def conditional_def(context: LoadContext[dict[str, int]], group: str) -> dict[str, int] | NotModified:
    return NOT_MODIFIED


@cache.cached("f:{group}", fresh_for=60)
async def fresh(group: str) -> bytes | Fresh[bytes]:
    return Fresh(b"")


@cache.cached_many("a:{group}:{limit}", fresh_for=60)
async def many(groups: list[str], limit: int = 100) -> dict[str, list[int]]:
    return {group: [limit] for group in groups}


@cache.cached_many("h:{group}", fresh_for=60, absent_for=5)
def many_def(groups: list[str]) -> dict[str, bytes | Fresh[bytes]]:
    return {group: Fresh(b"") for group in groups}


class Service:
    @cache.cached_many("i:{group}", fresh_for=60, ignore=("self",))
    async def several(self, groups: list[int]) -> dict[int, bytes]:
        return {}

    @cache.cached("g:{group}", fresh_for=60, ignore=("self",))
    async def asks(self, context: LoadContext[bytes], group: str) -> bytes | NotModified:
        return context.value or b""

    @cache.cached("b:{group}", fresh_for=60, ignore=("self",))
    async def method(self, group: str) -> bytes:
        return group.encode()


async def main() -> None:
    assert_type(await coroutine("x"), list[int])
    assert_type(await coroutine.outcome("x", limit=5), Outcome[list[int]])
    assert_type((await coroutine.outcome("x")).state, State)
    assert_type(await coroutine.refresh("x"), list[int])
    assert_type(coroutine.key("x"), str)
    assert_type(await plain("x"), dict[str, int])
    assert_type(await Service().method("x"), bytes)
    assert_type(await Service().method.outcome("x"), Outcome[bytes])
    await coroutine.invalidate("x", 5)
    outcome = await cache.get_or_load("k", lambda: 1, Policy(60))
    assert_type(outcome.age, float)
    assert_type(await conditional("x"), list[int])
    assert_type(await conditional.outcome(group="x"), Outcome[list[int]])
    assert_type(await conditional_def("x"), dict[str, int])
    assert_type(await fresh("x"), bytes)
    assert_type(await Service().asks("x"), bytes)
    assert_type(await cache.get_or_load("k", ask, Policy(60)), Outcome[int])
    assert_type(await cache.get_or_load("k", ask_def, Policy(60)), Outcome[int])
    assert_type(await many(["x"]), dict[str, list[int]])
    assert_type(await many.outcome(["x"], limit=5), dict[str, Outcome[list[int]]])
    assert_type(await many.refresh(["x"]), dict[str, list[int]])
    assert_type(await many_def(["x"]), dict[str, bytes])
    assert_type(await Service().several([1]), dict[int, bytes])
    await many.invalidate(["x"])
    await many("x")  # type: ignore[arg-type]
    await conditional(LoadContext(), "x")  # type: ignore[arg-type, call-arg]
    await coroutine(5)  # type: ignore[arg-type]
    await Service().method.refresh(5)  # type: ignore[arg-type]


def hears(event: Hit) -> None: ...


def hears_two(event: Hit | Stale) -> None: ...


def events() -> None:
    heard: list[Event] = []
    cache.subscribe(heard.append)
    cache.subscribe(hears, Hit)
    assert_type(cache.subscribe(hears_two, Hit, Stale), Callable[[], None])
    cache.subscribe(hears, Stale)  # type: ignore[arg-type]
    cache.subscribe(hears)  # type: ignore[arg-type]


async def ask(context: LoadContext[int]) -> int | Fresh[int] | NotModified:
    return 1


def ask_def(context: LoadContext[int]) -> int:
    return 1


def faces() -> None:
    loader: Cached[[str, int], list[int]] = coroutine
    awaitable: Awaitable[list[int]] = coroutine("x")
    del loader, awaitable
