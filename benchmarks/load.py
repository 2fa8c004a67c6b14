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

from .candidates import BARE
from .candidates import Candidate
from .candidates import CANDIDATES
from .candidates import DATABASE
from .candidates import WHO
from .databases import Databases
from .databases import Missing
from .databases import POSTGRESQL
from .databases import rows
from .databases import SQLITE
from .deliveries import write_requests
from .figures import Figure
from .figures import interleaved
from .figures import Measured
from .figures import OURS
from .figures import Part
from .figures import WrongAnswer
from .servers import express_env
from .servers import free_port
from .servers import install_express
from .servers import ROOT
from .servers import running
from .servers import wsgi_command

CONNECTIONS = 16
THREADS = 16
SERVERS = ("gunicorn", "granian")
EXPRESS = "Express"
REDIS = "node, Redis"

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


def run(
    databases: Databases,
    folder: Path,
    rounds: int,
    seconds: int,
    leave_out: tuple[str, ...] = (),
) -> Part:
    has_wrk = shutil.which("wrk") and "wrk" not in leave_out
    name = "wrk" if has_wrk else "benchmarks.client"
    player = Player(name, seconds, folder / "requests")
    about = (
        f"{CONNECTIONS} keep-alive connections for {seconds} s a round, played by"
        f" {name} from a process of its own. gunicorn: one gthread worker of {THREADS}"
        f" threads; granian: one worker of {THREADS} blocking threads."
    )
    part = Part("load", "Receive, under load", about)
    every = [*_wsgi(part, databases, folder, leave_out)]
    every += _express(part, folder, leave_out)
    interleaved(every, rounds, lambda one: _measure(one, player, part))
    for one in every:
        _check(one)
    part.measured = [one.measured for one in every if one.is_sound]
    _compare(part)
    return part


def _compare(part: Part) -> None:
    for server in SERVERS:
        bare = BARE, server
        for kind, limit in ((SQLITE, 0.65), (POSTGRESQL, 0.5)):
            ours = OURS, f"{server}, {kind}"
            name = f"{server}: rate on {kind} against the {BARE}"
            part.compare(name, limit, "rate", ours, bare, at_most=False)
            if kind == SQLITE:
                name = f"{server}: p99 on {kind} against the {BARE}"
                part.compare(name, 3.0, "p99", ours, bare)
            name = f"{server}: rate on {kind} against Express and Redis"
            other = EXPRESS, REDIS
            part.compare(name, 0.8, "rate", ours, other, at_most=False)


def _figures() -> dict[str, Figure]:
    return {"rate": Figure(), "p50": Figure(), "p99": Figure()}


def _wsgi(
    part: Part,
    databases: Databases,
    folder: Path,
    leave_out: tuple[str, ...],
) -> Iterator[Server]:
    for server in SERVERS:
        if server in leave_out:
            part.left_out.append(f"{server}: not wanted")
            continue
        for kind in (SQLITE, POSTGRESQL):
            if kind in leave_out:
                part.left_out.append(f"{server}, {kind}: not wanted")
                continue
            for candidate in CANDIDATES:
                if candidate.table is None and kind != SQLITE:
                    continue
                where = f"{server}, {kind}" if candidate.table else server
                measured = Measured(candidate.name, where, _figures())
                try:
                    url = databases.make(kind)
                    yield _server(server, candidate, measured, url, folder)
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


def _express(part: Part, folder: Path, leave_out: tuple[str, ...]) -> list[Server]:
    measured, port = Measured(EXPRESS, REDIS, _figures()), free_port()
    try:
        if EXPRESS in leave_out:
            raise Missing("not wanted")
        app = install_express(folder)
        env, log = express_env(port), folder / "express.log"
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
            _play(one, replace(player, seconds=1))
            played = _play(one, player)
            while played["exhausted"]:
                played = _play(one, player)
    except WrongAnswer as wrong:
        # The others are measured all the same.
        one.is_sound = False
        part.failures.append(str(wrong))
        return
    for name, value in (
        ("rate", played["answered"] / played["seconds"]),
        ("p50", played["p50"] * 1000),
        ("p99", played["p99"] * 1000),
    ):
        one.measured.figures[name].values.append(value)


def _play(one: Server, player: Player) -> dict[str, float]:
    """Play new requests, once; too few are ``exhausted``, and the next run has more."""
    write_requests(player.file, one.prepared)
    played = player.play(one.port)
    if played["refused"] or played["failed"] or not played["answered"]:
        who = f"{one.measured.who}, {one.measured.where}"
        raise WrongAnswer(f"not every answer of {who} was 200: {played}")
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
            who = f"{one.measured.who}, {one.measured.where}"
            raise WrongAnswer(f"{who}: {one.answered} answered, {found} rows")
