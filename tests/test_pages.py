"""Large values are written and read in pages, in a thread, and come back as they were."""

import asyncio
import dataclasses
import datetime
import threading
from typing import Annotated, Any, Generic, NamedTuple, TypedDict, TypeVar
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest

from swr import Cache, CodecError, Policy, State
from swr.core.codec import Codec
from swr.core.frames import decode, encode
from swr.core.pages import LARGE, is_large, large_part
from swr.entry import stamp
from swr.loaders import annotations
from tests.servers import Server

NEW_YORK = ZoneInfo("America/New_York")
MANY = LARGE + 1
T = TypeVar("T")
TEXTS = frozenset(str(number) for number in range(MANY))


@dataclasses.dataclass
class Row:
    number: int
    at: datetime.datetime = datetime.datetime(2013, 7, 1, tzinfo=NEW_YORK)


@dataclasses.dataclass(frozen=True, slots=True)
class Ranking:
    group: str
    rows: list[Row]


@dataclasses.dataclass
class Counted:
    rows: list[int]
    total: int = dataclasses.field(default=0, init=False)

    def __post_init__(self):
        self.total = len(self.rows)


@dataclasses.dataclass
class Box(Generic[T]):
    value: T


@dataclasses.dataclass
class Listed(Generic[T]):
    values: list[T]


class Struct(msgspec.Struct, frozen=True):
    names: dict[str, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Members:
    texts: frozenset[str]


class Typed(TypedDict):
    rows: list[Row]


class Model(pydantic.BaseModel):
    number: int


class Models(pydantic.BaseModel):
    models: list[Model]


class Named(NamedTuple):
    rows: list[Row]


def rows(many=MANY):
    return [Row(number) for number in range(many)]


PAGED = {
    "list": (list[int], lambda: list(range(MANY))),
    "bare list": (list, lambda: [{"a": number} for number in range(MANY)]),
    "any": (Any, lambda: [str(number) for number in range(MANY)]),
    "rows": (list[Row], rows),
    "dict": (dict[int, Row], lambda: dict(enumerate(rows()))),
    "optional": (list[int] | None, lambda: list(range(MANY))),
    "models": (list[Model], lambda: [Model(number=number) for number in range(MANY)]),
    "dataclass": (Ranking, lambda: Ranking("ATL", rows())),
    "optional dataclass": (Ranking | None, lambda: Ranking("ATL", rows())),
    "struct": (Struct, lambda: Struct({str(number): number for number in range(MANY)})),
    "inside a dict": (dict[str, list[Row]], lambda: {"a": [], "b": rows()}),
    "inside any dict": (dict, lambda: {"total": 1, "rows": list(range(MANY))}),
    "typed dict": (Typed, lambda: {"rows": rows()}),
    "table": (list[list[int]], lambda: [list(range(1000)) for _ in range(30)]),
    "columns": (dict[str, list[int]], lambda: {str(name): list(range(1000)) for name in range(30)}),
    "set": (set[int], lambda: set(range(MANY))),
    "frozen set": (frozenset[str], lambda: TEXTS),
    "bare set": (set, lambda: set(range(MANY))),
    "set of tuples": (set[tuple[int, str]], lambda: {(number, "x") for number in range(MANY)}),
    "frozen set in an object": (Members, lambda: Members(TEXTS)),
    "set in a dict": (dict[str, set[str]], lambda: {"a": set(), "b": set(TEXTS)}),
    "frozen set in a dict": (dict[str, frozenset[str]], lambda: {"a": TEXTS}),
    "tuple": (tuple[int, ...], lambda: tuple(range(MANY))),
    "lists of rows": (list[Ranking], lambda: [Ranking(str(number), rows()[:400]) for number in range(40)]),
}
WHOLE = {
    "short": (list[int], lambda: list(range(LARGE))),
    "computed": (Counted, lambda: Counted(list(range(MANY)))),
    "generic": (Listed[Row], lambda: Listed(rows())),
    "parameter": (Box[list[Row]], lambda: Box(rows())),
    "two kinds": (dict[str, list[Row]] | None, lambda: {"a": rows()}),
    "model": (Models, lambda: Models(models=[Model(number=number) for number in range(MANY)])),
    "named tuple": (Named, lambda: Named(rows())),
    "keys": (dict[int, list[int]], lambda: {1: list(range(MANY))}),
    "unhashable": (Annotated[dict[str, Annotated[list[int], []]], "x"], lambda: {"a": list(range(MANY))}),
    "tuple of a set length": (tuple[list[int], *[int] * MANY], lambda: ([], *range(MANY))),
    "text": (str, lambda: "x" * 10 * MANY),
}


@pytest.mark.parametrize(
    ("kind", "make", "is_paged"),
    [(*case, True) for case in PAGED.values()] + [(*case, False) for case in WHOLE.values()],
    ids=[*PAGED, *WHOLE],
)
def test_decoded_value_equals_the_encoded_one_whether_paged_or_not(kind, make, is_paged):
    codec, value = Codec(kind), make()
    frame = encode("k", stamp(value, Policy(60), 1.5, version=3), codec)
    assert codec.encode_value(value).startswith(b"\xc1\xc1") is is_paged
    back = decode("k", frame, codec).value
    assert type(back) is type(value)
    assert back == value == make()
    if "Row" in str(kind) and is_paged:
        found = large_part(back)[1]
        row = found[len(found) - 1]
        assert row.at.tzinfo is NEW_YORK


@pytest.mark.parametrize("kind", [list[int], dict[str, list[int]], Ranking])
def test_item_that_cannot_be_stored_is_refused_in_any_place_of_a_large_value(kind):
    large = [*range(MANY), "text"]
    value = {"a": large} if "dict" in str(kind) else Ranking("ATL", large) if kind is Ranking else large
    with pytest.raises(CodecError, match="cannot be stored"):
        Codec(kind).encode_value(value)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: None, False), (lambda: "x" * 10**6, False), (lambda: list(range(10)), False), (dict, False),
        (lambda: list(range(MANY)), True), (lambda: [[1] * 100] * 100, True), (lambda: {"a": {"b": rows()}}, True),
        (lambda: dict.fromkeys(range(MANY)), True), (lambda: Models(models=[Model(number=1)] * MANY), True),
        (lambda: Ranking("ATL", rows()), True), (lambda: Ranking("ATL", rows(5)), False), (lambda: [Row(1)] * 3000, True),
        (lambda: "x" * 10**7, True), (lambda: {"a": [b"x" * 10**6] * 10}, True), (lambda: ["x"] * 3000, False),
        (lambda: [Ranking("ATL", [])] * 3000, True), (lambda: {"a": object()}, False), (lambda: {1, 2}, False),
    ],
)  # fmt: skip
def test_value_counts_as_large_by_its_parts_or_its_bytes(make, expected):
    assert is_large(make()) is expected


@pytest.mark.anyio
class TestThreads:
    @pytest.fixture
    def anyio_backend(self):
        return "asyncio"

    @pytest.fixture
    def threads(self, monkeypatch):
        """The names of the threads in which values are written and read."""
        seen = []
        for name in ("encode_value", "_decode_marked"):
            method = getattr(Codec, name)

            def note(self, value, method=method, name=name):
                seen.append((name, threading.current_thread() is threading.main_thread()))
                return method(self, value)

            monkeypatch.setattr(Codec, name, note)
        # A codec knows its own method.
        annotations._cached_codec.cache_clear()
        yield seen
        annotations._cached_codec.cache_clear()

    def define(self, cache, many=60_000):
        @cache.cached("numbers", fresh_for=60)
        async def numbers() -> list[list[int]]:
            return [[number] for number in range(many)]

        return numbers

    async def test_large_value_is_encoded_and_decoded_in_a_thread(self, server: Server, threads):
        async with Cache(server.url, timeout=30) as cache, Cache(server.url, timeout=30) as other:
            value = await self.define(cache)()
            numbers = self.define(other)
            outcomes = await asyncio.gather(*(numbers.outcome() for _ in range(5)))
            assert {outcome.state for outcome in outcomes} == {State.FRESH}
            assert all(outcome.value == value for outcome in outcomes)
        in_main = {name for name, is_main in threads if is_main}
        assert not in_main
        assert [name for name, _ in threads if name == "encode_value"] == ["encode_value"]

    async def test_large_value_found_by_a_lease_request_is_decoded_in_a_thread(self, server: Server, threads):
        async with Cache(server.url, timeout=30) as cache, Cache(server.url, timeout=30) as other:
            value = await self.define(cache)()
            store, numbers = other.engine.store, self.define(other)
            found = await store.acquire("numbers", "token", 30, 0, numbers._codec)
            assert found.value == value
        assert not {name for name, is_main in threads if is_main}

    async def test_small_value_is_encoded_and_decoded_in_the_main_thread(self, server: Server, threads):
        async with Cache(server.url, timeout=30) as cache, Cache(server.url, timeout=30) as other:
            await self.define(cache, 10)()
            assert (await self.define(other, 10).outcome()).state is State.FRESH
        assert all(is_main for _, is_main in threads)
        assert threads

    async def test_large_value_that_cannot_be_stored_raises_codec_error(self, server: Server):
        async with Cache(server.url, timeout=30) as cache:

            @cache.cached("numbers", fresh_for=60)
            async def numbers() -> list[int]:
                return [*range(20_000), "text"]

            with pytest.raises(CodecError, match="list"):
                await numbers()
