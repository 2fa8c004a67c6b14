"""``reconcile``: answers that are not the documented ones, and secrecy."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask import request
from flask import Response
from reconcile_support import AUTHORIZATION
from reconcile_support import CLIENT_SECRET
from reconcile_support import Integration
from reconcile_support import NOW

#: Together they take longer than the others.
pytestmark = pytest.mark.slow

HOOKS = "/rest/v2.0/companies/1/projects/2/webhooks/hooks"
LOGIN = "/oauth/token"


BROKEN = [
    ("html", "the answer is HTML, not JSON"),
    ("empty", "the answer holds null where a list belongs"),
    ("truncated", "the answer is not valid JSON"),
    ("redirect", "302, a redirect: check the address"),
    ("500", "500, Internal Server Error"),
    ("503", "503, Procore is unavailable for 90 s"),
    ("429", "the hourly rate limit is used up for 90 s"),
    ("null", "the answer holds null where a list belongs"),
    ("null items", "the list holds null where an object belongs"),
    ("reset", "no answer from {host} (ConnectionError)"),
]


@pytest.mark.parametrize(("kind", "text"), BROKEN)
@pytest.mark.parametrize("part", ["deliveries", "hooks"])
def test_broken_answer_is_an_error_with_method_and_path(
    mine: Integration, part: str, kind: str, text: str
) -> None:
    hook = mine.hook()
    lost = mine.lose(2)
    path = f"{HOOKS}/{hook}/deliveries" if part == "deliveries" else HOOKS
    mine.fake.answer_next(kind, path=f"{path}\\?", seconds=90)
    report = mine.report(code=1)
    host = urlsplit(mine.endpoint.settings.api.api_url).netloc
    assert report["error"].startswith(f"GET {path}: {text.format(host=host)}")
    assert report["inserted"] == 0
    assert mine.recorded == []
    assert mine.report(code=2)["inserted"] == 2
    assert mine.recorded == lost


@pytest.mark.parametrize("kind", ["html", "empty", "truncated", "redirect", "500"])
def test_broken_answer_for_a_token_is_an_error(mine: Integration, kind: str) -> None:
    mine.hook()
    mine.fake.answer_next(kind, method="POST", path=LOGIN)
    report = mine.report(code=1)
    assert report["error"].startswith(f"POST {LOGIN}: ")


def test_ids_as_numbers_are_those_of_the_same_events(mine: Integration) -> None:
    mine.hook()
    mine.deliver(2)
    lost = mine.lose(2)
    mine.fake.answer_next("numbers", path="/deliveries", times=9)
    report = mine.report(code=2)
    assert (report["found"], report["inserted"]) == (2, 2)
    mine.report(code=0)
    assert set(lost) <= set(mine.recorded)
    mine.work()
    assert {each.project_id for each in mine.calls} == {"2"}


def test_payload_as_text_is_read(mine: Integration) -> None:
    mine.rewrite(lambda row: row.update(payload=json.dumps(row["payload"])))
    mine.hook()
    mine.deliver(2)
    lost = mine.lose(2)
    report = mine.report(code=2)
    assert (report["found"], report["inserted"]) == (2, 2)
    assert set(lost) <= set(mine.recorded)


UNREADABLE: dict[str, Callable[[dict[str, Any]], object]] = {
    "null": lambda row: row.update(payload=None),
    "absent": lambda row: row.pop("payload"),
    "text": lambda row: row.update(payload="none"),
    "empty text": lambda row: row.update(payload=""),
    "list": lambda row: row.update(payload=[row["payload"]]),
    "without an id": lambda row: row["payload"].pop("id"),
    "null id": lambda row: row["payload"].update(id=None),
    "false id": lambda row: row["payload"].update(id=False),
    "empty": lambda row: row.update(payload={}),
    "deep": lambda row: row["payload"].update(id=None, more=nested(300)),
    "not a number": lambda row: row["payload"].update(more=float("nan")),
}


def nested(levels: int) -> Any:
    return [nested(levels - 1)] if levels else []


@pytest.mark.parametrize("name", UNREADABLE)
def test_lost_event_without_a_readable_payload_is_missing_and_named(
    mine: Integration, name: str
) -> None:
    mine.rewrite(
        lambda row: row["status"] == "discarded" and UNREADABLE[name](row) and None
    )
    mine.hook()
    there = mine.deliver(2)
    mine.lose(2)
    report = mine.report(code=2)
    assert (report["missing"], report["inserted"], report["skipped"]) == (2, 0, 0)
    assert report["unreadable"] == 2
    assert report["notes"] == ["2 missing events have no readable payload."]
    assert mine.recorded == there


@pytest.mark.parametrize("name", ["null", "text", "without an id"])
def test_record_without_readable_payloads_is_stopped_by_the_control(
    mine: Integration, name: str
) -> None:
    mine.rewrite(UNREADABLE[name])
    mine.hook()
    there = mine.deliver(2)
    mine.lose(2)
    report = mine.report("--all", code=1)
    assert report["inserted"] == 0
    assert mine.recorded == there


@pytest.mark.parametrize("id", [None, "", False, 0, {}])
def test_row_without_an_id_is_known_by_its_payload(mine: Integration, id: Any) -> None:
    mine.rewrite(lambda row: row.update(id=id))
    mine.hook()
    lost = mine.lose(2)
    assert mine.report(code=2)["inserted"] == 2
    assert mine.recorded == lost


@pytest.mark.parametrize("status", ["DISCARDED", "Discarded", "discarded", "FAILED"])
def test_letter_case_of_a_status_does_not_count(mine: Integration, status: str) -> None:
    mine.rewrite(lambda row: row.update(status=status))
    mine.hook()
    mine.lose(2)
    assert mine.report(code=2)["inserted"] == 2


@pytest.mark.parametrize("status", ["", None, "unheard of", 7])
def test_unknown_status_is_skipped(mine: Integration, status: Any) -> None:
    mine.rewrite(lambda row: row.update(status=status))
    mine.hook()
    mine.lose(2)
    report = mine.report(code=0)
    assert (report["skipped"], report["inserted"]) == (2, 0)


@pytest.mark.parametrize("timestamp", [None, "", "tomorrow", "2099-01-01T00:00:00Z"])
def test_strange_time_of_an_event_is_no_obstacle(
    mine: Integration, timestamp: Any
) -> None:
    mine.rewrite(lambda row: row["payload"].update(timestamp=timestamp))
    mine.hook()
    lost = mine.lose(2)
    assert mine.report("--since", mine.day(-1), code=2)["inserted"] == 2
    assert mine.recorded == lost


@pytest.mark.parametrize("timestamp", [7, "0001-01-01T00:00:00Z", "9999-12-31"])
def test_event_of_a_strange_time_that_is_still_coming_is_no_obstacle(
    mine: Integration, timestamp: Any
) -> None:
    mine.rewrite(lambda row: row["payload"].update(timestamp=timestamp))
    hook = mine.hook()
    mine.is_down = True
    lost = mine.emit(2)
    mine.fake.deliver()
    assert mine.report(code=0)["skipped"] == 2
    mine.fake.advance(hours=5)
    assert mine.report(code=0)["skipped"] == 2
    mine.fake.discard(hook)
    assert mine.report(code=2)["inserted"] == 2
    assert mine.recorded == lost


@pytest.mark.parametrize("hours", [-23, -1, 1, 13])
def test_clock_of_this_host_that_is_off_changes_nothing(
    mine: Integration, hours: int
) -> None:
    now = mine.fake.clock.now
    mine.store.now = lambda: now() + timedelta(hours=hours)
    mine.hook()
    mine.deliver(2)
    lost = mine.lose(120)
    assert mine.report(code=2)["inserted"] == 120
    mine.report(code=0)
    assert set(lost) <= set(mine.recorded)
    assert {row["event_at"] for row in mine.rows()} == {NOW.replace(tzinfo=None)}


@pytest.mark.parametrize(("most_per_page", "number"), [(100, 10), (10, 2)])
def test_project_that_is_closed_between_two_requests_is_an_error(
    mine: Integration, most_per_page: int, number: int
) -> None:
    mine.fake.switches.most_per_page = most_per_page
    mine.on_request(number, lambda: mine.fake.forbid("1", "2", 404))
    mine.hook()
    lost = mine.lose(120)
    error = mine.report(code=1)["error"]
    assert "/deliveries: 404, Not Found" in error
    mine.fake.permit("1", "2")
    assert mine.report(code=2)["inserted"] == 120
    assert mine.recorded == lost


def test_nothing_secret_is_printed_or_logged(
    mine: Integration, caplog: pytest.LogCaptureFixture
) -> None:
    tokens: list[str] = []

    @mine.fake.before_request
    def note() -> None:
        tokens.append(request.headers.get("Authorization", "").partition(" ")[2])

    caplog.set_level(logging.DEBUG)
    mine.hook()
    mine.deliver(2, user_id="5550001")
    mine.lose(2, user_id="5550001")
    shown = [mine.reconcile("--dry-run").output, mine.reconcile().output]
    for kind in ("500", "html", "redirect", "reset", "truncated"):
        mine.fake.answer_next(kind, path="/deliveries")
        result = mine.reconcile("--json")
        shown.append(result.output)
        shown += traceback.format_exception(result.exception)
    shown += [json.dumps(entry, default=str) for entry in mine.journal()]
    text = caplog.text + "".join(shown)
    secret = {
        CLIENT_SECRET,
        AUTHORIZATION,
        AUTHORIZATION.partition(" ")[2],
        *tokens,
    } - {""}
    assert len(secret) > 3
    assert not [each for each in secret if each in text]
    assert "5550001" not in text


def test_error_that_repeats_the_token_is_printed_without_it(mine: Integration) -> None:
    @mine.fake.before_request
    def repeat() -> Response | None:
        if not request.path.startswith("/rest/"):
            return None
        message = f"{request.headers['Authorization']} {CLIENT_SECRET} is refused"
        return Response(json.dumps({"message": message}), 400)

    mine.hook()
    error = mine.report(code=1)["error"]
    assert error == f"GET {HOOKS}: 400, Bearer ***** ***** is refused"
