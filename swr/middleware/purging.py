"""`PURGE`: a request that invalidates entries, and that swr answers without the app."""

import json
import logging

from starlette.types import Scope, Send

from swr.http.purge import Refused, read_purge
from swr.middleware.config import Config
from swr.middleware.guesses import Bearer
from swr.middleware.request import Request
from swr.stores.tag_versions import Soft

log = logging.getLogger("swr")


async def purge(config: Config, token: Bearer, scope: Scope, send: Send) -> None:
    """Invalidate what a request with the right token names, and answer it.

    The answer is 202 if Redis is unreachable or refuses. Then the invalidation counts in this process now, and in the
    others as soon as Redis has it.
    """
    asked = token.refuse(scope) or read_purge(scope["headers"], config.sharing.tag_fields)
    of_get = config.rules.of_get
    request = Request(scope, of_get, config.selection, others=config.rules.others(of_get))
    if isinstance(asked, Refused):
        fields = [(b"www-authenticate", asked.challenge)] if asked.challenge else []
        fields += [(b"retry-after", b"%d" % asked.retry_after)] if asked.retry_after else []
        await _answer(send, asked.status, {"error": asked.error}, fields)
        return
    if request.is_too_long and not asked.tags:
        await _answer(send, 400, {"error": "the request is too long: purge by tags"})
        return
    engine, tags = config.engine, asked.tags or request.url_tags
    await engine.invalidate_tag(*(Soft(tag) if asked.soft else tag for tag in tags))
    is_pending = engine.store.has_pending
    what = ", ".join(asked.tags) or request.url
    client = (scope.get("client") or ("an unknown address",))[0]
    log.info("%s purges %r%s", client, what, ", softly" if asked.soft else "")
    done = f"{what}: {'stale' if asked.soft else 'gone'}{', elsewhere as soon as Redis has it' if is_pending else ''}"
    await _answer(send, 202 if is_pending else 200, {"done": done})


async def _answer(
    send: Send, status: int, content: dict[str, str], headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    body = json.dumps(content).encode()
    fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    fields += [(b"cache-control", b"no-store"), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})
