"""Rooms for workshops, and their guests."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make their tables."""
    op.create_table(
        "rooms",
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("host", sa.String(256), nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("quota_calls", sa.Integer, nullable=False),
        sa.Column("quota_ms", sa.BigInteger, nullable=False),
        sa.Column("max_guests", sa.Integer, nullable=False),
        sa.Column("code_hash", sa.String(64), nullable=False),
        sa.Column("frozen", sa.Boolean(create_constraint=False), nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("ends_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_rooms"),
        sa.UniqueConstraint("name", "ended_at", name="uq_rooms_name_ended_at"),
    )
    op.create_table(
        "guests",
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("room_id", sa.String(16), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("folded", sa.String(256), nullable=False),
        sa.Column("remote", sa.Text, nullable=False),
        sa.Column("joined_at", sa.BigInteger, nullable=False),
        sa.Column("muted", sa.Boolean(create_constraint=False), nullable=False),
        sa.Column("removed_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_guests"),
        sa.ForeignKeyConstraint(
            ["room_id"], ["rooms.id"], name="fk_guests_room_id_rooms", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("room_id", "folded", name="uq_guests_room_id_folded"),
    )


def downgrade() -> None:
    """Take them away, with all that is in them."""
    op.drop_table("guests")
    op.drop_table("rooms")
