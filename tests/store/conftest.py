"""Databases for the tests of the store: each of them runs on every kind that the store can be on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.postgresql import PostgresServer

Place = str | Path
"""A file of SQLite, or the URL of a database."""

ON_POSTGRESQL = pytest.mark.xdist_group("postgresql")
"""All tests that need the server run in one process, which starts it once."""


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for all tests of this process."""
    server = PostgresServer()
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """An empty database of that server."""
    return postgres_server.new_database()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=ON_POSTGRESQL)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return tmp_path / "data" / "mcpgw.db"
    url: str = request.getfixturevalue("postgres_url")
    return url
