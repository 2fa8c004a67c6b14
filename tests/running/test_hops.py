"""A delivery and a run make few calls in few files of the package.

``sys.setprofile`` counts calls of the package's functions, their files, and calls from
one file of the package to another. Before Python 3.12 a comprehension counts as a call,
so the limits hold for Python 3.11.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from support.inboxes import due_rows
from support.values import SECRET
from werkzeug.test import EnvironBuilder
from werkzeug.test import run_wsgi_app

import flask_procore_webhooks
from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.running.failures import RunOutcome
from flask_procore_webhooks.running.run import process
from flask_procore_webhooks.testing import drain
from flask_procore_webhooks.testing import payload
from flask_procore_webhooks.testing import sign

PACKAGE = str(Path(flask_procore_webhooks.__file__).parent)
FORMATS = ("signed", "v2", "v4")


class Hops:
    """Counts the calls inside the package while ``call`` runs."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.calls = 0
        self.changes = 0
        self.files: set[str] = set()
        sys.setprofile(self._count)
        try:
            call()
        finally:
            sys.setprofile(None)

    def _count(self, frame: FrameType, event: str, _: object) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(PACKAGE):
            self.calls += 1
            self.files.add(file)
            caller = frame.f_back
            while caller and not caller.f_code.co_filename.startswith(PACKAGE):
                caller = caller.f_back
            self.changes += caller is not None and caller.f_code.co_filename != file

    def assert_at_most(self, calls: int, files: int, changes: int) -> None:
        counted = (self.calls, len(self.files), self.changes)
        limits = (calls, files, changes)
        assert all(map(int.__le__, counted, limits)), f"{counted}, not {limits}"


class Host:
    """An app with Flask-SQLAlchemy on a SQLite file and two subscribers that write."""

    def __init__(self, app: Flask) -> None:
        self.app = app
        self.db = SQLAlchemy(app)

        class Note(self.db.Model):  # type: ignore[name-defined,misc]
            id = sa.Column(sa.Integer, primary_key=True)

        self.Note = Note
        webhooks = ProcoreWebhooks(db=self.db)
        for name in ("first", "second"):
            webhooks.on("RFIs", "update", name=name)(self.add)
        app.register_blueprint(webhooks)
        app.add_url_rule("/other", view_func=lambda: "other")
        with app.app_context():
            self.db.create_all()

    def add(self, event: Event) -> None:
        self.db.session.add(self.Note())

    def delivery(self, format: str) -> Callable[[], None]:
        """A function that makes one delivery; its request is built beforehand."""
        body = json.dumps(payload("RFIs.update", format=format)).encode()
        headers = {**sign(body, SECRET), "Content-Type": "application/json"}
        builder = EnvironBuilder(
            path="/webhooks/procore", method="POST", data=body, headers=headers
        )
        environ = builder.get_environ()

        def deliver() -> None:
            _, status, _ = run_wsgi_app(self.app, environ)
            assert status == "200 OK"

        return deliver

    def notes(self) -> int:
        with self.app.app_context():
            return int(self.db.session.query(self.Note).count())


@pytest.fixture
def host(make_app: Callable[..., Flask]) -> Iterator[Host]:
    """A host whose one-time work of the process is done."""
    app: Any = make_app(
        SQLALCHEMY_DATABASE_URI="sqlite:///app.db", PROCORE_WEBHOOK_DISPATCH="worker"
    )
    host = Host(app)
    for _ in range(2):
        host.delivery("signed")()
        assert drain(app) == 1
    yield host
    with app.app_context():
        host.db.engine.dispose()


@pytest.mark.parametrize("format", FORMATS)
def test_a_delivery_makes_few_calls_in_few_files(host: Host, format: str) -> None:
    Hops(host.delivery(format)).assert_at_most(calls=69, files=11, changes=22)


@pytest.mark.parametrize("format", FORMATS)
def test_a_run_with_two_subscribers_makes_few_calls(host: Host, format: str) -> None:
    host.delivery(format)()
    (endpoint,) = endpoints(host.app).values()
    (row_id,) = due_rows(endpoint.store)
    outcomes: list[RunOutcome] = []
    hops = Hops(lambda: outcomes.append(process(endpoint, row_id)))
    assert outcomes == [RunOutcome.DONE] and host.notes() == 6
    hops.assert_at_most(calls=160, files=17, changes=65)


@pytest.mark.parametrize("format", FORMATS)
def test_a_drain_of_one_event_makes_few_calls(host: Host, format: str) -> None:
    host.delivery(format)()
    hops = Hops(lambda: drain(host.app))
    assert host.notes() == 6
    hops.assert_at_most(calls=212, files=21, changes=79)


def test_a_request_to_another_route_calls_one_function_of_the_package(
    host: Host,
) -> None:
    def request() -> None:
        _, status, _ = run_wsgi_app(host.app, EnvironBuilder("/other").get_environ())
        assert status == "200 OK"

    Hops(request).assert_at_most(calls=1, files=1, changes=0)
