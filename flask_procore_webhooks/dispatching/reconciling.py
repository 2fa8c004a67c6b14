"""Reconcile an endpoint's hooks, and dispatch what was inserted."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from functools import partial

from ..api.configured import api_of
from ..api.configured import PATIENCE
from ..endpoint import Endpoint
from ..hooks.reconcile import reconcile
from ..hooks.reconcile import Run
from ..hooks.report import Options
from ..hooks.report import Report
from ..hooks.survey import Survey
from ..running.run import process
from .dispatch import notify_others

#: The part of the rate limit that is left to the app.
RESERVE = 0.2


def reconcile_endpoint(
    endpoint: Endpoint,
    options: Options,
    actor: str,
    progress: Callable[[int], None] = lambda number: None,
) -> Iterator[Report]:
    """Reconcile each hook of the endpoint, and yield its report.

    :param actor: who does it, for the journal.
    :param progress: is called with the number of deliveries of each page.
    :raises ConfigError: a key is missing.
    :raises WrongDay: by the iterator: Procore does not list the day of ``since``.
    """
    api = api_of(endpoint, wait=PATIENCE, reserve=RESERVE)
    dispatch = partial(dispatch_rows, endpoint)
    survey = Survey(endpoint, api)
    return reconcile(Run(survey, options, actor, api.time, progress, dispatch))


def dispatch_rows(endpoint: Endpoint, rows: list[int]) -> None:
    """Have inserted events run by the app's processes; in ``inline`` run them here."""
    mode = endpoint.dispatch
    if mode != "inline":
        notify_others(endpoint, mode, rows, is_new=True)
        return
    for row_id in rows:
        process(endpoint, row_id)
