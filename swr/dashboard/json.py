"""JSON as the dashboard sends it."""

import json
from typing import Any


def dumps(message: Any) -> bytes:
    """Return a message as JSON in one line of ASCII.

    Whatever a key or an error holds is data in it: no character ends a line, a script or a server-sent event.
    """
    text = json.dumps(message, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").encode()
