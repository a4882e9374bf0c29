"""Run migrations on the connection that `database.open_database` hands over; there is no other way to run them."""

from __future__ import annotations

from alembic import context
from sqlalchemy.engine import Connection

from availability.history import order_tables, reconcile_tables, shop_tables
from availability.history.tables import VERSION_TABLE, metadata

for part in (order_tables, shop_tables, reconcile_tables):  # imported: all tables of all parts are in it
    assert part.metadata is metadata

connection = context.config.attributes["connection"]
assert isinstance(connection, Connection)
context.configure(
    connection=connection,
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=connection.dialect.name == "sqlite",
)
with context.begin_transaction():
    context.run_migrations()
