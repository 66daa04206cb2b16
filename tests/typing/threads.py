# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""The types of calls from code that is not async, checked by mypy and pyright in strict mode; never run."""

from typing import Any, assert_type

from swr import Cache, Fresh, LoadContext, NotModified, Outcome, Policy

cache = Cache()


@cache.cached("a:{group}:{limit}", fresh_for=60)
async def coroutine(group: str, limit: int = 100) -> list[int]:
    return [limit]


@cache.cached(fresh_for=60)
def plain(group: str) -> dict[str, int]:
    return {group: 1}


@cache.cached("c:{group}", fresh_for=60)
async def conditional(context: LoadContext[list[int]], group: str) -> list[int] | NotModified:
    return [1]


@cache.cached_many("d:{group}", fresh_for=60)
async def many(groups: list[str]) -> dict[str, bytes]:
    return {}


class Service:
    @cache.cached("e:{group}", fresh_for=60, ignore=("self",))
    async def method(self, group: str) -> bytes:
        return b""

    @cache.cached_many("f:{group}", fresh_for=60, ignore=("self",))
    async def several(self, groups: list[int]) -> dict[int, bytes]:
        return {}


async def ask(context: LoadContext[int]) -> int:
    return 1


def calls() -> None:
    assert_type(coroutine.sync("x", limit=5), list[int])
    assert_type(plain.sync(group="x"), dict[str, int])
    assert_type(conditional.sync("x"), list[int])
    assert_type(coroutine.sync.outcome("x"), Outcome[list[int]])
    assert_type(coroutine.sync.refresh("x"), list[int])
    assert_type(coroutine.sync.uncached("x"), list[int])
    assert_type(Service().method.sync("x"), bytes)
    assert_type(Service().method.sync.outcome("x"), Outcome[bytes])
    assert_type(many.sync(["x"]), dict[str, bytes])
    assert_type(many.sync.outcome(["x"]), dict[str, Outcome[bytes]])
    assert_type(Service().several.sync([1]), dict[int, bytes])
    coroutine.sync.invalidate("x")
    coroutine.sync.mark_stale("x", limit=5)
    assert_type(coroutine.sync.set([1], "x", limit=5), bool)
    coroutine.sync.set(Fresh([1], fresh_for=5), "x")
    assert_type(coroutine.sync.peek("x"), Outcome[list[int]] | None)
    assert_type(Service().method.sync.peek("x"), Outcome[bytes] | None)
    Service().method.sync.set(b"", "x")
    assert_type(many.sync.peek(["x"]), dict[str, Outcome[bytes]])
    many.sync.set({"x": b""}, ["x"])
    for loader in (coroutine, many, Service().method):
        loader.sync.invalidate_all()
        loader.sync.mark_stale_all()
    coroutine.sync.set("x", "x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    many.sync.set({"x": 1}, ["x"])  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    coroutine.sync(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    many.sync("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Service().method.sync(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def of_the_cache() -> None:
    assert_type(cache.sync.get_or_load("k", ask, Policy(60)), Outcome[int])
    assert_type(cache.sync.get_or_load("k", lambda: 1, Policy(60)), Outcome[int])
    with cache.sync as sync, sync.until_committed():
        sync.invalidate_tag("x")
        sync.invalidate_url("/x")
        sync.invalidate_tags("x", "y")
        sync.mark_stale_tags("x", "y")
        sync.invalidate_urls("/x", "/y")
        sync.mark_stale_urls("/x", "/y")
        sync.mark_stale("k")
        sync.mark_stale_all()
        assert_type(sync.set("k", 1, Policy(60)), bool)
        assert_type(sync.peek("k", returns=int), Outcome[int] | None)
        assert_type(sync.peek("k"), Outcome[Any] | None)
