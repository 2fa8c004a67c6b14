"""Receive, under load: a server with one process, keep-alive connections, a player."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from dataclasses import replace
from pathlib import Path

from .bench import Bench
from .candidates import BARE_CANDIDATE
from .candidates import Candidate
from .candidates import DATABASE
from .candidates import HAND_CANDIDATE
from .candidates import OUR_CANDIDATE
from .candidates import OUR_DB_CANDIDATE
from .candidates import WHO
from .client import deliver
from .databases import Missing
from .databases import POSTGRESQL
from .databases import rows
from .databases import SQLITE
from .deliveries import write_requests
from .figures import figures
from .figures import interleaved
from .figures import Measured
from .figures import Part
from .figures import WrongAnswer
from .servers import express_env
from .servers import free_port
from .servers import install_express
from .servers import ROOT
from .servers import running
from .servers import wsgi_command

CONNECTIONS = 16
THREADS = 8
GUNICORN, GRANIAN = "gunicorn", "granian"
EXPRESS = "Express"
REDIS = "node, Redis"
BOTH = (OUR_CANDIDATE, HAND_CANDIDATE)
#: By server and database. db= costs a process the same under each server: with the
#: faster one it shows more.
EVERYBODY = (
    (GRANIAN, "", (BARE_CANDIDATE,)),
    (GRANIAN, SQLITE, (*BOTH, OUR_DB_CANDIDATE)),
    (GRANIAN, POSTGRESQL, (*BOTH, OUR_DB_CANDIDATE)),
    (GUNICORN, "", (BARE_CANDIDATE,)),
    (GUNICORN, SQLITE, BOTH),
    (GUNICORN, POSTGRESQL, BOTH),
)

#: Prepared for the first run, which tells how many the next one needs.
FIRST_REQUESTS = 1000


#: Starts the server, and ends it at the end.
Start = Callable[[], AbstractContextManager[object]]


@dataclass
class Server:
    measured: Measured
    port: int
    #: Only for its turn: together they would hold most of a server's connections.
    start: Start
    url: str = ""
    table: str | None = None
    #: Requests to prepare for the next run: more than it plays in its time.
    prepared: int = FIRST_REQUESTS
    answered: int = 0
    #: Under way when a run ended: whether they were recorded is not known.
    open: int = 0
    #: Whether every answer was 200 so far.
    is_sound: bool = True


@dataclass
class Player:
    """A process of its own that plays the requests in a file for some seconds."""

    name: str
    seconds: int
    file: Path

    def play(self, port: int) -> dict[str, float]:
        ran = subprocess.run(
            self._command(port), cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        if ran.returncode:
            raise WrongAnswer(f"{self.name} failed: {ran.stdout}{ran.stderr}")
        played: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
        return played

    def _command(self, port: int) -> list[str]:
        if self.name == "wrk":
            how = f"wrk -t1 -c{CONNECTIONS} -d{self.seconds}s --timeout 10s".split()
            script = str(Path(__file__).parent / "play.lua")
            address = f"http://127.0.0.1:{port}"
            return [*how, "-s", script, address, "--", str(self.file)]
        client = [sys.executable, "-m", "benchmarks.client", str(self.file)]
        return [*client, str(port), str(CONNECTIONS), str(self.seconds)]


def run(bench: Bench, rounds: int) -> Part:
    seconds = 1 if bench.is_quick else bench.seconds
    has_wrk = shutil.which("wrk") and "wrk" not in bench.without
    name = "wrk" if has_wrk else "benchmarks.client"
    player = Player(name, seconds, bench.folder / "requests")
    about = (
        f"{CONNECTIONS} keep-alive connections for {seconds} s a round, played by"
        f" {name} from a process of its own. gunicorn: one gthread worker of {THREADS}"
        f" threads; granian: one worker of {THREADS} blocking threads. SQLite is on the"
        " disk. Express keeps the id in Redis, in memory."
    )
    part = Part("load", "Receive, under load", about)
    every = [*_wsgi(part, bench), *_express(part, bench)]
    interleaved(every, rounds, lambda one: _measure(one, player, part))
    for one in every:
        _check(one)
    part.measured = [one.measured for one in every if one.is_sound]
    return part


def where(server: str, kind: str) -> str:
    return f"{server}, {kind}" if kind else server


def _measured(who: str, where: str) -> Measured:
    return Measured(who, where, figures("rate", "p50", "p99"))


def _wsgi(part: Part, bench: Bench) -> Iterator[Server]:
    for server, kind, candidates in EVERYBODY:
        for candidate in candidates:
            measured = _measured(candidate.name, where(server, kind))
            try:
                bench.require(server)
                url = bench.url(kind) if kind else ""
                yield _server(server, candidate, measured, url, bench.folder)
            except Missing as missing:
                part.left_out.append(f"{measured.name}: {missing}")


def _server(
    server: str, candidate: Candidate, measured: Measured, url: str, folder: Path
) -> Server:
    port = free_port()
    command = wsgi_command(server, port, THREADS)
    env = {WHO: candidate.name, DATABASE: url}
    log = folder / f"{port}.log"
    start = functools.partial(running, command, port, env, log)
    # To see whether it does.
    with start():
        return Server(measured, port, start, url, candidate.table)


def _express(part: Part, bench: Bench) -> list[Server]:
    measured, port = _measured(EXPRESS, REDIS), free_port()
    try:
        bench.require(EXPRESS)
        app = install_express(bench.folder)
        env, log = express_env(port), bench.folder / "express.log"
        start = functools.partial(running, ["node", "server.js"], port, env, log, app)
        with start():
            return [Server(measured, port, start)]
    except Missing as missing:
        part.left_out.append(f"{measured.name}: {missing}")
        return []


def _measure(one: Server, player: Player, part: Part) -> None:
    if not one.is_sound:
        return
    try:
        with one.start():
            # The first event waits for tables and connections.
            deliver(CONNECTIONS, one.port, CONNECTIONS)
            one.answered += CONNECTIONS
            _play(one, replace(player, seconds=1))
            played = _play(one, player)
            while played["exhausted"]:
                played = _play(one, player)
    except WrongAnswer as wrong:
        # The others are measured all the same.
        one.is_sound = False
        part.failures.append(f"{one.measured.name}: {wrong}")
        return
    one.measured.add(
        rate=played["answered"] / played["seconds"],
        p50=played["p50"] * 1000,
        p99=played["p99"] * 1000,
    )


def _play(one: Server, player: Player) -> dict[str, float]:
    """Play new requests, once; too few are ``exhausted``, and the next run has more."""
    write_requests(player.file, one.prepared)
    played = player.play(one.port)
    if played["refused"] or played["failed"] or not played["answered"]:
        raise WrongAnswer(f"not every answer was 200: {played}")
    new = one.prepared - CONNECTIONS if played["exhausted"] else played["answered"]
    one.answered += int(new)
    one.open += CONNECTIONS
    rate = played["answered"] / played["seconds"]
    wanted = int(1.5 * rate * player.seconds)
    if played["exhausted"]:
        wanted = max(wanted, 4 * one.prepared)
    one.prepared = max(one.prepared, wanted)
    return played


def _check(one: Server) -> None:
    """Every event that was answered is there."""
    if one.table and one.is_sound:
        found = rows(one.url, one.table)
        if not one.answered <= found <= one.answered + one.open:
            who = one.measured.name
            raise WrongAnswer(f"{who}: {one.answered} answered, {found} rows")
