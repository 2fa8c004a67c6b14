"""Transactions of this database that wait for the lock of another one."""

from __future__ import annotations

import sqlalchemy as sa

from support.waiting import wait_until

# A look at pg_stat_activity is repeated until the end of the transaction; pg_locks is
# always current. The lock on a row of another transaction has no database.
_POSTGRESQL = """
SELECT count(*) FROM pg_locks WHERE NOT granted AND pid IN (
    SELECT pid FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
    WHERE datname = current_database()
)
"""
_MARIADB = """
SELECT count(*) FROM information_schema.innodb_trx AS waiting
JOIN information_schema.processlist AS client ON client.id = trx_mysql_thread_id
WHERE trx_state = 'LOCK WAIT' AND client.db = database()
"""


def wait_for_lock_wait(connection: sa.Connection) -> None:
    """Return when another transaction of the database waits for a lock.

    :param connection: to PostgreSQL or MariaDB; it may be in a transaction.
    """
    is_postgresql = connection.dialect.name == "postgresql"
    look = sa.text(_POSTGRESQL if is_postgresql else _MARIADB)
    # MariaDB refreshes its table only after 0.1 s without a query.
    wait_until(lambda: connection.scalar(look), pause=0.25)
