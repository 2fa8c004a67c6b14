"""Targets: the values of command line options, and of the app's configuration."""

from __future__ import annotations

import ast
from collections.abc import Callable
from collections.abc import Iterator
from datetime import datetime
from datetime import timedelta
from typing import Any

import click

from flask_procore_webhooks import ConfigError
from flask_procore_webhooks.cli import _values
from flask_procore_webhooks.config import KEYS
from flask_procore_webhooks.config import read_settings
from flask_procore_webhooks.config import Settings
from flask_procore_webhooks.storage.engines import checked_url

TYPES: dict[str, Callable[[str], Any]] = {
    "date": _values.date,
    "header": _values.header,
    "json": _values.json_object,
    "secret": _values.secret,
    "time": _values.unix_time,
    "url": _values.url,
}
VALUES = [
    *("2026-11-26", "2026-11-26T10:11", "2026-05-04T10:11:12.5Z", "-8h", "-400", "1e9"),
    *("X-Api-Key: text", "Authorization:", '{"resource_id": 7}', '{"a": [NaN]}'),
    *("http://localhost:5000/webhooks/procore", "https://[::1]/", "http://ex\xe4mple/"),
    *("a secret", "\udcff\udc80", "+", "-", " ", "9" * 400, "nan", "-inf"),
]
PREFIX = "PROCORE_WEBHOOK_"
#: Stands in every value that may be a secret.
MARK = "0hush0"
#: Keys whose values may be quoted in an error.
SHOWN = {key for key in KEYS if not key.startswith(("SECRET", "AUTHOR", "DATABASE"))}


def value_seeds(payloads: list[bytes]) -> Iterator[bytes]:
    for value in VALUES:
        yield value.encode("utf-8", "surrogateescape")
    yield from payloads


def read_value(data: bytes) -> None:
    """Any text is a value of an option, or refused with click's error."""
    text = data.decode("utf-8", "surrogateescape")
    for name, type in TYPES.items():
        try:
            value = type(text)
        except click.BadParameter as error:
            assert error.format_message()
            continue
        if name == "date":
            assert isinstance(value, datetime) and value.tzinfo
        elif name == "header":
            # As WSGI needs it; another text cannot be encoded.
            assert value[0].isascii() and (value[1] or "-").encode("latin-1")
        elif name == "url":
            assert value.isascii()


def setting_seeds(payloads: list[bytes]) -> Iterator[bytes]:
    yield b"SECRET='a secret'\nSECRET_FALLBACKS=['older', ('old', '2027-01-31')]"
    yield b"AUTHORIZATION='Bearer x'\nTOLERANCE=300\nMAX_BYTES=1024\nLEASE=1.5"
    yield b"SECRET=b'bytes'\nDISPATCH='worker'\nRETENTION=1e400\nTIMEOUT=-1"
    yield b"SECRET=' x '\nDISPATCH=['inline']\nIGNORE_USER_IDS=[1, 'a', None]"
    yield b"SECRT='x'\nDATABASE_URI='postgresql://user:p@ss@host/name'\nTHREADS={}"
    for key in KEYS:
        for value in ("None", "''", "[]", "{1: 2}", "True", "10**400", "'\\ud800'"):
            yield f"SECRET='a secret'\n{key}={value}".encode()


def read_config(data: bytes) -> None:
    """Any values are settings or a ConfigError, and neither shows a secret."""
    config: dict[str, Any] = {}
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        key, _, value = line.partition("=")
        config[PREFIX + key] = _value(value, "" if key in SHOWN else MARK)
    try:
        settings = read_settings(config, PREFIX, check_uri=checked_url)
    except ConfigError as error:
        assert MARK not in str(error) and MARK not in repr(error), "a secret is shown"
        return
    assert isinstance(settings, Settings)
    assert MARK not in repr(settings) + " ".join(settings.warnings)


def _value(text: str, mark: str) -> Any:
    """A literal of Python, with ``mark`` in each of its texts; else the text."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        value = text
    if mark == "" and isinstance(value, float):
        return timedelta(seconds=value) if abs(value) < 10**9 else value
    return _marked(value, mark)


def _marked(value: Any, mark: str) -> Any:
    if isinstance(value, str):
        return value + mark if value else value
    if isinstance(value, bytes):
        return value + mark.encode()
    if isinstance(value, (list, tuple)):
        return type(value)(_marked(each, mark) for each in value)
    return value
