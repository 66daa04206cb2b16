"""The middleware's part in answers that an endpoint gets from the cache after its dependencies have run."""

import contextlib
import logging
from collections.abc import Collection, Mapping
from typing import Any

import anyio
from starlette.types import Message, Scope

from swr.endpoints.declared import declared
from swr.endpoints.terms import ADMISSION, Admission, EndpointTerms, endpoint_terms
from swr.endpoints.variables import OF_VARIABLES, carried
from swr.engine.failures import text_of
from swr.http.classify import RequestFacts
from swr.http.stored_response import is_response, marked, with_marks
from swr.middleware.config import Config, Uncacheable
from swr.middleware.lookup import Found, may_use
from swr.middleware.messages import begin_with
from swr.middleware.request import Request
from swr.middleware.result import Problem
from swr.middleware.selection import is_personal
from swr.policy import NO_LIMITS, Limits, Timeout

log = logging.getLogger("swr")


class AskedByClient:
    """The facts about a request that the middleware gives to the endpoint; see `Asked`.

    Parameters:
        config: the middleware's options.
        request: the client's request.
        is_bypassed: whether swr certainly stores no response under the URL's key.
        may_load: whether swr may store what the endpoint returns.
        limits: how old a response the client accepts.
    """

    __slots__ = (
        "_config",
        "_is_bypassed",
        "_request",
        "_rule",
        "fields",
        "key",
        "limits",
        "max_body_bytes",
        "may_load",
        "method",
        "outer_variable",
        "query",
        "sharing",
    )

    def __init__(
        self, config: Config, request: Request, is_bypassed: bool, may_load: bool = True, limits: Limits = NO_LIMITS
    ) -> None:
        self._config = config
        self._request = request
        self._is_bypassed = is_bypassed
        self.may_load = may_load
        self.limits = limits
        # A context variable that middleware around swr has set. If there is one, swr stores no response under the URL's
        # key, unless `key=` says what selects the response.
        self.outer_variable = next((name for name in request.outer if name.startswith(OF_VARIABLES)), "")
        # The rule that selects the response behind the dependencies, too; None: none does.
        self._rule = request.find_rule() if config.rules.count_behind else None
        # In front of the app, these fields select among the variants of the URL.
        names = () if self._rule is None else self._rule.selecting
        self.key = request.key_behind + request.variant(names)[len(request.key) :]
        self.method = request.method
        self.fields: Mapping[bytes, bytes] = request.fields if request.takes_conditions else {}
        self.query: bytes = request.scope.get("query_string", b"")
        self.sharing = config.sharing
        self.max_body_bytes = config.max_body_bytes

    @property
    def hard_timeout(self) -> Timeout:
        """See `Asked`."""
        return self._config.limit_by(self._request.find_rule())

    @property
    def tags(self) -> tuple[str, ...]:
        """See `Asked`."""
        return self._request.tags

    def group_tag(self, group: str) -> str:
        """See `Asked`."""
        return self._request.group_tag(group)

    def is_kept_out(self, scope: Scope, fields: frozenset[str] | None, known: Collection[str]) -> bool:
        """See `Asked`."""
        request = self._request
        return (
            self._is_bypassed
            or bool(self.outer_variable)
            or request.authorized
            or request.unknown_beyond(known) is not None
            or is_personal(scope)
            or fields is None
            or request.has_any(fields)
        )

    def admit(self) -> None:
        """See `Asked`."""
        if not self._is_bypassed:
            self._config.guarded[self._request.key_behind] = True

    def fields_of_rule(self, scope: Scope) -> Collection[str]:
        """See `Asked`."""
        rule = self._rule
        if rule is None:
            return ()
        return {*rule.vary, *declared(scope).credentials} if rule.is_per_credential else rule.vary

    def why_left_out(self, scope: Scope) -> str:
        """See `Asked`."""
        rule = self._rule
        name = None if rule is None or not rule.leaves_out else rule.left_out(declared(scope))
        if name is None:
            return ""
        self._config.warn_left_out(name)
        return f"parameter {name}"

    def why_not(self, key: str) -> str:
        """See `Asked`."""
        return self._config.why_uncacheable(key, self._request)

    def note(self, key: str, reason: str, tags: tuple[str, ...], tag_version: int) -> None:
        """See `Asked`."""
        self._config.note_uncacheable(key, self._request, Uncacheable(reason, tags, tag_version))


def admission_of(
    config: Config, request: Request, facts: RequestFacts | None = None, limits: Limits = NO_LIMITS
) -> Admission | None:
    """Return the admission with which the endpoint may answer from the cache; None: the endpoint always runs.

    Parameters:
        facts: the facts of a request whose response swr does not store under the URL's key; None: swr may store it.
        limits: how old a response the client accepts.
    """
    if request.method == "HEAD" or request.content_problem is not Problem.NONE:
        return None
    may_load = facts is None or not facts.no_store
    admission = Admission(AskedByClient(config, request, facts is not None, may_load, limits))
    session = request.scope.get("session")
    if isinstance(session, dict):
        # The session's own `copy` would mark the session as accessed.
        admission.session = dict.copy(session)
    return admission


class admitted:
    """A context manager that puts the admission into the scope during a run of the app, where the endpoint finds it.

    This is a class because each run of the app enters it, and a generator takes three times as long.
    """

    __slots__ = ("_admission", "_scope")

    def __init__(self, scope: Scope, admission: Admission | None) -> None:
        self._scope = scope
        self._admission = admission

    def __enter__(self) -> None:
        self._scope[ADMISSION] = self._admission

    def __exit__(self, *_: object) -> None:
        self._scope.pop(ADMISSION, None)


def is_guarded(config: Config, request: Request, found: Found) -> bool:
    """Return whether only a response that swr stored after the dependencies have run may answer a request.

    Parameters:
        found: the result of the lookup under the URL's key.
    """
    if not (request.authorized or request.unknown) or request.key_behind not in config.guarded:
        return False
    return found.entry is None or not is_response(found.entry) or not may_use(request, found.entry)


def marked_after(admission: Admission | None, message: Message, status: bytes) -> Message:
    """Return a `http.response.start` with the fields that say where the answer comes from.

    Parameters:
        admission: the admission of the request, if there is one.
        status: the member of `Cache-Status` if the endpoint did not answer from the cache.
    """
    if admission is None or (admission.marks is None and not admission.reason):
        return marked(message, status)
    if admission.marks is not None:
        # An exception handler or other middleware may have replaced the endpoint's answer.
        return (
            with_marks(message, admission.marks) if admission.status == message["status"] else marked(message, status)
        )
    reason = "".join(char for char in admission.reason if " " <= char <= "~" and char not in '"\\').encode()
    if b'"%b"' % reason in status:
        return marked(message, status)
    detail = status[:-1] + b", " + reason if b'; detail="' in status else b'%b; detail="%b' % (status, reason)
    return marked(message, detail + b'"')


def why_outer(config: Config, admission: Admission | None) -> str:
    """Return the name of a context variable that middleware around swr has set and no `key=` covers; empty: none."""
    name = "" if admission is None else admission.asked.outer_variable
    if name:
        config.warn_outer(name)
    return name


def settle(config: Config, request: Request, admission: Admission | None) -> None:
    """Note whether the endpoint has used the cache, and start the refresh of a stale response that it has served."""
    if admission is None:
        return
    is_read = admission.marks is not None or admission.has_failed
    request.result.reach(admission.is_answered, is_read, admission.reason)
    if admission.stale and admission.stale not in config.refreshing and config.engine.is_open:
        config.refreshing[admission.stale] = True
        traced = config.engine.runtime.replaying(admission.stale)
        carried(admission.variables).run(
            config.engine.start, _refresh, config, request, admission.stale, admission.session, traced
        )


async def _refresh(
    config: Config,
    request: Request,
    key: str,
    session: dict[str, Any] | None,
    traced: contextlib.AbstractContextManager[None],
) -> None:
    """Run the app again for the same request, with its dependencies; the endpoint then loads `key`."""
    admission = Admission(AskedByClient(config, request, is_bypassed=True), key)
    endpoint_terms.set(EndpointTerms(config.cache, None, admission))
    scope = request.repeat(config.app_state(), session)
    try:
        with traced, admitted(scope, admission):
            await config.app(scope, begin_with(request.content_message, _receive_nothing), _discard)
    except Exception as error:
        log.warning(
            "the app failed in a background refresh of %r (%s); such a run lacks what middleware around swr sets for "
            "a request: put middleware that the endpoint needs inside",
            request.url,
            text_of(error),
            exc_info=error,
        )
    if admission.is_admitted:
        # The next refresh may begin at once. After a refusal it waits, because the dependencies may refuse it, too.
        config.refreshing.pop(key, None)


async def _receive_nothing() -> Message:
    """Wait forever: a background run has no client."""
    while True:
        await anyio.sleep_forever()


async def _discard(message: Message) -> None:
    """Discard a message: a background run has no client."""
