"""Tables of docs/hooks.md and docs/testing.md, beside the code that they describe."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import click
import pytest
from flask import Flask
from support.documents import table
from support.values import AUTHORIZATION

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.fake.app import ApiApp
from flask_procore_webhooks.testing import FakeProcore
from flask_procore_webhooks.testing import Switches

PAGE, TESTING = "docs/hooks.md", "docs/testing.md"

MakeApp = Callable[..., Flask]


def names_in(cells: list[str]) -> list[str]:
    return re.findall(r"`(\w+)`", " ".join(cells))


# docs/hooks.md


def options_of(command: click.Command) -> set[str]:
    return {name for each in command.params for name in each.opts if name[:2] == "--"}


def test_every_option_of_the_commands_is_in_the_table() -> None:
    described = {
        name: set(re.findall(r"--[a-z-]+", options))
        for names, options, _ in table(PAGE, "command", "its own options")
        for name in re.findall(r"`([a-z ]+)`", names)
    }
    group = ProcoreWebhooks().cli
    context = click.Context(group)
    hooks, reconcile = (group.get_command(context, n) for n in ("hooks", "reconcile"))
    assert isinstance(hooks, click.Group) and reconcile
    found = {f"hooks {name}": options_of(it) for name, it in hooks.commands.items()}
    found["reconcile"] = options_of(reconcile)
    of_every = {"--endpoint", "--json", "--company", "--project"}
    assert described == {name: found[name] - of_every for name in found}


def shown_as_json(make_app: MakeApp, *command: str) -> Any:
    """What the command prints about an app with one hook of one project."""
    fake = FakeProcore("id", "a client secret", spike_limit=None)
    fake.add_company("1", projects=["2"])
    url = "https://app.example.com/webhooks/procore"
    fake.add_hook(
        project="2",
        namespace="tracker",
        destination_url=url,
        authorization=AUTHORIZATION,
        triggers=[("RFIs", "update")],
    )
    with fake.serve() as served:
        keys = {
            "API_URL": served,
            "API_LOGIN_URL": served,
            "API_CLIENT_ID": "id",
            "API_CLIENT_SECRET": "a client secret",
            "AUTHORIZATION": AUTHORIZATION,
            "URL": url,
            "NAMESPACE": "tracker",
            "SCOPES": [{"company": "1", "project": "2"}],
        }
        app = make_app(**{f"PROCORE_WEBHOOK_{key}": keys[key] for key in keys})
        app.register_blueprint(ProcoreWebhooks(hooks_for=["RFIs.update"]))
        args = ["procore-webhooks", *command, "--json"]
        ran = app.test_cli_runner().invoke(args=args)
    assert ran.exit_code == 0, ran.output
    (shown,) = json.loads(ran.stdout).values()
    return shown


def test_every_field_of_a_plan_is_in_the_table(make_app: MakeApp) -> None:
    (scope,) = shown_as_json(make_app, "hooks", "plan")["scopes"]
    cells = [row[0] for row in table(PAGE, "field of a scope")]
    assert names_in(cells) == [*scope]


def test_every_field_of_a_report_is_in_the_table(make_app: MakeApp) -> None:
    (report,) = shown_as_json(make_app, "reconcile")
    cells = [row[0] for row in table(PAGE, "field of a report")]
    assert names_in(cells) == [*report]


# docs/testing.md


def test_every_member_of_the_fake_is_in_the_table() -> None:
    cells = " ".join(row[0] for row in table(TESTING, "member", "does"))
    classes = (FakeProcore, ApiApp)
    members = {n for each in classes for n in vars(each) if not n.startswith("_")}
    members |= {"FakeProcore", "clock", "switches"}
    assert set(re.findall(r"`(\w+)[(`]", cells)) == members - {"wsgi_app"}


@pytest.mark.parametrize("row", table(TESTING, "open", "switch"), ids=str)
def test_the_switches_of_open_points_have_the_defaults_of_the_table(
    row: list[str],
) -> None:
    _, names, values = row
    defaults = [getattr(Switches(), name) for name in names_in([names])]
    if names == "`token_error`":
        status, body = defaults[0]
        assert values == f"{status}, `{body['error']}`"
    else:
        shown = re.findall(r"`(.*?)`", values)
        assert shown == [repr(value).replace("'", '"') for value in defaults]
