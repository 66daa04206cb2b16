"""The middleware's options and the objects that its parts share."""

import logging
import multiprocessing
import os
import sys
from collections.abc import Callable, Collection, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from cachetools import TTLCache
from starlette.types import ASGIApp, Scope

from swr.cache import Cache
from swr.endpoints.outer import outer_names
from swr.endpoints.reads import ADDRESS, ALL_FIELDS, SERVER
from swr.endpoints.variables import OF_VARIABLES
from swr.engine.deadlocks import chain, loads_already
from swr.engine.engine import Engine
from swr.errors import ConfigurationError
from swr.http.caching import REQUEST_DIRECTIVES, SharingRules
from swr.http.request_fields import FIELD_NAMES, field_names
from swr.http.stored_response import MOST_VARIANTS
from swr.middleware.deadlines import Deadlines
from swr.middleware.guesses import Bearer
from swr.middleware.request import Request
from swr.middleware.rules import Rule, RuleSet
from swr.middleware.selection import Selection
from swr.middleware.variants import Variants
from swr.policy import Duration, Timeout, seconds, timeout

log = logging.getLogger("swr")

# How long requests to an uncacheable URL go to the app without waiting for each other, in seconds.
_UNCACHEABLE_FOR: Final = 120.0
# If a background refresh does not reach its endpoint, the next one may begin after this time, in seconds.
_NEXT_REFRESH_AFTER: Final = 5.0
# Once a client has waited for this time, in seconds, swr watches whether the client is still connected.
_UNWATCHED_FOR: Final = 1.0
# Clients choose the URLs, so swr remembers a limited number of them.
_MOST_UNCACHEABLE: Final = 10_000
_MOST_WARNINGS: Final = 50


class Uncacheable(NamedTuple):
    """A note that a response could not be stored.

    Parameters:
        reason: why swr could not store it.
        tags: the tags of its URL.
        tag_version: the newest tag version when the run of the app began; a later invalidation ends the note.
        names: the request fields that the response varies by; requests with other values do not count.
    """

    reason: str
    tags: tuple[str, ...]
    tag_version: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """The middleware's options, and the objects that its parts share.

    Parameters:
        app: the app that the middleware wraps.
        cache, engine: the cache that stores the responses, and its engine, which loads them.
        rules: the operator's rules.
        sharing: the operator's choices about sharing responses.
        honoured: the request directives that swr honours.
        hard_timeout: how long a load may take, in seconds; None: ten times the cache's `lease_for`.
        max_body_bytes: the longest body that swr stores.
        max_content_bytes, max_content_time: how long the content of a request may be, and how many seconds it may
            take, to become part of a key.
        slow_bodies: runs whose response has begun; swr does not store a response that takes too long.
        unwatched: clients that wait for a load; after a while swr watches whether they are still connected.
        variants: which variants of a URL are stored.
        uncacheable: responses that swr could not store lately; see `note_uncacheable` and `why_uncacheable`.
        guarded: keys of URLs whose endpoint has lately used the cache after its dependencies.
        shareable: whether a response to a URL has lately been for all clients, by key. True follows a run that saw all
            cookies of one client. False follows a run that lacked some and came to nothing.
        refreshing: keys for which swr has lately begun a background refresh that runs the dependencies, too.
        app_state: returns the state of the app's lifespan, which background runs get.
        selection: what selects responses.
        purge_token: the token that a `PURGE` must send; None: `PURGE` goes to the app.
        warned: the warnings that swr has logged, each with the name that it is about.
        ambient: returns the context variables that are set for all requests.
    """

    app: ASGIApp
    cache: Cache
    engine: Engine
    rules: RuleSet
    sharing: SharingRules
    honoured: frozenset[str]
    hard_timeout: float | None
    max_body_bytes: int
    max_content_bytes: int
    max_content_time: float | None
    slow_bodies: Deadlines
    unwatched: Deadlines
    variants: Variants
    uncacheable: TTLCache[str, Uncacheable]
    guarded: TTLCache[str, bool]
    shareable: TTLCache[str, bool]
    refreshing: TTLCache[str, bool]
    app_state: Callable[[], dict[str, Any]]
    selection: Selection
    purge_token: Bearer | None
    warned: set[tuple[str, str]]
    ambient: Callable[[], Context]

    def warn_unknown(self, field: str) -> None:
        """Warn once that requests with a field bypass the cache, and say what to do."""
        self._warn_once(
            "requests with the field %r get no response that a rule or @cache.response lets swr share: name it "
            "in vary= if responses depend on it, or in ignore_fields= if they do not",
            field,
        )

    def warn_left_out(self, parameter: str) -> None:
        """Warn once that a rule leaves out a query parameter that the route declares, and say what to do."""
        self._warn_once(
            "a rule leaves out the query parameter %r, which the route declares, so swr stores nothing: name it in "
            "keep_params= if responses depend on it, or in drop_params= if they do not; keep what says who asks",
            parameter,
        )

    def warn_address(self, path: str) -> None:
        """Warn, for the first path, that the app reads the client's address before it answers."""
        self._warn_once(
            "the app's own code looks at the client's address before it answers %r, so swr shares no such response "
            "under its own terms: put middleware that only writes a log around swr, or say in key= what selects",
            path,
            once="",
        )

    def limit_by(self, rule: Rule | None) -> Timeout:
        """Return how long a load may run by its rule or else by the middleware; see `Policy.hard_timeout`."""
        return (None if rule is None else rule.hard_timeout) or self.hard_timeout or "auto"

    def warn_outer(self, name: str) -> None:
        """Warn once that middleware around swr has set a value that the app may answer by, and say what to do."""
        if name.startswith(OF_VARIABLES):
            # Such a variable may also have been set where swr was created, while the server runs in another thread.
            self._warn_once(
                "the %s is not the same for all requests, and the app may answer by it, so swr shares no such response "
                "under its own terms: put the middleware that sets it inside, set it where the server starts if it is "
                "for all requests, or say in key= what selects",
                name,
            )
            return
        self._warn_once(
            "middleware around swr sets the %s, and the app may answer by it, so swr shares no such response under its "
            "own terms: put that middleware inside, or say in key= what selects",
            name,
        )

    def why_read(self, name: str, path: str) -> str:
        """Return why swr does not share a response after the app has read a part of the request; warn once.

        Parameters:
            name: the part of the request, as `Reads` names it.
            path: the path of the request.
        """
        if name == ADDRESS:
            self.warn_address(path)
            return "address"
        if name == ALL_FIELDS:
            self._warn_once(
                "the app's own code takes all fields of the request before it answers %r, and one may be an address or "
                "a language, so swr shares no such response under its own terms: ask for single fields, put middleware "
                "that only writes a log around swr, or say in key= what selects",
                path,
                once="",
            )
            return name
        if name == SERVER:
            self._warn_once(
                "the app's own code looks at the address of the server that a client has reached before it answers "
                "%r, so swr shares no such response under its own terms: say in key= what selects",
                path,
                once="",
            )
            return name
        if name == FIELD_NAMES:
            self._warn_once(
                "the app's own code checks which fields a request has while it sends the response to %r, so swr does "
                "not store it: check before the response begins, or say in key= what selects",
                path,
                once="",
            )
            return "field names"
        if " " in name:
            self.warn_outer(name)
            return name
        self.warn_unknown(name)
        return f"field {name}"

    def _warn_once(self, text: str, name: str, once: str | None = None) -> None:
        """Log a warning about a name, once for each name; if `once` is given, only for the first name."""
        warning = text, name if once is None else once
        if warning not in self.warned and len(self.warned) < _MOST_WARNINGS:
            self.warned.add(warning)
            log.warning(text, name)

    def miss_status(self, key: str, request: Request, why: bytes) -> bytes:
        """Return the member of `Cache-Status` for a miss, with the reason why it is not stored, if known."""
        reason = request.result.not_stored or self.why_uncacheable(key, request)
        why = b"bypass" if reason.startswith("field ") else why
        return b'swr; fwd=%b; detail="%b"' % (why, reason.encode()) if reason else b"swr; fwd=%b" % why

    def note_uncacheable(self, key: str, request: Request, found: Uncacheable) -> None:
        """Remember that swr could not store the response to a request that selects `key`."""
        self.uncacheable[key] = found
        if found.names:
            self.uncacheable[f"{key}\n{request.variant(found.names)}"] = found

    def why_uncacheable(self, key: str, request: Request) -> str:
        """Return why swr could not store the responses of `key` lately; empty: swr may try to store them."""
        # `in` first, because `get` of a missing key is slow in a TTLCache.
        found = self.uncacheable.get(key) if key in self.uncacheable else None
        if found is not None and found.names:
            found = self.uncacheable.get(f"{key}\n{request.variant(found.names)}")
        if found is None or not self.engine.store.tag_versions.admits(found.tag_version, found.tags):
            return ""
        return found.reason


def refuse_second(cache: Cache, key: str, request: Request) -> None:
    """Refuse to run the app for `key` inside a run of the app for the same key: each would wait for the other.

    Parameters:
        request: the request of the inner run.

    Raises:
        ConfigurationError: such a run is under way.
    """
    if loads_already(cache.engine.runtime, key, chain()):
        raise ConfigurationError(
            f"the app was asked for {request.url!r} while it answers the same request: add SWRMiddleware once for the "
            f"cache {cache.namespace!r}, with the rules of both. No endpoint may ask for its own URL"
        )


def warn_if_one_of_several(cache: Cache) -> None:
    """Warn, if there seem to be other worker processes, that a cache without Redis invalidates nothing in them."""
    workers = os.environ.get("WEB_CONCURRENCY", "")
    is_worker = multiprocessing.parent_process() is not None or (workers.isdecimal() and int(workers) > 1)
    # gunicorn forks, so a worker inherits its master's list of the workers before it, with their settings.
    arbiter = getattr(sys.modules.get("gunicorn.arbiter"), "Arbiter", None)
    siblings = getattr(arbiter, "WORKERS", {}).values()
    is_worker = is_worker or any(sibling.cfg.workers > 1 for sibling in siblings)
    if is_worker and not cache.is_shared and cache.engine.switch.is_enabled:
        log.warning(
            "the cache %r is in the memory of one worker process: invalidations do not reach the others; give it the "
            "URL of Redis or Valkey, or run one process",
            cache.namespace,
        )


def _checked_token(token: str | bytes) -> Bearer | None:
    """Return the token of `PURGE`; None: `purge_token` is empty.

    Raises:
        ConfigurationError: no header field could hold the token. The message does not show it.
    """
    if not isinstance(token, (str, bytes)):
        raise ConfigurationError("purge_token is not text: give a long random one, such as secrets.token_urlsafe()")
    text = token if isinstance(token, str) else token.decode("latin-1")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigurationError("purge_token has characters that no header can hold: give letters, digits and - or _")
    return Bearer(text.encode(), "PURGE") if text else None


def make_config(
    app: ASGIApp,
    cache: Cache,
    rules: Sequence[Rule],
    cookies: Literal["private", "rfc9111"],
    max_body_bytes: int,
    *,
    max_body_time: Duration | None,
    max_content_bytes: int,
    max_variants: int,
    request_directives: Collection[str],
    targeted: Sequence[str],
    heuristic: float,
    stale_if_unreachable: Duration,
    hard_timeout: Duration | None,
    ignore_fields: Sequence[str],
    key: Callable[[Scope], object] | None,
    version: str,
    tag_fields: Sequence[str],
    strip_tag_fields: bool,
    purge_token: str | bytes,
    app_state: Callable[[], dict[str, Any]],
    ambient: Callable[[], Context],
) -> Config:
    """Return the checked options; see `SWRMiddleware`.

    Raises:
        ConfigurationError: an option cannot work.
    """
    if not isinstance(cache, Cache):
        raise ConfigurationError(f"cache={cache!r}: give a swr.Cache")
    if cookies not in ("private", "rfc9111"):
        raise ConfigurationError(f'cookies={cookies!r}: give "private" or "rfc9111"')
    if isinstance(rules, Rule):
        raise ConfigurationError("rules= is one Rule: give a list of rules, [Rule(...)]")
    for rule in rules:
        if not isinstance(rule, Rule):
            raise ConfigurationError(f"rules holds {rule!r}: every rule is a swr.middleware.Rule")
    if not isinstance(max_body_bytes, int) or max_body_bytes < 0:
        raise ConfigurationError(f"max_body_bytes={max_body_bytes!r}: give a number of bytes, 0 or more")
    if not isinstance(max_content_bytes, int) or max_content_bytes < 0:
        raise ConfigurationError(f"max_content_bytes={max_content_bytes!r}: give a number of bytes, 0 or more")
    if not isinstance(max_variants, int) or not 1 <= max_variants <= MOST_VARIANTS:
        raise ConfigurationError(f"max_variants={max_variants!r}: give a number from 1 to {MOST_VARIANTS}")
    if isinstance(request_directives, str) or not set(request_directives) <= REQUEST_DIRECTIVES:
        known = ", ".join(sorted(REQUEST_DIRECTIVES))
        raise ConfigurationError(f"request_directives={request_directives!r}: give a collection of: {known}")
    if not isinstance(heuristic, (int, float)) or not 0 <= heuristic <= 1:
        raise ConfigurationError(f"heuristic={heuristic!r}: give a fraction from 0 to 1")
    if key is not None and not callable(key):
        raise ConfigurationError(f"key={key!r}: give a function that takes the scope")
    if not isinstance(version, str) or not version.isprintable():
        raise ConfigurationError(f"version={version!r} must be text without line breaks, such as the name of a release")
    ignored = frozenset(name.encode() for name in field_names(ignore_fields, "ignore_fields"))
    engine = cache.engine

    def outer(scope: Scope) -> tuple[str, ...]:
        return outer_names(scope, app_state(), ambient())

    return Config(
        app,
        cache,
        engine,
        RuleSet(rules),
        SharingRules(
            cookies == "private",
            tuple(name.encode() for name in field_names(targeted, "targeted")),
            heuristic,
            seconds(stale_if_unreachable, "stale_if_unreachable"),
            tuple(name.encode() for name in field_names(tag_fields, "tag_fields")),
            strip_tag_fields,
        ),
        frozenset(request_directives),
        timeout(hard_timeout, "hard_timeout"),
        max_body_bytes,
        max_content_bytes,
        timeout(max_body_time, "max_body_time"),
        Deadlines(engine.runtime, timeout(max_body_time, "max_body_time")),
        Deadlines(engine.runtime, _UNWATCHED_FOR),
        Variants(max_variants),
        TTLCache(_MOST_UNCACHEABLE, _UNCACHEABLE_FOR, timer=engine.clock),
        TTLCache(_MOST_UNCACHEABLE, _UNCACHEABLE_FOR, timer=engine.clock),
        TTLCache(_MOST_UNCACHEABLE, _UNCACHEABLE_FOR, timer=engine.clock),
        TTLCache(_MOST_UNCACHEABLE, _NEXT_REFRESH_AFTER, timer=engine.clock),
        app_state,
        Selection(ignored, cache.digest, key, version, outer),
        _checked_token(purge_token),
        set(),
        ambient,
    )
