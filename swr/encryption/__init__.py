"""Encryption of the data in Redis, with keys that you can rotate; it needs `swr[encryption]`. Public.

Imports: `swr.errors` and cryptography. Public name: `Encryption`, a `swr.NameCodec` for `Cache(codec=...)`.
"""

from swr.encryption.aes import Encryption

__all__ = ["Encryption"]
