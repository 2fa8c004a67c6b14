"""Answers that are not the documented ones, at each call of each command."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from flask import request
from flask import Response
from hooks_support import AUTHORIZATION
from hooks_support import CLIENT_SECRET
from hooks_support import COMPANY
from hooks_support import LOGIN
from hooks_support import NAMESPACE
from hooks_support import OTHER_PROJECT
from hooks_support import PROJECT
from hooks_support import ROOT
from hooks_support import SAME_TAIL
from hooks_support import Site

#: Together they take longer than the others.
pytestmark = pytest.mark.slow

RFI = ("RFIs", "update")
OLD_URL = "https://old.example.com/hook"
OTHER_ROOT = ROOT.replace("/2/", "/3/")
ONE = "hooks/[0-9]+"

#: Seconds that are longer than a command waits.
LONG = 3000
BROKEN = ["html", "empty", "truncated", "redirect", "500", "503", "429", "null"]
BROKEN += ["reset"]
#: A success without a body, or with an unknown one, is documented for DELETE.
NO_DELETION = ["html", "redirect", "500", "503", "429", "reset"]
#: The effect of a bulk call is looked at afterwards.
NO_BULK = [kind for kind in BROKEN if kind not in ("empty", "null")]

READS = [("GET", f"{ROOT}/hooks"), ("GET", f"{ROOT}/{ONE}/triggers")]
PLAN = [("GET", f"{ROOT}/resources"), *READS]
CALLS = {
    "plan": PLAN,
    "apply": [
        *PLAN,
        ("PATCH", f"{ROOT}/{ONE}"),
        ("POST", f"{OTHER_ROOT}/hooks"),
        ("POST", f"{ROOT}/{ONE}/triggers/bulk"),
        ("DELETE", f"{ROOT}/{ONE}/triggers/bulk"),
    ],
    "list": READS,
    "delete": [("GET", f"{ROOT}/hooks"), ("DELETE", f"{ROOT}/{ONE}")],
    "pause": [("GET", f"{ROOT}/hooks"), ("PATCH", f"{ROOT}/{ONE}")],
    "resume": [("GET", f"{ROOT}/hooks"), ("PATCH", f"{ROOT}/{ONE}")],
}
MORE = {"plan": [], "list": [], "apply": ["--prune", "--rotate", "--yes"]}


def kinds(method: str, path: str) -> list[str]:
    if path.endswith("bulk"):
        return NO_BULK
    return NO_DELETION if method == "DELETE" else BROKEN


CASES = [
    (command, method, path, kind)
    for command, calls in CALLS.items()
    for method, path in calls
    for kind in kinds(method, path)
]


@pytest.fixture
def tokens(site: Site, caplog: pytest.LogCaptureFixture) -> Iterator[set[str]]:
    """The access tokens that were sent; afterwards no log line has a secret."""
    caplog.set_level(logging.DEBUG)
    found: set[str] = set()

    @site.fake.after_request
    def note(answer: Response) -> Response:
        token = request.headers.get("Authorization", "").partition(" ")[2]
        found.update({token} if token else ())
        return answer

    yield found
    expect_no_secret(caplog.text, found)


def expect_no_secret(text: str, tokens: set[str]) -> None:
    values = AUTHORIZATION, SAME_TAIL
    for secret in (CLIENT_SECRET, *(each.split()[1] for each in values), *tokens):
        assert secret not in text


def prepare(site: Site) -> None:
    """Project 2 has a hook that differs in everything, project 3 has none."""
    site.mount("RFIs.update", "RFIs.create", SCOPES=[PROJECT, OTHER_PROJECT])
    site.add_hook(
        triggers=[RFI, ("RFIs", "delete")],
        destination_url=OLD_URL,
        authorization=SAME_TAIL,
    )


def named(output: str, method: str, path: str) -> bool:
    """Whether the output names the request; a hook's id is any number."""
    start, _, end = path.partition(ONE)
    return any(
        f"{method} {start}" in line and f"{end}: " in line
        for line in output.splitlines()
    )


@pytest.mark.parametrize(("command", "method", "path", "kind"), CASES)
def test_bad_answer_ends_in_a_sentence_with_the_request(
    site: Site, tokens: set[str], command: str, method: str, path: str, kind: str
) -> None:
    prepare(site)
    site.fake.answer_next(kind, method=method, path=f"{path}([?]|$)", seconds=LONG)
    output = site.run(command, *MORE.get(command, ["--yes"]), code=1)
    assert named(output, method, path), output
    assert tokens
    expect_no_secret(output, tokens)
    changed = [p for _, p in site.changes()]
    if method == "GET":
        # A list that failed is not taken for an empty one.
        assert not any(p.startswith(ROOT) for p in changed)
    if command in ("plan", "apply"):
        assert "project 3 of company 1: " in output


@pytest.mark.parametrize("kind", ["html", "500", "reset", "truncated"])
@pytest.mark.parametrize("command", ["apply", "pause", "delete"])
def test_what_was_done_before_a_bad_answer_is_shown(
    site: Site, tokens: set[str], command: str, kind: str
) -> None:
    prepare(site)
    id = site.add_hook(project="3", triggers=[RFI], authorization=SAME_TAIL)
    method = "DELETE" if command == "delete" else "PATCH"
    if (command, kind) == ("delete", "truncated"):
        kind = "redirect"
    site.fake.answer_next(kind, method=method, path=f"{OTHER_ROOT}/hooks/{id}$")
    output = site.run(command, *MORE.get(command, ["--yes"]), code=1)
    done = {"apply": "change destination_url", "pause": "paused", "delete": "deleted"}
    assert f"project 2 of company 1: {done[command]}" in output
    assert f"refused, {method} {OTHER_ROOT}/hooks/{id}: " in output
    expect_no_secret(output, tokens)


@pytest.mark.parametrize("command", CALLS)
@pytest.mark.parametrize("kind", [*BROKEN, "refused"])
def test_login_that_fails_ends_in_a_sentence(
    site: Site, tokens: set[str], command: str, kind: str
) -> None:
    prepare(site)
    if kind == "refused":
        site.app.config["PROCORE_WEBHOOK_API_CLIENT_SECRET"] = "a wrong secret"
        site.mount("RFIs.update", API_CLIENT_SECRET="a wrong secret")
    else:
        site.fake.answer_next(kind, method="POST", path=LOGIN, times=99, seconds=LONG)
    output = site.run(command, *MORE.get(command, ["--yes"]), code=1)
    assert f"POST {LOGIN}: " in output
    assert "a wrong secret" not in output
    assert site.changes() == []
    expect_no_secret(output, tokens)


# Paging


PAGED = ["html", "empty", "truncated", "redirect", "500", "503", "429", "null"]
PAGED += ["null items", "repeat", "reset"]


@pytest.mark.parametrize("command", ["plan", "apply"])
@pytest.mark.parametrize("path", ["hooks[?]", "triggers[?]", "resources[?]"])
@pytest.mark.parametrize("kind", PAGED)
def test_bad_page_in_the_middle_of_a_list_is_no_end_of_it(
    site: Site, tokens: set[str], command: str, path: str, kind: str
) -> None:
    site.fake.switches.most_per_page = 2
    resources = ["RFIs", "Meetings", "Images", "Tasks", "Forms"]
    site.fake.project_resources.clear()
    site.fake.project_resources.update({name: ("create",) for name in resources})
    site.mount(*resources)
    for number in range(4):
        site.add_hook(namespace=f"other-{number}")
    site.add_hook(triggers=[(name, "create") for name in resources])
    site.run("plan")
    site.fake.answer_next(kind, path=f"{ROOT}.*{path}", skip=1, seconds=LONG)
    output = site.run(command, *MORE[command], code=1)
    assert f"could not look: GET {ROOT}/" in output
    assert site.changes() == []
    expect_no_secret(output, tokens)


@pytest.mark.parametrize("command", ["list", "delete", "pause", "resume"])
@pytest.mark.parametrize("kind", PAGED)
def test_bad_page_of_hooks_changes_none_of_them(
    site: Site, tokens: set[str], command: str, kind: str
) -> None:
    site.fake.switches.most_per_page = 2
    site.mount("RFIs.update")
    for number in range(4):
        site.add_hook(namespace=f"other-{number}")
    site.add_hook(triggers=[RFI])
    before = site.fake.hooks()
    site.fake.answer_next(kind, path=f"{ROOT}/hooks[?]", skip=1, seconds=LONG)
    output = site.run(command, *MORE.get(command, ["--yes"]), code=1)
    assert f"GET {ROOT}/hooks: " in output
    assert site.fake.hooks() == before
    expect_no_secret(output, tokens)


# Answers that are acceptable


def test_ids_may_be_numbers(site: Site, tokens: set[str]) -> None:
    prepare(site)
    site.fake.answer_next("numbers", method="*", path="/rest/", times=9999)
    site.run("apply", "--prune", "--rotate", "--yes")
    site.run("plan")
    rows = site.document("list")["procore_webhooks"]
    assert [row["triggers"] for row in rows] == [["RFIs.create", "RFIs.update"]] * 2
    assert {row["hook"] for row in rows} == {h["id"] for h in site.fake.hooks()}
    for command in ("pause", "resume", "delete"):
        site.run(command, "--yes")
    assert site.fake.hooks() == []


@pytest.mark.parametrize("offset", [-3600, 3600])
@pytest.mark.parametrize("kind", ["429", "503"])
def test_clock_that_differs_changes_no_wait(
    site: Site, tokens: set[str], offset: int, kind: str
) -> None:
    site.fake.switches.clock_offset = offset
    site.fake.switches.spike_limit = 1000
    prepare(site)
    site.fake.answer_next(kind, method="PATCH", path=f"{ROOT}/hooks", seconds=1)
    site.run("apply", "--prune", "--yes")
    site.run("plan")


@pytest.mark.parametrize("kind", ["429", "503"])
def test_short_refusal_is_waited_for(site: Site, tokens: set[str], kind: str) -> None:
    prepare(site)
    site.fake.answer_next(kind, method="*", path=ROOT, seconds=1)
    site.run("apply", "--prune", "--yes")
    site.run("plan")


@pytest.mark.parametrize("status", [200, 204])
def test_deletion_may_be_answered_200_or_204(site: Site, status: int) -> None:
    prepare(site)

    @site.fake.after_request
    def answer_so(answer: Response) -> Response:
        answer.status_code = status if request.method == "DELETE" else 200
        return answer

    site.run("delete", "--yes")
    assert site.fake.hooks() == []


def test_expired_token_is_renewed(site: Site, tokens: set[str]) -> None:
    prepare(site)
    expired: list[None] = []

    @site.fake.after_request
    def expire(answer: Response) -> Response:
        if request.method == "PATCH" and not expired:
            expired.append(None)
            site.fake.expire_tokens()
        return answer

    site.run("apply", "--prune", "--yes")
    site.run("plan")
    assert len(tokens) == 3


def test_company_without_the_hook_needs_the_namespace_named(site: Site) -> None:
    site.mount("Projects.update", SCOPES=[COMPANY])
    path = "/rest/v2.0/companies/1/webhooks/hooks"
    site.fake.answer_next("500", path=rf"{path}\?.*namespace={NAMESPACE}")
    output = site.run("apply", "--yes", code=1)
    assert f"could not look: GET {path}: 500" in output
    assert site.changes() == []
