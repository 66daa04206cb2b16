"""Arguments of a call as they were when its key was made, for a load that runs later."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from swr.core.canonical import Unkeyable, snapshot
from swr.core.key_functions import KeyFunction
from swr.core.template import Template
from swr.errors import ConfigurationError


class Watch:
    """A guard against arguments that change between the making of the key and the end of the load.

    If the key contains a whole argument (`{filters}`), the load gets a copy. If the key contains an attribute
    (`{user.id}`), the load gets the object itself, and swr checks later that the attribute has not changed. With a key
    function, swr copies the arguments that it can, and checks the key later if it depends only on the arguments.

    Parameters:
        where: the function, for errors.
        key: its key template.
        tags: its tag templates.
    """

    __slots__ = ("_looks", "_must_copy", "_where", "_whole")

    def __init__(self, where: str, key: Template, tags: Iterable[Template]) -> None:
        self._where = where
        self._whole = frozenset(slot.name for slot in key.slots if not slot.attributes)
        slots = [slot for template in (key, *tags) for slot in template.slots if slot.attributes]
        self._looks: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            f"argument {slot.text!r}": slot.of for slot in slots
        }
        is_function = isinstance(key, KeyFunction)
        self._must_copy = not is_function
        if is_function and key.is_pure:
            self._looks["the key of a call"] = key.fill

    def __bool__(self) -> bool:
        """Return whether there is anything to compare."""
        return bool(self._looks)

    def keep(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return `values`, by parameter, with copies of the arguments that the key contains whole.

        Raises:
            ConfigurationError: an argument cannot be copied; the message names it.
        """
        kept = dict(values)
        for name in self._whole.intersection(values):
            try:
                kept[name] = snapshot(kept[name])
            except Unkeyable as error:
                if not self._must_copy:
                    continue
                raise ConfigurationError(
                    f"argument {name!r} of {self._where} holds a {error}: swr cannot keep it as it is until the load "
                    f"runs. Pass a list, tuple, set or dict of plain values"
                ) from None
        return kept

    def look(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the current text of each value that `compare` compares."""
        return tuple(f"{look(values)!r}" for look in self._looks.values())

    def compare(self, values: Mapping[str, Any], seen: tuple[Any, ...]) -> None:
        """Raise ConfigurationError if `look` now differs from `seen`, its earlier result.

        Raises:
            ConfigurationError: a value has changed; the message names it.
        """
        for name, before, now in zip(self._looks, seen, self.look(values), strict=True):
            if before != now:
                raise ConfigurationError(
                    f"{name} of {self._where} changed from {before} to {now} during its load, so the value belongs to "
                    f"neither. Leave the arguments as they are until the load has ended, or pass the attribute itself"
                )


class Arguments:
    """The arguments of one call as they were when its key was made.

    The load runs later, perhaps in the background, and the caller may have changed the arguments by then.
    """

    __slots__ = ("_args", "_kwargs")

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._args = args
        self._kwargs = kwargs

    def for_load(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments for one run of the loader; the loader may change them."""
        return self._args, self._kwargs

    def check(self) -> None:
        """Raise ConfigurationError if an argument that is not copied has changed."""


class WatchedArguments(Arguments):
    """Arguments that can change before the load. A `Watch` copies them, or compares them later."""

    __slots__ = ("_seen", "_signature", "_values", "_watch")

    def __init__(self, watch: Watch, signature: inspect.Signature, values: Mapping[str, Any]) -> None:
        self._watch = watch
        self._signature = signature
        self._values = watch.keep(values)
        self._seen = watch.look(values)

    def for_load(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self.check()
        bound = inspect.BoundArguments(self._signature, self._watch.keep(self._values))
        return bound.args, bound.kwargs

    def check(self) -> None:
        self._watch.compare(self._values, self._seen)


NO_ARGUMENTS: Final = Arguments((), {})
