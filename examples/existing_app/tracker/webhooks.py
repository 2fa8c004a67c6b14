"""Keep our RFIs in step with Procore's."""

from __future__ import annotations

from sqlalchemy import delete

from flask_procore_webhooks import Discard
from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks

from .models import db
from .models import Rfi
from .procore import fetch_rfi

webhooks = ProcoreWebhooks(db=db)  # POST /webhooks/procore


@webhooks.on("RFIs", "create")
@webhooks.on("RFIs", "update")
def store_rfi(event: Event) -> None:
    """Store what Procore has now: events come late, twice, and in any order."""
    if not (event.company_id and event.project_id and event.resource_id):
        raise Discard("the event does not name an RFI")
    # Locked (not on SQLite), so that two events of one RFI take turns, and what was
    # fetched last is stored last.
    rfi = db.session.get(Rfi, event.resource_id, with_for_update=True)
    current = fetch_rfi(event.company_id, event.project_id, event.resource_id)
    if current is None:
        remove_rfi(event)
        return
    rfi = rfi or Rfi(id=event.resource_id, project_id=event.project_id)
    rfi.subject = current["subject"]
    rfi.status = current["status"]
    db.session.add(rfi)  # Committed together with the note that this is done.


@webhooks.on("RFIs", "delete")
def remove_rfi(event: Event) -> None:
    db.session.execute(delete(Rfi).where(Rfi.id == event.resource_id))
