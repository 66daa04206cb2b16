"""The codec of a loader's values, read from its return annotation."""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from swr.core.codec import Codec
from swr.errors import ConfigurationError
from swr.loaders.context import Fresh, NotModified


@functools.lru_cache(maxsize=1024)
def _cached_codec(kind: Any) -> Codec:
    return Codec(kind)


# Resolving annotations takes longer than a read.
_known_codecs: WeakKeyDictionary[Callable[..., Any], Codec] = WeakKeyDictionary()


def codec_for(function: Callable[..., Any], *, many: bool = False) -> Codec:
    """Return the codec for the values that `function` returns, by its annotation; without one, `Any`.

    Parameters:
        many: it returns a dict of values.

    Raises:
        ConfigurationError: the annotation cannot be resolved, or its type cannot be stored.
    """
    known = _known_codecs.get(function) if type(function) is types.FunctionType else None
    if known is not None and not many:
        return known
    target: Any = inspect.unwrap(function)
    while isinstance(target, functools.partial):
        target = inspect.unwrap(target.func)
    if not inspect.isroutine(target):
        target = type(target).__call__
    try:
        kind = typing.get_type_hints(target, include_extras=True).get("return", Any)
    except (NameError, TypeError) as error:
        raise ConfigurationError(
            f"the return annotation of {target.__module__}.{target.__qualname__} cannot be resolved: {error}. "
            f"Import its types at run time (not under TYPE_CHECKING)"
        ) from None
    if many and kind is not Any:
        kinds = typing.get_args(kind)
        origin = typing.get_origin(kind)
        if not (isinstance(origin, type) and issubclass(origin, Mapping) and len(kinds) == 2):
            raise ConfigurationError(
                f"{target.__module__}.{target.__qualname__} returns {kind}: a batch loader returns a dict, and says of "
                f"what, dict[str, Ranking]"
            )
        kind = kinds[-1]
    kind = _of_values(kind)
    try:
        codec = _cached_codec(kind)
    except TypeError:  # an annotation that cannot be hashed
        codec = Codec(kind)
    if type(function) is types.FunctionType and not many:
        _known_codecs[function] = codec
    return codec


def _of_values(kind: Any) -> Any:
    """The type of the values alone: `Ranking` for `Ranking | Fresh[Ranking] | NotModified`."""
    if kind is Fresh or typing.get_origin(kind) is Fresh:
        return typing.get_args(kind)[0] if typing.get_args(kind) else Any
    members = typing.get_args(kind)
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind
    # A bare Fresh says nothing that the others do not.
    kept = [_of_values(member) for member in members if member is not NotModified and member is not Fresh]
    # As many members as are left; `|` takes two.
    return kind if kept == list(members) else typing.Union[tuple(kept)]  # noqa: UP007
