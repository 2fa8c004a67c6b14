"""The host app: its subscribers have one option set and copy submittals.

A subscriber fetches and stores; it compares nothing, so that it shows what the option
set alone achieves.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import RetryLater

from .options import OPTION_SETS
from .options import OptionSet

SECRET = "a secret of the simulator"
#: Seconds of Procore's until a client gives up.
CLIENT_TIMEOUT = 10.0
#: The defaults, in Procore's seconds.
RETRY_BASE, RETRY_CAP = 10.0, 3600.0


def environment(
    url: str, api: str, calls: str, options: str, factor: float
) -> dict[str, str]:
    """The variables of the app's processes.

    :param calls: file that each call of a subscriber appends a line to.
    :param options: name of the option set.
    """
    return {
        "BURSTS_URL": url,
        "BURSTS_API": api,
        "BURSTS_CALLS": calls,
        "BURSTS_OPTIONS": options,
        "BURSTS_FACTOR": str(factor),
    }


def create_app(environ: Mapping[str, str] = os.environ) -> Flask:
    app = Flask(__name__)
    url, factor = sa.make_url(environ["BURSTS_URL"]), float(environ["BURSTS_FACTOR"])
    app.config.update(
        SQLALCHEMY_DATABASE_URI=url,
        PROCORE_WEBHOOK_SECRET=SECRET,
        PROCORE_WEBHOOK_DISPATCH="worker",
        PROCORE_WEBHOOK_RETRY_BASE=RETRY_BASE / factor,
        PROCORE_WEBHOOK_RETRY_CAP=RETRY_CAP / factor,
    )
    db = SQLAlchemy()
    copy = sa.Table(
        "copy",
        db.metadata,
        sa.Column("resource", sa.String(40), primary_key=True),
        sa.Column("project", sa.String(40), nullable=False),
        sa.Column("fields", sa.String(200), nullable=False),
    )
    db.init_app(app)
    webhooks = ProcoreWebhooks(db=db)
    mirror = Mirror(db, copy, OPTION_SETS[environ["BURSTS_OPTIONS"]], environ)
    for options in mirror.options.scaled(factor):
        webhooks.on("Submittals", **{"name": "mirror"} | options)(mirror)
    app.register_blueprint(webhooks)
    return app


class Mirror:
    """A subscriber that copies what its event is about into the table ``copy``."""

    def __init__(
        self,
        db: SQLAlchemy,
        copy: sa.Table,
        options: OptionSet,
        environ: Mapping[str, str],
    ) -> None:
        self.db = db
        self.copy = copy
        self.options = options
        self.api = environ["BURSTS_API"]
        self.calls = environ["BURSTS_CALLS"]
        self.patience = CLIENT_TIMEOUT / float(environ["BURSTS_FACTOR"])

    def __call__(self, event: Event) -> None:
        began, is_good = time.time(), False
        try:
            if self.options.is_by_project:
                self._copy_project(str(event.project_id))
            else:
                self._copy_one(str(event.project_id), str(event.resource_id))
            is_good = True
        finally:
            self._note(event, began, is_good)

    def _copy_one(self, project: str, resource: str) -> None:
        fields = self._fetch(f"/projects/{project}/submittals/{resource}")
        mine = self.copy.c.resource == resource
        self.db.session.execute(sa.delete(self.copy).where(mine))
        if fields is not None:
            self._store(project, {resource: fields})

    def _copy_project(self, project: str) -> None:
        found = self._fetch(f"/projects/{project}/submittals")
        mine = self.copy.c.project == project
        self.db.session.execute(sa.delete(self.copy).where(mine))
        self._store(project, found)

    def _store(self, project: str, found: Mapping[str, Any]) -> None:
        rows = [
            {
                "project": project,
                "resource": resource,
                "fields": json.dumps(fields),
            }
            for resource, fields in found.items()
        ]
        if rows:
            self.db.session.execute(sa.insert(self.copy), rows)

    def _fetch(self, path: str) -> Any:
        """The JSON of an answer; ``None`` for 404."""
        try:
            with urllib.request.urlopen(
                self.api + path, timeout=self.patience
            ) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404:
                    return None
                if error.code == 429:
                    seconds = float(error.headers["Retry-After"])
                    raise RetryLater(after=seconds) from error
                raise

    def _note(self, event: Event, began: float, is_good: bool) -> None:
        call = {
            "project": event.project_id,
            "resource": event.resource_id,
            "event": event.id,
            "began": began,
            "ended": time.time(),
            "is_good": is_good,
        }
        file = os.open(self.calls, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(file, json.dumps(call).encode() + b"\n")
        finally:
            os.close(file)
