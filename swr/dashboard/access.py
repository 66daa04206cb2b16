"""Decides who may look at the dashboard, and who may act. Closed by default."""

import base64
import binascii
import inspect
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from swr.dashboard.answers import refused
from swr.dashboard.loopback import Loopback
from swr.errors import ConfigurationError
from swr.middleware.guesses import Guesses

log = logging.getLogger("swr")

# What says who may look: a token, a user and a password, or a function of the request.
Auth = str | tuple[str, str] | Callable[[Request], bool] | Callable[[Request], Awaitable[bool]]

# A page of another site cannot send it without asking first, and this app never allows that.
ACTION_FIELD: Final = "x-swr-action"
_LONGEST_CREDENTIALS: Final = 4096
_USUAL_PORTS: Final = {"http": ":80", "https": ":443"}
_SHOWN: Final = 100


class Gate(Protocol):
    """Lets requests in."""

    async def admit(self, request: Request) -> str | Response:
        """Return who asks, for the log, or how the request is answered in place."""


class Credentials:
    """Lets in who knows a token, or a user and a password.

    A browser asks for them by HTTP's basic authentication; a token is then the password of any user.

    Parameters:
        user: None: any, or `Authorization: Bearer` with the password.
        password: the secret.
    """

    def __init__(self, user: str | None, password: str) -> None:
        self._user = None if user is None else user.encode()
        self._password = password.encode()
        self._guesses = Guesses("auth= of the dashboard")

    async def admit(self, request: Request) -> str | Response:
        """Return the user, or a refusal."""
        given = self._given(request.headers.getlist("authorization"))
        challenge = refused("who are you?", 401, {"www-authenticate": 'Basic realm="swr", charset="UTF-8"'})
        if given is None:
            return challenge
        wait = self._guesses.wait(request.client)
        if wait:
            text = f"too many wrong passwords came from your address: wait {wait} s"
            return refused(text, 429, {"retry-after": str(wait)})
        user, password = given
        # Both are compared, so that the time does not tell which was wrong.
        is_user = _same(user, user if self._user is None else self._user)
        is_password = _same(password, self._password)
        if is_user and is_password:
            return user.decode("utf-8", "replace") or "token"
        self._guesses.note(request.client, user + b":" + password)
        return challenge

    def _given(self, lines: list[str]) -> tuple[bytes, bytes] | None:
        """Return user and password; None: none are given, or it is not clear which."""
        if len(lines) != 1 or len(lines[0]) > _LONGEST_CREDENTIALS:
            return None
        scheme, _, rest = lines[0].partition(" ")
        if scheme.lower() == "bearer" and self._user is None:
            return b"", _raw(rest.strip())
        if scheme.lower() != "basic":
            return None
        try:
            user, colon, password = base64.b64decode(rest.strip(), validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return None
        return (user, password) if colon else None


class Function:
    """Lets in the requests for which a function of the application returns True.

    Parameters:
        function: takes the request; only True, or an awaitable of True, lets it in.
    """

    def __init__(self, function: Callable[[Request], Any]) -> None:
        self._function = function
        self._has_warned = False

    async def admit(self, request: Request) -> str | Response:
        """Return the client's address, or a refusal."""
        answer = self._function(request)
        if inspect.isawaitable(answer):
            answer = await answer
        if answer is True:
            return "auth=" if request.client is None else request.client.host
        if answer is not False and not self._has_warned:
            self._has_warned = True
            log.warning(
                "auth= of the dashboard has returned a %s, so every request is refused: return True or False",
                type(answer).__name__,
            )
        return refused("auth= of this dashboard does not let you in", 403)


def gate_of(auth: Auth | None) -> Gate:
    """Return what lets requests in.

    Raises:
        ConfigurationError: it is not a token, a user and a password, or a function.
    """
    if auth is None:
        return Loopback()
    if isinstance(auth, str):
        return Credentials(None, secret_of(auth, "auth"))
    if isinstance(auth, tuple):
        if len(auth) != 2 or not all(isinstance(part, str) for part in auth) or not auth[0] or ":" in auth[0]:
            raise ConfigurationError("auth= is a tuple, but not of a user (without ':') and a password")
        return Credentials(auth[0], secret_of(auth[1], "the password in auth"))
    if callable(auth):
        return Function(auth)
    raise ConfigurationError(
        f"auth= is a {type(auth).__name__}: give a token, a tuple of user and password, or a function of the request"
    )


def secret_of(secret: object, name: str) -> str:
    """Return a secret.

    Raises:
        ConfigurationError: it is empty, as that of an environment variable that is not set, or no text.
    """
    if not isinstance(secret, str) or not secret.strip():
        raise ConfigurationError(f"{name}= is empty or no text, and would let everybody in: give a secret")
    return secret


def why_not_answering(request: Request, *, is_file: bool) -> str | None:
    """Return why a request gets nothing: a page of another site asks; None: it may get an answer.

    Following a link to the page itself does no harm.

    Parameters:
        is_file: whether it is a file of the page, which holds no data. Where a browser trusts no address, as it trusts
            none of plain HTTP, it names the origin of the page's scripts, and a proxy may have changed Host.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None and site not in ("same-origin", "none"):
        is_link = request.headers.get("sec-fetch-mode") == "navigate" and request.method == "GET"
        return None if is_link else "a page of another site asks for this"
    origin = request.headers.get("origin")
    # A proxy may have changed Host; the browser has then said that it is the same site.
    if origin is None or site is not None or is_file or _is_own(request, origin):
        return None
    return _unlike(request, origin)


def why_not_acting(request: Request) -> str | None:
    """Return why a request may not change anything; None: it may.

    A browser adds the credentials that it has to whatever a page of another site sends. So a request has to say that it
    comes from the page of this site, or to carry a token, which no browser adds by itself.
    """
    if request.headers.get(ACTION_FIELD) is None:
        return "the field X-SWR-Action is missing"
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        return None if site == "same-origin" else "the request comes from another site"
    if origin is not None:
        return None if _is_own(request, origin) else _unlike(request, origin)
    if request.headers.get("authorization", "").lower().startswith("bearer "):
        return None
    return "nothing says where the request comes from: send Origin, or Authorization: Bearer"


def _unlike(request: Request, origin: str) -> str:
    return (
        f"a page of another site asks for this, or a proxy has changed Host: the browser is at {origin[:_SHOWN]}, "
        f"and the request was for {request.headers.get('host', '')[:_SHOWN]}; have the proxy pass Host on, "
        "or serve the page over TLS"
    )


def _is_own(request: Request, origin: str) -> bool:
    try:
        scheme, host, *_ = urlsplit(origin.lower())
    except ValueError:
        return False
    # A browser leaves out the usual port, and a proxy may write it.
    port = _USUAL_PORTS.get(scheme, "")
    return bool(host) and host.removesuffix(port) == request.headers.get("host", "").lower().removesuffix(port)


def _raw(text: str) -> bytes:
    """Return a part of a field as it was sent; a token that is not ASCII is sent as UTF-8."""
    return text.encode("latin-1", "replace")


def _same(given: bytes, known: bytes) -> bool:
    return secrets.compare_digest(given, known)
