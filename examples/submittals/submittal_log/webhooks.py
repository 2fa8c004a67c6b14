"""One subscriber keeps the table of submittals equal to Procore's."""

from __future__ import annotations

from datetime import datetime
from datetime import timedelta
from datetime import timezone

from flask_procore_webhooks import Discard
from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import RetryLater

from .config import PROCORE_PROJECTS
from .config import SUBMITTALS_GONE
from .config import SUBMITTALS_PAUSE
from .config import SUBMITTALS_REREAD
from .config import SUBMITTALS_SETTLE
from .models import db
from .models import Submittal
from .procore import fetch_submittal

webhooks = ProcoreWebhooks(db=db)  # POST /webhooks/procore


def is_ours(event: Event) -> bool:
    return event.project_id in PROCORE_PROJECTS


def may_be_stale(event: Event) -> bool:
    """Whether Procore may return an old state: not for what the sweep has found."""
    return is_ours(event) and event.origin != "enqueue"


@webhooks.on(
    "Submittals",
    name="sync",
    when=is_ours,
    latest_only=True,
    settle=SUBMITTALS_SETTLE,
    one_at_a_time=True,
)
@webhooks.on(
    "Submittals",
    name="reread",
    when=may_be_stale,
    latest_only=True,
    after=SUBMITTALS_REREAD,
    settle_max=2 * SUBMITTALS_REREAD,
)
def sync(event: Event) -> None:
    """Store what Procore returns now: events arrive late, twice, in any order."""
    if not (event.project_id and event.resource_id):
        raise Discard("the event names no submittal")
    current = fetch_submittal(event.project_id, event.resource_id)
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


def wait_for_create(event: Event) -> None:
    """Wait while the submittal may not be readable yet; after that, it is deleted."""
    oldest = datetime.now(timezone.utc) - timedelta(seconds=SUBMITTALS_GONE)
    if event.received_at and event.received_at > oldest:
        raise RetryLater(after=SUBMITTALS_PAUSE)
    raise Discard("deleted at Procore")
