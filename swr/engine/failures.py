"""One failure for many callers: each raises an exception of its own, and what is kept for later holds no frames.

A raised exception collects the frames that it passes. If a thousand callers raised the same one, its traceback would
have the frames of all of them, and each would log that traceback.
"""

import copy
import functools
import sys
from collections.abc import Callable, Iterator
from types import GetSetDescriptorType, MemberDescriptorType, TracebackType
from typing import Any, Final

from swr.errors import SWRError

# Of `type.__flags__`: a class of Python code, as a rule.
_HEAP_TYPE: Final = 1 << 9
_MISSING: Final = object()
# A caller gets so many members of a group as exceptions of its own: to copy a hundred for each of a thousand callers
# would hold the event loop. Who raises a member alone raises the first one.
_MOST_MEMBERS: Final = 8
# What runs a load, up to the frames that say something of it.
_RUNNERS: Final = frozenset(("swr", "anyio", "asyncio", "trio", "outcome", "concurrent", "threading", "contextvars"))


class _WithReference(Exception):
    """As a class of Python code is, which adds room for a weak reference."""


_REFERENCE: Final = _WithReference.__basicsize__ - Exception.__basicsize__
_SLOT: Final = tuple.__itemsize__


def another(error: BaseException, most: int = sys.maxsize) -> BaseException | None:
    """Return an exception equal to `error`, without its traceback and what it was raised from.

    None: it holds something that cannot be copied.

    Parameters:
        most: how many members of a group are copied; the others are the same as those of `error`.
    """
    from_parts = functools.partial(_from_parts, most=most)
    for way in (from_parts,) if isinstance(error, BaseExceptionGroup) else (from_parts, _as_pickled):
        try:
            copied = way(error)
            if _says_the_same(copied, error):
                if notes := getattr(copied, "__notes__", None):
                    # Each caller may add its own.
                    _put(copied, "__notes__", list(notes))
                return copied
        except Exception:
            # Its class makes exceptions in a way of its own.
            continue
    return None


def _from_parts(error: BaseException, most: int) -> BaseException:
    """Return an exception of the same parts, without calling the code of its class."""
    kind, args = type(error), error.args
    if isinstance(error, BaseExceptionGroup):
        # A caller may raise one of the group alone.
        members = error.exceptions
        args = error.message, [*(_copied(member, most) for member in members[:most]), *members[most:]]
    builtin = next(base for base in kind.__mro__ if not base.__flags__ & _HEAP_TYPE)
    slots = sum(bool(part.__objclass__.__flags__ & _HEAP_TYPE) for part in _parts_of(kind))
    if kind.__basicsize__ > builtin.__basicsize__ + slots * _SLOT + (kind.__weakrefoffset__ and _REFERENCE):
        raise TypeError("it has state of C code")
    # Not by calling the class: its `__init__` may take other arguments than those that the exception keeps.
    copied: BaseException = builtin.__new__(kind, *args)
    for part in _parts_of(kind):
        value = _read(part, error)
        if _read(part, copied) is not value is not _MISSING:
            try:
                part.__set__(copied, value)
            except (AttributeError, TypeError):
                # It is for reading alone: the arguments have set it, or the comparison finds that they have not.
                continue
    _put(copied, "args", args)
    copied.__dict__.update(error.__dict__)
    return copied


def _as_pickled(error: BaseException) -> BaseException:
    """Return what the class itself makes of an exception's state, as pickling does."""
    copied = copy.copy(error)
    if copied is error or str(copied) != str(error):
        raise TypeError(f"{error!r} has no copy")
    _put(copied, "args", error.args)
    return copied


def _copied(error: BaseException, most: int) -> BaseException:
    """Return another `error`.

    Raises:
        TypeError: it cannot be copied.
    """
    copied = another(error, most)
    if copied is None:
        raise TypeError(f"{error!r} cannot be copied")
    return copied


def _find_parts(kind: Any) -> tuple[Any, ...]:
    """Return what an exception of this class holds beside its `args` and its `__dict__`: slots, and state of C code."""
    return tuple(
        part
        for base in kind.__mro__
        for name, part in vars(base).items()
        if isinstance(part, (MemberDescriptorType, GetSetDescriptorType)) and name != "args" and name[:2] != "__"
    )


_parts_of: Final[Callable[[Any], tuple[Any, ...]]] = functools.lru_cache(maxsize=256)(_find_parts)


def _read(part: Any, error: BaseException) -> Any:
    try:
        return part.__get__(error)
    except AttributeError:
        return _MISSING


def _put(error: BaseException, name: str, value: object) -> None:
    """Set an attribute, even if the class lets nobody do so, as a frozen dataclass does."""
    BaseException.__setattr__(error, name, value)


def _says_the_same(copied: BaseException, error: BaseException) -> bool:
    """Return whether nothing of `error` is lost in its copy."""
    if type(copied) is not type(error) or copied.__dict__ != error.__dict__:
        return False
    if isinstance(copied, BaseExceptionGroup) and isinstance(error, BaseExceptionGroup):
        # The members of a group are copies themselves.
        return len(copied.exceptions) == len(error.exceptions)
    return copied.args == error.args and all(
        (mine := _read(part, copied)) is (own := _read(part, error)) or mine == own for part in _parts_of(type(error))
    )


def for_caller(error: BaseException, traceback: TracebackType | None, *, is_last: bool) -> BaseException:
    """Return what one of several callers raises for a load that has failed.

    Parameters:
        error: the failure.
        traceback: of the load.
        is_last: no other caller raises it after this one, which gets the failure itself.
    """
    copied = None if is_last else another(error, _MOST_MEMBERS)
    if copied is None:
        return error.with_traceback(traceback)
    for each, original in _pairs(copied, error):
        if each is original:
            continue
        for name in ("__cause__", "__context__", "__suppress_context__", "__traceback__"):
            _put(each, name, getattr(original, name))
    return copied.with_traceback(traceback)


def _pairs(copied: BaseException, error: BaseException) -> Iterator[tuple[BaseException, BaseException]]:
    """Yield a copy and its original, and those of the members of a group."""
    yield copied, error
    if isinstance(copied, BaseExceptionGroup) and isinstance(error, BaseExceptionGroup):
        for each, original in zip(copied.exceptions, error.exceptions, strict=True):
            yield from _pairs(each, original)


def of_loader(traceback: TracebackType | None) -> TracebackType | None:
    """Return the part of a traceback that begins in the application; all of it, if no part does.

    Each caller logs it, and what runs the load is longer than most loaders.
    """
    part = traceback
    while part is not None and part.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _RUNNERS:
        part = part.tb_next
    return part or traceback


def for_later(error: BaseException) -> BaseException:
    """Return an exception that says what `error` says and keeps nothing alive that the load worked with."""
    copied = another(error)
    return SWRError(text_of(error)) if copied is None else copied


def text_of(error: BaseException | None) -> str:
    """Return the name of an exception's class, and what it says."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        # The class is an application's, and so is its `__str__`.
        return type(error).__name__
