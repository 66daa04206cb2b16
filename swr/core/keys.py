"""Keys and tags: templates that are filled with the arguments of a call, so that two calls share a key only if they are
the same.
"""

import functools
import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote

from swr.core.arguments import Arguments, Watch, WatchedArguments
from swr.core.canonical import PLAIN
from swr.core.key_functions import KeyFunction
from swr.core.signatures import signature_of
from swr.core.template import Template
from swr.errors import ConfigurationError
from swr.policy import tag_names

# The prefix of a tag that represents a URL on one host.
URL_ON_HOST: Final = "host:"
_REMEMBERED: Final = 4096
_LONGEST_REMEMBERED: Final = 512


def bound_to(
    where: str, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> inspect.BoundArguments:
    """Return the arguments of a call by name, defaults filled in.

    Parameters:
        where: the function's name, for errors.

    Raises:
        TypeError: the function does not take these arguments.
    """
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{where}() {error}") from None
    bound.apply_defaults()
    return bound


def _where(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


@functools.lru_cache(maxsize=1024)
def _shared(types: tuple[type, ...]) -> tuple[type, ...]:
    """Return one tuple object for equal types, because very many remembered calls may refer to it."""
    return types


class CallKeys:
    """The making of keys and tags from the arguments of one function.

    Parameters:
        function: the function whose calls are keyed.
        template: the key template, or None: a key is then made of the function's name and all arguments.
        tags: tag templates.
        ignore: parameters that are left out of the key.
        signature: of the calls; None: the function's own.
        key: a function that makes the key instead of a template.

    Raises:
        ConfigurationError: a slot or an ignored name is not a parameter, or a parameter is neither named in the
            template nor ignored.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        template: str | None = None,
        tags: Iterable[str] = (),
        ignore: Iterable[str] = (),
        signature: inspect.Signature | None = None,
        key: Callable[..., Any] | None = None,
    ) -> None:
        if isinstance(ignore, str):
            raise ConfigurationError(f"ignore={ignore!r} is one string: give a tuple, ({ignore!r},)")
        self._where = where = _where(function)
        self._signature = signature = signature or signature_of(function)
        parameters = list(signature.parameters)
        ignored = frozenset(ignore)
        called = "key template" if key is None else "key function"
        if key is not None:
            if template is not None:
                raise ConfigurationError(f"{where} has the key template {template!r} and key={key!r}: give one of them")
            self._key: Template = KeyFunction(key, parameters, ignored, where)
        elif template is None:
            kept = [name for name in parameters if name not in ignored]
            text = ":".join([where.replace("{", "{{").replace("}", "}}"), *(f"{name}={{{name}}}" for name in kept)])
            self._key = Template(text, "default key", where)
        else:
            self._key = Template(template, "key", where)
        self._tags = [Template(tag, "tags", where) for tag in tag_names(tags)]
        named = self._key.names
        for slot in {*named, *ignored, *(name for tag in self._tags for name in tag.names)}:
            if slot not in parameters:
                raise ConfigurationError(f"{where} has no parameter {slot!r}: it has {', '.join(parameters) or 'none'}")
        missing = [name for name in parameters if name not in named and name not in ignored]
        if missing:
            raise ConfigurationError(
                f"the {called} {key or template!r} of {where} leaves out {', '.join(missing)}: two calls that differ "
                f"only there would share an answer. Name each in it, or list it in ignore="
            )
        self.fixed_tags = tuple(tag.text for tag in self._tags) if not any(t.names for t in self._tags) else None
        self._watch = Watch(where, self._key, self._tags)
        defaults = {type(parameter.default) for parameter in signature.parameters.values()}
        # Plain arguments are immutable, so a load gets them without copies.
        can_change = bool(self._watch) and key is None
        self._may_be_plain = not can_change and defaults <= {*PLAIN, type(inspect.Parameter.empty)}
        kinds = {parameter.kind for parameter in signature.parameters.values()}
        # A call with only positional arguments skips binding, which takes as long as the rest of making a key.
        self._positional = parameters if kinds <= _BY_POSITION else None
        self.remembered: dict[tuple[Any, ...], tuple[str, tuple[type, ...]]] = {}

    @property
    def template(self) -> Template:
        """The key template, given or made."""
        return self._key

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters of the function's calls, by name."""
        return self._signature.parameters

    def key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Return the key of a call.

        Raises:
            TypeError: the function does not take these arguments.
            ConfigurationError: an argument cannot be part of a key.
        """
        call, values = args, args
        if kwargs:
            call, values = (*args, _KEYWORDS, *kwargs.items()), (*args, *kwargs.values())
        try:
            key, types = self.remembered[call]
            if not types or types == tuple(map(type, values)):
                return key
        except (KeyError, TypeError):
            pass
        key = self._key.fill(self.bind(args, kwargs))
        own_types = self.types_of(values, key)
        if own_types is not None:
            if len(self.remembered) >= _REMEMBERED:
                self.remembered.clear()
            self.remembered[call] = (key, own_types)
        return key

    def types_of(self, values: tuple[Any, ...], key: str) -> tuple[type, ...] | None:
        """Return the types of a call's arguments, which distinguish equal arguments such as `1` and `True`.

        The result is empty if all are strings, because a value that equals a string gets the same key. None: the call
        cannot be remembered.
        """
        types = tuple(map(type, values))
        if len(key) > _LONGEST_REMEMBERED or not self._key.is_pure or not PLAIN.issuperset(types):
            return None
        return () if set(types) <= {str} else _shared(types)

    @property
    def tag_templates(self) -> list[str]:
        """The tag templates, as text."""
        return [tag.text for tag in self._tags]

    def tags(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, ...]:
        """Return the tags of a call, filled as f-strings would be."""
        if self.fixed_tags is not None:
            return self.fixed_tags
        values = self.bind(args, kwargs)
        return tuple(tag.fill_plain(values) for tag in self._tags)

    def keep(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Return the arguments as they are now, for a load that runs later.

        Raises:
            ConfigurationError: an argument that is part of the key cannot be copied.
        """
        if self._may_be_plain and PLAIN.issuperset(map(type, (*args, *kwargs.values()) if kwargs else args)):
            return Arguments(args, kwargs)
        return WatchedArguments(self._watch, self._signature, self.bind(args, kwargs))

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return every parameter's value for a call, defaults filled in."""
        if not kwargs and self._positional is not None and len(args) == len(self._positional):
            return dict(zip(self._positional, args, strict=True))
        return bound_to(self._where, self._signature, args, kwargs).arguments


_KEYWORDS: Final = object()
_BY_POSITION: Final = frozenset({inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD})


# Printable ASCII except `%`, `{` and `}`, which encoding would not change. The match takes less time than encoding.
_AS_IT_IS: Final = re.compile(r"[ -$&-z|~]{1,200}")


def storage_name(key: str) -> str:
    """Return the name of `key` in a store: safe inside a Redis hash tag, at most 200 bytes.

    Braces are percent-encoded, because a key such as `}x` would put an entry and its lease into two hash slots.
    A longer key becomes a digest; the full key is in the frame, and every read compares it.
    """
    if _AS_IT_IS.fullmatch(key):
        return key
    if not key:
        # Redis ignores an empty hash tag. No other key is encoded as "%".
        return "%"
    name = quote(key, safe="!\"#$&'()*+,/:;<=>?@[]^`|~\\ ", errors="surrogatepass")
    if len(name) <= 200:
        return name
    return "%%" + hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()


def one_line(text: str) -> str:
    """Return text, such as a key that contains a client's input, with all unprintable characters escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


@functools.lru_cache(maxsize=1024)
def loader_digest(template: str) -> str:
    """Return the digest by which entries name the loader with this key template.

    Loaders with equal digests are invalidated together.
    """
    return hashlib.blake2b(template.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
