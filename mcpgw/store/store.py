"""The store: one database, one thread, one transaction a request.

The database's calls block, and never on the event loop: one thread of its own makes them all, in the order
in which they were asked for. SQLAlchemy's asyncio layer would do the same for SQLite, with a thread a
connection, one more driver and greenlets; one writer at a time is what SQLite is in any case.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from mcpgw.errors import ConfigError, InvalidParams
from mcpgw.logs import log_event
from mcpgw.store.catalogs import CatalogTable
from mcpgw.store.changes import ChangeTable
from mcpgw.store.engine import keep_journal, make_engine, migrate, shown_place
from mcpgw.store.failures import StoreError, detail_of, is_lost, is_unfit, reason_of
from mcpgw.store.identities import Identities
from mcpgw.store.keys import KeyTable
from mcpgw.store.logins import LoginTable
from mcpgw.store.overrides import SettingTable, SwitchTable
from mcpgw.store.postgresql import READS, Lifeline
from mcpgw.store.rooms import RoomTable
from mcpgw.store.servers import ServerTable
from mcpgw.store.users import UserTable

T = TypeVar("T")

_LOGGER = logging.getLogger("mcpgw.store")
BUSY_SECONDS = 5.0
_END_SECONDS = 2.0
_LOOK_SECONDS = 1.0
_BROKEN_SECONDS = 0.5
_SAME_SECONDS = 60.0


class Store:
    """The database while it is open; `servers`, `catalogs`, `switches`, `settings`, `users`, `logins`,
    `keys`, `identities` and the journal `changes` are its tables.

    Made by `open`.

    Every method of a table is one transaction: all of it is on the disk when it returns, or nothing of it
    is when it raises `StoreError`. Whoever is cancelled while waiting does not know which.
    """

    def __init__(self, opened: "_Opened", thread: ThreadPoolExecutor) -> None:
        self._engine = opened.engine
        # Where it is on the network is told to the operator's log alone.
        self._lifeline = opened.lifeline
        self._thread = thread
        self._is_open = True
        self._began = 0.0
        self._broken_until = 0.0
        self._failures = _Failures(opened.place)
        self.servers = ServerTable(self.run)
        self.catalogs = CatalogTable(self.run)
        self.switches = SwitchTable(self.run)
        self.settings = SettingTable(self.run)
        self.users = UserTable(self.run)
        self.logins = LoginTable(self.run)
        self.keys = KeyTable(self.run)
        self.rooms = RoomTable(self.run)
        self.identities = Identities(self.run)
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
            opened = await asyncio.get_running_loop().run_in_executor(thread, _opened, place, busy_timeout)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(opened, thread)

    async def close(self) -> None:
        """End what is under way, and let go of the database. A second time does nothing.

        A server that answers nothing is waited for no longer than some seconds.
        """
        if self._is_open:
            self._is_open = False
            await self._on_thread(self._engine.dispose)
            self._thread.shutdown()

    async def run(self, work: Callable[[Connection], T], *, reads: bool = False) -> T:
        """Do `work` in one transaction on the store's thread; it must not keep the connection.

        `reads` says that it changes nothing: then it does not wait for a writer.

        Raises:
            StoreError: the database refuses; nothing of `work` was written, or whether it was is not known.
                Or the store is closed.
            InvalidParams: a text has a sign that the database cannot keep.
        """
        if not self._is_open:
            raise StoreError("the store: it is closed; nothing was done")
        return await self._on_thread(self._transact, work, reads)

    async def _on_thread(self, act: Callable[..., T], *arguments: object) -> T:
        doing = asyncio.get_running_loop().run_in_executor(self._thread, act, *arguments)
        if self._lifeline is None:
            return await doing
        try:
            while not (await asyncio.wait({doing}, timeout=_LOOK_SECONDS))[0]:
                self._cut_what_hangs(self._lifeline)
        except asyncio.CancelledError:
            doing.cancel()
            raise
        return doing.result()

    def _cut_what_hangs(self, lifeline: Lifeline) -> None:
        began, seconds = self._began, lifeline.seconds if self._is_open else _END_SECONDS
        if began and time.monotonic() - began > seconds:
            lifeline.cut()

    def _transact(self, work: Callable[[Connection], T], reads: bool) -> T:
        self._began = time.monotonic()
        if self._began < self._broken_until:  # many may wait, and each would wait for a connection anew
            raise StoreError("the store: it could not be reached a moment ago; nothing was done")
        is_done = False
        try:
            with self._engine.connect().execution_options(**{READS: reads}) as connection, connection.begin():
                result = work(connection)
                is_done = not reads
        except (SQLAlchemyError, sqlite3.Error, UnicodeEncodeError) as error:
            if is_unfit(error):
                raise InvalidParams("a text has a sign that cannot be kept: NUL, or half a pair") from error
            raise self._refused(error, reads=reads, is_done=is_done) from error
        else:
            self._failures.over()
            return result
        finally:
            self._began = 0.0

    def _refused(self, error: Exception, *, reads: bool, is_done: bool) -> StoreError:
        reason, lost = reason_of(error), is_lost(error)
        if lost:
            self._broken_until = time.monotonic() + _BROKEN_SECONDS
        done = "nothing was read" if reads else "nothing was written"
        if is_done and lost:
            done = "whether it was written is not known"
        self._failures.tell(reason, detail_of(error))
        return StoreError(f"the store: {reason}; {done}")


class _Failures:
    """Tells the log what fails, and that it works again: a database that is away fails twice a second."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._last = ""
        self._last_at = 0.0

    def tell(self, reason: str, detail: str) -> None:
        """It failed; the same reason as before is told once a minute."""
        now = time.monotonic()
        if reason == self._last and now - self._last_at < _SAME_SECONDS:
            return
        self._last, self._last_at = reason, now
        log_event(_LOGGER, logging.ERROR, "refused", reason=reason, detail=detail or None, store=self._place)

    def over(self) -> None:
        """It works."""
        if self._last:
            self._last = ""
            log_event(_LOGGER, logging.INFO, "works again", store=self._place)


@dataclass(frozen=True, slots=True)
class _Opened:
    """An engine whose tables are there; `place` is for people; `lifeline` is None where nothing can hang."""

    engine: Engine
    place: str
    lifeline: Lifeline | None


def _opened(place: str | Path, busy_timeout: float) -> _Opened:
    engine: Engine | None = None
    shown = shown_place(place)
    try:
        engine = make_engine(place, busy_timeout=busy_timeout)
        is_remote = engine.dialect.name == "postgresql"
        lifeline = Lifeline(engine, busy_timeout=busy_timeout) if is_remote else None
        with engine.begin() as connection:
            migrate(connection, shown)
        keep_journal(engine)
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        if engine is not None:
            engine.dispose()
        parts = (f"the store {shown}", reason_of(error), detail_of(error))
        raise ConfigError([": ".join(part for part in parts if part)]) from error
    except BaseException:
        if engine is not None:
            engine.dispose()
        raise
    return _Opened(engine, shown, lifeline)
