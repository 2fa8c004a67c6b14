"""Answers of Procore's API: strict reading, and texts without secrets."""

from __future__ import annotations

import json
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from typing import Any

#: Characters of Procore's own message that an error shows.
LONGEST_MESSAGE = 300
#: Where the bodies of errors hold the message.
MESSAGES = ("message", "error_description", "errors", "error", "reason")


@dataclass(frozen=True)
class Received:
    """One answer, whatever its status."""

    status: int
    headers: Mapping[str, str]
    #: Decoded, of any media type.
    body: bytes = field(repr=False)


@dataclass(frozen=True)
class Answer:
    """One answer in 2xx."""

    status: int
    headers: Mapping[str, str]
    #: The JSON value; ``None`` for an empty body.
    value: Any
    #: The parameters of the next page, if the answer names one.
    next_page: Mapping[str, Any] | None = None


class NotDocumented(Exception):
    """The answer is not the documented one; its text says what it is instead."""


def read_json(response: Received) -> Any:
    """The JSON value of the body, ``None`` if it is empty.

    :raises NotDocumented: the body is not JSON.
    """
    content = response.body
    if not content.strip():
        return None
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        pass
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
    if "html" in kind or content.lstrip()[:1] == b"<":
        raise NotDocumented("the answer is HTML, not JSON")
    raise NotDocumented("the answer is not valid JSON")


def message_of(response: Received, secrets: Iterable[str]) -> str:
    """What the body of an error says: one short line; ``""`` if it says nothing.

    It has ``*****`` in the place of each secret.
    """
    try:
        value = json.loads(response.body)
    except (ValueError, RecursionError):
        return ""
    return one_line(" ".join(str(part) for part in _messages(value)), secrets)


def one_line(text: str, secrets: Iterable[str]) -> str:
    """A text of Procore as it may be shown: short, with ``*****`` for each secret."""
    text = without(text, secrets)
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= LONGEST_MESSAGE else f"{line[:LONGEST_MESSAGE]}..."


def items_of(value: Any) -> list[dict[str, Any]]:
    """The objects of a list, bare or in ``{"data": [...]}``.

    :raises NotDocumented: the value is not a list of objects. ``null`` is an error,
        because it would be taken for an empty list.
    """
    if isinstance(value, dict) and "data" in value:
        value = value["data"]
    if not isinstance(value, list):
        raise NotDocumented(f"the answer holds {_kind(value)} where a list belongs")
    for each in value:
        if not isinstance(each, dict):
            raise NotDocumented(f"the list holds {_kind(each)} where an object belongs")
    return value


def item_of(value: Any) -> dict[str, Any]:
    """The object, bare or in ``{"data": {...}}``.

    :raises NotDocumented: the value is not an object.
    """
    if isinstance(value, dict) and "data" in value:
        value = value["data"]
    if not isinstance(value, dict):
        raise NotDocumented(f"the answer holds {_kind(value)} where an object belongs")
    return value


def without(text: str, secrets: Iterable[str]) -> str:
    """The text with ``*****`` in the place of each secret."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "*****")
    return text


def secrets_in(body: Any) -> Iterator[str]:
    """The secrets in the body of a request: the values of a hook's headers."""
    headers = body.get("destination_headers") if isinstance(body, dict) else None
    for value in headers.values() if isinstance(headers, dict) else ():
        if isinstance(value, str):
            yield value
            # A message may quote the token without its scheme.
            token = value.rpartition(" ")[2]
            if len(token) > 5:
                yield token


def _messages(value: Any) -> Iterable[Any]:
    """The texts of an error's body, whatever their place."""
    if isinstance(value, dict):
        for key in MESSAGES:
            if value.get(key):
                yield from _messages(value[key])
                return
    elif isinstance(value, list):
        for each in value[:5]:
            yield from _messages(each)
    elif isinstance(value, str):
        yield value


def _kind(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__}"
