"""The objects by which the middleware and the wrapper of an endpoint exchange what they know of one request."""

import weakref
from collections.abc import Callable, Collection, Mapping
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, Protocol

from swr.engine.engine import Engine
from swr.http.caching import SharingRules, Terms
from swr.http.fields import Headers
from swr.http.request import Scope
from swr.lifecycle.default_policy import DefaultPolicy
from swr.policy import Limits, Timeout

# The name of a request's `Admission` in its scope. An inner request, which has another scope, does not find it there.
ADMISSION: Final = "swr_admission"


class Owner(Protocol):
    """The cache of an endpoint; in `first` it has the first endpoint and app of each route identity."""

    engine: Engine
    default_policy: DefaultPolicy
    first: dict[str, tuple[weakref.ref[Any], weakref.ref[Any]]]

    def digest(self, value: bytes, /) -> str: ...


class EndpointTerms:
    """The terms that an endpoint gives while it answers one request.

    Parameters:
        owner: the cache that the middleware uses.
        limit: sets the time limit of the load, in seconds; call it in the event loop's thread. None: there is no load.
        admission: with it the endpoint may answer from the cache; None: the endpoint runs in any case.
    """

    __slots__ = ("admission", "endpoint", "has_tags", "is_keyed", "limit", "owner", "tags_of", "terms", "wrapper")

    def __init__(
        self,
        owner: object,
        limit: Callable[[float], None] | None = None,
        admission: "Admission | None" = None,
    ) -> None:
        self.owner = owner
        self.limit = limit
        self.admission = admission
        self.terms: Terms | None = None
        # The endpoint that gave the terms.
        self.endpoint: Any = None
        # The wrapper that `@cache.response` has made of the endpoint.
        self.wrapper: Any = None
        # Whether the user's `key=` selects the response, so that swr must not store it under the URL's key.
        self.is_keyed = False
        # Returns the tags of the endpoint's result; and whether this has worked: if not, swr stores nothing.
        self.tags_of: Callable[[Any], tuple[str, ...] | None] | None = None
        self.has_tags = True

    def add_tags(self, answer: Any) -> None:
        """Add the tags of the endpoint's result to the terms."""
        if self.tags_of is None or self.terms is None or getattr(answer, "status_code", 200) == 304:
            # A confirmed response keeps its tags.
            return
        tags = self.tags_of(answer)
        self.has_tags = tags is not None
        policy = self.terms.policy
        self.terms = self.terms._replace(policy=policy.tagged((*policy.tags, *(tags or ()))))


endpoint_terms: ContextVar[EndpointTerms | None] = ContextVar("swr_endpoint_terms", default=None)


class Asked(Protocol):
    """The middleware's facts about a request, for the endpoint.

    Attributes:
        key: the key of its URL, and of its content if that selects; the endpoint extends it.
        method: the method of the request that the key is for.
        query: the query as it came.
        fields: the request fields that swr interprets, such as conditions and ranges; lower case.
        may_load: whether swr may store what the endpoint returns.
        limits: how old a response the client accepts.
        sharing: the operator's choices about sharing responses.
        max_body_bytes: the longest body that swr stores.
        outer_variable: the context variable that middleware around swr has set for this request, such as "context
            variable tenant"; empty: none, or `key=` says what selects.
    """

    key: str
    method: str
    query: bytes
    fields: Mapping[bytes, bytes]
    may_load: bool
    limits: Limits
    sharing: SharingRules
    max_body_bytes: int
    outer_variable: str

    @property
    def hard_timeout(self) -> Timeout:
        """Return how long a load may take; see `Policy`."""

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of the request's URL."""

    def group_tag(self, group: str) -> str:
        """Return the tag of a cache group."""

    def is_kept_out(self, scope: Scope, fields: frozenset[str] | None, known: Collection[str]) -> bool:
        """Return whether the middleware does not store the response of this request for everybody.

        Parameters:
            scope: the scope as it is when the endpoint runs.
            fields: the request fields that guards read; None: any.
            known: the request fields that the endpoint names in `vary` or `ignore_fields`, or declares.
        """

    def fields_of_rule(self, scope: Scope) -> Collection[str]:
        """Return the request fields that select the response because of a rule, lower case.

        Parameters:
            scope: the scope as it is when the endpoint runs.
        """

    def why_left_out(self, scope: Scope) -> str:
        """Return why the key may lack a part of the query that the route reads; empty: a rule leaves out no such part.

        Parameters:
            scope: the scope as it is when the endpoint runs.
        """

    def admit(self) -> None:
        """Note that the endpoint uses the cache after its dependencies."""

    def why_not(self, key: str) -> str:
        """Return why swr could not store the responses of a key lately; empty: swr may try."""

    def note(self, key: str, reason: str, tags: tuple[str, ...], tag_version: int) -> None:
        """Remember why swr could not store a response.

        Parameters:
            tag_version: the newest tag version when the load of the response began.
        """


class Admission:
    """The permission for an endpoint to answer a request from the cache, and notes of how the endpoint has used it.

    Parameters:
        asked: the middleware's facts about the request.
        refreshing: the key that this background run refreshes; empty: a client waits.
    """

    __slots__ = (
        "asked",
        "has_failed",
        "is_admitted",
        "is_answered",
        "is_taken",
        "marks",
        "reason",
        "refreshing",
        "scope",
        "session",
        "stale",
        "status",
        "variables",
    )

    def __init__(self, asked: Asked, refreshing: str = "") -> None:
        self.asked = asked
        self.refreshing = refreshing
        # The scope of the request, as the endpoint gets it.
        self.scope: Scope = {}
        # The context variables as they are before the app begins.
        self.variables: Context = copy_context()
        # Whether an endpoint has used this admission; a second endpoint in the same request runs without the cache.
        self.is_taken = False
        # Whether the endpoint has a key for the request, so that the cache may answer.
        self.is_admitted = False
        # Whether the cache has answered, and swr has published the read.
        self.is_answered = False
        # Whether the load that the request has waited for failed without a fallback.
        self.has_failed = False
        # Why the cache has not answered; empty: it has, or no endpoint has asked.
        self.reason = ""
        # The fields that say where the answer comes from, and the status of that answer.
        self.marks: Headers | None = None
        self.status = 0
        # A copy of the session from before the app ran, for a background run.
        self.session: dict[str, Any] | None = None
        # The key to refresh once the client has its answer; empty: none.
        self.stale = ""

    def __deepcopy__(self, memo: object) -> "Admission":
        """Return the admission itself, so that middleware can copy the scope that has it."""
        return self
