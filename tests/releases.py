"""Models before a deploy and after it: for each kind of change a pair of types, and a value of each."""

import dataclasses
import enum
from typing import Any, Final, Literal, NamedTuple, NotRequired, TypedDict

import msgspec
import pydantic


def _model(name: str, **fields: Any) -> type[pydantic.BaseModel]:
    return pydantic.create_model(name, **fields)


def _data(*fields: Any, name: str = "Row") -> type:
    return dataclasses.make_dataclass(name, fields)


def _struct(*fields: Any, **options: Any) -> type[msgspec.Struct]:
    return msgspec.defstruct("Row", fields, **options)


_OldColor = enum.Enum("Color", {"RED": "red", "BLUE": "blue"})
_NewColor = enum.Enum("Color", {"RED": "red", "BLUE": "blue", "GREEN": "green"})
_SwappedColor = enum.Enum("Color", {"RED": "blue", "BLUE": "red"})


class _OldPoint(NamedTuple):
    x: int
    y: int


class _NewPoint(NamedTuple):
    y: int
    x: int


_OldArray = _struct(("x", int), ("y", int), array_like=True)
_NewArray = _struct(("y", int), ("x", int), array_like=True)


class _OldDict(TypedDict):
    a: int


class _NewDict(TypedDict):
    a: int
    b: NotRequired[int]


_ALIAS: Final = pydantic.Field(alias="a")
_OldOmits = _struct(("a", int), ("b", _OldColor, _OldColor.RED), omit_defaults=True)
_NewOmits = _struct(("a", int), ("b", _OldColor, _OldColor.BLUE), omit_defaults=True)
_by_name: Final = pydantic.ConfigDict(validate_by_name=True)
_OldAlias = pydantic.create_model("Row", __config__=_by_name, first=(int, _ALIAS))
_NewAlias = pydantic.create_model("Row", __config__=_by_name, second=(int, _ALIAS))
_arbitrary: Final = pydantic.ConfigDict(arbitrary_types_allowed=True)


class Unresolvable:
    """A class without a schema, and with an annotation that cannot be resolved."""

    other: "Nowhere"  # noqa: F821  # the name is missing on purpose


SCHEMALESS = pydantic.create_model("Row", __config__=_arbitrary, a=(int, ...), p=(Unresolvable | None, None))
SCHEMALESS_AFTER = pydantic.create_model("Row", __config__=_arbitrary, b=(int, ...), p=(Unresolvable | None, None))

# By name of the change: the type and a value of the old release, then those of the new release.
CHANGES: Final[dict[str, tuple[Any, Any, Any, Any]]] = {
    "pydantic, a required field": (
        (old := _model("Row", a=(int, ...))), old(a=1),
        (new := _model("Row", a=(int, ...), b=(int, ...))), new(a=1, b=2),
    ),
    "pydantic, an optional field": (
        (old := _model("Row", a=(int, ...))), old(a=1),
        (new := _model("Row", a=(int, ...), b=(int | None, None))), new(a=1),
    ),
    "pydantic, a field renamed behind its alias": (_OldAlias, _OldAlias(first=1), _NewAlias, _NewAlias(second=1)),
    "pydantic, a field retyped": (
        (old := _model("Row", a=(int, ...))), old(a=1), (new := _model("Row", a=(str, ...))), new(a="1"),
    ),
    "pydantic, a field of a model in it": (
        (old := _model("Table", rows=(list[(row := _model("Row", a=(int, ...)))], ...))), old(rows=[row(a=1)]),
        (new := _model("Table", rows=(list[(row := _model("Row", a=(int, 3)))], ...))), new(rows=[row(a=1)]),
    ),
    "pydantic, fields by position": (
        (old := _model("Row", p=(_OldPoint, ...))), old(p=_OldPoint(1, 2)),
        (new := _model("Row", p=(_NewPoint, ...))), new(p=_NewPoint(1, 2)),
    ),
    "dataclass, a required field": (
        (old := _data(("a", int))), old(1), (new := _data(("a", int), ("b", int))), new(1, 2),
    ),
    "dataclass, an optional field": (
        (old := _data(("a", int))), old(1), (new := _data(("a", int), ("b", int, 0))), new(1, 2),
    ),
    "dataclass, in a dict with keys of bytes": (
        dict[bytes, (old := _data(("a", int)))], {b"k": old(1)}, dict[bytes, (new := _data(("b", int)))], {b"k": new(1)},
    ),
    "Struct, a field renamed": ((old := _struct(("a", int))), old(1), (new := _struct(("b", int))), new(1)),
    "Struct, renamed in Redis": (
        (old := _struct(("a_b", int))), old(1), (new := _struct(("a_b", int), rename="camel")), new(1),
    ),
    "Struct, fields by position": (_OldArray, _OldArray(1, 2), _NewArray, _NewArray(1, 2)),
    "Struct, a default that is not stored": (_OldOmits, _OldOmits(1), _NewOmits, _NewOmits(1)),
    "NamedTuple, fields by position": (_OldPoint, _OldPoint(1, 2), _NewPoint, _NewPoint(1, 2)),
    "TypedDict, a field that may be missing": (_OldDict, {"a": 1}, _NewDict, {"a": 1}),
    "enum, a member": (_OldColor, _OldColor.RED, _NewColor, _NewColor.GREEN),
    "enum, members that change places": (_OldColor, _OldColor.RED, _SwappedColor, _SwappedColor.RED),
    "enum, in a list of dataclasses": (
        list[(old := _data(("c", _OldColor)))], [old(_OldColor.RED)],
        list[(new := _data(("c", _NewColor)))], [new(_NewColor.RED)],
    ),
    "Literal, a member": (Literal["a"], "a", Literal["a", "b"], "b"),
    "a union widened": (int, 1, int | str, "1"),
    "a container": (list[int], [1], dict[str, int], {"a": 1}),
}  # fmt: skip
