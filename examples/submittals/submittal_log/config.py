"""Settings from the environment; times are in seconds."""

from __future__ import annotations

import os

SQLALCHEMY_DATABASE_URI = os.environ.get("DATABASE_URL", "sqlite:///submittals.db")
PROCORE_WEBHOOK_SECRET = os.environ.get("PROCORE_WEBHOOK_SECRET")

PROCORE_API = os.environ.get("PROCORE_API", "https://api.procore.com")
PROCORE_TOKEN = os.environ.get("PROCORE_TOKEN", "")
PROCORE_COMPANY = os.environ.get("PROCORE_COMPANY", "2001")
PROCORE_PROJECTS = os.environ.get("PROCORE_PROJECTS", "3001").split()

#: One read this long after the last event of a burst.
SUBMITTALS_SETTLE = float(os.environ.get("SUBMITTALS_SETTLE", 3))
#: A second read this long after the last event, when Procore returns no old state.
SUBMITTALS_REREAD = float(os.environ.get("SUBMITTALS_REREAD", 60))
#: Pause between two reads of a submittal that is not there yet.
SUBMITTALS_PAUSE = float(os.environ.get("SUBMITTALS_PAUSE", 5))
#: Age of an event after which a submittal that is not there has been deleted.
SUBMITTALS_GONE = float(os.environ.get("SUBMITTALS_GONE", 30))
