"""FakeProcore's access: tokens, scopes, errors and rate limits."""

from __future__ import annotations

from datetime import datetime
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from fake_support import Api
from fake_support import COMPANY
from fake_support import HOOK
from fake_support import PROJECT

from flask_procore_webhooks.fake import FakeProcore
from flask_procore_webhooks.fake import Switches
from flask_procore_webhooks.fake.model import Hook
from flask_procore_webhooks.fake.model import Scope

CREDENTIALS = {
    "grant_type": "client_credentials",
    "client_id": "id",
    "client_secret": "secret",
}
HOOKS = f"{PROJECT}/hooks"


# Tokens


@pytest.mark.parametrize(
    "body",
    [
        {"data": CREDENTIALS},
        {"json": CREDENTIALS},
        {"data": CREDENTIALS, "content_type": "multipart/form-data"},
    ],
)
def test_token_is_issued_for_a_form_or_json(
    fake: FakeProcore, body: dict[str, Any]
) -> None:
    fake.switches.token_seconds = Switches().token_seconds
    answer = fake.test_client().post("/oauth/token", **body)
    token = answer.get_json()
    assert answer.status_code == 200
    assert set(token) == {"access_token", "token_type", "expires_in", "created_at"}
    assert (token["token_type"], token["expires_in"]) == ("bearer", 5400)
    assert token["created_at"] == fake.clock.now().timestamp()


def test_wrong_secret_is_refused(fake: FakeProcore) -> None:
    wrong = {**CREDENTIALS, "client_secret": "other"}
    answer = fake.test_client().post("/oauth/token", data=wrong)
    assert answer.status_code == 401
    assert answer.get_json()["error"] == "invalid_client"
    fake.switches.token_error = 400, "Bad client"
    answer = fake.test_client().post("/oauth/token", data=wrong)
    assert (answer.status_code, answer.text) == (400, "Bad client")


def test_other_grant_is_refused(fake: FakeProcore) -> None:
    body = {**CREDENTIALS, "grant_type": "password"}
    answer = fake.test_client().post("/oauth/token", data=body)
    assert answer.status_code == 400


def test_token_expires_on_the_clock(fake: FakeProcore, api: Api) -> None:
    fake.switches.token_seconds = 5400
    fake.clock.advance(5399)
    assert api.call("GET", HOOKS).status_code == 200
    fake.clock.advance(1)
    answer = api.call("GET", HOOKS)
    assert answer.status_code == 401
    assert answer.get_json()["error"]["message"] == "The access token is invalid"


def test_token_can_be_revoked_or_expired(fake: FakeProcore, api: Api) -> None:
    token = api.headers["Authorization"].split()[1]
    body = {**CREDENTIALS, "token": token}
    for _ in range(2):
        answer = fake.test_client().post("/oauth/revoke", data=body)
        assert answer.status_code == 200
    assert api.call("GET", HOOKS).status_code == 401
    other = Api(fake)
    fake.expire_tokens()
    assert other.call("GET", HOOKS).status_code == 401


def test_token_is_described(fake: FakeProcore, api: Api) -> None:
    fake.switches.token_seconds = 5400
    fake.clock.advance(400)
    info = api.call("GET", "/oauth/token/info").get_json()
    assert info["expires_in_seconds"] == 5000
    assert info["application"] == {"uid": "id"}


@pytest.mark.parametrize("value", [None, "Bearer", "Bearer x", "Basic x"])
def test_call_without_a_token_is_refused(
    fake: FakeProcore, api: Api, value: str | None
) -> None:
    api.headers.pop("Authorization")
    if value is not None:
        api.headers["Authorization"] = value
    assert api.call("GET", HOOKS).status_code == 401


def test_secrets_are_in_no_repr(fake: FakeProcore, api: Api) -> None:
    fake.add_hook(
        project="2",
        destination_url="https://app.example.com/",
        authorization="Bearer s3cret",
    )
    token = api.headers["Authorization"].split()[1]
    shown = repr([fake, vars(fake), fake.requests, fake.clock, fake.switches])
    assert "s3cret" not in shown
    assert token not in shown


def test_authorization_of_a_hook_is_not_in_its_repr() -> None:
    now = datetime.now(timezone.utc)
    headers = {"Authorization": "Bearer s3cret"}
    hook = Hook("1", Scope("1"), "mine", "https://a.example", "v4.0", headers, now, now)
    assert "s3cret" not in repr(hook)


# Scopes


def test_company_header_is_required(fake: FakeProcore) -> None:
    api = Api(fake, company=None)
    for path in (HOOKS, "/rest/v1.0/companies", "/rest/v1.0/me"):
        answer = api.call("GET", path)
        assert answer.status_code == 400
        message = answer.get_json()["error"]["message"]
        assert message.startswith("Missing Procore-Company-Id header!")
    fake.switches.missing_company = 422
    assert api.call("GET", HOOKS).status_code == 422


def test_unknown_company_answers_403(fake: FakeProcore, api: Api) -> None:
    answer = api.call("GET", "/rest/v2.0/companies/9/webhooks/hooks")
    assert answer.status_code == 403
    assert "not connected to this company" in answer.text
    other = Api(fake, company="9")
    assert other.call("GET", HOOKS).status_code == 403


def test_unknown_project_answers_404(api: Api) -> None:
    path = "/rest/v2.0/companies/1/projects/9/webhooks/hooks"
    assert api.call("GET", path).status_code == 404
    assert api.call("GET", "/rest/v1.0/projects/9/rfis").status_code == 404


@pytest.mark.parametrize("status", [403, 404])
def test_forbidden_project_answers_as_told(
    fake: FakeProcore, api: Api, status: int
) -> None:
    fake.forbid(company="1", project="2", status=status)
    assert api.call("GET", HOOKS).status_code == status
    assert api.call("GET", "/rest/v1.0/projects/2/rfis").status_code == status
    answer = api.call("GET", "/rest/v1.0/punch_items", project_id="2")
    assert answer.status_code == status
    assert api.call("GET", f"{COMPANY}/hooks", namespace="a").status_code == 200
    fake.permit(company="1", project="2")
    assert api.call("GET", HOOKS).status_code == 200


def test_forbidden_company_answers_403(fake: FakeProcore, api: Api) -> None:
    fake.forbid(company="1")
    assert api.call("GET", HOOKS).status_code == 403
    assert api.call("GET", f"{COMPANY}/hooks").status_code == 403


# Errors


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("text", b"Namespace has already been taken"),
        ("errors", b'{"errors": "Namespace has already been taken"}'),
    ],
)
def test_body_of_an_error_can_be_switched(
    fake: FakeProcore, api: Api, kind: str, expected: bytes
) -> None:
    fake.switches.error_body = kind
    api.hook()
    answer = api.call("POST", HOOKS, HOOK)
    assert (answer.status_code, answer.data) == (400, expected)


def test_switch_refuses_other_values(fake: FakeProcore) -> None:
    with pytest.raises(ValueError, match="order is one of 'newest', 'oldest'"):
        fake.switches.order = "random"
    with pytest.raises(ValueError):
        FakeProcore(error_body="html")
    with pytest.raises(AttributeError):
        # By setattr, because mypy knows that there is no such switch.
        setattr(fake.switches, "ordering", "newest")  # noqa: B010
    with pytest.raises(TypeError):
        FakeProcore(ordering="newest")


# Rate limits


@pytest.fixture
def limited(fake: FakeProcore) -> FakeProcore:
    fake.switches.spike_limit = 25
    return fake


def test_spike_limit_answers_429(limited: FakeProcore, api: Api) -> None:
    limited.clock.advance(0.5)
    for used in range(1, 26):
        answer = api.call("GET", HOOKS)
        assert answer.status_code == 200
        assert answer.headers["X-Rate-Limit-Remaining"] == str(25 - used)
    answer = api.call("GET", HOOKS)
    assert answer.status_code == 429
    now = parsedate_to_datetime(answer.headers["Date"]).timestamp()
    assert answer.headers["X-Rate-Limit-Limit"] == "25"
    assert int(answer.headers["X-Rate-Limit-Reset"]) - now == 10
    assert answer.headers["Retry-After"] == "10"
    limited.clock.advance(9)
    assert api.call("GET", HOOKS).status_code == 429
    limited.clock.advance(0.5)
    assert api.call("GET", HOOKS).status_code == 200


def test_failed_calls_count(limited: FakeProcore, api: Api) -> None:
    api.headers["Authorization"] = "Bearer x"
    statuses = [api.call("GET", HOOKS).status_code for _ in range(26)]
    assert statuses == [401] * 25 + [429]


def test_hourly_limit_answers_429(fake: FakeProcore, api: Api) -> None:
    fake.switches.hourly_limit = 3
    for _ in range(3):
        fake.clock.advance(20)
        assert api.call("GET", HOOKS).status_code == 200
    answer = api.call("GET", HOOKS)
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == str(3600 - 40)
    fake.clock.advance(3560)
    assert api.call("GET", HOOKS).status_code == 200


@pytest.mark.parametrize(
    ("sent", "headers"),
    [
        ("reset", {"X-Rate-Limit-Reset"}),
        ("retry-after", {"Retry-After"}),
        ("both", {"X-Rate-Limit-Reset", "Retry-After"}),
    ],
)
def test_headers_of_429_can_be_switched(
    limited: FakeProcore, api: Api, sent: str, headers: set[str]
) -> None:
    limited.switches.spike_limit = 1
    limited.switches.retry_after = sent
    api.call("GET", HOOKS)
    answer = api.call("GET", HOOKS)
    assert answer.status_code == 429
    present = {"X-Rate-Limit-Reset", "Retry-After"} & {*answer.headers.keys()}
    assert present == headers


@pytest.mark.parametrize(
    ("shown", "limit"), [("spike", "25"), ("nearest", "30"), ("none", None)]
)
def test_headers_describe_the_window_that_the_switch_names(
    limited: FakeProcore, api: Api, shown: str, limit: str | None
) -> None:
    limited.switches.limit_headers = shown
    limited.switches.hourly_limit = 30
    for _ in range(5):
        limited.clock.advance(10)
        answer = api.call("GET", HOOKS)
    assert answer.headers.get("X-Rate-Limit-Limit") == limit


def test_spike_headers_give_way_to_a_used_up_hourly_limit(
    limited: FakeProcore, api: Api
) -> None:
    limited.switches.hourly_limit = 20
    answers = [api.call("GET", HOOKS) for _ in range(19)]
    limits = [answer.headers["X-Rate-Limit-Limit"] for answer in answers]
    assert limits == ["25"] * 18 + ["20"]


def test_limit_can_be_that_of_a_company(limited: FakeProcore, api: Api) -> None:
    limited.add_company("5")
    limited.switches.spike_limit = 1
    limited.switches.limit_by = "company"
    api.call("GET", HOOKS)
    assert api.call("GET", HOOKS).status_code == 429
    api.headers["Procore-Company-Id"] = "5"
    assert api.call("GET", "/rest/v1.0/companies").status_code == 200


def test_clock_of_the_server_can_be_off(limited: FakeProcore, api: Api) -> None:
    limited.switches.clock_offset = 300
    answer = api.call("GET", HOOKS)
    now = parsedate_to_datetime(answer.headers["Date"])
    assert (now - limited.clock.now()).total_seconds() == 300
    assert int(answer.headers["X-Rate-Limit-Reset"]) == now.timestamp() + 10


def test_busy_server_answers_503(fake: FakeProcore, api: Api) -> None:
    fake.switches.busy = 7
    answer = api.call("GET", HOOKS)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "7")


def test_requests_are_logged(fake: FakeProcore, api: Api) -> None:
    api.call("GET", HOOKS, namespace="mine")
    api.call("GET", "/rest/v1.0/nothing")
    assert fake.requests == [
        ("POST", "/oauth/token", 200),
        ("GET", HOOKS, 200),
        ("GET", "/rest/v1.0/nothing", 404),
    ]


def test_unknown_path_and_method_are_errors_of_the_api(api: Api) -> None:
    for method, path, status in (("GET", "/x", 404), ("PUT", HOOKS, 405)):
        answer = api.call(method, path)
        assert answer.status_code == status
        assert answer.get_json()["error"]["message"]
