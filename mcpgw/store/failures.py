"""What keeps the store from working, in words that say what to do; never a value or a statement of SQL."""

import sqlite3
from typing import Final

from sqlalchemy.exc import DBAPIError

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
_UNREACHABLE: Final = "the database cannot be reached, or the connection to it was lost"
_SQL_STATES: Final = {
    "08": _UNREACHABLE,
    "25006": "the database takes no writes: it may be a copy that only reads",
    "28": "the database refuses the user of store.url",
    "3D000": "there is no such database: make it, and name its owner in store.url",
    "40": "another program was in the way",
    "42501": "the user of store.url may not do that: let it own the database",
    "53100": "the disk of the database is full",
    "53300": "the database takes no more connections",
    "53": "the database has not enough memory or disk",
    "55P03": "another program holds the database locked",
    "57014": "the database took too long",
    "57P": "the database is ending or starting",
    "58": "the disk of the database does not take or give what it should",
    "XX": "the database is damaged, or has a fault",
}
"""What PostgreSQL's codes mean here, whole ones and classes (PostgreSQL, Appendix A)."""

_UNFIT_STATES: Final = ("22021", "22P05")
_LONGEST_REASON: Final = 300
_PRIMARY: Final = 0xFF
"""The part of an extended result code that is the primary one (SQLite, "Result and Error Codes")."""


class StoreError(InternalError):
    """Issued when the store cannot read or write; nothing was written, and the same may succeed later."""

    http_status = 503


def reason_of(error: BaseException) -> str:
    """Why the database refuses, as half a sentence that holds nothing of what was to be written."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    original = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(original, "sqlite_errorcode", None)
    if isinstance(code, int):
        name = getattr(original, "sqlite_errorname", code)
        return _REASONS.get(code & _PRIMARY, f"SQLite says {name}")
    state = getattr(original, "sqlstate", None)
    if isinstance(state, str):
        known = next((state[:size] for size in (5, 3, 2) if state[:size] in _SQL_STATES), None)
        return f"the database refuses ({state})" if known is None else f"{_SQL_STATES[known]} ({state})"
    if is_lost(error):
        return _UNREACHABLE
    # The text of a driver's error may hold a part of a statement, with its values.
    return f"the database refuses ({type(original).__name__})"


def detail_of(error: BaseException) -> str:
    """What the driver says of a connection that cannot be made, for the operator; else nothing.

    No statement had been sent then, so that the text holds none: it names the host, the port and the user.
    """
    if not isinstance(error, DBAPIError) or error.statement is not None or error.orig is None:
        return ""
    lines = [line.strip() for line in str(error.orig).splitlines() if line.strip()]
    return lines[0][:_LONGEST_REASON] if lines else ""


def is_lost(error: BaseException) -> bool:
    """Whether the connection to the database is gone: what was under way may have been done or not."""
    if not isinstance(error, DBAPIError):
        return False
    return error.connection_invalidated or _is_unnumbered(error, "OperationalError")


def is_unfit(error: BaseException) -> bool:
    """Whether a text had a sign that no database keeps: half a surrogate pair, or with PostgreSQL a NUL."""
    if isinstance(error, UnicodeEncodeError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    return getattr(error.orig, "sqlstate", "") in _UNFIT_STATES or _is_unnumbered(error, "DataError")


def _is_unnumbered(error: DBAPIError, name: str) -> bool:
    """Whether PostgreSQL's driver says it without a code of the server: the server never said it."""
    original = error.orig
    kinds = [kind.__name__ for kind in type(original).__mro__]
    return getattr(original, "sqlstate", "") is None and name in kinds
