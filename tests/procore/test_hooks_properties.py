"""Properties of plan and apply, for any desired and any actual state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask
from flask import Response
from hooks_support import AUTHORIZATION
from hooks_support import CLIENT_SECRET
from hooks_support import OTHER_TAIL
from hooks_support import SAME_TAIL
from hooks_support import subscribe
from hooks_support import URL
from hypothesis import assume
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.api import ProcoreAPI
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.fake import FakeProcore
from flask_procore_webhooks.hooks.apply import carry_out
from flask_procore_webhooks.hooks.apply import Choices
from flask_procore_webhooks.hooks.plan import ScopePlan
from flask_procore_webhooks.hooks.survey import Survey

#: Together they take longer than the others.
pytestmark = pytest.mark.slow

COMPANY = {"Projects": ("create", "update"), "Trades": ("create", "delete")}
PROJECT = {
    "RFIs": ("create", "update", "delete"),
    "Meetings": ("create", "update", "delete"),
    "Markup Layers": ("create", "update"),
    "Budget View Snapshots": ("create",),
}
#: Each pattern with the triggers that it stands for.
PATTERNS = {
    "RFIs.update": {"RFIs.update"},
    "rfis.CREATED": {"RFIs.create"},
    "Meetings": {"Meetings.create", "Meetings.update", "Meetings.delete"},
    "Markup Layers": {"Markup Layers.create", "Markup Layers.update"},
    "Projects.update": {"Projects.update"},
    "Trades": {"Trades.create", "Trades.delete"},
    "*.delete": {"RFIs.delete", "Meetings.delete", "Trades.delete"},
    "*": {
        f"{name}.{action}"
        for name, actions in {**COMPANY, **PROJECT}.items()
        for action in actions
    },
}
#: Patterns that a project, or a company, has no trigger for.
ONLY_COMPANY = {"Projects.update", "Trades"}
ANY_KIND = {"*", "*.delete"}

SCOPES = (None, "2", "3")
NAMESPACES = ("tracker", "tracker-v4-0", "other", "0")
URLS = (URL, "https://old.example.com/hook", "http://127.0.0.1:9/hook")
VALUES = (AUTHORIZATION, SAME_TAIL, OTHER_TAIL, None)


@dataclass(frozen=True)
class Wanted:
    """What an app is configured with."""

    patterns: frozenset[str]
    scopes: tuple[str | None, ...]
    url: str
    authorization: str | None
    version: str
    namespace: str

    def triggers(self, project: str | None) -> set[str]:
        """The triggers to have in a scope."""
        known = COMPANY if project is None else PROJECT
        every = set().union(*(PATTERNS[each] for each in self.patterns))
        return {each for each in every if each.partition(".")[0] in known}


def cased(text: str, how: int) -> str:
    return (text, text.upper(), text.title())[how]


@st.composite
def wanted(draw: st.DrawFn) -> Wanted:
    scopes = draw(st.lists(st.sampled_from(SCOPES), min_size=1, unique=True))
    usable = [
        pattern
        for pattern in PATTERNS
        if pattern in ANY_KIND
        or (None if pattern in ONLY_COMPANY else "2") in scopes
        # Project 3 stands for project 2.
        or (pattern not in ONLY_COMPANY and "3" in scopes)
    ]
    if scopes == [None]:
        usable.remove("*.delete")
    return Wanted(
        draw(st.frozensets(st.sampled_from(usable), max_size=4)),
        tuple(scopes),
        draw(st.sampled_from(URLS)),
        draw(st.sampled_from(VALUES)),
        draw(st.sampled_from(["v2", "v2.0", "v3.0", "v4", "v4.0"])),
        draw(st.sampled_from(NAMESPACES)),
    )


@st.composite
def actual(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Arguments of hooks, at most one for each scope and namespace."""
    keys = st.tuples(st.sampled_from(SCOPES), st.sampled_from(NAMESPACES))
    hooks = []
    for project, namespace in draw(st.lists(keys, max_size=8, unique=True)):
        known = COMPANY if project is None else PROJECT
        pairs = [(name, a) for name, actions in known.items() for a in actions]
        triggers = st.tuples(st.sampled_from(pairs), st.integers(0, 2))
        hooks.append(
            {
                "company": "1",
                "project": project,
                "namespace": namespace,
                "destination_url": draw(st.sampled_from(URLS)),
                "payload_version": draw(st.sampled_from(["v2.0", "v3.0", "v4.0"])),
                "authorization": draw(st.sampled_from([*VALUES, "12345"])),
                "status": draw(st.sampled_from(["active", "disabled"])),
                "triggers": [
                    (name, cased(action, how))
                    for (name, action), how in draw(st.lists(triggers, max_size=7))
                ],
            }
        )
    return hooks


switches = st.fixed_dictionaries(
    {
        "trigger_case": st.sampled_from(["upper", "lower"]),
        "action_case": st.sampled_from(["upper", "lower"]),
        "masks_authorization": st.booleans(),
        "namespace_required": st.booleans(),
        "most_per_page": st.sampled_from([3, 100]),
        "sends_link": st.booleans(),
    }
)


class Procore:
    """A fake that serves every example, because its routes take long to make."""

    def __init__(self, folder: Path) -> None:
        limits = {"spike_limit": None, "hourly_limit": None}
        self.folder = folder
        self.fake = FakeProcore("id", CLIENT_SECRET, **limits)
        self.fake.add_company("1", projects=["2", "3"])
        for known, few in (
            (self.fake.company_resources, COMPANY),
            (self.fake.project_resources, PROJECT),
        ):
            known.clear()
            known.update(few)
        #: The number of the request that is answered 500.
        self.fails_at = 0
        self.fake.before_request(self._fail)
        session = requests.Session()
        self.fake.mount(session)
        self.api = ProcoreAPI("id", CLIENT_SECRET, company_id="1", session=session)

    def _fail(self) -> Response | None:
        self.fails_at -= 1
        return Response(status=500) if self.fails_at == 0 else None

    def start(self, hooks: Iterable[dict[str, Any]], turned: dict[str, Any]) -> None:
        """Delete every hook, add these, and set the switches."""
        self.fails_at = 0
        for hook in self.fake.hooks():
            project = hook["project_id"]
            place = f"/projects/{project}" if project else ""
            path = f"/rest/v2.0/companies/1{place}/webhooks/hooks/{hook['id']}"
            self.api.delete(path)
        for name, value in turned.items():
            setattr(self.fake.switches, name, value)
        for hook in hooks:
            self.fake.add_hook(**hook)
        self.fake.requests.clear()


@pytest.fixture(scope="module")
def procore(tmp_path_factory: pytest.TempPathFactory) -> Procore:
    return Procore(tmp_path_factory.mktemp("hooks"))


class World:
    """The fake, and an app."""

    def __init__(self, procore: Procore, want: Wanted) -> None:
        self.want = want
        self.fake = procore.fake
        self._api = procore.api
        (self._endpoint,) = endpoints(app_of(procore.folder, want)).values()

    def survey(self) -> Survey:
        return Survey(self._endpoint, self._api)

    def plans(self) -> list[ScopePlan]:
        survey = self.survey()
        plans = [*survey.plans()]
        assert [plan.error for plan in plans] == [None] * len(plans)
        assert survey.problems() == []
        return plans

    def has_both(self) -> bool:
        """Whether a scope has a second hook, which keeps the first one."""
        return any(plan.has_parallel for plan in self.plans())

    def apply(self, **choices: bool) -> None:
        """Carry out every plan; nothing is refused."""
        assert self.failures(**choices) == []

    def failures(self, **choices: bool) -> list[str]:
        """Carry out every plan; return why something was not done."""
        survey, found = self.survey(), []
        for plan in survey.plans():
            if plan.error:
                found.append(plan.error)
                continue
            calls = survey.calls(plan.scope)
            steps = carry_out(calls, survey.desired, plan, Choices(**choices))
            found += [step.refused for step in steps if step.refused]
        return found

    def mine(self) -> dict[str | None, dict[str, Any]]:
        """The app's hooks by project."""
        return {h["project_id"]: h for h in self.fake.hooks() if self._is_mine(h)}

    def others(self) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """The other hooks, with their triggers."""
        hooks = [hook for hook in self.fake.hooks() if not self._is_mine(hook)]
        return [(hook, self.fake.triggers(hook["id"])) for hook in hooks]

    def hooks_of(
        self, project: str | None
    ) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """The hooks of a scope, with their triggers."""
        hooks = [hook for hook in self.fake.hooks() if hook["project_id"] == project]
        return [(hook, self.fake.triggers(hook["id"])) for hook in hooks]

    def triggers(self, hook: dict[str, Any]) -> list[str]:
        found = self.fake.triggers(hook["id"])
        return [f"{t['resource_name']}.{t['event_type'].lower()}" for t in found]

    def _is_mine(self, hook: dict[str, Any]) -> bool:
        named = hook["namespace"] == self.want.namespace
        return named and hook["project_id"] in self.want.scopes


def app_of(folder: Path, want: Wanted) -> Flask:
    app = Flask("host", instance_path=str(folder))
    scopes = [{"company": 1, **({"project": p} if p else {})} for p in want.scopes]
    values = {
        "SECRET": "a secret of the test suite",
        "AUTHORIZATION": want.authorization,
        "API_CLIENT_ID": "id",
        "API_CLIENT_SECRET": CLIENT_SECRET,
        "URL": want.url,
        "NAMESPACE": want.namespace,
        "PAYLOAD_VERSION": want.version,
        "SCOPES": scopes,
    }
    app.config.update({f"PROCORE_WEBHOOK_{key}": v for key, v in values.items()})
    webhooks = ProcoreWebhooks()
    subscribe(webhooks, *sorted(want.patterns))
    app.register_blueprint(webhooks)
    return app


def expect_as_wanted(world: World, hook: dict[str, Any]) -> None:
    """The hook has every wanted field and every wanted trigger."""
    want = world.want
    assert hook["destination_url"] == want.url
    assert hook["payload_version"].removesuffix(".0") == want.version.removesuffix(".0")
    assert hook["status"] == "active"
    value = hook["destination_headers"].get("Authorization")
    if want.authorization is not None:
        assert value is not None and value[-5:] == want.authorization[-5:]
        if not world.fake.switches.masks_authorization:
            assert value == want.authorization
    assert want.triggers(hook["project_id"]) <= {*world.triggers(hook)}


def test_apply_makes_any_state_the_desired_one(procore: Procore) -> None:
    @settings(max_examples=150)
    @given(wanted(), actual(), switches)
    def check(
        want: Wanted, hooks: list[dict[str, Any]], turned: dict[str, Any]
    ) -> None:
        procore.start(hooks, turned)
        world = World(procore, want)
        assume(not world.has_both())
        before, others = world.mine(), world.others()
        world.apply()
        for plan in world.plans():
            assert not (plan.creates or plan.replaces or plan.changes or plan.missing)
        after = world.mine()
        assert {*after} == {*before} | {p for p in want.scopes if want.triggers(p)}
        assert world.others() == others
        world.apply(prune=True)
        assert not any(plan.differs for plan in world.plans())
        assert {*world.mine()} == {p for p in want.scopes if want.triggers(p)}
        for project, hook in world.mine().items():
            expect_as_wanted(world, hook)
            assert sorted(world.triggers(hook)) == sorted(want.triggers(project))
        assert world.others() == others

    check()


def test_prune_and_rotate_at_once_make_any_state_the_desired_one(
    procore: Procore,
) -> None:
    @settings(max_examples=50)
    @given(wanted(), actual(), switches)
    def check(
        want: Wanted, hooks: list[dict[str, Any]], turned: dict[str, Any]
    ) -> None:
        procore.start(hooks, turned)
        world = World(procore, want)
        assume(not world.has_both())
        others = world.others()
        world.apply(prune=True, rotate=True)
        assert not any(plan.differs for plan in world.plans())
        for hook in world.mine().values():
            expect_as_wanted(world, hook)
            if want.authorization is not None:
                value = hook["destination_headers"]["Authorization"]
                assert value == want.authorization
        assert world.others() == others
        world.fake.requests.clear()
        world.apply(prune=True)
        methods = {method for method, path, _ in world.fake.requests if "rest" in path}
        assert methods <= {"GET"}

    check()


def test_interrupted_apply_can_be_repeated_from_any_state(procore: Procore) -> None:
    @settings(max_examples=100)
    @given(wanted(), actual(), switches, st.integers(1, 25), st.booleans())
    def check(
        want: Wanted,
        hooks: list[dict[str, Any]],
        turned: dict[str, Any],
        number: int,
        prune: bool,
    ) -> None:
        procore.start(hooks, turned)
        world = World(procore, want)
        assume(not world.has_both())
        others = world.others()
        procore.fails_at = number
        failures = world.failures(prune=prune)
        assert bool(failures) is (procore.fails_at <= 0)
        procore.fails_at = 0
        world.apply(prune=True)
        assert not any(plan.differs for plan in world.plans())
        assert world.others() == others

    check()


def test_apply_leaves_both_hooks_of_a_change_of_version(procore: Procore) -> None:
    @settings(max_examples=50)
    @given(wanted(), actual(), switches, st.booleans(), st.booleans())
    def check(
        want: Wanted,
        hooks: list[dict[str, Any]],
        turned: dict[str, Any],
        prune: bool,
        rotate: bool,
    ) -> None:
        both = [("tracker", "v3.0"), ("tracker-v4-0", "v4.0")]
        for namespace, version in both:
            key = want.scopes[0], namespace
            hooks = [h for h in hooks if (h["project"], h["namespace"]) != key]
            hook = {"destination_url": URL, "payload_version": version}
            place = {"company": "1", "project": key[0], "namespace": namespace}
            hooks.append(place | hook)
        want = replace(want, namespace="tracker", version="v4.0")
        assume(want.triggers(want.scopes[0]))
        procore.start(hooks, turned)
        world = World(procore, want)
        before = world.hooks_of(want.scopes[0])
        world.apply(prune=prune, rotate=rotate)
        assert world.hooks_of(want.scopes[0]) == before
        world.apply(parallel=True)
        survey = world.survey()
        (plan, *_) = survey.plans()
        assert not Choices(parallel=True).has_changes(plan, survey.desired)

    check()
