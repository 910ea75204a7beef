"""Tokens as an attacker makes them: by hand, since libraries refuse to."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any


def part(value: object) -> str:
    """One part of a JSON Web Token (RFC 7515 section 3.1)."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def claims(**changed: Any) -> dict[str, Any]:
    """The claims of a good token of ann, but for what is `changed`; None takes one away."""
    now = int(time.time())
    good = {
        "iss": "mcpgw",
        "aud": "mcpgw",
        "sub": "ann",
        "scope": "admin tools:call",
        "iat": now,
        "exp": now + 600,
        "jti": "forged",
    }
    return {name: value for name, value in {**good, **changed}.items() if value is not None}


def forged(key: bytes, payload: object = None, *, name: str = "HS256", **header: Any) -> str:
    """A token with a good HMAC by `key`, whatever its header calls that."""
    start = f"{part({'alg': name, 'typ': 'JWT', **header})}.{part(claims() if payload is None else payload)}"
    return f"{start}.{part(hmac.digest(key, start.encode(), hashlib.sha256))}"


def unsigned(name: str) -> str:
    """A token that says it needs no signature (CVE-2015-9235)."""
    return f"{part({'alg': name, 'typ': 'JWT'})}.{part(claims())}."


def tampered(token: str, **changed: Any) -> str:
    """A good token whose claims were changed behind its signature's back."""
    header, payload, signature = token.split(".")
    content = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return f"{header}.{part({**content, **changed})}.{signature}"
