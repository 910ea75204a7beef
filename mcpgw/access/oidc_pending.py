"""Logins that were begun at an identity provider and are not back yet.

What is known of one is kept nowhere here: it is sealed in a cookie of the browser that began it. So a flood
of beginnings takes no memory, and another gateway with the same secret can go on. One that has come back is
remembered until it would be too old, so that it does not come back twice; where another gateway has seen it,
or too many have come, it is the provider that takes its code once alone.
"""

import hmac
import json
import secrets
import time
from base64 import urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from mcpgw.access.accounts import digest
from mcpgw.errors import AuthFailed

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

PENDING_SECONDS: Final = 600
"""How long somebody may take at the provider."""

_MOST_SEALED: Final = 4096
_MOST_PATH: Final = 512
_MOST_USED: Final = 10_000
_NOT_HERE: Final = "this login was not begun in this browser, or too long ago: begin again"


@dataclass(frozen=True, slots=True)
class PendingLogin:
    """One login that was begun at the provider `issuer`, a name of the configuration.

    `state` (RFC 6749 section 4.1.1), `nonce` (OpenID Connect Core 1.0 section 3.1.2.1) and `verifier` (RFC
    7636 section 4.1) are secrets of 256 bits. `redirect_uri` is where the provider sends the browser back to,
    `return_to` the path of the gateway that the person wants, or empty.
    """

    issuer: str
    redirect_uri: str
    return_to: str = ""
    state: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    nonce: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    verifier: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @property
    def challenge(self) -> str:
        """What the provider is told of the verifier (RFC 7636 section 4.2, ``S256``)."""
        return urlsafe_b64encode(sha256(self.verifier.encode()).digest()).rstrip(b"=").decode()


class PendingLogins:
    """Seals logins that begin, and opens each once when it is back. `key` has 32 bytes.

    `clock` gives the time in seconds since the epoch.
    """

    def __init__(self, key: bytes, *, clock: Callable[[], float] = time.time) -> None:
        self._key = urlsafe_b64encode(key)
        self._clock = clock
        self._used: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        """How many that have come back are remembered."""
        return len(self._used)

    def __repr__(self) -> str:
        return "PendingLogins()"

    @cached_property
    def _fernet(self) -> "Fernet":
        from cryptography.fernet import Fernet  # noqa: PLC0415 - some MiB, for logins at a provider alone

        return Fernet(self._key)

    def seal(self, pending: PendingLogin) -> str:
        """A text for the browser that began it; nobody else can read or make one."""
        text = json.dumps(asdict(pending)).encode()
        return self._fernet.encrypt_at_time(text, int(self._clock())).decode("ascii")

    def take(self, sealed: str, state: str) -> PendingLogin:
        """The login of a sealed text that `state` has come back for; it is used up.

        Raises:
            AuthFailed: the text was not sealed here, or too long ago; or the state is another's, or was used.
        """
        if not 0 < len(sealed) <= _MOST_SEALED:
            raise AuthFailed(_NOT_HERE)
        from cryptography.fernet import InvalidToken  # noqa: PLC0415 - see `_fernet`

        now = self._clock()
        try:
            text = self._fernet.decrypt_at_time(sealed.encode(), PENDING_SECONDS, int(now))
            pending = PendingLogin(**json.loads(text))
        except (InvalidToken, UnicodeEncodeError, TypeError):  # the last: another version has sealed it
            raise AuthFailed(_NOT_HERE) from None
        if not hmac.compare_digest(pending.state.encode(), state.encode("utf-8", "surrogatepass")):
            raise AuthFailed(
                "this answer is not to the login that was begun last in this browser: begin again"
            )
        self._use_up(pending.state, now)
        return pending

    def _use_up(self, state: str, now: float) -> None:
        while self._used and (len(self._used) >= _MOST_USED or next(iter(self._used.values())) < now):
            self._used.popitem(last=False)
        name = digest(state)
        if name in self._used:
            raise AuthFailed("this answer of the identity provider was used before: begin again")
        self._used[name] = now + PENDING_SECONDS


def local_path(text: str) -> str:
    """`text` where it is a path of the gateway's own, with a query or not; empty where it leads elsewhere.

    Browsers take ``//host``, ``/\\host`` and such with tabs or line ends in them for other hosts (WHATWG
    URL).
    """
    if not text.startswith("/") or len(text) > _MOST_PATH or "\\" in text or not text.isascii():
        return ""
    if text.startswith("//") or " " in text or not text.isprintable():
        return ""
    try:
        parts = urlsplit(text)
    except ValueError:
        return ""
    return "" if parts.scheme or parts.netloc else text
