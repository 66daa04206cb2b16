"""A dict that notes which of its items the app reads; for a request's scope and its state."""

import sys
from abc import abstractmethod
from collections.abc import Container, Iterator, MutableMapping
from types import FrameType
from typing import Any, Final, SupportsIndex

_MIXIN: Final = MutableMapping[str, Any]


class Noticing(dict[str, Any]):
    """A dict that notes which code reads which item; code that copies, compares or shows the dict reads all items.

    The app's writes also go into the client's own dict, because middleware around swr may look for them there. Reads by
    the methods of `dict` itself, such as `dict.get(scope, "user")`, are not noted.

    Parameters:
        items: the client's own dict.
        watched: the names to note; the container may change later. Reads of other names are noted only if the method
            `__getitem__` of another object makes them, which may be a wrapper of this dict.
    """

    def __init__(self, items: MutableMapping[str, Any], watched: Container[object]) -> None:
        super().__init__(items)
        self._of_client = items
        self._watched: Container[object] = watched

    @abstractmethod
    def _note(self, name: object, frame: FrameType) -> None:
        """Note that the code of a frame reads the item of a name."""

    # Frameworks read most items of a scope a dozen times, so `[]`, `in` and `get` check `watched` before any call.

    @abstractmethod
    def _note_all(self, frame: FrameType) -> None:
        """Note that the code of a frame reads all items."""

    def __getitem__(self, name: str) -> Any:
        frame = sys._getframe(1)
        if name in self._watched or frame.f_code.co_name == "__getitem__":
            self._note(name, frame)
        return dict.__getitem__(self, name)

    def __contains__(self, name: object) -> bool:
        frame = sys._getframe(1)
        if name in self._watched or frame.f_code.co_name == "__getitem__":
            self._note(name, frame)
        return dict.__contains__(self, name)

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of a name, or `default`."""
        frame = sys._getframe(1)
        if name in self._watched or frame.f_code.co_name == "__getitem__":
            self._note(name, frame)
        return dict.get(self, name, default)

    def __setitem__(self, name: str, value: Any) -> None:
        dict.__setitem__(self, name, value)
        self._of_client[name] = value

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        self._of_client.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        self._note_all(sys._getframe(1))
        return super().__iter__()

    def __reversed__(self) -> Iterator[str]:
        self._note_all(sys._getframe(1))
        return super().__reversed__()

    def __len__(self) -> int:
        self._note_all(sys._getframe(1))
        return super().__len__()

    def __eq__(self, other: object) -> bool:
        self._note_all(sys._getframe(1))
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        self._note_all(sys._getframe(1))
        return super().__ne__(other)

    __hash__ = None

    def __repr__(self) -> str:
        self._note_all(sys._getframe(1))
        return super().__repr__()

    def keys(self) -> Any:
        """Return the names."""
        self._note_all(sys._getframe(1))
        return super().keys()

    def values(self) -> Any:
        """Return the values."""
        self._note_all(sys._getframe(1))
        return super().values()

    def items(self) -> Any:
        """Return the names, each with its value."""
        self._note_all(sys._getframe(1))
        return super().items()

    def copy(self) -> dict[str, Any]:
        """Return a plain copy, which notes nothing."""
        self._note_all(sys._getframe(1))
        return dict(super().items())

    def __or__(self, other: Any) -> Any:
        self._note_all(sys._getframe(1))
        return dict(super().items()) | other

    def __ror__(self, other: Any) -> Any:
        self._note_all(sys._getframe(1))
        return other | dict(super().items())

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Tell `copy` and `pickle` to make a plain copy, which notes nothing."""
        self._note_all(sys._getframe(1))
        return dict, (dict(super().items()),)

    def pop(self, name: str, *default: Any) -> Any:
        """Remove a name and return its value, or `default`."""
        self._note(name, sys._getframe(1))
        self._of_client.pop(name, None)
        return super().pop(name, *default)

    def update(self, *others: Any, **more: Any) -> None:
        """Add the items of another mapping, and these."""
        for name, value in dict(*others, **more).items():
            self[name] = value

    # The versions of `dict` would not call the methods above.
    setdefault, popitem, clear = _MIXIN.setdefault, _MIXIN.popitem, _MIXIN.clear

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self
