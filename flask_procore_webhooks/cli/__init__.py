"""``flask procore-webhooks …``: see and steer every endpoint of the app."""

from .events import list_events
from .events import show
from .events import stats
from .setup import check
from .setup import init_db
from .setup import secret
from .trigger import trigger
from .verify import verify_request

COMMANDS = (
    init_db,
    check,
    trigger,
    verify_request,
    list_events,
    show,
    stats,
    secret,
)
