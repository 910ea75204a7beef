"""Memories in one SQLite file: saved whole, found again by word, by tag or by age.

Durability. The file is in WAL mode with ``synchronous=FULL``: a commit returns after its pages in the log
were flushed to the disk (https://www.sqlite.org/pragma.html#pragma_synchronous). NORMAL would outlive a
killed process too, but may lose the last commits when the power fails, and what is acknowledged must last.

Side by side. A store may be used from any number of threads, and any number of processes may have the same
file open. Each call takes a connection of its own out of a pool, so readers wait for nobody (WAL). Writers of
this process line up at a lock, which is fairer than SQLite's own waiting (it sleeps and tries again); writers
of other processes are held off by ``BEGIN IMMEDIATE``, which never fails half-way for want of the lock.

Words. What is indexed and what is looked for is cut into words by the same function, of `memory_words`.
"""

import json
import os
import sqlite3
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mcpgw.backends.memory_words import phrases_of, words_of

PROJECT_CHARACTERS: Final = 200
CONTENT_CHARACTERS: Final = 100_000
TAG_CHARACTERS: Final = 100
TAGS: Final = 50
METADATA_BYTES: Final = 16 * 1024
"""Of the metadata as compact JSON in UTF-8."""
ANSWER_CHARACTERS: Final = 400_000
"""Content and metadata that one answer may hold together; a first memory is given whatever its size."""
PROJECTS: Final = 1_000
"""Projects that one answer may hold."""
MAXIMUM_BYTES: Final = 1024**3
BUSY_SECONDS: Final = 10.0

_APPLICATION_ID: Final = 0x6D637067  # "mcpg"
_SCHEMA_VERSION: Final = 1
# What is long comes last in a row, so that the rest is read without walking through overflow pages.
_SCHEMA: Final = (
    """CREATE TABLE memories (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        project TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        tags TEXT NOT NULL,
        metadata TEXT NOT NULL,
        content TEXT NOT NULL
    )""",
    "CREATE INDEX memories_by_project ON memories (project)",
    """CREATE TABLE memory_tags (
        memory INTEGER NOT NULL, tag TEXT NOT NULL, PRIMARY KEY (memory, tag)
    ) WITHOUT ROWID""",
    "CREATE VIRTUAL TABLE memory_words USING fts5(words, tokenize = 'ascii')",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_SCHEMA_VERSION}",
)

_COLUMNS: Final = "m.sequence, m.id, m.project, m.created_at, m.updated_at, m.tags, m.metadata, m.content"
_WITH_TAG: Final = " AND EXISTS (SELECT 1 FROM memory_tags AS t WHERE t.memory = m.sequence AND t.tag = ?)"

_FAULTS: Final[Mapping[int, str]] = {
    sqlite3.SQLITE_BUSY: "the memory database is locked by another process; try again in a moment",
    sqlite3.SQLITE_LOCKED: "the memory database is locked by another process; try again in a moment",
    sqlite3.SQLITE_FULL: "no room is left for the memory database: its size limit is reached or the disk is "
    "full; delete memories or make room, then try again",
    sqlite3.SQLITE_IOERR: "the disk failed or is full while the memory database was in use; nothing was "
    "changed, try again when the disk is well",
    sqlite3.SQLITE_READONLY: "the memory database may only be read; make its file and folder writable",
    sqlite3.SQLITE_PERM: "the memory database may not be opened; check the rights of its file and folder",
    sqlite3.SQLITE_CANTOPEN: "the memory database cannot be opened; check its path and the rights on it",
    sqlite3.SQLITE_CORRUPT: "the memory database is damaged; restore a copy, or move it away to start anew",
    sqlite3.SQLITE_NOTADB: "this is no SQLite database; name another file, or move it away to start anew",
}


class MemoryStoreError(Exception):
    """Anything that a caller of the store is told; the text is a sentence for people and holds no memory."""


class InvalidMemoryError(MemoryStoreError):
    """A value that cannot be kept; the text names the place and the bound."""


class StoreUnavailableError(MemoryStoreError):
    """The database cannot do this now: locked, full, read-only, damaged or gone. Nothing was changed."""


class StoreUnusableError(MemoryStoreError):
    """The file cannot be used as a memory database at all; raised while it is opened."""


@dataclass(frozen=True, slots=True)
class Memory:
    """One memory; times are milliseconds since the epoch, `score` (higher is better) comes with ranking."""

    sequence: int
    id: str
    project: str
    content: str
    tags: tuple[str, ...]
    metadata: dict[str, Any]
    created_at: int
    updated_at: int
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Memories:
    """Some memories in order; `more` says that others were left out, for the limit or the answer's size."""

    memories: tuple[Memory, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Project:
    """A project that has memories; `updated_at` is its newest change in milliseconds since the epoch."""

    name: str
    memories: int
    updated_at: int


class MemoryStore:
    """An open memory database; safe for use by many threads.

    `path` is made where it is missing (its folder with mode 0700, the file with 0600), `maximum_bytes` bounds
    the file's growth by saves, `busy_seconds` bounds the wait for other writers.

    Every method may raise `StoreUnavailableError`; opening raises `StoreUnusableError` for a file that is no
    SQLite database, belongs to another program, is of a newer version, or cannot be read and written.
    """

    def __init__(
        self, path: Path, *, maximum_bytes: int = MAXIMUM_BYTES, busy_seconds: float = BUSY_SECONDS
    ) -> None:
        # Absolute, so that SQLite takes no name for a special one, such as ":memory:".
        self.path: Final = path.expanduser().absolute()
        self._maximum_bytes = maximum_bytes
        self._busy_seconds = busy_seconds
        self._idle: deque[sqlite3.Connection] = deque()
        self._writer = threading.Lock()
        try:
            self._make_file()
            self._prepare()
            self._identity = _identity(self.path)
        except OSError as error:
            raise StoreUnusableError(f"{str(self.path)!r}: {error.strerror or error}") from error
        except sqlite3.Error as error:
            sentence = _FAULTS.get(_code(error), f"the database cannot be used: {error}")
            raise StoreUnusableError(f"{str(self.path)!r}: {sentence}") from error

    def close(self) -> None:
        """Close every idle connection; call it when no other call is open."""
        while self._idle:
            self._idle.pop().close()

    def save(
        self, project: str, content: str, tags: Sequence[str] = (), metadata: Mapping[str, Any] | None = None
    ) -> Memory:
        """Keep a memory. It is on the disk when this returns.

        `tags` lose doubles and keep their order; `metadata` is any JSON object.
        Raises `InvalidMemoryError` where a value is over its bound or is no text or JSON.
        """
        _check_text("project", project, PROJECT_CHARACTERS)
        _check_text("content", content, CONTENT_CHARACTERS)
        kept_tags = tuple(dict.fromkeys(tags))
        if len(tags) > TAGS:
            raise InvalidMemoryError(f"tags: {len(tags)} are too many; give at most {TAGS}")
        for index, tag in enumerate(tags):
            _check_text(f"tags[{index}]", tag, TAG_CHARACTERS)
        metadata_json = _metadata_json(metadata or {})
        now = time.time_ns() // 1_000_000
        identifier = str(uuid.uuid4())
        words = " ".join(words_of(content))
        with self._write(self._maximum_bytes) as connection:
            sequence = connection.execute(
                "INSERT INTO memories (id, project, created_at, updated_at, tags, metadata, content)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (identifier, project, now, now, json.dumps(kept_tags), metadata_json, content),
            ).lastrowid
            assert sequence is not None  # noqa: S101 - an INSERT always sets it
            connection.executemany(
                "INSERT INTO memory_tags VALUES (?, ?)", [(sequence, tag) for tag in kept_tags]
            )
            connection.execute("INSERT INTO memory_words (rowid, words) VALUES (?, ?)", (sequence, words))
        return Memory(
            sequence=sequence,
            id=identifier,
            project=project,
            content=content,
            tags=kept_tags,
            metadata=json.loads(metadata_json),
            created_at=now,
            updated_at=now,
        )

    def search(
        self, project: str, query: str | None = None, tags: Sequence[str] = (), limit: int = 10
    ) -> Memories:
        """The memories of `project` that match, at most `limit`.

        `query` is any text, taken as words. Memories that hold all of them (the last one may be a beginning)
        come first by bm25; where there is none, those that hold some. A query without a letter or digit is
        looked for as it stands. Without a query the newest come first. All of `tags` must be there.
        """
        project, *tags = (_encodable(text) for text in (project, *dict.fromkeys(tags)))
        query = _encodable(query or "").strip()
        if not query:
            return self._select(f"{_newest(len(tags))} LIMIT ?", (project, *tags, limit + 1), limit)
        phrases = phrases_of(query)
        if not phrases:
            return self._select(
                f"{_newest(len(tags), 'AND instr(m.content, ?) > 0')} LIMIT ?",
                (project, query, *tags, limit + 1),
                limit,
            )
        found = self._ranked(" AND ".join(phrases), project, tags, limit)
        if not found.memories and len(phrases) > 1:
            found = self._ranked(" OR ".join(phrases), project, tags, limit)
        return found

    def newest(self, project: str, limit: int, before: int | None = None) -> Memories:
        """The newest memories of `project`, at most `limit`, older than that with the sequence `before`."""
        bound = before if before is not None else 2**63 - 1
        return self._select(
            f"{_newest(0, 'AND m.sequence < ?')} LIMIT ?", (_encodable(project), bound, limit + 1), limit
        )

    def get(self, identifier: str) -> Memory | None:
        """The memory of that id, or None."""
        statement = f"SELECT {_COLUMNS} FROM memories AS m WHERE m.id = ?"  # noqa: S608 - constants only
        found = self._select(statement, (_encodable(identifier),), 1)
        return found.memories[0] if found.memories else None

    def delete(self, identifier: str) -> bool:
        """Forget the memory of that id; False where there is none."""
        # Taking a row out of the index needs new pages first: a full store must still be able to shrink.
        with self._write(None) as connection:
            row = connection.execute(
                "SELECT sequence FROM memories WHERE id = ?", (_encodable(identifier),)
            ).fetchone()
            if row is None:
                return False
            connection.execute("DELETE FROM memories WHERE sequence = ?", row)
            connection.execute("DELETE FROM memory_tags WHERE memory = ?", row)
            connection.execute("DELETE FROM memory_words WHERE rowid = ?", row)
        return True

    def projects(self) -> tuple[tuple[Project, ...], int]:
        """The projects changed last, at most `PROJECTS`, and how many more there are."""
        with self._read() as connection:
            rows = connection.execute(
                "SELECT project, count(*), max(updated_at), count(*) OVER () FROM memories"
                " GROUP BY project ORDER BY 3 DESC, 1 LIMIT ?",
                (PROJECTS,),
            ).fetchall()
        return tuple(Project(*row[:3]) for row in rows), (rows[0][3] - len(rows) if rows else 0)

    def projects_by_name(self, limit: int, after: str = "") -> tuple[Project, ...]:
        """At most `limit` projects in the order of their names, all behind `after`."""
        with self._read() as connection:
            rows = connection.execute(
                "SELECT project, count(*), max(updated_at) FROM memories WHERE project > ?"
                " GROUP BY project ORDER BY project LIMIT ?",
                (_encodable(after), limit),
            ).fetchall()
        return tuple(Project(*row) for row in rows)

    def _ranked(self, expression: str, project: str, tags: Sequence[str], limit: int) -> Memories:
        # The inner query sorts numbers only; contents are read for the rows that are given.
        statement = (
            f"SELECT {_COLUMNS}, f.score FROM (SELECT m.sequence, -bm25(memory_words) AS score"  # noqa: S608 - constants only
            " FROM memory_words JOIN memories AS m ON m.sequence = memory_words.rowid"
            f" WHERE memory_words MATCH ? AND m.project = ?{_WITH_TAG * len(tags)}"
            " ORDER BY score DESC, m.sequence DESC LIMIT ?"
            ") AS f JOIN memories AS m ON m.sequence = f.sequence ORDER BY f.score DESC, m.sequence DESC"
        )
        return self._select(statement, (expression, project, *tags, limit + 1), limit)

    def _select(self, statement: str, parameters: Sequence[str | int], limit: int) -> Memories:
        memories: list[Memory] = []
        room = ANSWER_CHARACTERS
        with self._read() as connection, closing(connection.execute(statement, parameters)) as rows:
            for row in rows:
                room -= len(row[6]) + len(row[7])
                if len(memories) == limit or (memories and room < 0):
                    return Memories(tuple(memories), more=True)
                memories.append(_memory(row))
        return Memories(tuple(memories), more=False)

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with _explained(), self._connection() as connection:
            yield connection

    @contextmanager
    def _write(self, maximum_bytes: int | None) -> Iterator[sqlite3.Connection]:
        if not self._writer.acquire(timeout=self._busy_seconds):
            raise StoreUnavailableError(_FAULTS[sqlite3.SQLITE_BUSY])
        try:
            with _explained(), self._connection() as connection:
                page_size = connection.execute("PRAGMA page_size").fetchone()[0]
                pages = 2**30 if maximum_bytes is None else max(1, maximum_bytes // page_size)
                connection.execute(f"PRAGMA max_page_count = {pages:d}")
                connection.execute("BEGIN IMMEDIATE")
                self._check_identity()
                yield connection
                connection.execute("COMMIT")
        finally:
            self._writer.release()

    def _check_identity(self) -> None:
        # SQLite would go on writing into a file that has no name any more, and all of it would be lost.
        try:
            if _identity(self.path) == self._identity:
                return
        except FileNotFoundError:
            pass
        raise StoreUnavailableError("the memory database was moved or deleted; start the memory server again")

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        try:
            yield connection
        except BaseException:
            # Closing rolls back, and a connection that met a fault is not used again.
            connection.close()
            raise
        self._idle.append(connection)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=self._busy_seconds, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA synchronous = FULL")
            # macOS only: its fsync alone leaves the data in the drive's cache.
            connection.execute("PRAGMA fullfsync = ON")
            connection.execute("PRAGMA trusted_schema = OFF")
        except BaseException:
            connection.close()
            raise
        return connection

    def _make_file(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            # Never opened when it is there already: closing it again would drop the locks that other
            # connections of this process hold (https://www.sqlite.org/howtocorrupt.html, section 2.2).
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            if not os.access(self.path, os.R_OK | os.W_OK):
                raise PermissionError(0, "the file may not be read and written; change its rights") from None

    def _prepare(self) -> None:
        deadline = time.monotonic() + self._busy_seconds
        while True:
            try:
                with self._connection() as connection:
                    self._prepare_once(connection)
            except sqlite3.OperationalError as error:
                # SQLite answers "busy" without waiting where waiting might be a deadlock, as between
                # processes that start together on a new file (https://www.sqlite.org/c3ref/busy_handler.html).
                if (
                    _code(error) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
                    or time.monotonic() > deadline
                ):
                    raise
                time.sleep(0.01)
            else:
                return

    def _prepare_once(self, connection: sqlite3.Connection) -> None:
        if self._is_new(connection, "BEGIN"):
            _use_log(connection)
            # Another process may have been quicker since the first look.
            if self._is_new(connection, "BEGIN IMMEDIATE", keep_open=True):
                for statement in _SCHEMA:
                    connection.execute(statement)
                connection.execute("COMMIT")
        else:
            _use_log(connection)

    def _is_new(self, connection: sqlite3.Connection, begin: str, *, keep_open: bool = False) -> bool:
        """Whether the file is empty; raises StoreUnusableError where it is not, and not of this version."""
        connection.execute(begin)
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        objects = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        new = (application, version, objects) == (0, 0, 0)
        if not new and application != _APPLICATION_ID:
            raise StoreUnusableError(
                f"{str(self.path)!r}: the database belongs to another program; name another file"
            )
        if not new and version != _SCHEMA_VERSION:
            raise StoreUnusableError(
                f"{str(self.path)!r}: the database has version {version} and this program knows version "
                f"{_SCHEMA_VERSION}; use a newer mcpgw, or another file"
            )
        if not (new and keep_open):
            connection.execute("ROLLBACK")
        return new


def _use_log(connection: sqlite3.Connection) -> None:
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise sqlite3.OperationalError(f"no write-ahead log can be kept there (mode {mode})")


@contextmanager
def _explained() -> Iterator[None]:
    """Turn the faults that SQLite reports about its file into a sentence; any other is a bug and goes on."""
    try:
        yield
    except sqlite3.Error as error:
        sentence = _FAULTS.get(_code(error))
        if sentence is None:
            raise
        raise StoreUnavailableError(sentence) from error


def _code(error: sqlite3.Error) -> int:
    # The low byte is the primary code (https://www.sqlite.org/rescode.html); Python's own errors have none.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _newest(tags: int, condition: str = "") -> str:
    return (
        f"SELECT {_COLUMNS} FROM memories AS m WHERE m.project = ? {condition}{_WITH_TAG * tags}"  # noqa: S608 - constants only
        " ORDER BY m.sequence DESC"
    )


def _memory(row: Sequence[Any]) -> Memory:
    sequence, identifier, project, created_at, updated_at, tags, metadata, content, *score = row
    return Memory(
        sequence=sequence,
        id=identifier,
        project=project,
        content=content,
        tags=tuple(json.loads(tags)),
        metadata=json.loads(metadata),
        created_at=created_at,
        updated_at=updated_at,
        score=score[0] if score else None,
    )


def _check_text(place: str, text: str, characters: int) -> None:
    if not 1 <= len(text) <= characters:
        raise InvalidMemoryError(f"{place}: has {len(text)} characters; give 1 to {characters}")
    if _encodable(text) != text:
        raise InvalidMemoryError(
            f"{place}: holds half a surrogate pair, which is no Unicode text; leave it out"
        )


def _metadata_json(metadata: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidMemoryError(
            "metadata: is no JSON object (NaN, half a surrogate pair, or too deep); give plain JSON"
        ) from error
    if size > METADATA_BYTES:
        raise InvalidMemoryError(f"metadata: takes {size} bytes as JSON; give at most {METADATA_BYTES}")
    return text


def _encodable(text: str) -> str:
    """`text` with each lone surrogate, which UTF-8 cannot hold, made a question mark."""
    return text.encode(errors="replace").decode()
