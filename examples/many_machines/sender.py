"""A sender with a load balancer: it repeats each delivery until it is accepted."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

from flask_procore_webhooks.testing import payload
from flask_procore_webhooks.testing import sign

THREADS = 6
#: Share of the events that are sent twice.
COPIES = 0.15
#: Seconds until the copy is sent, at most.
COPY_WITHIN = 3.0
#: Seconds to wait for an answer, and seconds before the next delivery.
PATIENCE = 5.0
PAUSE = 0.2

#: Pairs of a time, in seconds from the start, and an event.
Plan = list[tuple[float, dict[str, Any]]]


def plan(events: int, seconds: float, rng: Random) -> Plan:
    """Return events at regular times, and copies of some of them soon after."""
    planned: Plan = []
    for number in range(events):
        when, event = number * seconds / events, payload("RFIs.update", format="v4")
        planned.append((when, event))
        if rng.random() < COPIES:
            planned.append((when + rng.uniform(0, COPY_WITHIN), event))
    return sorted(planned, key=lambda each: each[0])


class Sender(threading.Thread):
    """Sends the deliveries of a plan.

    :param give_up_after: seconds from the start after which no delivery is repeated.
    """

    def __init__(
        self, planned: Plan, urls: list[str], secret: str, give_up_after: float
    ) -> None:
        super().__init__(daemon=True)
        self.urls = urls
        self.secret = secret
        #: Ids of the events that were answered 2xx.
        self.accepted: set[str] = set()
        #: Ids of the events that were never accepted.
        self.given_up: set[str] = set()
        #: Number of answers by status, ``"none"`` for a missing answer.
        self.answers: Counter[str] = Counter()
        #: Number of answers with ``"duplicate": true``.
        self.duplicates = 0
        self._planned = iter(planned)
        self._lock = threading.Lock()
        self._give_up_after = give_up_after

    def run(self) -> None:
        self._start = time.monotonic()
        threads = [threading.Thread(target=self._send) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _send(self) -> None:
        for when, event in self._turns():
            time.sleep(max(0.0, when - self._elapsed()))
            self._deliver(event)

    def _turns(self) -> Iterator[tuple[float, dict[str, Any]]]:
        while True:
            with self._lock:
                turn = next(self._planned, None)
            if turn is None:
                return
            yield turn

    def _deliver(self, event: dict[str, Any]) -> None:
        """Send the event to one server after the other until one accepts it."""
        rng = Random(event["id"])
        urls = rng.sample(self.urls, len(self.urls))
        while self._elapsed() < self._give_up_after:
            if self._is_accepted(event, urls[0]):
                return
            urls.append(urls.pop(0))
            time.sleep(rng.uniform(0, PAUSE))
        with self._lock:
            self.given_up.add(event["id"])

    def _is_accepted(self, event: dict[str, Any], url: str) -> bool:
        status, answer = post(url, event, self.secret)
        with self._lock:
            self.answers[status] += 1
            if status == "200":
                self.accepted.add(event["id"])
                self.duplicates += b'"duplicate"' in answer
        return status == "200"

    def _elapsed(self) -> float:
        return time.monotonic() - self._start


def post(url: str, event: dict[str, Any], secret: str) -> tuple[str, bytes]:
    """Return status and body of the answer; ``"none"`` if there was no answer."""
    body = json.dumps(event).encode()
    request = urllib.request.Request(url, body, sign(body, secret))
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return str(answer.status), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return str(error.code), b""
    except (OSError, http.client.HTTPException):
        return "none", b""
