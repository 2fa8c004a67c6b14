"""Prudra's webhooks beside Procore's, in one app and one inbox."""

from __future__ import annotations

import logging
import os

from flask import Flask

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import PrudraWebhooks

logging.basicConfig(level=logging.INFO)

procore = ProcoreWebhooks()  # POST /webhooks/procore
prudra = PrudraWebhooks()  # POST /webhooks/prudra

app = Flask(__name__)
app.config.update(
    PROCORE_WEBHOOK_SECRET=os.environ["PROCORE_WEBHOOK_SECRET"],
    PRUDRA_WEBHOOK_SECRET=os.environ["PRUDRA_WEBHOOK_SECRET"],
)
app.register_blueprint(procore)
app.register_blueprint(prudra)


@prudra.on("payment", "received")
def book_payment(event: Event) -> None:
    app.logger.info("Booked a payment: %s", event.data)


@procore.on("Payments Issued", "create")
def note_payment(event: Event) -> None:
    app.logger.info("Procore knows of payment %s", event.resource_id)
