"""The engine under the store: SQLite made safe or PostgreSQL, and its tables brought up to date. All of it
blocks.
"""

import os
import stat
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    inspect,
    text,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from mcpgw.errors import ConfigError
from mcpgw.store.postgresql import DRIVER, READS, check_encoding, make_postgresql_engine
from mcpgw.store.tables import LATEST, METADATA

_SQLITE: Final = "sqlite"
_REVISION: Final = Table(
    "alembic_version",
    MetaData(naming_convention={"pk": "%(table_name)s_pkc"}),
    Column("version_num", String(32), primary_key=True),
)
"""As Alembic makes it."""
_POSTGRESQL: Final = ("postgresql", "postgres", DRIVER)


def make_engine(place: str | Path, *, busy_timeout: float) -> Engine:
    """An engine for the SQLite file or the database URL `place`; a file is made where there is none.

    `busy_timeout` is how long a lock of another program is waited for, in seconds.

    Raises:
        ConfigError: `place` is no URL of a database that can be the store, or its driver is not installed.
        OSError: the file or its folder cannot be made.
    """
    url = _url(place)
    try:
        if url.drivername == DRIVER:
            return make_postgresql_engine(url, busy_timeout=busy_timeout)
        if url.database not in (None, "", ":memory:"):
            _prepare_file(Path(str(url.database)))
        engine = create_engine(
            url,
            pool_size=1,
            max_overflow=0,
            connect_args={"isolation_level": None, "timeout": busy_timeout},
            # What is written may be a hash of a password: a traceback has the statement alone.
            hide_parameters=True,
        )
    except ImportError as fault:  # also where the driver is there, and the database's own library is not
        missing = fault.name or "psycopg"
        why = f"the driver for PostgreSQL cannot be loaded ({missing})"
        raise ConfigError([f"store.url: {why}: pip install 'mcpgw[postgresql]'"]) from None
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)
    return engine


def shown_place(place: str | Path) -> str:
    """`place` for people: a URL without its password, which its query may have too."""
    if isinstance(place, Path):
        return str(place)
    url = _url(place)
    secret = [name for name in url.query if "pass" in name.lower()]
    return url.difference_update_query(secret).render_as_string(hide_password=True)


def migrate(connection: Connection, place: str) -> None:
    """Bring the tables up to date, inside the transaction of `connection`: all steps are taken, or none.

    Raises:
        ConfigError: a newer mcpgw wrote the database, it is somebody else's, or it does not keep every text.
    """
    if connection.dialect.name != _SQLITE:
        check_encoding(connection)
    tables = set(inspect(connection).get_table_names())
    known = "alembic_version" in tables
    present = connection.execute(text("SELECT version_num FROM alembic_version")).scalar() if known else None
    if present == LATEST:
        return
    if tables and not present:
        raise ConfigError([f"the store {place} is a database of another program; name another in store.url"])
    if not tables:
        # What the steps come to (a test compares them), without Alembic's quarter of a second and 12 MiB.
        METADATA.create_all(connection)
        _REVISION.create(connection)
        connection.execute(_REVISION.insert().values(version_num=LATEST))
        return
    # Alembic costs a quarter of a second, which only a new version need pay.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(files("mcpgw.store").joinpath("migrations")))
    config.set_main_option("path_separator", "os")
    revisions = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if present is not None and present not in revisions:
        raise ConfigError(
            [
                (
                    f"the store {place} was written by a newer mcpgw (revision {present}, this one knows "
                    f"{LATEST}); run that version, or bring back the file of before"
                )
            ]
        )
    command.upgrade(config, LATEST)


def keep_journal(engine: Engine) -> None:
    """Have SQLite write ahead, so that readers do not wait for a writer; the file remembers it.

    Not before the file is known to be the store: another program's is left as it is.
    """
    if engine.dialect.name == _SQLITE:
        connection = engine.raw_connection()
        try:
            connection.cursor().execute("PRAGMA journal_mode=WAL")
        finally:
            connection.close()


def _url(place: str | Path) -> URL:
    if isinstance(place, Path):
        return URL.create(_SQLITE, database=str(place))
    try:
        url = make_url(place)
    except (ArgumentError, ValueError):
        # Not shown: it may hold a password.
        raise ConfigError(
            [
                "store.url: is no database URL, such as sqlite:////var/lib/mcpgw.db or postgresql://USER@HOST/NAME"
            ]
        ) from None
    if url.drivername in _POSTGRESQL:
        return url.set(drivername=DRIVER)
    if url.drivername != _SQLITE:
        raise ConfigError(
            [f"store.url: {url.drivername[:64]} cannot be the store: only sqlite and postgresql can"]
        )
    return url


def _prepare_file(path: Path) -> None:
    """Make the file for nobody but its owner before SQLite does: its journals take the same mode."""
    if not path.parent.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # O_NONBLOCK: a pipe in the file's place would hold the start for ever.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o600)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError([f"the store {path} is not a regular file"])
        if stat.S_IMODE(status.st_mode) & 0o077:
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def _set_up(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    try:
        # Durable at each commit; a row with its parent or not at all.
        for pragma in ("synchronous=FULL", "foreign_keys=ON", "trusted_schema=OFF"):
            cursor.execute(f"PRAGMA {pragma}")
    finally:
        cursor.close()


def _begin(connection: Connection) -> None:
    # The driver of its own accord begins late, and never before DDL. A writer takes its lock at once, since
    # two readers that both turn into writers wait for each other.
    reads = connection.get_execution_options().get(READS, False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
