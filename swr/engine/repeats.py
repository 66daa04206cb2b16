"""Invalidations that swr repeats at the end of a block, because the transaction in the block commits only there."""

from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Self

from swr.engine.carrying_on import carry_on
from swr.stores.tag_versions import Name

# A function that invalidates keys or tags.
Invalidate = Callable[..., Awaitable[None]]

_block: ContextVar["Repeats | None"] = ContextVar("swr_invalidations", default=None)


class Repeats:
    """An `async with` block that repeats, at its end, the invalidations of this task and of tasks that it started.

    Parameters:
        owner: the engine whose invalidations are repeated; compared by identity.
    """

    def __init__(self, owner: object) -> None:
        self._owner = owner
        self._invalidations: dict[tuple[Invalidate, Name], None] = {}
        # By the key of each stored value: a function that invalidates the key, and one that tells whether the key still
        # has the value.
        self._values: dict[str, tuple[Invalidate, Callable[[], Awaitable[bool]]]] = {}
        self._outer: Repeats | None = None
        self._has_ended = False
        self._has_failed = False
        self._token: Token[Repeats | None]

    async def __aenter__(self) -> Self:
        """Begin to note invalidations."""
        self.begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Repeat the invalidations, even after a failure: a block that fails may have committed anyway."""
        self.end()
        if error is not None:
            self.fail()
        await self.repeat()

    def begin(self) -> None:
        """Begin to note the invalidations that are made in this task's or thread's context."""
        self._outer = _block.get()
        self._token = _block.set(self)

    def end(self) -> None:
        """Stop noting invalidations."""
        self._has_ended = True
        # If a generator contains the block, the task that closes it may not be the task that began it.
        with suppress(ValueError):
            _block.reset(self._token)

    async def repeat(self) -> None:
        """Repeat the noted invalidations."""
        names: dict[Invalidate, list[Name]] = {}

        async def check_values() -> None:
            for key, (invalidate, has_value) in self._values.items():
                # A value stays if nothing has replaced it since. A block that fails may have stored a value that it has
                # not committed.
                if self._has_failed or not await has_value():
                    self._invalidations[invalidate, key] = None
            for invalidate, name in self._invalidations:
                names.setdefault(invalidate, []).append(name)

        await carry_on(lambda invalidate: invalidate(*names[invalidate]), names, check_values)

    def fail(self) -> None:
        """End the block as if it had raised an exception: swr invalidates the values that it has stored."""
        self._has_failed = True

    def forget(self, names: Collection[Name]) -> None:
        """Do not repeat the invalidations of these keys and tags, because newer entries are stored already."""
        self._invalidations = {noted: None for noted in self._invalidations if noted[1] not in names}

    def note(self, owner: object, invalidate: Invalidate, *names: Name) -> None:
        """Note invalidations in this block, and in the blocks around it."""
        if owner is self._owner and not self._has_ended:
            self._invalidations.update(((invalidate, name), None) for name in names)
        if self._outer is not None:
            self._outer.note(owner, invalidate, *names)

    def note_value(
        self,
        owner: object,
        invalidate: Invalidate,
        key: str,
        has_value: Callable[[], Awaitable[bool]],
    ) -> None:
        """Note a stored value instead of an earlier invalidation of its key, in this block and those around it."""
        if owner is self._owner and not self._has_ended:
            self._invalidations.pop((invalidate, key), None)
            self._values[key] = invalidate, has_value
        if self._outer is not None:
            self._outer.note_value(owner, invalidate, key, has_value)


def note(owner: object, invalidate: Invalidate, *names: Name) -> None:
    """Repeat `invalidate(*names)` at the end of the block that the caller is in, if there is one."""
    block = _block.get()
    if block is not None:
        block.note(owner, invalidate, *names)


def note_value(owner: object, invalidate: Invalidate, key: str, has_value: Callable[[], Awaitable[bool]]) -> None:
    """Invalidate `key` at the end of the block that the caller is in, if any, unless it still has the value."""
    block = _block.get()
    if block is not None:
        block.note_value(owner, invalidate, key, has_value)
