"""An hourly comparison with Procore, for changes that sent no event."""

from __future__ import annotations

import click
from flask import current_app
from flask.cli import with_appcontext
from sqlalchemy import select

from flask_procore_webhooks import RetryLater

from .models import db
from .models import Submittal
from .procore import list_submittals
from .webhooks import webhooks


@click.command
@with_appcontext
def sweep() -> None:
    """Enqueue an event for each submittal that differs from Procore's."""
    for project_id in current_app.config["PROCORE_PROJECTS"]:
        try:
            differing = find_differing(project_id)
        except RetryLater as busy:
            raise click.ClickException(f"Procore is busy: {busy}.") from None
        for submittal_id in sorted(differing):
            webhooks.enqueue(
                "Submittals.update",
                resource_id=submittal_id,
                project_id=project_id,
                company_id=current_app.config["PROCORE_COMPANY"],
            )
        db.session.commit()
        click.echo(f"{project_id}: {len(differing)} differ")


def find_differing(project_id: str) -> set[str]:
    """Return the ids of submittals that are new, changed or gone."""
    theirs = {(s["id"], s["updated_at"]) for s in list_submittals(project_id)}
    columns = select(Submittal.id, Submittal.updated_at)
    rows = db.session.execute(columns.where(Submittal.project_id == project_id))
    return {submittal_id for submittal_id, _ in theirs ^ {tuple(row) for row in rows}}
