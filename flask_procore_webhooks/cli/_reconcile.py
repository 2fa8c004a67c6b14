"""The work of the command ``reconcile``, and what it prints."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from datetime import timedelta
from typing import Any

import click

from ..dispatching.reconciling import reconcile_endpoint
from ..endpoint import Endpoint
from ..hooks.report import Options
from ..hooks.report import Report
from ._actor import actor
from ._options import procore_endpoints
from ._output import on_one_line
from ._output import print_json
from ._output import Progress


def run(
    endpoint: str | None,
    since: date | timedelta | None,
    everything: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Reconcile every hook, print the reports, and exit with the code."""
    options = Options(since, everything, dry_run)
    # A wrong setting of any endpoint is an error before anything is inserted.
    runs = [(e, _reports(e, options)) for e in procore_endpoints(endpoint)]
    shown: dict[str, list[dict[str, Any]]] = {each.name: [] for each, _ in runs}
    reports: list[Report] = []
    try:
        for each, found in runs:
            if not as_json:
                click.secho(each.name, bold=True)
            for report in found:
                reports.append(report)
                shown[each.name].append(_to_json(report))
                if not as_json:
                    _print(report, options)
    finally:
        # Also after an error: what was inserted until then.
        if as_json:
            print_json(shown)
        else:
            _print_explanations(reports)
    if any(report.error for report in reports):
        raise SystemExit(1)
    if any(report.missing for report in reports):
        raise SystemExit(2)


def _reports(endpoint: Endpoint, options: Options) -> Iterator[Report]:
    progress = Progress(f"{endpoint.name}, deliveries read")
    return reconcile_endpoint(endpoint, options, actor(), progress.add)


def _print(report: Report, options: Options) -> None:
    where = f"  {report.scope}"
    if not report.hook:
        click.secho(on_one_line(f"{where}: {report.error}"), fg="red")
        return
    where += f", hook {report.hook}, {report.first} to {report.last}"
    if report.error:
        click.secho(on_one_line(f"{where}: stopped: {report.error}"), fg="red")
    click.echo(f"{where}: {_numbers(report, options)}")
    for note in report.notes:
        click.echo(on_one_line(f"    note: {note}"))


def _numbers(report: Report, options: Options) -> str:
    inserted = f"{report.inserted} inserted"
    if options.dry_run:
        inserted = f"{report.insertable} to insert"
    text = (
        f"{report.seen} seen, {report.found} of {report.delivered} delivered found,"
        f" {report.missing} missing, {inserted},"
        f" {report.skipped - report.coming} skipped"
    )
    return f"{text}, {report.coming} still to come" if report.coming else text


def _print_explanations(reports: list[Report]) -> None:
    """Print what errors mean, once for all hooks."""
    for text in dict.fromkeys(each.explanation for each in reports):
        if text:
            click.echo(text)


def _to_json(report: Report) -> dict[str, Any]:
    return {
        "company": report.scope.company,
        "project": report.scope.project,
        "hook": report.hook or None,
        "from": f"{report.first}",
        "to": f"{report.last}",
        "seen": report.seen,
        "delivered": report.delivered,
        "found": report.found,
        "missing": report.missing,
        "unreadable": report.unreadable,
        "inserted": report.inserted,
        "skipped": report.skipped,
        "coming": report.coming,
        "left_out": report.left_out,
        "notes": report.notes,
        "error": report.whole_error,
    }
