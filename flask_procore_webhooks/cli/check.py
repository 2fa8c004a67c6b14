"""``check``: show the settings in force and every problem of an endpoint."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from typing import TYPE_CHECKING

import click
from flask.cli import with_appcontext

from ..config import KEYS
from ..endpoint import at_least_once_warnings
from ..endpoint import Endpoint
from ..endpoint import endpoints
from ..errors import BadAuthorization
from ..errors import BadSignature
from ..inbox.engines import is_in_memory
from ..inbox.store import safe_message
from ..running.background import PROBE
from ..running.celery import problems
from ..signals import delivery_rejected
from ._options import as_json as as_json_option
from ._options import command
from ._options import endpoints_named
from ._options import one_endpoint
from ._output import print_json
from ._output import printable
from ._report import describe
from ._report import Report
from ._report import subscriptions

if TYPE_CHECKING:
    from werkzeug.test import TestResponse

SHORT_SECRET = 16
#: Options of drivers that bound the wait for a silent server.
SOCKET_TIMEOUTS = {
    "psycopg": "tcp_user_timeout (milliseconds)",
    "psycopg2": "tcp_user_timeout (milliseconds)",
    "pymysql": "read_timeout (seconds)",
}
REFUSALS = [{"error": error.answer} for error in (BadSignature, BadAuthorization)]


@dataclass(frozen=True)
class Finding:
    """A problem; deliveries fail while an error is not solved."""

    text: str
    error: bool = True


@command()
@one_endpoint
@as_json_option
@with_appcontext
def check(endpoint: str | None, as_json: bool) -> None:
    """Show the settings in force and everything that would fail.

    The command fails while there is an ERROR: deliveries would fail too.
    """
    reports = {each.name: examine(each) for each in endpoints_named(endpoint)}
    if as_json:
        print_json(reports)
    else:
        for name, report in reports.items():
            _print_report(name, report)
    if any(report["errors"] for report in reports.values()):
        raise SystemExit(1)
    if not as_json:
        click.secho("Deliveries can come in.", fg="green")


def examine(endpoint: Endpoint) -> Report:
    """The settings in force, and everything that fails now or later."""
    found = [
        *_secrets(endpoint),
        *_database(endpoint),
        *_subscribers(endpoint),
        *_celery(endpoint),
        *_route_reachable(endpoint),
        *_path_conflicts(endpoint),
        *_unused_keys(endpoint),
    ]
    return describe(
        endpoint,
        errors=[finding.text for finding in found if finding.error],
        warnings=[finding.text for finding in found if not finding.error],
    )


def _secrets(endpoint: Endpoint) -> Iterator[Finding]:
    settings, prefix = endpoint.settings, endpoint.config_prefix
    kinds = {"SECRET": settings.secrets, "AUTHORIZATION": settings.authorizations}
    for key, values in kinds.items():
        if any(len(value) < SHORT_SECRET for value in values):
            yield Finding(
                f"{prefix}{key} or one of its fallbacks is shorter than {SHORT_SECRET}"
                " bytes; the command secret makes a strong one.",
                error=False,
            )


def _database(endpoint: Endpoint) -> Iterator[Finding]:
    database = endpoint.store.database
    try:
        gaps = database.find_gaps()
    except Exception as error:
        yield Finding(f"The database cannot be used: {safe_message(error)}")
        return
    if gaps.stop_deliveries:
        yield Finding(f"The inbox cannot be used: {gaps.advice}.")
    for text in at_least_once_warnings(endpoint):
        yield Finding(text, error=False)
    if endpoint.store.session is not None and _lacks_timeout(endpoint):
        yield Finding(
            "The app's database connections have no timeout for a silent server: after"
            " a network failure, a delivery may hang until the system drops one. Set"
            f" {SOCKET_TIMEOUTS[database.url.get_driver_name()]} in connect_args.",
            error=False,
        )
    if is_in_memory(database.url):
        yield Finding(
            "The inbox is in memory: every event is lost when the process ends.",
            error=False,
        )


def _subscribers(endpoint: Endpoint) -> Iterator[Finding]:
    found = [subscriber for subscriber, _ in subscriptions(endpoint)]
    if not found:
        yield Finding(
            "There are no subscribers: events are recorded, and no work is done.",
            error=False,
        )
    needy = [s.name for s in found if inspect.iscoroutinefunction(s.function)]
    if needy and find_spec("asgiref") is None:
        yield Finding(f"{', '.join(needy)} cannot run: pip install 'flask[async]'.")


def _celery(endpoint: Endpoint) -> Iterator[Finding]:
    if endpoint.dispatch == "celery":
        for text, error in problems(endpoint.app):
            yield Finding(text, error)


def _lacks_timeout(endpoint: Endpoint) -> bool:
    """Whether the connections of the host's engine can wait for ever."""
    driver = endpoint.store.database.url.get_driver_name()
    if driver not in SOCKET_TIMEOUTS:
        return False
    with endpoint.store.connection() as connection:
        raw: Any = connection.connection.dbapi_connection
        if driver == "pymysql":
            return raw._read_timeout is None
        if driver == "psycopg2":
            parameters = raw.info.dsn_parameters
        else:
            parameters = raw.info.get_parameters()
    is_local = str(parameters.get("host", "/")).startswith("/")
    return not is_local and not parameters.get("tcp_user_timeout", "").strip("0")


def _route_reachable(endpoint: Endpoint) -> Iterator[Finding]:
    """Send an unsigned probe through the app and expect our 401."""
    try:
        answer = _probe(endpoint)
        if answer.status_code == 401 and answer.get_json(silent=True) in REFUSALS:
            return
        if answer.status_code == 404 and "<" in endpoint.path:
            return  # the path has a variable, as in <int:tenant>, without a known value
        result = f"was answered {answer.status} by another handler"
    except Exception as error:
        result = f"ended in {type(error).__name__}: {error}"
    yield Finding(
        f"An unsigned POST to {endpoint.path} {result}, and so would a delivery: a"
        " before_request (a login check?), an extension or another route. Let requests"
        f" pass whose request.blueprint is {endpoint.blueprint!r}."
    )


def _probe(endpoint: Endpoint) -> TestResponse:
    # By HTTPS, which some apps require, and with a host name that the app accepts.
    host = next(iter(endpoint.app.config.get("TRUSTED_HOSTS") or ()), "").lstrip(".")
    url = f"https://{host}{endpoint.path}" if host else endpoint.path
    with _unlogged():
        return endpoint.app.test_client().post(
            url, url_scheme="https", environ_overrides={PROBE: True}
        )


@contextmanager
def _unlogged() -> Iterator[None]:
    """Suppress logging and ``delivery_rejected`` for the probe."""
    log = logging.getLogger("flask_procore_webhooks")
    was_disabled, log.disabled = log.disabled, True
    try:
        with delivery_rejected.muted():
            yield
    finally:
        log.disabled = was_disabled


def _path_conflicts(endpoint: Endpoint) -> Iterator[Finding]:
    for other in endpoints(endpoint.app).values():
        same_path = other.path.rstrip("/") == endpoint.path.rstrip("/")
        if same_path and other.name != endpoint.name:
            yield Finding(
                f"{other.name!r} is mounted at {other.path} too, and only one of them"
                " receives deliveries; give one of them another url_prefix=."
            )


def _unused_keys(endpoint: Endpoint) -> Iterator[Finding]:
    """Keys with the endpoint's prefix that no endpoint of the app reads."""
    app, prefix = endpoint.app, endpoint.config_prefix
    read = {
        other.config_prefix + key for other in endpoints(app).values() for key in KEYS
    }
    for name in app.config:
        if name.startswith(prefix) and name not in read:
            yield Finding(f"{name} is read by no endpoint of this app.", error=False)


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
