"""The response of one run of the app, as far as it has come, and whether it may be stored."""

from collections.abc import Collection
from typing import Any, Final

from starlette.types import Message, Scope

from swr.endpoints.declared import Declared, answers, calls, declared
from swr.endpoints.origin import origin_of
from swr.endpoints.reads import ADDRESS, ALL_FIELDS, SELECTING_IF_SEEN
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
from swr.middleware.selection import is_personal

# Fields of a request that ask for something else than the whole resource.
_PARTIAL: Final = CONDITIONS | {b"range"}
# RFC 9875 2 lets a cache limit the number of groups of a response.
MOST_GROUPS: Final = 128


class CapturedResponse:
    """The app's response as far as it has come, with the verdict whether it may be stored, and why not.

    Parameters:
        config: of the middleware.
        request: what was asked.
        terms: what the endpoint says about its response.
        varies: by which fields the URL varies, as far as known.
        is_replay: whether it is a background run, without the client's credentials.
    """

    __slots__ = (
        "_base_tags",
        "_body",
        "_config",
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
        self.is_range = not is_replay and request.has_range
        # A replay has credentials only where they select what is stored.
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
        # What `Content-Length` says.
        self.length: int | None = None
        self._body: list[bytes | bytearray] = []
        # Once the response has begun.
        self._origin: str | None = None

    @property
    def origin(self) -> str:
        """The route that answers, as entries carry it; see `origin_of`."""
        if self._origin is not None:
            return self._origin
        origin = origin_of(self.scope)
        if self.status:
            self._origin = origin
        return origin

    @property
    def is_about_all(self) -> bool:
        """Return whether it says something about the resource, and not just about this request."""
        if self.status in GONE and not self.is_replay and not self._request.fields.keys().isdisjoint(_PARTIAL):
            return False
        if self.authorized or self._request.unknown_beyond(self._varies.names) is not None:
            return False
        return self.status < 500 and self.status not in ABOUT_THE_CLIENT and self.status != 206

    @property
    def varies_by(self) -> tuple[str, ...]:
        """The request fields that select it, as far as the URL was not known to vary by them."""
        return tuple(name for name in vary_of(self.headers) or () if name not in self._varies.names)

    def is_about(self, request: Request) -> bool:
        """Return whether it says something about what another request for the same URL would get."""
        names = self.varies_by
        return self.is_about_all and request.variant(names) == self._request.variant(names)

    @property
    def is_in_place_of_stored(self) -> bool:
        """Return whether the response replaces the stored one, unless that is for requests with other fields."""
        return self.is_about_all and (self.is_replay or not self.varies_by)

    @property
    def fits(self) -> bool:
        """Return whether it is short enough to be stored, so far."""
        return self.size <= self._config.max_body_bytes

    @property
    def is_whole(self) -> bool:
        """Return whether a client holds all of it by `Content-Length` or status, whatever the app still announces."""
        return self.size == (0 if self.status == 204 else self.length)

    def check_length(self) -> None:
        """Refuse a size that is not what its `Content-Length` says; call this at its end.

        Raises:
            SWRError: it is incomplete (RFC 9111 3.3), and so is the client's copy.
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
        """The same for a response that is not stored.

        Parameters:
            why: the `fwd` of `Cache-Status` (RFC 9211 2.2), unless a field keeps it away from the cache.
        """
        reason = self.verdict.reason
        why = b"bypass" if reason.startswith("field ") else why
        return self.marked(message, b'swr; fwd=%b; detail="%b"' % (why, reason.encode()))

    def choose_base(self, entry: Entry[Any] | None) -> None:
        """Choose the stored response that the app is asked to confirm, if there is one."""
        if entry is None or not is_response(entry) or self.is_range or not self._request.takes_conditions:
            return
        # RFC 9110 13.2.1: conditions are about a response that would be a success.
        if 200 <= entry.value.status < 300 and validators(entry.value.headers) and may_use(self._request, entry):
            self.base, self._base_tags = entry.value, entry.tags

    def conditional(self, headers: Headers) -> Headers:
        """Return the request's fields with the cache's own conditions instead of the client's (RFC 9111 4.3.1).

        The app must send a response that is of use to others; from it swr answers the client's conditions. Cookies
        that do not matter are not sent.
        """
        headers = self._request.withhold_cookies(headers)
        if self.is_range:
            return headers
        plain = [(name, value) for name, value in headers if name not in CONDITIONS]
        return plain if self.base is None else plain + validators(self.base.headers)

    def scope_for(self, scope: Scope) -> Scope:
        """Return the scope that the app gets, with the cache's own conditions; it notes where the app looks."""
        self.scope = routed(scope, self._config.app)
        give_headers(self.scope, self.conditional(scope["headers"]), set(self._request.outer))
        return self.scope

    def begin(self, message: Message, began: float) -> None:
        """Take the header of the response, and judge it.

        Parameters:
            message: `http.response.start`, its fields as bytes.
            began: wall clock, seconds, when the app was asked.
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

    def _confirm(self, base: StoredResponse, headers: Headers, began: float) -> None:
        """Take what has changed in the header of the stored response (RFC 9111 4.3.4)."""
        if not selects(headers, base.headers):
            self.kind = Kind.UNRELATED
            return
        self.kind = Kind.CONFIRMATION
        merged = updated(base.headers, headers)
        # The age is that of the confirmation.
        ages = [(b"age", value) for value in values_of(headers, b"age")]
        self.status, self.headers = base.status, merged
        # A field that names tags need not be in a 304.
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
        # A rule's fields count under the decorator's terms, too.
        names = {*asked.fields, *(ruled.vary if ruled is not None else ())}
        personal = is_personal(self.scope)
        if personal and terms is not None:
            # No field of the request says who it is.
            terms = terms._replace(per_credential=False)
        if self._config.sharing.cookies_private:
            # Requests with cookies come this far only if a rule says which of them matter.
            names.discard("cookie")
        if terms is not None and terms.per_credential:
            names.add(ALL_CREDENTIALS)
        # A field that the route or the user names selects as it was sent.
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
        verdict = add_names(self._with_seen(_for_reader(verdict, by_field)), self._varies.named(began))
        is_hidden = not asked.is_complete
        if self._terms.terms is not None:
            is_hidden = is_hidden or not answers(self.scope, self._terms.endpoint)
        if verdict.policy is not None and is_hidden:
            # A middleware inside the app works on a copy, so the route's declarations are out of sight.
            return Verdict(None, "route not seen")
        field = None if verdict.policy is None else request.unknown_beyond({*verdict.vary, *verdict.ignores})
        if field is not None and not verdict.own_terms:
            self._config.warn_unknown(field)
            return Verdict(None, f"field {field}")
        if field is not None and status in ABOUT_THE_CLIENT:
            # The field may be what the app has refused: for a client without it the answer is another one.
            return Verdict(None, f"field {field}")
        behind = self._why_behind(verdict, terms, asked)
        if behind:
            return Verdict(None, behind)
        rule = request.find_rule()
        left_out = None if rule is None or verdict.policy is None else rule.left_out(asked)
        if left_out is not None:
            self._config.warn_left_out(left_out)
            return Verdict(None, f"parameter {left_out}")
        # The request must have selected a part already, and its place in the whole must be clear.
        known = self.is_range and verdict.vary == self._varies.names and content_range(headers) is not None
        if status == 206 and verdict.policy is not None and not known:
            return Verdict(None, "partial")
        if self.is_range and status >= 400:
            # The part may be what is wrong with the request. It says nothing about the whole.
            return Verdict(None, f"status {status}")
        return verdict

    def _why_behind(self, verdict: Verdict, terms: Terms | None, asked: Declared) -> str:
        """Return why the response must not be stored in front of the dependencies of its endpoint, if it must not.

        Parameters:
            verdict: on the response.
            terms: of the endpoint, or of a rule.
            asked: what the route asks the request for.
        """
        if verdict.policy is not None and not self._terms.has_tags:
            return "tags"
        if verdict.policy is not None and self._terms.is_keyed:
            # Its URL does not tell whose it is.
            return "key"
        if verdict.policy is None or verdict.own_terms:
            return ""
        admission, request = self._terms.admission, self._request
        if admission is not None and admission.is_admitted:
            return "after dependencies"
        reads = reads_of(self.scope, request.outer)
        if terms is not None and terms.per_credential and request.credentials:
            return self._why_seen(verdict, reads.names) or why_outer(self._config, admission)
        if self._terms.terms is not None and not calls(self.scope, self._terms.wrapper):
            # A decorator between them may look at anything, as a guard may.
            return "" if request.has_key else "route"
        if reason := self._why_seen(verdict, reads.by_middleware) or why_outer(self._config, admission):
            return reason
        if asked.guard_fields is None or asked.looking:
            return "" if request.has_key else asked.looking or "guard"
        if reason := self._why_seen(verdict, reads_of(self.scope).by_route):
            return reason
        # Under a rule the fields of guards select.
        return "guard" if self._terms.terms is not None and request.has_any(asked.guard_fields) else ""

    def _why_seen(self, verdict: Verdict, names: Collection[str]) -> str:
        """Return at which part of the request that selects nothing the app has looked; or nothing.

        Parameters:
            verdict: on the response.
            names: where the app has looked; see `Reads`.
        """
        if verdict.own_terms or self._request.has_key:
            return ""
        # A credential that selects does not say what middleware around swr has set.
        names = {*names} & {*self._request.outer} if verdict.per_credential and self._request.credentials else names
        for name in sorted(names, key=lambda name: (name != ALL_FIELDS, name)):
            if name in (ADDRESS, ALL_FIELDS) or not self._request.knows(name, {*verdict.vary, *verdict.ignores}):
                return self._config.why_read(name, self.scope["path"])
        return ""

    def _with_seen(self, verdict: Verdict) -> Verdict:
        """Return a verdict by which the parts of few values select, if the app has looked at them."""
        if verdict.policy is None or verdict.own_terms or self._request.has_key:
            return verdict
        known = {*verdict.vary, *verdict.ignores}
        seen = reads_of(self.scope).names & SELECTING_IF_SEEN
        seen = {form for name in seen if not self._request.knows(name, known) for form in (name, EXACTLY + name)}
        return verdict._replace(vary=tuple(sorted({*verdict.vary, *seen})))

    def why_late(self) -> str:
        """Return why the response must not be stored, if the app has shown that while it sent the body; or nothing."""
        if not self.authorized and not self.verdict.shared and is_personal(self.scope):
            return "session"
        return self._why_seen(self.verdict, names_read_late(self.scope))

    def forget_unrelated(self) -> None:
        """Begin again, without a stored response to confirm."""
        self.base, self.kind, self._origin = None, Kind.NONE, None

    def take_as_error(self) -> None:
        """Reject an error: it will not be stored, whatever its own directives say."""
        self.kind, self.verdict = Kind.ERROR, Verdict(None)

    def add(self, chunk: bytes) -> None:
        """Take a piece of the body; one that does not fit is counted, but not held."""
        self.size += len(chunk)
        if self.fits:
            add_piece(self._body, chunk)

    def reject(self, reason: str) -> None:
        """Free the memory of the body: for this reason it will not be stored."""
        self._body.clear()
        self.verdict = self.verdict._replace(policy=None, reason=reason)

    def is_for_others(self) -> bool:
        """Return whether waiting requests may be answered with this error."""
        directives, _ = control(self.headers, self._config.sharing.targeted)
        asked = declared(self.scope)
        is_open = asked.is_complete and asked.guard_fields is not None and not asked.fields and not asked.looking
        if (
            not is_open
            # An error in another client's language is better than a run of a failing app for each.
            or reads_of(self.scope, self._request.outer).tell_who_asks
            or why_outer(self._config, self._terms.admission)
            or values_of(self.headers, b"vary")
            or self._request.unknown
        ):
            # Those who wait may have sent something else.
            return False
        return directives.keys().isdisjoint(("private", "no-store")) and not (
            self.authorized or values_of(self.headers, b"set-cookie")
        )

    def to_stored(self) -> StoredResponse:
        """Return the response as it may be stored."""
        confirmed = self.base if self.kind is Kind.CONFIRMATION else None
        body = b"".join(self._body) if confirmed is None else confirmed.body
        return as_stored(self.status, self.headers, body, self.verdict)


def _for_reader(verdict: Verdict, by_field: bool) -> Verdict:
    """Return the verdict with a reason that does not speak of credentials to a request that has none."""
    if by_field or verdict.reason != "authorization":
        return verdict
    return verdict._replace(reason="session")
