"""One failure for many callers: all but one raise a copy, and failures that are kept for later hold no frames.

A raised exception collects the frames that it passes. If a thousand callers raised the same exception, its traceback
would have the frames of all callers, and each caller would log that traceback.
"""

import copy
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from types import GetSetDescriptorType, MemberDescriptorType, TracebackType
from typing import Any, Final

from swr.errors import SWRError

# The flag in `type.__flags__` that, as a rule, marks a class that Python code defines.
_HEAP_TYPE: Final = 1 << 9
_MISSING: Final = object()
# Number of exceptions that each of many callers gets in full: the failure, members of its groups, causes and contexts.
# A hundred copies for each of a thousand callers would block the event loop, and each caller logs all of its copies.
_MOST_TOLD: Final = 5
# Number of frames that are kept of one traceback. Endless recursion leaves a thousand.
_MOST_FRAMES: Final = 64
_LEFT_OUT: Final = (
    "swr: this is a shortened copy, without some tracebacks and causes; "
    "one of the callers that waited for this load raises the whole failure"
)
# Packages whose code runs a load. Their frames at the beginning of a traceback say nothing about the failure.
_RUNNERS: Final = frozenset(("swr", "anyio", "asyncio", "trio", "outcome", "concurrent", "threading", "contextvars"))


class _WithReference(Exception):
    """An exception class written in Python, whose objects have room for a weak reference."""


_REFERENCE: Final = _WithReference.__basicsize__ - Exception.__basicsize__
_SLOT: Final = tuple.__itemsize__


# Returns the members that the copy of a group has.
_Members = Callable[[Sequence[BaseException]], list[BaseException]]


def _copies(members: Sequence[BaseException]) -> list[BaseException]:
    return [_copied(member, _copies) for member in members]


def another(error: BaseException, members: _Members = _copies) -> BaseException | None:
    """Return a copy of `error` without its traceback, cause and context, or None if it cannot be copied.

    Parameters:
        members: returns the members that the copy of a group has. Default: copies of all.
    """
    from_parts = functools.partial(_from_parts, members=members)
    for way in (from_parts,) if isinstance(error, BaseExceptionGroup) else (from_parts, _as_pickled):
        try:
            copied = way(error)
            if _says_the_same(copied, error):
                if notes := getattr(copied, "__notes__", None):
                    # This list is a copy, because each caller may add notes of its own.
                    _put(copied, "__notes__", list(notes))
                return copied
        except Exception:
            # The class does not support this way of copying.
            continue
    return None


def _from_parts(error: BaseException, members: _Members) -> BaseException:
    """Return a copy with the same arguments, slots and attributes, without a call of the class's own code."""
    kind, args = type(error), error.args
    if isinstance(error, BaseExceptionGroup):
        # A caller may raise a single member of the group, so each caller needs copies of the members, too.
        args = error.message, members(error.exceptions)
    builtin = next(base for base in kind.__mro__ if not base.__flags__ & _HEAP_TYPE)
    slots = sum(bool(part.__objclass__.__flags__ & _HEAP_TYPE) for part in _parts_of(kind))
    if kind.__basicsize__ > builtin.__basicsize__ + slots * _SLOT + (kind.__weakrefoffset__ and _REFERENCE):
        raise TypeError("it keeps state in C code")
    # This does not call the class, because its `__init__` may take other arguments than those in `args`.
    copied: BaseException = builtin.__new__(kind, *args)
    for part in _parts_of(kind):
        value = _read(part, error)
        if _read(part, copied) is not value is not _MISSING:
            try:
                part.__set__(copied, value)
            except (AttributeError, TypeError):
                # The attribute is read-only. If `args` has not set it either, `_says_the_same` finds the difference.
                continue
    _put(copied, "args", args)
    copied.__dict__.update(error.__dict__)
    return copied


def _as_pickled(error: BaseException) -> BaseException:
    """Return a copy that the class itself makes by its methods for pickling."""
    copied = copy.copy(error)
    if copied is error or str(copied) != str(error):
        raise TypeError(f"{error!r} has no copy")
    _put(copied, "args", error.args)
    return copied


def _copied(error: BaseException, members: _Members) -> BaseException:
    """Return a copy of `error`; see `another`.

    Raises:
        TypeError: it cannot be copied.
    """
    copied = another(error, members)
    if copied is None:
        raise TypeError(f"{error!r} cannot be copied")
    return copied


def _find_parts(kind: Any) -> tuple[Any, ...]:
    """Return the descriptors of a class's state outside of `args` and `__dict__`: slots, and attributes of C code."""
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
    """Set an attribute, even if the class forbids it, as a frozen dataclass does."""
    BaseException.__setattr__(error, name, value)


def _says_the_same(copied: BaseException, error: BaseException) -> bool:
    """Return whether the copy has the same class, arguments and attributes as `error`."""
    if type(copied) is not type(error) or copied.__dict__ != error.__dict__:
        return False
    if isinstance(copied, BaseExceptionGroup) and isinstance(error, BaseExceptionGroup):
        # The members are copies, too, and an exception is equal only to itself.
        return len(copied.exceptions) == len(error.exceptions)
    return copied.args == error.args and all(
        (mine := _read(part, copied)) is (own := _read(part, error)) or mine == own for part in _parts_of(type(error))
    )


def for_caller(error: BaseException, traceback: TracebackType | None, *, is_last: bool) -> BaseException:
    """Return the exception that one of several callers raises for a failed load.

    Parameters:
        error: the failure.
        traceback: the traceback of the load.
        is_last: whether this is the last caller, which raises `error` itself and no copy.
    """
    copied = None if is_last else another(error, _Copying().members)
    if copied is None:
        return error.with_traceback(traceback)
    for each, original in _pairs(copied, error):
        for name in ("__cause__", "__context__", "__suppress_context__", "__traceback__"):
            _put(each, name, getattr(original, name))
    return copied.with_traceback(traceback)


def _pairs(copied: BaseException, error: BaseException) -> Iterator[tuple[BaseException, BaseException]]:
    """Yield the copy with its original, and each copied member of a group with its original."""
    yield copied, error
    if isinstance(copied, BaseExceptionGroup) and isinstance(error, BaseExceptionGroup):
        for each, original in zip(copied.exceptions, error.exceptions, strict=True):
            if each is original:
                # The members from here on are originals, too.
                break
            yield from _pairs(each, original)


class _Copying:
    """A copier of the first members of groups, which keeps the other members as they are."""

    def __init__(self) -> None:
        self.left = _MOST_TOLD - 1

    def members(self, members: Sequence[BaseException]) -> list[BaseException]:
        """Return the members that the copy of a group has."""
        copies: list[BaseException] = []
        for member in members:
            if not self.left:
                break
            self.left -= 1
            copies.append(_copied(member, self.members))
        return [*copies, *members[len(copies) :]]


def shortened(
    error: BaseException, traceback: TracebackType | None
) -> tuple[BaseException, TracebackType | None] | None:
    """Return a shortened failure and its traceback, or None if the failure is short enough for all callers.

    All callers but one get copies of the shortened failure. It has all members of a group, but only the first
    exceptions have tracebacks, causes and contexts.
    """
    told = list(itertools.islice(_told(error), _MOST_TOLD + 1))
    short = _innermost(traceback)
    if len(told) <= _MOST_TOLD and short is traceback and all(_innermost(tb) is tb for tb in _tracebacks(told[1:])):
        return None
    copied = _Shortening().short(error)
    if copied is None:
        return None
    _put(copied, "__notes__", [*getattr(copied, "__notes__", ()), _LEFT_OUT])
    return copied, short


def _told(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions that a printed traceback shows: `error`, members of groups, causes and contexts."""
    waiting: list[BaseException | None] = [error]
    while waiting:
        if (each := waiting.pop()) is not None:
            yield each
            waiting.append(_reason(each))
            if isinstance(each, BaseExceptionGroup):
                waiting += reversed(each.exceptions)


def _tracebacks(errors: Sequence[BaseException]) -> list[TracebackType | None]:
    return [error.__traceback__ for error in errors]


def _reason(error: BaseException) -> BaseException | None:
    """Return the cause or context that a printed traceback shows for `error`, or None."""
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _innermost(traceback: TracebackType | None) -> TracebackType | None:
    """Return the last frames of a traceback, which are closest to the error."""
    first = last = traceback
    for _ in range(_MOST_FRAMES):
        if last is None:
            return traceback
        last = last.tb_next
    while first is not None and last is not None:
        first, last = first.tb_next, last.tb_next
    return first


class _Shortening:
    """A copier of a failure that keeps tracebacks, causes and contexts only for the first exceptions."""

    def __init__(self) -> None:
        self.left = _MOST_TOLD

    def short(self, error: BaseException) -> BaseException | None:
        """Return a shortened copy of `error`, or None if it cannot be copied."""
        self.left -= 1
        copied = another(error, self.members)
        if copied is not None:
            reason = _reason(error)
            told = None if reason is None or not self.left else self.short(reason)
            is_cause = error.__cause__ is not None
            _put(copied, "__cause__", told if is_cause else None)
            _put(copied, "__context__", told)
            _put(copied, "__suppress_context__", is_cause or error.__suppress_context__)
            _put(copied, "__traceback__", _innermost(error.__traceback__))
        return copied

    def members(self, members: Sequence[BaseException]) -> list[BaseException]:
        """Return copies of all members of a group, of which only the first keep tracebacks, causes and contexts."""
        copies: list[BaseException] = []
        for member in members:
            copied = self.short(member) if self.left else another(member)
            if copied is None:
                raise TypeError(f"{member!r} cannot be copied")
            copies.append(copied)
        return copies


def of_loader(traceback: TracebackType | None) -> TracebackType | None:
    """Return the traceback from the first frame of the application on, or all of it if it has no such frame.

    Each caller logs the traceback, and the frames of swr and the event loop often outnumber those of the loader.
    """
    part = traceback
    while part is not None and part.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _RUNNERS:
        part = part.tb_next
    return part or traceback


def for_later(error: BaseException) -> BaseException:
    """Return an exception with the message of `error` that keeps no objects of the load alive."""
    copied = another(error)
    return SWRError(text_of(error)) if copied is None else copied


def text_of(error: BaseException | None) -> str:
    """Return the name of an exception's class, and its message."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        # The `__str__` of an application's class may raise anything.
        return type(error).__name__
