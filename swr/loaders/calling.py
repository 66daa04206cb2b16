"""A loader that asks for a `LoadContext`, and what becomes of what a loader answers."""

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, Final

from swr.engine.engine import Engine
from swr.engine.load import Load
from swr.entry import Entry
from swr.errors import ConfigurationError
from swr.loaders.context import NOT_MODIFIED, Fresh, LoadContext
from swr.policy import Policy
from swr.stores.threads import deep_copy


class Asking:
    """A loader one of whose parameters is filled in by the cache.

    Parameters:
        function: the loader.
        name: the parameter that is annotated with `LoadContext`.

    `function` is the loader, and `signature` what is left for its callers.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function = function
        self._name = name
        self._whole = whole = inspect.signature(function)
        self.signature = whole.replace(
            parameters=[parameter for parameter in whole.parameters.values() if parameter.name != name]
        )

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any], context: LoadContext[Any]) -> Any:
        """Call the loader with its caller's arguments and `context`."""
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        whole = inspect.BoundArguments(self._whole, {**bound.arguments, self._name: context})
        return self.function(*whole.args, **whole.kwargs)


_WRAPPED: Final = (typing.Union, types.UnionType, typing.Annotated)


def asking(function: Callable[..., Any]) -> Asking | None:
    """Return `function` as one that asks for a `LoadContext`; None: it does not.

    Raises:
        ConfigurationError: it asks twice, or where one context cannot be given.
    """
    target: Any = function
    while isinstance(target, functools.partial):
        target = target.func
    if not inspect.isroutine(target):
        # Not whether it can be called, but the method, for its annotations.
        target = getattr(type(target), "__call__", None)  # noqa: B004
    # Most loaders that are made where they are used have no annotations, and are not looked at more closely.
    if not set(getattr(target, "__annotations__", ())) - {"return"}:
        return None
    names = getattr(inspect.unwrap(target), "__globals__", {})
    parameters = inspect.signature(function).parameters.values()
    found = [parameter for parameter in parameters if _is_context(parameter.annotation, names)]
    if not found:
        return None
    where = f"{target.__module__}.{target.__qualname__}"
    if len(found) > 1 or found[0].kind in (found[0].VAR_POSITIONAL, found[0].VAR_KEYWORD):
        raise ConfigurationError(
            f"{where} asks for a LoadContext with {', '.join(map(str, found))}: annotate one plain parameter with it"
        )
    return Asking(function, found[0].name)


def _is_context(annotation: Any, names: dict[str, Any]) -> bool:
    if isinstance(annotation, str):
        text = annotation
        try:
            annotation = eval(text, names)
        except Exception:
            # A type that is imported for type checkers alone, or defined further down.
            return text.partition("[")[0].rpartition(".")[2].strip() == "LoadContext"
    # Optional, or Annotated, it is one all the same.
    inner = typing.get_args(annotation) if typing.get_origin(annotation) in _WRAPPED else (annotation,)
    return any(LoadContext in (kind, typing.get_origin(kind)) for kind in inner)


async def call_loader(engine: Engine, function: Callable[[], Any], runs_in_thread: bool) -> Any:
    """Call a loader, a plain `def` in one of the cache's threads, and return what it answers."""
    if runs_in_thread:
        answer = await engine.runtime.threads.run(_name_of(function), function)
    else:
        answer = function()
    if isinstance(answer, (types.GeneratorType, types.AsyncGeneratorType)):
        raise ConfigurationError(f"{function!r} is a generator: a loader returns its value whole, a list for one")
    return await answer if inspect.isawaitable(answer) else answer


def _name_of(call: Any) -> str:
    """Return the name of the loader that a partial function calls."""
    while isinstance(call, functools.partial):
        call = call.func
    if isinstance(owner := getattr(call, "__self__", None), Asking):
        return _name_of(owner.function)
    named = call if hasattr(call, "__qualname__") else type(call)
    return f"{named.__module__}.{named.__qualname__}"


async def last_of(engine: Engine, load: Load, *, asks: bool) -> Entry[Any] | None:
    """Return what is stored so far under the key that is loaded, unless it was invalidated.

    Parameters:
        asks: whether the loader wants to know, so that the store is asked if need be.
    """
    flight = load.flight
    entry = flight.entry
    if asks and (flight.newer_than is not None or (entry is None and flight.forced)):
        # Whoever asked for a refresh had no reason to look.
        entry = await engine.store.read(flight.key, flight.job.codec)
    if entry is None or entry.absent or not engine.store.tag_versions.admits(entry.tag_version, entry.tags):
        return None
    return entry


async def context_of(engine: Engine, last: Entry[Any] | None, *, copies: bool) -> LoadContext[Any]:
    """Return what a loader is told of the last value, of which it may get a copy."""
    if last is None:
        return LoadContext()
    value = await deep_copy(last.value) if copies else last.value
    return LoadContext(value, max(0.0, engine.clock() - last.created_at), last.validator, True)


async def store_answer(load: Load, answer: Any, policy: Policy, last: Entry[Any] | None) -> None:
    """Store what a loader has answered.

    Parameters:
        policy: of the decorator.
        last: what NOT_MODIFIED is about.

    Raises:
        ConfigurationError: NOT_MODIFIED, and there is no last value.
        CodecError: the value cannot be stored.
    """
    if answer is NOT_MODIFIED:
        if last is None:
            raise ConfigurationError(
                f"the loader of {load.flight.key!r} answered NOT_MODIFIED, and there is no last value: "
                f"it may only if LoadContext.has_value, for a validator alone says nothing about what is stored"
            )
        await load.store(last.value, policy.tagged(last.tags), last.validator)
    elif isinstance(answer, Fresh):
        await load.store(answer.value, answer.over(policy), answer.validator)
    else:
        await load.store(answer, policy)
