"""``check``: show the settings in force and every problem of an endpoint."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator

import click
from flask.cli import with_appcontext

from ..endpoint import Endpoint
from ._check_database import database
from ._check_database import file
from ._check_database import platform
from ._check_database import worker_pools
from ._check_procore import procore
from ._check_route import route
from ._check_settings import logger
from ._check_settings import settings
from ._check_tables import describe_tables
from ._check_tables import tables
from ._check_work import celery
from ._check_work import jobs
from ._check_work import subscribers
from ._check_work import unmatched
from ._check_work import work
from ._findings import Finding
from ._findings import warning
from ._options import as_json as as_json_option
from ._options import command
from ._options import endpoints_named
from ._options import one_endpoint
from ._output import print_json
from ._output import printable
from ._report import describe
from ._report import Report

Check = Callable[[Endpoint], Iterator[Finding]]
#: The checks that need no database.
OFFLINE: tuple[Check, ...] = (
    settings,
    subscribers,
    celery,
    route,
    procore,
    platform,
)
#: The checks that read the inbox.
ONLINE: tuple[Check, ...] = (database, file)
#: The checks that need complete tables.
WITH_TABLES: tuple[Check, ...] = (work, jobs, worker_pools, unmatched)


@command()
@click.option("--strict", is_flag=True, help="Fail for warnings, too.")
@one_endpoint
@as_json_option
@with_appcontext
def check(strict: bool, endpoint: str | None, as_json: bool) -> None:
    """Show the settings in force and everything that would fail.

    The exit code is 1 while there is an ERROR, because deliveries would fail, and 0 if
    there are only warnings. Nothing is left in the inbox.
    """
    found = endpoints_named(endpoint)
    logging_findings = list(logger())
    reports = {each.name: examine(each, logging_findings) for each in found}
    if as_json:
        print_json(reports)
    else:
        for name, report in reports.items():
            _print_report(name, report)
    fails = any(report["errors"] for report in reports.values())
    if not fails and not as_json:
        click.secho("Deliveries can come in.", fg="green")
    warns = any(report["warnings"] for report in reports.values())
    if fails or (strict and warns):
        raise SystemExit(1)


def examine(endpoint: Endpoint, more: list[Finding] | None = None) -> Report:
    """The settings in force, and everything that fails now or later.

    :param more: findings of the app.
    """
    found, gaps = [], None
    try:
        gaps = endpoint.store.database.find_gaps()
    except Exception as error:
        reason = endpoint.store.database.explain(error)
        found.append(Finding(f"The database cannot be used: {reason}"))
    checks = OFFLINE
    if gaps is not None:
        found += _results(lambda each: tables(each, gaps), endpoint)
        checks += ONLINE if gaps.stop_deliveries else ONLINE + WITH_TABLES
    for each in checks:
        found += _results(each, endpoint)
    found += more or []
    return describe(
        endpoint,
        describe_tables(gaps),
        errors=[finding.text for finding in found if finding.error],
        warnings=[finding.text for finding in found if not finding.error],
    )


def _results(check: Check, endpoint: Endpoint) -> list[Finding]:
    """The findings of a check; an error in it is a warning, and other checks go on."""
    found: list[Finding] = []
    try:
        found.extend(check(endpoint))
    except Exception as error:
        reason = endpoint.store.database.explain(error)
        found.append(warning(f"A check could not be made: {reason}"))
    return found


def _print_report(name: str, report: Report) -> None:
    click.secho(f"{name} ({report['source']})", bold=True)
    click.echo(f"  POST {report['path']}")
    click.echo(f"  database {printable(report['database'])}")
    click.echo(f"  tables {report['tables']}")
    for key, value in report["settings"].items():
        click.echo(f"  {key} = {printable(value)}")
    for subscriber in report["subscribers"]:
        click.echo(printable(f"  subscriber {subscriber['name']} ({subscriber['to']})"))
    for text in report["errors"]:
        click.secho(f"  ERROR: {_sentence(text)}", fg="red")
    for text in report["warnings"]:
        click.secho(f"  warning: {_sentence(text)}", fg="yellow")


def _sentence(text: str) -> str:
    # Messages of drivers hold line breaks and tabs.
    return printable(" ".join(text.split()))
