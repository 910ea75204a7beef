"""What was changed while the gateway ran of what stands in its configuration file."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from mcpgw.store.runner import Runner, now
from mcpgw.store.tables import SETTINGS, SWITCHES


@dataclass(frozen=True, slots=True)
class StoredSetting:
    """A setting that was changed: `value` is its JSON, `updated_by` the user who did it."""

    name: str
    value: Any
    updated_by: str
    updated_at: int


class SwitchTable:
    """Which servers of the file were switched on or off; raises StoreError where a transaction fails."""

    def __init__(self, run: Runner) -> None:
        self._run = run

    async def all(self) -> dict[str, bool]:
        """By name, whether they were switched on."""
        query = select(SWITCHES.c.name, SWITCHES.c.enabled)
        return await self._run(
            lambda c: {row.name: bool(row.enabled) for row in c.execute(query)}, reads=True
        )

    async def put(self, name: str, enabled: bool, *, by: str) -> None:
        """Remember how a server was switched."""
        row = {"name": name, "enabled": enabled, "updated_by": by, "updated_at": now()}

        def write(connection: Connection) -> None:
            connection.execute(delete(SWITCHES).where(SWITCHES.c.name == name))
            connection.execute(insert(SWITCHES).values(**row))

        await self._run(write)

    async def forget(self, names: Collection[str]) -> None:
        """Forget how servers were switched: they are as the file has them."""
        query = delete(SWITCHES).where(SWITCHES.c.name.in_(names))
        await self._run(lambda c: c.execute(query) and None)


class SettingTable:
    """The settings that were changed; raises StoreError where a transaction fails."""

    def __init__(self, run: Runner) -> None:
        self._run = run

    async def all(self) -> dict[str, StoredSetting]:
        """All of them, by name."""
        query = select(SETTINGS).order_by(SETTINGS.c.name)

        def read(connection: Connection) -> dict[str, StoredSetting]:
            return {
                row.name: StoredSetting(row.name, json.loads(row.value), row.updated_by, row.updated_at)
                for row in connection.execute(query)
            }

        return await self._run(read, reads=True)

    async def change(self, values: Mapping[str, Any], *, by: str) -> None:
        """Keep `values` by name, all of them or none; None forgets one."""
        moment = now()
        rows = [
            {"name": name, "value": json.dumps(value), "updated_by": by, "updated_at": moment}
            for name, value in values.items()
            if value is not None
        ]

        def write(connection: Connection) -> None:
            connection.execute(delete(SETTINGS).where(SETTINGS.c.name.in_(list(values))))
            if rows:
                connection.execute(insert(SETTINGS), rows)

        await self._run(write)
