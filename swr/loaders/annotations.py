"""The codec of a loader's values, read from its return annotation."""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from swr.core.codec import ANY, Codec
from swr.core.shapes import check
from swr.core.signatures import annotations_of
from swr.errors import ConfigurationError
from swr.loaders.context import Fresh, NotModified


def _new_codec(kind: Any) -> Codec:
    codec = Codec(kind)
    check(kind)
    return codec


_cached_codec = functools.lru_cache(maxsize=1024)(_new_codec)
# The codec of each loader, because reading annotations takes longer than reading an entry.
_known_codecs: WeakKeyDictionary[Callable[..., Any], Codec] = WeakKeyDictionary()


def codec_of(kind: Any) -> Codec:
    """Return the codec for values of type `kind`.

    Raises:
        ConfigurationError: a value of this type cannot be stored in Redis, or the type uses a name that is not defined.
    """
    try:
        return _codec_of(kind)
    except NameError as error:
        raise ConfigurationError(
            f"returns={kind!r} cannot be resolved: {error}. Import its types at run time (not under TYPE_CHECKING)"
        ) from None


def codec_if_defined(function: Callable[..., Any], *, many: bool = False, tags: Sequence[str] = ()) -> Codec | None:
    """Return the codec for the values that `function` returns; None: a type of its annotation is not defined yet.

    Parameters:
        many: whether `function` returns a dict of values.
        tags: the tag templates of the values.

    Raises:
        ConfigurationError: values of the annotated type cannot be stored.
    """
    try:
        return _find_codec(function, many).tagged(tags)
    except NameError:
        return None


def codec_for(function: Callable[..., Any], *, many: bool = False, tags: Sequence[str] = ()) -> Codec:
    """Return the codec for the values that `function` returns, by its annotation; without one, the codec for `Any`.

    Parameters:
        many: whether `function` returns a dict of values.
        tags: the tag templates of the values.

    Raises:
        ConfigurationError: the annotation cannot be resolved, or its type cannot be stored.
    """
    try:
        return _find_codec(function, many).tagged(tags)
    except NameError as error:
        raise ConfigurationError(
            f"the return annotation of {_where(function)} cannot be resolved: {error}. "
            f"Import its types at run time (not under TYPE_CHECKING)"
        ) from None


def _codec_of(kind: Any) -> Codec:
    try:
        return _cached_codec(kind)
    except TypeError:  # The annotation cannot be hashed.
        return _new_codec(kind)


def _target(function: Callable[..., Any]) -> Any:
    """Return the function or method that has the annotations."""
    target: Any = inspect.unwrap(function)
    while isinstance(target, functools.partial):
        target = inspect.unwrap(target.func)
    return target if inspect.isroutine(target) else type(target).__call__


def _where(function: Callable[..., Any]) -> str:
    target = _target(function)
    return f"{target.__module__}.{target.__qualname__}"


def _find_codec(function: Callable[..., Any], many: bool) -> Codec:
    if type(function) is types.FunctionType:
        known = _known_codecs.get(function)
        if known is not None and not many:
            return known
        if "return" not in annotations_of(function) and not hasattr(function, "__wrapped__"):
            return ANY
    try:
        kind = _returned_by(_target(function))
    except TypeError as error:
        raise ConfigurationError(
            f"the return annotation of {_where(function)} is not a type: {error}. Give the type of what it returns"
        ) from None
    if many and kind is not Any:
        kinds = typing.get_args(kind)
        origin = typing.get_origin(kind)
        if not (isinstance(origin, type) and issubclass(origin, Mapping) and len(kinds) == 2):
            raise ConfigurationError(
                f"{_where(function)} returns {kind}: a batch loader returns a dict, so annotate it with the types of "
                f"its items and values, such as dict[str, Ranking]"
            )
        kind = kinds[-1]
    try:
        codec = _codec_of(_of_values(kind))
    except ConfigurationError as error:
        raise ConfigurationError(f"{_where(function)}: {error}") from None
    if type(function) is types.FunctionType and not many:
        _known_codecs[function] = codec
    return codec


def _returned_by(target: Any) -> Any:
    """Return the type that a function returns, without a look at its parameters.

    Their types may be imported only for type checkers.
    """
    alone = types.SimpleNamespace(
        __annotations__={name: kind for name, kind in annotations_of(target).items() if name == "return"},
        __globals__=getattr(target, "__globals__", {}),
        __type_params__=getattr(target, "__type_params__", ()),
    )
    return typing.get_type_hints(alone, include_extras=True).get("return", Any)


def _of_values(kind: Any) -> Any:
    """Return the type of the values alone: `Ranking` for `Ranking | Fresh[Ranking] | NotModified`."""
    if kind is Fresh or typing.get_origin(kind) is Fresh:
        return typing.get_args(kind)[0] if typing.get_args(kind) else Any
    members = typing.get_args(kind)
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind
    # A `Fresh` without a type adds nothing to the other members.
    kept = [_of_values(member) for member in members if member is not NotModified and member is not Fresh]
    return kind if kept == list(members) else typing.Union[tuple(kept)]  # noqa: UP007  # `|` takes two members
