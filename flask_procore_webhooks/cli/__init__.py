"""``flask procore-webhooks …``: see and steer every endpoint of the app."""

from .events import list_events
from .events import show
from .events import stats
from .setup import check
from .setup import init_db
from .setup import secret
from .steer import pause_events
from .steer import prune
from .steer import replay_events
from .steer import resume_events
from .trigger import trigger
from .verify import verify_request
from .work import work

COMMANDS = (
    init_db,
    check,
    trigger,
    verify_request,
    list_events,
    show,
    stats,
    work,
    replay_events,
    prune,
    pause_events,
    resume_events,
    secret,
)
