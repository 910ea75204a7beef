"""The store: what it keeps, and what happens when the database refuses."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import format_exception

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, insert, inspect, text
from sqlalchemy.engine import make_url

from mcpgw.errors import ConfigError, InvalidParams
from mcpgw.store import By, Store, StoredCatalog, StoredEntry, StoreError
from mcpgw.store.changes import note_change
from mcpgw.store.tables import LATEST, METADATA, USERS
from tests.store.conftest import Place

TABLE = {"command": "run", "args": ["${env:FOLDER}"], "env": {"KEY": "${file:/run/secrets/key}"}}


def raw(file: Path, query: str) -> list[tuple[object, ...]]:
    """The answer of SQLite itself."""
    connection = sqlite3.connect(file)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


@contextmanager
def connected(place: Place) -> Iterator[Connection]:
    """A connection to the database itself, past the store."""
    engine = create_engine(f"sqlite:///{place}" if isinstance(place, Path) else place)
    if isinstance(place, Path):
        place.parent.mkdir(exist_ok=True)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def execute(place: Place, statement: str) -> list[tuple[object, ...]]:
    """What the database itself answers."""
    with connected(place) as connection:
        result = connection.execute(text(statement))
        return [tuple(row) for row in result] if result.returns_rows else []


def tables(place: Place) -> list[str]:
    """The names of the tables."""
    with connected(place) as connection:
        return inspect(connection).get_table_names()


async def refusal(place: str | Path) -> str:
    """Why a store cannot be opened."""
    with pytest.raises(ConfigError) as refused:
        await Store.open(place, busy_timeout=0.1)
    (fault,) = refused.value.faults
    return fault


def big_catalog(size: int) -> tuple[StoredCatalog, list[StoredEntry]]:
    """A catalog of `size` entries of some thousand bytes each."""
    catalog = StoredCatalog("big", "Big", "docker", "upload", "", imported_by="ann")
    return catalog, [StoredEntry("big", f"e{i}", "", "", "", {"x": "y" * 4000}) for i in range(size)]


@pytest.mark.gen_test
async def test_a_definition_is_there_after_a_restart_as_it_was_written(place: Place) -> None:
    store = await Store.open(place)
    added = await store.servers.put("one", TABLE, enabled=True, by="ann")
    changed = await store.servers.put("one", {**TABLE, "timeout": 3}, enabled=False, by="bob")
    assert (changed.created_by, changed.created_at) == ("ann", added.created_at)
    await store.close()
    await store.close()
    store = await Store.open(place)
    (found,) = await store.servers.list()
    assert found == changed
    assert found.table == {**TABLE, "timeout": 3}
    assert (found.enabled, found.updated_by) == (False, "bob")
    assert await store.servers.set_enabled("one", True, by="ann")
    assert (await store.servers.get("one")).enabled  # type: ignore[union-attr]
    assert await store.servers.delete("one")
    assert not await store.servers.delete("one")
    assert not await store.servers.set_enabled("one", True, by="ann")
    assert await store.servers.get("one") is None
    await store.close()


@pytest.mark.gen_test
async def test_nobody_else_may_read_the_file_or_its_journal(tmp_path: Path) -> None:
    file = tmp_path / "mcpgw.db"
    file.touch(0o644)
    store = await Store.open(file)
    await store.servers.put("one", TABLE, enabled=True, by="ann")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes.keys() >= {"mcpgw.db", "mcpgw.db-wal"}
    assert set(modes.values()) == {0o600}
    await store.close()


@pytest.mark.gen_test
async def test_a_commit_is_on_the_disk_and_readers_do_not_wait_for_a_writer(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "mcpgw.db")

    def pragmas(connection: Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]

    assert await store.run(pragmas) == ["wal", 2, 1]
    await store.close()


@pytest.mark.gen_test
async def test_the_event_loop_turns_while_the_database_works(place: Place) -> None:
    store = await Store.open(place)
    going = threading.Event()
    working = asyncio.ensure_future(store.run(lambda _: going.wait(10), reads=True))
    await asyncio.sleep(0)
    assert not working.done()
    going.set()
    assert await working is True
    await store.close()


@pytest.mark.gen_test
async def test_a_locked_file_is_told_in_words_and_nothing_is_written(tmp_path: Path) -> None:
    file = tmp_path / "mcpgw.db"
    store = await Store.open(file, busy_timeout=0.1)
    await store.servers.put("one", TABLE, enabled=True, by="ann")
    other = sqlite3.connect(file)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError) as refused:
        await store.servers.put("two", TABLE, enabled=True, by="ann")
    assert "another program holds the database locked; nothing was written" in refused.value.message
    assert refused.value.to_data()["code"] == "internal_error"
    assert refused.value.temporary
    assert [server.name for server in await store.servers.list()] == ["one"]
    other.rollback()
    other.close()
    await store.servers.put("two", TABLE, enabled=True, by="ann")
    await store.close()


@pytest.mark.gen_test
async def test_a_full_database_leaves_no_half_catalog(tmp_path: Path) -> None:
    file = tmp_path / "mcpgw.db"
    store = await Store.open(file)
    small = StoredCatalog("big", "Big", "docker", "upload", "", imported_by="ann")
    await store.catalogs.put(small, [StoredEntry("big", "old", "", "", "", {"a": 1})])
    await store.run(lambda c: c.exec_driver_sql("PRAGMA max_page_count=60").close())
    with pytest.raises(StoreError) as refused:
        await store.catalogs.put(*big_catalog(200))
    assert "the disk is full" in refused.value.message
    assert "nothing was written" in refused.value.message
    assert [row[0] for row in raw(file, "SELECT name FROM catalog_entries")] == ["old"]
    await store.run(lambda c: c.exec_driver_sql("PRAGMA max_page_count=100000").close())
    changes = await store.catalogs.put(*big_catalog(200))
    assert changes is not None
    assert (changes.added, changes.removed) == (200, 1)
    await store.close()


FILL = """
import asyncio, resource, sys
from pathlib import Path
from mcpgw.store import Store, StoreError
from tests.store.test_store import TABLE, big_catalog

async def main():
    store = await Store.open(Path(sys.argv[1]))
    await store.servers.put("one", TABLE, enabled=True, by="ann")
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    try:
        await store.catalogs.put(*big_catalog(300))
    except StoreError as error:
        print(error.message)
    print([server.name for server in await store.servers.list()], await store.catalogs.list())
    await store.close()

asyncio.run(main())
"""


def test_a_disk_that_takes_no_more_leaves_a_whole_database(tmp_path: Path) -> None:
    file = tmp_path / "mcpgw.db"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", FILL, file],
        capture_output=True,
        text=True,
        timeout=30,
        env=environment,
        check=True,
    )
    said, state = done.stdout.splitlines()
    assert "nothing was written" in said
    assert str(file) not in said, "clients are told too, whom the place is no business of"
    assert state == "['one'] []"
    assert raw(file, "PRAGMA integrity_check") == [("ok",)]
    assert raw(file, "SELECT count(*) FROM catalog_entries") == [(0,)]


@pytest.mark.gen_test
async def test_a_failing_piece_of_work_takes_back_all_of_it(place: Place) -> None:
    store = await Store.open(place)

    def work(connection: Connection) -> None:
        connection.exec_driver_sql(
            "INSERT INTO settings (name, value, updated_by, updated_at) VALUES ('one', '1', 'ann', 0)"
        )
        raise LookupError("a fault of the caller")

    with pytest.raises(LookupError):
        await store.run(work)
    assert await store.settings.all() == {}
    await store.close()


@pytest.mark.gen_test
async def test_a_database_of_a_newer_gateway_is_refused_in_words_and_left_as_it_is(place: Place) -> None:
    await (await Store.open(place)).close()
    execute(place, "UPDATE alembic_version SET version_num = '9999'")
    fault = await refusal(place)
    assert f"was written by a newer mcpgw (revision 9999, this one knows {LATEST})" in fault
    assert isinstance(place, Path) or str(make_url(place).password) not in fault
    assert execute(place, "SELECT version_num FROM alembic_version") == [("9999",)]


@pytest.mark.gen_test
async def test_a_database_of_another_program_is_left_as_it_is(place: Place) -> None:
    execute(place, "CREATE TABLE songs (name TEXT)")
    assert "is a database of another program" in await refusal(place)
    assert tables(place) == ["songs"]


@pytest.mark.gen_test
async def test_what_is_no_store_is_refused_in_words(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"what is this? " * 500)
    assert "is not a database of mcpgw" in await refusal(garbage)
    assert garbage.read_bytes().startswith(b"what is this? ")
    pipe = tmp_path / "pipe.db"
    os.mkfifo(pipe)
    assert "is not a regular file" in await refusal(pipe)
    file = tmp_path / "file"
    file.touch()
    assert "Not a directory" in await refusal(file / "below.db")


@pytest.mark.gen_test
async def test_a_url_is_taken_too_and_a_wrong_one_never_shows_its_password(tmp_path: Path) -> None:
    store = await Store.open(f"sqlite:///{tmp_path}/other.db")
    await store.servers.put("one", TABLE, enabled=True, by="ann")
    await store.close()
    assert raw(tmp_path / "other.db", "SELECT name FROM servers") == [("one",)]
    for url in ("postgresql+nothing://ann:hush@db/x", "hush", "postgresql+asyncpg://ann:hush@db/x"):
        fault = await refusal(url)
        assert "hush" not in fault
        assert "postgresql" in fault


@pytest.mark.gen_test
async def test_the_steps_make_the_same_tables_as_a_new_store_has_at_once(place: Place) -> None:
    await (await Store.open(place)).close()
    with connected(place) as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
        at_once = everything_of(connection)
        for table in reversed(METADATA.sorted_tables):
            table.drop(connection)
        connection.execute(text("DROP TABLE alembic_version"))
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", "mcpgw/store/migrations")
        config.set_main_option("path_separator", "os")
        assert ScriptDirectory.from_config(config).get_current_head() == LATEST
        command.upgrade(config, LATEST)
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
        assert everything_of(connection) == at_once
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == LATEST


def everything_of(connection: Connection) -> dict[str, list[str]]:
    """What the database says of every table: columns, keys, indexes, rules."""
    inspector = inspect(connection)
    looks = (
        inspector.get_columns,
        inspector.get_indexes,
        inspector.get_unique_constraints,
        inspector.get_foreign_keys,
        inspector.get_check_constraints,
    )
    return {
        name: [
            str(inspector.get_pk_constraint(name)),
            *(str(part) for look in looks for part in sorted(look(name), key=str)),
        ]
        for name in inspector.get_table_names()
    }


@pytest.mark.gen_test
async def test_a_search_looks_for_every_word_in_any_case(place: Place) -> None:
    store = await Store.open(place)
    for name in ("a", "b"):
        entries = [
            StoredEntry(name, "Über", "Notes 100%", "Takes notes", "1", {}, tags=("Office",)),
            StoredEntry(name, "git", "Git", "Repositories 1000", "2", {}),
        ]
        await store.catalogs.put(StoredCatalog(name, name, "docker", "upload", ""), entries)

    async def names(*words: str, catalog_id: str | None = None) -> list[tuple[str, str]]:
        _, found = await store.catalogs.search(words, catalog_id=catalog_id, limit=10)
        return [(entry.catalog_id, entry.name) for entry in found]

    assert await names("ÜBER", "notes") == [("a", "Über"), ("b", "Über")]
    assert await names("100%", catalog_id="a") == [("a", "Über")]
    assert await names("office") == [("a", "Über"), ("b", "Über")]
    assert await names("g_t") == []
    total, page = await store.catalogs.search([], limit=1, offset=3)
    assert (total, [entry.name for entry in page]) == (4, ["git"])
    assert await store.catalogs.delete("a")
    assert execute(place, "SELECT DISTINCT catalog_id FROM catalog_entries") == [("b",)]
    await store.close()


@pytest.mark.gen_test
async def test_what_no_database_keeps_is_refused_and_not_called_a_fault(place: Place) -> None:
    store = await Store.open(place)
    with pytest.raises(InvalidParams):
        await store.users.get("half \ud800")
    if not isinstance(place, Path):
        with pytest.raises(InvalidParams):
            await store.users.get("nothing \0")
    assert await store.users.get("ann") is None
    await store.close()


@pytest.mark.gen_test
async def test_what_was_to_be_written_is_in_no_traceback_and_a_closed_store_says_so(place: Place) -> None:
    store = await Store.open(place)
    await store.users.add("ann", role="viewer", by=By("root", is_told=True))
    row = dict.fromkeys(("role", "link_hash", "created_by", "updated_by"), "")
    row |= {"name": "ann", "password_hash": "a hash of a password"}
    times = dict.fromkeys(("link_expires_at", "created_at", "updated_at"), 0)
    again = insert(USERS).values(**row, **times, disabled=False)
    with pytest.raises(StoreError) as refused:
        await store.run(lambda connection: connection.execute(again) and None)
    assert "INSERT INTO users" in (written := "".join(format_exception(refused.value)))
    assert "hash of a password" not in written
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.users.list()


@pytest.mark.gen_test
async def test_two_gateways_that_start_at_once_make_the_tables_once(place: Place) -> None:
    stores = await asyncio.gather(*(Store.open(place) for _ in range(4)))
    assert execute(place, "SELECT version_num FROM alembic_version") == [(LATEST,)]
    by = By("root", is_told=False)
    added = await asyncio.gather(*(store.users.add("ann", role="viewer", by=by) for store in stores))
    assert sorted(added) == [False, False, False, True]
    for store in stores:
        await store.close()


@pytest.mark.gen_test
async def test_a_change_never_comes_to_light_behind_a_later_one(place: Place) -> None:
    """Who has read number 2 never looks for a number 1 that was written before and committed after it."""
    slow, quick = await Store.open(place), await Store.open(place)
    has_written, may_end = threading.Event(), threading.Event()

    def write(connection: Connection) -> None:
        note_change(connection, By("root", is_told=False), "users.disable", "ann")
        has_written.set()
        assert may_end.wait(10)

    writing = asyncio.ensure_future(slow.run(write))
    await asyncio.to_thread(has_written.wait, 10)
    adding = asyncio.ensure_future(quick.users.add("bob", role="viewer", by=By("root", is_told=False)))
    assert await slow_enough(adding)
    may_end.set()
    await writing
    assert await adding
    untold = await quick.changes.take_untold()
    assert [change.target for change in untold] == ["ann", "bob"]
    assert untold[0].number < untold[1].number
    await slow.close()
    await quick.close()


async def slow_enough(task: "asyncio.Future[bool]") -> bool:
    """Whether a task that has to wait does so, while the loop goes on."""
    return not (await asyncio.wait({task}, timeout=0.2))[0]
