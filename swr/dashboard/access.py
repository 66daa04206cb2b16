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

# A token, a user and a password, or a function that takes the request.
Auth = str | tuple[str, str] | Callable[[Request], bool] | Callable[[Request], Awaitable[bool]]

# A page of another site can send this field only after a CORS preflight, which this app never allows.
ACTION_FIELD: Final = "x-swr-action"
_LONGEST_CREDENTIALS: Final = 4096
_USUAL_PORTS: Final = {"http": ":80", "https": ":443"}
_SHOWN: Final = 100


class Gate(Protocol):
    """A check of who may look at the dashboard."""

    async def admit(self, request: Request) -> str | Response:
        """Return the name of the user for the log, or the response that refuses the request."""


class Credentials:
    """A gate for users who know a token, or a user name and a password.

    A browser asks for them by HTTP's basic authentication. There, a token is the password of any user name.

    Parameters:
        user: the user name; None: any user name is valid, and so is `Authorization: Bearer` with the password.
        password: the secret.
    """

    def __init__(self, user: str | None, password: str) -> None:
        self._user = None if user is None else user.encode()
        self._password = password.encode()
        self._guesses = Guesses("auth= of the dashboard")

    async def admit(self, request: Request) -> str | Response:
        """Return the user name, or a refusal."""
        given = self._given(request.headers.getlist("authorization"))
        challenge = refused("credentials are required", 401, {"www-authenticate": 'Basic realm="swr", charset="UTF-8"'})
        if given is None:
            return challenge
        wait = self._guesses.wait(request.client)
        if wait:
            text = f"too many wrong passwords came from your address: wait {wait} s"
            return refused(text, 429, {"retry-after": str(wait)})
        user, password = given
        # Compare both, so that the time does not tell which of them was wrong.
        is_user = _same(user, user if self._user is None else self._user)
        is_password = _same(password, self._password)
        if is_user and is_password:
            return user.decode("utf-8", "replace") or "token"
        self._guesses.note(request.client, user + b":" + password)
        return challenge

    def _given(self, lines: list[str]) -> tuple[bytes, bytes] | None:
        """Return the user name and the password of a request, or None if it has none or is ambiguous."""
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
    """A gate for requests for which a function of the application returns True.

    Parameters:
        function: takes the request. Only True, or an awaitable of True, lets the request in.
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
    """Return the gate for `auth`.

    Raises:
        ConfigurationError: `auth` is not a token, a user and a password, or a function.
    """
    if auth is None:
        return Loopback()
    if isinstance(auth, str):
        return Credentials(None, secret_of(auth, "auth"))
    if isinstance(auth, tuple):
        if len(auth) != 2 or not all(isinstance(part, str) for part in auth) or not auth[0] or ":" in auth[0]:
            raise ConfigurationError("auth= must be a tuple of two strings: a user (not empty, no ':') and a password")
        return Credentials(auth[0], secret_of(auth[1], "the password in auth"))
    if callable(auth):
        return Function(auth)
    raise ConfigurationError(
        f"auth= is a {type(auth).__name__}: give a token, a tuple of user and password, or a function that takes the "
        f"request"
    )


def secret_of(secret: object, name: str) -> str:
    """Return `secret` unchanged.

    Raises:
        ConfigurationError: the secret is not text, or is empty, for example from an unset environment variable.
    """
    if not isinstance(secret, str) or not secret.strip():
        raise ConfigurationError(f"{name}= is empty or not text, and would let everybody in: give a secret")
    return secret


def why_not_answering(request: Request, *, is_file: bool) -> str | None:
    """Return why swr refuses a request that a page of another site sends; None: the request may get an answer.

    A link from another site to the page itself is allowed, because following it does no harm.

    Parameters:
        request: the request.
        is_file: whether it asks for a file of the page, which contains no data. For files, `Origin` is not compared
            with `Host`: over plain HTTP, browsers send `Origin` for scripts but no `Sec-Fetch-Site`, and a proxy may
            have changed `Host`.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None and site not in ("same-origin", "none"):
        is_link = request.headers.get("sec-fetch-mode") == "navigate" and request.method == "GET"
        return None if is_link else "a page of another site asks for this"
    origin = request.headers.get("origin")
    # With Sec-Fetch-Site, the browser itself says that it is the same site. Host proves less: a proxy may change it.
    if origin is None or site is not None or is_file or _is_own(request, origin):
        return None
    return _unlike(request, origin)


def why_not_acting(request: Request) -> str | None:
    """Return why a request may not change anything, or None if it may.

    A browser adds its stored credentials even to requests that a page of another site sends. So a request must show
    that it comes from the dashboard's own page, or carry a token, which no browser adds by itself.
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
    # A browser omits the default port, but a proxy may write it.
    port = _USUAL_PORTS.get(scheme, "")
    return bool(host) and host.removesuffix(port) == request.headers.get("host", "").lower().removesuffix(port)


def _raw(text: str) -> bytes:
    """Return the bytes of a field value. They are UTF-8 if a token is not ASCII."""
    return text.encode("latin-1", "replace")


def _same(given: bytes, known: bytes) -> bool:
    return secrets.compare_digest(given, known)
