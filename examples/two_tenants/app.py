"""Two Procore companies in one app, each with its own path and credentials."""

from __future__ import annotations

import logging
import os

from flask import Flask

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import resource_event

logging.basicConfig(level=logging.INFO)

acme = ProcoreWebhooks(
    "acme", url_prefix="/webhooks/acme", config_prefix="ACME_WEBHOOK_"
)
birch = ProcoreWebhooks(
    "birch", url_prefix="/webhooks/birch", config_prefix="BIRCH_WEBHOOK_"
)

app = Flask(__name__)
app.config.update(
    # A gateway signs Acme's deliveries.
    ACME_WEBHOOK_SECRET=os.environ["ACME_WEBHOOK_SECRET"],
    # Procore itself sends Birch's deliveries.
    BIRCH_WEBHOOK_AUTHORIZATION=os.environ["BIRCH_WEBHOOK_AUTHORIZATION"],
)
app.register_blueprint(acme)
app.register_blueprint(birch)


@resource_event.connect
def count_for_both(app: Flask, event: Event) -> None:
    app.logger.info("%s: %s %s", event.endpoint, event.type, event.resource_id)


@acme.on("RFIs", "create")
def tell_acme(event: Event) -> None:
    app.logger.info("Acme wants a mail about RFI %s", event.resource_id)


@birch.on("RFIs", "create")
def tell_birch(event: Event) -> None:
    app.logger.info("Birch wants a task for RFI %s", event.resource_id)
