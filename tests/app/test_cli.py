"""Every command, as a user runs it: what it prints and refuses, its exit status."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import closing
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
import sqlalchemy as sa
from flask import abort
from flask import Flask
from flask import redirect
from flask import request
from flask_sqlalchemy import SQLAlchemy
from support.commands import down
from support.commands import mounted
from support.commands import run
from support.servers import serve
from support.servers import Server
from support.values import AUTHORIZATION
from support.values import Clock
from support.values import SECRET

from flask_procore_webhooks import delivery_rejected
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import PrudraWebhooks
from flask_procore_webhooks import resource_created
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.background import background_of
from flask_procore_webhooks.cli import COMMANDS
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.settings import read_settings
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload
from flask_procore_webhooks.testing import PRUDRA
from flask_procore_webhooks.testing import sign

MakeApp = Callable[..., Flask]


# The group


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


def test_a_command_of_one_app_does_not_appear_in_another(make_app: MakeApp) -> None:
    """The blueprint is shared by both, the group of commands is not."""
    first, second, webhooks = make_app(), make_app(), ProcoreWebhooks()
    group = click.Group(
        "procore-webhooks", commands={"of-the-first": click.Command("")}
    )
    first.cli.add_command(group)
    assert "of-the-first" in run(mounted(first, webhooks), "--help").output
    assert "of-the-first" not in run(mounted(second, webhooks), "--help").output
    assert "of-the-first" in run(first, "--help").output


def test_the_group_of_another_blueprint_sees_every_endpoint(make_app: MakeApp) -> None:
    app = mounted(
        make_app(PRUDRA_WEBHOOK_SECRET=SECRET), ProcoreWebhooks(), PrudraWebhooks()
    )
    result = app.test_cli_runner().invoke(args=["prudra-webhooks", "stats", "--json"])
    assert set(json.loads(result.output)) == {"procore_webhooks", "prudra_webhooks"}


@pytest.mark.parametrize("command", ["list", "stats", "check", "init-db"])
def test_an_unknown_endpoint_is_answered_with_those_there_are(
    app: Flask, command: str
) -> None:
    shown = run(app, command, "--endpoint", "nope", ok=False).output
    assert "no endpoint 'nope'" in shown and "procore_webhooks" in shown


@pytest.mark.parametrize("command", [str(command.name) for command in COMMANDS])
def test_every_command_says_what_it_is_for(app: Flask, command: str) -> None:
    shown = run(app, command, "--help").output
    assert len(shown.splitlines()[2]) > 10


# check


def test_check_passes_for_the_embedded_default_and_names_its_file(app: Flask) -> None:
    shown = run(app, "check").output
    assert f"sqlite:///{app.instance_path}/procore_webhooks.db" in shown
    assert "tables present" in shown
    assert "POST /webhooks/procore" in shown
    assert "Deliveries can come in." in shown


def test_check_shows_no_secret(make_app: MakeApp) -> None:
    app = make_app(
        PROCORE_WEBHOOK_SECRET="current-secret-0123",
        PROCORE_WEBHOOK_SECRET_FALLBACKS=["older-secret-0123456", "oldest-secret-0123"],
        PROCORE_WEBHOOK_AUTHORIZATION="Bearer current-token",
        PROCORE_WEBHOOK_AUTHORIZATION_FALLBACKS=["Bearer older-token"],
        PROCORE_WEBHOOK_DATABASE_URI="postgresql+psycopg://me:hunter2@127.0.0.1:1/x"
        "?password=hunter3&sslpassword=hunter4",
    )
    mounted(app)
    for arguments in (["check"], ["check", "--json"]):
        shown = run(app, *arguments, ok=False).output
        assert not re.search(r"secret-0|-token|hunter", shown)
        assert "***** (19 bytes, fallbacks: 2)" in shown


@pytest.fixture
def host(make_app: MakeApp, tmp_path: Path) -> Flask:
    """An app with Flask-SQLAlchemy whose tables have not been made."""
    db = SQLAlchemy()
    app = make_app(SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / 'host.db'}")
    db.init_app(app)
    return mounted(app, ProcoreWebhooks(db=db))


def test_check_fails_until_init_db_has_made_the_tables(host: Flask) -> None:
    shown = run(host, "check", ok=False).output
    assert "missing tables: procore_webhook_event" in shown
    assert "flask db upgrade" in shown and "init-db" in shown
    assert "Deliveries can come in" not in shown
    assert "created procore_webhook_event, procore_webhook_receipt" in (
        run(host, "init-db").output
    )
    assert "tables present" in run(host, "check").output
    assert "nothing was missing" in run(host, "init-db").output


@pytest.mark.parametrize("kind", ["postgresql", "mariadb", "sqlite", "no driver"])
@pytest.mark.parametrize("command", ["check", "init-db", "list", "stats", "show 1"])
def test_a_database_that_is_down_is_told_in_a_sentence(
    make_app: MakeApp, tmp_path: Path, kind: str, command: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    uri = down(kind, tmp_path)
    app = mounted(make_app(PROCORE_WEBHOOK_DATABASE_URI=uri))
    shown = run(app, *command.split(), ok=False).output
    assert re.search("refused|Can't connect|unable to open|Can't load plugin", shown)
    assert "hunter2" not in shown and "Background on this error" not in shown
    if command == "check" and kind != "no driver":
        assert f"  database {uri.replace('hunter2', '***')}" in shown


@pytest.mark.parametrize("command", ["list", "stats", "show 1"])
def test_missing_tables_are_told_with_the_command_that_makes_them(
    host: Flask, command: str
) -> None:
    shown = run(host, *command.split(), ok=False).output
    assert "missing tables: procore_webhook_event" in shown and "init-db" in shown


def to_login() -> Any:
    return redirect("/login")


def refused_as_we_do() -> Any:
    return {"error": "Log in first"}, 401


def forbidden() -> Any:
    abort(403)


def broken() -> Any:
    raise LookupError("no current user")


@pytest.mark.parametrize(
    ("before", "answer"),
    [
        (to_login, "302 FOUND"),
        (refused_as_we_do, "401 UNAUTHORIZED"),
        (forbidden, "403 FORBIDDEN"),
        (broken, "LookupError: no current user"),
    ],
)
def test_check_finds_a_before_request_that_stands_in_the_way(
    app: Flask, before: Callable[[], Any], answer: str
) -> None:
    app.before_request(before)
    shown = run(app, "check", ok=False).output
    assert "ERROR: An unsigned POST to /webhooks/procore" in shown
    assert answer in shown and "request.blueprint is 'procore_webhooks'" in shown


def test_check_finds_a_route_of_the_host_at_the_same_path(make_app: MakeApp) -> None:
    app = make_app()
    app.add_url_rule("/webhooks/procore", "mine", lambda: "mine", methods=["POST"])
    assert "answered 200 OK by something else" in (
        run(mounted(app), "check", ok=False).output
    )


def test_check_finds_two_endpoints_at_one_path(make_app: MakeApp) -> None:
    app = make_app(BOLT_SECRET=SECRET)
    bolt = ProcoreWebhooks("bolt", url_prefix="/hooks/", config_prefix="BOLT_")
    app.register_blueprint(ProcoreWebhooks(), url_prefix="/hooks")
    shown = run(mounted(app, bolt), "check", ok=False).output
    assert "'bolt' is mounted at /hooks/ too" in shown
    assert "'procore_webhooks' is mounted at /hooks too" in shown


@pytest.mark.parametrize("hosts", [None, [".example.com"]])
def test_check_does_not_mind_a_host_that_wants_https_and_its_own_name(
    make_app: MakeApp, hosts: list[str] | None
) -> None:
    app = mounted(make_app(TRUSTED_HOSTS=hosts))

    @app.before_request
    def insist() -> Any:
        return None if request.is_secure else redirect("https://example.com")

    run(app, "check")


def test_check_passes_where_each_endpoint_has_its_way_in(make_app: MakeApp) -> None:
    app = make_app(
        APPLICATION_ROOT="/app",
        SERVER_NAME="example.com",
        PRUDRA_WEBHOOK_AUTHORIZATION=AUTHORIZATION,
    )
    app.register_blueprint(ProcoreWebhooks(), url_prefix="/<tenant>/hooks/")
    app.register_blueprint(ProcoreWebhooks("b"), url_prefix="/<int:tenant>/b")
    run(mounted(app, PrudraWebhooks()), "check")


def test_the_knock_of_check_reaches_neither_log_nor_watchers(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[object] = []
    delivery_rejected.connect(lambda app, **fields: seen.append(fields))
    run(app, "check")
    assert not seen and not caplog.records
    app.test_client().post("/webhooks/procore")
    assert seen and caplog.records, "the log and the signal work again"


def test_the_knock_of_check_runs_no_events(make_app: MakeApp) -> None:
    app = mounted(make_app(TESTING=False), ProcoreWebhooks())
    run(app, "check")
    assert not background_of(app).was_started
    app.test_client().get("/")
    assert background_of(app).was_started, "as the first request does"


def test_check_finds_an_async_subscriber_that_cannot_run(
    app: Flask, webhooks: ProcoreWebhooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    @webhooks.on(name="sync-rfis")
    async def work(event: object) -> None: ...

    run(app, "check")
    monkeypatch.setitem(sys.modules, "asgiref", None)
    shown = run(app, "check", ok=False).output
    assert "sync-rfis cannot run: pip install 'flask[async]'" in shown


def test_check_lists_subscribers_in_order_with_what_they_are_run_for(
    app: Flask, webhooks: ProcoreWebhooks
) -> None:
    webhooks.on("RFIs", "update", name="first")(print)
    resource_created.connect(lambda app, event: None, name="second")
    webhooks.on(name="third")(repr)
    resource_created.connect(lambda app, event: None, sender=Flask("x"), name="other")
    shown = run(app, "check").output
    assert re.findall("^  subscriber (.*)$", shown, re.MULTILINE) == [
        "first (RFIs update)",
        "second (resource-created)",
        "third (* *)",
    ]


@pytest.mark.parametrize(
    ("config", "warning"),
    [
        (
            {"SECRET": "short"},
            "PROCORE_WEBHOOK_SECRET or one of its fallbacks is short",
        ),
        ({"AUTHORIZATION": "Basic eDp5"}, "PROCORE_WEBHOOK_AUTHORIZATION or one of"),
        ({"SECRET_FALLBACKS": ["old"]}, "PROCORE_WEBHOOK_SECRET or one of its"),
        ({"SANDBOX_SECRET": SECRET}, "PROCORE_WEBHOOK_SANDBOX_SECRET is read by no"),
        ({"DATABASE_URI": "sqlite://"}, "inbox is in memory"),
        ({}, "There are no subscribers"),
    ],
)
def test_check_warns_and_still_passes(
    make_app: MakeApp, config: dict[str, Any], warning: str
) -> None:
    settings = {f"PROCORE_WEBHOOK_{key}": value for key, value in config.items()}
    shown = run(mounted(make_app(**settings)), "check", ok=None)
    assert re.search(f"warning: .*{warning}", shown.output), shown.output
    assert shown.exit_code == 0, shown.output


def test_check_does_not_take_another_endpoints_keys_for_strays(
    make_app: MakeApp,
) -> None:
    app = make_app(PROCORE_WEBHOOK_SANDBOX_SECRET=SECRET)
    sandbox = ProcoreWebhooks(
        "sandbox", url_prefix="/sandbox", config_prefix="PROCORE_WEBHOOK_SANDBOX_"
    )
    assert "is read by no endpoint" not in (
        run(mounted(app, ProcoreWebhooks(), sandbox), "check").output
    )


def test_check_prints_long_times_in_plain_digits(make_app: MakeApp) -> None:
    app = mounted(make_app(PROCORE_WEBHOOK_RETENTION=400 * 24 * 3600))
    assert "PROCORE_WEBHOOK_RETENTION = 34560000 s" in run(app, "check").output


def test_check_for_machines_is_complete(host: Flask) -> None:
    (report,) = json.loads(run(host, "check", "--json", ok=False).output).values()
    assert report.pop("settings")["PROCORE_WEBHOOK_TOLERANCE"] == "300 s"
    assert report.pop("database").startswith("sqlite:///")
    assert report == {
        "source": "procore",
        "path": "/webhooks/procore",
        "tables": "missing: procore_webhook_event, procore_webhook_receipt,"
        " procore_webhook_journal",
        "subscribers": [],
        "errors": [
            "The inbox cannot be used: missing tables: procore_webhook_event,"
            " procore_webhook_receipt, procore_webhook_journal; create them with your"
            " migrations (flask db"
            " migrate, flask db upgrade) or, if you have none, with the command"
            " init-db."
        ],
        "warnings": [
            "There are no subscribers: events are recorded and nothing is done."
        ],
    }


def test_init_db_makes_the_tables_on_every_database(
    make_app: MakeApp, database_url: str
) -> None:
    db = SQLAlchemy()
    app = make_app(SQLALCHEMY_DATABASE_URI=database_url)
    db.init_app(app)
    mounted(app, ProcoreWebhooks(db=db))
    assert "created procore_webhook_event" in run(app, "init-db").output
    assert "nothing was missing" in run(app, "init-db").output
    with app.app_context():
        made = sa.inspect(db.engine).get_table_names()
        db.engine.dispose()
    assert set(made) == {
        "procore_webhook_event",
        "procore_webhook_receipt",
        "procore_webhook_journal",
    }


def test_secrets_are_strong_differ_and_are_accepted_as_they_are(app: Flask) -> None:
    made = [run(app, "secret").output.strip() for _ in range(2)]
    assert made[0] != made[1]
    for secret in made:
        config = {"PROCORE_WEBHOOK_SECRET": secret}
        (kept,) = read_settings(config, "PROCORE_WEBHOOK_").secrets
        assert kept == secret.encode() and len(kept) >= 43


# trigger: foreign receivers


@dataclass
class Got:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """Somebody else's receiver: keeps what it gets and answers as it is told."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    got: list[Got] = field(default_factory=list)
    url: str = ""
    #: Answers instead of the usual, on the bare connection.
    answer: Callable[[BaseHTTPRequestHandler], None] | None = None

    def json(self) -> list[dict[str, Any]]:
        return [json.loads(got.body) for got in self.got]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving(Receiver()) as receiver:
        yield receiver


@contextmanager
def receiving(receiver: Receiver, tls: ssl.SSLContext | None = None) -> Iterator[Any]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.got.append(Got(self.path, dict(self.headers), body))
            if receiver.answer:
                receiver.answer(self)
                return
            self.send_response(receiver.status)
            for name, value in receiver.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(receiver.body)

        def log_message(self, *args: object) -> None: ...

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *args: object) -> None: ...

    with Quiet(("127.0.0.1", 0), Handler) as server:
        receiver.url = f"http://127.0.0.1:{server.server_port}"
        if tls:
            receiver.url = f"https://localhost:{server.server_port}"
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield receiver
        server.shutdown()
        thread.join()


def hmac_sha256(key: str, got: Got, kind: str) -> str:
    """Computed apart from the package, as a receiver in another language would."""
    stamp = got.headers[f"X-{kind}-Timestamp"].encode()
    return hmac.new(key.encode(), stamp + b"." + got.body, hashlib.sha256).hexdigest()


@pytest.mark.parametrize("format", ["signed", "v2", "v3", "v4"])
def test_trigger_signs_procores_formats(
    app: Flask, receiver: Receiver, format: str
) -> None:
    run(app, "trigger", "RFIs.update", "--format", format, "--url", receiver.url)
    (got,) = receiver.got
    expected = hmac_sha256(SECRET, got, "Procore")
    assert got.headers["X-Procore-Signature"] == expected
    assert got.headers["Content-Type"] == "application/json"
    assert abs(int(got.headers["X-Procore-Timestamp"]) - time.time()) < 60
    sent = json.loads(got.body)
    assert sent.get("type", "RFIs.update") == "RFIs.update"
    assert sent.get("api_version", sent.get("payload_version")) == {
        "signed": None,
        "v2": "v2.0",
        "v3": "v3.0",
        "v4": "v4.0",
    }.get(format)


def test_trigger_signs_prudras_format_with_prudras_headers(
    app: Flask, receiver: Receiver
) -> None:
    run(app, "trigger", "vault.opened", "--format", "prudra", "--url", receiver.url)
    (got,) = receiver.got
    digest = hmac_sha256(SECRET, got, "Prudra")
    assert got.headers["X-Prudra-Signature"] == f"sha256={digest}"
    assert set(receiver.json()[0]) == {"type", "eventId", "payload"}


def test_trigger_sends_what_an_endpoint_without_a_secret_gets_from_procore(
    make_app: MakeApp, receiver: Receiver
) -> None:
    value = "Token näive ☃"
    app = make_app(PROCORE_WEBHOOK_SECRET=None, PROCORE_WEBHOOK_AUTHORIZATION=value)
    run(mounted(app), "trigger", "RFIs.create", "--url", receiver.url)
    (got,) = receiver.got
    assert got.headers["Authorization"].encode("latin-1") == value.encode()
    assert not [name for name in got.headers if "Signature" in name]
    assert receiver.json()[0]["payload_version"] == "v4.0"


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_trigger_succeeds_for_any_2xx(
    app: Flask, receiver: Receiver, status: int
) -> None:
    receiver.status, receiver.headers = status, {"Location": "/made"}
    receiver.body = b"" if status == 204 else b"thanks"
    shown = run(app, "trigger", "a.b", "--url", receiver.url).output
    assert re.fullmatch(rf"{status}  \d+ ms(  thanks)?\n", shown)


@pytest.mark.parametrize("status", [400, 401, 404, 410, 429, 500, 503])
def test_trigger_fails_for_anything_else(
    app: Flask, receiver: Receiver, status: int
) -> None:
    receiver.status, receiver.body = status, b'{"why": "because"}'
    shown = run(app, "trigger", "a.b", "--url", receiver.url, ok=False).output
    assert re.match(rf'{status}  \d+ ms  {{"why": "because"}}\n', shown)
    assert "Error: not delivered" in shown
    assert ("receives at /webhooks/procore" in shown) is False
    assert ("receive at /webhooks/procore" in shown) is (status == 404)


def test_trigger_does_not_follow_a_redirect(app: Flask, receiver: Receiver) -> None:
    """To the sender it is a failed delivery, so it must look like one here."""
    receiver.status, receiver.headers = 308, {"Location": "/hooks/"}
    shown = run(app, "trigger", "a.b", "--url", receiver.url, ok=False).output
    assert shown.startswith("308") and "redirects to /hooks/" in shown
    assert len(receiver.got) == 1


def test_an_answer_cannot_steer_the_terminal_or_fill_it(
    app: Flask, receiver: Receiver
) -> None:
    receiver.status = 500
    receiver.body = (
        b"\x1b[2J\x1b]0;owned\x07\xff\x9b31m\r\n200  1 ms  fine" + b"x" * 10**6
    )
    shown = run(
        app, "trigger", "a.b", "--url", receiver.url, ok=False, color=True
    ).output
    own_colours = re.sub(r"\x1b\[(31|0)m", "", shown)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", own_colours)
    assert r"\x1b[2J\x1b]0;owned\x07" in shown and "200 1 ms" in shown
    assert not re.search("^200", own_colours, re.MULTILINE)
    assert len(shown) < 1000


def test_a_terminal_of_few_letters_is_no_reason_to_fail(
    app: Flask, receiver: Receiver
) -> None:
    receiver.body = "angenommen ✓".encode()
    runner = app.test_cli_runner(charset="cp1252")
    args = ["procore-webhooks", "trigger", "a.b", "--url", receiver.url]
    result = runner.invoke(args=args)
    assert result.exit_code == 0, result.output
    assert r"angenommen \u2713" in result.output


def silent(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.settimeout(20)
    handler.rfile.read(1)  # ends when the client gives up


def dripping(handler: BaseHTTPRequestHandler) -> None:
    """A byte now and then, the whole answer within 10 s."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
    for _ in range(100):
        handler.wfile.write(b"x")
        time.sleep(0.1)


def dripping_headers(handler: BaseHTTPRequestHandler) -> None:
    for char in "HTTP/1.1 200 OK\r\nX-Filler: " + "x" * 70 + "\r\n\r\n":
        handler.wfile.write(char.encode())
        time.sleep(0.1)


@pytest.mark.parametrize("answer", [silent, dripping, dripping_headers])
def test_trigger_gives_up_when_the_sender_would(
    app: Flask, receiver: Receiver, answer: Callable[[BaseHTTPRequestHandler], None]
) -> None:
    receiver.answer = answer
    more = ["--timeout", 0.4, "--url", receiver.url]
    shown = run(app, "trigger", "a.b", *more, ok=False).output
    assert shown.startswith("---") and "no answer: not complete within 0.4 s" in shown


def closing_at_once(handler: BaseHTTPRequestHandler) -> None: ...


def not_http(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"220 smtp.example.com ESMTP\r\n")


def cut_short(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nab"
    )


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (closing_at_once, "the connection was closed without one"),
        (not_http, "not HTTP; does the port want https://?"),
        (cut_short, "IncompleteRead"),
    ],
)
def test_a_receiver_that_breaks_off_is_told_in_a_sentence(
    app: Flask,
    receiver: Receiver,
    answer: Callable[[BaseHTTPRequestHandler], None],
    words: str,
) -> None:
    receiver.answer = answer
    shown = run(app, "trigger", "a.b", "--url", receiver.url, ok=False).output
    assert shown.startswith("---") and words in shown


def test_a_closed_port_asks_whether_the_receiver_runs(app: Flask) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    shown = run(app, "trigger", "a.b", "--url", url, ok=False).output
    assert "connection refused; is the receiver running?" in shown


def test_a_plain_port_asks_for_http(app: Flask, receiver: Receiver) -> None:
    url = receiver.url.replace("http:", "https:")
    shown = run(app, "trigger", "a.b", "--url", url, ok=False).output
    assert "does not speak TLS; does it want http://?" in shown


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of localhost, self-signed, with its key in the same file."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl to make a certificate")
    file = tmp_path / "localhost.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -days 2"
    name = ["-addext", "subjectAltName=DNS:localhost"]
    made = subprocess.run(
        [*command.split(), *name, "-keyout", "-", "-out", "-"],
        capture_output=True,
        check=True,
    )
    file.write_bytes(made.stdout)
    return file


def test_https_needs_a_certificate_that_is_trusted(
    app: Flask, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with receiving(Receiver(body=b"safe"), tls) as receiver:
        trigger = ["trigger", "a.b", "--url", receiver.url]
        assert "self-signed certificate" in run(app, *trigger, ok=False).output.replace(
            "self signed", "self-signed"
        )
        assert not receiver.got
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert "safe" in run(app, *trigger).output
        receiver.answer = dripping
        shown = run(app, *trigger, "--timeout", 0.4, ok=False).output
        assert "not complete within 0.4 s" in shown


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:5000/webhooks/procore",
        "ftp://localhost/",
        "http:///path",
        "http://localhost:99999/",
        "http://localhost:0/",
        "http://localhost:port/",
        "http://[::1/",
        "http://me:password@localhost/",
    ],
)
def test_a_url_that_cannot_be_posted_to_is_a_wrong_option(app: Flask, url: str) -> None:
    result = run(app, "trigger", "a.b", "--url", url, ok=False)
    assert result.exit_code == 2 and "'--url'" in result.output


def test_paths_and_queries_arrive_as_browsers_send_them(
    app: Flask, receiver: Receiver
) -> None:
    url = f"{receiver.url}/für uns?key=a b&q=%20#top"
    run(app, "trigger", "a.b", "--url", url)
    assert receiver.got[0].path == "/f%C3%BCr%20uns?key=a%20b&q=%20"


# trigger: options


def test_data_sets_values_whatever_their_names(app: Flask, receiver: Receiver) -> None:
    data = {"resource_id": "7", "type": "x.y", "format": 1, "fields": 2, "id": "mine"}
    more = ["--data", json.dumps(data), "--url", receiver.url]
    run(app, "trigger", "RFIs.update", *more)
    (sent,) = receiver.json()
    assert (sent["id"], sent["type"]) == ("mine", "x.y")
    assert sent["data"]["resource_id"] == "7"
    assert (sent["data"]["format"], sent["data"]["fields"]) == (1, 2)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--data", "{"),
        ("--data", "[1]"),
        ("--data", '"text"'),
        ("--data", "[" * 100_000),
        ("--file", "/nonexistent/file"),
        ("--count", "0"),
        ("--repeat", "-1"),
        ("--timeout", "0"),
        ("--timestamp", "yesterday"),
        ("--timestamp", "nan"),
        ("--timestamp", ""),
        ("--header", "no colon"),
        ("--header", "Na me: value"),
        ("--header", "Name: value\r\nX-Other: 1"),
        ("--secret", ""),
        ("--authorization", "  "),
        ("--authorization", "Bearer a\nb"),
        ("--format", "v1"),
    ],
)
def test_a_wrong_option_is_named(
    app: Flask, receiver: Receiver, option: str, value: str
) -> None:
    more = [option, value, "--url", receiver.url]
    result = run(app, "trigger", "a.b", *more, ok=False)
    assert result.exit_code == 2 and option in result.output
    assert not receiver.got


def test_a_file_is_sent_byte_for_byte(
    app: Flask, receiver: Receiver, tmp_path: Path
) -> None:
    body = bytes(range(256)) + b"\r\n"
    (tmp_path / "body").write_bytes(body)
    run(app, "trigger", "--file", tmp_path / "body", "--url", receiver.url)
    run(app, "trigger", "--file", "-", "--url", receiver.url, input=body)
    run(app, "trigger", "--file", "-", "--url", receiver.url, input=b"")
    assert [got.body for got in receiver.got] == [body, body, b""]
    for got in receiver.got:
        expected = hmac_sha256(SECRET, got, "Procore")
        assert got.headers["X-Procore-Signature"] == expected


@pytest.mark.parametrize("more", [["--count", 2], ["--data", "{}"]])
def test_options_that_a_file_leaves_no_room_for_are_refused(
    app: Flask, receiver: Receiver, more: list[Any]
) -> None:
    command = ["trigger", "--file", "-", *more, "--url", receiver.url]
    assert "--file is sent as it is" in run(app, *command, ok=False, input=b"x").output


def test_nothing_to_send_asks_for_a_type(app: Flask, receiver: Receiver) -> None:
    shown = run(app, "trigger", "--url", receiver.url, ok=False).output
    assert "Give a TYPE" in shown


def test_count_makes_events_and_repeat_makes_copies(
    app: Flask, receiver: Receiver
) -> None:
    more = ["--count", 3, "--repeat", 2, "--url", receiver.url]
    shown = run(app, "trigger", "a.b", *more).output
    ids = [sent["id"] for sent in receiver.json()]
    assert len(ids) == len(shown.splitlines()) == 6
    assert ids[::2] == ids[1::2] and len(set(ids)) == 3


def test_one_refusal_among_many_fails_the_command(
    app: Flask, receiver: Receiver
) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(500 if len(receiver.got) == 2 else 200)
        handler.end_headers()

    receiver.answer = answer
    more = ["--count", 3, "--url", receiver.url]
    shown = run(app, "trigger", "a.b", *more, ok=False).output
    assert len(receiver.got) == 3, "the others are sent all the same"
    assert "1 of 3 not delivered" in shown


def test_another_secret_is_used_alone_and_never_shown(
    make_app: MakeApp, receiver: Receiver
) -> None:
    """The app's own values are not for a receiver that has others."""
    app = mounted(make_app(PROCORE_WEBHOOK_AUTHORIZATION=AUTHORIZATION))
    env = {"PROCORE_WEBHOOK_TRIGGER_SECRET": "theirs ☃"}
    shown = run(app, "trigger", "a.b", "--url", receiver.url, env=env).output
    (got,) = receiver.got
    expected = hmac_sha256("theirs ☃", got, "Procore")
    assert got.headers["X-Procore-Signature"] == expected
    assert "Authorization" not in got.headers and "theirs" not in shown
    assert "theirs" not in run(app, "trigger", "--help", env=env).output


def test_another_authorization_comes_from_the_environment(
    app: Flask, receiver: Receiver
) -> None:
    env = {"PROCORE_WEBHOOK_TRIGGER_AUTHORIZATION": "Bearer theirs"}
    run(app, "trigger", "a.b", "--url", receiver.url, env=env)
    (got,) = receiver.got
    assert got.headers["Authorization"] == "Bearer theirs"
    assert not [name for name in got.headers if "Signature" in name]


def test_an_empty_variable_counts_as_none(app: Flask, receiver: Receiver) -> None:
    env = {"PROCORE_WEBHOOK_TRIGGER_SECRET": ""}
    run(app, "trigger", "a.b", "--url", receiver.url, env=env)
    expected = hmac_sha256(SECRET, receiver.got[0], "Procore")
    assert receiver.got[0].headers["X-Procore-Signature"] == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("1700000000", 1700000000),
        ("1700000000123", 1700000000123),
        ("2023-11-14T22:13:20Z", 1700000000),
        ("2023-11-14T23:13:20+01:00", 1700000000),
    ],
)
def test_another_time_is_signed_as_given(
    app: Flask, receiver: Receiver, given: str, expected: int
) -> None:
    run(app, "trigger", "a.b", "--timestamp", given, "--url", receiver.url)
    (got,) = receiver.got
    assert got.headers["X-Procore-Timestamp"] == str(expected)
    signature = hmac_sha256(SECRET, got, "Procore")
    assert got.headers["X-Procore-Signature"] == signature


@pytest.mark.parametrize("shift", [-400, 400])
def test_a_signed_number_is_a_time_from_now(
    app: Flask, receiver: Receiver, shift: int
) -> None:
    run(app, "trigger", "a.b", "--timestamp", f"{shift:+}", "--url", receiver.url)
    stamp = int(receiver.got[0].headers["X-Procore-Timestamp"])
    assert abs(stamp - shift - time.time()) < 60


def test_headers_are_added_replaced_and_left_out(
    app: Flask, receiver: Receiver
) -> None:
    more = ["-H", "x-procore-signature:", "-H", "Content-type: text/plain"]
    more += ["-H", "X-Tunnel: ☃", "--url", receiver.url]
    run(app, "trigger", "a.b", *more)
    got = [(name.lower(), value) for name, value in receiver.got[0].headers.items()]
    assert "x-procore-signature" not in dict(got)
    assert [value for name, value in got if name == "content-type"] == ["text/plain"]
    assert dict(got)["x-tunnel"].encode("latin-1") == "☃".encode()


@pytest.fixture
def tenants(make_app: MakeApp) -> Flask:
    """Three endpoints, each with a secret that is its own name."""
    names = {"ACME_SECRET": "acme", "BOLT_SECRET": "bolt", "PRUDRA_SECRET": "prudra"}
    return mounted(
        make_app(**names),
        ProcoreWebhooks("acme", url_prefix="/hooks", config_prefix="ACME_"),
        ProcoreWebhooks("bolt", url_prefix="/bolt/hooks", config_prefix="BOLT_"),
        PrudraWebhooks("prudra", config_prefix="PRUDRA_"),
    )


@pytest.mark.parametrize(
    ("path", "more", "secret"),
    [
        ("/hooks", [], "acme"),
        ("/hooks/", [], "acme"),
        ("/behind/a/proxy/hooks", [], "acme"),
        ("/bolt/hooks", [], "bolt"),
        ("/webhooks/prudra", [], "prudra"),
        ("/elsewhere", ["--endpoint", "bolt"], "bolt"),
        ("/hooks", ["--endpoint", "bolt"], "bolt"),
        ("/elsewhere", ["--format", "prudra"], "prudra"),
    ],
)
def test_trigger_signs_for_the_endpoint_that_is_meant(
    tenants: Flask, receiver: Receiver, path: str, more: list[str], secret: str
) -> None:
    run(tenants, "trigger", "a.b", "--url", receiver.url + path, *more)
    (got,) = receiver.got
    kind = "Prudra" if secret == "prudra" else "Procore"
    digest = hmac_sha256(secret, got, kind)
    assert got.headers[f"X-{kind}-Signature"].removeprefix("sha256=") == digest


def test_trigger_does_not_guess_whose_secret_is_meant(
    tenants: Flask, receiver: Receiver
) -> None:
    url = f"{receiver.url}/elsewhere"
    shown = run(tenants, "trigger", "a.b", "--url", url, ok=False).output
    assert "--endpoint" in shown and not receiver.got
    run(tenants, "trigger", "a.b", "--url", url, "--secret", "theirs")
    assert len(receiver.got) == 1, "nobody's secret of ours is needed"


# trigger: our own receiver, under a real server


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("running")
    (folder / "app.py").write_text(
        f"""
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks

app = Flask(__name__)
app.config["PROCORE_WEBHOOK_SECRET"] = {SECRET!r}
app.config["PROCORE_WEBHOOK_DISPATCH"] = "inline"
webhooks = ProcoreWebhooks()
app.register_blueprint(webhooks)

@webhooks.on("Broken")
def fail(event):
    raise RuntimeError("boom")
"""
    )
    with serve("app:app", folder=folder) as server:
        yield server


@pytest.mark.parametrize(
    ("arguments", "answer", "reason"),
    [
        ("RFIs.update", '200 {"received": true}', ""),
        ("RFIs.update --format v2", '200 {"received": true}', ""),
        ("RFIs.update --format v4", '200 {"received": true}', ""),
        ("Broken.create", '500 {"error": "Processing failed"}', "a subscriber failed"),
        (
            "x --secret forged",
            '401 {"error": "Invalid signature"}',
            "no secret matches",
        ),
        ("x --timestamp -400", '401 {"error": "Invalid signature"}', "too old"),
        ("x --timestamp +400", '401 {"error": "Invalid signature"}', "too new"),
        ("x --timestamp 1700000000000", '401 {"error"', "in milliseconds"),
        ("x --format prudra", '401 {"error"', "X-Procore-Signature is missing"),
        ("x -H X-Procore-Timestamp:", '401 {"error"', "Timestamp is missing"),
    ],
)
def test_trigger_tries_everything_on_a_running_app(
    app: Flask, running: Server, arguments: str, answer: str, reason: str
) -> None:
    url = f"{running.url}/webhooks/procore"
    command = ["trigger", *arguments.split(), "--url", url]
    shown = run(app, *command, ok=answer.startswith("200")).output
    assert re.sub(r"  \d+ ms  ", " ", shown).startswith(answer)
    assert reason in running.output()


def test_copies_are_duplicates_and_a_text_is_quarantined(
    app: Flask, running: Server
) -> None:
    url = f"{running.url}/webhooks/procore"
    shown = run(app, "trigger", "a.b", "--repeat", 2, "--url", url).output
    assert "duplicate" not in shown.splitlines()[0]
    assert '"duplicate": true' in shown.splitlines()[1]
    shown = run(app, "trigger", "--file", "-", "--url", url, input=b"text").output
    assert '"quarantined": true' in shown


def test_a_wrong_path_is_answered_with_the_right_one(
    app: Flask, running: Server
) -> None:
    url = f"{running.url}/webhook/procore"
    shown = run(app, "trigger", "a.b", "--url", url, ok=False).output
    assert shown.startswith("404")
    assert "this app would receive at /webhooks/procore" in shown


def test_the_commands_work_from_a_shell(tmp_path: Path) -> None:
    """With a real terminal's environment, logging set up by nobody, and pipes."""
    (tmp_path / "app.py").write_text(
        f"""
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks

def create_app():
    app = Flask(__name__)
    app.config["PROCORE_WEBHOOK_SECRET"] = {SECRET!r}
    app.register_blueprint(ProcoreWebhooks())
    return app
"""
    )
    flask = [sys.executable, "-m", "flask", "--app", "app", "procore-webhooks"]

    def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*flask, *arguments], cwd=tmp_path, capture_output=True, text=True
        )

    checked = shell("check")
    assert checked.returncode == 0 and "Deliveries can come in." in checked.stdout
    assert checked.stderr == "", "the knock stays out of the log"
    refused = shell("trigger", "a.b", "--url", "http://127.0.0.1:1/")
    assert refused.returncode == 1
    assert refused.stdout.startswith("---") and "Traceback" not in refused.stderr
    assert shell("list").stdout == "No events.\n"


# verify


def captured(
    tmp_path: Path, body: bytes = b'{"id": "1", "type": "RFIs.update"}'
) -> Path:
    file = tmp_path / "body"
    file.write_bytes(body)
    return file


def lines(headers: dict[str, str]) -> list[str]:
    return [part for name in headers for part in ("-H", f"{name}: {headers[name]}")]


def test_verify_shows_the_event_of_an_authentic_request(
    app: Flask, tmp_path: Path
) -> None:
    file = captured(tmp_path)
    shown = run(app, "verify", file, *lines(sign(file.read_bytes(), SECRET))).output
    assert "procore_webhooks: authentic" in shown
    assert re.search(r"type +RFIs\.update\n", shown)
    assert re.search(r"id +1\n", shown)


@pytest.mark.parametrize(
    ("timestamp", "at", "reason"),
    [
        (1700000000, "1700000412", "clock differs by 412 s (timestamp too old"),
        (1700000000, "1699999000", "clock differs by 1000 s (timestamp too new"),
        (1700000000, "2023-11-14T22:23:20Z", "clock differs by 600 s"),
        (1700000000000, "1700000000", "timestamp is in milliseconds"),
        ("soon", "1700000000", "X-Procore-Timestamp is not in Unix seconds"),
    ],
)
def test_verify_says_what_is_wrong_with_the_time(
    app: Flask, tmp_path: Path, timestamp: int | str, at: str, reason: str
) -> None:
    file = captured(tmp_path)
    headers = lines(sign(file.read_bytes(), SECRET, timestamp=timestamp))
    shown = run(app, "verify", file, *headers, "--at", at, ok=False).output
    assert f"procore_webhooks: 401, {reason}" in shown


def test_verify_tells_an_old_capture_from_a_wrong_secret(
    app: Flask, tmp_path: Path
) -> None:
    file = captured(tmp_path)
    old = lines(sign(file.read_bytes(), SECRET, timestamp=1700000000))
    shown = run(app, "verify", file, *old, ok=False).output
    assert "It was authentic when it was signed; --at says" in shown
    run(app, "verify", file, *old, "--at", 1700000000.9)
    wrong = lines(sign(file.read_bytes(), "wrong", timestamp=1700000000))
    shown = run(app, "verify", file, *wrong, ok=False).output
    assert "no secret matches" in shown and "authentic" not in shown


@pytest.mark.parametrize(
    ("sent", "saved", "hint"),
    [
        (b"{}", b"{}\n", "without the line break"),
        (b"{}", b"{}\r\n", "without the line break"),
        (b"{}\n", b"{}", "with a line break"),
    ],
)
def test_verify_notices_the_line_break_of_an_editor(
    app: Flask, tmp_path: Path, sent: bytes, saved: bytes, hint: str
) -> None:
    headers = lines(sign(sent, SECRET))
    shown = run(app, "verify", captured(tmp_path, saved), *headers, ok=False).output
    assert "no secret matches" in shown and hint in shown


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ([], "X-Procore-Signature is missing"),
        (["-H", "X-Procore-Signature: abc"], "is not one SHA-256 in hex"),
        (["-H", "x-procore-signature:" + "0" * 64], "X-Procore-Timestamp is missing"),
    ],
)
def test_verify_names_the_header_that_fails(
    app: Flask, tmp_path: Path, more: list[str], reason: str
) -> None:
    assert reason in run(app, "verify", captured(tmp_path), *more, ok=False).output


def test_verify_joins_repeated_headers_as_servers_do(
    app: Flask, tmp_path: Path
) -> None:
    """The request was refused for it; the first value alone would pass."""
    file = captured(tmp_path)
    once = lines(sign(file.read_bytes(), SECRET))
    shown = run(app, "verify", file, *once, *once, ok=False).output
    assert "X-Procore-Signature is not one SHA-256 in hex" in shown


def test_verify_reads_headers_from_a_file_whatever_stands_around_them(
    app: Flask, tmp_path: Path
) -> None:
    file, headers = captured(tmp_path), tmp_path / "headers"
    signed = sign(file.read_bytes(), SECRET)
    raw = ["POST /webhooks/procore HTTP/1.1", "Host: a:1", "X-Other: fünf", ""]
    raw += [f"{name.lower()}:{value}  " for name, value in signed.items()]
    headers.write_bytes("\r\n".join(raw).encode("latin-1"))
    run(app, "verify", file, "--headers", headers)
    body = file.read_bytes()
    run(app, "verify", "-", "--headers", headers, input=body)


def test_verify_compares_authorization_whole(make_app: MakeApp, tmp_path: Path) -> None:
    value = "Bearer näive ☃"
    app = make_app(PROCORE_WEBHOOK_SECRET=None, PROCORE_WEBHOOK_AUTHORIZATION=value)
    file = captured(tmp_path)
    run(mounted(app), "verify", file, "-H", f"Authorization: {value}")
    wrong = ["-H", f"Authorization: {value.removeprefix('Bearer ')}"]
    shown = run(app, "verify", file, *wrong, ok=False).output
    assert "Authorization is none of the configured values" in shown
    assert "näive" not in shown


def test_verify_knows_the_size_limit(make_app: MakeApp, tmp_path: Path) -> None:
    app = mounted(make_app(PROCORE_WEBHOOK_MAX_BYTES=10))
    file = captured(tmp_path, b"x" * 11)
    headers = lines(sign(file.read_bytes(), SECRET))
    assert "413, the body is over MAX_BYTES (10)" in (
        run(app, "verify", file, *headers, ok=False).output
    )


def test_verify_says_that_an_authentic_text_is_quarantined(
    app: Flask, tmp_path: Path
) -> None:
    file = captured(tmp_path, b"\x1b[31m not JSON")
    shown = run(app, "verify", file, *lines(sign(file.read_bytes(), SECRET))).output
    assert "authentic" in shown and "quarantined: the body is not JSON" in shown


def test_verify_passes_when_one_of_the_endpoints_accepts(
    tenants: Flask, tmp_path: Path
) -> None:
    file = captured(tmp_path)
    headers = lines(sign(file.read_bytes(), "bolt"))
    shown = run(tenants, "verify", file, *headers).output
    assert "acme: 401, no secret matches" in shown and "bolt: authentic" in shown
    assert "prudra: 401, X-Prudra-Signature is missing" in shown
    run(tenants, "verify", file, *headers, "--endpoint", "acme", ok=False)
    prudra = lines(sign(file.read_bytes(), "prudra", source=PRUDRA))
    assert "prudra: authentic" in run(tenants, "verify", file, *prudra).output


# list, show, stats


def send(app: Flask, type: str = "RFIs.update", **fields: Any) -> str:
    made = payload(type, **fields)
    deliver(app.test_client(), made)
    return str(made["id"])


def test_list_shows_the_newest_first_in_columns(app: Flask, clock: Clock) -> None:
    ids = []
    for number in range(3):
        clock.forward(60)
        ids.append(send(app, f"Type{number}.update"))
    deliver(app.test_client(), b"not JSON")
    header, unreadable, *rows = run(app, "list").output.splitlines()
    assert header.split()[:3] == ["id", "status", "attempts"]
    assert "dead" in unreadable and "(unreadable)" in unreadable
    assert [row.split()[-1] for row in rows] == ids[::-1]
    starts = {row.index("Type") for row in rows} | {header.index("type")}
    assert len(starts) == 1, "columns stand under their names"
    assert all(f"{clock():%Y-%m-%d}" in row for row in rows)


def test_list_narrows_by_status_type_and_number(app: Flask, clock: Clock) -> None:
    first = send(app, "A.create")
    deliver(app.test_client(), b"not JSON")
    clock.forward(1)
    send(app, "B.create")
    second = send(app, "A.create")

    def listed(*more: object) -> list[str]:
        rows = json.loads(run(app, "list", "--json", *more).output)
        return [row["event_id"] for row in rows]

    assert len(listed()) == 4
    assert listed("--type", "A.create") == [second, first]
    assert listed("--type", "A.create", "--limit", 1) == [second]
    assert len(listed("--status", "dead")) == 1
    assert listed("--status", "running") == []
    assert "No events." in run(app, "list", "--status", "running").output


def test_list_of_several_endpoints_says_whose_event_it_is(
    make_app: MakeApp, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/shared.db"
    app = make_app(SQLALCHEMY_DATABASE_URI=uri, BOLT_SECRET=SECRET)
    bolt = ProcoreWebhooks("bolt", url_prefix="/bolt", config_prefix="BOLT_")
    mounted(app, ProcoreWebhooks("acme"), bolt)
    for name in ("acme", "bolt", "acme"):
        deliver(app.test_client(), payload("RFIs.update"), endpoint=name)
    listed = run(app, "list").output.splitlines()[1:]
    assert [row.split()[-1] for row in listed] == ["acme", "bolt", "acme"]
    assert len(run(app, "list", "--endpoint", "bolt").output.splitlines()) == 2
    assert len(json.loads(run(app, "list", "--limit", 2, "--json").output)) == 2


NASTY = "a\x1b[31mb\u202ec\nd\r\n2  done"


def test_what_senders_write_cannot_forge_rows_or_steer_the_terminal(
    app: Flask, webhooks: ProcoreWebhooks
) -> None:
    @webhooks.on()
    def fail(event: object) -> None:
        raise RuntimeError(f"\x1b[31m line 1\nstatus  done{NASTY}")

    deliver(app.test_client(), payload(NASTY, id="1", resource_id=NASTY))
    listed = run(app, "list", color=True).output
    assert len(listed.splitlines()) == 2
    shown = run(app, "show", "1", color=True).output
    for output in (listed, shown, run(app, "stats", color=True).output):
        assert "\u202e" not in output and r"\u202e" in output
        bold = output.replace("\x1b[1m", "").replace("\x1b[0m", "")
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", bold)
    names = re.findall(r"^\S+", shown, re.MULTILINE)
    assert names.count("status") == 1, "further lines are indented"


def test_list_for_machines_has_every_column_but_the_body(app: Flask) -> None:
    send(app, created=1700000000)
    (row,) = json.loads(run(app, "list", "--json").output)
    times = [row.pop(name) for name in ("received_at", "finished_at")]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", time) for time in times)
    assert row.pop("event_id").startswith("evt_")
    assert row == {
        "id": 1,
        "endpoint": "procore_webhooks",
        "type": "RFIs.update",
        "resource_type": "RFIs",
        "reason": "update",
        "resource_id": "4001",
        "company_id": "2001",
        "project_id": "3001",
        "user_id": "1001",
        "event_at": "2023-11-14T22:13:20Z",
        "status": "done",
        "attempts": 1,
        "due_at": None,
        "error": None,
        "repeats": 0,
        "conflicts": 0,
    }


def test_show_finds_an_event_by_either_id(app: Flask) -> None:
    send(app)
    event_id = send(app)
    for name in (event_id, "2"):
        shown = run(app, "show", name).output
        assert re.search(rf"^event_id +{event_id}$", shown, re.MULTILINE)
        assert json.loads(shown.splitlines()[-1])["id"] == event_id


def test_show_prefers_the_senders_id_to_a_row_id(app: Flask) -> None:
    send(app, id="2")
    send(app, id="1")
    (row,) = json.loads(run(app, "show", "1", "--json").output)
    assert (row["id"], row["event_id"]) == (2, "1")


@pytest.mark.parametrize("long", ["x" * 300, "mit Leerzeichen", "ünïcode"])
def test_show_finds_an_event_by_an_id_that_is_kept_as_a_digest(
    app: Flask, long: str
) -> None:
    send(app, id=long)
    (row,) = json.loads(run(app, "show", long, "--json").output)
    assert row["event_id"].startswith("sha256:")
    assert len(json.loads(run(app, "show", row["event_id"], "--json").output)) == 1


@pytest.fixture
def anywhere(make_app: MakeApp, database_url: str) -> Iterator[Flask]:
    """An app with an inbox of its own, on each kind of database."""
    app = mounted(make_app(PROCORE_WEBHOOK_DATABASE_URI=database_url))
    yield app
    for endpoint in endpoints(app).values():
        endpoint.inbox.database.engine.dispose()


@pytest.mark.parametrize(
    "nobody", ["ü", "99999999999999999999", "-1", "", "\udcff", "'"]
)
def test_show_says_that_there_is_no_such_event_on_every_database(
    anywhere: Flask, nobody: str
) -> None:
    send(anywhere)
    assert "There is no event" in run(anywhere, "show", "--", nobody, ok=False).output


def test_show_tells_receipts_error_and_conflicts(
    app: Flask, webhooks: ProcoreWebhooks
) -> None:
    webhooks.on(name="easy")(lambda event: None)

    @webhooks.on(name="hard")
    def fail(event: object) -> None:
        raise RetryLater(60)

    send(app, id="1")
    send(app, id="1", resource_id=7)
    shown = run(app, "show", "1").output
    assert re.search(r"^receipt +easy done \d{4}", shown, re.MULTILINE)
    assert re.search(r"^error +hard: retry after 60 s$", shown, re.MULTILINE)
    assert re.search(r"^conflicts +1$", shown, re.MULTILINE)
    (row,) = json.loads(run(app, "show", "1", "--json").output)
    assert [r["subscriber"] for r in row["receipts"]] == ["easy"]
    assert (row["status"], row["attempts"], row["conflicts"]) == ("pending", 2, 1)
    assert "lease" not in row


def test_show_gives_the_exact_bytes_of_a_body(app: Flask) -> None:
    body = b"\xff\x00\r\n\x1b[31m"
    deliver(app.test_client(), body)
    assert run(app, "show", "1", "--body").stdout_bytes == body
    (row,) = json.loads(run(app, "show", "1", "--json").output)
    assert (row["body"], row["body_base64"]) == (None, "/wANChtbMzFt")
    assert r"\xff\x00\r" in run(app, "show", "1", color=True).output
    send(app, id="text")
    (row,) = json.loads(run(app, "show", "text", "--json").output)
    assert json.loads(row["body"])["id"] == "text" and row["body_base64"] is None


def test_a_shown_body_can_be_verified_and_sent_again(
    app: Flask, receiver: Receiver, tmp_path: Path
) -> None:
    send(app, id="again")
    body = run(app, "show", "again", "--body").stdout_bytes
    run(app, "trigger", "--file", "-", "--url", receiver.url, input=body)
    assert receiver.got[0].body == body
    assert receiver.json()[0]["id"] == "again"


def test_stats_count_by_status_and_type(
    app: Flask, webhooks: ProcoreWebhooks, endpoint: Endpoint, clock: Clock
) -> None:
    @webhooks.on("Hard")
    def fail(event: object) -> None:
        raise RetryLater(10)

    for resource_id in (7, 7, 8):
        send(app, id="one", created=1700000000, resource_id=resource_id)
    send(app, "Hard.create")
    deliver(app.test_client(), b"not JSON")
    shown = [" ".join(row.split()) for row in run(app, "stats").output.splitlines()]
    assert shown == [
        "procore_webhooks",
        "dead (unreadable) 1",
        "done RFIs.update 1",
        "pending Hard.create 1",
        "attempts: 2",
        "repeats: 2",
        "conflicts: 1",
        "oldest due: -",
    ]
    clock.forward(70)
    (numbers,) = json.loads(run(app, "stats", "--json").output).values()
    assert numbers.pop("events")[0] == {"status": "dead", "type": "", "events": 1}
    assert numbers == {
        "attempts": 2,
        "repeats": 2,
        "conflicts": 1,
        "oldest_due_seconds": 60.0,
        "paused": False,
    }


def test_stats_of_an_empty_inbox(app: Flask) -> None:
    assert json.loads(run(app, "stats", "--json").output) == {
        "procore_webhooks": {
            "events": [],
            "attempts": 0,
            "repeats": 0,
            "conflicts": 0,
            "oldest_due_seconds": None,
            "paused": False,
        }
    }
    assert "oldest due: -" in run(app, "stats").output


def test_the_inbox_commands_read_every_database(anywhere: Flask) -> None:
    app = anywhere
    event_id = send(app, "Überall.create", resource_id="1'\"")
    assert event_id in run(app, "list", "--type", "Überall.create").output
    assert "1'\"" in run(app, "show", event_id).output
    (numbers,) = json.loads(run(app, "stats", "--json").output).values()
    assert numbers["events"][0]["events"] == 1
    assert isinstance(numbers["attempts"], int)


def test_check_finds_a_blueprint_without_the_apps_flask_sqlalchemy(
    app: Flask, tmp_path: Path
) -> None:
    """What subscribers write through ``db.session`` would be rolled back, unseen."""
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path / 'host.db'}"
    SQLAlchemy(app)
    result = app.test_cli_runner().invoke(args=["procore-webhooks", "check"])
    assert (
        "warning: The app has Flask-SQLAlchemy, and the blueprint was" in result.output
    )
