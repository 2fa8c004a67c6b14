"""Checks of code blocks that are not executed: shells, cron, systemd, proxies."""

from __future__ import annotations

import argparse
import configparser
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import click
from flask.cli import run_command
from gunicorn.config import Config

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.__main__ import main
from flask_procore_webhooks.config import KEYS

ROOT = Path(__file__).parents[2]
#: Of the keys that ``app.config.from_prefixed_env()`` reads.
PREFIX = "FLASK_PROCORE_WEBHOOK_"
DISTRIBUTION = "flask-procore-webhooks"
COMMANDS = ProcoreWebhooks().cli
OPERATORS = {"|", "&&", ";"}
CRON = re.compile(r"(?:[\d*/,-]+ ){5}(.*)")
POWERSHELL = re.compile(r'\$env:\w+ = "[^"]*"')
SET = re.compile(r"set \w+=.+")
Words = list[str]


def check_shell(text: str) -> None:
    """Check that every command exists and accepts its arguments.

    :raises KeyError: an unknown program or command.
    :raises AssertionError: an argument that does not exist.
    :raises click.ClickException: an option that the command refuses.
    """
    for words in commands(text):
        program, *arguments = words
        CHECKS[Path(program).name or program](arguments)


def commands(text: str) -> Iterator[Words]:
    """Return the commands of a script, split at ``|``, ``&&`` and ``;``."""
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True
        found: Words = []
        for word in lexer:
            if word in OPERATORS:
                yield found
                found = []
            else:
                found.append(word)
        if found:
            yield found


def check_powershell(text: str) -> None:
    for line in text.splitlines():
        if not POWERSHELL.fullmatch(line):
            check_shell(line)


def check_bat(text: str) -> None:
    for line in text.splitlines():
        if not SET.fullmatch(line):
            check_shell(line)


def check_crontab(text: str) -> None:
    for line in text.splitlines():
        entry = CRON.fullmatch(line)
        assert entry, line
        check_shell(entry[1])


def check_systemd(text: str) -> None:
    unit = _ini(text)
    assert {"Unit", "Service", "Install"} == set(unit.sections())
    # systemd runs the program without a shell: parentheses need no quotes.
    program, *arguments = unit["Service"]["ExecStart"].split()
    assert program.startswith("/")
    CHECKS[Path(program).name](arguments)


def check_uwsgi(text: str) -> None:
    assert _ini(text).sections() == ["uwsgi"]


def check_env(text: str) -> None:
    """Check that a shell reads the file as systemd does."""
    for line in text.splitlines():
        assert re.fullmatch(r'[A-Z_]+="[^"$`\\]*"', line), line


def check_nginx(text: str) -> None:
    depth = 0
    for line in filter(None, map(str.strip, text.splitlines())):
        assert line.endswith((";", "{", "}")), line
        depth += line.count("{") - line.count("}")
        assert depth >= 0
    assert depth == 0


def check_apache(text: str) -> None:
    for line in text.splitlines():
        assert re.fullmatch(r"\w+ \w+", line), line


def _ini(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment]
    parser.read_string(text)
    return parser


def _check_flask(arguments: Words) -> None:
    if arguments[0] == "--app":
        arguments = arguments[2:]
    name, *rest = arguments
    if name == "run":
        _check_options(run_command, rest)
        return
    if name == "db":  # Flask-Migrate's
        assert rest[0] in ("migrate", "upgrade")
        return
    assert name == "procore-webhooks"
    command: click.Command = COMMANDS
    while isinstance(command, click.Group):
        assert rest, f"{command.name} needs a command"
        below = command.get_command(click.Context(command), rest[0])
        if below is None:
            raise KeyError(rest[0])
        command, rest = below, rest[1:]
    _check_options(command, rest)


def _check_options(command: click.Command, arguments: Words) -> None:
    # The context closes the option files at its end.
    with command.make_context(command.name, [*arguments]):
        pass


def _check_make(arguments: Words) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for each in arguments:
        assert "=" in each or each in targets, each


def _check_pip(arguments: Words) -> None:
    install, what = arguments
    assert install == "install"
    if what != ".":
        found = re.fullmatch(rf"{DISTRIBUTION}\[([\w-]+)\]", what)
        assert found, what
        extras = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra", [])
        assert found[1] in extras


def _check_pytest(arguments: Words) -> None:
    names = {entry.name for entry in metadata.distribution(DISTRIBUTION).entry_points}
    for option, value in zip(arguments[::2], arguments[1::2], strict=True):
        assert option == "-p"
        assert value.removeprefix("no:") in names


def _check_python(arguments: Words) -> None:
    if arguments[0] == "-c":
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    elif arguments[:2] == ["-m", "flask_procore_webhooks"]:
        name, *rest = arguments[2:]
        _check_options(main.commands[name], rest)


def _check_gunicorn(arguments: Words) -> None:
    parser: argparse.ArgumentParser = Config().parser()
    parser.parse_args(arguments)


def _check_export(arguments: Words) -> None:
    for each in arguments:
        assert re.fullmatch(r"[A-Z_]+=.+", each), each
        name, _, _ = each.partition("=")
        if name.startswith(PREFIX):
            assert name.removeprefix(PREFIX) in KEYS, each


CHECKS: dict[str, Callable[[Words], None]] = {
    ".": lambda arguments: None,
    "cd": lambda arguments: None,
    "export": _check_export,
    "flask": _check_flask,
    "gunicorn": _check_gunicorn,
    "make": _check_make,
    "pip": _check_pip,
    "pytest": _check_pytest,
    "python": _check_python,
    "set": lambda arguments: None,
}

#: The check for each language whose blocks are not executed.
LANGUAGES: dict[str, Callable[[str], None]] = {
    "apache": check_apache,
    "bat": check_bat,
    "crontab": check_crontab,
    "env": check_env,
    "ini": check_uwsgi,
    "json": json.loads,
    "nginx": check_nginx,
    "powershell": check_powershell,
    "sh": check_shell,
    "systemd": check_systemd,
}
