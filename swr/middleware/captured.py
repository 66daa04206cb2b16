"""The response of one run of the app, as far as it has come, and whether it may be stored."""

import enum
from typing import Any, Final

from starlette.types import Message, Scope

from swr.endpoints.declared import answers, declared
from swr.endpoints.decorator import EndpointTerms
from swr.entry import Entry
from swr.errors import SWRError
from swr.http.caching import ABOUT_THE_CLIENT, GONE, UNREACHABLE, Verdict, control, judge
from swr.http.conditional import CONDITIONS, selects, updated
from swr.http.fields import (
    Headers,
    content_length,
    content_range,
    strings,
    values_of,
)
from swr.http.stored_response import StoredResponse, as_stored, is_response
from swr.middleware.config import Config
from swr.middleware.request import Request, is_personal

# Fields of a request that ask for something else than the whole resource.
_PARTIAL: Final = CONDITIONS | {b"range"}
# RFC 9875 2 lets a cache limit the number of groups of a response.
MOST_GROUPS: Final = 128


class ErrorResponse(SWRError):
    """The app answered with a status for which a stale response is a fallback.

    Parameters:
        status: of the answer.
        response: the answer, for waiting requests that have no fallback; None if it is not for others.
    """

    def __init__(self, status: int, response: StoredResponse | None) -> None:
        super().__init__(f"the app answered {status}")
        self.status = status
        self.response = response


def is_fallback(entry: Entry[Any], error: BaseException, now: float) -> bool:
    """Whether a stored response may answer after a failure (RFC 5861 4; RFC 9111 4.2.4 and 4.3.3).

    Its own directives say how long for any failure; for an app that gives no answer at all it may do so longer.
    """
    if not is_response(entry):
        return False
    if isinstance(error, ErrorResponse):
        unreachable = error.status in UNREACHABLE
    else:
        unreachable = isinstance(error, (ConnectionError, TimeoutError, SWRError))
    return unreachable or now < max(entry.stale_until, entry.fresh_until + entry.value.stale_if_error)


class Kind(enum.Enum):
    """What the app has answered."""

    # Nothing, so far.
    NONE = "none"
    RESPONSE = "response"
    # A 304 that confirms the stored response.
    CONFIRMATION = "confirmation"
    # A 304 to something else than the stored response.
    UNRELATED = "unrelated 304"
    # An error for which a stale response may be a fallback; it is not stored.
    ERROR = "error"


class CapturedResponse:
    """The app's response as far as it has come, with the verdict whether it may be stored, and why not.

    Parameters:
        config: of the middleware.
        request: what was asked.
        terms: what the endpoint says about its response.
        names: the request fields that select the variant, as far as known.
        is_replay: whether it is a background run, without the client's credentials.
    """

    __slots__ = (
        "_body",
        "_config",
        "_names",
        "_request",
        "_terms",
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
        self, config: Config, request: Request, terms: EndpointTerms, names: tuple[str, ...], *, is_replay: bool
    ) -> None:
        self._config = config
        self._request = request
        self._terms = terms
        self._names = names
        self.is_replay = is_replay
        self.is_range = not is_replay and request.method == "GET" and b"range" in request.fields
        # A replay has credentials only where they select what is stored.
        self.authorized = request.authorized and (not is_replay or not {"authorization", "x-api-key"}.isdisjoint(names))
        # The stored response that the app is asked to confirm.
        self.base: StoredResponse | None = None
        self.kind = Kind.NONE
        self.status = 0
        self.headers: Headers = []
        self.verdict = Verdict(None)
        self.size = 0
        self.is_ended = False
        # What the app got; frameworks write the route into it.
        self.scope: Scope = request.scope
        # What `Content-Length` says.
        self.length: int | None = None
        self._body: list[bytes] = []

    @property
    def is_about_all(self) -> bool:
        """Whether it says something about the resource, and not just about this request."""
        if self.status in GONE and not self.is_replay and not self._request.fields.keys().isdisjoint(_PARTIAL):
            return False
        if self.authorized or self._request.unknown_beyond(self._names) is not None:
            return False
        return self.status < 500 and self.status not in ABOUT_THE_CLIENT and self.status != 206

    @property
    def fits(self) -> bool:
        """Whether it is short enough to be stored, so far."""
        return self.size <= self._config.max_body_bytes

    @property
    def has_wrong_length(self) -> bool:
        """Whether its size is not what its `Content-Length` says; ask at its end."""
        return self.length is not None and self.length != self.size

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
        self.verdict = self._judge(base.status, [*merged, *ages], began)

    def _judge(self, status: int, headers: Headers, began: float) -> Verdict:
        self.length = content_length(headers)
        if (self.length or 0) > self._config.max_body_bytes:
            return Verdict(None, "too large")
        request = self._request
        groups = strings(values_of(headers, b"cache-groups"))[:MOST_GROUPS]
        asked = declared(self.scope)
        ruled = request.terms()
        terms = self._terms.terms or ruled
        # What a rule says of fields holds under the decorator's terms, too.
        names = {*asked.fields, *(ruled.vary if ruled is not None else ())}
        personal = is_personal(self.scope)
        if personal and terms is not None:
            # No field of the request says who it is.
            terms = terms._replace(per_credential=False)
        if self._config.sharing.cookies_private:
            # Requests with cookies come this far only if a rule says which of them matter.
            names.discard("cookie")
        if terms is not None and terms.per_credential:
            names |= {"authorization", *request.credentials, *asked.credentials, *self._names}
        self.authorized = self.authorized or personal or request.has_any(asked.credentials)
        verdict = judge(
            status,
            headers,
            terms,
            self._config.sharing,
            began=began,
            authorized=self.authorized,
            tags=(*request.tags, *(request.group_tag(group) for group in groups)),
            declared=tuple(names),
        )
        is_hidden = not asked.is_complete
        if self._terms.terms is not None:
            is_hidden = is_hidden or not answers(self.scope, self._terms.endpoint)
        if verdict.policy is not None and is_hidden:
            # A middleware inside the app works on a copy, so the route's declarations are out of sight.
            return Verdict(None, "route not seen")
        if verdict.policy is not None and not verdict.own_terms:
            field = request.unknown_beyond({*verdict.vary, *verdict.ignores})
            if field is not None:
                self._config.warn_unknown(field)
                return Verdict(None, f"field {field}")
        # The request must have selected a part already, and its place in the whole must be clear.
        known = self.is_range and verdict.vary == self._names and content_range(headers) is not None
        if status == 206 and verdict.policy is not None and not known:
            return Verdict(None, "partial")
        if self.is_range and status >= 400:
            # The part may be what is wrong with the request. It says nothing about the whole.
            return Verdict(None, f"status {status}")
        return verdict

    def forget_unrelated(self) -> None:
        """Begin again, without a stored response to confirm."""
        self.base, self.kind = None, Kind.NONE

    def take_as_error(self) -> None:
        """It is an error that will not be stored, whatever its own directives say."""
        self.kind, self.verdict = Kind.ERROR, Verdict(None)

    def add(self, chunk: bytes) -> None:
        """Take a piece of the body; one that does not fit is counted, but not held."""
        self.size += len(chunk)
        if self.fits:
            self._body.append(chunk)

    def reject(self, reason: str) -> None:
        """Free the memory of the body: for this reason it will not be stored."""
        self._body.clear()
        self.verdict = self.verdict._replace(policy=None, reason=reason)

    def is_for_others(self) -> bool:
        """Whether waiting requests may be answered with this error."""
        directives, _ = control(self.headers, self._config.sharing.targeted)
        asked = declared(self.scope)
        if asked.fields or not asked.is_complete or values_of(self.headers, b"vary") or self._request.unknown:
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
