"""The JSON encoding of the dashboard's messages."""

import json
from typing import Any


def dumps(message: Any) -> bytes:
    """Return a message as JSON in one line of ASCII.

    No character of a key or an error can end a line, a script or a server-sent event.
    """
    text = json.dumps(message, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").encode()
