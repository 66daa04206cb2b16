"""The arguments of a loader's call, found in its key."""

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from swr.core.canonical import plain_of
from swr.core.template import Template
from swr.errors import ConfigurationError


def arguments_in(
    key: str,
    template: Template,
    function: Callable[..., Any],
    parameters: Mapping[str, inspect.Parameter],
    key_of: Callable[..., str],
    list_name: str = "",
) -> tuple[Any, ...] | None:
    """Return the positional arguments of a loader's call that has `key`; None: the key does not show them for certain.

    Parameters:
        parameters: the parameters of the loader's calls, by name.
        key_of: returns the key for arguments.
        list_name: the parameter of a batch loader that the item replaces; empty: it is not a batch loader.
    """
    texts = template.texts_in(key)
    if texts is None:
        return None
    items = [name for name in texts if name not in parameters]
    names = [items[0] if name == list_name else name for name in parameters]
    try:
        kinds = typing.get_type_hints(function)
        if list_name:
            (kinds[items[0]],) = typing.get_args(kinds[list_name])
        # An ignored parameter, such as a connection, is not in the key. `Any` does not tell the class of a value.
        values = [msgspec.convert(plain_of(texts[name]), kinds[name]) for name in names]
        is_sure = key_of(*values) == key and not {Any, object}.intersection(kinds[name] for name in names)
    except (ConfigurationError, KeyError, NameError, TypeError, ValueError, msgspec.ValidationError):
        return None
    return tuple(values) if is_sure else None
