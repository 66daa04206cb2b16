"""Messages between the middleware and the wrapper of an endpoint about one request."""

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

# Where in the scope of a request its `Admission` is, so that no request within the request takes it for its own.
ADMISSION: Final = "swr_admission"


class Owner(Protocol):
    """The cache of an endpoint. It knows the first endpoint and app of each identity."""

    engine: Engine
    default_policy: DefaultPolicy
    first: dict[str, tuple[weakref.ref[Any], weakref.ref[Any]]]

    def digest(self, value: bytes, /) -> str: ...


class EndpointTerms:
    """Collects the terms that an endpoint gives while it answers one request.

    Parameters:
        owner: the cache that the middleware uses.
        limit: sets the time limit of the load, in seconds, if there is a load; call it in the event loop's thread.
        admission: lets the endpoint be answered from the cache behind its dependencies; None: it runs in any case.
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
        # The function that gave the terms.
        self.endpoint: Any = None
        # What `@cache.response` has made of it.
        self.wrapper: Any = None
        # Whether only the endpoint's arguments say what selects a response, so that none is stored by its URL.
        self.is_keyed = False
        # Returns the tags of what the endpoint returns; and whether that has worked. Otherwise nothing may be stored.
        self.tags_of: Callable[[Any], tuple[str, ...] | None] | None = None
        self.has_tags = True

    def add_tags(self, answer: Any) -> None:
        """Take the tags of what the endpoint has returned."""
        if self.tags_of is None or self.terms is None or getattr(answer, "status_code", 200) == 304:
            # A confirmed response keeps its tags.
            return
        tags = self.tags_of(answer)
        self.has_tags = tags is not None
        policy = self.terms.policy
        self.terms = self.terms._replace(policy=policy.tagged((*policy.tags, *(tags or ()))))


endpoint_terms: ContextVar[EndpointTerms | None] = ContextVar("swr_endpoint_terms", default=None)


class Asked(Protocol):
    """The middleware's word about a request.

    Attributes:
        key: of its URL, and of its content where that selects.
        method: whose key that is.
        query: the query as it came.
        fields: those that swr interprets, conditions and ranges for two; lower case.
        may_load: whether what the endpoint returns may be stored.
        limits: what the client accepts.
        sharing: the operator's choices.
        max_body_bytes: longer responses are not stored.
        outer_variable: what middleware around swr has set for this request, as "context variable tenant"; empty:
            nothing, or the user says what selects.
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
        """The tags of its URL."""

    def group_tag(self, group: str) -> str:
        """Return the tag of a cache group."""

    def is_kept_out(self, scope: Scope, fields: frozenset[str] | None, known: Collection[str]) -> bool:
        """Return whether the response of this request is not stored for everybody.

        Parameters:
            scope: as the app leaves it.
            fields: the request fields that guards ask for; None: any.
            known: the request fields of which the endpoint says what they mean.
        """

    def admit(self) -> None:
        """Note that the cache may answer after the dependencies."""

    def why_not(self, key: str) -> str:
        """Return why the responses of a key could not be stored lately; empty: swr may try."""

    def note(self, key: str, reason: str, tags: tuple[str, ...], tag_version: int) -> None:
        """Remember why a response could not be stored.

        Parameters:
            tag_version: the newest one when its load began.
        """


class Admission:
    """A request that the app's dependencies may admit to a stored response.

    Parameters:
        asked: what the middleware says about the request.
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
        # Of the request, as the endpoint gets it.
        self.scope: Scope = {}
        # Context variables that the app's own code finds set before it begins.
        self.variables: Context = copy_context()
        # Whether an endpoint has asked the cache; a second one in the same request runs without it.
        self.is_taken = False
        # Whether the cache could answer it.
        self.is_admitted = False
        # Whether the cache has answered, and published that.
        self.is_answered = False
        # Whether the load that the request has waited for failed, with nothing stored that could answer.
        self.has_failed = False
        # Why the endpoint was not answered from the cache; empty: it was, or none has asked.
        self.reason = ""
        # The fields that say where the answer comes from, and the status of that answer.
        self.marks: Headers | None = None
        self.status = 0
        # A copy of the session from before the app ran, for a background run.
        self.session: dict[str, Any] | None = None
        # The key of what is to be refreshed once the client has its answer; empty: nothing.
        self.stale = ""
