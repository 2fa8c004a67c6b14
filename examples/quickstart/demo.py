"""Send good and bad deliveries to the quickstart app, and show answers, log and inbox.

The server, the commands, the log and the inbox are real. The demo exits 1 at the first
result that differs from its announcement.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
FLASK = [sys.executable, "-m", "flask", "--app", "app"]
LOGGERS = (":app:", ":flask_procore_webhooks:")
RECEIVED = '200 {"received": true}'
DUPLICATE = '200 {"received": true, "duplicate": true}'
QUARANTINED = '200 {"received": true, "quarantined": true}'
REFUSED = '401 {"error": "Invalid signature"}'


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        demo = Demo(Path(folder))
        secret = secrets.token_urlsafe(32)
        with demo.server(PROCORE_WEBHOOK_SECRET=secret):
            signed_deliveries(demo)
        with demo.server(PROCORE_WEBHOOK_AUTHORIZATION=f"Bearer {secret}"):
            deliveries_of_procore_itself(demo)
            look_into_the_inbox(demo)
    print("\nAll as announced: each subscriber ran once, no forgery reached one.")


def signed_deliveries(demo: Demo) -> None:
    heading("A signed delivery is verified, recorded, and a subscriber runs")
    demo.trigger("resource.created")
    demo.expect(RECEIVED, log=["resource 4001 was created"])

    heading("A forgery, signed with another secret")
    demo.trigger("resource.created", "--secret", "not the secret")
    demo.expect(REFUSED, log=["no secret matches"])

    heading("An old delivery, signed an hour ago")
    demo.trigger("resource.created", "--timestamp", "-3600")
    demo.expect(REFUSED, log=["timestamp too old"])

    heading("Authentic, but not JSON: recorded as quarantined, for you to read")
    note = demo.folder / "note.txt"
    note.write_text("This is not JSON.")
    demo.trigger("--file", str(note))
    demo.expect(QUARANTINED, log=["quarantined sha256:"])


def deliveries_of_procore_itself(demo: Demo) -> None:
    heading("Procore itself sends an Authorization value; this event comes twice")
    demo.trigger("RFIs.update", "--format", "v4", "--repeat", "2")
    demo.expect(RECEIVED, DUPLICATE, log=["RFI 4001 was updated by user 1001"])


def look_into_the_inbox(demo: Demo) -> None:
    heading("The inbox")
    demo.run("stats")
    rows = [line.split() for line in demo.run("list").splitlines()]
    for status, type in (
        ("quarantined", "(unreadable)"),
        ("done", "RFIs.update"),
        ("done", "resource.created"),
    ):
        check(any({status, type} <= {*row} for row in rows), f"{type} is {status}")
    for line in ("resource 4001 was created", "RFI 4001 was updated"):
        check(demo.log.read_text().count(line) == 1, f"once in the whole log: {line}")


class Demo:
    """The app under a real server, with its last answers and log lines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "server.log"
        self.lines_shown = 0
        self.env: dict[str, str] = {}
        self.answers: list[str] = []
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/webhooks/procore"

    @contextmanager
    def server(self, **config: str) -> Iterator[None]:
        """Run the app with its inbox in the temporary folder."""
        config["PROCORE_WEBHOOK_DATABASE_URI"] = f"sqlite:///{self.folder / 'inbox.db'}"
        ours = ("FLASK_", "PROCORE_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        self.env = kept | config
        command = [*FLASK, "run", "-p", str(self.port)]
        with self.log.open("ab") as log:
            server = subprocess.Popen(
                command, cwd=HERE, env=self.env, stdout=log, stderr=log
            )
        try:
            while not self.answers_calls():
                check(server.poll() is None, f"a server:\n{self.log.read_text()}")
                time.sleep(0.05)
            yield
        finally:
            server.terminate()
            server.wait()

    def answers_calls(self) -> bool:
        with socket.socket() as call:
            return call.connect_ex(("127.0.0.1", self.port)) == 0

    def run(self, *arguments: str) -> str:
        """Run one command of the package; print and return its output."""
        print("$", shlex.join(["flask", "procore-webhooks", *arguments]))
        ran = subprocess.run(
            [*FLASK, "procore-webhooks", *arguments],
            cwd=HERE,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        print(ran.stdout, end="")
        return ran.stdout

    def trigger(self, *arguments: str) -> None:
        """Send deliveries and store the status and body of each answer."""
        output = self.run("trigger", *arguments, "--url", self.url)
        found = re.findall(r"^(\d+)  \d+ ms  (.*)$", output, re.MULTILINE)
        self.answers = [f"{status} {body}" for status, body in found]

    def expect(self, *answers: str, log: list[str]) -> None:
        """Print the new log lines, and compare them and the answers."""
        ours = self.new_lines()
        deadline = time.monotonic() + 10
        # The app answers before the subscribers run: their lines may come later.
        while len(ours) < len(log) and time.monotonic() < deadline:
            time.sleep(0.05)
            ours += self.new_lines()
        print(*(f"  log: {line}" for line in ours), sep="\n")
        check(self.answers == [*answers], f"the answers {answers}")
        check(len(ours) == len(log), f"{len(log)} lines in the log")
        check(all(map(str.__contains__, ours, log)), f"in the log: {log}")

    def new_lines(self) -> list[str]:
        """Return the log lines since the last call."""
        lines = self.log.read_text().splitlines()[self.lines_shown :]
        self.lines_shown += len(lines)
        return [line for line in lines if any(name in line for name in LOGGERS)]


def heading(text: str) -> None:
    print(f"\n== {text}")


def check(as_announced: bool, expected: str) -> None:
    if not as_announced:
        sys.exit(f"NOT AS ANNOUNCED: expected {expected}")


if __name__ == "__main__":
    main()
