"""A table whose items each expire at their own time."""

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, Final, Protocol, TypeVar

# Adding an item removes up to this many of the oldest, if these have expired. One that expires late holds up others.
_LOOKS: Final = 2


class Ending(Protocol):
    """An item that expires.

    Attributes:
        ends_at: when it expires, in seconds.
    """

    @property
    def ends_at(self) -> float:
        """Return when the item expires."""


E = TypeVar("E", bound=Ending)


class Expiring(MutableMapping[str, E]):
    """A mapping whose values expire.

    It takes a quarter of the time of a cache that sorts its items by expiry. In exchange, expired items occupy memory
    for a while.

    Parameters:
        most: how many items it holds; one more evicts the oldest.
        clock: returns the time, in seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self._most = most
        self._clock = clock
        self._values: dict[str, E] = {}

    def __len__(self) -> int:
        """Return how many items there are, including expired ones."""
        return len(self._values)

    def __iter__(self) -> Iterator[str]:
        now = self._clock()
        return iter([key for key, value in self._values.items() if now < value.ends_at])

    def __contains__(self, key: object) -> bool:
        return self.get(key) is not None

    def __getitem__(self, key: str) -> E:
        value = self._values[key]
        if self._clock() >= value.ends_at:
            raise KeyError(key)
        return value

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of a key, or `default` if it is missing or has expired."""
        value = self._values.get(key)
        return default if value is None or self._clock() >= value.ends_at else value

    def __setitem__(self, key: str, value: E) -> None:
        values = self._values
        values.pop(key, None)
        now = self._clock()
        for _ in range(_LOOKS):
            oldest = next(iter(values), None)
            if oldest is None or (len(values) < self._most and now < values[oldest].ends_at):
                break
            del values[oldest]
        values[key] = value

    def __delitem__(self, key: str) -> None:
        del self._values[key]
