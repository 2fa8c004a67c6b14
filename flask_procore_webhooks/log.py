"""The logger of the package, whose records are one line under any handler.

Every module imports ``log`` from here, so that the filter is installed. The text of a
sender or of an exception can then neither begin another line nor send a control
sequence to a terminal. A traceback becomes escaped text in the message; the exception
itself is in the signals ``event_failed`` and ``event_dead``.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Iterator
from typing import Any

#: Characters of a message without its traceback, and of a traceback, at most.
LONGEST_MESSAGE = 4000
LONGEST_TRACEBACK = 8000
#: SQLAlchemy's code of an error that quotes an earlier error, see ``hide_parameters``.
QUOTES_EARLIER_ERROR = "7s2a"
#: Lines that an :class:`OnceLog` remembers. Texts of a sender may be in them.
MOST_LINES = 200


def one_line(record: logging.LogRecord) -> bool:
    """Make the message of ``record`` one printable line, with its traceback.

    A logging filter; it keeps every record. Afterwards the record has no arguments, no
    exception and no stack: a handler or formatter has nothing to add.
    """
    text = escape(shorten(_message(record), LONGEST_MESSAGE))
    for more in _tracebacks(record):
        text += " | " + escape(shorten(more.strip(), LONGEST_TRACEBACK))
    record.msg, record.args = text, ()
    record.exc_info = record.exc_text = record.stack_info = None
    return True


class OnceLog:
    """Logs each line once; at most ``MOST_LINES`` of one kind of message."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: The arguments of the lines that were logged, by message.
        self._logged: dict[str, set[tuple[object, ...]]] = {}

    def warning(self, message: str, *arguments: object) -> None:
        """Log a warning, unless it was logged before or there are too many."""
        with self._lock:
            logged = self._logged.setdefault(message, set())
            if arguments in logged or len(logged) >= MOST_LINES:
                return
            logged.add(arguments)
        log.warning(message, *arguments)


def escape(text: str) -> str:
    r"""Return ``text`` with every character escaped that is not printable.

    These are control characters, line and paragraph separators (``\u2028``), format
    characters (bidirectional overrides) and lone surrogates, which no handler can
    encode. Spaces of all widths stay, and so does every letter.
    """
    if text.isprintable():
        return text
    return "".join(map(_escaped, text))


def shorten(text: str, longest: int) -> str:
    """Return ``text``, without its middle if it is longer: its end says most."""
    if len(text) <= longest:
        return text
    end = longest // 2
    start = longest - end
    return f"{text[:start]} [{len(text) - longest} characters] {text[-end:]}"


def error_text(error: BaseException) -> str:
    """The class and text of an exception, as in the last line of a traceback."""
    try:
        return "".join(traceback.format_exception_only(error)).strip()
    except Exception:  # an attribute of the exception fails
        return f"<unprintable {type(error).__name__} object>"


def traceback_text(error: BaseException) -> str:
    """The traceback of an exception, without bound parameters."""
    hide_parameters(error)
    try:
        return "".join(traceback.format_exception(error))
    except Exception:  # an attribute of the exception fails
        return error_text(error)


def hide_parameters(error: BaseException | None) -> None:
    """Remove bound parameters, which may hold payload, from errors of SQLAlchemy.

    Applies to every exception that a traceback of ``error`` shows: causes, contexts and
    the members of exception groups.
    """
    seen: set[int] = set()
    left = [error]
    while left:
        each: Any = left.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        try:
            left += [each.__cause__, each.__context__]
            left += getattr(each, "exceptions", ())
            if getattr(each, "hide_parameters", None) is False:
                each.hide_parameters = True
            elif getattr(each, "code", None) == QUOTES_EARLIER_ERROR:
                each.args = ("an earlier error rolled the transaction back",)
        except Exception:  # an attribute of the exception fails
            continue


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # the text of an argument fails
        pass
    arguments = record.args if isinstance(record.args, tuple) else (record.args,)
    message = str(_argument(record.msg))
    try:
        return message % tuple(map(_argument, arguments))
    except Exception:
        return f"{message} (arguments that cannot be shown)"


def _argument(value: object) -> object:
    """Return a number as it is, and anything else as text."""
    if isinstance(value, (int, float)):
        return value
    try:
        return str(value)
    except Exception:
        return f"<unprintable {type(value).__name__} object>"


def _tracebacks(record: logging.LogRecord) -> Iterator[str]:
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        yield traceback_text(error)
    if record.stack_info:
        yield record.stack_info


def _escaped(char: str) -> str:
    return char if char.isprintable() or _is_space(char) else ascii(char)[1:-1]


def _is_space(char: str) -> bool:
    """Whether it is a space of any width, which begins no line."""
    return char in "\xa0\u1680\u202f\u205f\u3000" or "\u2000" <= char <= "\u200a"


log = logging.getLogger("flask_procore_webhooks")
log.addFilter(one_line)
