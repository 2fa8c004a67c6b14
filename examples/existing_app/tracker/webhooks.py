"""Subscribers that keep the table of RFIs equal to Procore's."""

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
    """Store the present state of the RFI: events arrive late, twice, in any order."""
    if not (event.company_id and event.project_id and event.resource_id):
        raise Discard("the event does not name an RFI")
    # The fetch comes first: a lock taken before it would block other writers of the
    # row for as long as Procore takes to answer.
    current = fetch_rfi(event.company_id, event.project_id, event.resource_id)
    if current is None:
        remove_rfi(event)
        return
    # SQLite has no row locks and ignores with_for_update.
    rfi = db.session.get(Rfi, event.resource_id, with_for_update=True)
    if rfi is None:
        rfi = Rfi(id=event.resource_id, project_id=event.project_id)
    elif rfi.updated_at > current["updated_at"]:
        return  # Another worker fetched and stored a newer state meanwhile.
    rfi.subject = current["subject"]
    rfi.status = current["status"]
    rfi.updated_at = current["updated_at"]
    db.session.add(rfi)  # The package commits the RFI together with the job.


@webhooks.on("RFIs", "delete")
def remove_rfi(event: Event) -> None:
    db.session.execute(delete(Rfi).where(Rfi.id == event.resource_id))
