"""The group ``procore-webhooks``: its members, its help, the choice of an endpoint."""

from __future__ import annotations

import json
from collections.abc import Callable

import click
import pytest
from flask import Flask
from support.commands import mounted
from support.commands import run
from support.values import SECRET

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import PrudraWebhooks
from flask_procore_webhooks.cli import COMMANDS

MakeApp = Callable[..., Flask]


def test_two_blueprints_share_one_group_with_the_hosts_own_commands(
    make_app: MakeApp,
) -> None:
    app = make_app(BOLT_SECRET=SECRET)
    acme = ProcoreWebhooks("acme", url_prefix="/acme")
    bolt = ProcoreWebhooks("bolt", url_prefix="/bolt", config_prefix="BOLT_")

    @acme.cli.command("of-the-host")
    def of_the_host() -> None:
        click.echo("still here")

    mounted(app, acme, bolt)
    assert "still here" in run(app, "of-the-host").output
    shown = run(app, "stats").output
    assert "acme" in shown and "bolt" in shown
    assert "acme" not in run(app, "stats", "--endpoint", "bolt").output


def test_command_of_one_app_does_not_appear_in_another(make_app: MakeApp) -> None:
    """Both apps share the blueprint; each app has its own command group."""
    first, second, webhooks = make_app(), make_app(), ProcoreWebhooks()
    group = click.Group(
        "procore-webhooks", commands={"of-the-first": click.Command("")}
    )
    first.cli.add_command(group)
    assert "of-the-first" in run(mounted(first, webhooks), "--help").output
    assert "of-the-first" not in run(mounted(second, webhooks), "--help").output
    assert "of-the-first" in run(first, "--help").output


def test_group_of_another_blueprint_sees_every_endpoint(make_app: MakeApp) -> None:
    app = mounted(
        make_app(PRUDRA_WEBHOOK_SECRET=SECRET), ProcoreWebhooks(), PrudraWebhooks()
    )
    result = app.test_cli_runner().invoke(args=["prudra-webhooks", "stats", "--json"])
    assert set(json.loads(result.output)) == {"procore_webhooks", "prudra_webhooks"}


@pytest.mark.parametrize("command", ["list", "stats", "check", "init-db"])
def test_unknown_endpoint_error_lists_the_endpoints(app: Flask, command: str) -> None:
    shown = run(app, command, "--endpoint", "nope", ok=False).output
    assert "no endpoint 'nope'" in shown and "procore_webhooks" in shown


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_help(app: Flask, command: str) -> None:
    shown = run(app, command, "--help").output
    assert len(shown.splitlines()[2]) > 10
