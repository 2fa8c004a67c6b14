"""Reconcile an endpoint's hooks, and dispatch what was inserted."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

from ..api.configured import api_of
from ..api.configured import PATIENCE
from ..endpoint import Endpoint
from ..endpoint import endpoints
from ..errors import ConfigError
from ..errors import InboxUnavailable
from ..hooks.reconcile import reconcile
from ..hooks.reconcile import Run
from ..hooks.report import Options
from ..hooks.report import Report
from ..hooks.survey import shared_hooks
from ..hooks.survey import Survey
from ..inbox.added import count_waiting
from ..inbox.record import RECONCILE
from ..running.run import process
from .dispatch import notify_others

#: The part of the rate limit that is left to the app.
RESERVE = 0.2
WAITING = (
    "{} reconciled events are not finished. With DISPATCH 'inline', only flask"
    " procore-webhooks worker runs them."
)


def reconcile_endpoint(
    endpoint: Endpoint,
    options: Options,
    actor: str,
    progress: Callable[[int], None] = lambda number: None,
) -> Iterator[Report]:
    """Reconcile each hook of the endpoint, and yield its report.

    :param actor: the name of the user in the journal.
    :param progress: is called with the number of deliveries of each page.
    :raises ConfigError: a key is missing, or another endpoint of the app asks for one
        of its hooks: each would insert what belongs to the other.
    :raises WrongDay: by the iterator: Procore does not list the day of ``since``.
    """
    api = api_of(endpoint, wait=PATIENCE, reserve=RESERVE)
    dispatch = partial(dispatch_rows, endpoint)
    survey = Survey(endpoint, api)
    if problems := shared_hooks([survey, *_others(endpoint)]):
        raise ConfigError(problems)
    found = reconcile(Run(survey, options, actor, api.time, progress, dispatch))
    return _with_waiting(endpoint, found) if endpoint.dispatch == "inline" else found


def _others(endpoint: Endpoint) -> Iterator[Survey]:
    """The app's other endpoints of the same namespace."""
    settings = endpoint.settings.api
    for other in endpoints(endpoint.app).values():
        if other is endpoint or other.settings.api.namespace != settings.namespace:
            continue
        # An endpoint with a wrong configuration has no hooks.
        with suppress(ConfigError):
            yield Survey(other, api_of(other))


def _with_waiting(endpoint: Endpoint, reports: Iterator[Report]) -> Iterator[Report]:
    """The reports, with a note where the number of waiting events has grown.

    A run that was stopped, and a subscriber that postpones its work, leave some.
    """
    most = 0
    for report in reports:
        with suppress(InboxUnavailable):
            number = count_waiting(endpoint.store, RECONCILE)
            if number > most:
                most = number
                report.notes.append(WAITING.format(number))
        yield report


def dispatch_rows(endpoint: Endpoint, rows: list[int]) -> None:
    """Have inserted events run by the app's processes; in ``inline`` run them here."""
    mode = endpoint.dispatch
    if mode != "inline":
        notify_others(endpoint, mode, rows, is_new=True)
        return
    for row_id in rows:
        process(endpoint, row_id)
