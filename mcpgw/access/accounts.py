"""Users, as those who administer them see them: added, changed, shut out; and links that let in once.

Commands and the gateway use this alike; what is done is in the store's journal, which the gateways read.
"""

import hashlib
import re
import secrets
import unicodedata
from collections.abc import Mapping
from typing import Final

from mcpgw.access.passwords import Passwords
from mcpgw.errors import ConfigError, suggest
from mcpgw.roles import Role
from mcpgw.store import By, Store, StoredUser
from mcpgw.store.runner import now

FIRST_ADMIN: Final = "admin"
LINK_SECONDS: Final = 24 * 3600
LINK_PREFIX: Final = "mcpgw-link-"
"""How the secret of a one-use link begins, so that searches for lost secrets find it."""

_USER_NAME = re.compile(r"[a-z0-9][a-z0-9_.@+-]{0,127}")


def digest(secret: str) -> str:
    """What is kept of a secret that was drawn at random with 256 bits: its SHA-256, as hexadecimal text.

    Nobody can try that many, so that a slow hash would only slow the gateway. It is looked up as a whole, so
    that the time of the search tells nothing of the secret.
    """
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def canonical_name(text: str) -> str:
    """The one way to write a name, however it was typed: NFKC, then case folding (Unicode, section 3.13)."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def check_user_name(name: str) -> None:
    """Raise `ConfigError` where `name` cannot be a user's.

    There are no two ways to write a name, so that nobody can be taken for another: small letters, and none
    beyond ASCII.
    """
    if not _USER_NAME.fullmatch(name):
        small = canonical_name(name)
        hint = f"; write {small!r}" if _USER_NAME.fullmatch(small) else ""
        raise ConfigError(
            [
                (
                    f"{name[:64]!r} is no name of a user: small letters, digits and _ . @ + -, the first a "
                    f"letter or a digit, at most 128{hint}"
                )
            ]
        )


class Accounts:
    """Administers the users of a store; `roles` are those that there are, `by` who does it."""

    def __init__(self, store: Store, passwords: Passwords, roles: Mapping[str, Role]) -> None:
        self._store = store
        self._passwords = passwords
        self._roles = roles

    async def list(self) -> list[StoredUser]:
        """All users, by name."""
        return await self._store.users.list()

    async def add(self, name: str, *, role: str, password: str | None, by: By) -> None:
        """Add a user; without a password one needs a link to come in.

        Raises:
            ConfigError: the name, the role or the password cannot be one, or the name is taken.
            StoreError: it cannot be kept.
        """
        check_user_name(name)
        self._check_role(role)
        password_hash = "" if password is None else await self._passwords.hash(password)
        if not await self._store.users.add(name, role=role, password_hash=password_hash, by=by):
            raise ConfigError([f"there is a user {name!r} already"])

    async def set_password(self, name: str, password: str, *, by: By) -> None:
        """Give a user another password; every login of theirs ends.

        Raises:
            ConfigError: there is no such user, or it cannot be a password.
            StoreError: it cannot be kept.
        """
        await self._known(name)
        password_hash = await self._passwords.hash(password)
        self._require(await self._store.users.set_password(name, password_hash, by=by), name)

    async def set_role(self, name: str, role: str, *, by: By) -> None:
        """Give a user another role.

        Raises:
            ConfigError: there is no such user, or no such role.
            StoreError: it cannot be kept.
        """
        await self._known(name)
        self._check_role(role)
        self._require(await self._store.users.set_role(name, role, by=by), name)

    async def set_disabled(self, name: str, disabled: bool, *, by: By) -> None:
        """Shut a user out, whose logins and keys hold no more; or let them in again.

        Raises:
            ConfigError: there is no such user.
            StoreError: it cannot be kept.
        """
        await self._known(name)
        self._require(await self._store.users.set_disabled(name, disabled, by=by), name)

    async def link(self, name: str, issuer: str, subject: str, *, by: By) -> None:
        """Have whom `issuer` (its ``iss``) knows as `subject` be this user.

        Raises:
            ConfigError: there is no such user, or they are another one already, or there are too many.
            StoreError: it cannot be kept.
        """
        await self._known(name)
        if await self._store.identities.link(issuer, subject, name, by=by):
            return
        other = await self._store.identities.find(issuer, subject)
        reason = f"that is {other!r} already" if other else "it is too long, or the user has too many"
        raise ConfigError([f"{subject[:64]!r} of {issuer[:128]} cannot be {name!r}: {reason}"])

    async def unlink(self, issuer: str, subject: str, *, by: By) -> None:
        """Have whom `issuer` knows as `subject` be nobody here any more; logins that have begun go on.

        Raises:
            ConfigError: they are nobody.
            StoreError: it cannot be kept.
        """
        if not await self._store.identities.unlink(issuer, subject, by=by):
            raise ConfigError([f"{subject[:64]!r} of {issuer[:128]} is nobody here"])

    async def make_link(self, name: str, *, by: By, seconds: float = LINK_SECONDS) -> str:
        """The secret of a link that lets a user in once, within `seconds`; it is kept nowhere.

        Raises:
            ConfigError: there is no such user, or they are disabled.
            StoreError: it cannot be kept.
        """
        if (await self._known(name)).disabled:
            raise ConfigError([f"the user {name!r} is disabled"])
        secret = LINK_PREFIX + secrets.token_urlsafe(32)
        expires_at = now() + round(seconds * 1000)
        self._require(
            await self._store.users.set_link(name, digest(secret), expires_at=expires_at, by=by), name
        )
        return secret

    async def first_link(self) -> str | None:
        """The secret of a link for the first admin, as long as nobody has ever come in; None afterwards.

        Nobody has where there are no users, or the one that was made for it has neither a password nor a
        login. A link of an earlier start holds no more.

        Raises:
            StoreError: it cannot be kept.
        """
        by = By("gateway", is_told=False)
        users = await self._store.users.list()
        if not users:
            await self._store.users.add(FIRST_ADMIN, role="admin", by=by)
        elif not (len(users) == 1 and _is_untouched(users[0])):
            return None
        return await self.make_link(FIRST_ADMIN, by=by)

    async def _known(self, name: str) -> StoredUser:
        user = await self._store.users.get(name)
        if user is None:
            names = [other.name for other in await self._store.users.list()]
            raise ConfigError([f"there is no user {name[:64]!r}{suggest(name, names)}"])
        return user

    def _require(self, found: bool, name: str) -> None:
        if not found:  # removed in this moment
            raise ConfigError([f"there is no user {name[:64]!r}"])

    def _check_role(self, role: str) -> None:
        if role not in self._roles:
            raise ConfigError([f"there is no role {role[:64]!r}{suggest(role, self._roles)}"])


def _is_untouched(user: StoredUser) -> bool:
    return (
        user.name == FIRST_ADMIN
        and user.created_by == "gateway"
        and user.updated_by == "gateway"
        and not user.password_hash
        and not user.disabled
    )
