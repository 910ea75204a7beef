"""Run by Alembic, which hands over the connection of the store; the transaction is the store's."""

from alembic import context

from mcpgw.store.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"], target_metadata=METADATA, render_as_batch=True
)
context.run_migrations()
