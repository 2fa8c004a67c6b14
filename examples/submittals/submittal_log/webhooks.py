"""One subscriber keeps the table of submittals equal to Procore's."""

from __future__ import annotations

from datetime import datetime
from datetime import timedelta
from datetime import timezone
from typing import Any

from flask_procore_webhooks import Discard
from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.api import NotFound
from flask_procore_webhooks.api import procore_errors

from .config import GONE
from .config import PAUSE
from .config import REREAD
from .config import SETTLE
from .models import db
from .models import Submittal

webhooks = ProcoreWebhooks(db=db)  # POST /webhooks/procore


def may_be_stale(event: Event) -> bool:
    """Whether Procore may return an old state: only just after a change."""
    return event.origin == "delivery"


@webhooks.on(
    "Submittals", name="sync", latest_only=True, settle=SETTLE, one_at_a_time=True
)
@webhooks.on(
    "Submittals",
    name="reread",
    when=may_be_stale,
    latest_only=True,
    after=REREAD,
    settle_max=2 * REREAD,
)
def sync(event: Event) -> None:
    """Store what Procore returns now: events arrive late, twice, in any order."""
    current = fetch(event)
    # Locked after the read of the API; SQLite has no row locks and ignores it.
    submittal = db.session.get(Submittal, event.resource_id, with_for_update=True)
    if current is None:
        if submittal is not None:
            db.session.delete(submittal)
        elif event.reason != "delete":
            wait_for_create(event)
        return
    if submittal is None:
        submittal = Submittal(id=event.resource_id, project_id=event.project_id)
        db.session.add(submittal)  # The package commits it together with the job.
    elif submittal.updated_at > current["updated_at"]:
        return  # An old state: the other of sync and reread has stored a newer one.
    submittal.title = current["title"]
    submittal.status = current["status"]
    submittal.updated_at = current["updated_at"]


def fetch(event: Event) -> dict[str, Any] | None:
    """Return the submittal as Procore returns it now, or ``None`` after a 404."""
    path = f"/rest/v1.1/projects/{event.project_id}/submittals/{event.resource_id}"
    with procore_errors():
        try:
            found: dict[str, Any] = webhooks.api(company_id=event.company_id).get(path)
        except NotFound:
            return None
    return found


def wait_for_create(event: Event) -> None:
    """Wait while the submittal may not be readable yet; after that, it is deleted."""
    oldest = datetime.now(timezone.utc) - timedelta(seconds=GONE)
    if event.received_at and event.received_at > oldest:
        raise RetryLater(after=PAUSE)
    raise Discard("deleted at Procore")
