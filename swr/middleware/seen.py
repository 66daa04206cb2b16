"""The parts of a request that select its response because the app's own code has read them."""

from collections.abc import Collection

from swr.endpoints.reads import ALL_FIELDS, OF_ADDRESS, SELECTING_IF_SEEN, SERVER, Reads
from swr.http.caching import Verdict
from swr.http.request_fields import EXACTLY, FIELD_NAMES, FIELD_VALUES
from swr.middleware.request import Request


def with_seen(verdict: Verdict, request: Request, reads: Reads) -> Verdict:
    """Return the verdict; fields that the app has read select the response, too, where they may.

    Fields of few values may in any case. If a credential selects the response, so may all that describe the client.
    """
    if verdict.policy is None or verdict.own_terms:
        return verdict
    known, seen = {*verdict.vary, *verdict.ignores}, reads.names & SELECTING_IF_SEEN
    if verdict.per_credential and request.credentials:
        names = beside_credential(reads.names) - {SERVER}
        seen = {name for name in names if " " not in name and name.isascii()}
    seen = {form for name in seen if not request.knows(name, known) for form in (name, EXACTLY + name)}
    return verdict._replace(vary=tuple(sorted({*verdict.vary, *seen})))


def beside_credential(names: Collection[str]) -> set[str]:
    """Return which parts of a request still matter if its credential selects the response.

    A credential covers the client's address, but not its preferences.

    Parameters:
        names: the parts that the app has read; see `Reads`.
    """
    rest = {*names} - OF_ADDRESS
    return rest - {ALL_FIELDS} | {FIELD_NAMES, FIELD_VALUES} if ALL_FIELDS in rest else rest
