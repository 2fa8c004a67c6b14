"""Procore's part: a REST API of submittals that sends webhooks of their changes.

It behaves as Procore does. A change sends several events, and a new submittal an update
before its create. A change is readable some seconds after its events. A client that
reads too often is answered 429.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import threading
import time
from collections import deque
from datetime import datetime
from datetime import timezone
from typing import Any
from urllib.request import Request
from urllib.request import urlopen

from flask import abort
from flask import Flask
from flask import request
from flask import Response

from flask_procore_webhooks.testing import payload
from flask_procore_webhooks.testing import sign

HOOK = os.environ.get("PROCORE_HOOK", "http://127.0.0.1:8000/webhooks/procore")
SECRET = os.environ["PROCORE_WEBHOOK_SECRET"]
#: Seconds until a change is readable.
STALE = float(os.environ.get("PROCORE_STALE", 2))
#: Seconds between two events of a change.
GAP = float(os.environ.get("PROCORE_GAP", 0.5))
#: Reads within WINDOW seconds that are answered.
LIMIT = int(os.environ.get("PROCORE_LIMIT", 25))
WINDOW = float(os.environ.get("PROCORE_WINDOW", 10))
SUBMITTALS = "/rest/v1.1/projects/<project>/submittals"

Fields = dict[str, Any]

app = Flask(__name__)
lock = threading.Lock()
numbers = itertools.count(1)
#: By project and id: the states of a submittal, each with the time from which it is
#: readable; ``None`` after a delete.
states: dict[tuple[str, str], list[tuple[float, Fields | None]]] = {}
reads: deque[float] = deque()


@app.before_request
def limit_reads() -> Response | None:
    if request.method != "GET":
        return None
    with lock:
        now = time.monotonic()
        while reads and reads[0] + WINDOW <= now:
            reads.popleft()
        if len(reads) < LIMIT:
            reads.append(now)
            return None
        wait = math.ceil(reads[0] + WINDOW - now)
    return Response("Too many requests", 429, {"Retry-After": str(wait)})


@app.get(SUBMITTALS)
def index(project: str) -> list[Fields]:
    found = [readable(*key) for key in sorted(states) if key[0] == project]
    page, size = (request.args.get(name, type=int) for name in ("page", "per_page"))
    start = ((page or 1) - 1) * (size or 10)
    return [fields for fields in found if fields][start : start + (size or 10)]


@app.get(f"{SUBMITTALS}/<id>")
def show(project: str, id: str) -> Fields:
    return readable(project, id) or abort(404)


@app.post(SUBMITTALS)
def create(project: str) -> Fields:
    fields = {"status": "Draft", **request.get_json()}
    return write(project, str(next(numbers)), fields, "update", "create", "update")


@app.patch(f"{SUBMITTALS}/<id>")
def update(project: str, id: str) -> Fields:
    return write(project, id, request.get_json(), "update", "update", "update")


@app.delete(f"{SUBMITTALS}/<id>")
def delete(project: str, id: str) -> Fields:
    return write(project, id, None, "delete")


def readable(project: str, id: str) -> Fields | None:
    """Return the state that a read finds now."""
    found = None
    for since, fields in states.get((project, id), ()):
        if since <= time.monotonic():
            found = fields
    return found


def write(project: str, id: str, changed: Fields | None, *reasons: str) -> Fields:
    """Change a submittal, and send an event for each of ``reasons``.

    No event is sent if the URL has ``?lost=1``.
    """
    with lock:
        history = states.setdefault((project, id), [])
        former = history[-1][1] if history else None
        now = datetime.now(timezone.utc).isoformat(timespec="microseconds")
        after = None
        if changed is not None:
            after = {**(former or {}), **changed, "id": id, "updated_at": now}
        history.append((time.monotonic() + STALE, after))
    for number, reason in enumerate(() if "lost" in request.args else reasons):
        time.sleep(GAP if number else 0)
        send(f"Submittals.{reason}", project, id)
    return after or {}


def send(type: str, project: str, id: str) -> None:
    event = payload(type, format="v4", resource_id=id, project_id=project)
    body = json.dumps(event).encode()
    headers = {"Content-Type": "application/json", **sign(body, SECRET)}
    try:
        urlopen(Request(HOOK, body, headers), timeout=5).close()
    except OSError as error:  # Procore would repeat it for 12 hours.
        app.logger.warning("%s of %s is lost: %s", type, id, error)
