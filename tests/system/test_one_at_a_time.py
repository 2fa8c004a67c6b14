"""``one_at_a_time`` under worker processes that are killed at random.

Each call appends lines to one file: its begin and its end. A file lock for each key
shows at once whether two living calls have it.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import Counter
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from flask import Flask
from support.inboxes import counted
from support.processes import environment
from support.processes import Process
from support.processes import start
from support.values import SECRET
from support.waiting import wait_until

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.storage.store import Store
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]

WORKERS, CONCURRENCY = 4, 3
KEYS = ("4001", "4002", "4003", "4004", "4005")
EVENTS = 120
#: Seconds of a call: at least and at most.
CALL = (0.1, 0.5)
LEASE = 2.0
#: Seconds with kills, and between two of them: at least and at most.
KILLING = 10.0
BETWEEN = (0.4, 1.2)
#: Seconds for all events to end after the last kill.
RECOVERY = 60.0
#: Seconds that two clocks, of a machine and of its database, may differ.
ROUNDING = 0.05

SETTINGS = {
    "PROCORE_WEBHOOK_SECRET": SECRET,
    "PROCORE_WEBHOOK_DISPATCH": "worker",
    "PROCORE_WEBHOOK_LEASE": LEASE,
    "PROCORE_WEBHOOK_RETRY_BASE": 0.2,
    "PROCORE_WEBHOOK_RETRY_CAP": 1.0,
    # A kill uses up an attempt.
    "PROCORE_WEBHOOK_MAX_ATTEMPTS": 1000,
}

APP = """
import fcntl, json, os, random, time
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks

app = Flask("keys", instance_path={folder!r})
app.config.update({config!r})
webhooks = ProcoreWebhooks()

def note(what, event):
    line = json.dumps([what, event.resource_id, event.id, os.getpid(), time.time()])
    os.write(calls, line.encode() + b"\\n")

calls = os.open({calls!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@webhooks.on("Submittals", name="copy", **{options!r})
def copy(event):
    with open(os.path.join({folder!r}, "key-" + event.resource_id), "w") as key:
        try:
            fcntl.flock(key, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note("shared", event)
        note("begin", event)
        time.sleep(random.uniform(*{seconds!r}))
        note("end", event)

app.register_blueprint(webhooks)
"""


@dataclass
class Call:
    """A call of the subscriber; ``end`` is ``None`` if its process was killed."""

    key: str
    event: str
    pid: int
    begin: float
    end: float | None = None


class Shop:
    """Four workers, one after the other of which is killed and started again."""

    def __init__(self, folder: Path, url: str, options: dict[str, object]) -> None:
        self.folder = folder
        self.calls_file = folder / "calls"
        config = {**SETTINGS, "PROCORE_WEBHOOK_DATABASE_URI": url}
        text = APP.format(
            folder=str(folder),
            config=config,
            calls=str(self.calls_file),
            options=options,
            seconds=CALL,
        )
        (folder / "keyapp.py").write_text(text)
        self.workers: list[Process] = []
        #: When each killed process ended, by process id.
        self.killed: dict[int, float] = {}

    def start(self) -> None:
        command = ["-m", "flask", "--app", "keyapp", "procore-webhooks", "worker"]
        options = ["--concurrency", str(CONCURRENCY), "--poll", "0.2"]
        number = len(self.workers) + len(self.killed)
        worker = start(
            [sys.executable, *command, *options],
            folder=self.folder,
            env=environment(path=[self.folder]),
            log=self.folder / f"worker{number}.log",
        )
        self.workers.append(worker)

    def kill_one(self, rng: random.Random) -> None:
        worker = self.workers.pop(rng.randrange(len(self.workers)))
        assert worker.is_running, worker.output()
        worker.kill()
        self.killed[worker.pid] = time.time()

    def end(self) -> None:
        for worker in self.workers:
            worker.kill()

    def lines(self) -> list[list[str]]:
        if not self.calls_file.exists():
            return []
        return [json.loads(line) for line in self.calls_file.read_text().splitlines()]

    def calls(self) -> list[Call]:
        found: dict[tuple[str, int], Call] = {}
        ended: list[Call] = []
        for what, key, event, pid, at in self.lines():
            if what == "begin":
                call = found[event, int(pid)] = Call(key, event, int(pid), float(at))
                ended.append(call)
            elif what == "end":
                found[event, int(pid)].end = float(at)
        return ended


@pytest.fixture
def app(
    make_app: MakeApp, webhooks: ProcoreWebhooks, database_url: str
) -> Iterator[Flask]:
    """The app that records the deliveries."""
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=database_url, **SETTINGS)
    app.register_blueprint(webhooks)
    yield app
    for endpoint in endpoints(app).values():
        endpoint.store.database.engine.dispose()


@pytest.fixture
def seed() -> int:
    """The random seed; KEYS_SEED repeats the deliveries and kills of a failed test."""
    seed = int(os.environ.get("KEYS_SEED") or random.randrange(10**6))
    print(f"KEYS_SEED={seed}")
    return seed


@pytest.mark.seldom("mariadb")
@pytest.mark.serial
@pytest.mark.slow
def test_calls_of_one_key_never_overlap_though_workers_are_killed(
    app: Flask, endpoint: Endpoint, database_url: str, tmp_path: Path, seed: int
) -> None:
    shop = Shop(tmp_path, database_url, {"one_at_a_time": True})
    try:
        play(shop, app, endpoint.store, random.Random(seed))
    finally:
        shop.end()
        for log in sorted(tmp_path.glob("worker*.log")):
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}")
    calls = shop.calls()
    print(f"{len(calls)} calls, {len(shop.killed)} kills")
    assert [line for line in shop.lines() if line[0] == "shared"] == []
    assert overlaps(calls, shop.killed) == []
    assert_each_ended(calls, shop)


def play(shop: Shop, app: Flask, store: Store, rng: random.Random) -> None:
    """Deliver events and kill workers, then wait until every event is done."""
    deliver_some(app, rng, 0, EVENTS // 2)
    for _ in range(WORKERS):
        shop.start()
    # The first kills meet running calls, not processes that are still starting.
    wait_until(shop.calls)
    deadline = time.monotonic() + KILLING
    number, total = EVENTS // 2, EVENTS
    while time.monotonic() < deadline:
        time.sleep(rng.uniform(*BETWEEN))
        shop.kill_one(rng)
        shop.start()
        more = min(rng.randrange(10), total - number)
        deliver_some(app, rng, number, number + more)
        number += more
    deliver_some(app, rng, number, total)
    wait_until_done(store, total, RECOVERY)
    # Each key is free again: no killed call holds it.
    for index, key in enumerate(KEYS):
        deliver_one(app, total + index, key)
    wait_until_done(store, total + len(KEYS), LEASE)


def deliver_some(app: Flask, rng: random.Random, first: int, end: int) -> None:
    for number in range(first, end):
        deliver_one(app, number, rng.choice(KEYS))


def deliver_one(app: Flask, number: int, key: str) -> None:
    id = f"evt_{number:03}"
    sent = payload("Submittals.update", format="v4", id=id, resource_id=key)
    assert deliver(app.test_client(), sent).status_code == 200


def wait_until_done(store: Store, count: int, seconds: float) -> None:
    wait_until(
        lambda: counted(store) == {"done": count},
        seconds,
        lambda: counted(store),
        pause=0.1,
    )


def overlaps(calls: Iterable[Call], killed: dict[int, float]) -> list[str]:
    """The calls that began before an earlier call of their key was over.

    A call without an end was over when its process was killed, at the earliest.
    """
    by_key = defaultdict(list)
    for call in calls:
        by_key[call.key].append(call)
    found = []
    for key, mine in by_key.items():
        mine.sort(key=lambda call: call.begin)
        for before, after in zip(mine, mine[1:], strict=False):
            over = before.end if before.end is not None else killed[before.pid]
            if after.begin < over:
                late = f"{over - after.begin:.3f} s"
                found.append(f"{key}: {after.event} {late} before {before.event}")
    return found


def assert_each_ended(calls: list[Call], shop: Shop) -> None:
    """Each event has a complete call, and only a killed process has others."""
    unfinished = [call for call in calls if call.end is None]
    assert {call.pid for call in unfinished} <= shop.killed.keys()
    complete = Counter(call.event for call in calls if call.end is not None)
    assert sorted(complete) == [
        f"evt_{number:03}" for number in range(EVENTS + len(KEYS))
    ]
    # A call is repeated after its end if its process was killed before the commit.
    again = {event for event, times in complete.items() if times > 1}
    of_killed = {call.event for call in calls if call.pid in shop.killed}
    assert again <= of_killed
    for call in unfinished:
        later = [c for c in calls if c.key == call.key and c.begin > call.begin]
        # The key is held to the end of the lease, which was renewed in its last third.
        if later:
            seconds = min(c.begin for c in later) - call.begin
            assert seconds >= LEASE * 2 / 3 - ROUNDING, call


def test_overlapping_calls_are_found() -> None:
    """A call that was killed is over at the kill."""
    calls = [
        Call("7", "evt_1", 1, 0.0, 1.0),
        Call("7", "evt_2", 2, 1.0),
        Call("7", "evt_3", 1, 2.5, 4.0),
        Call("8", "evt_4", 3, 3.0, 5.0),
    ]
    assert overlaps(calls, {2: 2.0}) == []
    assert len(overlaps(calls, {2: 3.0})) == 1
    calls.append(Call("7", "evt_5", 4, 3.5, 3.6))
    (text,) = overlaps(calls, {2: 2.0})
    assert text == "7: evt_5 0.500 s before evt_3"
