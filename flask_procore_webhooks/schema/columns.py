"""Types of the inbox's columns that differ between databases."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger
from sqlalchemy import DateTime
from sqlalchemy import Integer
from sqlalchemy import LargeBinary
from sqlalchemy import String
from sqlalchemy import Text
from sqlalchemy.types import TypeEngine

# The dialect of MySQL is imported when tables are defined, not with the package.
MYSQL = ("mysql", "mariadb")


def RowId() -> TypeEngine[Any]:
    # SQLite generates row ids only in a column of type INTEGER.
    return BigInteger().with_variant(Integer(), "sqlite")


def Exact(length: int) -> TypeEngine[Any]:
    """ASCII text that is compared with its case, on every database."""
    from sqlalchemy.dialects import mysql

    binary = mysql.VARCHAR(length, charset="ascii", collation="ascii_bin")
    return String(length).with_variant(binary, *MYSQL)


def CaseSensitive(length: int) -> TypeEngine[Any]:
    """Any text, compared with its case, on every database."""
    from sqlalchemy.dialects import mysql

    binary = mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin")
    return String(length).with_variant(binary, *MYSQL)


def Time() -> TypeEngine[Any]:
    from sqlalchemy.dialects import mysql

    return DateTime().with_variant(mysql.DATETIME(fsp=6), *MYSQL)


def Bytes() -> TypeEngine[Any]:
    from sqlalchemy.dialects import mysql

    # A plain BLOB of MySQL ends at 64 KiB.
    return LargeBinary().with_variant(mysql.LONGBLOB(), *MYSQL)


def LongText() -> TypeEngine[Any]:
    from sqlalchemy.dialects import mysql

    # A plain TEXT of MySQL ends at 64 KiB.
    return Text().with_variant(mysql.MEDIUMTEXT(), *MYSQL)
