"""Modes: what an app needs at registration for the mode of an endpoint."""

from __future__ import annotations

from ..endpoint import AppState
from .background import start_when_serving
from .background import warn_threads_disabled
from .tasks import register_tasks


def prepare_mode(state: AppState, mode: str) -> None:
    """Prepare the app for the mode in which an endpoint's subscribers run.

    :raises ConfigError: Celery is not installed.
    """
    if mode == "background":
        warn_threads_disabled()
        start_when_serving(state)
    elif mode == "celery":
        register_tasks()
