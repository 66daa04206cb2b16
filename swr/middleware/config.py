"""The middleware's options and the objects that its parts share."""

import logging
import multiprocessing
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from cachetools import TTLCache
from starlette.types import ASGIApp, Scope

from swr.cache import Cache
from swr.engine.engine import Engine
from swr.errors import ConfigurationError
from swr.http.caching import REQUEST_DIRECTIVES, SharingRules
from swr.http.fields import field_names
from swr.middleware.request import Selection
from swr.middleware.rules import Rule
from swr.policy import Duration, seconds, timeout

log = logging.getLogger("swr")

# Seconds during which requests to an uncacheable URL do not wait for one another.
_UNCACHEABLE_FOR: Final = 120.0
# Clients choose the URLs, so their number has a limit.
_MOST_UNCACHEABLE: Final = 10_000
_MOST_WARNINGS: Final = 50


class Uncacheable(NamedTuple):
    """A response that could not be stored.

    Parameters:
        reason: why.
        tags: of its URL.
        tag_version: the newest one when the app was asked; an invalidation since then ends it.
    """

    reason: str
    tags: tuple[str, ...]
    tag_version: int


@dataclass(frozen=True, slots=True)
class Config:
    """What the parts of the middleware need to know of it.

    Parameters:
        app: the app that the middleware wraps.
        cache, engine: where responses are stored, and what loads them.
        rules: the operator's rules; the first that matches applies.
        sharing: the operator's choices about sharing responses.
        honoured: the directives of requests that swr honours.
        hard_timeout: seconds that a load may take; None: no limit.
        max_body_bytes: longer responses are not stored.
        max_variants: stored responses per URL.
        uncacheable: keys whose responses could not be stored lately; ask `why_uncacheable`.
        app_state: returns the state of the app's lifespan, which background runs get.
        selection: what selects responses.
        warned: the unknown fields that were logged.
    """

    app: ASGIApp
    cache: Cache
    engine: Engine
    rules: list[Rule]
    sharing: SharingRules
    honoured: frozenset[str]
    hard_timeout: float | None
    max_body_bytes: int
    max_variants: int
    uncacheable: TTLCache[str, Uncacheable]
    app_state: Callable[[], dict[str, Any]]
    selection: Selection
    warned: set[str]

    def warn_unknown(self, field: str) -> None:
        """Log once for a request field that it keeps requests away from the cache, and what to do."""
        if field not in self.warned and len(self.warned) < _MOST_WARNINGS:
            self.warned.add(field)
            log.warning(
                "requests with the field %r get no response that a rule or @cache.response lets swr share: name it "
                "in vary= if responses depend on it, or in ignore_fields= if they do not",
                field,
            )

    def why_uncacheable(self, key: str) -> str:
        """Return why the responses of `key` could not be stored lately; empty: swr may try to store them."""
        found = self.uncacheable.get(key)
        if found is None or not self.engine.store.tag_versions.admits(found.tag_version, found.tags):
            return ""
        return found.reason


def warn_if_one_of_several(cache: Cache) -> None:
    """Log that a cache without Redis invalidates nothing in the other worker processes, if there seem to be some."""
    workers = os.environ.get("WEB_CONCURRENCY", "")
    is_worker = multiprocessing.parent_process() is not None or (workers.isdecimal() and int(workers) > 1)
    if is_worker and not cache.is_shared:
        log.warning(
            "the cache %r is in the memory of one worker process: invalidations do not reach the others; give it the "
            "URL of Redis or Valkey, or run one process",
            cache.namespace,
        )


def make_config(
    app: ASGIApp,
    cache: Cache,
    rules: Sequence[Rule],
    cookies: Literal["private", "rfc9111"],
    max_body_bytes: int,
    *,
    max_variants: int,
    request_directives: Collection[str],
    targeted: Sequence[str],
    heuristic: float,
    stale_if_unreachable: Duration,
    hard_timeout: Duration | None,
    ignore_fields: Sequence[str],
    key: Callable[[Scope], str] | None,
    app_state: Callable[[], dict[str, Any]],
) -> Config:
    """Return the checked options; see `SWRMiddleware`.

    Raises:
        ConfigurationError: an option cannot work.
    """
    if not isinstance(cache, Cache):
        raise ConfigurationError(f"cache={cache!r} is not a swr.Cache")
    if cookies not in ("private", "rfc9111"):
        raise ConfigurationError(f'cookies={cookies!r}: give "private" or "rfc9111"')
    for rule in rules:
        if not isinstance(rule, Rule):
            raise ConfigurationError(f"rules holds {rule!r}: every rule is a swr.middleware.Rule")
    if not isinstance(max_body_bytes, int) or max_body_bytes < 0:
        raise ConfigurationError(f"max_body_bytes={max_body_bytes!r} is not a number of bytes, 0 or more")
    if not isinstance(max_variants, int) or max_variants < 1:
        raise ConfigurationError(f"max_variants={max_variants!r} is not a number, 1 or more")
    if isinstance(request_directives, str) or not set(request_directives) <= REQUEST_DIRECTIVES:
        known = ", ".join(sorted(REQUEST_DIRECTIVES))
        raise ConfigurationError(f"request_directives={request_directives!r}: give a collection of: {known}")
    if not isinstance(heuristic, (int, float)) or not 0 <= heuristic <= 1:
        raise ConfigurationError(f"heuristic={heuristic!r} is not a share, from 0 to 1")
    if key is not None and not callable(key):
        raise ConfigurationError(f"key={key!r} is not a function of the scope")
    ignored = frozenset(name.encode() for name in field_names(ignore_fields, "ignore_fields"))
    engine = cache.engine
    return Config(
        app,
        cache,
        engine,
        list(rules),
        SharingRules(
            cookies == "private",
            tuple(name.encode() for name in field_names(targeted, "targeted")),
            heuristic,
            seconds(stale_if_unreachable, "stale_if_unreachable"),
        ),
        frozenset(request_directives),
        timeout(hard_timeout, "hard_timeout"),
        max_body_bytes,
        max_variants,
        TTLCache(_MOST_UNCACHEABLE, _UNCACHEABLE_FOR, timer=engine.clock),
        app_state,
        Selection(ignored, cache.digest, key),
        set(),
    )
