"""Hosts whose events wait for workers, with short times."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from support.hosts import Host
from support.hosts import run_host
from support.workers import SETTINGS

MakeApp = Callable[..., Flask]


@pytest.fixture
def host(make_app: MakeApp, database_url: str) -> Iterator[Host]:
    with run_host(make_app(**SETTINGS), "flask_sqlalchemy", database_url) as host:
        yield host


@pytest.fixture
def sqlite_host(make_app: MakeApp, tmp_path: Path) -> Iterator[Host]:
    url = f"sqlite:///{tmp_path / 'host.db'}"
    with run_host(make_app(**SETTINGS), "flask_sqlalchemy", url) as host:
        yield host
