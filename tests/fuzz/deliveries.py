"""Targets: the signature, and the body of a delivery through the whole app."""

from __future__ import annotations

import hashlib
import hmac
import io
import sys
import tempfile
from collections.abc import Callable
from collections.abc import Iterator
from datetime import datetime
from datetime import timezone
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Flask

from flask_procore_webhooks import BadSignature
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.config import read_settings
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.senders.procore import PROCORE
from flask_procore_webhooks.senders.signature import verify

from .inputs import Input
from .inputs import number
from .inputs import write

NOW = 1_767_225_600
SECRET = b"a secret of the fuzzer"
AUTHORIZATION = "Bearer a token of the fuzzer"
NEWER = "a newer secret of the fuzzer"
CONFIGS: dict[str, dict[str, Any]] = {
    "signed": {"SECRET": NEWER, "SECRET_FALLBACKS": [SECRET.decode()]},
    # The last day is that of NOW.
    "dated": {"SECRET": NEWER, "SECRET_FALLBACKS": [(SECRET.decode(), "2026-01-01")]},
    "authorized": {"AUTHORIZATION": AUTHORIZATION},
    "both": {"SECRET": SECRET.decode(), "AUTHORIZATION": AUTHORIZATION},
}
SETTINGS = {name: read_settings(config, "") for name, config in CONFIGS.items()}
ENDPOINTS = ("signed", "authorized", "unset")
MAX_BYTES = 2000
STATUSES = {200, 401, 413, 503}
#: Errors of ``read``, as servers raise them when the connection breaks.
ERRORS: dict[str, Callable[[], Exception]] = {
    "OSError": OSError,
    "ValueError": ValueError,
    "EOFError": EOFError,
    "ConnectionResetError": ConnectionResetError,
}


def signature_seeds(payloads: list[bytes]) -> Iterator[bytes]:
    for settings in SETTINGS:
        for body in payloads:
            good = {"X_Procore_Timestamp": str(NOW), "Authorization": AUTHORIZATION}
            yield write(body, settings=settings, now=str(NOW), sign="sha256=", **good)
            digest = _digest(str(NOW), body)
            yield write(body, settings=settings, **good, X_Procore_Signature=digest)


def verify_signature(data: bytes) -> None:
    """Any headers, body, settings and time: it returns or raises BadSignature.

    It returns only for the signature that the standard library makes of the same bytes.
    """
    given = Input.read(data)
    settings = SETTINGS.get(given.take("settings"), SETTINGS["both"])
    now = number(given.take("now"), NOW)
    prefix = given.take("sign", "no")
    stamp = given.fields.get("X-Procore-Timestamp", "")
    digest = _digest(stamp, given.body)
    if prefix != "no":
        given.fields["X-Procore-Signature"] = prefix + digest
    try:
        verify(given.fields, given.body, PROCORE, settings, now)
    except BadSignature as bad:
        assert bad.status == 401 and bad.reason.isascii(), bad.reason
        return
    if settings.secrets:
        # Of the newer secret, nobody here can make a signature.
        sent = given.fields["X-Procore-Signature"].removeprefix("sha256=")
        assert sent.lower() == digest, "a wrong signature has passed"
        assert not abs(now - int(stamp)) > settings.tolerance, "an old one has passed"
    if settings.authorizations:
        assert given.fields["Authorization"] == AUTHORIZATION


def body_seeds(payloads: list[bytes]) -> Iterator[bytes]:
    for body in payloads:
        length = str(len(body))
        yield write(body, endpoint="authorized", length=length)
        yield write(body, endpoint="signed", length=length)
        yield write(body, endpoint="unset", length=length)
        yield write(body, endpoint="authorized", encoding="chunked", terminated="yes")
        yield write(body, endpoint="authorized", encoding="chunked")
        yield write(body, endpoint="authorized", protocol="HTTP/2")
        yield write(body, endpoint="authorized", length=length, error="OSError")
        yield write(body, endpoint="authorized", length=str(MAX_BYTES + 1))


class Deliver:
    """A delivery with any length, encoding and stream through the app.

    The answer is one of four, and 200 only for a body that came in whole.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        app = Flask("host", instance_path=self._folder.name)
        app.config.update(
            SIGNED_SECRET=SECRET.decode(),
            AUTHORIZED_AUTHORIZATION=AUTHORIZATION,
        )
        for name in ENDPOINTS:
            prefix = f"{name.upper()}_"
            app.config[f"{prefix}MAX_BYTES"] = MAX_BYTES
            app.config[f"{prefix}DISPATCH"] = "worker"
            path = f"sqlite:///{Path(self._folder.name) / 'fuzz.db'}"
            app.config[f"{prefix}DATABASE_URI"] = path
            app.register_blueprint(
                ProcoreWebhooks(name, url_prefix=f"/{name}", config_prefix=prefix)
            )
        self._app = app
        self._store = next(iter(endpoints(app).values())).store
        for endpoint in endpoints(app).values():
            endpoint.store.now = lambda: datetime.fromtimestamp(NOW, timezone.utc)
        with self._store.connection() as connection:
            connection.exec_driver_sql("PRAGMA synchronous=OFF")

    def __call__(self, data: bytes) -> None:
        given = Input.read(data)
        environ = _environ(given)
        statuses: list[str] = []
        chunks = self._app.wsgi_app(environ, lambda *args: statuses.append(args[0]))
        answer = b"".join(chunks)
        getattr(chunks, "close", lambda: None)()
        status = int(statuses[-1].split()[0])
        assert status in STATUSES, (status, answer)
        stored = self._take_stored()
        if status == 200:
            assert given.fields.get("endpoint") != "unset", "accepted without a secret"
            whole = _whole_body(environ, given)
            assert whole is not None, "a body of unknown length was accepted"
            assert stored in ([whole], []), "another body was stored"
            assert stored or b"duplicate" in answer
        else:
            assert not stored, "a refused delivery was stored"

    def close(self) -> None:
        for endpoint in endpoints(self._app).values():
            endpoint.store.database.engine.dispose()
        self._folder.cleanup()

    def _take_stored(self) -> list[bytes]:
        events = self._store.columns.id.table
        with self._store.connection() as connection:
            look = sa.select(events.c.body)
            bodies = [row.body for row in connection.execute(look)]
            if bodies:
                connection.execute(sa.delete(events))
            return bodies


class _Stream(io.RawIOBase):
    """A ``wsgi.input`` that may be cut, or break with an error."""

    def __init__(self, body: bytes, error: Exception | None) -> None:
        self._rest = io.BytesIO(body)
        self._error = error

    def read(self, size: int | None = -1) -> bytes:
        data = self._rest.read(-1 if size is None else size)
        if self._error and not data:
            raise self._error
        return data

    def readline(self, size: int | None = -1) -> bytes:
        return self.read(size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _environ(given: Input) -> dict[str, Any]:
    name = given.fields.get("endpoint", "")
    name = name if name in ENDPOINTS else "authorized"
    error = ERRORS.get(given.fields.get("error", ""))
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": f"/{name}",
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": given.fields.get("protocol", "HTTP/1.1"),
        "HTTP_HOST": "localhost",
        "HTTP_AUTHORIZATION": AUTHORIZATION,
        "HTTP_X_PROCORE_TIMESTAMP": str(NOW),
        "HTTP_X_PROCORE_SIGNATURE": _digest(str(NOW), given.body),
        "CONTENT_TYPE": given.fields.get("type", "application/json"),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": _Stream(given.body, error() if error else None),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    if "length" in given.fields:
        environ["CONTENT_LENGTH"] = given.fields["length"]
    if "encoding" in given.fields:
        environ["HTTP_TRANSFER_ENCODING"] = given.fields["encoding"]
    if "terminated" in given.fields:
        environ["wsgi.input_terminated"] = True
    return environ


def _whole_body(environ: dict[str, Any], given: Input) -> bytes | None:
    """The body by its declared length; ``None`` if that is unknown, or it was cut."""
    if given.fields.get("error") in ERRORS and "wsgi.input_terminated" in environ:
        return None
    if "HTTP_TRANSFER_ENCODING" in environ or "CONTENT_LENGTH" not in environ:
        return given.body if "wsgi.input_terminated" in environ else None
    length = environ["CONTENT_LENGTH"]
    if not (length.isascii() and length.isdigit()):
        return None
    body = given.body[: int(length[-9:])] if len(length) < 10 else given.body
    return body if len(body) == int(length[:4000]) else None


def _digest(stamp: str, body: bytes) -> str:
    message = stamp.encode("utf-8", "surrogatepass") + b"." + body
    return hmac.new(SECRET, message, hashlib.sha256).hexdigest()
