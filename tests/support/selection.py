"""Marks set by a test's fixtures and parameters, for the selection of runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

#: Fixtures that need a server or a driver of a server.
FIXTURES = {"postgresql_url", "mariadb_url", "redis", "broker"}
#: Parameters, or words of parameters, that stand for a server or its driver.
PARAMETERS = {
    *{"postgresql", "psycopg", "psycopg2"},
    *{"mariadb", "pymysql"},
    *{"redis", "rabbitmq"},
}


def mark_server_tests(items: list[pytest.Item]) -> None:
    """Mark tests that need a database server or a broker as ``server``."""
    for item in items:
        if needs_server(item):
            item.add_marker("server")


def mark_seldom_cases(items: list[pytest.Item]) -> None:
    """Mark the cases that a test names by the mark ``seldom`` as ``soak``."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        for mark in item.iter_markers("seldom"):
            if callspec and any(word in callspec.id for word in mark.args):
                item.add_marker("soak")


def needs_server(item: pytest.Item) -> bool:
    fixtures = set(getattr(item, "fixturenames", ()))
    return bool(fixtures & FIXTURES) or not PARAMETERS.isdisjoint(_words(item))


def _words(item: pytest.Item) -> Iterator[str]:
    callspec = getattr(item, "callspec", None)
    for value in callspec.params.values() if callspec else ():
        if isinstance(value, str):
            yield from value.replace("+", " ").split()
