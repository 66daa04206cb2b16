"""Calls of loaders, including those that ask for a `LoadContext`, and what swr does with their answers."""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import anyio

from swr.core.signatures import annotations_of, signature_of
from swr.engine.engine import Engine
from swr.engine.entries import Value
from swr.engine.load import Load
from swr.entry import Entry
from swr.errors import ConfigurationError, LoadTimeout
from swr.loaders.context import NOT_MODIFIED, Fresh, LoadContext
from swr.loaders.values import refuse_unshareable
from swr.policy import Policy, Timeout
from swr.stores.threads import deep_copy

# Returns the tags of a value. It gets the value, and those arguments of the loader that its parameters name.
TagsOf = Callable[..., Iterable[str]]
# Returns whether a value is stored.
StoreIf = Callable[[Any], object]


class Asking:
    """A loader that gets a `LoadContext` from the cache.

    Parameters:
        function: the loader.
        name: the parameter that is annotated with `LoadContext`.

    `signature` is the signature for callers, without that parameter.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function = function
        self._name = name
        self._whole = whole = signature_of(function)
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
    """Return `function` as a loader that asks for a `LoadContext`; None: it does not ask for one.

    Raises:
        ConfigurationError: several parameters ask for a context, or one such as `*args` does.
    """
    target: Any = function
    while isinstance(target, functools.partial):
        target = target.func
    if not inspect.isroutine(target):
        # The `__call__` method of an object has the annotations.
        target = getattr(type(target), "__call__", None)  # noqa: B004  # the method itself is wanted
    # Most loaders that are defined where they are used have no annotations. They need no closer look.
    if not annotations_of(target).keys() - {"return"}:
        return None
    names = getattr(inspect.unwrap(target), "__globals__", {})
    parameters = signature_of(function).parameters.values()
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
            # The type is imported only for type checkers, or defined further down.
            return text.partition("[")[0].rpartition(".")[2].strip() == "LoadContext"
    # `LoadContext | None` and `Annotated[LoadContext, ...]` count, too.
    inner = typing.get_args(annotation) if typing.get_origin(annotation) in _WRAPPED else (annotation,)
    return any(LoadContext in (kind, typing.get_origin(kind)) for kind in inner)


async def call_loader(engine: Engine, function: Callable[[], Any], runs_in_thread: bool) -> Any:
    """Call a loader, and return its answer. A plain `def` runs in one of the cache's threads."""
    if runs_in_thread:
        answer = await engine.runtime.threads.run(name_of(function), function)
    else:
        answer = function()
    if isinstance(answer, (types.GeneratorType, types.AsyncGeneratorType)):
        raise ConfigurationError(f"{function!r} is a generator: a loader returns its whole value, such as a list")
    return await answer if inspect.isawaitable(answer) else answer


def name_of(call: Any) -> str:
    """Return the name of a loader, also for a partial that calls it."""
    while isinstance(call, functools.partial):
        call = call.func
    if isinstance(owner := getattr(call, "__self__", None), Asking):
        return name_of(owner.function)
    named = call if hasattr(call, "__qualname__") else type(call)
    return f"{named.__module__}.{named.__qualname__}"


async def call_past(
    engine: Engine, where: str, function: Callable[[], Any], runs_in_thread: bool, hard_timeout: Timeout
) -> Any:
    """Call a loader as if there were no cache, and return its value.

    Parameters:
        where: the name of the loader.
        hard_timeout: "auto" is not a limit here: the call holds no lease that other loads wait for.

    Raises:
        Exception: whatever the loader raised.
        LoadTimeout: the loader ran longer than `hard_timeout`.
        ConfigurationError: the loader answered NOT_MODIFIED.
    """
    seconds = hard_timeout if isinstance(hard_timeout, float) else None
    with anyio.move_on_after(seconds) as scope:
        answer = await call_loader(engine, function, runs_in_thread)
        return plain_value(where, answer)
    assert scope.cancelled_caught
    assert seconds is not None
    raise LoadTimeout(where, seconds)


def plain_value(where: str, answer: Any) -> Any:
    """Return the value in the answer of a loader that got no last value.

    Parameters:
        where: the name of the loader.

    Raises:
        ConfigurationError: the answer is NOT_MODIFIED.
    """
    if answer is NOT_MODIFIED:
        raise _has_no_last(where)
    return answer.value if isinstance(answer, Fresh) else answer


def _has_no_last(where: str) -> ConfigurationError:
    return ConfigurationError(
        f"the loader of {where!r} answered NOT_MODIFIED, and there is no last value: "
        f"it may only if LoadContext.has_value is true, because a validator alone does not show that a value is stored"
    )


async def last_of(engine: Engine, load: Load, *, asks: bool) -> Entry[Any] | None:
    """Return the stored entry of the key that is being loaded, or None if there is none or it was invalidated.

    Parameters:
        asks: whether the loader asks for a `LoadContext`, so that it is worth reading the store if necessary.
    """
    flight = load.flight
    entry = flight.entry
    if asks and (flight.newer_than is not None or (entry is None and flight.forced)):
        # The caller of an explicit refresh has not read the store.
        entry = await engine.store.read(flight.key, flight.job.codec)
    if entry is None or entry.absent or not engine.store.tag_versions.admits_entry(entry):
        return None
    return entry


async def context_of(engine: Engine, last: Entry[Any] | None, *, copies: bool) -> LoadContext[Any]:
    """Return the context of a load, with the last value or a copy of it."""
    if last is None:
        return LoadContext()
    value = await deep_copy(last.value) if copies else last.value
    return LoadContext(value, max(0.0, engine.clock() - last.created_at), last.validator, True)


def is_stored(store_if: StoreIf | None, value: Any) -> bool:
    """Return whether `store_if` says that a value is stored.

    Raises:
        ConfigurationError: the answer of `store_if` would have to be awaited.
        Exception: whatever `store_if` raises.
    """
    if store_if is None:
        return True
    answer = store_if(value)
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise ConfigurationError(f"store_if={store_if!r} returned an awaitable, which swr does not await: give a def")
    return bool(answer)


def value_of(
    answer: Any,
    policy: Policy,
    where: str,
    tags: Callable[[Any], tuple[str, ...]] | None = None,
    store_if: StoreIf | None = None,
) -> Value:
    """Return the value to store, with its options, for a caller that gives a loader's answer itself.

    Parameters:
        policy: the policy of the decorator.
        where: names the key in errors.
        tags: returns the tags of a value; None: the policy has them.
        store_if: returns whether a value is stored; None: each is.

    Raises:
        ConfigurationError: `answer` is not a value.
    """
    if answer is NOT_MODIFIED or inspect.isawaitable(answer):
        raise ConfigurationError(f"{answer!r} is not a value for {where}: give what the loader would return, awaited")
    return _value_of(answer, policy, where, tags, store_if)


def _value_of(
    answer: Any, policy: Policy, where: str, tags: Callable[[Any], tuple[str, ...]] | None, store_if: StoreIf | None
) -> Value:
    value = answer.value if isinstance(answer, Fresh) else answer
    refuse_unshareable(value, where)
    if not is_stored(store_if, value):
        return Value(value, policy, is_stored=False)
    if tags is not None and not (isinstance(answer, Fresh) and answer.has_tags):
        policy = policy.tagged(tags(value))
    if isinstance(answer, Fresh):
        return Value(value, answer.over(policy), answer.validator)
    return Value(value, policy)


async def store_answer(
    load: Load,
    answer: Any,
    policy: Policy,
    last: Entry[Any] | None,
    tags: Callable[[Any], tuple[str, ...]] | None = None,
    store_if: StoreIf | None = None,
) -> None:
    """Store the answer of a loader.

    Parameters:
        policy: the policy of the decorator.
        last: the last entry, which NOT_MODIFIED stores again; or None.
        tags: returns the tags of a value; None: the policy has them.
        store_if: returns whether a new value is stored; None: each is.

    Raises:
        ConfigurationError: the answer is NOT_MODIFIED and there is no last value, or the tags are malformed.
        CodecError: the value cannot be stored.
    """
    if answer is NOT_MODIFIED:
        if last is None:
            raise _has_no_last(load.flight.key)
        await load.store(last.value, policy.tagged(last.tags), last.validator)
    else:
        value = _value_of(answer, policy, repr(load.flight.key), tags, store_if)
        await load.store(value.value, value.policy, value.validator, is_stored=value.is_stored)


def tags_or_function(tags: Sequence[str] | TagsOf) -> tuple[Sequence[str], TagsOf | None]:
    """Return the tag templates of a decorator, or no templates and the function that makes tags from a value.

    Raises:
        ConfigurationError: the function would have to be awaited.
    """
    if not callable(tags):
        return tags, None
    if inspect.iscoroutinefunction(tags):
        raise ConfigurationError(f"tags={tags!r} is async, and swr would not await it: give a def or a lambda")
    return (), tags
