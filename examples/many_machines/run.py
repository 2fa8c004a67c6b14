"""Send webhooks to two machines, kill their processes meanwhile, and audit the result.

Exits 1 if an event that was answered 2xx is lost, or its effect doubled.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import redis
import sqlalchemy as sa
from audit import Auditor
from audit import Verdict
from machines import Machines
from sender import plan
from sender import Sender

POSTGRESQL = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
REDIS = "redis://127.0.0.1:6379/8"
#: Seconds; short values, to end the demonstration soon. The app has the defaults.
BRISK = {"LEASE": "3", "SWEEP_EVERY": "2", "SWEEP_OVERDUE": "2"}
#: Seconds between two kills, at most; and for unfinished events at the end.
LONGEST_PEACE = 2.5
AFTERWARDS = 60.0


def main() -> int:
    options = read_options()
    # SIGTERM becomes SystemExit, so that the context managers end the processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    rng = Random(options.seed)
    with (
        tempfile.TemporaryDirectory() as folder,
        own_database() as database,
        own_prefix() as prefix,
    ):
        env = BRISK | {
            "DATABASE_URL": database,
            "PROCORE_WEBHOOK_SECRET": secrets.token_urlsafe(32),
            "REDIS_URL": redis_url(),
            "REDIS_PREFIX": prefix,
        }
        return play(options, rng, Path(folder), env)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=800)
    parser.add_argument("--seconds", type=float, default=25.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10_000))
    return parser.parse_args()


def play(
    options: argparse.Namespace, rng: Random, folder: Path, env: dict[str, str]
) -> int:
    create_tables(env)
    auditor = Auditor(env["DATABASE_URL"])
    with Machines("AB", folder, env) as machines:
        machines.wait_until_up()
        print(
            f"{options.events} events in {options.seconds:g} s, seed {options.seed}",
            flush=True,
        )
        sender = Sender(
            plan(options.events, options.seconds, rng),
            [machine.url for machine in machines.each],
            env["PROCORE_WEBHOOK_SECRET"],
            options.seconds + AFTERWARDS,
        )
        start = time.monotonic()
        kill_while_it_sends(sender, machines, rng, start, options.seconds)
        print_at(start, "all is sent and accepted")
        all_done = auditor.wait_until_done(AFTERWARDS)
        print_at(start, "all is done" if all_done else "not all is done")
    return report(sender, machines, auditor, all_done)


def kill_while_it_sends(
    sender: Sender, machines: Machines, rng: Random, start: float, seconds: float
) -> None:
    sender.start()
    next_kill = rng.uniform(0.5, LONGEST_PEACE)
    while sender.is_alive():
        if next_kill < (elapsed := time.monotonic() - start) < seconds:
            print_at(start, f"killed: {machines.kill_some(rng)}")
            next_kill = elapsed + rng.uniform(0.5, LONGEST_PEACE)
        machines.revive()
        time.sleep(0.05)
    while not all(process.is_running() for process in machines.processes):
        machines.revive()
        time.sleep(0.05)


def print_at(start: float, what: str) -> None:
    print(f"{time.monotonic() - start:6.1f} s  {what}", flush=True)


def report(sender: Sender, machines: Machines, auditor: Auditor, all_done: bool) -> int:
    verdict = auditor.verdict(sender.accepted)
    kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(machines.kills.items()))
    print_counts(
        ("events accepted", len(sender.accepted), ""),
        ("duplicates", sender.duplicates, "answered as such"),
        ("not accepted", refusals(sender), "deliveries, made again elsewhere"),
        ("kills", machines.kills.total(), kinds),
        *(("effects", n, f"of machine {m}") for m, n in auditor.machines().items()),
        ("lost", len(verdict.lost), ""),
        ("doubled", len(verdict.doubled), ""),
    )
    wrong = list(problems(sender, verdict, all_done))
    print(*wrong or ["Every event that was answered 2xx was done, once."], sep="\n")
    return 1 if wrong else 0


def print_counts(*counts: tuple[str, int, str]) -> None:
    for name, count, note in counts:
        print(f"{name:16}{count:6}  {note}".rstrip())


def refusals(sender: Sender) -> int:
    return sender.answers.total() - sender.answers["200"]


def problems(sender: Sender, verdict: Verdict, all_done: bool) -> Iterator[str]:
    if not all_done:
        yield f"Some events are not finished after {AFTERWARDS:g} s."
    yield from (f"LOST: {id}" for id in verdict.lost)
    yield from (f"DOUBLED: {id}" for id in verdict.doubled)
    yield from (f"Never answered 2xx: {id}" for id in sender.given_up)
    strange = sender.answers.keys() - {"200", "503", "none"}
    yield from (f"Answered {status}" for status in strange)


def create_tables(env: dict[str, str]) -> None:
    os.environ.update(env)
    from app import create_app
    from app import db

    app = create_app()
    with app.app_context():
        db.create_all()
        db.engine.dispose()


@contextmanager
def own_database() -> Iterator[str]:
    """A new database on the server, dropped at the end."""
    url = sa.make_url(os.environ.get("POSTGRESQL_URL", POSTGRESQL))
    admin = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    name = f"many_machines_{secrets.token_hex(6)}"
    try:
        with admin.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
    except sa.exc.OperationalError as error:
        sys.exit(f"No PostgreSQL where POSTGRESQL_URL or {url} leads: {error.orig}")
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))


def redis_url() -> str:
    return os.environ.get("REDIS_URL", REDIS)


@contextmanager
def own_prefix() -> Iterator[str]:
    """A prefix for keys of Redis; the keys are deleted at the end."""
    prefix = f"many_machines_{secrets.token_hex(6)}:"
    with redis.Redis.from_url(redis_url()) as client:
        try:
            client.ping()
        except redis.ConnectionError as error:
            sys.exit(f"No Redis where REDIS_URL or {redis_url()} leads: {error}")
        try:
            yield prefix
        finally:
            for key in client.scan_iter(f"{prefix}*"):
                client.delete(key)


if __name__ == "__main__":
    sys.exit(main())
