"""The date, age and lifetime that a response itself gives (RFC 9111 4.2). Pure."""

from typing import Final

from swr.http.fields import LONGEST, Directives, Headers, delta_seconds, http_date, values_of

_LONGEST_GUESS: Final = 86400


def date_of(headers: Headers, began: float) -> float:
    """Return when the response was made; without a valid `Date`, when its request was sent (RFC 9110 6.6.1)."""
    dates = values_of(headers, b"date")
    date = http_date(dates[0], began) if dates else None
    return began if date is None else date


def age_of(headers: Headers) -> int:
    """Return `Age` in seconds: the first of several values; 0 if it is not a number (RFC 9111 5.1)."""
    values = values_of(headers, b"age")
    return delta_seconds(values[0].partition(b",")[0].strip().decode("latin-1")) or 0 if values else 0


def lifetime_of(headers: Headers, directives: Directives, targeted: bool, date: float) -> int | None:
    """Return the freshness lifetime in seconds that the response itself gives, or None (RFC 9111 4.2.1)."""
    for name in ("s-maxage", "max-age"):
        if name in directives:
            return delta_seconds(directives[name]) or 0
    expires = set() if targeted else set(values_of(headers, b"expires"))
    if not expires:
        return None
    # RFC 9111 5.3: a value that is not a date, such as "0", is in the past. So are several values that differ.
    until = http_date(expires.pop(), date)
    return 0 if until is None or expires else min(LONGEST, max(0, int(until - date)))


def guessed_lifetime(headers: Headers, date: float, share: float) -> int | None:
    """Return a lifetime in seconds, a share of the time since the last change, or None (RFC 9111 4.2.2)."""
    modified = values_of(headers, b"last-modified")
    since = http_date(modified[0], date) if modified else None
    return None if since is None else min(_LONGEST_GUESS, max(0, int((date - since) * share))) or None
