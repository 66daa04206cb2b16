"""A caching reverse proxy: the middleware in front of an ASGI app that passes requests on to another HTTP service.

Public names: `Proxy` and `caching_proxy`; the modules are private. Imports: `swr.middleware`, `swr.cache` and below,
and httpx, which `pip install 'swr[proxy]'` installs.
"""

try:
    # This import gives a helpful error before another module fails without httpx.
    import httpx  # noqa: F401  # imported to see whether it is installed
except ImportError as error:
    raise ImportError("swr.proxy needs httpx: pip install 'swr[proxy]'") from error

from swr.proxy.caching import caching_proxy
from swr.proxy.proxy import Proxy

__all__ = ["Proxy", "caching_proxy"]
