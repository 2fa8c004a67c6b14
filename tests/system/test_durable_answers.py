"""A 200 means that the event's row is on the disk, also among parallel deliveries."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

#: Sends deliveries from eight threads, and writes each answer as a line with the id.
SENDER = """
import os, sys, threading
from concurrent.futures import ThreadPoolExecutor
from flask import Flask
from flask_procore_webhooks import event_recorded, ProcoreWebhooks
from flask_procore_webhooks.testing import deliver, payload

uri, number, killed = sys.argv[1], int(sys.argv[2]), sys.argv[3]
app = Flask("host")
app.config.update(
    PROCORE_WEBHOOK_SECRET="a secret",
    PROCORE_WEBHOOK_DATABASE_URI=uri,
    PROCORE_WEBHOOK_DISPATCH="worker",
)
app.register_blueprint(ProcoreWebhooks())

@event_recorded.connect
def die(app, event):
    if event.id == killed:
        os.kill(os.getpid(), 9)

def send(n):
    sent = payload("RFIs.create", id=f"evt_{n}")
    answer = deliver(app.test_client(), sent)
    os.write(1, f"evt_{n} {answer.status_code}\\n".encode())

send(0), send(1), send(2)
os.write(1, b"fails now\\n")
with ThreadPoolExecutor(8) as pool:
    list(pool.map(send, range(3, number)))
"""

#: Makes the disk fail once a line of its own was written to standard output.
FAILING_DISK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

static int fails = 0;

ssize_t write(int fd, const void *text, size_t length) {
    ssize_t (*next)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    if (fd == 1 && length == 10 && !memcmp(text, "fails now\\n", 10)) fails = 1;
    return next(fd, text, length);
}

static int sync_or_fail(const char *name, int fd) {
    int (*next)(int) = dlsym(RTLD_NEXT, name);
    if (!fails) return next(fd);
    errno = EIO;
    return -1;
}

int fsync(int fd) { return sync_or_fail("fsync", fd); }
int fdatasync(int fd) { return sync_or_fail("fdatasync", fd); }
"""


def send(
    uri: str, number: int, killed: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SENDER, uri, str(number), killed]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)


def answers(output: str) -> dict[str, int]:
    lines = [line.split() for line in output.splitlines() if line.startswith("evt_")]
    return {event_id: int(status) for event_id, status in lines}


def recorded(uri: str) -> set[str]:
    engine = sa.create_engine(uri)
    with engine.connect() as connection:
        query = sa.text("SELECT event_id FROM procore_webhook_event")
        found = set(connection.scalars(query))
    engine.dispose()
    return found


def test_process_killed_after_an_insert_has_answered_only_recorded_events(
    database_url: str,
) -> None:
    ended = send(database_url, 200, killed="evt_100")
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    answered = answers(ended.stdout)
    found = recorded(database_url)
    assert set(answered.values()) == {200} and "evt_100" not in answered
    assert set(answered) | {"evt_100"} <= found
    again = send(database_url, 200)
    assert again.returncode == 0, again.stderr
    assert set(answers(again.stdout).values()) == {200}
    assert recorded(database_url) == {f"evt_{n}" for n in range(200)}


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is of Linux")
def test_no_delivery_is_answered_200_while_the_disk_fails(tmp_path: Path) -> None:
    source, library = tmp_path / "disk.c", tmp_path / "disk.so"
    source.write_text(FAILING_DISK)
    build = ["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    subprocess.run(build, check=True, timeout=60)
    file = tmp_path / "inbox.db"
    env = {"PATH": "", "LD_PRELOAD": str(library)}
    ended = send(f"sqlite:///{file}", 19, env=env)
    assert ended.returncode == 0, ended.stderr
    statuses = list(answers(ended.stdout).values())
    assert statuses[:3] == [200] * 3
    assert statuses[3:] == [503] * 16
    # The next process, on a disk that works, records all of them.
    again = send(f"sqlite:///{file}", 19)
    assert set(answers(again.stdout).values()) == {200}, again.stderr
    with sqlite3.connect(file) as connection:
        query = "SELECT count(*) FROM procore_webhook_event"
        assert connection.execute(query).fetchone() == (19,)
    connection.close()


#: Daemon threads, as those of some servers, deliver until the process has ended.
ENDS = """
import atexit, sys, threading, time
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.testing import deliver, payload

app = Flask("host")
app.config.update(
    PROCORE_WEBHOOK_SECRET="a secret",
    PROCORE_WEBHOOK_DATABASE_URI=sys.argv[1],
    PROCORE_WEBHOOK_DISPATCH="worker",
)
app.register_blueprint(ProcoreWebhooks())

def send():
    return deliver(app.test_client(), payload("RFIs.create")).status_code

def go_on():
    while True:
        send()

assert [send(), send(), send()] == [200] * 3
for _ in range(4):
    threading.Thread(target=go_on, daemon=True).start()
time.sleep(0.3)  # deliveries are under way when the process ends
"""


def test_process_ends_while_daemon_threads_deliver(database_url: str) -> None:
    command = [sys.executable, "-c", ENDS, database_url]
    for _ in range(3):
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended.stderr
