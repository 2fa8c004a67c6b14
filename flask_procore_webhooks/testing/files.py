"""Files of the app in development, into which its tests must not write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flask import Flask
from sqlalchemy import URL

from ..endpoint import Endpoint
from ..endpoint import endpoints
from ..storage.database import DEFAULT_URI
from ..storage.engines import checked_url
from ..storage.engines import sqlite_path
from .isolation import host_session
from .isolation import url_of_host

#: The key of Flask-SQLAlchemy.
HOST_KEY = "SQLALCHEMY_DATABASE_URI"

FOLDER_ADVICE = """\
Give the app under test a folder or a database of its own: \
Flask(..., instance_path=str(tmp_path)), or app.instance_path = str(tmp_path), \
or the config key {} = "sqlite://" or f"sqlite:///{{tmp_path}}/webhooks.db"."""
HOST_ADVICE = f"""\
Give the app under test a database of its own: set {HOST_KEY} in the config that the \
tests give to the factory, to "sqlite://" or f"sqlite:///{{tmp_path}}/test.db". \
db.init_app(app) reads it; app.instance_path, set afterwards, does not move the file."""
SESSION_ADVICE = """\
Bind session= to a database of the tests, such as one in memory or in tmp_path."""


def instance_files(app: Flask) -> Iterator[tuple[Path, str]]:
    """The SQLite files of inboxes in an instance folder, with what moves each.

    Instance folders are the one that the app has now, and the one that Flask finds for
    it: an engine may have been made before a test has set ``instance_path``.
    """
    paths = app.instance_path, app.auto_find_instance_path()
    folders = [Path(path).resolve() for path in paths]
    for endpoint in endpoints(app).values():
        url, advice = _database(endpoint)
        path = None if url is None else sqlite_path(url)
        if path is None:
            continue
        # Flask-SQLAlchemy has made the path absolute; plain SQLAlchemy opens it here.
        is_own = host_session(endpoint) is None
        file = (folders[0] / path if is_own else Path(path)).resolve()
        if any(file.is_relative_to(folder) for folder in folders):
            yield file, advice


def _database(endpoint: Endpoint) -> tuple[URL | None, str]:
    """The URL of the endpoint's database, and what gives it another one."""
    if host_session(endpoint) is not None:
        has_db = endpoint.mount.db is not None
        return url_of_host(endpoint), HOST_ADVICE if has_db else SESSION_ADVICE
    given, key = endpoint.settings.database_uri, f"{endpoint.config_prefix}DATABASE_URI"
    of_host = endpoint.app.config.get(HOST_KEY)
    if of_host and not given:
        key = HOST_KEY
    return checked_url(given or of_host or DEFAULT_URI), FOLDER_ADVICE.format(key)
