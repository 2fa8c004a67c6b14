"""Settings for the play; an environment variable ``FLASK_...`` replaces any of them."""

from __future__ import annotations

import os

SQLALCHEMY_DATABASE_URI = "sqlite:///submittals.db"

PROCORE_WEBHOOK_URL = "http://127.0.0.1:8000/webhooks/procore"
PROCORE_WEBHOOK_API_URL = "http://127.0.0.1:8001"
PROCORE_WEBHOOK_API_LOGIN_URL = "http://127.0.0.1:8001"
PROCORE_WEBHOOK_API_CLIENT_ID = "id"
PROCORE_WEBHOOK_NAMESPACE = "submittal-log"
PROCORE_WEBHOOK_SCOPES = [{"company": "2001", "project": "3001"}]

#: One read this long after the last event of a burst. All times are in seconds.
SETTLE = float(os.environ.get("SUBMITTALS_SETTLE", 3))
#: A second read this long after the last event, when Procore returns no old state.
REREAD = float(os.environ.get("SUBMITTALS_REREAD", 60))
#: Pause between two reads of a submittal that is not there yet.
PAUSE = 5
#: Age of an event after which a submittal that is not there has been deleted.
GONE = 30
