"""What keeps the store from working, in words that say what to do; never a value or a statement of SQL."""

import sqlite3
from typing import Final

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from mcpgw.errors import InternalError

_REASONS: Final = {
    sqlite3.SQLITE_FULL: "the disk is full, or the database has reached its largest size",
    sqlite3.SQLITE_BUSY: "another program holds the database locked",
    sqlite3.SQLITE_LOCKED: "another program holds the database locked",
    sqlite3.SQLITE_READONLY: "the database cannot be written: its file, folder or disk is read-only",
    sqlite3.SQLITE_IOERR: "the disk does not take or give what it should (it may be full, or failing)",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; bring it back from a backup",
    sqlite3.SQLITE_NOTADB: "the file is not a database of mcpgw",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened or made",
    sqlite3.SQLITE_PERM: "the file may not be opened",
    sqlite3.SQLITE_TOOBIG: "a value is too large for it",
}
_PRIMARY: Final = 0xFF
"""The part of an extended result code that is the primary one (SQLite, "Result and Error Codes")."""


class StoreError(InternalError):
    """Issued when the store cannot read or write; nothing was written, and the same may succeed later."""

    http_status = 503


def reason_of(error: SQLAlchemyError | sqlite3.Error | OSError) -> str:
    """Why the database refuses, as half a sentence that holds nothing of what was to be written."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    original = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(original, "sqlite_errorcode", None)
    if isinstance(code, int):
        return _REASONS.get(code & _PRIMARY, f"SQLite says {original.sqlite_errorname}")  # type: ignore[union-attr]
    # The text of a driver's error may hold a part of a statement, with its values.
    return f"the database refuses ({type(original).__name__})"
