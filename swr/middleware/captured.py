"""The response of one run of the app, as far as swr has received it, and whether swr may store it."""

from collections.abc import Collection
from typing import Any, Final

from starlette.types import Message, Scope

from swr.endpoints.declared import Declared, answers, calls, declared
from swr.endpoints.origin import origin_of
from swr.endpoints.reads import ADDRESS, ALL_FIELDS
from swr.endpoints.routed_scope import give_headers, names_read_late, reads_of, routed
from swr.endpoints.terms import EndpointTerms
from swr.entry import Entry
from swr.errors import SWRError
from swr.http.caching import Terms, Verdict, control, judge
from swr.http.conditional import CONDITIONS, selects, updated, validators
from swr.http.fields import Headers, content_length, content_range, strings, values_of, vary_of
from swr.http.request_fields import ALL_CREDENTIALS, EXACTLY
from swr.http.statuses import ABOUT_THE_CLIENT, GONE
from swr.http.stored_response import StoredResponse, Varies, add_names, as_stored, is_response
from swr.middleware.admission import marked_after, why_outer
from swr.middleware.config import Config
from swr.middleware.kind import Kind
from swr.middleware.lookup import may_use
from swr.middleware.pieces import add_piece
from swr.middleware.request import Request
from swr.middleware.seen import beside_credential, with_seen
from swr.middleware.selection import for_reader, is_personal

# Request fields that ask for something other than the whole resource.
_PARTIAL: Final = CONDITIONS | {b"range"}
# RFC 9875 2 lets a cache limit the number of groups of a response.
MOST_GROUPS: Final = 128


class CapturedResponse:
    """The app's response as far as swr has received it, with the verdict whether it may be stored, and why not.

    Parameters:
        config: the middleware's options.
        request: the client's request.
        terms: what the endpoint says about its response.
        varies: the request fields that the URL varies by, as far as known.
        is_replay: whether this is a background run, without the client's credentials.
    """

    __slots__ = (
        "_base_tags",
        "_body",
        "_config",
        "_lacks_cookies",
        "_origin",
        "_request",
        "_terms",
        "_varies",
        "authorized",
        "base",
        "headers",
        "is_ended",
        "is_range",
        "is_replay",
        "kind",
        "length",
        "scope",
        "size",
        "status",
        "verdict",
    )

    def __init__(
        self, config: Config, request: Request, terms: EndpointTerms, varies: Varies, *, is_replay: bool
    ) -> None:
        self._config = config
        self._request = request
        self._terms = terms
        self._varies = varies
        self.is_replay = is_replay
        # Whether this run lacks cookies of the client.
        self._lacks_cookies = request.hides_cookies and not is_replay
        self.is_range = not is_replay and request.has_range
        # A replay sends credentials only if they select the stored response.
        self.authorized = bool(request.credentials_in(varies.names)) if is_replay else request.authorized
        # The stored response that the app is asked to confirm.
        self.base: StoredResponse | None = None
        self._base_tags: tuple[str, ...] = ()
        self.kind = Kind.NONE
        self.status = 0
        self.headers: Headers = []
        self.verdict = Verdict(None)
        self.size = 0
        self.is_ended = False
        # The scope that the app got; frameworks write the route into it.
        self.scope: Scope = request.scope
        # The value of `Content-Length`; None: unknown.
        self.length: int | None = None
        self._body: list[bytes | bytearray] = []
        self._origin: str | None = None

    @property
    def origin(self) -> str:
        """The name of the route that answers, as entries carry it; see `origin_of`."""
        if self._origin is not None:
            return self._origin
        origin = origin_of(self.scope)
        if self.status:
            self._origin = origin
        return origin

    @property
    def is_about_all(self) -> bool:
        """Return whether the response says something about the resource, and not just about this request."""
        if self.status in GONE and not self.is_replay and not self._request.fields.keys().isdisjoint(_PARTIAL):
            return False
        request, authorized = self._request, self.authorized or self._request.shows_cookies
        if self._lacks_cookies:
            # A session that the app has used without the client's cookies is not the client's.
            authorized = request.authorized or request.has_any(declared(self.scope).credentials - {"cookie"})
        if authorized or request.unknown_beyond(self._varies.names) is not None:
            return False
        return self.status < 500 and self.status not in ABOUT_THE_CLIENT and self.status != 206

    @property
    def varies_by(self) -> tuple[str, ...]:
        """The request fields in `Vary` that the URL was not yet known to vary by."""
        # Of the cookies, a run that lacks some has only those that are in the key.
        known = {*self._varies.names, *(("cookie",) if self._lacks_cookies else ())}
        return tuple(name for name in vary_of(self.headers) or () if name not in known)

    def is_about(self, request: Request) -> bool:
        """Return whether another request for the same URL would get such a response, too."""
        names = self.varies_by
        return self.is_about_all and request.variant(names) == self._request.variant(names)

    @property
    def is_in_place_of_stored(self) -> bool:
        """Return whether the response replaces the stored one; after a new `Vary` the stored one may be for others."""
        return self.is_about_all and (self.is_replay or not self.varies_by)

    @property
    def fits(self) -> bool:
        """Return whether the body is short enough to be stored, so far."""
        return self.size <= self._config.max_body_bytes

    @property
    def is_whole(self) -> bool:
        """Return whether the body is complete by `Content-Length` or status, even if the app announces more."""
        return self.size == (0 if self.status == 204 else self.length)

    def check_length(self) -> None:
        """Compare the size of the body with `Content-Length`; call this at its end.

        Raises:
            SWRError: they differ, so the response is incomplete (RFC 9111 3.3), and so is the client's copy.
        """
        if self.length is not None and self.length != self.size:
            raise SWRError(
                f"the response to {self._request.key!r} has {self.size} bytes, "
                f"and its Content-Length says {self.length}"
            )

    def marked(self, message: Message, status: bytes) -> Message:
        """Return the beginning of the response with the fields that say where it comes from; see `marked_after`."""
        return marked_after(self._terms.admission, message, status)

    def refused(self, message: Message, why: bytes) -> Message:
        """Return the beginning of a response that is not stored, with the fields that say why.

        Parameters:
            why: the `fwd` of `Cache-Status` (RFC 9211 2.2), unless a request field rules out the cache.
        """
        reason = self.verdict.reason
        why = b"bypass" if reason.startswith("field ") else why
        return self.marked(message, b'swr; fwd=%b; detail="%b"' % (why, reason.encode()))

    def choose_base(self, entry: Entry[Any] | None) -> None:
        """Choose the stored response that the app is asked to confirm, if there is one."""
        if entry is None or not is_response(entry) or self.is_range or not self._request.takes_conditions:
            return
        # RFC 9110 13.2.1: conditions apply only to a response that would be a success.
        if 200 <= entry.value.status < 300 and validators(entry.value.headers) and may_use(self._request, entry):
            self.base, self._base_tags = entry.value, entry.tags

    def conditional(self, headers: Headers) -> Headers:
        """Return the request's fields with the cache's own conditions instead of the client's (RFC 9111 4.3.1).

        The app must send a response that others can use, and swr answers the client's conditions from it. The result
        lacks the cookies that the rule does not name. A request for a range keeps its conditions.
        """
        headers = self._request.withhold_cookies(headers)
        if self.is_range:
            return headers
        plain = [(name, value) for name, value in headers if name not in CONDITIONS]
        return plain if self.base is None else plain + validators(self.base.headers)

    def scope_for(self, scope: Scope) -> Scope:
        """Return the app's scope, with the cache's own conditions; it notes what the app reads of the request."""
        self.scope = routed(scope, self._config.app)
        give_headers(self.scope, self.conditional(scope["headers"]), set(self._request.outer))
        return self.scope

    def begin(self, message: Message, began: float) -> None:
        """Take the header of the response, and judge it.

        Parameters:
            message: `http.response.start`, with its fields as bytes.
            began: when the run of the app began; wall clock, seconds.
        """
        status, headers = message["status"], message["headers"]
        self.status, self.headers = status, headers
        if status == 304 and self.base is not None:
            self._confirm(self.base, headers, began)
        else:
            self.kind = Kind.RESPONSE
            self.verdict = self._judge(status, headers, began)
            if message.get("trailers") and self.verdict.reason != "too large":
                self.verdict = Verdict(None, "trailers")
        if self.verdict.policy is not None and self._request.shows_cookies and not self.is_replay:
            self._config.shareable[self._request.key] = True
            self.verdict = Verdict(None, "cookie")

    def _confirm(self, base: StoredResponse, headers: Headers, began: float) -> None:
        """Update the header of the stored response with that of the 304 (RFC 9111 4.3.4)."""
        if not selects(headers, base.headers):
            self.kind = Kind.UNRELATED
            return
        self.kind = Kind.CONFIRMATION
        merged = updated(base.headers, headers)
        # The `Age` of the 304 counts, and not the stored one.
        ages = [(b"age", value) for value in values_of(headers, b"age")]
        self.status, self.headers = base.status, merged
        # A 304 need not repeat the field that names the tags, so the entry's tags stay.
        self.verdict = self._judge(base.status, [*merged, *ages], began, self._base_tags)

    def _judge(self, status: int, headers: Headers, began: float, kept: tuple[str, ...] = ()) -> Verdict:
        self.length = content_length(headers)
        if (self.length or 0) > self._config.max_body_bytes:
            return Verdict(None, "too large")
        request = self._request
        groups = strings(values_of(headers, b"cache-groups"))[:MOST_GROUPS]
        asked = declared(self.scope)
        ruled = request.terms()
        terms = self._terms.terms or ruled
        # The `vary` of a rule counts even if the endpoint's decorator gives the terms.
        names = {*asked.fields, *(ruled.vary if ruled is not None else ())}
        personal = is_personal(self.scope)
        if personal and terms is not None:
            # The session or user of the scope says who asks, so no request field can select the response.
            terms = terms._replace(per_credential=False)
        if self._config.sharing.cookies_private:
            # Requests with cookies come this far only if a rule names the cookies that matter; these are in the key.
            names.discard("cookie")
        if terms is not None and terms.per_credential:
            names.add(ALL_CREDENTIALS)
        # A field that the route or the user names selects by its exact value.
        names |= {EXACTLY + name for name in (*names, *(terms.vary if terms is not None else ())) if name.isascii()}
        by_field = self.authorized or request.has_any(asked.credentials)
        self.authorized = by_field or personal
        verdict = judge(
            status,
            headers,
            terms,
            self._config.sharing,
            began=began,
            authorized=self.authorized,
            tags=(*request.tags, *(request.group_tag(group) for group in groups), *kept),
            declared=tuple(names),
        )
        verdict = add_names(
            with_seen(for_reader(verdict, by_field), request, reads_of(self.scope)), self._varies.named(began)
        )
        is_hidden = not asked.is_complete
        if self._terms.terms is not None:
            is_hidden = is_hidden or not answers(self.scope, self._terms.endpoint)
        if verdict.policy is not None and is_hidden:
            # Middleware inside the app routes a copy of the scope, so swr does not see the route's declarations.
            return Verdict(None, "route not seen")
        field = None if verdict.policy is None else request.unknown_beyond({*verdict.vary, *verdict.ignores})
        if field is not None and not verdict.own_terms:
            self._config.warn_unknown(field)
            return Verdict(None, f"field {field}")
        if field is not None and status in ABOUT_THE_CLIENT:
            # The app may have refused this field; a client without it would get another answer.
            return Verdict(None, f"field {field}")
        behind = self._why_behind(verdict, terms, asked)
        if behind:
            return Verdict(None, behind)
        rule = request.find_rule()
        left_out = None if rule is None or verdict.policy is None else rule.left_out(asked)
        if left_out is not None:
            self._config.warn_left_out(left_out)
            return Verdict(None, f"parameter {left_out}")
        # swr stores a part only if the fields that select it were known before, and `Content-Range` says its place.
        known = self.is_range and verdict.vary == self._varies.names and content_range(headers) is not None
        if status == 206 and verdict.policy is not None and not known:
            return Verdict(None, "partial")
        if self.is_range and status >= 400:
            # The error may be about the range, and then says nothing about the whole resource.
            return Verdict(None, f"status {status}")
        return verdict

    def _why_behind(self, verdict: Verdict, terms: Terms | None, asked: Declared) -> str:
        """Return why swr must not serve the response before the endpoint's dependencies have run; empty: swr may.

        Parameters:
            verdict: the verdict on the response.
            terms: the terms of the endpoint or of a rule.
            asked: the parts of the request that the route declares.
        """
        if verdict.policy is not None and not self._terms.has_tags:
            return "tags"
        if verdict.policy is not None and self._terms.is_keyed:
            # The user's `key=` selects the response, so its URL does not identify it.
            return "key"
        if verdict.policy is None or verdict.own_terms:
            return ""
        admission, request = self._terms.admission, self._request
        if admission is not None and admission.is_admitted:
            return "after dependencies"
        reads = reads_of(self.scope, request.outer)
        if terms is not None and terms.per_credential and request.credentials:
            return self._why_seen(verdict, reads.names) or why_outer(self._config, admission)
        if self._terms.terms is not None and not (request.has_key or calls(self.scope, self._terms.wrapper)):
            # A decorator between the route and `@cache.response` may read anything, as a guard may.
            return "route"
        if reason := self._why_seen(verdict, reads.by_middleware) or why_outer(self._config, admission):
            return reason
        if (asked.guard_fields is None or asked.looking) and not request.has_key:
            return asked.looking or "guard"
        if reason := self._why_seen(verdict, reads_of(self.scope).by_route):
            return reason
        # Under a rule, the fields that guards read select the response.
        return "guard" if self._terms.terms is not None and request.has_any(asked.guard_fields or ()) else ""

    def _why_seen(self, verdict: Verdict, names: Collection[str]) -> str:
        """Return a part of the request that the app has read and that does not select the response; empty: none.

        Parameters:
            verdict: the verdict on the response.
            names: the parts that the app has read; see `Reads`.
        """
        if verdict.own_terms:
            return ""
        names = beside_credential(names) if verdict.per_credential and self._request.credentials else names
        for name in sorted(self._request.own_keys.uncovered(names), key=lambda name: (name != ALL_FIELDS, name)):
            if name in (ADDRESS, ALL_FIELDS) or not self._request.knows(name, {*verdict.vary, *verdict.ignores}):
                return self._config.why_read(name, self.scope["path"])
        return ""

    def why_late(self) -> str:
        """Return why swr must not store the response after what the app has read during its body; empty: swr may."""
        if not self.verdict.shared and is_personal(self.scope):
            return "session"
        return self._why_seen(self.verdict, names_read_late(self.scope))

    def forget_unrelated(self) -> None:
        """Prepare to ask the app again, without a stored response to confirm."""
        self.base, self.kind, self._origin = None, Kind.NONE, None

    def take_as_error(self) -> None:
        """Treat the response as an error that is not stored, whatever its own directives say."""
        self.kind, self.verdict = Kind.ERROR, Verdict(None)

    def add(self, chunk: bytes) -> None:
        """Take a piece of the body; swr counts a piece that does not fit, but does not hold it."""
        self.size += len(chunk)
        if self.fits:
            add_piece(self._body, chunk)

    def reject(self, reason: str) -> None:
        """Decide that the response will not be stored, for this reason, and free the memory of its body."""
        self._body.clear()
        self.verdict = self.verdict._replace(policy=None, reason=reason)

    @property
    def depends_on_client(self) -> bool:
        """Return whether the app has read something in which requests with the same key may differ."""
        # An error in another client's language is better than one run of the failing app for each client.
        return bool(
            (getattr(self.scope, "is_copied", False) or self._request.unknown or declared(self.scope).fields)
            or reads_of(self.scope, self._request.outer).tell_who_asks
            or why_outer(self._config, self._terms.admission)
        )

    def is_for_others(self) -> bool:
        """Return whether swr may answer the waiting requests with this error."""
        directives, _ = control(self.headers, self._config.sharing.targeted)
        asked, names = declared(self.scope), (b"vary", b"set-cookie")
        if self.authorized or self.depends_on_client or any(values_of(self.headers, name) for name in names):
            return False
        is_open = asked.is_complete and asked.guard_fields is not None and not asked.looking
        return is_open and directives.keys().isdisjoint(("private", "no-store"))

    def to_stored(self) -> StoredResponse:
        """Return the response in its stored form."""
        confirmed = self.base if self.kind is Kind.CONFIRMATION else None
        body = b"".join(self._body) if confirmed is None else confirmed.body
        return as_stored(self.status, self.headers, body, self.verdict)
