"""The keys and tags of a batch loader: one for each item of its list."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from swr.core.arguments import Watch
from swr.core.key_functions import KeyFunction
from swr.core.keys import bound_to
from swr.core.signatures import signature_of
from swr.core.template import Template
from swr.engine.engine import Engine
from swr.errors import ConfigurationError
from swr.loaders.calling import call_loader
from swr.loaders.request_parameters import warn_of_sessions
from swr.loaders.tag_functions import TagFunction
from swr.policy import Policy, tag_names


class ManyKeys:
    """Turn the arguments of a batch loader into keys and tags, one for each item of its list.

    Parameters:
        function: the batch loader.
        template: the key template of one item. It names every parameter except the list, and one name that is not a
            parameter: that of the item. None: there is a `key`.
        tags: tag templates, which may use the same names.
        ignore: parameters that are left out of the key.
        key: a function that returns the key of one item, instead of a template; its parameters have the same names.

    Raises:
        ConfigurationError: a template does not tell which parameter is the list and which name is that of an item.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        template: str | None,
        tags: Iterable[str] = (),
        ignore: Iterable[str] = (),
        key: Callable[..., Any] | None = None,
    ) -> None:
        if isinstance(ignore, str):
            raise ConfigurationError(f"ignore={ignore!r} is one string: give a tuple, ({ignore!r},)")
        self._function = function
        self.where = where = f"{function.__module__}.{function.__qualname__}"
        self._signature = signature_of(function)
        parameters, ignored = self._signature.parameters, frozenset(ignore)
        self._key = _key_of_item(template, key, list(parameters), ignored, where)
        self._tags = [Template(tag, "tags", where) for tag in tag_names(tags)]
        self.watch = Watch(where, self._key, self._tags)
        named = dict.fromkeys(self._key.names)
        items = [name for name in named if name not in parameters]
        lists = [name for name in parameters if name not in named and name not in ignored]
        if len(items) != 1 or len(lists) != 1:
            raise ConfigurationError(
                f"the key {template or key!r} of {where}({', '.join(parameters)}) must be the key of one item. Leave "
                f"the list out, and name the item by a name that is not a parameter, such as 'player:{{name}}' for the "
                f"list names. This key leaves out {', '.join(lists) or 'nothing'} and names "
                f"{', '.join(items) or 'no item'}"
            )
        (self._item,), (self.list_name,) = items, lists
        if parameters[self.list_name].kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise ConfigurationError(f"{where} takes its items as {parameters[self.list_name]}: take them as one list")
        for slot in {*ignored, *(name for tag in self._tags for name in tag.names)}:
            if slot not in parameters and (slot != self._item or slot in ignored):
                raise ConfigurationError(f"{where} has no parameter {slot!r}: it has {', '.join(parameters)}")

    @property
    def template(self) -> Template:
        """The key template."""
        return self._key

    @property
    def known(self) -> tuple[str, ...]:
        """The names of the function's parameters, and the name of one item."""
        return (*self._signature.parameters, self._item)

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters of the function, by name."""
        return self._signature.parameters

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "tuple[ManyCall, list[Any]]":
        """Return a call that has no items yet, and the items of its list without duplicates.

        Raises:
            TypeError: the function does not take these arguments, or they hold no list of hashable items.
        """
        bound = bound_to(self.where, self._signature, args, kwargs)
        asked = bound.arguments[self.list_name]
        if isinstance(asked, (str, bytes)) or not isinstance(asked, Iterable):
            raise TypeError(f"{self.list_name}={asked!r} of {self.where} is not a list of items: give [{asked!r}]")
        asked = list(asked)
        try:
            items = dict.fromkeys(asked)
        except TypeError:
            wrong = next(item for item in asked if not _is_hashable(item))
            raise TypeError(
                f"{self.list_name} of {self.where} holds {wrong!r}, which cannot be a key of the "
                f"returned dict: give items that have a hash"
            ) from None
        return ManyCall(self, bound.arguments), list(items)

    def split(self, args: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
        """Return the one item that replaces the list, and the other arguments by name.

        Raises:
            TypeError: the function does not take these arguments, or the item is not hashable.
        """
        bound = bound_to(self.where, self._signature, args, {})
        item = bound.arguments.pop(self.list_name)
        hash(item)
        return item, bound.arguments

    def with_item(self, values: Mapping[str, Any], item: Any) -> dict[str, Any]:
        """Return `values`, the arguments by name, with `item` as the value of the template's slot for it."""
        return {**values, self._item: item}

    def key(self, values: Mapping[str, Any], item: Any) -> str:
        """Return the key of `item`.

        Raises:
            ConfigurationError: an argument, or the item, cannot be part of a key.
        """
        return self._key.fill(self.with_item(values, item))

    @property
    def tag_templates(self) -> list[str]:
        """The tag templates, as text."""
        return [tag.text for tag in self._tags]

    def tags(self, values: Mapping[str, Any], item: Any) -> tuple[str, ...]:
        """Return the tags of `item`."""
        values = self.with_item(values, item)
        return tuple(tag.fill_plain(values) for tag in self._tags)

    def checked(self, answer: Any, items: list[Any]) -> Mapping[Any, Any]:
        """Return `answer` if it is a dict whose keys are all among `items`.

        Raises:
            ConfigurationError: `answer` is not such a dict.
        """
        if not isinstance(answer, Mapping):
            raise ConfigurationError(
                f"{self.where} returned {type(answer).__name__}: a batch loader returns a dict that maps items to "
                f"values"
            )
        asked = set(items)
        extra = [item for item in answer if item not in asked]
        if extra:
            raise ConfigurationError(
                f"{self.where} was asked for {items!r} and returned {extra[0]!r} too: return a dict whose keys are "
                f"items that it was given, and leave out items that do not exist"
            )
        return answer

    def loader(self, values: Mapping[str, Any], items: list[Any]) -> functools.partial[Any]:
        """Return a partial function that calls the loader for `items`."""
        asked = inspect.BoundArguments(self._signature, {**self.watch.keep(values), self.list_name: items})
        return functools.partial(self._function, *asked.args, **asked.kwargs)


def _key_of_item(
    template: str | None, key: Callable[..., Any] | None, parameters: list[str], ignored: frozenset[str], where: str
) -> Template:
    """Return the template or the function that makes the key of one item; see `ManyKeys`."""
    if key is not None:
        if template is not None:
            raise ConfigurationError(f"{where} has the key template {template!r} and key={key!r}: give one of them")
        return KeyFunction(key, parameters, ignored, where)
    if not isinstance(template, str):
        raise ConfigurationError(f'template={template!r} of {where} must be a string such as "ranking:{{group}}"')
    return Template(template, "key", where)


def _is_hashable(item: Any) -> bool:
    try:
        hash(item)
    except TypeError:
        return False
    return True


class ManyCall:
    """One call of a batch loader: its items with their keys, and the other arguments as they were at the call.

    Parameters:
        keys: the keys of the loader.
        values: the arguments by name.
    """

    def __init__(self, keys: ManyKeys, values: Mapping[str, Any]) -> None:
        self._keys = keys
        self._values = keys.watch.keep(values)
        # For each item, the values of attributes that are part of its key or tags, if there are any.
        self._seen: dict[Any, tuple[str, ...]] = {}
        self.keys: dict[Any, str] = {}

    def add(self, item: Any) -> str:
        """Add one item, and return its key.

        Raises:
            ConfigurationError: an argument, or the item, cannot be part of a key.
        """
        key = self.keys[item] = self._keys.key(self._values, item)
        if self._keys.watch:
            self._seen[item] = self._keys.watch.look(self._keys.with_item(self._values, item))
        return key

    def has(self, values: Mapping[str, Any], item: Any) -> bool:
        """Return whether a call with these other arguments is the same. `1` and `True` are equal, but not the same."""
        return self._values == values and self._keys.key(self._values, item) == self._keys.key(values, item)

    def tags_of(self, item: Any, tags: TagFunction | None) -> Callable[[Any], tuple[str, ...]] | None:
        """Return a function that makes tags from a value of `item`, or None. `tags` gets `item` instead of the list."""
        if tags is None:
            return None
        return functools.partial(tags, self._keys.with_item({**self._values, self._keys.list_name: item}, item))

    def policy(self, item: Any, policy: Policy) -> Policy:
        """Return `policy` with the tags of `item`."""
        return policy.tagged(self._keys.tags(self._values, item)) if policy.tags else policy

    async def load(self, engine: Engine, runs_in_thread: bool, items: list[Any]) -> Mapping[Any, Any]:
        """Call the loader for `items`.

        Raises:
            ConfigurationError: the loader returned no dict of these items, or an argument has changed.
        """
        self._check(items)
        # The loader gets a list of its own, which it may change.
        loader = self._keys.loader(self._values, list(items))
        warn_of_sessions(loader, loader.args, loader.keywords)
        answer = await call_loader(engine, loader, runs_in_thread)
        self._check(items)
        return self._keys.checked(answer, items)

    def _check(self, items: list[Any]) -> None:
        for item in items if self._seen else ():
            self._keys.watch.compare(self._keys.with_item(self._values, item), self._seen[item])
