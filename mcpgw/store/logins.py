"""Logins, each a family of refresh tokens of which one alone is good.

A token is used once, for the next one. One that comes a second time is in two hands, and nobody can tell
which of them is the thief's: the login ends (RFC 9700 section 4.14.2). The tabs of a browser have one token
for all, though, and may use it in the same moment: for a short while, and from the same network, it may be
shown again, for the very same next one. So there is never more than one that is good, and a thief who was in
time is found out as soon as both use what they have.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Connection, Row, delete, insert, or_, select, update

from mcpgw.store.changes import By, note_change
from mcpgw.store.runner import Runner, now
from mcpgw.store.tables import LOGINS, REFRESH_TOKENS, USERS

MOST_OF_A_USER: Final = 50
"""Logins of one user that hold at once; a new one ends the one that was not used for longest."""

_KEPT_MS = 2 * 86_400_000


@dataclass(frozen=True, slots=True)
class StoredLogin:
    """One login. Times are milliseconds since the epoch; `revoked_at` is 0 as long as it holds."""

    id: str
    user: str
    created_at: int
    used_at: int
    expires_at: int
    revoked_at: int
    reason: str
    remote: str
    agent: str


@dataclass(frozen=True, slots=True)
class Rotation:
    """What has become of a refresh token: ``renewed``; or why it is refused, where `login` may be known."""

    outcome: Literal["renewed", "unknown", "reused", "ended"]
    login: StoredLogin | None = None


class LoginTable:
    """The stored logins; each method is a transaction, and raises StoreError where that fails."""

    def __init__(self, run: Runner) -> None:
        self._run = run

    async def begin(self, login: StoredLogin, token_hash: str, *, by: By) -> bool:
        """Keep a new login with its first token; false where its user is not there, or is disabled."""

        def write(connection: Connection) -> bool:
            if not _may_log_in(connection, login.user):
                return False
            live = select(LOGINS.c.id).where(*_live(LOGINS.c.user_name == login.user))
            older = connection.execute(live.order_by(LOGINS.c.used_at.desc()).offset(MOST_OF_A_USER - 1))
            for row in older.all():
                _revoke(connection, "displaced", By(by.user, is_told=False), LOGINS.c.id == row.id)
            connection.execute(
                insert(LOGINS).values(
                    id=login.id,
                    user_name=login.user,
                    created_at=login.created_at,
                    used_at=login.used_at,
                    expires_at=login.expires_at,
                    revoked_at=0,
                    reason="",
                    remote=login.remote,
                    agent=login.agent,
                )
            )
            _add_token(connection, token_hash, login.id)
            return True

        return await self._run(write)

    async def rotate(
        self, token_hash: str, next_hash: str, *, by: By, used_from: str = "", grace: float = 0.0
    ) -> Rotation:
        """Use a token up for the next one; one that was used before ends its login.

        Unless it was used in the last `grace` seconds, by the same network `used_from`, for the same next
        one, which nobody has used yet.
        """

        def write(connection: Connection) -> Rotation:
            token = connection.execute(
                select(REFRESH_TOKENS).where(REFRESH_TOKENS.c.hash == token_hash)
            ).first()
            if token is None:
                return Rotation("unknown")
            login = _login(connection.execute(select(LOGINS).where(LOGINS.c.id == token.login_id)).one())
            if login.revoked_at or login.expires_at <= now() or not _may_log_in(connection, login.user):
                return Rotation("ended", login)
            mine = REFRESH_TOKENS.c.hash == token_hash
            used = update(REFRESH_TOKENS).where(mine, REFRESH_TOKENS.c.used_at == 0)
            if connection.execute(used.values(used_at=now(), used_from=used_from)).rowcount:
                _add_token(connection, next_hash, login.id)
                connection.execute(update(LOGINS).where(LOGINS.c.id == login.id).values(used_at=now()))
                return Rotation("renewed", login)
            # Read again: another writer may have been first, where two may read before one of them writes.
            token = connection.execute(select(REFRESH_TOKENS).where(mine)).one()
            unused = REFRESH_TOKENS.c.hash == next_hash, REFRESH_TOKENS.c.used_at == 0
            if (
                used_from == token.used_from
                and 0 <= now() - token.used_at < grace * 1000
                and connection.execute(select(REFRESH_TOKENS.c.hash).where(*unused)).first() is not None
            ):
                return Rotation("renewed", login)
            _revoke(connection, "reused", by, LOGINS.c.id == login.id)
            return Rotation("reused", login)

        return await self._run(write)

    async def of_token(self, token_hash: str) -> StoredLogin | None:
        """The login that a refresh token, used or not, belongs to."""
        joined = LOGINS.join(REFRESH_TOKENS, REFRESH_TOKENS.c.login_id == LOGINS.c.id)
        query = select(LOGINS).select_from(joined).where(REFRESH_TOKENS.c.hash == token_hash)

        def read(connection: Connection) -> StoredLogin | None:
            row = connection.execute(query).first()
            return None if row is None else _login(row)

        return await self._run(read, reads=True)

    async def remotes_of(self, user: str) -> frozenset[str]:
        """The addresses from which a user has logged in, as far as the logins are remembered."""
        query = select(LOGINS.c.remote).distinct().where(LOGINS.c.user_name == user)
        return await self._run(lambda c: frozenset(c.execute(query).scalars()), reads=True)

    async def revoke(self, login_id: str, reason: str, *, by: By) -> bool:
        """End one; whether it held until now."""
        return await self._run(lambda c: _revoke(c, reason, by, LOGINS.c.id == login_id) > 0)

    async def prune(self) -> None:
        """Forget what has held no more for two days: no access token of a login lives as long as that."""
        old = now() - _KEPT_MS
        over = or_(LOGINS.c.expires_at < old, (LOGINS.c.revoked_at > 0) & (LOGINS.c.revoked_at < old))

        def write(connection: Connection) -> None:
            ids = select(LOGINS.c.id).where(over)
            connection.execute(delete(REFRESH_TOKENS).where(REFRESH_TOKENS.c.login_id.in_(ids)))
            connection.execute(delete(LOGINS).where(over))

        await self._run(write)


def revoked_since(connection: Connection, moment: int) -> list[str]:
    """The logins that were ended at `moment` or later."""
    query = select(LOGINS.c.id).where(LOGINS.c.revoked_at >= max(1, moment))
    return list(connection.execute(query).scalars())


def end_logins_of(connection: Connection, user: str, reason: str, by: By) -> None:
    """End every login of a user, in the transaction of `connection`."""
    _revoke(connection, reason, by, LOGINS.c.user_name == user)


def _revoke(connection: Connection, reason: str, by: By, which: ColumnElement[bool]) -> int:
    found = list(connection.execute(select(LOGINS.c.id).where(*_live(which))).scalars())
    if found:
        query = update(LOGINS).where(LOGINS.c.id.in_(found))
        connection.execute(query.values(revoked_at=now(), reason=reason))
        for login_id in found:
            note_change(connection, by, f"login.{reason}", login_id)
    return len(found)


def _live(which: ColumnElement[bool]) -> tuple[ColumnElement[bool], ...]:
    return which, LOGINS.c.revoked_at == 0, LOGINS.c.expires_at > now()


def _may_log_in(connection: Connection, user: str) -> bool:
    query = select(USERS.c.name).where(USERS.c.name == user, USERS.c.disabled.is_(False))
    return connection.execute(query).first() is not None


def _add_token(connection: Connection, token_hash: str, login_id: str) -> None:
    row = {"hash": token_hash, "login_id": login_id, "created_at": now(), "used_at": 0, "used_from": ""}
    connection.execute(insert(REFRESH_TOKENS).values(**row))


def _login(row: Row[Any]) -> StoredLogin:
    return StoredLogin(
        row.id,
        row.user_name,
        row.created_at,
        row.used_at,
        row.expires_at,
        row.revoked_at,
        row.reason,
        row.remote,
        row.agent,
    )
