"""Access tokens that processes share in the inbox's database."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import sqlalchemy as sa
from flask import Flask
from support.hosts import Host
from support.hosts import run_host
from support.processes import run_at_once

from flask_procore_webhooks import ConfigError
from flask_procore_webhooks.api import APIError
from flask_procore_webhooks.api import LoginFailed
from flask_procore_webhooks.api import ProcoreAPI
from flask_procore_webhooks.fake import FakeProcore

MakeApp = Callable[..., Flask]
PATH = "/rest/v1.1/projects/2/submittals"
KEYS = {
    "PROCORE_WEBHOOK_API_CLIENT_ID": "id",
    "PROCORE_WEBHOOK_API_CLIENT_SECRET": "a client secret",
}


@pytest.fixture
def host(make_app: MakeApp, database_url: str) -> Iterator[Host]:
    with run_host(make_app(**KEYS), "flask_sqlalchemy", database_url) as host:
        yield host


def client(host: Host, session: requests.Session, shares: bool = True) -> ProcoreAPI:
    """A client with a cache of its own, as another process has one."""
    with host.app.app_context():
        return host.webhooks.api(company_id="1", shares_token=shares, session=session)


def logins(fake: FakeProcore) -> int:
    return sum(path == "/oauth/token" for _, path, _ in fake.requests)


def test_clients_share_a_token(
    fake: FakeProcore, session: requests.Session, host: Host
) -> None:
    for _ in range(3):
        assert client(host, session).get(PATH) == []
    assert logins(fake) == 1


def test_clients_share_none_by_default(
    fake: FakeProcore, session: requests.Session, host: Host
) -> None:
    for _ in range(3):
        client(host, session, shares=False).get(PATH)
    assert logins(fake) == 3


def test_refused_token_is_renewed_by_one_and_found_by_others(
    fake: FakeProcore, session: requests.Session, host: Host
) -> None:
    first, second = client(host, session), client(host, session)
    first.get(PATH)
    second.get(PATH)
    fake.expire_tokens()
    first.get(PATH)
    second.get(PATH)
    assert logins(fake) == 2


def test_token_that_ends_soon_is_not_taken(
    fake: FakeProcore, session: requests.Session, host: Host
) -> None:
    fake.switches.token_seconds = 59
    client(host, session).get(PATH)
    client(host, session).get(PATH)
    assert logins(fake) == 2


def test_token_of_other_credentials_is_not_taken(
    fake: FakeProcore, session: requests.Session, host: Host, make_app: MakeApp
) -> None:
    client(host, session).get(PATH)
    url = host.engine.url.render_as_string(hide_password=False)
    keys = {**KEYS, "PROCORE_WEBHOOK_API_CLIENT_ID": "another id"}
    with run_host(make_app(**keys), "flask_sqlalchemy", url, create=False) as other:
        with pytest.raises(APIError, match="POST /oauth/token: 401"):
            client(other, session).get(PATH)


def test_token_is_not_part_of_the_callers_transaction(
    fake: FakeProcore, session: requests.Session, host: Host
) -> None:
    with host.app.app_context():
        client(host, session).get(PATH)
        if host.engine.dialect.name != "sqlite":
            # On SQLite, the open transaction would lock the file.
            host.note("rolled back")
            fake.expire_tokens()
            client(host, session).get(PATH)
        host.session.rollback()
    before = logins(fake)
    client(host, session).get(PATH)
    assert logins(fake) == before
    assert host.notes() == []


def test_locked_file_costs_a_login_and_no_error(
    fake: FakeProcore,
    session: requests.Session,
    make_app: MakeApp,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = f"sqlite:///{tmp_path / 'host.db'}"
    with run_host(make_app(**KEYS), "flask_sqlalchemy", url) as host:
        with host.app.app_context():
            host.note("locks the file")
            host.session.flush()
            api = client(host, session)
            assert api.get(PATH) == []
            host.session.commit()
        assert host.notes() == ["locks the file"]
    assert "The access token is not shared by the inbox" in caplog.text
    assert api._tokens.get().text not in caplog.text


def test_database_in_memory_holds_no_token(
    fake: FakeProcore, session: requests.Session, make_app: MakeApp
) -> None:
    with run_host(make_app(**KEYS), "flask_sqlalchemy", "sqlite://") as host:
        with host.app.app_context():
            host.note("rolled back")
            client(host, session).get(PATH)
            host.session.rollback()
        assert host.notes() == []


def test_missing_tables_cost_a_login_and_no_error(
    fake: FakeProcore,
    session: requests.Session,
    host: Host,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tables = host.store.database.tables
    tables.state.drop(host.engine)
    assert client(host, session).get(PATH) == []
    assert "No access token is read from the inbox" in caplog.text
    tables.state.create(host.engine)


@pytest.mark.parametrize(
    "value", ["null", "5", "{}", '{"token": 5, "ends_at": "2030-01-01T00:00:00Z"}', "x"]
)
def test_damaged_row_costs_a_login_and_no_error(
    fake: FakeProcore, session: requests.Session, host: Host, value: str
) -> None:
    client(host, session).get(PATH)
    table = host.store.database.tables.state
    with host.engine.begin() as connection:
        connection.execute(
            sa.update(table).where(table.c.name.like("token:%")).values(value=value)
        )
    assert client(host, session).get(PATH) == []
    assert logins(fake) == 2


def test_shared_token_is_in_no_log_line_and_no_repr(
    fake: FakeProcore,
    session: requests.Session,
    host: Host,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    api = client(host, session)
    api.get(PATH)
    table = host.store.database.tables.state
    with host.engine.connect() as connection:
        query = sa.select(table.c.value).where(table.c.name.like("token:%"))
        token = json.loads(connection.scalar(query) or "")["token"]
    assert len(token) > 20
    assert token not in caplog.text
    assert token not in f"{api!r} {vars(api)!r} {vars(api._tokens)!r}"


@pytest.mark.parametrize("key", KEYS)
def test_missing_credentials_are_named(make_app: MakeApp, key: str) -> None:
    keys = {name: value for name, value in KEYS.items() if name != key}
    with run_host(make_app(**keys), "flask_sqlalchemy", "sqlite://") as host:
        with host.app.app_context(), pytest.raises(ConfigError, match=key):
            host.webhooks.api()


SCRIPT = """
import json, sys
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks

url, file = json.loads(input())
print("ready", flush=True)
input()
app, webhooks = Flask("app"), ProcoreWebhooks()
app.config.update(
    PROCORE_WEBHOOK_SECRET="a secret to try it out",
    PROCORE_WEBHOOK_DISPATCH="worker",
    PROCORE_WEBHOOK_DATABASE_URI="sqlite:///" + file,
    PROCORE_WEBHOOK_API_CLIENT_ID="id",
    PROCORE_WEBHOOK_API_CLIENT_SECRET="a client secret",
    PROCORE_WEBHOOK_API_URL=url,
    PROCORE_WEBHOOK_API_LOGIN_URL=url,
)
app.register_blueprint(webhooks)
with app.app_context():
    found = webhooks.api(company_id="1", shares_token=True).get(
        "/rest/v1.1/projects/2/submittals"
    )
print(json.dumps(found))
"""


def test_processes_share_a_token(fake: FakeProcore, tmp_path: Path) -> None:
    with fake.serve() as url:
        order = [url, str(tmp_path / "inbox.db")]
        assert run_at_once(SCRIPT, [order]) == [[]]
        assert run_at_once(SCRIPT, [order, order]) == [[], []]
        assert logins(fake) == 1


def test_client_of_the_process_has_one_token_for_every_company(
    fake: FakeProcore, make_app: MakeApp
) -> None:
    fake.add_company("9", projects=["7"])
    with fake.serve() as url:
        keys = {f"PROCORE_WEBHOOK_{key}": url for key in ("API_URL", "API_LOGIN_URL")}
        with run_host(
            make_app(**KEYS, **keys), "flask_sqlalchemy", "sqlite://"
        ) as host:
            with host.app.app_context():
                for company, project in (("1", "2"), ("9", "7"), ("1", "3")):
                    api = host.webhooks.api(company_id=company)
                    assert api.get(f"/rest/v1.1/projects/{project}/submittals") == []
        assert logins(fake) == 1


def test_refused_credentials_are_not_sent_for_each_call(
    fake: FakeProcore, session: requests.Session
) -> None:
    api = ProcoreAPI("id", "a wrong secret", company_id="1", session=session)
    for _ in range(3):
        with pytest.raises(LoginFailed, match="POST /oauth/token: 401"):
            api.get(PATH)
    assert logins(fake) == 1
