"""The cut of a SQLite connection: its locks are free, its later writes rejected."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from flask_procore_webhooks.inbox.cut import cut

#: A query that takes long if it is read to its end.
ROWS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n"

#: Cuts connections while their threads execute statements; arguments: rows of each
#: statement, and how many connections.
SCRIPT = f"""
import sys, threading, time
import sqlalchemy as sa
from flask_procore_webhooks.inbox.cut import cut

engine = sa.create_engine("sqlite:///cut.db")
insert = "INSERT INTO t {ROWS} LIMIT " + sys.argv[1]
with engine.begin() as connection:
    connection.exec_driver_sql("CREATE TABLE t (x)")
for number in range(int(sys.argv[2])):
    begun, used = threading.Event(), []

    def use():
        try:
            with engine.connect() as connection:
                used.append(connection)
                while True:
                    connection.exec_driver_sql(insert)
                    begun.set()
        except sa.exc.SQLAlchemyError:
            begun.set()

    thread = threading.Thread(target=use)
    thread.start()
    while not used or not (begun.is_set() or sys.argv[1] != "5"):
        time.sleep(0.001)
    time.sleep(number % 7 * 0.001)
    cut(used[0])
    with engine.begin() as connection:
        count = connection.exec_driver_sql("SELECT count(*) FROM t").scalar()
        assert count == 0, count
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")
        connection.exec_driver_sql("DELETE FROM t")
    thread.join(30)
    assert not thread.is_alive()
print("fine")
"""


@pytest.fixture(params=[sa.QueuePool, sa.NullPool, sa.StaticPool])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    arguments = {"timeout": 0.1, "check_same_thread": False}
    engine = sa.create_engine(
        f"sqlite:///{tmp_path}/a.db", poolclass=request.param, connect_args=arguments
    )
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x)")
    yield engine
    engine.dispose()


@pytest.fixture
def go_on() -> Iterator[threading.Event]:
    go_on = threading.Event()
    yield go_on
    go_on.set()


@pytest.fixture
def call(
    engine: sa.Engine, go_on: threading.Event
) -> Iterator[Callable[..., tuple[sa.Connection, Future[list[str]]]]]:
    """Writes in a thread, waits, and then does what it is told, catching errors."""
    with ThreadPoolExecutor(1) as pool:

        def call(*later: Callable[[sa.Connection], Any]) -> Any:
            used: Future[sa.Connection] = Future()

            def work() -> list[str]:
                errors = []
                with engine.connect() as connection:
                    connection.exec_driver_sql("INSERT INTO t VALUES ('early')")
                    rows = connection.exec_driver_sql(ROWS)
                    rows.fetchone()
                    used.set_result(connection)
                    assert go_on.wait(30)
                    for each in later:
                        try:
                            each(connection)
                        except Exception as error:
                            errors.append(str(error))
                return errors

            future = pool.submit(work)
            return used.result(30), future

        yield call
        go_on.set()


def insert_late(connection: sa.Connection) -> None:
    connection.exec_driver_sql("INSERT INTO t VALUES ('late')")


def insert_by_the_driver(connection: sa.Connection) -> None:
    driver: Any = connection.connection.dbapi_connection
    with suppress(Exception):
        driver.rollback()
    driver.execute("INSERT INTO t VALUES ('late')")
    driver.commit()


def commit(connection: sa.Connection) -> None:
    connection.commit()


def test_locks_are_free_and_later_writes_are_rejected(
    engine: sa.Engine, call: Callable[..., Any], go_on: threading.Event
) -> None:
    """The thread has not read a result to its end."""
    connection, errors = call(insert_late, commit, insert_by_the_driver)
    cut(connection)
    with engine.begin() as other:
        other.exec_driver_sql("INSERT INTO t VALUES ('other')")
    go_on.set()
    ended = "the connection was ended: the call took too long"
    read_only = "attempt to write a readonly database"
    assert errors.result(30) == [ended, ended, read_only]
    for text in ("next", "last"):
        with engine.begin() as other:
            other.execute(sa.text("INSERT INTO t VALUES (:text)"), {"text": text})
    with engine.connect() as other:
        found = list(other.exec_driver_sql("SELECT x FROM t ORDER BY rowid").scalars())
    assert found == ["other", "next", "last"]


def test_returned_connection_is_left_alone(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        pass
    cut(connection)
    with engine.begin() as other:
        insert_late(other)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "times"), [("5", "100"), ("3000000", "10")])
def test_cut_of_a_connection_in_use_does_not_crash_the_process(
    tmp_path: Path, rows: str, times: str
) -> None:
    """Closing it would."""
    command = [sys.executable, "-X", "faulthandler", "-c", SCRIPT, rows, times]
    ran = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, "fine\n"), ran.stderr
