"""A table whose items end, each at a time of its own."""

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, Final, Protocol, TypeVar

# The most items that go for each that is added: the oldest, if they have ended. One that ends late holds up others.
_LOOKS: Final = 2


class Ending(Protocol):
    """Something that counts until a time.

    Attributes:
        ends_at: that time, in seconds.
    """

    @property
    def ends_at(self) -> float:
        """Return that time."""


E = TypeVar("E", bound=Ending)


class Expiring(MutableMapping[str, E]):
    """Values by key, until each has ended.

    It costs a quarter of what a cache does that keeps its items in the order of their ends. In exchange, those that
    have ended take memory for a while.

    Parameters:
        most: how many it holds; of more the oldest goes.
        clock: returns the time, in seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self._most = most
        self._clock = clock
        self._values: dict[str, E] = {}

    def __len__(self) -> int:
        """Return how many there are; some may have ended."""
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
        """Return the value of a key, unless it has ended."""
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
