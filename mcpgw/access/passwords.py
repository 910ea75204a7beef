"""Passwords, kept as argon2id hashes (RFC 9106), made and checked beside the event loop.

A check costs some 64 MiB and tens of milliseconds on purpose. So few run at once, few wait, and who comes
beyond that is told to come again: a flood of logins takes neither the memory nor the loop.
"""

import asyncio
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import TYPE_CHECKING, Final, TypeVar

from mcpgw.errors import ConfigError, RateLimited

if TYPE_CHECKING:
    from argon2 import PasswordHasher

T = TypeVar("T")

MINIMUM_LENGTH: Final = 12
"""Shortest password, in characters (NIST SP 800-63B section 3.1.1.2 wants length, and no rules of signs)."""
MAXIMUM_LENGTH: Final = 256

_AT_ONCE = 2
_MOST_WAITING = 32
_RETRY_MS = 1000


def password_fault(password: str) -> str | None:
    """Why `password` cannot be one, in words that do not repeat it; None where it can."""
    if not MINIMUM_LENGTH <= len(password) <= MAXIMUM_LENGTH:
        return f"a password has {MINIMUM_LENGTH} to {MAXIMUM_LENGTH} characters, not {len(password)}"
    if any(unicodedata.category(sign) in ("Cc", "Cs") for sign in password):
        return "a password has no control characters"
    if len(set(password)) == 1:
        return "a password is not one sign again and again"
    return None


class Passwords:
    """Makes and checks hashes; `close` ends its threads. `hasher` says what a hash costs."""

    def __init__(self, hasher: "PasswordHasher | None" = None) -> None:
        self._given = hasher
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="password")
        self._under_way = 0
        self._nobody = ""

    @cached_property
    def _hasher(self) -> "PasswordHasher":
        from argon2 import PasswordHasher  # noqa: PLC0415 - in a thread, at the first password of all

        return self._given or PasswordHasher()

    async def hash(self, password: str) -> str:
        """The hash of a new password, with its salt and costs.

        Raises:
            ConfigError: it cannot be a password.
            RateLimited: too many are at it.
        """
        if fault := password_fault(password):
            raise ConfigError([fault])
        return await self._run(partial(self._hash, _normal(password)))

    async def verify(self, stored: str, password: str) -> bool:
        """Whether `password` is the one of `stored`; with an empty `stored` never, and in the same time.

        Raises:
            RateLimited: too many are at it.
        """
        if len(password) > MAXIMUM_LENGTH:
            password = ""  # too long for any, and not to be worked on
        return await self._run(partial(self._verify, stored, _normal(password)))

    def is_dated(self, stored: str) -> bool:
        """Whether a hash was made with other costs than those of today."""
        return self._hasher.check_needs_rehash(stored)

    def close(self) -> None:
        """Take nothing any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _hash(self, password: str) -> str:
        return self._hasher.hash(password)

    def _verify(self, stored: str, password: str) -> bool:
        from argon2.exceptions import InvalidHashError, VerificationError  # noqa: PLC0415 - see `_hasher`

        # Made at the first check of all, whoever's that is: else the first of nobody's would take longer.
        self._nobody = self._nobody or self._hasher.hash("nobody has this password")
        try:
            return self._hasher.verify(stored or self._nobody, password) and bool(stored)
        except (VerificationError, InvalidHashError):
            return False

    async def _run(self, work: "partial[T]") -> T:
        if self._under_way >= _MOST_WAITING:
            raise RateLimited("too many logins at the same time", retry_after_ms=_RETRY_MS)
        self._under_way += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._under_way -= 1


def _normal(password: str) -> str:
    """The same bytes however a keyboard composes its letters (NFKC, NIST SP 800-63B section 3.1.1.2)."""
    # Lone surrogates have no bytes.
    return unicodedata.normalize("NFKC", password).encode("utf-8", "replace").decode()
