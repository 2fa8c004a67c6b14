"""Deliveries as they are played: each a new event with a fresh valid signature."""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask_procore_webhooks.testing import payload

SECRET = "a secret of the benchmarks"
PATH = "/webhooks/procore"


@dataclass(frozen=True)
class Delivery:
    body: bytes
    timestamp: str
    signature: str

    def environ(self) -> dict[str, Any]:
        """What a WSGI server hands over for it."""
        return {
            "REQUEST_METHOD": "POST",
            "SCRIPT_NAME": "",
            "PATH_INFO": PATH,
            "QUERY_STRING": "",
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "8000",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": str(len(self.body)),
            "HTTP_HOST": "127.0.0.1:8000",
            "HTTP_USER_AGENT": "benchmarks",
            "HTTP_ACCEPT": "*/*",
            "HTTP_X_PROCORE_SIGNATURE": self.signature,
            "HTTP_X_PROCORE_TIMESTAMP": self.timestamp,
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(self.body),
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }

    def request(self) -> bytes:
        """The bytes of its HTTP request."""
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: benchmarks\r\n"
            f"Accept: */*\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(self.body)}\r\n"
            f"X-Procore-Timestamp: {self.timestamp}\r\n"
            f"X-Procore-Signature: {self.signature}\r\n\r\n"
        )
        return head.encode("ascii") + self.body


def deliveries(count: int, resources: int = 0) -> list[Delivery]:
    """New events of one resource, or each of another one of so many."""
    if not resources:
        return [_new(1) for _ in range(count)]
    return [_new(resource) for resource in random.sample(range(resources), count)]


def _new(resource: int) -> Delivery:
    sample = payload("RFIs.update", format="v4", resource_id=str(resource))
    return signed(to_bytes(sample))


def to_bytes(sample: Mapping[str, Any]) -> bytes:
    return json.dumps(sample, separators=(",", ":")).encode()


def signed(body: bytes) -> Delivery:
    timestamp = str(int(time.time()))
    signs = timestamp.encode() + b"." + body
    signature = hmac.digest(SECRET.encode(), signs, hashlib.sha256).hex()
    return Delivery(body, timestamp, signature)


def write_requests(path: Path, count: int) -> None:
    """Write requests for a client to play: the length of each on a line before it."""
    with path.open("wb") as file:
        for delivery in deliveries(count):
            request = delivery.request()
            file.write(b"%d\n%s" % (len(request), request))


def read_requests(path: Path) -> list[bytes]:
    requests = []
    with path.open("rb") as file:
        while length := file.readline():
            requests.append(file.read(int(length)))
    return requests
