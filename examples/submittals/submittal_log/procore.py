"""The part of Procore's REST API that the app reads."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request
from urllib.request import urlopen

from flask import current_app

from flask_procore_webhooks import RetryLater

BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
PAGE = 100


def fetch_submittal(project_id: str, submittal_id: str) -> dict[str, Any] | None:
    """Return the submittal as Procore returns it now, or ``None`` after a 404.

    :raises RetryLater: Procore is busy.
    """
    try:
        found = _get(f"{_submittals(project_id)}/{quote(submittal_id, safe='')}")
    except HTTPError as error:
        if error.code == HTTPStatus.NOT_FOUND:
            return None
        raise
    return dict(found)


def list_submittals(project_id: str) -> Iterator[dict[str, Any]]:
    """Return all submittals of the project, page after page.

    :raises RetryLater: Procore is busy.
    """
    for page in itertools.count(1):
        path = _submittals(project_id)
        found = _get(f"{path}?page={page}&per_page={PAGE}")
        yield from found
        if len(found) < PAGE:
            return


def _submittals(project_id: str) -> str:
    return f"/rest/v1.1/projects/{quote(project_id, safe='')}/submittals"


def _get(path: str) -> Any:
    headers = {
        "Authorization": f"Bearer {current_app.config['PROCORE_TOKEN']}",
        "Procore-Company-Id": current_app.config["PROCORE_COMPANY"],
    }
    request = Request(current_app.config["PROCORE_API"] + path, headers=headers)
    try:
        # Seconds. Without a limit, a silent server would block this thread for ever.
        with urlopen(request, timeout=10) as response:
            return json.load(response)
    except HTTPError as error:
        with error:
            if error.code in BUSY:
                raise RetryLater(after=_seconds(error.headers)) from None
            raise


def _seconds(headers: Any) -> float:
    """Return the wait that ``Retry-After`` asks for; a minute for a date in it."""
    value = headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else 60.0
