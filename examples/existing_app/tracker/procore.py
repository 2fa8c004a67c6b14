"""The part of Procore's REST API that the app uses."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request
from urllib.request import urlopen

from flask import current_app

from flask_procore_webhooks import RetryLater

BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


def fetch_rfi(company_id: str, project_id: str, rfi_id: str) -> Any:
    """Return the present state of the RFI, or ``None`` if it was deleted.

    :raises RetryLater: Procore answered 429 or 503.
    """
    project, rfi = quote(project_id, safe=""), quote(rfi_id, safe="")
    url = f"{current_app.config['PROCORE_API']}/rest/v1.0/projects/{project}/rfis/{rfi}"
    headers = {
        "Authorization": f"Bearer {current_app.config['PROCORE_TOKEN']}",
        "Procore-Company-Id": company_id,
    }
    try:
        # Seconds. Without a limit, a silent server would block this thread for ever.
        with urlopen(Request(url, headers=headers), timeout=3) as response:
            return json.load(response)
    except HTTPError as error:
        with error:
            if error.code == HTTPStatus.NOT_FOUND:
                return None
            if error.code in BUSY:
                raise RetryLater(seconds(error.headers["Retry-After"])) from None
            raise


def seconds(retry_after: str | None) -> float | None:
    """Return the wait of a ``Retry-After`` header, if it is in seconds."""
    return float(retry_after) if retry_after and retry_after.isdecimal() else None
