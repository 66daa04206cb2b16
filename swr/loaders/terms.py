"""The options of a loader's decorator, besides the key."""

import inspect
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Self

from swr.engine.load_slots import LoadSlots, Place, Seat
from swr.errors import ConfigurationError
from swr.lifecycle.default_policy import DecoratorPolicy
from swr.loaders.calling import StoreIf, TagsOf
from swr.loaders.tag_functions import TagFunction


class LoaderTerms(NamedTuple):
    """The options of a loader's decorator.

    Parameters:
        policies: how long values may be served.
        copies: whether callers get copies of stored values.
        tags: returns the tags of a value; None: the policy has them.
        store_if: returns whether a value is stored; None: each is.
        stays_here: whether values are not shared with other processes.
        new_seat: returns a seat, with which a load takes a slot of the loader; None: it needs no slot.
    """

    policies: DecoratorPolicy
    copies: bool = False
    tags: TagFunction | None = None
    store_if: StoreIf | None = None
    stays_here: bool = False
    new_seat: Callable[[], Seat] | None = None

    def with_tags(self, function: TagsOf | None, where: str, known: Collection[str]) -> Self:
        """Return these options with a function that makes tags, or unchanged without one; see `TagFunction`."""
        return self if function is None else self._replace(tags=TagFunction(function, where, known))


def stays_here(local: object, shared: object) -> bool:
    """Return whether values are not shared with other processes.

    Parameters:
        local: whether this process's memory holds values.
        shared: whether Redis holds values.

    Raises:
        ConfigurationError: both are False, or one of them is not a bool.
    """
    for name, value in (("local", local), ("shared", shared)):
        if not isinstance(value, bool):
            raise ConfigurationError(f"{name}={value!r}: give True or False")
    if not local and not shared:
        raise ConfigurationError(
            "local=False and shared=False: values would be stored nowhere; leave the decorator out"
        )
    return not shared


def seats_of(max_concurrent_loads: object) -> Callable[[], Seat] | None:
    """Return a function that returns a seat for one load of a loader; None: the number of loads has no limit.

    Raises:
        ConfigurationError: `max_concurrent_loads` is neither None nor a whole number above 0.
    """
    number = max_concurrent_loads
    if number is None:
        return None
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ConfigurationError(f"max_concurrent_loads={number!r}: give a whole number, 1 or more, or None")
    slots = LoadSlots(number)
    return lambda: Seat(Place(slots))


def checked_store_if(store_if: Any) -> StoreIf | None:
    """Return `store_if`, a function of a value, or None if there is none.

    Raises:
        ConfigurationError: it is not a function, or it would have to be awaited.
    """
    if store_if is None:
        return None
    if not callable(store_if):
        raise ConfigurationError(f"store_if={store_if!r}: give a function that takes a value, such as store_if=bool")
    if inspect.iscoroutinefunction(store_if):
        raise ConfigurationError(f"store_if={store_if!r} is async, and swr would not await it: give a def or a lambda")
    function: Callable[[Any], object] = store_if
    return function
