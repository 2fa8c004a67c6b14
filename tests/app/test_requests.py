"""Methods, paths and headers, and the handling of unauthentic requests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from support.values import SECRET
from support.web import CONTENT_TYPES
from support.web import PATH
from support.web import post
from support.web import recorded

from flask_procore_webhooks.senders.samples import to_bytes
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload
from flask_procore_webhooks.testing import sign


@pytest.mark.parametrize("path", [PATH, f"{PATH}/"])
def test_trailing_slash_is_optional(app: Flask, path: str) -> None:
    body = to_bytes(payload("RFIs.create"))
    answer = app.test_client().post(path, data=body, headers=sign(body, SECRET))
    assert (answer.status_code, answer.json) == (200, {"received": True})


@pytest.mark.parametrize("path", [PATH, f"{PATH}/"])
def test_head_request_is_answered_204_without_body(app: Flask, path: str) -> None:
    answer = app.test_client().head(path)
    assert (answer.status_code, answer.data) == (204, b"")
    assert recorded(app) == []


def test_signed_head_request_is_not_recorded(app: Flask) -> None:
    body = to_bytes(payload("RFIs.create"))
    headers = sign(body, SECRET)
    assert app.test_client().head(PATH, data=body, headers=headers).status_code == 204
    assert recorded(app) == []


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "TRACE"])
def test_other_methods_are_answered_405_without_details(
    app: Flask, method: str
) -> None:
    body = to_bytes(payload("RFIs.create"))
    answer = app.test_client().open(
        PATH, method=method, data=body, headers=sign(body, SECRET)
    )
    assert answer.status_code == 405
    assert "procore" not in answer.text.lower()
    assert recorded(app) == []


def test_method_cannot_be_overridden_by_a_header(app: Flask) -> None:
    body = to_bytes(payload("RFIs.create"))
    headers = {**sign(body, SECRET), "X-HTTP-Method-Override": "POST"}
    assert app.test_client().get(PATH, data=body, headers=headers).status_code == 405


@pytest.mark.parametrize("spell", [str.lower, str.upper, str.title])
def test_case_of_header_names_is_irrelevant(
    app: Flask, spell: Callable[[str], str]
) -> None:
    body = to_bytes(payload("RFIs.create"))
    headers = {spell(name): value for name, value in sign(body, SECRET).items()}
    assert post(app, body, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "header",
    ["X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded", "Host"],
)
def test_proxy_headers_are_ignored(app: Flask, header: str) -> None:
    body = to_bytes(payload("RFIs.create"))
    claim = {header: "127.0.0.1"}
    assert post(app, body, headers=claim).status_code == 401
    assert post(app, body, headers=claim | sign(body, SECRET)).status_code == 200


def entered(call: Callable[[], object]) -> set[tuple[str, str]]:
    """The file and name of every function that ``call`` entered."""
    seen: set[tuple[str, str]] = set()

    def note(frame: Any, event: str, _: object) -> None:
        if event == "call":
            seen.add((Path(frame.f_code.co_filename).name, frame.f_code.co_name))

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return seen


def readers(functions: set[tuple[str, str]]) -> set[str]:
    """The functions that parse a body."""
    files = {"decoder.py", "formparser.py", "multipart.py", "provider.py", "payload.py"}
    return {f"{file}:{name}" for file, name in functions if file in files}


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
@pytest.mark.parametrize(
    "forged",
    [
        {"X-Procore-Signature": "0" * 64},
        {"X-Procore-Signature": "é"},
        {"X-Procore-Timestamp": "1"},
    ],
)
def test_unauthentic_body_is_not_parsed(
    app: Flask, forged: dict[str, str], content_type: str
) -> None:
    body = to_bytes(payload("RFIs.create"))
    headers = {**sign(body, SECRET), **forged, "Content-Type": content_type}
    client = app.test_client()
    client.get("/")  # completes what runs once in a process
    refused = entered(lambda: client.post(PATH, data=body, headers=headers))
    assert ("views.py", "refuse") in refused
    assert readers(refused) == set()


def test_authentic_body_is_parsed(app: Flask) -> None:
    """A check of the test above: it would notice a parsed body."""
    client = app.test_client()
    accepted = entered(lambda: deliver(client, payload("RFIs.create")))
    assert {"decoder.py:decode", "payload.py:parse"} <= readers(accepted)


def test_forged_deliveries_use_no_row_and_no_connection(app: Flask) -> None:
    for _ in range(20):
        assert post(app, b"{}").status_code == 401
    assert not Path(app.instance_path).exists()


def test_forgery_cannot_use_up_the_id_of_a_genuine_event(app: Flask) -> None:
    event = payload("RFIs.create", id="evt_1")
    forged = deliver(
        app.test_client(), event, headers={"X-Procore-Signature": "0" * 64}
    )
    assert forged.status_code == 401
    assert deliver(app.test_client(), event).json == {"received": True}
