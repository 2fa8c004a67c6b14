"""The tables of schemas 1 and 2 with rows in them, as older packages have left them.

``schemas/2-*.sql`` were filled by runs of the package that had schema 2, and dumped.
"""

from __future__ import annotations

from datetime import datetime
from datetime import timedelta
from datetime import timezone
from pathlib import Path
from typing import Any

import sqlalchemy as sa

DUMPS = Path(__file__).parents[1] / "schemas"
ENDPOINT = "procore_webhooks"
NOW = datetime.now(timezone.utc).replace(tzinfo=None)

#: An event of each status in schema 1, by its id.
EVENTS: dict[str, dict[str, Any]] = {
    "evt_pending": {"status": "pending", "due_at": NOW},
    # Its process is gone, and its lease has ended.
    "evt_running": {
        "status": "running",
        "attempts": 1,
        "lease": "a" * 32,
        "due_at": NOW - timedelta(minutes=5),
    },
    "evt_done": {"status": "done", "attempts": 1, "finished_at": NOW},
    "evt_dead": {
        "status": "dead",
        "attempts": 12,
        "finished_at": NOW,
        "error": "good: ValueError: broken",
    },
    "evt_ignored": {"status": "ignored", "finished_at": NOW},
}


def load(url: str, *, schema: int = 1, rows: bool = True) -> None:
    """Create the tables of an older schema in an empty database, with rows in them.

    :param rows: of schema 1; the dumps of schema 2 have rows.
    """
    engine = sa.create_engine(url)
    kind = {"mysql": "mariadb"}.get(engine.dialect.name, engine.dialect.name)
    script = (DUMPS / f"{schema}-{kind}.sql").read_text()
    with engine.begin() as connection:
        for statement in script.split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement)
        if rows and schema == 1:
            _insert_rows(connection)
    engine.dispose()


def _insert_rows(connection: sa.Connection) -> None:
    metadata = sa.MetaData()
    metadata.reflect(connection)
    event, receipt, journal = (
        metadata.tables[f"procore_webhook_{name}"]
        for name in ("event", "receipt", "journal")
    )
    common = {
        "endpoint": ENDPOINT,
        "type": "RFIs.update",
        "resource_type": "RFIs",
        "reason": "update",
        "attempts": 0,
        "received_at": NOW - timedelta(hours=1),
        "repeats": 0,
        "conflicts": 0,
    }
    for event_id, fields in EVENTS.items():
        body = f'{{"id": "{event_id}", "event_type": "RFIs.update"}}'.encode()
        row = {**common, "event_id": event_id, "body": body, **fields}
        connection.execute(sa.insert(event), row)
    done = sa.select(event.c.id).where(event.c.event_id == "evt_done")
    row_id = connection.scalar(done)
    ended = {"subscriber": "good", "ending": "done", "finished_at": NOW}
    connection.execute(sa.insert(receipt), {"event": row_id, **ended})
    operations = {"pause": None, "resume": None, "replay": row_id}
    entries = [
        {"endpoint": ENDPOINT, "action": action, "event": event, "at": NOW}
        | {"actor": "me@host"}
        for action, event in operations.items()
    ]
    connection.execute(sa.insert(journal), entries)
