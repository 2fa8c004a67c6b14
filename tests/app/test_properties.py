"""Thousands of malformed, forged and valid requests through the real WSGI stack.

Hypothesis draws the material, and a seeded generator makes a batch of requests from it
in each example: a hundred times faster than drawing each request, and as reproducible.
The expected answers are computed here, without the code under test. The inbox is a real
SQLite file with ``synchronous`` off.
"""

from __future__ import annotations

import copy
import hashlib
import hmac
import io
import json
import math
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from datetime import datetime
from datetime import timezone
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from support.payloads import PAYLOADS
from support.values import SECRET

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import PrudraWebhooks
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints

pytestmark = pytest.mark.slow

NOW = 1_767_225_600
TOLERANCE = 300
MAX_BYTES = 20_000
SAMPLES = {path.stem: path.read_bytes() for path in sorted(PAYLOADS.glob("*.json"))}
NAMES = {"procore": "X_PROCORE", "prudra": "X_PRUDRA"}

RECEIVED = {"received": True}
DUPLICATE = {"received": True, "duplicate": True}
QUARANTINED = {"received": True, "quarantined": True}
UNSIGNED = {"error": "Invalid signature"}
TOO_LARGE = {"error": "Payload too large"}

Environ = dict[str, str]

#: The count of each answer, and the tests that have sent all their requests.
answers: Counter[str] = Counter()
finished: set[str] = set()


@dataclass(frozen=True)
class Answer:
    status: int
    type: str | None
    body: bytes

    @property
    def json(self) -> object:
        return json.loads(self.body)


@dataclass
class Receiver:
    """An app with an endpoint for each source, and a count of each event's runs."""

    app: Flask
    ran: Counter[tuple[str, str]] = field(default_factory=Counter)

    def send(self, body: bytes, environ: Environ) -> Answer:
        """Call the app with one request, as a WSGI server does."""
        path = environ.get("PATH_INFO", "/webhooks/procore")
        made: dict[str, Any] = {
            "REQUEST_METHOD": "POST",
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": "",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_HOST": "localhost",
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": False,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            **environ,
        }
        started: list[Any] = []
        chunks = self.app(made, lambda *args: started.append(args))
        content = b"".join(chunks)
        getattr(chunks, "close", lambda: None)()
        (status, headers, *_) = started[-1]
        return Answer(int(status[:3]), dict(headers).get("Content-Type"), content)

    def start(self) -> None:
        """Delete all state, so that a repeated example gives the same result."""
        self.ran.clear()
        store = self.endpoint.store
        with store.connection() as connection:
            for table in store.database.tables:
                connection.execute(sa.delete(table))

    def rows(self) -> list[Any]:
        c = self.endpoint.store.columns
        look = sa.select(c.endpoint, c.event_id, c.status, c.body).order_by(c.id)
        return self.endpoint.store.rows(look)

    @property
    def endpoint(self) -> Endpoint:
        """One of the endpoints, which share their tables."""
        return next(iter(endpoints(self.app).values()))


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    folder = tmp_path_factory.mktemp("properties")
    app = Flask("host", instance_path=str(folder))
    # As in production, errors are answered instead of raised.
    app.config.update(TESTING=False)
    for prefix in ("PROCORE_WEBHOOK_", "PRUDRA_WEBHOOK_"):
        app.config[prefix + "SECRET"] = SECRET
        app.config[prefix + "SECRET_FALLBACKS"] = ["an older secret"]
        app.config[prefix + "MAX_BYTES"] = MAX_BYTES
        app.config[prefix + "DISPATCH"] = "inline"
    receiver = Receiver(app)
    for blueprint in (ProcoreWebhooks(), PrudraWebhooks()):
        blueprint.on()(lambda event: take(receiver, event))
        app.register_blueprint(blueprint)
    engines = []
    for endpoint in endpoints(app).values():
        endpoint.store.now = lambda: datetime.fromtimestamp(NOW, timezone.utc)
        engines.append(endpoint.store.database.engine)
        with engines[-1].connect() as connection:
            connection.exec_driver_sql("PRAGMA synchronous=OFF")
    yield receiver
    for engine in engines:
        engine.dispose()


def take(receiver: Receiver, event: Event) -> None:
    """A subscriber that checks the event's fields."""
    assert event.id and event.body and event.attempt == 1
    assert {event.resource_id, event.company_id, event.project_id}.isdisjoint({"", 0})
    assert event.timestamp is None or event.timestamp.tzinfo is timezone.utc
    assert repr(event)
    receiver.ran[event.endpoint, event.id] += 1


# Expected answers, computed without the code under test


def sign(
    body: bytes, *, source: str = "procore", stamp: str = str(NOW), key: str = SECRET
) -> Environ:
    message = stamp.encode("latin-1") + b"." + body
    digest = hmac.new(key.encode(), message, hashlib.sha256).hexdigest()
    return {
        "PATH_INFO": f"/webhooks/{source}",
        f"HTTP_{NAMES[source]}_SIGNATURE": digest,
        f"HTTP_{NAMES[source]}_TIMESTAMP": stamp,
    }


def is_authentic(environ: Environ, body: bytes) -> bool:
    source = "prudra" if "prudra" in environ.get("PATH_INFO", "") else "procore"
    digest = environ.get(f"HTTP_{NAMES[source]}_SIGNATURE", "")
    stamp = environ.get(f"HTTP_{NAMES[source]}_TIMESTAMP", "")
    if not re.fullmatch(r"\d{1,16}", stamp, re.ASCII):
        return False
    if environ.get("CONTENT_LENGTH", str(len(body))) != str(len(body)):
        return False
    good = [
        prefix + sign(body, source=source, stamp=stamp, key=key)[name]
        for prefix in ("", "sha256=")
        for key in (SECRET, "an older secret")
        for name in (f"HTTP_{NAMES[source]}_SIGNATURE",)
    ]
    prefix, digits = digest[:-64], digest[-64:].lower()
    return prefix + digits in good and abs(NOW - int(stamp)) <= TOLERANCE


def is_one_json_object(body: bytes) -> bool:
    """Decided by the standard library's parser, with its leniencies excluded."""
    lenient = True

    def strict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal lenient
        lenient &= len({key for key, _ in pairs}) == len(pairs)
        return dict(pairs)

    def number(text: str) -> float:
        nonlocal lenient
        lenient &= math.isfinite(float(text))
        return 0.0

    def whole(text: str) -> int:
        nonlocal lenient
        lenient &= len(text) <= 1000
        return 0

    try:
        found = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=strict,
            parse_float=number,
            parse_int=whole,
            parse_constant=lambda name: number("inf"),
        )
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and lenient


def check(receiver: Receiver, body: bytes, environ: Environ) -> Answer:
    """Send a request, and check its answer against the expected one."""
    answer = receiver.send(body, environ)
    answers[f"{answer.status} {answer.json if answer.status != 405 else ''}"] += 1
    if environ.get("REQUEST_METHOD", "POST") != "POST":
        assert answer.status == 405
        return answer
    assert answer.type == "application/json"
    if is_authentic(environ, body) and len(body) <= MAX_BYTES:
        assert answer.status == 200
        assert answer.json in (RECEIVED, DUPLICATE, QUARANTINED)
    else:
        assert (answer.status, answer.json) in ((401, UNSIGNED), (413, TOO_LARGE))
        assert (answer.status == 413) <= is_large(environ, body)
    return answer


def is_large(environ: Environ, body: bytes) -> bool:
    length = environ.get("CONTENT_LENGTH", "").strip()
    claimed = re.fullmatch(r"\d+", length, re.ASCII) and length.lstrip("0")
    return len(body) > MAX_BYTES or len(claimed or "") >= len(str(MAX_BYTES))


# Mutations

FRAGMENTS = [
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b'"',
    b"{",
    b"}",
    b"[" * 3000,
    b'{"a":' * 1500,
    b",",
    b":",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 1001,
    b"\\u0000",
    b"\\ud800",
    b'"id":1,',
    b"\n",
    b"null",
    b"true",
    b"\\",
]
JUNK: list[Any] = [
    None,
    "",
    " ",
    0,
    -1,
    1,
    True,
    False,
    1.5,
    -0.0,
    1e308,
    2**63 - 1,
    2**63,
    10**999,
    [],
    {},
    [None],
    {"id": "1"},
    "\0",
    "\ud800",
    "\udfff\ud800",
    "\U0001f3d7",
    "x" * 81,
    "é" * 300,
    "İ" * 300,
    "sha256:" + "0" * 64,
    "create",
    "UPDATE",
    "resource.created",
    "....",
    "2026-05-04T10:11:12.345678Z",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    "%s",
    "'; DROP TABLE procore_webhook_event; --",
]
KEYS = [
    "id",
    "ulid",
    "eventId",
    "type",
    "data",
    "payload",
    "created",
    "reason",
    "event_type",
    "resource_type",
    "resource_name",
    "resource_id",
    "company_id",
    "project_id",
    "user_id",
    "timestamp",
    "metadata",
    "api_version",
    "payload_version",
    "source_application_id",
    "",
    "\0",
    "__proto__",
    "\ud800",
]


def mutated_bytes(rnd: random.Random, body: bytes) -> bytes:
    raw = bytearray(body)
    for _ in range(rnd.randint(1, 3)):
        here = rnd.randint(0, len(raw))
        there = min(len(raw), here + rnd.randint(0, 30))
        match rnd.randrange(6):
            case 0 if here < len(raw):
                raw[here] ^= 1 << rnd.randrange(8)
            case 1:
                del raw[here:there]
            case 2:
                raw[here:here] = raw[here:there]
            case 3:
                raw[here:here] = rnd.choice(FRAGMENTS)
            case 4:
                raw[here:there] = rnd.choice(FRAGMENTS)
            case _:
                del raw[here:]
    return bytes(raw)


def mutated_json(rnd: random.Random, body: bytes, junk: list[Any]) -> bytes:
    top = json.loads(body)
    for key in ("id", "ulid", "eventId"):
        # Mostly a new event, sometimes a known event with another body.
        if key in top and rnd.random() < 0.9:
            top[key] = rnd.choice([str, int])(rnd.getrandbits(63))
    for _ in range(rnd.randint(1, 4)):
        inner = [value for value in top.values() if isinstance(value, dict)]
        target = rnd.choice([top, *inner])
        key = rnd.choice([*target, *KEYS])
        match rnd.randrange(5):
            case 0:
                target.pop(key, None)
            case 1:
                target[rnd.choice(KEYS)] = target.pop(key, None)
            case 2:
                target[key] = {key: copy.deepcopy(rnd.choice(junk))}
            case _:
                target[key] = copy.deepcopy(rnd.choice(junk))
    text = json.dumps(
        top,
        ensure_ascii=rnd.random() < 0.7,
        indent=rnd.choice([None, None, 0, "\t"]),
        separators=rnd.choice([None, (",", ":"), (" ,\r\n", "\t: ")]),
    )
    return text.encode("utf-8", "surrogatepass")


def mutated_text(rnd: random.Random, text: str, other: list[str]) -> str:
    here = rnd.randint(0, len(text))
    match rnd.randrange(10):
        case 0:
            return text[:here] + chr(rnd.randrange(256)) + text[here:]
        case 1:
            return text[:here] + text[here + 1 :]
        case 2:
            return (
                text[:here] + rnd.choice("0123456789abcdefXYZ _-+") + text[here + 1 :]
            )
        case 3:
            return rnd.choice([text.upper(), text.title(), text[::-1], text * 2])
        case 4:
            return rnd.choice(
                [f"{text},{text}", f"{text}, {text}", f" {text}", f"{text}\n"]
            )
        case 5:
            return rnd.choice(["sha256=", "sha1=", "SHA256=", "v1,", "0x"]) + text
        case 6:
            return rnd.choice(["", " ", "0", "-1", "1e9", "NaN", "\xff" * 64, "0" * 64])
        case 7 if text.isdigit():
            return str(int(text) + rnd.choice([-301, -300, -1, 1, 300, 301, 10**12]))
        case 8:
            return rnd.choice(["0", "00000"]) + text
        case _:
            return rnd.choice(other)


def mutated_headers(rnd: random.Random, environ: Environ, other: list[str]) -> Environ:
    """Mutate signed headers and add others, which must not change the answer."""
    changed = dict(environ)
    matter = [name for name in environ if name.startswith("HTTP_X_")]
    for name in rnd.sample(matter, rnd.choice([0, 1, 1, 2])):
        if rnd.random() < 0.15:
            del changed[name]
        else:
            changed[name] = mutated_text(rnd, changed[name], other)
    if rnd.random() < 0.1:
        changed["CONTENT_LENGTH"] = rnd.choice(
            ["", "0", "1", "-1", "x", "1.5", "9" * 5, "9" * 5000, *other]
        )
    if rnd.random() < 0.05:
        changed["REQUEST_METHOD"] = rnd.choice(["GET", "PUT", "PATCH", "DELETE"])
    if rnd.random() < 0.3:
        changed["PATH_INFO"] += "/"
    return changed | irrelevant(rnd, other)


def irrelevant(rnd: random.Random, other: list[str]) -> Environ:
    kinds = ["text/plain", "application/x-www-form-urlencoded", "", "*/*", "\xff"]
    kinds += ["multipart/form-data", "multipart/form-data; boundary=x", *other]
    choices: Mapping[str, list[str]] = {
        "CONTENT_TYPE": kinds,
        "HTTP_CONTENT_ENCODING": ["gzip", "br", "\xff"],
        "HTTP_AUTHORIZATION": ["Basic !", "Bearer", "Digest a=", *other],
        "HTTP_COOKIE": ["session=.", ";;=;", *other],
        "HTTP_X_FORWARDED_FOR": ["1.2.3.4", *other],
        "HTTP_X_HTTP_METHOD_OVERRIDE": ["DELETE"],
        "HTTP_EXPECT": ["100-continue"],
        "HTTP_ACCEPT": ["text/html", *other],
        "HTTP_CONTENT_MD5": other,
        "HTTP_IF_NONE_MATCH": ["*", *other],
        "HTTP_RANGE": ["bytes=0-0", *other],
        "QUERY_STRING": ["a=b&a", "%", "%ff=%00", *other],
    }
    names = rnd.sample(list(choices), rnd.choice([0, 0, 1, 3]))
    return {name: rnd.choice(choices[name]) for name in names}


_header_text = st.binary(max_size=70).map(lambda raw: raw.decode("latin-1"))
_others = st.lists(_header_text, min_size=1, max_size=8)
_seed = st.integers(0, 2**64)
_json = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=20),
        st.characters(categories=["Cs"]),
    ),
    lambda children: st.one_of(
        st.lists(children, max_size=4),
        st.dictionaries(st.text(max_size=8), children, max_size=4),
    ),
    max_leaves=12,
)
_bodies = st.lists(
    st.one_of(
        st.binary(max_size=200),
        st.sampled_from(list(SAMPLES.values())),
        _json.map(lambda value: json.dumps(value).encode()),
    ),
    min_size=1,
    max_size=6,
)


def generator(*material: object) -> random.Random:
    """Seeded with everything drawn, because Hypothesis often repeats a seed."""
    return random.Random(repr(material))


# The properties


def test_unauthentic_request_is_refused_and_not_recorded(receiver: Receiver) -> None:
    @settings(max_examples=140)
    @given(_seed, _bodies, _others)
    def forge(seed: int, bodies: list[bytes], other: list[str]) -> None:
        rnd = generator(seed, bodies, other)
        receiver.start()
        for _ in range(80):
            body, source = rnd.choice(bodies), rnd.choice(["procore", "prudra"])
            genuine = sign(body, source=source)
            environ: Environ = {"PATH_INFO": genuine["PATH_INFO"]}
            match rnd.randrange(6):
                case 0:
                    names = [name for name in genuine if name.startswith("HTTP")]
                    environ |= {name: rnd.choice(other) for name in names}
                case 1:
                    environ |= sign(body, source=source, key=rnd.choice(other))
                case 2:
                    environ |= sign(mutated_bytes(rnd, body), source=source)
                case 3:
                    far = rnd.choice([-1, 1]) * rnd.randint(301, NOW)
                    environ |= sign(body, source=source, stamp=str(NOW + far))
                case 4:
                    environ |= sign(body, source=source, stamp=rnd.choice(other))
                case _:
                    wrong = "prudra" if source == "procore" else "procore"
                    environ |= sign(body, source=wrong) | environ
            if is_authentic(environ, body):
                continue
            answer = check(receiver, body, environ | irrelevant(rnd, other))
            assert answer.status == 401
        assert receiver.rows() == []
        assert not receiver.ran

    forge()
    finished.add("forged")


def test_authentic_body_of_any_bytes_is_recorded(
    receiver: Receiver,
) -> None:
    @settings(max_examples=65)
    @given(_seed, _bodies, _others)
    def post(seed: int, bodies: list[bytes], other: list[str]) -> None:
        rnd = generator(seed, bodies, other)
        receiver.start()
        delivered = []
        for _ in range(40):
            body = mutated_bytes(rnd, rnd.choice(bodies))
            source = rnd.choice(["procore", "prudra"])
            stamp = str(NOW + rnd.randint(-TOLERANCE, TOLERANCE))
            key = rnd.choice([SECRET, "an older secret"])
            environ = sign(body, source=source, stamp=stamp, key=key)
            answer = check(receiver, body, environ | irrelevant(rnd, other))
            if len(body) <= MAX_BYTES:
                delivered.append((body, answer.json))
        expect_kept(receiver, delivered)

    post()
    finished.add("bytes")


def test_authentic_object_of_any_content_is_run(
    receiver: Receiver,
) -> None:
    @settings(max_examples=40)
    @given(_seed, st.lists(_json, max_size=6))
    def post(seed: int, junk: list[Any]) -> None:
        rnd = generator(seed, junk)
        receiver.start()
        delivered = []
        for _ in range(50):
            sample = SAMPLES[rnd.choice(list(SAMPLES))]
            body = mutated_json(rnd, sample, JUNK + junk)
            source = rnd.choice(["procore", "procore", "prudra"])
            environ = sign(body, source=source)
            for _ in range(rnd.choice([1, 1, 1, 2])):
                answer = check(receiver, body, environ)
                if len(body) <= MAX_BYTES:
                    delivered.append((body, answer.json))
        expect_kept(receiver, delivered)

    post()
    finished.add("objects")


def test_authenticity_depends_only_on_headers_and_body(
    receiver: Receiver,
) -> None:
    @settings(max_examples=80)
    @given(_seed, _others)
    def post(seed: int, other: list[str]) -> None:
        rnd = generator(seed, other)
        receiver.start()
        delivered = []
        for _ in range(60):
            body = SAMPLES[rnd.choice(list(SAMPLES))]
            if rnd.random() < 0.7:
                body = json.dumps({"id": rnd.randint(1, 10**18)}).encode()
            if rnd.random() < 0.02:
                body += b" " * rnd.choice([MAX_BYTES - len(body), MAX_BYTES])
            genuine = sign(body, source=rnd.choice(["procore", "prudra"]))
            environ = mutated_headers(rnd, genuine, other)
            answer = check(receiver, body, environ)
            if answer.status == 200:
                delivered.append((body, answer.json))
        expect_kept(receiver, delivered)

    post()
    finished.add("headers")


def expect_kept(receiver: Receiver, delivered: list[tuple[bytes, Any]]) -> None:
    """Rows and answers match: one row for each body accepted as new, and no other."""
    rows = receiver.rows()
    fresh = [body for body, answer in delivered if answer == RECEIVED]
    unreadable = {body for body, answer in delivered if answer == QUARANTINED}
    done = [row for row in rows if row.status == "done"]
    quarantined = [row for row in rows if row.status == "quarantined"]
    assert len(done) + len(quarantined) == len(rows)
    assert [row.body for row in done] == fresh
    assert {row.body for row in quarantined} <= unreadable
    assert all(is_one_json_object(body) for body in fresh)
    assert not any(is_one_json_object(body) for body in unreadable)
    for row in rows:
        runs = receiver.ran[row.endpoint, row.event_id]
        assert runs == (1 if row.status == "done" else 0)


def test_twenty_thousand_requests_were_sent() -> None:
    if finished != {"forged", "bytes", "objects", "headers"}:
        pytest.skip("it counts what the tests above sent in the same process")
    assert answers.total() >= 20_000
    kinds = [f"200 {kind}" for kind in (RECEIVED, DUPLICATE, QUARANTINED)]
    kinds += [f"401 {UNSIGNED}", f"413 {TOO_LARGE}", "405 "]
    assert sorted(answers) == sorted(kinds)
    assert min(answers.values()) >= 20, answers
