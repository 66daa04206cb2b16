"""AES-GCM for values and AES-SIV for names; each key of values has an id."""

import base64
import binascii
import os
from collections.abc import Mapping
from typing import Final

from swr.errors import CodecError, ConfigurationError

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
    from cryptography.hazmat.primitives.hashes import SHA512
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF
except ImportError as error:
    raise ImportError(f"swr.encryption needs cryptography ({error}): pip install 'swr[encryption]'") from error

# The first byte of encrypted data, and of names before encryption. Raise it when the format after it changes.
_VERSION: Final = b"\x01"
# In bytes. NIST SP 800-38D requires 96 bits for random nonces.
_NONCE: Final = 12
_LENGTHS: Final = (16, 24, 32)
_LONGEST_ID: Final = 64
_SHORTEST_SECRET: Final = 16


class Encryption:
    """A codec that encrypts values with AES-GCM, and hides keys, tags and other names with AES-SIV.

    Parameters:
        keys: encryption keys by id, of 16, 24 or 32 bytes each, or these as base64. The first key encrypts; the others
            only decrypt older data. Ids are not encrypted in Redis.
        secret: the secret that hides names. It is at least 16 bytes long, and the same for all processes. Do not change
            it when you rotate keys.

    A key may encrypt 2**32 values (NIST SP 800-38D, for random nonces). Rotate it before that: at 1,000 values a
    second, after 49 days. The encryption binds each value to its cache key, version and namespace. So somebody who can
    write to Redis cannot put a value in another one's place.

    Raises:
        ConfigurationError: a key, an id or the secret cannot work. The message shows neither key nor secret.
    """

    def __init__(self, keys: Mapping[str, str | bytes], secret: str | bytes) -> None:
        if not isinstance(keys, Mapping) or not keys:
            raise ConfigurationError('there are no keys: give them by id, {"2026-11": key}')
        self._ciphers = {
            _id_of(name, number): AESGCM(_key_of(key, number))
            for number, (name, key) in enumerate(keys.items(), start=1)
        }
        self._first = next(iter(self._ciphers))
        secret = secret.encode() if isinstance(secret, str) else secret
        if not isinstance(secret, bytes) or len(secret) < _SHORTEST_SECRET:
            raise ConfigurationError(
                f"the secret of Encryption must be text or bytes, {_SHORTEST_SECRET} bytes or more: make one with "
                f"secrets.token_urlsafe(32)"
            )
        self._names = AESSIV(HKDF(SHA512(), 64, None, b"swr names").derive(secret))

    def __repr__(self) -> str:
        return f"Encryption(keys={', '.join(name.decode() for name in self._ciphers)})"

    @classmethod
    def from_text(cls, keys: str, secret: str) -> "Encryption":
        """Return the encryption that `SWR_ENCRYPTION_KEYS` and `SWR_SECRET` describe.

        Parameters:
            keys: `id=base64,id=base64`; the first one encrypts.
            secret: see `Encryption`.

        Raises:
            ConfigurationError: a key, an id or the secret cannot work.
        """
        found: dict[str, str | bytes] = {}
        for number, part in enumerate(filter(None, map(str.strip, keys.split(","))), start=1):
            name, equals, key = part.partition("=")
            if not equals or name in found:
                raise ConfigurationError(f"part {number} must be id=key: an id of its own, and a key in base64")
            found[name] = key
        return cls(found, secret)

    def encode(self, data: bytes, context: bytes, /) -> bytes:
        """Return `data`, encrypted with the first key."""
        nonce = os.urandom(_NONCE)
        head = b"%b%c%b" % (_VERSION, len(self._first), self._first)
        return head + nonce + self._ciphers[self._first].encrypt(nonce, data, head + context)

    def decode(self, data: bytes, context: bytes, /) -> bytes:
        """Return the decrypted data.

        Raises:
            CodecError: the key is not among the given ones, or the data was changed or belongs elsewhere.
        """
        if data[:1] != _VERSION:
            raise CodecError("it is not encrypted, or another version of swr has encrypted it")
        end = 2 + data[1] if len(data) > 1 else 2
        name = data[2:end]
        cipher = self._ciphers.get(name)
        if cipher is None:
            raise CodecError(
                f"it is encrypted with the key {name.decode('ascii', 'replace')!r}, which this cache does not have"
            )
        nonce = data[end : end + _NONCE]
        try:
            return cipher.decrypt(nonce, data[end + _NONCE :], data[:end] + context)
        except (InvalidTag, ValueError):
            raise CodecError(
                f"it is not what the key {name.decode()!r} has encrypted for this place: it was changed or moved, or "
                f"the key is another one"
            ) from None

    def encode_name(self, name: bytes, context: bytes, /) -> bytes:
        """Return a name, encrypted; equal names give equal bytes."""
        return self._names.encrypt(_VERSION + name, [context])

    def decode_name(self, data: bytes, context: bytes, /) -> bytes:
        """Return the name that `encode_name` encrypted.

        Raises:
            CodecError: `data` is not an encrypted name, or was made with another secret or for another namespace.
        """
        try:
            name = self._names.decrypt(data, [context])
        except (InvalidTag, ValueError):
            raise CodecError("it is not a name that was hidden with this secret") from None
        return name[1:]


# Errors name a wrong part by its number: if the user mistook a separator, the text of the id may be the key.


def _id_of(name: object, number: int) -> bytes:
    if not isinstance(name, str) or not name.isascii() or not name.isprintable() or not 0 < len(name) <= _LONGEST_ID:
        raise ConfigurationError(
            f"the id of key {number} must be 1 to {_LONGEST_ID} characters of printable ASCII, such as 2026-11"
        )
    return name.encode()


def _key_of(key: object, number: int) -> bytes:
    if isinstance(key, str):
        try:
            # Either alphabet of base64, with its padding or without.
            text = key.strip().rstrip("=").replace("-", "+").replace("_", "/")
            key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError):
            key = None
    if not isinstance(key, bytes) or len(key) not in _LENGTHS:
        raise ConfigurationError(f"key {number} must be 16, 24 or 32 bytes, or these as base64")
    return key
