"""The four classes of request fields, and what each means for stored responses. Pure.

| class      | what it means for a stored response                                                  |
| ---------- | ------------------------------------------------------------------------------------ |
| ignored    | the answer does not depend on it; an app that varies by it has to send `Vary`        |
| selecting  | part of the key: requests with other values have another stored response             |
| credential | identifies the client or user, as `Authorization` does (RFC 9111 3.5)                |
| unknown    | anything else: it keeps a request away from responses stored under swr's own terms   |

Fields that swr itself interprets (`Host`, `Cookie`, `Cache-Control`, conditions, `Range`, ...) are in none of them.
"""

import enum
import functools
import re
from collections.abc import Sequence
from typing import Final

from swr.errors import ConfigurationError
from swr.http.fields import unspaced


class FieldClass(enum.Enum):
    """The class of a request field; see the table of this module."""

    IGNORED = "ignored"
    SELECTING = "selecting"
    CREDENTIAL = "credential"
    UNKNOWN = "unknown"


# Fields that swr itself interprets.
INTERPRETED: Final = frozenset(
    {
        b"cache-control",
        b"content-length",
        b"cookie",
        b"host",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"pragma",
        b"range",
        b"transfer-encoding",
    }
)

# Preferences of a client.
PREFERENCES: Final = frozenset(
    {
        b"user-agent", b"accept", b"accept-charset", b"accept-language", b"accept-datetime", b"referer", b"dnt",
        b"from", b"sec-ch-ua", b"sec-ch-ua-mobile", b"sec-ch-ua-platform", b"sec-gpc",
    }
)  # fmt: skip
# Ignored or interpreted fields with few possible values. If the app's own code reads one, it selects.
OF_FEW_VALUES: Final = frozenset(
    {
        b"content-type", b"purpose", b"x-purpose", b"sec-purpose", b"x-moz", b"upgrade-insecure-requests",
        b"sec-fetch-dest", b"sec-fetch-mode", b"sec-fetch-site", b"sec-fetch-user",
        # About what the client can read. Compression middleware sends `Vary` only if it compresses.
        b"accept-encoding", b"accept-ranges", b"priority",
        # swr answers by these itself, but an app may understand another unit of ranges, or other directives.
        b"cache-control", b"pragma", b"range", b"if-range",
        # About the connection, and about the proxies on the way of the request.
        b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"upgrade", b"http2-settings", b"expect",
        b"max-forwards", b"alt-used", b"early-data", b"cdn-loop", b"via",
    }
)  # fmt: skip
# Fields with the client's address.
ADDRESSES: Final = frozenset(
    {
        b"x-forwarded-for", b"x-real-ip", b"x-client-ip", b"x-cluster-client-ip", b"true-client-ip",
        b"fastly-client-ip", b"x-original-forwarded-for", b"cf-connecting-ip", b"cf-connecting-ipv6",
        b"x-azure-clientip", b"x-envoy-external-address",
    }
)  # fmt: skip
# Fields that tell something about the client or its connection. If the app's own code turns one into something that an
# endpoint sees, it is no longer ignored. See `tells`. `Baggage` is any text that the client chooses.
TELLING: Final = PREFERENCES | OF_FEW_VALUES | ADDRESSES | {b"baggage"}

IGNORED: Final = (TELLING - INTERPRETED) | frozenset(
    {
        # Identifiers that proxies set.
        b"cf-ray", b"cf-ew-via", b"x-varnish", b"x-amz-cf-id", b"x-azure-ref",
        b"x-envoy-attempt-count", b"x-envoy-expected-rq-timeout-ms",
        # Identifiers of requests, and tracing.
        b"x-request-id", b"request-id", b"x-correlation-id", b"correlation-id", b"x-request-start", b"x-queue-start",
        b"traceparent", b"tracestate", b"b3", b"x-amzn-trace-id", b"x-cloud-trace-context",
        b"uber-trace-id", b"sentry-trace", b"newrelic", b"elastic-apm-traceparent", b"grpc-trace-bin",
    }
)  # fmt: skip
TELLING_PREFIXES: Final = (b"sec-", b"uberctx-")
IGNORED_PREFIXES: Final = (*TELLING_PREFIXES, b"x-b3-", b"x-datadog-", b"x-newrelic-", b"ot-tracer-")

SELECTING: Final = frozenset(
    {
        b"origin", b"forwarded", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-port",
        b"x-forwarded-prefix", b"x-forwarded-server", b"x-forwarded-scheme", b"x-forwarded-ssl", b"x-scheme",
        b"x-forwarded-protocol", b"x-forwarded-path", b"x-forwarded-uri", b"x-url-scheme",
        b"cloudfront-forwarded-proto",
        b"cf-visitor", b"x-original-host", b"x-original-url", b"x-rewrite-url", b"front-end-https",
        b"cf-ipcountry", b"cloudfront-viewer-country", b"x-country-code", b"x-geo-country", b"x-appengine-country",
        b"x-vercel-ip-country", b"fastly-geo-country", b"x-client-geo-location",
        b"x-requested-with", b"save-data",
        b"hx-request", b"hx-boosted", b"hx-target", b"hx-trigger", b"hx-trigger-name", b"hx-current-url",
        b"hx-history-restore-request", b"hx-prompt",
    }
)  # fmt: skip
SELECTING_PREFIXES: Final = (b"hx-",)

CREDENTIALS: Final = frozenset(
    {
        b"authorization", b"proxy-authorization", b"x-api-key", b"api-key", b"apikey", b"x-auth-token",
        b"x-access-token", b"x-id-token", b"x-session-token", b"private-token",
        b"job-token", b"deploy-token", b"x-authorization",
        b"remote-user", b"x-remote-user", b"x-remote-group", b"x-forwarded-user", b"x-forwarded-email",
        b"x-forwarded-groups", b"x-forwarded-preferred-username", b"x-forwarded-access-token",
        b"x-forwarded-client-cert", b"x-client-cert", b"x-ssl-client-cert", b"x-ssl-cert", b"ssl-client-cert",
        b"client-cert", b"client-cert-chain", b"x-ssl-client-verify", b"x-ssl-client-s-dn", b"x-ssl-client-dn",
        b"x-arr-clientcert", b"x-authenticated-user", b"x-authenticated-userid", b"x-consumer-username",
        b"x-consumer-id", b"x-credential-identifier", b"x-webauth-user", b"signature", b"signature-input", b"dpop",
        b"x-hub-signature", b"x-hub-signature-256", b"x-amz-security-token", b"x-amz-date",
    }
)  # fmt: skip
CREDENTIAL_PREFIXES: Final = (
    b"x-auth-request-",
    b"x-amzn-oidc-",
    b"cf-access-",
    b"x-goog-iap-",
    b"x-goog-authenticated-user-",
    b"x-ms-client-principal",
    b"x-ms-token-",
    b"x-authentik-",
    b"x-pomerium-",
    b"remote-",
    b"tailscale-user-",
)

# Among the names of selecting fields: all credentials of the request. No field has this name.
ALL_CREDENTIALS: Final = ":credentials"

# Among the names of selecting fields: the names of all the request's fields that describe the client (`tells`).
FIELD_NAMES: Final = ":names"
# Beside `FIELD_NAMES`: the values of these fields, apart from the client's address.
FIELD_VALUES: Final = ":values"

# The prefix of a field's name if the field selects by its exact bytes and lines. For `Vary`, two lines equal one line
# with a comma (RFC 9111 4.1), but a framework may use only one of the lines.
EXACTLY: Final = "="

# A well-formed client address in `Forwarded` (RFC 7239 6). Apps may read any other form in different ways.
_CLIENT: Final = re.compile(
    rb"for=(?:[\d.]+|unknown|_[\w.-]+|\"(?:[\d.]+|unknown|_[\w.-]+|\[[\da-f:.]+\])(?::[\w.-]+)?\")", re.IGNORECASE
)

# Fields whose own definition ignores case (RFC 9110 12.5). The order of members matters, because apps follow it.
_CASELESS: Final = frozenset({"accept-charset", "accept-encoding", "accept-language"})

# With one of these fields, an app may treat a request as one of another method.
_OVERRIDES: Final = frozenset({"x-http-method-override", "x-http-method", "x-method-override"})

# A longer name counts as unknown, without a lookup.
_LONGEST_NAME: Final = 128


def field_class(name: bytes) -> FieldClass:
    """Return the class of a request field that swr does not interpret itself.

    Parameters:
        name: in lower case.
    """
    return _field_class(name) if len(name) <= _LONGEST_NAME else FieldClass.UNKNOWN


@functools.lru_cache(1024)
def _field_class(name: bytes) -> FieldClass:
    # An app on WSGI takes `X_Forwarded_Host` for `X-Forwarded-Host`.
    hyphened = name.replace(b"_", b"-")
    if hyphened in CREDENTIALS or hyphened.startswith(CREDENTIAL_PREFIXES):
        return FieldClass.CREDENTIAL
    if hyphened in SELECTING or hyphened.startswith(SELECTING_PREFIXES):
        return FieldClass.SELECTING
    if name in IGNORED or name.startswith(IGNORED_PREFIXES):
        return FieldClass.IGNORED
    return FieldClass.UNKNOWN


def field_names(names: Sequence[str], parameter: str = "vary") -> tuple[str, ...]:
    """Return the names of fields in lower case.

    Raises:
        ConfigurationError: a name is not that of a field, or is that of a credential, by which responses cannot vary.
    """
    if isinstance(names, str):
        raise ConfigurationError(f"{parameter}={names!r} is one string: give ({names!r},)")
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or name == "*":
            raise ConfigurationError(f"{parameter}={names!r} holds {name!r}, which is not the name of a field")
        if parameter == "vary" and field_class(name.lower().encode()) is FieldClass.CREDENTIAL:
            raise ConfigurationError(
                f"vary={names!r} would have no effect: swr shares no answer to a request with {name}, unless the "
                f'answer says that it is for everybody. If it is, let it say "Cache-Control: public"; if each '
                f'credential has an answer of its own, give credentials="vary"; leave {name} out here'
            )
    return tuple(name.lower() for name in names)


def tells(name: bytes) -> bool:
    """Return whether a field, or a part of it, is ignored only as long as the app's own code does not read it.

    Parameters:
        name: in lower case.
    """
    # `Forwarded` selects without the address of the client, but an app may read that address.
    return name in TELLING or name.startswith(TELLING_PREFIXES) or name == b"forwarded"


def names_method(field: str) -> bool:
    """Return whether a request field may say that the request is of another method.

    Parameters:
        field: its name in lower case.
    """
    # WSGI frameworks treat both characters as the same.
    return field.replace("_", "-") in _OVERRIDES


def normalised(name: str, values: list[bytes]) -> str:
    """Return a request field as `Vary` compares it: repetition and white space do not matter (RFC 9111 4.1)."""
    text = unspaced(values)
    return text.lower() if name in _CASELESS else text


def selecting_value(name: bytes, value: bytes) -> bytes:
    """Return the part of a field's value that selects: of `Forwarded` not the client's address (RFC 7239)."""
    if name != b"forwarded":
        return value
    elements = []
    for element in value.split(b","):
        pairs = [pair.strip() for pair in element.split(b";")]
        elements.append(b";".join(pair for pair in pairs if not _CLIENT.fullmatch(pair)))
    return b",".join(element for element in elements if element)
