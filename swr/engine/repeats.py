"""Invalidations that are made once more when a block ends, because what they are about is committed only there."""

from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Self

import anyio

from swr.engine.carrying_on import carry_on
from swr.stores.tag_versions import Name

# Invalidates keys or tags.
Invalidate = Callable[..., Awaitable[None]]

_block: ContextVar["Repeats | None"] = ContextVar("swr_invalidations", default=None)


class Repeats:
    """A block, `async with`, that repeats at its end what was invalidated inside it, by this task or one it started.

    Parameters:
        owner: whose invalidations are repeated; compared by identity.
    """

    def __init__(self, owner: object) -> None:
        self._owner = owner
        self._invalidations: dict[tuple[Invalidate, Name], None] = {}
        # The values that were stored, by key: how to invalidate it, and whether it still has the value.
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
        """Invalidate once more, whatever ended the block: who failed may have committed anyway."""
        self.end()
        if error is not None:
            self.fail()
        await self.repeat()

    def begin(self) -> None:
        """Begin to note the invalidations that are made in this task's or thread's context."""
        self._outer = _block.get()
        self._token = _block.set(self)

    def end(self) -> None:
        """Note no more."""
        self._has_ended = True
        # A generator may be closed by another task than began it.
        with suppress(ValueError):
            _block.reset(self._token)

    async def repeat(self) -> None:
        """Make the invalidations that were noted once more."""
        with anyio.CancelScope(shield=True):
            for key, (invalidate, has_value) in self._values.items():
                # The value counts if nothing has come in between. A block that fails may have stored what it has not
                # committed.
                if self._has_failed or not await has_value():
                    self._invalidations[invalidate, key] = None
            names: dict[Invalidate, list[Name]] = {}
            for invalidate, name in self._invalidations:
                names.setdefault(invalidate, []).append(name)
            await carry_on(lambda invalidate: invalidate(*names[invalidate]), names)

    def fail(self) -> None:
        """End the block as if it had raised: values stored in it do not count."""
        self._has_failed = True

    def forget(self, names: Collection[Name]) -> None:
        """Do not repeat the invalidations of these keys and tags: something newer is stored already."""
        self._invalidations = {noted: None for noted in self._invalidations if noted[1] not in names}

    def note(self, owner: object, invalidate: Invalidate, *names: Name) -> None:
        """Note invalidations, in the blocks around this one too."""
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
        """Note that a value was stored, instead of any invalidation of its key before, in the blocks around too."""
        if owner is self._owner and not self._has_ended:
            self._invalidations.pop((invalidate, key), None)
            self._values[key] = invalidate, has_value
        if self._outer is not None:
            self._outer.note_value(owner, invalidate, key, has_value)


def note(owner: object, invalidate: Invalidate, *names: Name) -> None:
    """Call `invalidate(*names)` once more at the end of the block that the caller is in, if any."""
    block = _block.get()
    if block is not None:
        block.note(owner, invalidate, *names)


def note_value(owner: object, invalidate: Invalidate, key: str, has_value: Callable[[], Awaitable[bool]]) -> None:
    """Invalidate `key` at the end of the block that the caller is in, if any, unless it still has the value."""
    block = _block.get()
    if block is not None:
        block.note_value(owner, invalidate, key, has_value)
