"""A worker whose subscriber has effects outside the database, and kills its process.

``python -m soak.batch URL FILE DURABLE CALLS``: each call appends the id of its event
to the file; that of the number ``CALLS`` then kills the process. With 0, the process
ends when every event is done.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from flask import Flask
from support.inboxes import counted
from support.inboxes import record

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.dispatching.worker import LARGEST_BATCH
from flask_procore_webhooks.dispatching.worker import Worker
from flask_procore_webhooks.endpoint import endpoints

#: Events in the inbox.
EVENTS = 2 * LARGEST_BATCH
#: Seconds.
LEASE = 2.0


def main(url: str, file: Path, durable: bool, killed_at: int) -> None:
    app = Flask("batch")
    app.config.update(
        PROCORE_WEBHOOK_SECRET="a secret of the batch",
        PROCORE_WEBHOOK_DATABASE_URI=url,
        PROCORE_WEBHOOK_DISPATCH="worker",
        PROCORE_WEBHOOK_LEASE=LEASE,
    )
    webhooks = ProcoreWebhooks()

    @webhooks.on(name="sends", durable=durable)
    def sends(event: Event) -> None:
        with file.open("a") as calls:
            print(event.id, file=calls, flush=True)
        if len(file.read_text().split()) == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    app.register_blueprint(webhooks)
    (endpoint,) = endpoints(app).values()
    if killed_at:
        record(endpoint.store, *(f"evt_{number}" for number in range(EVENTS)))
    worker = Worker([endpoint], poll=1)
    worker._batch_size = LARGEST_BATCH
    while counted(endpoint.store) != {"done": EVENTS}:
        worker.run_all()
        time.sleep(0.1)


if __name__ == "__main__":
    url, file, durable, killed_at = sys.argv[1:]
    main(url, Path(file), durable == "1", int(killed_at))
