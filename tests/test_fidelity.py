"""What comes back from Redis is the same in every part, or is refused; `==` passes over much."""

import collections
import dataclasses
import datetime
import decimal
import functools
import importlib.resources
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
import pytest

from swr import Cache, CodecError, Policy
from swr.core.codec import Codec
from swr.core.frames import decode, encode
from swr.entry import stamp
from tests.servers import Server
from tests.test_shapes import tables

NEW_YORK = ZoneInfo("America/New_York")
FIVE = datetime.timezone(datetime.timedelta(hours=-5))
SUMMER = datetime.datetime(2013, 7, 1, 12, tzinfo=NEW_YORK)
MOMENTS = [
    SUMMER,
    datetime.datetime(2013, 11, 3, 1, 30, tzinfo=NEW_YORK),
    datetime.datetime(2013, 11, 3, 1, 30, tzinfo=NEW_YORK, fold=1),
    datetime.datetime(2013, 3, 10, 2, 30, tzinfo=NEW_YORK),
    datetime.datetime(2013, 3, 10, 2, 30, tzinfo=NEW_YORK, fold=1),
    datetime.datetime(1850, 1, 1, tzinfo=NEW_YORK),
    datetime.datetime(2013, 11, 3, 1, 30, fold=1),
    datetime.datetime(2013, 11, 3, 1, 30),
    datetime.datetime(2013, 11, 3, 1, 30, tzinfo=FIVE),
    datetime.datetime(2013, 11, 3, 1, 30, tzinfo=FIVE, fold=1),
    datetime.datetime(2013, 11, 3, 1, 30, tzinfo=datetime.UTC),
    datetime.datetime(2013, 11, 3, 1, 30, tzinfo=ZoneInfo("UTC")),
]


@dataclasses.dataclass
class Row:
    at: datetime.datetime
    note: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    at: datetime.datetime


class Struct(msgspec.Struct, frozen=True):
    at: datetime.datetime


class Named(NamedTuple):
    number: int
    at: datetime.datetime


class Model(pydantic.BaseModel, frozen=True):
    at: datetime.datetime | None = None
    rows: list[Row] = []
    more: dict[str, datetime.datetime] = {}
    when: datetime.time | None = None


@attrs.define
class Attrs:
    at: datetime.datetime


def there_and_back(kind, value):
    codec = Codec(kind)
    return decode("k", encode("k", stamp(value, Policy(60), 1.5, version=3), codec), codec).value


WRAPPED = {
    "alone": (datetime.datetime, lambda at: at, lambda back: back),
    "list": (list[datetime.datetime], lambda at: [MOMENTS[0], at], lambda back: back[1]),
    "tuple": (tuple[int, datetime.datetime], lambda at: (1, at), lambda back: back[1]),
    "dict": (dict[str, datetime.datetime], lambda at: {"a": MOMENTS[0], "b": at}, lambda back: back["b"]),
    "defaultdict": (
        dict[str, datetime.datetime],
        lambda at: collections.defaultdict(list, {"b": at}),
        lambda back: back["b"],
    ),
    "dataclass": (list[Row], lambda at: [Row(at)], lambda back: back[0].at),
    "frozen": (Frozen, Frozen, lambda back: back.at),
    "struct": (dict[int, Struct], lambda at: {5: Struct(at)}, lambda back: back[5].at),
    "named tuple": (Named, lambda at: Named(1, at), lambda back: back.at),
    "attrs": (Attrs, Attrs, lambda back: back.at),
    "model": (Model, lambda at: Model(at=at), lambda back: back.at),
    "inside a model": (Model, lambda at: Model(rows=[Row(at)]), lambda back: back.rows[0].at),
    "dict in a model": (list[Model], lambda at: [Model(more={"x": at})], lambda back: back[0].more["x"]),
    "optional": (Row | None, Row, lambda back: back.at),
}


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
@pytest.mark.parametrize(("kind", "wrap", "unwrap"), WRAPPED.values(), ids=WRAPPED)
def test_stored_datetime_keeps_its_time_zone_and_fold(kind, wrap, unwrap, moment):
    back = unwrap(there_and_back(kind, wrap(moment)))
    assert back.replace(tzinfo=None) == moment.replace(tzinfo=None)
    assert (back.fold, back.utcoffset()) == (moment.fold, moment.utcoffset())
    assert back.tzinfo is moment.tzinfo or not isinstance(moment.tzinfo, ZoneInfo)
    day = datetime.timedelta(days=200)
    assert (back + day).utcoffset() == (moment + day).utcoffset()


@pytest.mark.parametrize(
    "time",
    [
        datetime.time(1, 30),
        datetime.time(1, 30, fold=1),
        datetime.time(1, tzinfo=NEW_YORK),
        datetime.time(1, tzinfo=FIVE),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [datetime.time, Model])
def test_stored_time_of_day_keeps_its_time_zone_and_fold(kind, time):
    back = there_and_back(kind, time if kind is datetime.time else Model(when=time))
    back = back if kind is datetime.time else back.when
    assert (back.replace(tzinfo=None), back.fold, back.utcoffset()) == (
        time.replace(tzinfo=None), time.fold, time.utcoffset(),
    )  # fmt: skip
    assert not isinstance(time.tzinfo, ZoneInfo) or back.tzinfo is time.tzinfo


class Whim(datetime.tzinfo):
    def utcoffset(self, moment):
        return None if moment is None else datetime.timedelta(hours=1)

    def dst(self, moment):
        return None


class Later(datetime.datetime):
    pass


@pytest.mark.parametrize(
    ("kind", "value", "complaint"),
    [
        (list[Row], [Row(SUMMER), Row(datetime.datetime(2013, 7, 1, tzinfo=Whim()))], r"\[1\]\.at has a time zone of type Whim"),
        (set[datetime.datetime], {SUMMER}, r"\[\] holds a time zone.*UTC"),
        (set[Frozen], {Frozen(SUMMER)}, r"\[\] holds a time zone"),
        (dict[datetime.datetime, int], {SUMMER: 1}, r"\] holds a time zone"),
        (datetime.datetime, Later(2013, 1, 1), "Later cannot be stored"),
    ],
)  # fmt: skip
def test_datetime_that_cannot_be_restored_is_rejected_with_the_reason(kind, value, complaint):
    with pytest.raises(CodecError, match=complaint):
        there_and_back(kind, value)


def test_utc_datetimes_can_be_keys_and_members_of_sets():
    moment = SUMMER.astimezone(datetime.UTC)
    assert there_and_back(dict[datetime.datetime, set[datetime.datetime]], {moment: {moment}}) == {moment: {moment}}


def test_entry_with_an_unknown_time_zone_cannot_be_decoded(monkeypatch):
    codec = Codec(datetime.datetime)
    frame = encode("k", stamp(SUMMER, Policy(60), 1.5, version=3), codec)
    assert decode("k", frame, codec).value.tzinfo is NEW_YORK

    def unknown(name):
        raise LookupError(name)

    monkeypatch.setattr("swr.core.fidelity.ZoneInfo", unknown)
    with pytest.raises(CodecError, match="New_York"):
        decode("k", frame, codec)


@pytest.mark.parametrize("number", ["NaN", "-NaN", "sNaN", "Infinity", "1.10", "1E+2"])
def test_stored_decimal_keeps_its_notation(number):
    value = decimal.Decimal(number)
    assert str(there_and_back(decimal.Decimal, value)) == number
    assert str(there_and_back(list[decimal.Decimal], [value])[0]) == number


@dataclasses.dataclass
class Partly:
    a: int
    hidden: int = dataclasses.field(default=0, compare=False)
    unset: int = dataclasses.field(default=0, init=False, compare=False)

    @functools.cached_property
    def double(self) -> int:
        return 2 * self.a

    def method(self) -> None: ...


@dataclasses.dataclass(eq=False)
class Lenient:
    a: int

    def __eq__(self, other):
        return True

    __hash__ = None

    def __post_init__(self):
        self.a = 0


class LenientStruct(msgspec.Struct, dict=True):
    a: int


@attrs.define
class LenientAttrs:
    a: int
    b: int = attrs.field(default=0, eq=False)


def with_attribute(value, **attributes):
    for name, attribute in attributes.items():
        setattr(value, name, attribute)
    return value


class Private(pydantic.BaseModel):
    a: int = 0
    _note: str = pydantic.PrivateAttr("")

    @pydantic.computed_field
    @functools.cached_property
    def double(self) -> int:
        return 2 * self.a


class Extra(pydantic.BaseModel, extra="allow"):
    a: int = 0


class Typed(pydantic.BaseModel, extra="allow"):
    __pydantic_extra__: dict[str, datetime.datetime]


class Excluded(pydantic.BaseModel):
    a: int = 0
    note: str = pydantic.Field("", exclude=True)
    secret: pydantic.SecretStr | None = None


class Anything(pydantic.BaseModel):
    value: Any


class Lossy(pydantic.BaseModel):
    number: int

    @pydantic.field_serializer("number")
    def write(self, number: int) -> int:
        return number // 2

    def __eq__(self, other):
        return True

    __hash__ = None


class Pair(NamedTuple):
    x: int
    y: int


SAME = [
    (Partly, Partly(1, 2)), (Partly, with_attribute(Partly(1), double=2)), (LenientAttrs, LenientAttrs(1, 2)),
    (Private, Private(a=2)), (Extra, Extra(a=1, b=2)), (Excluded, Excluded(a=1)), (tuple[int, int], Pair(1, 2)), (Pair, Pair(1, 2)),
    (float, 1), (dict[str, int], collections.Counter("aab")), (set[int], frozenset({1})), (bytes, bytearray(b"x")),
    (Anything, Anything(value=[1, {"a": None}])), (set[Pair], {Pair(1, 2)}), (frozenset[Frozen], frozenset({Frozen(SUMMER.astimezone(FIVE))})),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value"), SAME, ids=lambda value: str(value)[:40])
def test_value_that_loses_nothing_is_restored(kind, value):
    back = there_and_back(kind, value)
    assert back == value
    assert getattr(back, "hidden", None) == getattr(value, "hidden", None)


def test_computed_attribute_is_computed_again_after_restoring():
    value = Private(a=2)
    assert value.double == 4
    assert there_and_back(Private, value).double == 4


CHANGED = [
    (Partly, with_attribute(Partly(1), more=5), "attribute 'more', which is not a field of Partly"),
    (list[Partly], [with_attribute(Partly(1), method=5)], r"\[0\] has the attribute 'method'"),
    (LenientStruct, with_attribute(LenientStruct(1), more=5), "attribute 'more'"),
    (Lenient, with_attribute(Lenient(1), a=1), r"\.a comes back as something else"),
    (Lossy, Lossy(number=4), r"\.number comes back as something else"),
    (Private, with_attribute(Private(), _note="x"), r"_note"),
    (Extra, Extra(at=SUMMER), r"\['at'\] is of type datetime"),
    (Typed, Typed(at=SUMMER), "has a time zone or a fold in __pydantic_extra__"),
    (Excluded, Excluded(note="x"), r"\.note has exclude=True"),
    (list[Excluded], [Excluded(secret="x")], r"\[0\]\.secret is a secret, of which pydantic writes only stars"),
    (Anything, Anything(value=SUMMER), r"\.value is of type datetime\.datetime and comes back as builtins\.str"),
    (Anything, Anything(value=(1, 2)), r"\.value is of type builtins\.tuple and comes back as builtins\.list"),
    (Any, [(1, 2)], r"\[0\] is of type builtins\.tuple"),
    (Any, {"a": {1}}, r"\['a'\] is of type builtins\.set"),
    (list[float], [1.5, float("nan"), "x"], "Expected `float`"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value", "complaint"), CHANGED, ids=lambda value: str(value)[:40])
def test_value_that_would_lose_something_is_rejected_with_the_reason(kind, value, complaint):
    with pytest.raises(CodecError, match=complaint):
        there_and_back(kind, value)


UTC = SUMMER.astimezone(datetime.UTC)
ALTERED = [
    (datetime.datetime, UTC, lambda back: back.astimezone(FIVE), "another offset"),
    (datetime.datetime, UTC, lambda back: back + datetime.timedelta(1), "another time"),
    (float, 1.5, lambda back: 2.5, "something else"),
    (float, 1.5, lambda back: float("nan"), "something else"),
    (decimal.Decimal, decimal.Decimal("1.1"), lambda back: decimal.Decimal("1.10"), "another number"),
    (list[int], [1], lambda back: [1, 2], "another length"),
    (dict[str, int], {"a": 1}, lambda back: {}, "other keys"),
    (dict[str, int], {"a": 1}, lambda back: {"b": 1}, r"\['a'\] comes back as something else"),
    (set[int], {1}, lambda back: {2}, "something else"),
    (Row, Row(UTC), lambda back: "text", "is of type .*Row and comes back as builtins.str"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value", "alter", "complaint"), ALTERED, ids=lambda value: str(value)[:30])
def test_value_that_reading_alters_is_rejected_with_its_place(kind, value, alter, complaint):
    class Altered(pydantic.BaseModel):
        part: kind

        @pydantic.field_validator("part")
        @classmethod
        def read(cls, part, info):
            return alter(part) if info.mode == "json" else part

    with pytest.raises(CodecError, match=rf"changed.*\.part.*{complaint}"):
        there_and_back(Altered, Altered(part=value))


def test_time_zone_with_other_rules_under_a_known_name_is_rejected():
    with importlib.resources.files("tzdata").joinpath("zoneinfo/Europe/London").open("rb") as rules:
        zone = ZoneInfo.from_file(rules, key="America/New_York")
    with pytest.raises(CodecError, match="it has a part that swr cannot restore"):
        there_and_back(datetime.datetime, SUMMER.replace(tzinfo=zone))


def test_stored_model_keeps_which_fields_were_set():
    """FastAPI's `response_model_exclude_unset` shows the difference."""
    values = [Model(at=SUMMER), Model(), Model(at=None, when=None), Model(rows=[Row(SUMMER)])]
    back = there_and_back(list[Model], values)
    assert [item.model_fields_set for item in back] == [value.model_fields_set for value in values]
    assert [item.model_dump(exclude_unset=True) for item in back] == [
        value.model_dump(exclude_unset=True) for value in values
    ]


def test_stored_row_of_a_database_table_is_restored():
    City, _ = tables()
    back = there_and_back(list[City], [City(id=5)])
    assert back[0].model_dump() == {"id": 5}


class TestProcesses:
    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def anyio_backend(self):
        return "asyncio"

    async def test_datetime_read_by_another_process_crosses_the_end_of_summer_time_correctly(self, server: Server):
        def define(cache):
            @cache.cached("flights", fresh_for=60)
            async def flights() -> list[Row]:
                return [Row(datetime.datetime(2013, 11, 2, 12, tzinfo=NEW_YORK))]

            return flights

        async with Cache(server.url) as cache, Cache(server.url) as other:
            (row,) = await define(cache)()
            outcome = await define(other).outcome()
            assert outcome.state.value == "fresh"
            tomorrow = [moment.at + datetime.timedelta(days=1) for moment in (row, *outcome.value)]
            assert [moment.isoformat() for moment in tomorrow] == ["2013-11-03T12:00:00-05:00"] * 2
