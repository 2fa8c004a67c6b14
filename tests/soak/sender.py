"""A sender: a paced stream of signed events, each delivered until answered 2xx."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager

from flask_procore_webhooks.senders.samples import to_bytes
from flask_procore_webhooks.testing import payload
from flask_procore_webhooks.testing import sign

from .app import PATH
from .app import SECRET

THREADS = 6
#: Deliveries a second, of all threads: less than the processes of an app can follow.
RATE = 15.0
#: Longest seconds between retries of a delivery.
PAUSE = 0.25
#: Timeout of an answer: longer than any sender's, so that every answer is seen.
TIMEOUT = 40.0
#: Share of deliveries that are copies of a recent event.
COPIES = 0.1
#: Share of deliveries with a new connection, perhaps to another process.
RECONNECTS = 0.2


class Stream:
    """Threads that deliver distinct events and copies until the end of the stream; each
    completes its current event.

    :param deadline: by ``time.monotonic``; events without 2xx by then are given up.
    :param troubles: share of the events of each resource type other than RFIs.
    """

    def __init__(
        self,
        port: int,
        seed: int,
        deadline: float,
        troubles: Mapping[str, float] | None = None,
    ) -> None:
        self.port = port
        self.seed = seed
        self.deadline = deadline
        #: May be changed while the stream flows.
        self.troubles = dict(troubles or {})
        #: Deliveries a second; likewise.
        self.rate = RATE
        #: Ids of the events answered 2xx.
        self.accepted: set[str] = set()
        self.duplicates = 0
        self.statuses: Counter[int] = Counter()
        #: Deliveries without an answer, because a process was killed or not running.
        self.unanswered = 0
        #: Ids of the events given up at the deadline.
        self.given_up: set[str] = set()
        #: Unexpected answers.
        self.strange: list[str] = []
        self._lately: list[dict[str, object]] = []
        self._sent = 0
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._send, args=(number,), daemon=True)
            for number in range(THREADS)
        ]

    @contextmanager
    def flowing(self) -> Iterator[Stream]:
        """Send until the end of the block, then complete the current events."""
        for thread in self._threads:
            thread.start()
        try:
            yield self
        except BaseException:
            self.deadline = 0.0
            raise
        finally:
            self.end()

    def end(self) -> None:
        """Complete the current events, and send no more."""
        self._ended.set()
        for thread in self._threads:
            thread.join(TIMEOUT + 10)

    def _send(self, number: int) -> None:
        rng = random.Random(f"{self.seed} {number}")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        while not self._ended.is_set():
            self._deliver(connection, self._next(rng), rng)
            if rng.random() < RECONNECTS:
                connection.close()
            time.sleep(rng.uniform(0, 2 * THREADS / self.rate))
        connection.close()

    def _next(self, rng: random.Random) -> dict[str, object]:
        with self._lock:
            if self._lately and rng.random() < COPIES:
                self.duplicates += 1
                return rng.choice(self._lately)
            self._sent += 1
            kinds = {**self.troubles, "RFIs": 1 - sum(self.troubles.values())}
            (kind,) = rng.choices(list(kinds), list(kinds.values()))
            event = payload(f"{kind}.update", id=f"evt_{self.seed}_{self._sent}")
            self._lately = [*self._lately[-20:], event]
            return event

    def _deliver(
        self,
        connection: http.client.HTTPConnection,
        event: dict[str, object],
        rng: random.Random,
    ) -> None:
        id = str(event["id"])
        while time.monotonic() < self.deadline:
            status, answer = _post(connection, event)
            with self._lock:
                if status is None:
                    self.unanswered += 1
                else:
                    self.statuses[status] += 1
                if status == 200:
                    self.accepted.add(id)
                    return
                if status not in (None, 503):
                    self.strange.append(f"{id} was answered {status}: {answer!r}")
            time.sleep(rng.uniform(0, PAUSE))
        with self._lock:
            self.given_up.add(id)


def _post(
    connection: http.client.HTTPConnection, event: dict[str, object]
) -> tuple[int | None, bytes]:
    """The status and the body of the answer; ``None`` without an answer."""
    body = to_bytes(event)
    headers = {"Content-Type": "application/json", **sign(body, SECRET)}
    status = None
    try:
        connection.request("POST", PATH, body, headers)
        response = connection.getresponse()
        # The status counts as the answer, even if the body is cut off.
        status = response.status
        return status, response.read()
    except (OSError, http.client.HTTPException):
        connection.close()
        return status, b""
