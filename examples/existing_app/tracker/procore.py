"""The little that is needed of Procore's REST API."""

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
    """Return the RFI as it is now, or ``None`` when it is gone.

    :raises RetryLater: Procore asks for patience.
    """
    project, rfi = quote(project_id, safe=""), quote(rfi_id, safe="")
    url = f"{current_app.config['PROCORE_API']}/rest/v1.0/projects/{project}/rfis/{rfi}"
    headers = {
        "Authorization": f"Bearer {current_app.config['PROCORE_TOKEN']}",
        "Procore-Company-Id": company_id,
    }
    try:
        # Less than the 5 s for which Procore waits for our own answer.
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
    """Return the wait that a ``Retry-After`` header asks for, if in seconds."""
    return float(retry_after) if retry_after and retry_after.isdecimal() else None
