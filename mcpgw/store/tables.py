"""The tables of the store, as SQLAlchemy Core has them.

Times are whole milliseconds since the epoch; JSON is kept as text. The tables themselves are made by the
steps in ``migrations/versions``: a test holds the one against the other.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

LATEST: Final = "0007"
"""The newest revision in ``migrations/versions``."""

METADATA: Final = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)

SERVERS: Final = Table(
    "servers",
    METADATA,
    Column("name", String(64), primary_key=True),
    # As it was written: references such as ${NAME} stay what they are; a secret in plain text is in the file.
    Column("definition", Text, nullable=False),
    Column("enabled", Boolean(create_constraint=False), nullable=False),
    Column("created_by", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_by", Text, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)

CATALOGS: Final = Table(
    "catalogs",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("title", Text, nullable=False),
    Column("format", String(32), nullable=False),
    Column("source_kind", String(16), nullable=False),
    Column("source", Text, nullable=False),
    Column("imported_by", Text, nullable=False),
    Column("imported_at", BigInteger, nullable=False),
    Column("synced_at", BigInteger, nullable=False),
    Column("failure", Text, nullable=False),
    Column("notes", Text, nullable=False),
)

ENTRIES: Final = Table(
    "catalog_entries",
    METADATA,
    Column("catalog_id", String(64), ForeignKey("catalogs.id", ondelete="CASCADE"), primary_key=True),
    Column("name", String(256), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("title", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("searched", Text, nullable=False),
    Column("document", Text, nullable=False),
    Index(None, "catalog_id", "position"),
)

SWITCHES: Final = Table(
    "server_switches",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("enabled", Boolean(create_constraint=False), nullable=False),
    Column("updated_by", Text, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)

SETTINGS: Final = Table(
    "settings",
    METADATA,
    Column("name", String(128), primary_key=True),
    Column("value", Text, nullable=False),
    Column("updated_by", Text, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)

USERS: Final = Table(
    "users",
    METADATA,
    Column("name", String(128), primary_key=True),
    # Empty where there is none; else as argon2 writes it, with its salt and costs.
    Column("password_hash", Text, nullable=False),
    Column("role", String(64), nullable=False),
    Column("disabled", Boolean(create_constraint=False), nullable=False),
    # SHA-256 of a link that lets its reader in once; empty where there is none.
    Column("link_hash", String(64), nullable=False),
    Column("link_expires_at", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_by", Text, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Index(None, "link_hash"),
)

ACCESS_CHANGES: Final = Table(
    "access_changes",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("changed_by", Text, nullable=False),
    Column("action", String(64), nullable=False),
    Column("target", Text, nullable=False),
    # Whether the audit log of a gateway has it.
    Column("told", Boolean(create_constraint=False), nullable=False),
)

LOGINS: Final = Table(
    "logins",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("user_name", String(128), ForeignKey("users.name", ondelete="CASCADE"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("used_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    # Zero as long as it holds.
    Column("revoked_at", BigInteger, nullable=False),
    Column("reason", String(32), nullable=False),
    Column("remote", Text, nullable=False),
    Column("agent", Text, nullable=False),
    Index(None, "user_name"),
    Index(None, "revoked_at"),
)

REFRESH_TOKENS: Final = Table(
    "refresh_tokens",
    METADATA,
    # SHA-256 of the token, which is kept nowhere.
    Column("hash", String(64), primary_key=True),
    Column("login_id", String(32), ForeignKey("logins.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # Zero until it is used: a used one that comes again was stolen, or its thief came first.
    Column("used_at", BigInteger, nullable=False),
    # The network that used it; empty before.
    Column("used_from", String(64), nullable=False),
    Index(None, "login_id"),
)

IDENTITIES: Final = Table(
    "identities",
    METADATA,
    # Whom an issuer of others' tokens knows by a `sub`, and which user that is here.
    Column("issuer", String(512), primary_key=True),
    Column("subject", String(256), primary_key=True),
    Column("user_name", String(128), ForeignKey("users.name", ondelete="CASCADE"), nullable=False),
    Column("linked_by", Text, nullable=False),
    Column("linked_at", BigInteger, nullable=False),
    Index(None, "user_name"),
)

API_KEYS: Final = Table(
    "api_keys",
    METADATA,
    # The part of the key that may be shown.
    Column("id", String(32), primary_key=True),
    # SHA-256 of the whole key, which is kept nowhere.
    Column("hash", String(64), nullable=False),
    Column("user_name", String(256), nullable=False),
    Column("name", Text, nullable=False),
    Column("scopes", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # Zero where it has no end, was not revoked, was never used.
    Column("expires_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger, nullable=False),
    Column("used_at", BigInteger, nullable=False),
    Index(None, "user_name"),
)

ROOMS: Final = Table(
    "rooms",
    METADATA,
    Column("id", String(16), primary_key=True),
    Column("name", String(64), nullable=False),
    # Empty where the room is administered by admins and commands alone.
    Column("host", String(256), nullable=False),
    Column("scopes", Text, nullable=False),
    Column("quota_calls", Integer, nullable=False),
    Column("quota_ms", BigInteger, nullable=False),
    Column("max_guests", Integer, nullable=False),
    # A keyed hash of the code, which is short enough to be tried out by whoever has the database.
    Column("code_hash", String(64), nullable=False),
    Column("frozen", Boolean(create_constraint=False), nullable=False),
    Column("created_by", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("ends_at", BigInteger, nullable=False),
    # Zero as long as it is open; so there is one open room of a name.
    Column("ended_at", BigInteger, nullable=False),
    UniqueConstraint("name", "ended_at"),
)

GUESTS: Final = Table(
    "guests",
    METADATA,
    Column("id", String(16), primary_key=True),
    Column(
        "room_id",
        String(16),
        ForeignKey("rooms.id", name="fk_guests_room_id_rooms", ondelete="CASCADE"),
        nullable=False,
    ),
    Column("name", String(64), nullable=False),
    # What makes two names too much alike for one room.
    Column("folded", String(256), nullable=False),
    Column("remote", Text, nullable=False),
    Column("joined_at", BigInteger, nullable=False),
    Column("muted", Boolean(create_constraint=False), nullable=False),
    # Zero until the host removes the guest; the name stays taken.
    Column("removed_at", BigInteger, nullable=False),
    UniqueConstraint("room_id", "folded"),
)
