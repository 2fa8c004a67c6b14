"""Plays Procore, with a few paths by which you are a user there.

A change sends several events, and a new submittal an update before its create. A change
is readable two seconds later. A client that reads too often is answered 429.
"""

from __future__ import annotations

import itertools
import sys
import threading
from contextlib import suppress
from typing import Any

from flask import request
from flask import Response

from flask_procore_webhooks.testing import FakeProcore

COMPANY, PROJECT = "2001", "3001"
SHOWN = ("id", "title", "status", "updated_at")


def make_procore() -> FakeProcore:
    procore = FakeProcore("id", "a client secret", stale_seconds=2)
    procore.add_company(COMPANY, projects=[PROJECT])
    numbers = itertools.count(1)

    def number_of_events() -> None:
        procore.switches.events_per_change = 0 if "lost" in request.args else 2

    @procore.get("/submittals")
    def index() -> list[dict[str, Any]]:
        rows = procore.records("Submittals")
        return [{name: row[name] for name in SHOWN} for row in rows]

    @procore.post("/submittals")
    def create() -> dict[str, str]:
        number_of_events()
        id, fields = str(next(numbers)), {"status": "Draft", **request.get_json()}
        if "lost" not in request.args:
            procore.emit("Submittals", "update", project=PROJECT, resource_id=id)
        procore.create("Submittals", project=PROJECT, id=id, **fields)
        return {"id": id}

    @procore.patch("/submittals/<id>")
    def update(id: str) -> dict[str, str]:
        number_of_events()
        procore.update("Submittals", id, **request.get_json())
        return {"id": id}

    @procore.route("/submittals/<id>", methods=["DELETE"])
    def delete(id: str) -> dict[str, str]:
        number_of_events()
        procore.delete("Submittals", id)
        return {"id": id}

    @procore.post("/advance")
    def advance() -> dict[str, int]:
        hours = request.args.get("hours", 1.0, float)
        return {"attempts": procore.advance(hours=hours)}

    return procore


def log(answer: Response) -> Response:
    print(request.method, request.path, answer.status_code, flush=True)
    return answer


if __name__ == "__main__":
    procore = make_procore()
    procore.after_request(log)
    procore.start_sending()
    with procore.serve(int(sys.argv[1])) as url, suppress(KeyboardInterrupt):
        print(f"Procore is at {url}. Ctrl-C ends it.", flush=True)
        threading.Event().wait()
    procore.stop_sending()
