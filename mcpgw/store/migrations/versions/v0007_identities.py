"""Whom other issuers know, and which users of the gateway they are."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make their table."""
    op.create_table(
        "identities",
        sa.Column("issuer", sa.String(512), nullable=False),
        sa.Column("subject", sa.String(256), nullable=False),
        sa.Column("user_name", sa.String(128), nullable=False),
        sa.Column("linked_by", sa.Text, nullable=False),
        sa.Column("linked_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("issuer", "subject", name="pk_identities"),
        sa.ForeignKeyConstraint(
            ["user_name"], ["users.name"], name="fk_identities_users", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_identities_user_name", "identities", ["user_name"])


def downgrade() -> None:
    """Take it away, with all that is in it."""
    op.drop_table("identities")
