"""The engine under the store where that is PostgreSQL: made safe, and bounded in time. All of it blocks.

Writers come one after the other, as with SQLite: each takes one lock first. So what a piece of work has read
before it writes still holds, and the numbers of the journal come to light in their order: one that appeared
behind a later one would be a revocation that no gateway hears of. Readers wait for nobody.
"""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL

from mcpgw.errors import ConfigError

DRIVER: Final = "postgresql+psycopg"
READS: Final = "mcpgw_reads"
"""The execution option of a connection that only reads."""

_WRITERS: Final = 0x6D63_7067_77
"""The advisory lock of whoever writes ("mcpgw"); it is of one database (PostgreSQL, "Advisory Locks")."""

_ENCODING: Final = "UTF8"
_STATEMENT_SECONDS: Final = 10.0
_CUT_SECONDS: Final = 2.0
_CONNECT_SECONDS: Final = 5
_KEEPALIVE: Final[Mapping[str, int]] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    # Milliseconds that sent bytes may stay unacknowledged: a machine that is gone says nothing.
    "tcp_user_timeout": 10_000,
}


def make_postgresql_engine(url: URL, *, busy_timeout: float) -> Engine:
    """An engine of one connection, which is made anew when it was lost.

    `busy_timeout` is how long the lock of another writer is waited for, in seconds.

    Raises:
        ModuleNotFoundError: the driver is not installed.
    """
    wanted: dict[str, Any] = {"connect_timeout": _CONNECT_SECONDS, "application_name": "mcpgw", **_KEEPALIVE}
    arguments = {name: value for name, value in wanted.items() if name not in url.query}
    # Statements that the server prepares do not go with every proxy in front of it.
    arguments["prepare_threshold"] = None
    arguments["client_encoding"] = _ENCODING
    engine = create_engine(
        url,
        pool_size=1,
        max_overflow=0,
        pool_pre_ping=True,
        connect_args=arguments,
        # Whatever the server's default is: under another one a writer sees what was there before it had the
        # lock, and most that wait for it fail.
        isolation_level="READ COMMITTED",
        hide_parameters=True,
    )
    limits = _limits(busy_timeout)

    def set_up(connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute(limits)
        connection.commit()

    event.listen(engine, "connect", set_up)
    event.listen(engine, "begin", _begin)
    return engine


def check_encoding(connection: Connection) -> None:
    """Raise `ConfigError` where the database does not keep every text as it is."""
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
    if encoding != _ENCODING:
        fault = f"the database is encoded in {encoding}, which does not keep every text as it is"
        raise ConfigError([f"store.url: {fault}: make it with ENCODING '{_ENCODING}'"])


class Lifeline:
    """Cuts the connection of an engine from another thread: the server, or the way to it, may answer nothing.

    `seconds` is how long a transaction may take, the wait for other writers included.
    """

    def __init__(self, engine: Engine, *, busy_timeout: float) -> None:
        self.seconds = busy_timeout + _STATEMENT_SECONDS + _CUT_SECONDS
        self._socket: socket.socket | None = None
        event.listen(engine, "connect", self._keep, insert=True)
        event.listen(engine, "close", self._forget)
        event.listen(engine, "invalidate", self._forget)

    def cut(self) -> None:
        """Let whoever waits for the server wait no longer; nothing where there is no connection."""
        kept = self._socket
        if kept is not None:
            with suppress(OSError):  # it is closed in this moment, or was cut before
                kept.shutdown(socket.SHUT_RDWR)

    def _keep(self, connection: Any, _record: object) -> None:
        self._forget()
        # A copy of the descriptor: the number of a closed one could be another connection's by now.
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))

    def _forget(self, *_: object) -> None:
        kept, self._socket = self._socket, None
        if kept is not None:
            kept.close()


def _limits(busy_timeout: float) -> str:
    """What the server is told at the begin of a connection; 0 would be no limit."""
    lock = max(1, round(busy_timeout * 1000))
    statement = lock + round(_STATEMENT_SECONDS * 1000)
    return (
        f"SET lock_timeout = {lock}; SET statement_timeout = {statement};"
        # A gateway that stands still in mid-write holds the others up no longer than this.
        f"SET idle_in_transaction_session_timeout = {round(_STATEMENT_SECONDS * 1000)};"
        # Writes are durable whatever the server's default is: they are logins and revocations.
        "SET synchronous_commit = on"
    )


def _begin(connection: Connection) -> None:
    if connection.get_execution_options().get(READS, False):
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    else:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS})")
