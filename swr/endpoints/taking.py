"""The judgement about what an endpoint has returned or raised: whether swr stores it, and for how long."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from starlette.exceptions import HTTPException
from starlette.responses import Response

from swr.endpoints.answers import why_of_one, without_cookies
from swr.endpoints.raised import headers_of, stored_exception
from swr.endpoints.route import is_plain, respond
from swr.endpoints.terms import Asked
from swr.http.caching import Terms, Verdict, judge
from swr.http.fields import Headers, strings, values_of
from swr.http.stored_response import StoredResponse, as_stored
from swr.policy import Policy

# RFC 9875 2 lets a cache limit the number of groups of a response.
_MOST_GROUPS: Final = 128


class Answer(NamedTuple):
    """The result of an endpoint, and whether swr stores it.

    Parameters:
        value: the value that the endpoint has returned, or the exception that it has raised.
        status: the status code of the response.
        stored: the response for other clients; None: the result is for this client alone.
        policy: how long swr may serve it; None: swr does not store it.
        reason: why swr does not store it.
    """

    value: Any
    status: int
    stored: StoredResponse | None = None
    policy: Policy | None = None
    reason: str = ""


class Taking:
    """The judge of what an endpoint returns or raises for one request.

    Parameters:
        asked: the middleware's facts about the request.
        terms, where, own, tags_of: see `swr.endpoints.reader.Reader`.
        fields: the fields that the dependencies have set for this request.
    """

    __slots__ = ("_asked", "_fields", "_own", "_tags_of", "_terms", "_where")

    def __init__(
        self,
        asked: Asked,
        terms: Terms,
        where: Any,
        own: Response | None,
        fields: Headers,
        tags_of: Callable[[Any], tuple[str, ...] | None] | None,
    ) -> None:
        self._asked, self._terms, self._where = asked, terms, where
        self._own, self._fields = own, fields
        self._tags_of = tags_of

    def take(self, value: Any, began: float) -> Answer:
        """Return the answer for a value that the endpoint has returned; you may call this in any thread.

        Parameters:
            began: when the load began; wall clock, seconds.

        Raises:
            Exception: FastAPI cannot make a response from the value.
        """
        own, where = self._own, self._where
        added: Headers = []
        if isinstance(value, Response):
            response = value
        elif where is None:
            return Answer(value, 0, reason="response class")
        else:
            response = respond(where, value, None if own is None else own.status_code)
            if own is not None:
                added = own.raw_headers[len(self._fields) :]
                if own.raw_headers != [*self._fields, *added]:
                    return Answer(value, response.status_code, reason="fields of a dependency")
        status, headers, body = response.status_code, [*response.raw_headers, *added], getattr(response, "body", None)
        if not is_plain(type(response)) or response.background is not None or not isinstance(body, bytes):
            return Answer(value, status, reason="response class")
        seen = headers if isinstance(value, Response) else [*headers, *without_cookies(self._fields)]
        reason = why_of_one(status, seen)
        if reason:
            return Answer(value, status, reason=reason)
        tags = () if self._tags_of is None else self._tags_of(value)
        if tags is None:
            return Answer(value, status, reason="tags")
        verdict = self._judge(status, seen, self._terms, began, tags)
        stored = as_stored(status, headers, body, verdict)
        stored.takes_fields = not isinstance(value, Response)
        if len(body) > self._asked.max_body_bytes:
            return Answer(value, status, reason="too large")
        if verdict.validate:
            return Answer(value, status, stored, reason="no-cache")
        return Answer(value, status, stored, verdict.policy, verdict.reason)

    def take_raised(self, error: HTTPException, began: float) -> tuple[Answer, bool]:
        """Return the answer for an exception that the endpoint has raised, and whether it is for this client alone.

        Parameters:
            began: see `take`.
        """
        status, headers = error.status_code, headers_of(error)
        own = without_cookies(self._fields)
        reason = f"status {status}" if headers is None else why_of_one(status, headers)
        if headers is None or reason:
            return Answer(error, status, reason=reason), True
        reason = why_of_one(status, own)
        if reason:
            return Answer(error, status, reason=reason), False
        # An exception is stored only if its own fields say how long, so leave out the times of the decorator.
        verdict = self._judge(status, headers, self._terms._replace(timed=False), began, ())
        stored = None if verdict.validate or verdict.policy is None else stored_exception(error, headers, verdict)
        if stored is None:
            return Answer(error, status, reason=f"status {status}"), False
        if len(stored.body) > self._asked.max_body_bytes:
            return Answer(error, status, reason="too large"), False
        return Answer(error, status, stored, verdict.policy), False

    def _judge(self, status: int, headers: Headers, terms: Terms, began: float, tags: tuple[str, ...]) -> Verdict:
        asked, groups = self._asked, strings(values_of(headers, b"cache-groups"))[:_MOST_GROUPS]
        return judge(
            status,
            headers,
            terms,
            asked.sharing,
            began=began,
            authorized=False,
            tags=(*asked.tags, *map(asked.group_tag, groups), *tags),
        )
