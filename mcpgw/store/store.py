"""The store: one database, one thread, one transaction a request.

The database's calls block, and never on the event loop: one thread of its own makes them all, in the order
in which they were asked for. SQLAlchemy's asyncio layer would do the same for SQLite, with a thread a
connection, one more driver and greenlets; one writer at a time is what SQLite is in any case.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from mcpgw.errors import ConfigError
from mcpgw.logs import log_event
from mcpgw.store.catalogs import CatalogTable
from mcpgw.store.changes import ChangeTable
from mcpgw.store.engine import READS, keep_journal, make_engine, migrate, shown_place
from mcpgw.store.failures import StoreError, reason_of
from mcpgw.store.keys import KeyTable
from mcpgw.store.logins import LoginTable
from mcpgw.store.overrides import SettingTable, SwitchTable
from mcpgw.store.servers import ServerTable
from mcpgw.store.users import UserTable

T = TypeVar("T")

_LOGGER = logging.getLogger("mcpgw.store")
BUSY_SECONDS = 5.0


class Store:
    """The database while it is open; `servers`, `catalogs`, `switches`, `settings`, `users`, `logins`, `keys`
    and the journal `changes` are its tables.

    Made by `open`.

    Every method of a table is one transaction: all of it is on the disk when it returns, or nothing of it
    is when it raises `StoreError`. Whoever is cancelled while waiting does not know which.
    """

    def __init__(self, engine: Engine, place: str, thread: ThreadPoolExecutor) -> None:
        self._engine = engine
        self._place = place
        self._thread = thread
        self._is_open = True
        self.servers = ServerTable(self.run)
        self.catalogs = CatalogTable(self.run)
        self.switches = SwitchTable(self.run)
        self.settings = SettingTable(self.run)
        self.users = UserTable(self.run)
        self.logins = LoginTable(self.run)
        self.keys = KeyTable(self.run)
        self.changes = ChangeTable(self.run)

    @classmethod
    async def open(cls, place: str | Path, *, busy_timeout: float = BUSY_SECONDS) -> Self:
        """Open the SQLite file or the database URL `place`, made and brought up to date where need be.

        `busy_timeout` is how long a lock of another program is waited for, in seconds.

        Raises:
            ConfigError: it cannot be used; says why, and what to do.
        """
        thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        try:
            engine, shown = await asyncio.get_running_loop().run_in_executor(
                thread, _opened, place, busy_timeout
            )
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(engine, shown, thread)

    async def close(self) -> None:
        """End what is under way, and let go of the database. A second time does nothing."""
        if self._is_open:
            self._is_open = False
            await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.dispose)
            self._thread.shutdown()

    async def run(self, work: Callable[[Connection], T], *, reads: bool = False) -> T:
        """Do `work` in one transaction on the store's thread; it must not keep the connection.

        `reads` says that it changes nothing: then it does not wait for a writer.

        Raises:
            StoreError: the database refuses; nothing of `work` was written.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transact, work, reads)

    def _transact(self, work: Callable[[Connection], T], reads: bool) -> T:
        try:
            with self._engine.connect().execution_options(**{READS: reads}) as connection, connection.begin():
                return work(connection)
        except (SQLAlchemyError, sqlite3.Error) as error:
            done = "read" if reads else "written"
            log_event(_LOGGER, logging.ERROR, "refused", reason=reason_of(error), store=self._place)
            raise StoreError(f"the store {self._place}: {reason_of(error)}; nothing was {done}") from error


def _opened(place: str | Path, busy_timeout: float) -> tuple[Engine, str]:
    engine: Engine | None = None
    try:
        shown = shown_place(place)
        engine = make_engine(place, busy_timeout=busy_timeout)
        with engine.begin() as connection:
            migrate(connection, shown)
        keep_journal(engine)
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        if engine is not None:
            engine.dispose()
        raise ConfigError([f"the store {shown}: {reason_of(error)}"]) from error
    except BaseException:
        if engine is not None:
            engine.dispose()
        raise
    return engine, shown
