"""The request parser of `ClientProtocol`."""

from typing import Final, Protocol

import httptools

_FRAMING: Final = (b"content-length", b"transfer-encoding")


class Callbacks(Protocol):
    """The callbacks of the parser; see httptools.

    Attributes:
        headers: the fields of the request, with names in lower case.
    """

    headers: list[tuple[bytes, bytes]]

    def on_message_begin(self) -> None: ...
    def on_url(self, url: bytes) -> None: ...
    def on_header(self, name: bytes, value: bytes) -> None: ...
    def on_headers_complete(self) -> None: ...
    def on_body(self, body: bytes) -> None: ...
    def on_message_complete(self) -> None: ...


class RequestParser:
    """httptools' parser, adapted for a server that never upgrades a connection (RFC 9110 7.8).

    After the header section of a request with `Upgrade`, httptools stops parsing, because another protocol may follow.
    Without an upgrade, the request's body and the next requests follow. Such requests are common: Java's client offers
    h2c with every request, even with a POST.

    Parameters:
        callbacks: the callbacks of the server.
    """

    def __init__(self, callbacks: Callbacks) -> None:
        self._callbacks = callbacks
        # A substitute header section without `Upgrade`. Parsing it makes httptools read the body of a request with
        # `Upgrade`. The flag says whether httptools is parsing the substitute now.
        self._head = b""
        self._is_repeating = False
        self.on_body = callbacks.on_body
        self._parser = httptools.HttpRequestParser(self)
        # As in uvicorn: data after a request with `Connection: close` does not make the request invalid.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def close(self) -> None:
        """Release httptools' parser. This breaks a reference cycle, so that no garbage collection is needed."""
        del self._parser

    def get_http_version(self) -> str:
        """Return the version of the request, such as "1.1"."""
        return self._parser.get_http_version()

    def get_method(self) -> bytes:
        """Return the method of the request."""
        return self._parser.get_method()

    def should_keep_alive(self) -> bool:
        """Return whether another request may follow on the connection."""
        return self._parser.should_keep_alive()

    def should_upgrade(self) -> bool:
        """Return False: no request leads to an upgrade."""
        return False

    def feed_data(self, data: bytes) -> None:
        """Parse what a client has sent.

        Raises:
            httptools.HttpParserError: the data is not a request, or a callback refuses it.
        """
        rest = memoryview(data)
        while True:
            try:
                self._parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
            if self._head:
                self._is_repeating = True
                head, self._head = self._head, b""
                self._parser.feed_data(head)

    def on_message_begin(self) -> None:
        """Report that a request begins."""
        if not self._is_repeating:
            self._callbacks.on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Report a part of the request's target."""
        if not self._is_repeating:
            self._callbacks.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Report a header field."""
        if not self._is_repeating:
            self._callbacks.on_header(name, value)

    def on_headers_complete(self) -> None:
        """Report that the header section is complete."""
        if self._is_repeating:
            self._is_repeating = False
            return
        self._callbacks.on_headers_complete()
        framing = [pair for pair in self._callbacks.headers if pair[0] in _FRAMING]
        if framing and self._parser.should_upgrade():
            self._head = b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(b"%b: %b\r\n" % pair for pair in framing)

    def on_message_complete(self) -> None:
        """Report that the request is complete. A request with `Upgrade` is complete when its body has been read."""
        if not self._head:
            self._callbacks.on_message_complete()
