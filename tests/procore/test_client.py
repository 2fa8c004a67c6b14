"""ProcoreAPI: calls, tokens, paging, and answers that are not the documented ones."""

from __future__ import annotations

import copy
import logging
import pickle
import threading
import traceback
from typing import Any

import pytest
import requests
from flask import request
from flask import Response
from requests.adapters import HTTPAdapter
from support.waiting import in_threads

from flask_procore_webhooks import ConfigError
from flask_procore_webhooks.api import APIError
from flask_procore_webhooks.api import BadAnswer
from flask_procore_webhooks.api import LoginFailed
from flask_procore_webhooks.api import NotFound
from flask_procore_webhooks.api import NotPermitted
from flask_procore_webhooks.api import ProcoreAPI
from flask_procore_webhooks.api import RateLimited
from flask_procore_webhooks.api import Unavailable
from flask_procore_webhooks.fake import FakeProcore

SUBMITTALS = "/rest/v1.1/projects/2/submittals"
LOGIN = "/oauth/token"


def logins(fake: FakeProcore) -> int:
    return sum(path == LOGIN for _, path, _ in fake.requests)


def fill(fake: FakeProcore, number: int) -> list[str]:
    """Create submittals; return their ids."""
    return [fake.create("Submittals", project="2", title=f"{n}") for n in range(number)]


def test_calls_return_the_json_of_the_answer(
    fake: FakeProcore, api: ProcoreAPI
) -> None:
    made = api.post(SUBMITTALS, {"title": "Doors"})
    path = f"{SUBMITTALS}/{made['id']}"
    assert api.get(path)["title"] == "Doors"
    assert api.patch(path, {"title": "Gates"})["title"] == "Gates"
    assert api.get(SUBMITTALS, {"per_page": 5})[0]["title"] == "Gates"
    api.delete(path)
    with pytest.raises(NotFound) as caught:
        api.get(path)
    assert (caught.value.method, caught.value.path) == ("GET", path)
    assert caught.value.status == 404
    assert str(caught.value).startswith(f"GET {path}: 404")


def test_one_token_serves_many_calls(fake: FakeProcore, api: ProcoreAPI) -> None:
    for _ in range(5):
        api.get(SUBMITTALS)
    assert logins(fake) == 1


def test_threads_share_a_token(fake: FakeProcore, api: ProcoreAPI) -> None:
    barrier = threading.Barrier(5)

    def work(_: object) -> None:
        barrier.wait(10)
        api.get(SUBMITTALS)

    in_threads(work, range(5))
    assert logins(fake) == 1


def test_refused_token_is_renewed_once(fake: FakeProcore, api: ProcoreAPI) -> None:
    api.get(SUBMITTALS)
    fake.expire_tokens()
    api.get(SUBMITTALS)
    assert logins(fake) == 2
    assert [s for _, path, s in fake.requests if path != LOGIN] == [200, 401, 200]


def test_second_refusal_of_a_token_is_an_error(
    session: requests.Session, fake: FakeProcore
) -> None:
    fake.switches.token_seconds = 0
    api = ProcoreAPI("id", "a client secret", company_id="1", session=session)
    with pytest.raises(APIError, match="401") as caught:
        api.get(SUBMITTALS)
    assert caught.value.status == 401
    assert logins(fake) == 2


def test_wrong_secret_is_a_clear_error_without_it(session: requests.Session) -> None:
    api = ProcoreAPI("id", "a wrong secret", session=session)
    with pytest.raises(LoginFailed) as caught:
        api.get(SUBMITTALS)
    assert "check client id, secret, login address" in str(caught.value)
    assert "wrong secret" not in f"{caught.value!r} {api!r} {vars(caught.value)}"


def test_company_of_a_call_replaces_that_of_the_client(
    fake: FakeProcore, api: ProcoreAPI
) -> None:
    fake.add_company("9", projects=["7"])
    path = "/rest/v2.0/companies/9/projects/7/webhooks/hooks"
    assert api.get(path, company_id="9") == {"data": []}
    fake.forbid(company="9")
    with pytest.raises(NotPermitted, match="403"):
        api.get(path, company_id="9")


@pytest.mark.parametrize("sends_link", [True, False])
@pytest.mark.parametrize("sends_total", [True, False])
@pytest.mark.parametrize("number", [0, 1, 9, 10, 11, 20, 25])
def test_every_item_of_every_page_is_read_once(
    fake: FakeProcore,
    api: ProcoreAPI,
    sends_link: bool,
    sends_total: bool,
    number: int,
) -> None:
    fake.switches.sends_link, fake.switches.sends_total = sends_link, sends_total
    ids = fill(fake, number)
    found = [str(each["id"]) for each in api.pages(SUBMITTALS, {"per_page": 10})]
    assert sorted(found) == sorted(ids)


def test_pages_are_counted_by_the_size_that_the_server_names(
    fake: FakeProcore, api: ProcoreAPI
) -> None:
    fake.switches.sends_link = False
    fake.switches.most_per_page = 10
    assert len([*api.pages(SUBMITTALS)]) == len(fill(fake, 0)) == 0
    ids = fill(fake, 25)
    assert len([*api.pages(SUBMITTALS)]) == len(ids)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("html", "the answer is HTML, not JSON"),
        ("empty", "the answer is empty"),
        ("truncated", "the answer is not valid JSON"),
        ("redirect", "302, a redirect: check the address"),
    ],
)
def test_undocumented_answer_is_a_clear_error(
    fake: FakeProcore, api: ProcoreAPI, kind: str, text: str
) -> None:
    fake.answer_next(kind, path=SUBMITTALS)
    with pytest.raises(BadAnswer) as caught:
        api.get(SUBMITTALS)
    assert str(caught.value) == f"GET {SUBMITTALS}: {text}"


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        ("html", BadAnswer, "HTML"),
        ("empty", BadAnswer, "null where a list belongs"),
        ("truncated", BadAnswer, "not valid JSON"),
        ("redirect", BadAnswer, "302, a redirect"),
        ("500", APIError, "500"),
        ("503", Unavailable, "unavailable"),
        ("null", BadAnswer, "null where a list belongs"),
        ("null items", BadAnswer, "null where an object belongs"),
        ("repeat", BadAnswer, "page 2 repeats the one before"),
        ("reset", Unavailable, "no answer"),
    ],
)
def test_undocumented_answer_in_the_middle_of_paging_is_an_error(
    fake: FakeProcore, api: ProcoreAPI, kind: str, error: type[APIError], text: str
) -> None:
    fill(fake, 25)
    fake.answer_next(kind, path=SUBMITTALS, skip=1)
    found: list[Any] = []
    with pytest.raises(error, match=text) as caught:
        for each in api.pages(SUBMITTALS, {"per_page": 10}):
            found.append(each)
    assert str(caught.value).startswith(f"GET {SUBMITTALS}: ")
    # The objects of the pages before.
    assert len(found) == 10


def test_token_answer_that_is_no_token_is_an_error(
    fake: FakeProcore, api: ProcoreAPI
) -> None:
    for kind in ("html", "empty", "truncated", "null"):
        fake.answer_next(kind, method="POST", path=LOGIN)
        with pytest.raises(BadAnswer, match=f"POST {LOGIN}"):
            api.get(SUBMITTALS)
    for kind in ("500", "503", "429", "reset"):
        fake.answer_next(kind, method="POST", path=LOGIN)
        with pytest.raises(Unavailable, match=f"POST {LOGIN}"):
            api.get(SUBMITTALS)
    assert api.get(SUBMITTALS) == []


def test_silent_server_ends_in_a_timeout(fake: FakeProcore) -> None:
    with fake.serve() as url:
        api = ProcoreAPI(
            "id", "a client secret", base_url=url, login_url=url, timeout=(1, 0.2)
        )
        fake.answer_next("slow", path=SUBMITTALS, seconds=1)
        with pytest.raises(Unavailable, match="no answer from .* .ReadTimeout"):
            api.get(SUBMITTALS)


def test_post_is_not_repeated_after_a_lost_connection(
    fake: FakeProcore, api: ProcoreAPI
) -> None:
    fake.answer_next("reset", method="POST", path=SUBMITTALS)
    with pytest.raises(Unavailable):
        api.post(SUBMITTALS, {"title": "Doors"})
    assert sum(m == "POST" and p == SUBMITTALS for m, p, _ in fake.requests) == 1


@pytest.mark.parametrize("name", ["base_url", "login_url"])
@pytest.mark.parametrize("url", ["http://api.procore.com", "ftp://localhost", ""])
def test_address_without_tls_is_refused(name: str, url: str) -> None:
    options: dict[str, Any] = {name: url}
    with pytest.raises(ConfigError, match=f"{name} must begin with https://"):
        ProcoreAPI("id", "a client secret", **options)


def test_netrc_replaces_no_token(
    fake: FakeProcore, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    file = tmp_path / "netrc"
    file.write_text("machine 127.0.0.1 login somebody password else\n")
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", str(file))
    with fake.serve() as url:
        api = ProcoreAPI(
            "id", "a client secret", company_id="1", base_url=url, login_url=url
        )
        assert api.get(SUBMITTALS) == []


def test_secrets_are_in_no_log_line_and_no_error(
    fake: FakeProcore, api: ProcoreAPI, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    sent: set[str] = set()

    @fake.before_request
    def note() -> None:
        if "Authorization" in request.headers:
            sent.add(request.headers["Authorization"].removeprefix("Bearer "))

    api.get(SUBMITTALS)
    fake.switches.error_body = "text"
    texts = []
    for kind in ("500", "reset", "html", "redirect"):
        fake.answer_next(kind, path=SUBMITTALS)
        with pytest.raises(APIError) as caught:
            api.get(SUBMITTALS)
        texts += [repr(caught.value), *traceback.format_exception(caught.value)]
    token = sent.pop()
    assert len(token) > 20
    assert sent == set()
    text = caplog.text + "".join(texts)
    assert "a client secret" not in text
    assert token not in text


@pytest.mark.parametrize(
    "path", [".evil.example/x", "@evil.example/", "https://evil.example/", "rest", ""]
)
def test_path_that_could_name_another_host_is_refused(
    fake: FakeProcore, api: ProcoreAPI, path: str
) -> None:
    with pytest.raises(ValueError, match="begins with '/'"):
        api.get(path)
    assert fake.requests == []


def test_error_names_the_path_without_its_query(api: ProcoreAPI) -> None:
    with pytest.raises(NotFound) as caught:
        api.get(f"{SUBMITTALS}/5?access=secret")
    assert caught.value.path == f"{SUBMITTALS}/5"
    assert "secret" not in f"{caught.value} {caught.value!r}"


def test_body_that_is_no_json_is_an_error_of_the_caller(api: ProcoreAPI) -> None:
    with pytest.raises(APIError, match="cannot be sent or read .InvalidJSON") as caught:
        api.post(SUBMITTALS, {"amount": float("nan")})
    assert not isinstance(caught.value, Unavailable)


def test_error_names_the_host_that_does_not_answer(fake: FakeProcore) -> None:
    with fake.serve() as url:
        api = ProcoreAPI("id", "a client secret", base_url=url, login_url=url)
    host = url.removeprefix("http://")
    with pytest.raises(Unavailable, match=f"no answer from {host} .ConnectionError"):
        api.get(SUBMITTALS)


def test_errors_can_be_copied_and_pickled() -> None:
    error = RateLimited("GET", "/x", 429, "used up", 70.0)
    for each in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (str(each), each.after, each.status) == (str(error), 70.0, 429)


def test_repeated_parameter_is_on_every_page(
    fake: FakeProcore, api: ProcoreAPI
) -> None:
    fill(fake, 25)
    asked = []

    @fake.before_request
    def note() -> None:
        if request.path == SUBMITTALS:
            asked.append(request.args.getlist("ids[]"))

    params = {"per_page": 10, "ids[]": ["1", "2"]}
    assert len([*api.pages(SUBMITTALS, params)]) == 25
    assert asked == [["1", "2"]] * 3


@pytest.mark.parametrize("to", [1, 2])
def test_list_that_leads_to_an_earlier_page_ends(
    fake: FakeProcore, api: ProcoreAPI, to: int
) -> None:
    fill(fake, 50)

    @fake.after_request
    def lead_back(answer: Response) -> Response:
        if request.path == SUBMITTALS and request.args["page"] in ("3", "4"):
            other = f"{request.base_url}?per_page=10&page={to}"
            answer.headers["Link"] = f'<{other}>; rel="next"'
        return answer

    with pytest.raises(BadAnswer, match="leads to an earlier one"):
        list(api.pages(SUBMITTALS, {"per_page": 10}))


def test_link_to_another_host_gets_no_token(fake: FakeProcore, api: ProcoreAPI) -> None:
    fill(fake, 15)
    hosts = set()

    @fake.before_request
    def note() -> None:
        hosts.add(request.host)

    @fake.after_request
    def elsewhere(answer: Response) -> Response:
        if "Link" in answer.headers:
            link = answer.headers["Link"].replace(request.host, "evil.example")
            answer.headers["Link"] = link
        return answer

    assert len([*api.pages(SUBMITTALS, {"per_page": 10})]) == 15
    assert hosts == {"api.procore.com", "login.procore.com"}


class Recorder(HTTPAdapter):
    """Keeps the options of each request, and makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.timeouts: list[Any] = []

    def send(self, *args: Any, **options: Any) -> requests.Response:
        self.timeouts.append(options["timeout"])
        return super().send(*args, **options)


def test_every_request_has_a_timeout(fake: FakeProcore) -> None:
    recorder = Recorder()
    with fake.serve() as url, requests.Session() as session:
        session.mount("http://", recorder)
        api = ProcoreAPI(
            "id",
            "a client secret",
            company_id="1",
            base_url=url,
            login_url=url,
            session=session,
        )
        api.get(SUBMITTALS)
        api.post(SUBMITTALS, {"title": "Doors"})
    assert recorder.timeouts == [(5.0, 30.0)] * 3


@pytest.mark.parametrize("offset", [0, 3600, -86400])
def test_time_is_that_of_procore(
    fake: FakeProcore, api: ProcoreAPI, offset: int
) -> None:
    assert api.time() is None
    fake.switches.clock_offset = offset
    api.get(SUBMITTALS)
    now = api.time()
    assert now is not None
    behind = (now - fake.clock.now()).total_seconds() - offset
    assert -1 < behind < 10
