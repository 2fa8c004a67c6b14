"""``python -m benchmarks.client FILE PORT CONNECTIONS SECONDS``: plays requests.

For where there is no wrk. One thread and one loop over raw sockets, each of which sends
its next request when the answer to the last one is whole. It does as little as it can,
so that it takes no time from the server.
"""

from __future__ import annotations

import json
import re
import select
import socket
import sys
import time
from pathlib import Path

from .deliveries import deliveries
from .deliveries import read_requests
from .figures import WrongAnswer

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
OK = b"HTTP/1.1 200 "
#: Seconds to wait for an answer.
PATIENCE = 10.0
#: Deliveries that are made at a time, so that no signature gets old.
AT_A_TIME = 5000


def main() -> None:
    file, port, connections, seconds = sys.argv[1:]
    requests = read_requests(Path(file))
    played = play(requests, int(port), int(connections), float(seconds))
    print(json.dumps(played))


def play(
    requests: list[bytes], port: int, connections: int, seconds: float
) -> dict[str, float | bool]:
    run = _Run(requests, seconds)
    for _ in range(connections):
        run.connect(port)
    run.play()
    run.latencies.sort()
    return {
        "answered": len(run.latencies),
        "refused": run.refused,
        "failed": run.failed,
        "seconds": time.perf_counter() - run.start,
        "p50": percentile(run.latencies, 0.5),
        "p99": percentile(run.latencies, 0.99),
        "exhausted": run.exhausted,
    }


def deliver(count: int, port: int, connections: int) -> None:
    """Deliver so many new events.

    :raises WrongAnswer: one was not answered with 200.
    """
    for start in range(0, count, AT_A_TIME):
        requests = [one.request() for one in deliveries(min(AT_A_TIME, count - start))]
        played = play(requests, port, connections, 60 + len(requests))
        if played["refused"] or played["answered"] != len(requests):
            raise WrongAnswer(f"not every answer was 200: {played}")


class _Run:
    def __init__(self, requests: list[bytes], seconds: float) -> None:
        self.start = time.perf_counter()
        self.end = self.start + seconds
        self.latencies: list[float] = []
        self.refused = self.failed = 0
        self.exhausted = False
        self._left = iter(requests)
        self._poll = select.poll()
        self._sockets: dict[int, socket.socket] = {}
        #: When the request under way was sent, and what has come of its answer.
        self._sent: dict[int, float] = {}
        self._come: dict[int, bytes] = {}

    def connect(self, port: int) -> None:
        one = socket.create_connection(("127.0.0.1", port))
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sockets[one.fileno()] = one
        self._poll.register(one, select.POLLIN)

    def play(self) -> None:
        for number in self._sockets:
            self._send(number, time.perf_counter())
        while self._sent:
            ready = self._poll.poll(PATIENCE * 1000)
            if not ready:
                self.failed += len(self._sent)
                return
            for number, _ in ready:
                self._receive(number)

    def _send(self, number: int, now: float) -> None:
        if now >= self.end:
            return
        request = next(self._left, None)
        if request is None:
            self.exhausted = True
            return
        self._sent[number] = now
        self._sockets[number].sendall(request)

    def _receive(self, number: int) -> None:
        come = self._sockets[number].recv(65536)
        if not come:
            self._poll.unregister(number)
            self.failed += self._sent.pop(number, None) is not None
            return
        answer = self._come.pop(number, b"") + come
        if not is_whole(answer):
            self._come[number] = answer
            return
        now = time.perf_counter()
        self.latencies.append(now - self._sent.pop(number))
        self.refused += not answer.startswith(OK)
        self._send(number, now)


def is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = LENGTH.search(head)
    return bool(end) and length is not None and len(body) >= int(length[1])


def percentile(ordered: list[float], part: float) -> float:
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


if __name__ == "__main__":
    main()
