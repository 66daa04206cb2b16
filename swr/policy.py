"""`Policy`: how long a value may be served, and how long a load may run. `Limits`: what one reader accepts."""

import math
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal

import msgspec

from swr.errors import ConfigurationError

Duration = float | int | str | timedelta
# A time limit in seconds; "auto": one that swr chooses; None: no limit.
Timeout = float | Literal["auto"] | None

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_TEXT: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)\s*", re.ASCII)
_LONGEST: Final = 100 * 365 * 86400.0


def seconds(duration: Duration, name: str = "duration") -> float:
    """Return `duration` in seconds.

    Parameters:
        duration: seconds as a number, a `timedelta`, or text such as "500ms", "90s", "10m", "12h", "1d", "2w".
        name: what the duration is called in the error.

    Raises:
        ConfigurationError: `duration` is not one of these, is negative, or is longer than 100 years.
    """
    value = math.nan
    if isinstance(duration, timedelta):
        value = duration.total_seconds()
    elif isinstance(duration, str):
        match = _TEXT.fullmatch(duration)
        if match:
            value = float(match[1]) * _UNITS[match[2]]
    elif isinstance(duration, (int, float)) and not isinstance(duration, bool):
        value = float(duration)
    if not 0 <= value <= _LONGEST:
        raise ConfigurationError(
            f"{name}={duration!r} is not a duration: give seconds (60), a timedelta or text such as "
            f'"90s", "10m", "1d", between 0 and 100 years'
        )
    return value


def timeout(duration: Duration | None, name: str) -> float | None:
    """Return a time-out in seconds; None means no limit.

    Raises:
        ConfigurationError: `duration` is not a duration, or is 0.
    """
    if duration is None:
        return None
    value = seconds(duration, name)
    if value <= 0:
        raise ConfigurationError(
            f"{name}={duration!r} leaves no time at all: give more than 0 seconds, or None for no limit"
        )
    return value


def timeout_or_auto(duration: Duration | None, name: str) -> Timeout:
    """Return a time-out in seconds; "auto" and None stay as they are.

    Raises:
        ConfigurationError: `duration` is not a duration, or is 0.
    """
    return "auto" if duration == "auto" else timeout(duration, name)


def _number(value: float, name: str, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        limits = ", 0 or more" if most == sys.float_info.max else f" between 0 and {most:g}"
        raise ConfigurationError(f"{name}={value!r}: give a number{limits}")
    return float(value)


def tag_names(tags: object, name: str = "tags") -> tuple[str, ...]:
    """Return `tags` as a tuple; raise ConfigurationError for one string, and for items other than non-empty strings."""
    if isinstance(tags, (str, bytes)):
        raise ConfigurationError(f"{name}={tags!r} is one string: give a tuple of strings, ({tags!r},)")
    if not isinstance(tags, Iterable):
        raise ConfigurationError(f"{name}={tags!r} is not a list: give a tuple of strings, which may be empty")
    names = tuple(tags)
    for tag in names:
        if not isinstance(tag, str) or not tag:
            raise ConfigurationError(f"{name}={names!r} holds {tag!r}: every tag is a non-empty string")
    return names


@dataclass(frozen=True, slots=True, init=False)
class Policy:
    """The lifetimes of a value, counted from the start of its load, and the limits of a load.

    Parameters:
        fresh_for: how long a value is fresh: swr serves it and does not refresh it.
        stale_for: how long after `fresh_for` swr serves the value at once while one refresh runs in the background
            (RFC 5861, `stale-while-revalidate`).
        stale_if_error: how long after `fresh_for` the value is the answer if a load fails (RFC 5861).
        tags: names under which the entry can be invalidated together with others.
        keep_for: how long after `fresh_for` a store keeps the entry at least, served or not, for its validator.
        soft_timeout: how long a reader waits for a load if there is an entry to fall back on; then that entry is the
            answer, and the load goes on. "auto": until the load has run for ten seconds, or for three times as long as
            the last load took, if that is longer. None: until the load ends.
        hard_timeout: how long a load may run; then swr cancels it, and it counts as failed. "auto": ten times the
            cache's `lease_for`, five minutes by default. None: without limit; swr renews the load's lease meanwhile.
        early: how eagerly swr refreshes a value in the background while it is fresh: β of "Optimal Probabilistic Cache
            Stampede Prevention" (XFetch). A refresh gets more likely towards the end of `fresh_for`, and the longer the
            last load took. The authors advise 1; more is earlier, 0 is never.
        jitter: the largest share of `fresh_for`, 0 to 1, by which swr shortens it for each entry, at random. Entries
            that were stored together then do not end together.

    Durations are seconds, a `timedelta`, or text: "90s", "10m", "1d". As attributes they are seconds.

    Raises:
        ConfigurationError: a duration, a tag or a number is malformed.
    """

    fresh_for: float
    stale_for: float
    stale_if_error: float
    tags: tuple[str, ...]
    keep_for: float
    soft_timeout: Timeout
    hard_timeout: Timeout
    early: float
    jitter: float

    def __init__(
        self,
        fresh_for: Duration,
        stale_for: Duration = 0,
        stale_if_error: Duration = 0,
        tags: Iterable[str] = (),
        keep_for: Duration = 0,
        soft_timeout: Duration | None = "auto",
        hard_timeout: Duration | None = "auto",
        early: float = 0,
        jitter: float = 0,
    ) -> None:
        put = object.__setattr__
        put(self, "fresh_for", seconds(fresh_for, "fresh_for"))
        put(self, "stale_for", seconds(stale_for, "stale_for"))
        put(self, "stale_if_error", seconds(stale_if_error, "stale_if_error"))
        put(self, "tags", tag_names(tags))
        put(self, "keep_for", seconds(keep_for, "keep_for"))
        put(self, "soft_timeout", timeout_or_auto(soft_timeout, "soft_timeout"))
        put(self, "hard_timeout", timeout_or_auto(hard_timeout, "hard_timeout"))
        put(self, "early", _number(early, "early", sys.float_info.max))
        put(self, "jitter", _number(jitter, "jitter", 1))

    def tagged(self, tags: tuple[str, ...]) -> "Policy":
        """Return the same policy with other tags, unchecked."""
        return self.replaced(tags=tags)

    def replaced(self, **changes: Any) -> "Policy":
        """Return the same policy with other attributes, which are taken as they are."""
        policy = object.__new__(Policy)
        for name in Policy.__slots__:
            object.__setattr__(policy, name, changes[name] if name in changes else getattr(self, name))
        return policy


class Limits(msgspec.Struct, frozen=True):
    """Limits of one reader, which narrow or widen those of the entry (RFC 9111 5.2.1).

    Parameters:
        max_age: the greatest age that the reader accepts, in seconds.
        min_fresh: seconds for which the entry must stay fresh from now on; None: it need not be fresh.
        max_stale: seconds past freshness up to which the reader accepts the entry; None: as the entry says.
        no_cache: whether the reader accepts no stored entry and waits for a load.
    """

    max_age: float = math.inf
    min_fresh: float | None = None
    max_stale: float | None = None
    no_cache: bool = False


NO_LIMITS: Final = Limits()
