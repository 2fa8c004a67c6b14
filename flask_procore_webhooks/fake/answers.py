"""Answers of the API: data, pages, errors, and answers that are broken on purpose."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from flask import request
from flask import Response

from .switches import Switches


class Refusal(Exception):
    """The API refuses the call, with this status and message."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        source: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.source = source
        self.headers = headers or {}


def error_answer(refusal: Refusal, switches: Switches) -> Response:
    """Return the answer to a refused call, with a body of the kind ``error_body``."""
    name = HTTPStatus(refusal.status).name
    if switches.error_body == "text":
        answer = Response(refusal.message, mimetype="text/plain")
    elif switches.error_body == "errors":
        answer = json_answer({"errors": refusal.message})
    else:
        detail = {
            "reason_code": name,
            "message": refusal.message,
            "source": refusal.source,
        }
        details = [detail] if refusal.source else []
        body = {"code": name, "message": refusal.message, "details": details}
        answer = json_answer({"error": body})
    answer.status_code = refusal.status
    answer.headers.update(refusal.headers)
    return answer


def json_answer(body: Any, status: int = 200) -> Response:
    """Return the body as JSON."""
    # Not jsonify: a fake keeps the order of the keys.
    text = json.dumps(body)
    return Response(text, status, mimetype="application/json")


def data_answer(data: Any, status: int = 200) -> Response:
    """Return the data in the envelope of v2.0: ``{"data": ...}``."""
    return json_answer({"data": data}, status)


def page_answer(rows: Sequence[Any], switches: Switches, *, bare: bool) -> Response:
    """Return the page that ``page`` and ``per_page`` ask for, with its headers.

    :param bare: without the envelope, as in the calls of v1.x.
    """
    size = min(_count("per_page", switches.default_per_page), switches.most_per_page)
    page = _count("page", 1)
    shown = [*rows[(page - 1) * size : page * size]]
    answer = json_answer(shown) if bare else data_answer(shown)
    last = max(1, -(-len(rows) // size))
    if switches.sends_total:
        answer.headers["Total"] = str(len(rows))
        answer.headers["Per-Page"] = str(size)
    if switches.sends_link and last > 1:
        pages = {"first": 1, "prev": page - 1, "next": page + 1, "last": last}
        links = [
            f'<{_page_url(number, size)}>; rel="{name}"'
            for name, number in pages.items()
            if 1 <= number <= last and number != page
        ]
        answer.headers["Link"] = ", ".join(links)
    return answer


def _count(name: str, default: int) -> int:
    text = request.args.get(name)
    if text is None or text == "":
        return default
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise Refusal(400, f"{name} is not a positive number", source=name)
    return int(text)


def _page_url(page: int, size: int) -> str:
    replaced = {"page", "per_page"}
    kept = [(k, v) for k, v in request.args.items(multi=True) if k not in replaced]
    query = urlencode([*kept, ("page", page), ("per_page", size)])
    return f"{request.base_url}?{query}"


def body_object() -> dict[str, Any]:
    """Return the object that the request's body is; a form, if it is one.

    :raises Refusal: the body is something else.
    """
    if request.form:
        return dict(request.form.items())
    body = request.get_json(force=True, silent=True)
    if not isinstance(body, dict):
        raise Refusal(400, "The body is not a JSON object")
    return body


def body_array() -> list[Any]:
    """Return the array that the request's body is.

    :raises Refusal: the body is something else.
    """
    body = request.get_json(force=True, silent=True)
    if not isinstance(body, list):
        raise Refusal(400, "The body is not a JSON array")
    return body


# Broken answers


@dataclass
class Broken:
    """An order for broken answers."""

    kind: str
    method: str
    path: str
    times: int
    skip: int
    seconds: float

    def matches(self, method: str, target: str) -> bool:
        """Whether the order is about the request."""
        if self.method not in ("*", method):
            return False
        try:
            return self.path in target or bool(re.search(self.path, target))
        except re.error:
            return False


#: Makes the answer that an order asks for.
Replacement = Callable[[Broken, Switches], Response]


class Breakage:
    """The orders for broken answers, each for a number of requests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._orders: list[Broken] = []

    def order(self, broken: Broken) -> None:
        """Add the order.

        :raises ValueError: there is no such kind.
        """
        if broken.kind not in KINDS:
            raise ValueError(f"kind is one of {', '.join(KINDS)}, not {broken.kind!r}")
        with self._lock:
            self._orders.append(broken)

    def take(self, method: str, target: str) -> Broken | None:
        """Return the order for this request, if there is one; count the request."""
        with self._lock:
            for order in self._orders:
                if not order.matches(method, target):
                    continue
                if order.skip:
                    order.skip -= 1
                    continue
                order.times -= 1
                if order.times <= 0:
                    self._orders.remove(order)
                return order
        return None


def replacement(broken: Broken | None, switches: Switches) -> Response | None:
    """Return the answer that takes the place of the real one, for such kinds."""
    if broken is None:
        return None
    make = REPLACED.get(broken.kind)
    return make(broken, switches) if make else None


def spoil(broken: Broken | None, answer: Response) -> None:
    """Change the real answer, for such kinds."""
    change = SPOILED.get(broken.kind) if broken else None
    if change is not None:
        # A body that is no JSON, as that of a 204, stays as it is.
        with suppress(ValueError):
            answer.set_data(change(answer.get_data()))


def _html(broken: Broken, switches: Switches) -> Response:
    page = "<!DOCTYPE html><title>Log In</title><form action='/login'></form>"
    return Response(page, mimetype="text/html")


def _redirect(broken: Broken, switches: Switches) -> Response:
    there = "https://elsewhere.example.com/login"
    return Response(status=302, headers={"Location": there})


def _failure(status: int) -> Replacement:
    def answer(broken: Broken, switches: Switches) -> Response:
        has_wait = status != 500 and broken.seconds > 0
        wait = {"Retry-After": f"{broken.seconds:.0f}"} if has_wait else {}
        refusal = Refusal(status, HTTPStatus(status).phrase, headers=wait)
        return error_answer(refusal, switches)

    return answer


def _with_null(data: bytes) -> bytes:
    body = json.loads(data)
    if isinstance(body, list):
        return json.dumps([None, *body]).encode()
    if isinstance(body, dict) and isinstance(body.get("data"), list):
        body["data"] = [None, *body["data"]]
    return json.dumps(body).encode()


def _with_numbers(data: bytes) -> bytes:
    return json.dumps(_numbered(json.loads(data))).encode()


def _numbered(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _numbered(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [_numbered(each, key) for each in value]
    is_id = key == "id" or key.endswith("_id")
    if is_id and isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    return value


#: Kinds that take the place of the real answer.
REPLACED: dict[str, Replacement] = {
    "html": _html,
    "empty": lambda broken, switches: Response(b"", mimetype="application/json"),
    "null": lambda broken, switches: data_answer(None),
    "redirect": _redirect,
    "500": _failure(500),
    "503": _failure(503),
}
#: Kinds that change the body of the real answer.
SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "null items": _with_null,
    "numbers": _with_numbers,
}
KINDS = (*REPLACED, *SPOILED, "429", "repeat", "reset", "slow")
