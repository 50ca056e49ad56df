"""Alembic runs this file to run the migrations, on the connection and in the transaction that it is given."""

from __future__ import annotations

from alembic import context

from safehaul.catalog.tables import Base


def run() -> None:
    """Run what Alembic was asked for."""
    context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
    with context.begin_transaction():
        context.run_migrations()


if __name__ == "env_py":  # Alembic's name for it; an import alone does nothing
    run()
