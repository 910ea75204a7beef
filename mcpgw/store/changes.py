"""The journal of what was changed of who may do what: gateways read it to hear of each other and of commands.

A change stands in the journal in the transaction that makes it. Whoever reads the newest number knows whether
anything has changed; who reads the rows knows what, for the audit log.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from mcpgw.store.runner import Runner, now
from mcpgw.store.tables import ACCESS_CHANGES

_KEPT_MS = 7 * 86_400_000


@dataclass(frozen=True, slots=True)
class By:
    """Who makes a change. `is_told` says whether the audit log has it already: a gateway writes its own."""

    user: str
    is_told: bool


@dataclass(frozen=True, slots=True)
class AccessChange:
    """One row: `by` did `action` (as ``users.role``) to `target`; `at` is in milliseconds since the epoch."""

    number: int
    at: int
    by: str
    action: str
    target: str


def note_change(connection: Connection, by: By, action: str, target: str) -> None:
    """Write a change into the journal, in the transaction of `connection`."""
    row = {"at": now(), "changed_by": by.user, "action": action, "target": target, "told": by.is_told}
    connection.execute(insert(ACCESS_CHANGES).values(**row))


class ChangeTable:
    """The journal; each method is a transaction, and raises StoreError where that fails."""

    def __init__(self, run: Runner) -> None:
        self._run = run

    async def newest(self) -> int:
        """The number of the newest change; 0 where there was none."""
        query = select(func.max(ACCESS_CHANGES.c.id))
        return await self._run(lambda c: c.execute(query).scalar() or 0, reads=True)

    async def take_untold(self) -> list[AccessChange]:
        """The changes that no audit log has yet, oldest first; the caller writes them into its own."""
        # In one statement: of several gateways that take at once, each change is given to one.
        mine = update(ACCESS_CHANGES).where(ACCESS_CHANGES.c.told.is_(False)).values(told=True)

        def take(connection: Connection) -> list[AccessChange]:
            taken = [_change(row) for row in connection.execute(mine.returning(ACCESS_CHANGES))]
            return sorted(taken, key=lambda change: change.number)

        if not await self._run(self._has_untold, reads=True):
            return []
        return await self._run(take)

    @staticmethod
    def _has_untold(connection: Connection) -> bool:
        untold = select(ACCESS_CHANGES.c.id).where(ACCESS_CHANGES.c.told.is_(False)).limit(1)
        return connection.execute(untold).first() is not None

    async def prune(self) -> None:
        """Forget what is told and older than a week, but for the newest, whose number must not come again."""
        newest = select(func.max(ACCESS_CHANGES.c.id)).scalar_subquery()
        old = delete(ACCESS_CHANGES).where(
            ACCESS_CHANGES.c.at < now() - _KEPT_MS,
            ACCESS_CHANGES.c.told.is_(True),
            ACCESS_CHANGES.c.id < newest,
        )
        await self._run(lambda c: c.execute(old) and None)


def _change(row: Row[Any]) -> AccessChange:
    return AccessChange(row.id, row.at, row.changed_by, row.action, row.target)
