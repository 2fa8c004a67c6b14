"""Comparison of text, with the same result on every database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import and_
from sqlalchemy import ColumnElement
from sqlalchemy import func

from ..schema.columns import MYSQL
from .store import Store


def is_one_of(
    store: Store, column: ColumnElement[Any], *values: str
) -> ColumnElement[bool]:
    """The condition that the column holds one of the values exactly."""
    same = column == values[0] if len(values) == 1 else column.in_(values)
    if store.dialect_name not in MYSQL:
        return same
    # The collations of MariaDB and MySQL ignore spaces at the end.
    return and_(same, func.char_length(column).in_({len(value) for value in values}))


def is_same(
    store: Store, column: ColumnElement[Any], value: str
) -> ColumnElement[bool]:
    """The condition that the column holds the value, whatever the case."""
    wanted = _lower(value)
    if value.isascii() and store.dialect_name == "sqlite":
        # As below, and many times as fast: lower() changes ASCII only.
        return func.lower(column) == wanted
    return is_one_of(store, _with_lower(column, wanted), wanted)


def contains(
    store: Store, column: ColumnElement[Any], value: str
) -> ColumnElement[bool]:
    """The condition that the column's text contains the value, whatever the case."""
    wanted = _lower(value)
    if value.isascii() and store.dialect_name == "sqlite":
        return func.instr(func.lower(column), wanted) > 0
    return _with_lower(column, wanted).contains(wanted, autoescape=True)


def _with_lower(column: ColumnElement[Any], wanted: str) -> ColumnElement[Any]:
    """The column with every letter of ``wanted`` in lower case.

    The databases' ``lower()`` differ: SQLite's knows ASCII, others use a locale.
    """
    for letter in sorted(set(wanted)):
        for other in {letter.upper(), letter.title()} - {letter}:
            if len(other) == 1:
                column = func.replace(column, other, letter)
    return column


def _lower(text: str) -> str:
    """The text in lower case, character by character."""
    return "".join(low if len(low := each.lower()) == 1 else each for each in text)
