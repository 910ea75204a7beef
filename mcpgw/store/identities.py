"""Which user of the gateway somebody is whom another issuer knows.

A user's name is no proof: another issuer may give the same name to somebody else. So a link is by the issuer
and its ``sub``, which it never gives to another one (OpenID Connect Core 1.0 section 5.7).
"""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, delete, func, insert, select

from mcpgw.store.changes import By, note_change
from mcpgw.store.runner import Runner, now
from mcpgw.store.tables import IDENTITIES, USERS
from mcpgw.store.users import add_user

MOST_OF_A_USER: Final = 20
"""Identities that one user may have."""

LONGEST_ISSUER: Final = 512
LONGEST_SUBJECT: Final = 256


@dataclass(frozen=True, slots=True)
class StoredIdentity:
    """One link; `linked_at` is in milliseconds since the epoch."""

    issuer: str
    subject: str
    user: str
    linked_by: str
    linked_at: int


class Identities:
    """The stored links; each method is a transaction, and raises StoreError where that fails."""

    def __init__(self, run: Runner) -> None:
        self._run = run

    async def find(self, issuer: str, subject: str) -> str | None:
        """The user whom `issuer` knows as `subject`."""
        return await self._run(lambda c: _user_of(c, issuer, subject), reads=True)

    async def list(self, user: str | None = None) -> list[StoredIdentity]:
        """The links of one user or of all, by issuer and subject."""
        query = select(IDENTITIES).order_by(IDENTITIES.c.issuer, IDENTITIES.c.subject)
        if user is not None:
            query = query.where(IDENTITIES.c.user_name == user)
        return await self._run(lambda c: [_identity(row) for row in c.execute(query)], reads=True)

    async def link(self, issuer: str, subject: str, user: str, *, by: By) -> bool:
        """Have `subject` of `issuer` be `user`; whether that is so now.

        It is not where they are another user's already, where there is no such user, and where that one has
        too many.
        """
        if not _can_be_kept(issuer, subject):
            return False

        def write(connection: Connection) -> bool:
            linked = _user_of(connection, issuer, subject)
            if linked is not None:
                return linked == user
            known = connection.execute(select(USERS.c.name).where(USERS.c.name == user)).first()
            mine = select(func.count()).select_from(IDENTITIES).where(IDENTITIES.c.user_name == user)
            if known is None or connection.execute(mine).scalar_one() >= MOST_OF_A_USER:
                return False
            _add(connection, issuer, subject, user, by)
            return True

        return await self._run(write)

    async def make_user(self, issuer: str, subject: str, *, name: str, role: str, by: By) -> bool:
        """Make a new user whom `issuer` knows as `subject`, without a password.

        False where the name is taken, or `subject` is somebody here already.
        """
        if not _can_be_kept(issuer, subject):
            return False

        def write(connection: Connection) -> bool:
            if _user_of(connection, issuer, subject) is not None:
                return False
            if not add_user(connection, name, role=role, by=by):
                return False
            _add(connection, issuer, subject, name, by)
            return True

        return await self._run(write)

    async def unlink(self, issuer: str, subject: str, *, by: By) -> bool:
        """Have `subject` of `issuer` be nobody here any more; whether it was somebody."""
        mine = (IDENTITIES.c.issuer == issuer, IDENTITIES.c.subject == subject)

        def write(connection: Connection) -> bool:
            user = _user_of(connection, issuer, subject)
            if user is None:
                return False
            connection.execute(delete(IDENTITIES).where(*mine))
            note_change(connection, by, "users.unlinked", f"{user} {issuer} {subject}")
            return True

        return await self._run(write)


def linked_users(connection: Connection) -> dict[tuple[str, str], str]:
    """Every link: the user by issuer and subject."""
    return {(row.issuer, row.subject): row.user_name for row in connection.execute(select(IDENTITIES))}


def _can_be_kept(issuer: str, subject: str) -> bool:
    return 0 < len(issuer) <= LONGEST_ISSUER and 0 < len(subject) <= LONGEST_SUBJECT


def _add(connection: Connection, issuer: str, subject: str, user: str, by: By) -> None:
    row = {"issuer": issuer, "subject": subject, "user_name": user}
    connection.execute(insert(IDENTITIES).values(**row, linked_by=by.user, linked_at=now()))
    note_change(connection, by, "users.linked", f"{user} {issuer} {subject}")


def _user_of(connection: Connection, issuer: str, subject: str) -> str | None:
    query = select(IDENTITIES.c.user_name).where(
        IDENTITIES.c.issuer == issuer, IDENTITIES.c.subject == subject
    )
    row = connection.execute(query).first()
    return None if row is None else str(row.user_name)


def _identity(row: Row[Any]) -> StoredIdentity:
    return StoredIdentity(row.issuer, row.subject, row.user_name, row.linked_by, row.linked_at)
