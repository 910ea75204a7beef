"""Definitions of servers, and catalogs with their entries."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the first tables."""
    op.create_table(
        "servers",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("definition", sa.Text, nullable=False),
        sa.Column("enabled", sa.Boolean(create_constraint=False), nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_by", sa.Text, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_servers"),
    )
    op.create_table(
        "catalogs",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("format", sa.String(32), nullable=False),
        sa.Column("source_kind", sa.String(16), nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("imported_by", sa.Text, nullable=False),
        sa.Column("imported_at", sa.BigInteger, nullable=False),
        sa.Column("synced_at", sa.BigInteger, nullable=False),
        sa.Column("failure", sa.Text, nullable=False),
        sa.Column("notes", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_catalogs"),
    )
    op.create_table(
        "catalog_entries",
        sa.Column("catalog_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("searched", sa.Text, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("catalog_id", "name", name="pk_catalog_entries"),
        sa.ForeignKeyConstraint(
            ["catalog_id"], ["catalogs.id"], name="fk_catalog_entries_catalogs", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_catalog_entries_catalog_id_position", "catalog_entries", ["catalog_id", "position"])


def downgrade() -> None:
    """Take the tables away, with all that is in them."""
    op.drop_table("catalog_entries")
    op.drop_table("catalogs")
    op.drop_table("servers")
