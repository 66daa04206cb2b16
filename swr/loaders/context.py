"""The context of a load (`LoadContext`), and a loader's answers besides a plain value (`Fresh`, `NOT_MODIFIED`)."""

import enum
import math
from collections.abc import Iterable
from typing import Any, Final, Generic, TypeVar

import msgspec

from swr.errors import ConfigurationError
from swr.policy import Duration, Policy, seconds, tag_names

T = TypeVar("T")


class LoadContext(msgspec.Struct, Generic[T], frozen=True):
    """The last value when a load begins; a loader asks for it by annotating one parameter with this class.

    Attributes:
        value: the last value, fresh or not, or None. Unless the decorator has `copy=True`, it is the stored object
            itself, so the loader must not change it.
        age: seconds since the load of the last value began; infinite if there is no last value.
        validator: the validator of the last value, such as an ETag, a date or a revision; or None.
        has_value: whether there is a last value; None can be a value, too.
    """

    value: T | None = None
    age: float = math.inf
    validator: str | None = None
    has_value: bool = False


class NotModified(enum.Enum):
    """The type of `NOT_MODIFIED`, for annotations."""

    NOT_MODIFIED = "not modified"


# A loader's answer: the last value is still valid. swr stores it again, with its tags and its validator.
NOT_MODIFIED: Final = NotModified.NOT_MODIFIED


class Fresh(Generic[T]):
    """A loader's answer: a value, with options for this entry that override those of the decorator.

    Parameters:
        value: the value.
        fresh_for: as in `Policy`; None: as the decorator says.
        stale_for: as in `Policy`; None: as the decorator says.
        stale_if_error: as in `Policy`; None: as the decorator says.
        tags: names to invalidate this entry by; None: as the decorator says.
        validator: given to the next load as `LoadContext.validator`, to ask with it whether the value has changed.

    Raises:
        ConfigurationError: one of these cannot work.
    """

    __slots__ = ("_changes", "validator", "value")

    def __init__(
        self,
        value: T,
        *,
        fresh_for: Duration | None = None,
        stale_for: Duration | None = None,
        stale_if_error: Duration | None = None,
        tags: Iterable[str] | None = None,
        validator: str | None = None,
    ) -> None:
        if isinstance(value, (Fresh, NotModified)):
            raise ConfigurationError(f"Fresh({value!r}): give the value itself")
        if validator is not None and not isinstance(validator, str):
            raise ConfigurationError(f"validator={validator!r}: give a string")
        self.value = value
        self.validator = validator
        durations = {"fresh_for": fresh_for, "stale_for": stale_for, "stale_if_error": stale_if_error}
        self._changes: dict[str, Any] = {
            name: seconds(duration, name) for name, duration in durations.items() if duration is not None
        }
        if tags is not None:
            self._changes["tags"] = tag_names(tags)

    @property
    def has_tags(self) -> bool:
        """Return whether this answer has tags that override those of the decorator."""
        return "tags" in self._changes

    def over(self, policy: Policy) -> Policy:
        """Return `policy` with the options of this answer."""
        return policy.replaced(**self._changes)
