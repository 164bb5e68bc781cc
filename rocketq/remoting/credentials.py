"""Who we are for a server that asks: Apache's ACL signature (`AclClientRPCHook`, `AclUtils`)."""

from __future__ import annotations

import hmac
from base64 import b64encode
from dataclasses import dataclass, field

from rocketq.errors import ConfigError
from rocketq.remoting.command import Header

ACCESS_KEY = "AccessKey"
SIGNATURE = "Signature"


@dataclass(frozen=True)
class Credentials:
    """An account's name and its secret, which is never shown."""

    access_key: str
    secret_key: str = field(repr=False)

    @classmethod
    def of(cls, access_key: str | None, secret_key: str | None) -> Credentials | None:
        """None when neither is given. Raises ConfigError when one of them is missing."""
        if not access_key and not secret_key:
            return None
        if not access_key or not secret_key:
            missing = "access_key" if secret_key else "secret_key"
            raise ConfigError(f"an access key and a secret key belong together: {missing} is missing")
        return cls(access_key, secret_key)

    def signed(self, header: Header | dict[str, str] | None, body: bytes) -> dict[str, str]:
        """`extFields` with our name and the signature over everything in them and `body`."""
        ext = header.to_ext() if isinstance(header, Header) else dict(header or ())
        ext[ACCESS_KEY] = self.access_key
        ext[SIGNATURE] = signature(ext, body, self.secret_key.encode())
        return ext


def signature(ext: dict[str, str], body: bytes, secret: bytes, without: str = "") -> str:
    """Base64 of the HMAC-SHA1 over the values, in the order of their names, and the body.

    The signature itself is no part of it, nor is the field `without`.
    """
    values = [ext[name] for name in sorted(ext) if name != SIGNATURE and name != without]
    return b64encode(hmac.digest(secret, "".join(values).encode() + body, "sha1")).decode()
