"""The users of the gateway: their passwords, roles and one-use links."""

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from mcpgw.store.changes import By, note_change
from mcpgw.store.logins import end_logins_of
from mcpgw.store.runner import Runner, now
from mcpgw.store.tables import USERS


@dataclass(frozen=True, slots=True)
class StoredUser:
    """One user. `password_hash` is empty where there is no password; times are in ms since the epoch."""

    name: str
    password_hash: str = field(repr=False)
    role: str
    disabled: bool
    created_by: str
    created_at: int
    updated_by: str
    updated_at: int


class UserTable:
    """The stored users; each method is a transaction, and raises StoreError where that fails."""

    def __init__(self, run: Runner) -> None:
        self._run = run

    async def list(self) -> list[StoredUser]:
        """All of them, by name."""
        query = select(USERS).order_by(USERS.c.name)
        return await self._run(lambda c: [_user(row) for row in c.execute(query)], reads=True)

    async def get(self, name: str) -> StoredUser | None:
        """The one of this name."""
        return await self._run(lambda c: _get(c, name), reads=True)

    async def add(self, name: str, *, role: str, password_hash: str = "", by: By) -> bool:
        """Add one; false where the name is taken."""
        return await self._run(lambda c: add_user(c, name, role=role, password_hash=password_hash, by=by))

    async def set_password(self, name: str, password_hash: str, *, by: By) -> bool:
        """Set the password, which ends every login and link; whether there is such a user."""
        values = {"password_hash": password_hash, "link_hash": "", "link_expires_at": 0}
        return await self._change(name, values, by, "users.password", ends_logins="password")

    async def renew_hash(self, name: str, old: str, new: str) -> None:
        """Keep the same password with the costs of today, unless it was changed meanwhile."""
        query = update(USERS).where(USERS.c.name == name, USERS.c.password_hash == old)
        await self._run(lambda c: c.execute(query.values(password_hash=new)) and None)

    async def set_role(self, name: str, role: str, *, by: By) -> bool:
        """Give another role; whether there is such a user."""
        return await self._change(name, {"role": role}, by, "users.role")

    async def set_disabled(self, name: str, disabled: bool, *, by: By) -> bool:
        """Shut one out, or let them in again; whether there is such a user."""
        values: dict[str, Any] = {"disabled": disabled}
        if disabled:
            values |= {"link_hash": "", "link_expires_at": 0}
        action, reason = ("users.disable", "disabled") if disabled else ("users.enable", "")
        return await self._change(name, values, by, action, ends_logins=reason)

    async def set_link(self, name: str, link_hash: str, *, expires_at: int, by: By) -> bool:
        """Keep the hash of a one-use link, in the place of one before; whether there is such a user."""
        values = {"link_hash": link_hash, "link_expires_at": expires_at}
        return await self._change(name, values, by, "users.link")

    async def take_link(self, link_hash: str, *, password_hash: str = "") -> StoredUser | None:
        """Use a link up; answers whose it was. With `password_hash` the user has that password from now on.

        None where there is no such link, it is too old, or its user is disabled.
        """
        mine = (USERS.c.link_hash == link_hash, USERS.c.link_expires_at > now(), USERS.c.disabled.is_(False))

        def take(connection: Connection) -> StoredUser | None:
            row = connection.execute(select(USERS.c.name).where(*mine)).first() if link_hash else None
            if row is None:
                return None
            values: dict[str, Any] = {"link_hash": "", "link_expires_at": 0}
            values |= {"updated_by": row.name, "updated_at": now()}
            if password_hash:
                values["password_hash"] = password_hash
                end_logins_of(connection, row.name, "password", By(row.name, is_told=True))
            connection.execute(update(USERS).where(USERS.c.name == row.name).values(**values))
            note_change(connection, By(row.name, is_told=True), "users.link", row.name)
            return _get(connection, row.name)

        return await self._run(take)

    async def _change(
        self, name: str, values: dict[str, Any], by: By, action: str, *, ends_logins: str = ""
    ) -> bool:
        changed = {**values, "updated_by": by.user, "updated_at": now()}

        def write(connection: Connection) -> bool:
            if connection.execute(update(USERS).where(USERS.c.name == name).values(**changed)).rowcount == 0:
                return False
            note_change(connection, by, action, name)
            if ends_logins:
                end_logins_of(connection, name, ends_logins, by)
            return True

        return await self._run(write)


def add_user(connection: Connection, name: str, *, role: str, password_hash: str = "", by: By) -> bool:
    """Add a user in the transaction of `connection`; false where the name is taken."""
    if _get(connection, name) is not None:
        return False
    moment = now()
    connection.execute(
        insert(USERS).values(
            name=name,
            password_hash=password_hash,
            role=role,
            disabled=False,
            link_hash="",
            link_expires_at=0,
            created_by=by.user,
            created_at=moment,
            updated_by=by.user,
            updated_at=moment,
        )
    )
    note_change(connection, by, "users.add", name)
    return True


def _get(connection: Connection, name: str) -> StoredUser | None:
    row = connection.execute(select(USERS).where(USERS.c.name == name)).first()
    return None if row is None else _user(row)


def _user(row: Row[Any]) -> StoredUser:
    return StoredUser(
        row.name,
        row.password_hash,
        row.role,
        bool(row.disabled),
        row.created_by,
        row.created_at,
        row.updated_by,
        row.updated_at,
    )
