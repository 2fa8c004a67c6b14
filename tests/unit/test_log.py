"""Log lines: one printable line for each record, under any handler and formatter."""

from __future__ import annotations

import builtins
import io
import json
import logging
import logging.handlers
import queue
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.exc import PendingRollbackError

from flask_procore_webhooks.log import error_text
from flask_procore_webhooks.log import escape
from flask_procore_webhooks.log import hide_parameters
from flask_procore_webhooks.log import log
from flask_procore_webhooks.log import LONGEST_MESSAGE
from flask_procore_webhooks.log import LONGEST_TRACEBACK

FORGED = "2026-11-26 18:20:11 ERROR root: forged"
#: Each of them begins a line, moves the cursor, or cannot be encoded.
BREAKS = (
    "\n\r\v\f\x1b\0\x07\x08\x7f\x85\x9b\t\u2028\u2029\u202e\u2066\ufeff\ud800\udcff"
)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Unreadable(Exception):
    """The traceback module looks at these attributes."""

    @property
    def __notes__(self) -> list[str]:
        raise RuntimeError("no notes")

    @property
    def exceptions(self) -> list[Exception]:
        raise RuntimeError("no members")


def plain() -> Exception:
    return ValueError(f"broken\n{FORGED}\r\x1b[2J")


def caused() -> Exception:
    error = ValueError(f"outer\n{FORGED}")
    error.__cause__ = KeyError(f"inner\r{FORGED}")
    return error


def circular() -> Exception:
    error = ValueError(FORGED)
    error.__context__ = KeyError(FORGED)
    error.__context__.__context__ = error
    return error


def with_notes() -> Exception:
    error = ValueError("broken")
    error.__notes__ = [f"a note\n{FORGED}", "\u2028another"]  # type: ignore[attr-defined]
    return error


def of_syntax() -> Exception:
    return SyntaxError("bad", (f"a\n{FORGED}", 1, 3, f"x = \r{FORGED}\x1b[1A", 1, 9))


def of_wrong_syntax() -> Exception:
    return SyntaxError("bad", ("file", -1, "no offset", 7))  # type: ignore[arg-type]


def group() -> Exception:
    group: Any = getattr(builtins, "ExceptionGroup", None)
    if group is None:
        pytest.skip("Python 3.11 has exception groups")
    made: Exception = group(f"two\n{FORGED}", [plain(), caused(), Unprintable()])
    return made


def huge() -> Exception:
    return ValueError("\n" * 1_000_000)


def deep() -> Exception:
    error = ValueError("the first")
    for number in range(5000):
        following = ValueError(number)
        following.__context__ = error
        error = following
    return error


ERRORS: list[Callable[[], Exception]] = [
    plain,
    caused,
    circular,
    with_notes,
    of_syntax,
    of_wrong_syntax,
    group,
    huge,
    deep,
    Unprintable,
    Unreadable,
]


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """The output of a usual handler of the package's logger."""
    stream = io.StringIO()
    with handled_by(logging.StreamHandler(stream), "%(levelname)s %(message)s"):
        yield stream


class handled_by:
    """Add a handler for a while."""

    def __init__(self, handler: logging.Handler, format: str, style: Any = "%") -> None:
        self.handler = handler
        handler.setFormatter(logging.Formatter(format, style=style))

    def __enter__(self) -> logging.Handler:
        log.addHandler(self.handler)
        return self.handler

    def __exit__(self, *_: object) -> None:
        log.removeHandler(self.handler)


def log_raised(error: Exception, *arguments: object) -> None:
    try:
        raise error
    except Exception:
        log.exception(*(arguments or ("%s failed", "it")))


@pytest.mark.parametrize("make", ERRORS)
def test_a_traceback_is_text_in_one_line(
    make: Callable[[], Exception], stream: io.StringIO
) -> None:
    log_raised(make())
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("ERROR it failed | ")
    assert line.isprintable()
    assert len(line) < LONGEST_MESSAGE + LONGEST_TRACEBACK
    assert "Traceback" in line or "<unprintable" in line


@pytest.mark.parametrize("make", ERRORS)
def test_an_exception_as_an_argument_stays_in_its_line(
    make: Callable[[], Exception], stream: io.StringIO
) -> None:
    log.error("Gave up: %s, %r", make(), make())
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("ERROR Gave up: ")
    assert line.isprintable()


def test_a_traceback_shows_what_a_reader_needs(stream: io.StringIO) -> None:
    log_raised(caused())
    line = stream.getvalue()
    assert r"KeyError: 'inner\r2026" in line
    assert r"direct cause of the following exception:\n\nTraceback" in line
    assert r", in log_raised\n    raise error\nValueError: outer\n2026" in line


def test_a_long_traceback_keeps_its_ends(stream: io.StringIO) -> None:
    log_raised(ValueError("x" * 20_000 + " the end"))
    line = stream.getvalue()
    assert "Traceback (most recent call last)" in line and "the end" in line
    assert "characters] xxx" in line


def test_every_handler_gets_the_same_line() -> None:
    records: queue.Queue[logging.LogRecord] = queue.Queue()
    braces, dollars = io.StringIO(), io.StringIO()
    memory = logging.handlers.MemoryHandler(10)
    with (
        handled_by(logging.StreamHandler(braces), "{levelname} {message}", "{"),
        handled_by(logging.StreamHandler(dollars), "$levelname $message", "$"),
        handled_by(logging.handlers.QueueHandler(records), "%(message)s"),
        handled_by(memory, "%(message)s"),
    ):
        log_raised(plain(), "%s {0} ${1} %% %r", "{x} %s", "\n")
    (record,) = memory.buffer
    line = record.getMessage()
    assert line.startswith(r"{x} %s {0} ${1} % '\n' | Traceback")
    assert braces.getvalue() == dollars.getvalue() == f"ERROR {line}\n"
    assert records.get().getMessage() == line
    # For formatters that write JSON, and reporters that read the record.
    assert (record.args, record.exc_info, record.exc_text) == ((), None, None)
    assert json.dumps(record.msg)


def test_the_last_resort_of_python_prints_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(log, "propagate", False)
    log_raised(plain())
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_stack_is_text_in_the_line(stream: io.StringIO) -> None:
    log.warning("here", stack_info=True)
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("WARNING here | Stack (most recent call last)")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("%d of %s at %.1f", 2, Unprintable(), 0.25), "2 of <unprintable Unpr"),
        (("%s and %s", "one"), "%s and %s (arguments that cannot be shown)"),
        (("%d", "text"), "%d (arguments that cannot be shown)"),
        (("%(a)s", {"a": "b\nc"}), r"b\nc"),
        ((Unprintable(),), "<unprintable Unprintable object>"),
        (("100 %",), "100 %"),
    ],
)
def test_wrong_arguments_cost_no_line(
    arguments: tuple[Any, ...], line: str, stream: io.StringIO
) -> None:
    log.warning(*arguments)
    (shown,) = stream.getvalue().splitlines()
    assert shown.startswith(f"WARNING {line}")


@given(st.text(st.sampled_from("aé\\ \xa0\U0001f4a9" + BREAKS)) | st.text())
def test_escaped_text_is_one_line_that_can_be_encoded(text: str) -> None:
    shown = escape(text)
    assert len(f"|{shown}|".splitlines()) == 1
    shown.encode()
    assert not set(shown) & set(BREAKS)
    assert escape(shown) == shown
    if text.isprintable():
        assert shown == text


def test_letters_and_spaces_of_all_languages_stay() -> None:
    text = "Größe\xa07\u202fm³, 数量\u3000€"
    assert escape(text) == text


def test_errors_in_a_group_or_chain_show_no_parameters() -> None:
    secret = "CONFIDENTIAL 4711"
    engine = create_engine("sqlite://")
    with pytest.raises(IntegrityError) as caught, engine.begin() as connection:
        connection.execute(text("CREATE TABLE note (text NOT NULL UNIQUE)"))
        insert = text("INSERT INTO note VALUES (:text), (:text)")
        connection.execute(insert, {"text": secret})
    engine.dispose()
    error = caught.value
    assert secret in str(error)
    # The context is that of an exception which has a cause too.
    outer, cause = ValueError("outer"), KeyError("cause")
    outer.__cause__, outer.__context__ = cause, LookupError("context")
    outer.__context__.__cause__ = error
    pending = PendingRollbackError(f"quotes {secret}", code="7s2a")
    cause.exceptions = [pending, outer]  # type: ignore[attr-defined]
    hide_parameters(outer)
    assert secret not in str(error) + str(pending)
    assert error_text(pending).startswith("sqlalchemy.exc.PendingRollbackError: an ear")
