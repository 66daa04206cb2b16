"""The types that users see, checked by mypy in strict mode; never run."""

from collections.abc import Awaitable
from typing import assert_type

from swr import Cache, Cached, Outcome, Policy, State

cache = Cache()


@cache.cached("a:{group}:{limit}", fresh_for=60)
async def coroutine(group: str, limit: int = 100) -> list[int]:
    return [limit]


@cache.cached(fresh_for="1m")
def plain(group: str) -> dict[str, int]:
    return {group: 1}


class Service:
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
    await coroutine(5)  # type: ignore[arg-type]
    await Service().method.refresh(5)  # type: ignore[arg-type]


def faces() -> None:
    loader: Cached[[str, int], list[int]] = coroutine
    awaitable: Awaitable[list[int]] = coroutine("x")
    del loader, awaitable
