"""Databases and brokers of tests: SQLite, PostgreSQL, MariaDB, Redis, RabbitMQ.

Servers are found by environment variables or at their usual local addresses. Each test
session has its own database, and each test its own queue. Tests of a missing server are
skipped, except under CI, where they fail.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

POSTGRESQL = "POSTGRESQL_URL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
REDIS = "REDIS_URL", "redis://127.0.0.1:6379/9"
RABBITMQ = "RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672//"
MARIADB = "MARIADB_URL", "mysql+pymysql://root@127.0.0.1:3306/"


@contextmanager
def own_database(variable: str, default: str, options: str = "") -> Iterator[str]:
    """Yield the URL of a new database on the server, and drop it afterwards.

    :param options: of ``CREATE DATABASE``.
    """
    url = sa.make_url(os.environ.get(variable, default))
    admin = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    name = f"procore_webhooks_{uuid.uuid4().hex[:12]}"
    try:
        with admin.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name} {options}"))
    except sa.exc.OperationalError as error:
        missing(f"no server at {url}, which {variable} can change: {error.orig}")
    yield url.set(database=name).render_as_string(hide_password=False)
    force = " WITH (FORCE)" if url.get_backend_name() == "postgresql" else ""
    with admin.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name}{force}"))


def drop_tables(url: str) -> None:
    """Drop every table of the database."""
    engine = sa.create_engine(url)
    metadata = sa.MetaData()
    metadata.reflect(engine)
    metadata.drop_all(engine)
    engine.dispose()


def missing(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
