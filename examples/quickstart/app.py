"""Receive Procore's webhooks; the inbox is a SQLite file in the instance folder."""

from __future__ import annotations

import logging
import os

from flask import Flask

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import resource_created

logging.basicConfig(level=logging.INFO)

webhooks = ProcoreWebhooks()

app = Flask(__name__)
# Set SECRET if a gateway or relay signs its deliveries; set AUTHORIZATION to the value
# that you enter for the hook at Procore. DATABASE_URI is by default a SQLite file,
# instance/procore_webhooks.db.
for key in ("SECRET", "AUTHORIZATION", "DATABASE_URI"):
    name = f"PROCORE_WEBHOOK_{key}"
    if name in os.environ:
        app.config[name] = os.environ[name]
app.register_blueprint(webhooks)  # POST /webhooks/procore


@webhooks.on("RFIs", "update")
def rfi_was_updated(event: Event) -> None:
    app.logger.info("RFI %s was updated by user %s", event.resource_id, event.user_id)


@resource_created.connect
def something_was_created(app: Flask, event: Event) -> None:
    app.logger.info("%s %s was created", event.resource_type, event.resource_id)
