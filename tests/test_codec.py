"""Entries survive the way through bytes as what the annotation says; whatever else is there is an error."""

import dataclasses
import datetime
import decimal
import enum
import functools
import typing
import uuid
from typing import Annotated, Any

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, Field, PlainSerializer, field_serializer, field_validator

from swr import CodecError, ConfigurationError, Policy
from swr.core.codec import ANY, Codec
from swr.core.frames import decode, encode
from swr.entry import stamp
from swr.loaders.annotations import codec_for

SEOUL = datetime.timezone(datetime.timedelta(hours=9))


class Kind(enum.Enum):
    A = "a"


@dataclasses.dataclass
class Row:
    tail: str
    delay: decimal.Decimal
    at: datetime.datetime
    id: uuid.UUID
    kind: Kind = Kind.A
    ratio: float = float("nan")


@dataclasses.dataclass
class Ranking:
    rows: list[Row]
    note: str | None = None


class Struct(msgspec.Struct):
    a: int
    b: tuple[str, ...]


class Typed(typing.TypedDict):
    a: int


class Named(typing.NamedTuple):
    a: int
    b: str


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    a: int = pydantic.Field(alias="A")
    at: datetime.datetime
    s: set[int]
    x: float = 1.0


ROW = Row("N1", decimal.Decimal("1.50"), datetime.datetime(2013, 1, 1, tzinfo=SEOUL), uuid.UUID(int=5))
MODEL = Model(A=1, at=ROW.at, s={1, 2})


def there_and_back(kind, value):
    codec = Codec(kind)
    return decode("k", encode("k", stamp(value, Policy(60), 1.5, version=3), codec), codec).value


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Any, None), (Any, []), (Any, {}), (Any, ""), (Any, 0), (Any, False), (Any, 1.5), (Any, b"\x00"), (Any, "일"),
        (Any, {"a": [1, {"b": None}], "c": True}), (Any, {1: "a"}), (list[int], []), (Row | None, None),
        (Struct, Struct(1, ("x",))), (Typed, {"a": 1}), (Named, Named(1, "x")), (Model, MODEL), (list[Model], [MODEL]),
        (dict[str, Model | None], {"x": MODEL, "y": None}), (dict[int, set[str]], {1: {"a"}}), (frozenset[int], frozenset({1})),
        (bytes, b"raw"), (bytes, b""), (bytes | None, None), (bytearray, bytearray(b"x")), (decimal.Decimal, decimal.Decimal("1.10")),
        (datetime.datetime, ROW.at), (datetime.datetime, datetime.datetime(2013, 1, 1)), (datetime.date, datetime.date(2013, 1, 1)),
        (datetime.time, datetime.time(1, 2)), (datetime.timedelta, datetime.timedelta(1, 2, 3)), (Kind, Kind.A),
        (tuple[int, str], (1, "a")), (Annotated[int, "note"], 5), (int, 2**64 - 1),
    ],
)  # fmt: skip
def test_round_trip_keeps_the_value_and_its_type(kind, value):
    back = there_and_back(kind, value)
    assert back == value
    assert type(back) is type(value)


def test_round_trip_keeps_the_fields_of_nested_dataclasses():
    back = there_and_back(Ranking, Ranking([ROW]))
    assert isinstance(back.rows[0], Row)
    assert back.rows[0].at.utcoffset() == datetime.timedelta(hours=9)
    assert back.rows[0].delay == decimal.Decimal("1.50")
    assert back.rows[0].kind is Kind.A


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (float, float("nan")), (Any, [float("nan")]), (Any, {"a": (float("nan"))}), (Row, ROW), (list[tuple[float, int]], [(float("nan"), 1)]),
        (Struct, Struct(1, ())),
    ],
)  # fmt: skip
def test_round_trip_keeps_nan_in_values(kind, value):
    assert repr(there_and_back(kind, value)) == repr(value)


@pytest.mark.parametrize(
    ("kind", "value", "named"),
    [
        (Any, ROW, "Row"), (Any, (1,), "tuple"), (Any, {1}, "set"), (Any, ROW.at, "datetime"), (Any, MODEL, "Model"),
        (Any, decimal.Decimal(1), "Decimal"), (Any, object(), "object"), (Any, [1, object()], "object"), (Any, 2**80, "int"),
        (Any, "\ud800", "str"), (list[Row], [{"tail": 1}], "list"), (Row, "text", "str"), (bytes, "text", "str"),
        (Any, [(1, 2)], "list"), (Any, {"a": {1, 2}}, "dict"), (Model, MODEL.model_copy(update={"x": float("inf")}), "Model"), (Model, ROW, "Row"), (object, object(), "object"),
        (Any, (number for number in ()), "generator"), (list[float], [float("nan"), "x"], "list"),
    ],
)  # fmt: skip
def test_value_that_a_round_trip_would_change_raises_and_names_its_type(kind, value, named):
    with pytest.raises(CodecError, match=named):
        there_and_back(kind, value)


@dataclasses.dataclass
class Special(Ranking):
    more: int = 1


def test_subclass_with_more_fields_than_the_annotation_is_rejected():
    with pytest.raises(CodecError, match="changed"):
        there_and_back(Ranking, Special([], None, 2))


def test_decoding_a_custom_class_raises_codec_error():
    class Own:
        pass

    with pytest.raises(CodecError, match="Own"):
        Codec(Own)._decode(msgspec.msgpack.encode({"a": 1}))


def frame(codec=ANY, key="k", value=("x" * 40)):
    return encode(key, stamp(value, Policy(60, 600, tags=("t",)), 1.5, version=3, tag_version=2), codec)


def test_changed_byte_raises_codec_error_except_in_the_version():
    whole = frame()
    for position in range(len(whole)):
        for change in (1, 128):
            broken = bytearray(whole)
            broken[position] ^= change
            try:
                entry = decode("k", bytes(broken), ANY)
            except CodecError:
                continue
            # The version alone is outside the checksum, for the server has to be able to write it.
            assert position < 16
            assert entry.value == "x" * 40


@pytest.mark.uncounted
@settings(max_examples=300)
@given(st.binary(max_size=200), st.integers(0, 200))
def test_invalid_bytes_raise_only_codec_error(noise, cut):
    for bytes_ in (noise, frame()[:cut], frame()[:cut] + noise):
        if bytes_ == frame():
            continue
        with pytest.raises(CodecError):
            decode("k", bytes_, ANY)


def test_entry_of_another_key_or_type_raises_codec_error():
    with pytest.raises(CodecError, match="key"):
        decode("other", frame(), ANY)
    with pytest.raises(CodecError, match="type"):
        decode("k", frame(), Codec(str))


def test_fingerprint_depends_on_the_fields_of_a_type():
    first = dataclasses.make_dataclass("R", [("a", int)])
    same = dataclasses.make_dataclass("R", [("a", int)])
    other = dataclasses.make_dataclass("R", [("a", int), ("b", int, 0)])
    assert Codec(first).fingerprint == Codec(same).fingerprint != Codec(other).fingerprint
    assert Codec(Model).fingerprint != Codec(Struct).fingerprint
    assert Codec(dict[bytes, int]).fingerprint


def in_cents(factor: int) -> type:
    """A model whose own functions write a price, and read it."""
    if factor == 10:

        class Price(BaseModel):
            amount: int

            @field_serializer("amount")
            def write(self, amount: int) -> int:
                return amount * 10

            @field_validator("amount", mode="before")
            @classmethod
            def read(cls, amount: int) -> int:
                return amount // 10
    else:

        class Price(BaseModel):
            amount: int

            @field_serializer("amount")
            def write(self, amount: int) -> int:
                return amount * 100

            @field_validator("amount", mode="before")
            @classmethod
            def read(cls, amount: int) -> int:
                return amount // 100

    return Price


def marked(factor: int) -> type:
    write = (lambda amount: amount * 10) if factor == 10 else (lambda amount: amount * 100)

    class Price(BaseModel):
        amount: Annotated[int, PlainSerializer(write), AfterValidator(abs)]

    return Price


def checked(factor: int) -> type:
    @dataclasses.dataclass
    class Price:
        amount: int

        if factor == 10:

            def __post_init__(self) -> None:
                assert self.amount % 10 == 0

    return Price


def hidden(factor: int) -> type:
    class Price(BaseModel):
        amount: int
        unit: int = Field(factor, exclude=True)

    return Price


@pytest.mark.parametrize("model", [in_cents, marked, checked, hidden])
def test_fingerprint_depends_on_the_functions_and_hidden_fields_of_a_model(model):
    """Otherwise two releases that cannot read each other's values would replace them in turn."""
    assert Codec(model(10)).fingerprint == Codec(model(10)).fingerprint != Codec(model(100)).fingerprint
    assert Codec(list[model(10)]).fingerprint != Codec(list[model(100)]).fingerprint


def test_loader_codec_follows_the_return_annotation_or_raises():
    async def annotated() -> list[Row]: ...
    def bare(): ...
    def unresolvable() -> "Nowhere": ...  # noqa: F821  # the name is missing on purpose
    def unsupported() -> dict[Row, int] | list[Row] | set[int]: ...

    class Callable:
        def __call__(self) -> int: ...

    assert codec_for(annotated).kind == list[Row]
    assert codec_for(bare).kind is Any
    assert codec_for(Callable()).kind is int
    assert codec_for(functools.partial(Callable())).kind is int
    assert codec_for(lambda: 1).kind is Any
    with pytest.raises(ConfigurationError, match="Nowhere"):
        codec_for(unresolvable)
    with pytest.raises(ConfigurationError, match="cannot be stored"):
        codec_for(unsupported)


def test_unhashable_annotation_gets_a_codec():
    def f() -> Annotated[int, []]: ...

    assert codec_for(f).kind == Annotated[int, []]
