"""Encryption of what is in Redis, with keys that can be rotated; it needs `swr[encryption]`. Public.

Imports: `swr.errors` and cryptography. Public name: `Encryption`, a `swr.NameCodec` for `Cache(codec=...)`.
"""

from swr.encryption.aes import Encryption

__all__ = ["Encryption"]
