"""A key that is read back: which call has it, and whether that is certain."""

import datetime
import decimal
import enum
import uuid
from collections.abc import Sequence
from typing import Any, Literal

import pytest

from swr import Cache

pytestmark = pytest.mark.anyio


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Odd(enum.Enum):
    ONE = 1


class Name(str):
    pass


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *((str, text) for text in ("ATL", "a:b-c", "5", "", "None", "'quoted'", "~tilde", "%3A é", "1e5", "a\nb")),
        *((int, number) for number in (0, -5, 10**30)),
        *((float, number) for number in (0.5, -0.0, 1e300)),
        (bool, True),
        (int | None, None),
        (str | int, "5"),
        (str | int, 5),
        (Literal["a", "b"], "b"),
        (Colour, Colour.RED),
        (Level, Level.HIGH),
        (uuid.UUID, uuid.UUID(int=7)),
        (datetime.date, datetime.date(2026, 1, 2)),
        (datetime.datetime, datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC)),
        (decimal.Decimal, decimal.Decimal("1.50")),
    ],
    ids=repr,
)
async def test_refresh_of_a_key_passes_its_arguments_with_value_and_type(kind, value):
    calls = []
    async with Cache() as cache:

        async def load(group, limit=100):
            calls.append((group, limit))

        load.__annotations__ = {"group": kind, "limit": int}
        loader = cache.cached("r-{limit}:{group}", fresh_for=60)(load)
        refresh = cache.refresh_of(loader.key(value, 7))
        await refresh()
        assert [(type(group), repr(group), limit) for group, limit in calls] == [(type(value), repr(value), 7)]


def no_annotation(a): ...
def anything(a: Any): ...
def an_object(a: object): ...
def a_list(a: list[int]): ...
def an_enum(a: Odd): ...
def a_class(a: Name): ...
def another_type(a: int): ...
def unknown(a: "Missing"): ...  # noqa: F821  # the name is missing on purpose
def by_name(*, a: str): ...


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (no_annotation, "x"),
        (anything, "x"),
        (an_object, "x"),
        (a_list, [1]),
        (an_enum, Odd.ONE),
        (a_class, Name("x")),
        (another_type, "x"),
        (unknown, "x"),
        (by_name, "x"),
    ],
)
def test_key_with_uncertain_argument_types_has_no_refresh(function, value):
    cache = Cache()
    loader = cache.cached("r:{a}", fresh_for=60)(function)
    key = loader.key(a=value)
    assert cache.refresh_of(key) is None


def test_key_that_cannot_be_read_back_to_a_call_has_no_refresh():
    cache = Cache()

    @cache.cached("user:{user.name}", fresh_for=60)
    def of_user(user: str) -> None: ...

    @cache.cached(key=lambda name: name, fresh_for=60)
    def of_key(name: str) -> None: ...

    class Users:
        @cache.cached("method:{name}", fresh_for=60, ignore=("self",))
        def get(self, name: str) -> None: ...

    for key in ("user:x", of_key.key("x"), "method:x", "nothing", "GET http://host\n/x?"):
        assert cache.refresh_of(key) is None


async def test_refresh_of_a_batch_item_loads_it_alone():
    calls = []
    async with Cache() as cache:

        @cache.cached_many("top:{group}:{limit}", fresh_for=60)
        async def load(limit: int, groups: Sequence[str]) -> dict[str, int]:
            calls.append((limit, groups))
            return dict.fromkeys(groups, limit)

        await cache.refresh_of(load.key(7, "ATL"))()
        assert calls == [(7, ["ATL"])]
        assert cache.refresh_of("top:ATL:x") is None

        @cache.cached("top:{group}:{limit}", fresh_for=60)
        async def one(group: str, limit: int) -> int:
            calls.append(group)
            return limit

        # Both have this key; the loader of one value is asked.
        await cache.refresh_of("top:ATL:7")()
        assert calls[1:] == ["ATL"]


def test_key_of_two_loaders_with_one_name_has_no_refresh():
    cache, made = Cache(), []
    for _ in range(2):

        @cache.cached("r:{a}", fresh_for=60)
        def load(a: str) -> None: ...

        made.append(load)
    assert cache.refresh_of("r:x") is None
