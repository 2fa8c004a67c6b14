"""An hourly look at Procore's list, for changes that sent no event."""

from __future__ import annotations

from datetime import datetime
from datetime import timedelta
from datetime import timezone

import click
from flask import current_app
from flask.cli import with_appcontext

from .models import db
from .webhooks import webhooks


@click.command
@with_appcontext
def sweep() -> None:
    """Enqueue an event for each change of which none has come."""
    since = datetime.now(timezone.utc) - timedelta(hours=2)
    for scope in current_app.config["PROCORE_WEBHOOK_SCOPES"]:
        api, project = webhooks.api(company_id=scope["company"]), scope["project"]
        changes = api.changed_since("Submittals", since=since, project_id=project)
        found = webhooks.enqueue_changes(changes)
        db.session.commit()
        click.echo(f"project {project}: changes without an event: {len(found)}")
