"""Checks whether a value came back from its bytes unchanged, and puts back the parts that its bytes leave out.

`==` is not enough: it ignores time zones, fields that an author excluded from it, and attributes of a model that are
not fields.
"""

import dataclasses
import datetime
import decimal
import functools
import itertools
import operator
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from zoneinfo import ZoneInfo

import msgspec

from swr.core.shapes import is_model, name_of

# The repairs of one value: an index into `Repairs.moments`, or the repairs of its parts by position or by name.
Tree = int | dict[Any, Any]
_FIELDS_SET: Final = ""


class Repairs(msgspec.Struct, array_like=True):
    """The parts of a value that its bytes leave out, and where they belong.

    Parameters:
        tree: where each repair belongs.
        moments: names of time zones, each with a fold (1: the second run of an hour when clocks go back).
        names: names of the fields that were set, for models that distinguish these from defaults.
        payload: the bytes of the value.
    """

    tree: Tree
    moments: list[tuple[str | None, int]]
    names: list[list[str]]
    payload: bytes


class Changed(Exception):
    """A value that would not come back unchanged.

    Parameters:
        reason: how it would change.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.path: list[str] = []

    def __str__(self) -> str:
        """Return the place of the change and the reason."""
        return f"{''.join(reversed(self.path)) or 'it'} {self.reason}"


class Comparison:
    """A comparison of a value that came back with the written value, which collects the repairs."""

    def __init__(self) -> None:
        self.moments: dict[tuple[str | None, int], int] = {}
        self.names: dict[tuple[str, ...], int] = {}

    def of(self, back: Any, value: Any) -> Tree | None:
        """Return the repairs that `back` needs; None: it is the same as `value`.

        Raises:
            Changed: they differ, and that cannot be repaired.
        """
        return _comparer(type(back), type(value))(self, back, value)

    def exact(self, back: Any, value: Any) -> None:
        """Raise Changed if `back` differs from `value` in any way: items of a set and keys cannot be repaired."""
        if self.of(back, value) is not None:
            raise Changed("holds a time zone or a fold, which cannot be kept in a set or a key: use UTC")

    def repaired(self, tree: Tree, payload: bytes) -> Repairs:
        """Return `payload` with the repairs that this comparison found."""
        return Repairs(tree, list(self.moments), list(map(list, self.names)), payload)


_Comparer = Callable[[Comparison, Any, Any], Tree | None]


def _equal(comparison: Comparison, back: Any, value: Any) -> None:
    if not back == value:
        raise Changed("comes back as something else")


def _float(comparison: Comparison, back: float, value: float) -> None:
    if back != value and (back == back or value == value):
        raise Changed("comes back as something else")


def _decimal(comparison: Comparison, back: decimal.Decimal, value: decimal.Decimal) -> None:
    # NaN is not equal to itself, and 1.10 is equal to 1.1.
    if str(back) != str(value):
        raise Changed("comes back as another number")


def _wall(moment: Any) -> Any:
    return moment.replace(tzinfo=None, fold=0)


def _moment(comparison: Comparison, back: Any, value: Any) -> int | None:
    """Compare datetimes or times, whose bytes contain the offset but not the time zone."""
    zone, name = value.tzinfo, None
    if zone is back.tzinfo and value == back and value.fold == back.fold:
        return None
    if type(zone) is ZoneInfo and zone.key is not None:
        name = zone.key
    elif zone is not None and zone.utcoffset(None) is None:
        raise Changed(f"has a time zone of type {type(zone).__name__}: use a ZoneInfo that has a key, or UTC")
    elif value.utcoffset() != back.utcoffset():
        raise Changed("comes back with another offset from UTC")
    if _wall(back) != _wall(value):
        raise Changed("comes back as another time")
    is_repaired = name == getattr(back.tzinfo, "key", None) and value.utcoffset() == back.utcoffset()
    if value.fold == back.fold and (name is None or is_repaired):
        return None
    return comparison.moments.setdefault((name, value.fold), len(comparison.moments))


# For values of these types `==` is enough. Most parts have these types, and a call for each part would take longer.
_SCALARS: Final = frozenset({str, int, bool, type(None), bytes, float, uuid.UUID, datetime.date, datetime.timedelta})


def _parts(comparison: Comparison, parts: Iterable[tuple[Any, Any, Any]], step: str) -> dict[Any, Any]:
    """Compare parts, each of them (name, back, value); return the repairs by name."""
    found: dict[Any, Any] = {}
    name = None
    try:
        for name, back, value in parts:
            kind = type(value)
            if type(back) is kind and kind in _SCALARS and back == value:
                continue
            tree = _comparer(type(back), kind)(comparison, back, value)
            if tree is not None:
                found[name] = tree
    except Changed as changed:
        changed.path.append(step.format(name))
        raise
    return found


def _sequence(comparison: Comparison, back: Any, value: Any) -> Tree | None:
    if len(back) != len(value):
        raise Changed("comes back with another length")
    return _parts(comparison, zip(itertools.count(), back, value, strict=False), "[{}]") or None


def _mapping(comparison: Comparison, back: Any, value: Any) -> Tree | None:
    if len(back) != len(value):
        raise Changed("comes back with other keys")
    for key, name in zip(back, value, strict=True):
        try:
            comparison.exact(key, name)
        except Changed as changed:
            changed.path.append(f"[{name!r}]")
            raise
    found = _parts(comparison, zip(value, back.values(), value.values(), strict=True), "[{!r}]")
    # By position, because a key may be of a type that cannot be read back without the annotation.
    return {number: found[name] for number, name in enumerate(value) if name in found} if found else None


def _set(comparison: Comparison, back: Any, value: Any) -> None:
    if back != value:
        raise Changed("comes back as something else")
    twins = {item: item for item in back}
    try:
        for item in value:
            comparison.exact(twins[item], item)
    except Changed as changed:
        changed.path.append("[]")
        raise


class _Object:
    """A comparer of objects that consist of their fields."""

    def __init__(self, kind: Any, fields: tuple[str, ...]) -> None:
        self.kind = kind
        self.fields = fields
        self._names = frozenset(fields) if kind.__dictoffset__ else None
        self._read: Callable[[Any], Iterable[Any]] = operator.attrgetter(*fields) if len(fields) > 1 else self._read_all

    def _read_all(self, value: Any) -> list[Any]:
        return [getattr(value, name) for name in self.fields]

    def __call__(self, comparison: Comparison, back: Any, value: Any) -> dict[Any, Any] | None:
        if self._names is not None and value.__dict__.keys() != self._names:
            self._refuse_others(value.__dict__.keys() - self._names)
        read = self._read
        return _parts(comparison, zip(self.fields, read(back), read(value), strict=True), ".{}") or None

    def _refuse_others(self, names: set[str]) -> None:
        for name in names:
            # A descriptor, such as `cached_property`, computes its value again. SQLAlchemy keeps the origin of a row in
            # `_sa_instance_state`.
            if name != "_sa_instance_state" and not hasattr(type(getattr(self.kind, name, None)), "__set_name__"):
                raise Changed(f"has the attribute {name!r}, which is not a field of {self.kind.__qualname__}")


class _Model(_Object):
    """A comparer of pydantic models, with their extra and private attributes, and which of their fields were set."""

    def __call__(self, comparison: Comparison, back: Any, value: Any) -> dict[Any, Any] | None:
        try:
            found = super().__call__(comparison, back, value)
        except Changed as changed:
            self._explain(changed, value)
            raise
        for name in ("__pydantic_extra__", "__pydantic_private__"):
            # In most models both are None.
            one, other = getattr(back, name), getattr(value, name)
            if one is not other and _parts(comparison, [(name, one, other)], ".{}"):
                raise Changed(f"has a time zone or a fold in {name}: declare a field for it")
        if back.__pydantic_fields_set__ == value.__pydantic_fields_set__:
            return found
        given = tuple(sorted(value.__pydantic_fields_set__))
        return {**(found or {}), _FIELDS_SET: comparison.names.setdefault(given, len(comparison.names))}

    def _explain(self, changed: Changed, value: Any) -> None:
        name = changed.path[-1][1:] if changed.path else ""
        field = self.kind.model_fields.get(name)
        if field is not None and field.exclude:
            changed.reason = "has exclude=True, so pydantic does not write it: let it have its default"
        elif field is not None and hasattr(getattr(value, name), "get_secret_value"):
            changed.reason = "is a secret, of which pydantic writes only stars: leave it out of what is cached"


def _other(comparison: Comparison, back: Any, value: Any) -> None:
    raise Changed(f"is of type {name_of(type(value))} and comes back as {name_of(type(back))}")


# By the class of the value that comes back, which the annotation decides: the classes that the written value may have,
# and the comparer.
_CUT: Final[Mapping[type, tuple[tuple[type, ...], _Comparer]]] = {
    str: ((str,), _equal),
    bytes: ((bytes, bytearray), _equal),
    bytearray: ((bytes, bytearray), _equal),
    int: ((int,), _equal),
    float: ((int, float), _equal),
    list: ((list,), _sequence),
    tuple: ((tuple,), _sequence),
    dict: ((Mapping,), _mapping),
    set: ((set, frozenset), _set),
    frozenset: ((set, frozenset), _set),
}
_SAME: Final[Mapping[type, _Comparer]] = {
    float: _float,
    decimal.Decimal: _decimal,
    datetime.datetime: _moment,
    datetime.time: _moment,
    list: _sequence,
    dict: _mapping,
    set: _set,
    frozenset: _set,
}


def _find_comparer(back: Any, kind: Any) -> _Comparer:
    """Return the comparer for values of type `kind` that come back as type `back`."""
    if back is not kind:
        likes, comparer = _CUT.get(back, ((), _other))
        return comparer if issubclass(kind, likes) else _other
    if kind in _SAME:
        return _SAME[kind]
    if issubclass(kind, tuple):
        return _sequence
    if is_model(kind):
        return _Model(kind, tuple(kind.model_fields))
    fields = fields_of(kind)
    return _equal if fields is None else _Object(kind, fields)


_comparer: Final[Callable[[Any, Any], _Comparer]] = functools.lru_cache(maxsize=4096)(_find_comparer)


def fields_of(kind: type) -> tuple[str, ...] | None:
    """Return the names of the fields of a class, or None if it does not consist of fields."""
    if issubclass(kind, msgspec.Struct):
        return kind.__struct_fields__
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    fields = getattr(kind, "__attrs_attrs__", None)
    return None if fields is None else tuple(field.name for field in fields)


def repair(value: Any, repairs: Repairs) -> Any:
    """Return `value` with the parts that its bytes left out; mutable objects are changed in place."""
    return _repaired(value, repairs.tree, repairs)


def _repaired(value: Any, tree: Tree, repairs: Repairs) -> Any:
    if isinstance(tree, int):
        name, fold = repairs.moments[tree]
        return value.replace(tzinfo=value.tzinfo if name is None else ZoneInfo(name), fold=fold)
    if isinstance(value, tuple):
        items = list(value)
        for number, inner in tree.items():
            items[number] = _repaired(items[number], inner, repairs)
        return tuple.__new__(type(value), items)
    if isinstance(value, (list, dict)):
        places = range(len(value)) if isinstance(value, list) else list(value)
        for number, inner in tree.items():
            value[places[number]] = _repaired(value[places[number]], inner, repairs)
        return value
    given = tree.pop(_FIELDS_SET, None)
    if given is not None:
        object.__setattr__(value, "__pydantic_fields_set__", set(repairs.names[given]))
    for name, inner in tree.items():
        put(value, name, _repaired(getattr(value, name), inner, repairs))
    return value


def put(value: Any, name: str, part: Any) -> None:
    """Set an attribute, even of a frozen object."""
    if isinstance(value, msgspec.Struct):
        msgspec.structs.force_setattr(value, name, part)
    elif is_model(type(value)):
        value.__dict__[name] = part
    else:
        object.__setattr__(value, name, part)
