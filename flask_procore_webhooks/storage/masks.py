"""Masks: messages of errors without what differs from event to event.

Errors with one masked message are one incident. A masked message can be searched for:
:func:`pattern_of` is a regular expression for SQLite, PostgreSQL, MariaDB and MySQL.
"""

from __future__ import annotations

import re

#: In place of a number, a UUID, a hexadecimal number, or a word that holds digits.
NUMBER = "#"
#: In place of quoted text, an e-mail address, and a character that is not printable.
ANYTHING = "…"

#: Characters of a masked message. It fits the filter option of a command.
LONGEST = 300
#: Characters of a message that are read.
READ = 1000

#: From left to right, the first that matches at a place is masked.
_VARIABLE = re.compile(
    r"""
    (?P<email> [\w.+-]+@[\w-]+(?:\.[\w-]+)+ )
    # An apostrophe in a word is part of the quoted text, and begins none.
    | (?P<single> (?<!\w)'(?:[^']|'(?=\w))*'(?!\w) )
    | (?P<double> "[^"]*" )
    | (?P<tick> `[^`]*` )
    | (?P<uuid> \b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b )
    | (?P<hex> \b0[xX][0-9a-fA-F]+\b )
    # An id: eight word characters or more, with a digit.
    | (?P<id> \b(?=\w{8})\w*\d\w*\b )
    | (?P<digits> \d+ )
    """,
    re.VERBOSE | re.ASCII,
)
# Of ASCII: databases differ about others.
_SPACES = r"[ \t\r\n\f]"
_WHITESPACE = re.compile(f"{_SPACES}+")
_QUOTES = {"single": "'", "double": '"', "tick": "`"}

#: What a mask may stand for, in the syntax that all databases share.
_NUMBERS = "|".join(
    [
        NUMBER,
        "[0-9]+",
        "0[xX][0-9A-Fa-f]+",
        "(?=[0-9A-Za-z_]{8})[A-Za-z_]*[0-9][0-9A-Za-z_]*",
        "[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}",
    ]
)
_PATTERNS = {NUMBER: f"({_NUMBERS})", ANYTHING: ".*", " ": f"{_SPACES}+"}
_SPECIAL = frozenset(r"\.^$|?*+()[]{}")


def mask(message: str | None) -> str:
    """Return the message on one line, with masks for numbers, ids and quoted text."""
    text = message or ""
    masked = _VARIABLE.sub(_mask, _WHITESPACE.sub(" ", text[:READ]).strip(" "))
    # A terminal shows such characters escaped, and "--error" takes what it shows.
    if not masked.isprintable():
        masked = "".join(c if c.isprintable() else ANYTHING for c in masked)
    if len(text) > READ:
        masked += ANYTHING
    return masked if len(masked) <= LONGEST else masked[: LONGEST - 1] + ANYTHING


def is_masked(text: str) -> bool:
    """Whether the text holds a mask."""
    return NUMBER in text or ANYTHING in text


def pattern_of(masked: str) -> str:
    """A regular expression for the messages with that masked message."""
    # The flag lets "." stand for line breaks, too.
    return f"(?s)^{_SPACES}*{''.join(map(_pattern, masked))}{_SPACES}*$"


def _mask(found: re.Match[str]) -> str:
    kind = str(found.lastgroup)
    if kind in _QUOTES:
        return f"{_QUOTES[kind]}{ANYTHING}{_QUOTES[kind]}"
    return ANYTHING if kind == "email" else NUMBER


def _pattern(char: str) -> str:
    return _PATTERNS.get(char) or (f"\\{char}" if char in _SPECIAL else char)
