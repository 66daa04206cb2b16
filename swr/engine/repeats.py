"""Invalidations that are made once more when a block ends, because what they are about is committed only there."""

from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Self

import anyio

_block: ContextVar["Repeats | None"] = ContextVar("swr_invalidations", default=None)


class Repeats:
    """A block, `async with`, that repeats at its end what was invalidated inside it, by this task or one it started.

    Parameters:
        owner: whose invalidations are repeated; compared by identity.
    """

    def __init__(self, owner: object) -> None:
        self._owner = owner
        self._invalidations: dict[tuple[Callable[[str], Awaitable[None]], str], None] = {}
        self._outer: Repeats | None = None
        self._has_ended = False
        self._token: Token[Repeats | None]

    async def __aenter__(self) -> Self:
        """Begin to note invalidations."""
        self._outer = _block.get()
        self._token = _block.set(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Invalidate once more, whatever ended the block: who failed may have committed all the same."""
        self._has_ended = True
        # A generator may be closed by another task than began it.
        with suppress(ValueError):
            _block.reset(self._token)
        with anyio.CancelScope(shield=True):
            for invalidate, name in self._invalidations:
                await invalidate(name)

    def forget(self, names: Collection[str]) -> None:
        """Do not repeat the invalidations of these keys and tags: something newer is stored already."""
        self._invalidations = {noted: None for noted in self._invalidations if noted[1] not in names}

    def note(self, owner: object, invalidate: Callable[[str], Awaitable[None]], name: str) -> None:
        """Note one invalidation, in the blocks around this one too."""
        if owner is self._owner and not self._has_ended:
            self._invalidations[invalidate, name] = None
        if self._outer is not None:
            self._outer.note(owner, invalidate, name)


def note(owner: object, invalidate: Callable[[str], Awaitable[None]], name: str) -> None:
    """Have `invalidate(name)` called once more at the end of the block that the caller is in, if any."""
    block = _block.get()
    if block is not None:
        block.note(owner, invalidate, name)
